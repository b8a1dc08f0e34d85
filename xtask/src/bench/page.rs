//! `docs/performance.md`: sections between marks are written by the benchmarks, everything else by hand.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use super::Part;

/// A section with the command that makes it again, and where it was measured.
pub fn dated(section: &str, part: Part) -> String {
    format!("`cargo xtask bench {}`, on {}.\n\n{}\n", part.name(), machine(), section.trim())
}

/// Replaces the section `name` of the page.
pub fn put(name: &str, section: &str) -> Result<()> {
    let path = crate::host::workspace().join("docs/performance.md");
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let page = replaced(&page, name, section).with_context(|| format!("{} has no section {name}", path.display()))?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn replaced(page: &str, name: &str, section: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- bench {name} -->\n"), format!("<!-- end {name} -->\n"));
    let (head, rest) = page.split_once(&begin)?;
    let (_, tail) = rest.split_once(&end)?;
    Some(format!("{head}{begin}{}\n{end}{tail}", section.trim_end()))
}

/// The class of this machine, in words: nothing that names it.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = read("/proc/meminfo");
    let kib = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0);
    let release = read("/proc/sys/kernel/osrelease");
    let release = release.split('-').next().unwrap_or_default().trim();
    let rustc = Command::new("rustc").arg("--version").output().map(|out| out.stdout).unwrap_or_default();
    let rustc = String::from_utf8_lossy(&rustc);
    let rustc: Vec<_> = rustc.split(' ').take(2).collect();
    format!(
        "{cores} cores of {}, {} GiB, Linux {release}, {}",
        model.unwrap_or("an unknown processor").replace("(R)", ""),
        kib.div_ceil(1024 * 1024),
        rustc.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_nothing_else() {
        let page = "a\n<!-- bench x -->\nold\n<!-- end x -->\nb\n";
        assert_eq!(replaced(page, "x", "new\n\n").unwrap(), "a\n<!-- bench x -->\nnew\n<!-- end x -->\nb\n");
        assert!(replaced(page, "y", "new").is_none());
    }
}
