//! Offers of STARTTLS, as counts of sessions with one peer. The store keeps them by day; rule G9 compares them with TLS
//! reports about this host. [`Usage`] counts what the same sessions used.

use serde::Serialize;

use crate::{Timestamp, smtp::TlsVersion};

/// Sessions with one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Offers {
    /// All sessions.
    pub sessions: u64,
    /// Sessions whose EHLO reply was seen whole and offered STARTTLS.
    pub offered: u64,
    /// Sessions whose EHLO reply did not offer STARTTLS, or in which STARTTLS was refused.
    pub withheld: u64,
    /// Sessions in which TLS began.
    pub tls: u64,
    /// Sessions with an offer that the client did not use. A client that does not receive the offer behaves like this.
    pub unused: u64,
    /// Unused offers after which a message was accepted in cleartext.
    pub content: u64,
    /// Sessions without a verdict: a gap, only one side seen, or joined midstream.
    pub unknown: u64,
    /// End of the newest session with an unused offer.
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

/// What sessions with one peer used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Sessions with mail or credentials in cleartext.
    pub cleartext: u64,
    /// Messages that were accepted in cleartext.
    pub messages: u64,
    /// When the newest session with mail or credentials in cleartext ended.
    pub last_cleartext: Timestamp,
    /// Sessions in which TLS began, by version.
    pub versions: Versions,
}

impl Usage {
    /// The sum of two counts.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            cleartext: self.cleartext.saturating_add(other.cleartext),
            messages: self.messages.saturating_add(other.messages),
            last_cleartext: self.last_cleartext.max(other.last_cleartext),
            versions: self.versions.and(other.versions),
        }
    }
}

/// Sessions by the version of TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Versions {
    /// TLS 1.0.
    #[serde(rename = "1.0")]
    pub v1_0: u64,
    /// TLS 1.1.
    #[serde(rename = "1.1")]
    pub v1_1: u64,
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    pub v1_2: u64,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    pub v1_3: u64,
    /// The server's hello was not seen whole, or it chose another version, such as SSL 3.0.
    pub unknown: u64,
}

impl Versions {
    /// One session.
    #[must_use]
    pub fn one(version: TlsVersion) -> Self {
        let mut versions = Self::default();
        *match version {
            TlsVersion::V1_0 => &mut versions.v1_0,
            TlsVersion::V1_1 => &mut versions.v1_1,
            TlsVersion::V1_2 => &mut versions.v1_2,
            TlsVersion::V1_3 => &mut versions.v1_3,
            TlsVersion::Unknown => &mut versions.unknown,
        } = 1;
        versions
    }

    /// The counts with their versions, in the order of [`TlsVersion::ALL`].
    #[must_use]
    pub const fn counts(&self) -> [(TlsVersion, u64); 5] {
        [
            (TlsVersion::V1_0, self.v1_0),
            (TlsVersion::V1_1, self.v1_1),
            (TlsVersion::V1_2, self.v1_2),
            (TlsVersion::V1_3, self.v1_3),
            (TlsVersion::Unknown, self.unknown),
        ]
    }

    /// The sum of two counts.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            v1_0: self.v1_0.saturating_add(other.v1_0),
            v1_1: self.v1_1.saturating_add(other.v1_1),
            v1_2: self.v1_2.saturating_add(other.v1_2),
            v1_3: self.v1_3.saturating_add(other.v1_3),
            unknown: self.unknown.saturating_add(other.unknown),
        }
    }
}
