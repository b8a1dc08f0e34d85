//! Digest of the sources of the kernel object. `cargo xtask build-ebpf` writes it next to the object; a test compares
//! it with the sources.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// Source directories of the kernel object, relative to the workspace.
const TREES: [&str; 2] = ["smtpwatch-common", "smtpwatch-ebpf"];
/// Packages of `Cargo.lock` that are linked into it.
const PACKAGES: [&str; 7] = [
    "aya-ebpf",
    "aya-ebpf-bindings",
    "aya-ebpf-cty",
    "aya-ebpf-macros",
    "aya-log-common",
    "aya-log-ebpf",
    "aya-log-ebpf-macros",
];

/// SHA-256, in hexadecimal, over the manifests and sources of the kernel programs and the versions of the linked
/// packages.
///
/// # Errors
///
/// When a source file cannot be read.
pub fn of_sources(workspace: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for tree in TREES {
        files.push(PathBuf::from(tree).join("Cargo.toml"));
        collect(workspace, &PathBuf::from(tree).join("src"), &mut files)?;
    }
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let content = fs::read(workspace.join(&file))?;
        // Name and length come first, so that no two trees concatenate to the same bytes.
        digest.update(format!("{}\0{}\0", file.display(), content.len()));
        digest.update(&content);
    }
    for line in locked(&fs::read_to_string(workspace.join("Cargo.lock"))?) {
        digest.update(line);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Collects the sources below `folder`, without unit tests: they are not part of the object.
fn collect(workspace: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(workspace.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(workspace, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Name and version of the linked packages, in the order of the lock file.
fn locked(lock: &str) -> Vec<String> {
    let mut lines = lock.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("name = \"").and_then(|rest| rest.strip_suffix('"')) else { continue };
        if PACKAGES.contains(&name) {
            found.push(format!("{name} {}\n", lines.next().unwrap_or_default()));
        }
    }
    found
}
