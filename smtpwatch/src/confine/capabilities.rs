//! Capabilities (capabilities(7)).

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};

/// Gives up all capabilities of the calling thread but `kept`.
pub(super) fn keep(kept: &[Capability]) -> anyhow::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read the capabilities")?;
    let kept: CapsHashSet = kept.iter().copied().filter(|capability| permitted.contains(capability)).collect();
    let none = CapsHashSet::new();
    // The ambient set first: it holds no capability that is not inheritable.
    caps::clear(None, CapSet::Ambient)
        .and_then(|()| caps::set(None, CapSet::Inheritable, &none))
        .and_then(|()| caps::set(None, CapSet::Effective, &kept))
        .and_then(|()| caps::set(None, CapSet::Permitted, &kept))
        .context("cannot drop capabilities")
}

/// Tries something as a thread without capabilities would.
pub fn without<T>(work: impl FnOnce() -> T) -> T {
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    // What cannot be lowered stays, and then the trial tells too much; giving up for good tells of it.
    _ = caps::set(None, CapSet::Effective, &CapsHashSet::new());
    let told = work();
    _ = caps::set(None, CapSet::Effective, &effective);
    told
}
