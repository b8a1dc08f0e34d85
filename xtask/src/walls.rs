//! Checks the dependencies between crates: which crate of the workspace may import which, and what store and web server
//! never link.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::host;

/// Each crate of the product, and the crates of the workspace that it imports. No crate imports one listed below it.
const IMPORTS: [(&str, &[&str]); 14] = [
    ("smtpwatch-common", &[]),
    ("smtpwatch-ebpf", &["smtpwatch-common"]),
    ("smtpwatch-core", &["smtpwatch-common"]),
    ("smtpwatch-system", &["smtpwatch-core"]),
    ("smtpwatch-config", &["smtpwatch-core", "smtpwatch-system"]),
    ("smtpwatch-metrics", &["smtpwatch-core"]),
    ("smtpwatch-capture", &["smtpwatch-common", "smtpwatch-config", "smtpwatch-core", "smtpwatch-system"]),
    ("smtpwatch-pipeline", &["smtpwatch-capture", "smtpwatch-common", "smtpwatch-config", "smtpwatch-core"]),
    ("smtpwatch-policy", &["smtpwatch-config", "smtpwatch-core", "smtpwatch-metrics", "smtpwatch-system"]),
    ("smtpwatch-store", &["smtpwatch-config", "smtpwatch-core", "smtpwatch-system"]),
    ("smtpwatch-render", &["smtpwatch-core"]),
    (
        "smtpwatch-tlsrpt",
        &["smtpwatch-config", "smtpwatch-core", "smtpwatch-policy", "smtpwatch-store", "smtpwatch-system"],
    ),
    (
        "smtpwatch-web",
        &["smtpwatch-core", "smtpwatch-metrics", "smtpwatch-render", "smtpwatch-store", "smtpwatch-system"],
    ),
    (
        "smtpwatch",
        &[
            "smtpwatch-capture",
            "smtpwatch-common",
            "smtpwatch-config",
            "smtpwatch-core",
            "smtpwatch-metrics",
            "smtpwatch-pipeline",
            "smtpwatch-policy",
            "smtpwatch-render",
            "smtpwatch-store",
            "smtpwatch-system",
            "smtpwatch-tlsrpt",
            "smtpwatch-web",
        ],
    ),
];

/// Crates of the workspace that are not part of the product.
const TOOLS: [&str; 3] = ["smtpwatch-testkit", "smtpwatch-tests", "xtask"];

/// Resolver, HTTP client, and loader of kernel programs.
const OUTSIDE: [&str; 3] = ["hickory-", "reqwest", "aya"];

/// Output of `cargo`, which must succeed.
fn printed(arguments: &[&str]) -> String {
    let output = host::cargo(arguments).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_crate_imports_what_the_plan_says_and_nothing_from_below() {
    let metadata: Value =
        serde_json::from_str(&printed(&["metadata", "--no-deps", "--offline", "--format-version", "1"])).unwrap();
    let mut found = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if TOOLS.contains(&name) {
            continue;
        }
        let of_ours = |dependency: &&Value| dependency["kind"].is_null() && !dependency["path"].is_null();
        let imports: BTreeSet<&str> = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(of_ours)
            .map(|dependency| dependency["name"].as_str().unwrap())
            .collect();
        let place = IMPORTS.iter().position(|(known, _)| *known == name);
        let place = place.unwrap_or_else(|| panic!("{name} has no row: where does it stand?"));
        assert_eq!(imports, IMPORTS[place].1.iter().copied().collect(), "imports of {name}");
        for import in imports {
            let above = IMPORTS[..place].iter().any(|(known, _)| *known == import);
            assert!(above, "{name} imports {import}, which stands below it");
        }
        found.insert(name.to_owned());
    }
    assert_eq!(found.len(), IMPORTS.len(), "a row without a crate: {found:?}");
}

#[test]
fn store_pages_and_engine_link_no_resolver_no_http_client_and_no_kernel_loader() {
    let linked = |name: &str| -> Vec<String> {
        let tree = printed(&["tree", "--offline", "--package", name, "--edges", "normal", "--prefix", "none"]);
        tree.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
    };
    let is_outside = |name: &String| OUTSIDE.iter().any(|outside| name.starts_with(outside));
    for name in ["smtpwatch-core", "smtpwatch-config", "smtpwatch-store", "smtpwatch-render", "smtpwatch-web"] {
        let linked = linked(name);
        assert!(linked.iter().any(|linked| linked == "serde"), "the tree of {name} was not read: {linked:?}");
        let outside: Vec<_> = linked.iter().filter(|name| is_outside(name)).collect();
        assert!(outside.is_empty(), "{name} links {outside:?}");
    }
    // Control that the names are right: the crates that need these dependencies have them.
    for (name, outside) in
        [("smtpwatch-policy", "hickory-resolver"), ("smtpwatch-policy", "reqwest"), ("smtpwatch-capture", "aya")]
    {
        assert!(linked(name).iter().any(|linked| linked == outside), "{name} does not link {outside}");
    }
}
