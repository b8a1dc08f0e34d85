//! The lifecycle of a flow: [`Lifecycle`]. The engine moves a flow from state to state in `transitions`.
//!
//! ```text
//!                             answer of this host's side
//!  first segment ──▶ Incomplete ───────────────────────▶ Complete     handshake
//!
//!                            host continues
//!          ┌───────────────────────┬─────────────────┐
//!          ▼   RST                 │                 │
//!        None ─────▶ Unconfirmed ──┴──────────────▶ Judged ──▶ end    reset
//!                         └──────▶ AwaitingPolicy ────▲
//!
//!  FIN, another connection, time limit, eviction: end, from any of these states
//!  end ──▶ verdict ──▶ gone
//!   └────▶ Lifecycle::AwaitingPolicy ──▶ verdict ──▶ gone
//! ```

use crate::Timestamp;

/// Where a flow is in its life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Lifecycle {
    /// The key of the flow leads to it, and its segments are processed.
    Tracked {
        handshake: Handshake,
        /// The reset that ended the connection, unless the endpoint ignored it.
        reset: Option<Reset>,
    },
    /// The connection has ended, and its key is free for another one. The final verdict waits for policy look-ups.
    AwaitingPolicy {
        /// When the connection ended: the time of its findings.
        ended: Timestamp,
        /// Hashes of the look-ups that are outstanding.
        lookups: Box<[u64]>,
    },
}

/// Whether a tracked flow is more than an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Handshake {
    /// This host's side has sent nothing after its SYN. The flow is evicted before others and counts in no quota.
    Incomplete,
    /// The flow counts in the quota of its peer.
    Complete,
}

/// How far the verdict on a reset flow is. The flow stays tracked: the host may have ignored the reset (docs/threats.md
/// EV-22).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reset {
    /// The host may still continue.
    Unconfirmed,
    /// The final verdict waits for policy look-ups.
    AwaitingPolicy,
    /// The final verdict was given.
    Judged,
}

impl Lifecycle {
    pub(super) const fn is_opening(&self) -> bool {
        matches!(self, Self::Tracked { handshake: Handshake::Incomplete, .. })
    }

    pub(super) const fn is_counted(&self) -> bool {
        matches!(self, Self::Tracked { handshake: Handshake::Complete, .. })
    }

    pub(super) const fn reset(&self) -> Option<Reset> {
        match self {
            Self::Tracked { reset, .. } => *reset,
            Self::AwaitingPolicy { .. } => None,
        }
    }

    /// The final verdict on the ended connection waits for this look-up.
    pub(super) fn awaits(&self, lookup: u64) -> bool {
        match self {
            Self::Tracked { .. } => false,
            Self::AwaitingPolicy { lookups, .. } => lookups.contains(&lookup),
        }
    }
}
