//! Drops capabilities (capabilities(7)): permanently for the threads of the daemon, temporarily for trials.

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};

/// Drops all capabilities of the calling thread except `privileges`.
pub(super) fn keep(privileges: &[Capability]) -> anyhow::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read the capabilities")?;
    let privileges: CapsHashSet =
        privileges.iter().copied().filter(|capability| permitted.contains(capability)).collect();
    let none = CapsHashSet::new();
    // The ambient set first: it cannot hold a capability that is not inheritable.
    caps::clear(None, CapSet::Ambient)
        .and_then(|()| caps::set(None, CapSet::Inheritable, &none))
        .and_then(|()| caps::set(None, CapSet::Effective, &privileges))
        .and_then(|()| caps::set(None, CapSet::Permitted, &privileges))
        .context("cannot drop capabilities")
}

/// Runs a trial as a thread without effective capabilities would.
pub fn without<T>(work: impl FnOnce() -> T) -> T {
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    // If the set cannot be lowered, the trial may succeed wrongly; the later permanent drop reports that failure.
    _ = caps::set(None, CapSet::Effective, &CapsHashSet::new());
    let result = work();
    _ = caps::set(None, CapSet::Effective, &effective);
    result
}
