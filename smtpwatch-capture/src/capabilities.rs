//! The Linux capabilities (capabilities(7)) that capture requires at start, for hot-plug, and for open maps.

use caps::{CapSet, Capability};

/// Capabilities for loading and attaching the kernel programs. Without CAP_PERFMON the verifier forbids comparisons
/// of packet pointers (Linux 5.8, commit 2c78ee898d8f).
pub const CAPTURE: [Capability; 3] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// Capabilities for attaching loaded programs to interfaces that appear later, and for removing clsact filters.
pub const HOT_PLUG: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// Capability for reading and writing open maps, which some kernels require.
pub const MAPS: [Capability; 1] = [Capability::CAP_BPF];

/// The capabilities of [`CAPTURE`] that the calling thread cannot use. CAP_SYS_ADMIN substitutes for the two that
/// Linux 5.8 introduced.
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
