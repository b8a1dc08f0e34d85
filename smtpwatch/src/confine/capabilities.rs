//! Capabilities (capabilities(7)).

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};

/// What loading and attaching the kernel programs needs. Without CAP_PERFMON the verifier forbids comparisons of packet
/// pointers (Linux 5.8, commit 2c78ee898d8f).
pub const CAPTURE: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// What attaching loaded programs to interfaces that come, and letting go of clsact filters, needs.
pub const HOT_PLUG: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// What reading and writing maps that are open needs on some kernels.
pub const MAPS: [Capability; 1] = [Capability::CAP_BPF];

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

/// Those of [`CAPTURE`] that the calling thread cannot use. CAP_SYS_ADMIN stands for the two that came with Linux 5.8.
#[must_use]
pub fn missing() -> Vec<Capability> {
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    let stands_for = |capability| {
        effective.contains(&Capability::CAP_SYS_ADMIN)
            && matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON)
    };
    let missing = |capability: &Capability| !effective.contains(capability) && !stands_for(*capability);
    CAPTURE.into_iter().filter(missing).collect()
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
