//! Which source of policies wins. The judge asks for findings, [`effective`](super::effective) for reports and tables of mail
//! servers; both walk through [`PRECEDENCE`].

use super::published::demand::Weight;

/// A kind of source, as one step of the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authority {
    /// A `[[rule]]` of the configuration.
    Rule,
    /// A published policy of this weight. Several of them are in the order of
    /// [`Source::ALL`](super::published::demand::Source::ALL).
    Published(Weight),
    /// This host's own sessions with the peer.
    History,
}

/// Local rules come first, then published policies that are enforced, then history. Policies in testing follow history, so that
/// a test hides no regression. The last are hints: lists after their expiry.
pub const PRECEDENCE: [Authority; 5] = [
    Authority::Rule,
    Authority::Published(Weight::Enforce),
    Authority::History,
    Authority::Published(Weight::Testing),
    Authority::Published(Weight::Hint),
];

/// The answer of the first authority that has one.
pub fn first<T>(ask: impl FnMut(Authority) -> Option<T>) -> Option<T> {
    PRECEDENCE.into_iter().find_map(ask)
}
