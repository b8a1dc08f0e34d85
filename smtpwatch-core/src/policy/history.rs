//! History: what this host has itself seen of a peer (RFC 3207 §6; THREATS FP-1, FP-3, FP-21).

use std::net::IpAddr;

use serde::Serialize;

use crate::Timestamp;

/// Of whom a record speaks. The own address is part of it, because a server may offer differently to each client (FP-3).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub struct HistoryKey {
    /// This host's address.
    pub own: IpAddr,
    /// The peer: one server address, or everybody who calls himself by a name.
    pub peer: HistoryPeer,
    /// The server's port.
    pub port: u16,
}

/// The two ways to know a server again.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryPeer {
    /// By address.
    Address(IpAddr),
    /// By the name in greeting or EHLO reply, in lower case.
    Name(String),
}

/// What was seen of a peer: a rate, not a bit (THREATS FP-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct HistoryRecord {
    /// Sessions whose EHLO reply in clear was seen whole.
    pub sessions: u64,
    /// Of these, how many offered STARTTLS.
    pub offered: u64,
    /// Of these, how many began TLS.
    pub used: u64,
    /// Times the offer came back after it was missing: a farm that answers differently does this, a strip does not.
    pub returns: u64,
    /// The newest sessions in a row without an offer.
    pub missing_run: u64,
    /// First session.
    pub first_seen: Timestamp,
    /// Newest session.
    pub last_seen: Timestamp,
    /// Newest session that offered STARTTLS.
    pub last_offered: Timestamp,
}
