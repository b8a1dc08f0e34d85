//! Offers of STARTTLS, as counts of sessions with one peer. The store keeps them by day; rule G9 compares them with TLS
//! reports about this host.

use serde::Serialize;

use crate::Timestamp;

/// Sessions with one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Offers {
    /// All of them.
    pub sessions: u64,
    /// The EHLO reply, seen whole, offered STARTTLS.
    pub offered: u64,
    /// It did not, or STARTTLS was refused.
    pub withheld: u64,
    /// TLS began.
    pub tls: u64,
    /// Offered, not asked for, and no TLS: what a client does that does not see the offer.
    pub unused: u64,
    /// Those of them in which a message was accepted in cleartext.
    pub content: u64,
    /// A gap, one side only, or joined midstream: nothing can be said.
    pub unknown: u64,
    /// When the newest of the unused ones ended.
    pub last_unused: Timestamp,
}

impl Offers {
    /// The sum of two counts.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            sessions: self.sessions.saturating_add(other.sessions),
            offered: self.offered.saturating_add(other.offered),
            withheld: self.withheld.saturating_add(other.withheld),
            tls: self.tls.saturating_add(other.tls),
            unused: self.unused.saturating_add(other.unused),
            content: self.content.saturating_add(other.content),
            unknown: self.unknown.saturating_add(other.unknown),
            last_unused: self.last_unused.max(other.last_unused),
        }
    }
}
