//! Passes the revision of the sources and the version of the compiler to the program. Uses no network, and does not fail
//! outside of a checkout.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // HEAD moves with the branch; its log changes with every commit.
    for path in ["HEAD", "logs/HEAD"] {
        if let Some(path) = output("git", &["rev-parse", "--path-format=absolute", "--git-path", path])
            && std::path::Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let revision = output("git", &["describe", "--always", "--tags", "--abbrev=12"]);
    println!("cargo::rustc-env=SMTPWATCH_REVISION={}", revision.unwrap_or_default());
    println!("cargo::rustc-env=SMTPWATCH_RUSTC={}", output(&rustc, &["--version"]).unwrap_or_default());
    println!("cargo::rustc-env=SMTPWATCH_DATE={}", std::env::var("SOURCE_DATE_EPOCH").unwrap_or_default());
}

/// The first line that the program prints; nothing when it is missing or fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.lines().next()?.trim().to_owned())
}
