//! Landlock (landlock(7)): restricts the files that the process may access.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, path_beneath_rules,
};

/// The newest Landlock ABI that is used; an older kernel applies the rights that it supports.
const RIGHTS: ABI = ABI::V5;

/// System directories that the daemon reads: resolver settings and certificates, processes and interfaces, cgroups,
/// time zones, random numbers. Home directories and the mail spool are not among them.
const SYSTEM: [&str; 6] = ["/etc", "/proc", "/sys", "/run", "/usr/share", "/dev"];

/// Allows the calling thread to read below [`SYSTEM`] and `readable`, and to write below `writable`; nothing may be
/// executed.
pub(super) fn restrict(readable: &[PathBuf], writable: &[PathBuf]) -> Result<(), String> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Device ioctls are restricted too; a terminal that is already open stays usable.
    let write = AccessFs::from_all(RIGHTS) & !AccessFs::Execute;
    let system = SYSTEM.iter().map(Path::new).chain(readable.iter().map(PathBuf::as_path));
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rules(path_beneath_rules(system, read)))
        .and_then(|rules| rules.add_rules(path_beneath_rules(writable, write)))
        .and_then(|rules| rules.restrict_self())
        .map_err(|error| format!("files are not restricted: {error}"))?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("files are not restricted: this kernel has no Landlock".to_owned()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}
