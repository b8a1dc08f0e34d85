//! One record of history: its key ([`HistoryKey`]) and what was seen of the peer ([`HistoryRecord`]).

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Strength,
    days::{Spread, Tally},
    rate::{Rate, Sighting},
};
use crate::{Role, Timestamp, policy::profile::Profile};

/// Maximum number of names stored for an address. A server has two or three. The earliest ones stay: an attacker who
/// rewrites a greeting can write any number of names.
const NAMES: usize = 6;
/// Time without a session after which a name is removed: an address may get another tenant.
const NAME_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Minimum time over which a name must be given to be the peer's own, unless it was given from the start: a device on
/// the path can write another name into some sessions before it uses it.
const NAME_OWN: Duration = Duration::from_secs(7 * 24 * 3600);
/// Maximum length of a stored name, in bytes (RFC 1035 §2.3.4).
const NAME_BYTES: usize = 253;

/// Result of one session, for the peer's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionNote {
    /// When the session was judged.
    pub at: Timestamp,
    /// There was a complete EHLO reply in cleartext. Without one the session counts as one without offer and use.
    pub answered: bool,
    /// The last EHLO reply in cleartext offered STARTTLS.
    pub offered: bool,
    /// TLS began.
    pub used: bool,
    /// Profile of the server, if TLS was established; later cleartext sessions are compared with it.
    pub profile: Option<Profile>,
    /// Names that the peer gave; empty for a session that may be an attack.
    pub names: Vec<String>,
    /// The peer looks like the recorded host, and not like another member of a farm or another client at the same
    /// address.
    pub alike: bool,
}

/// Key of a record. It includes the own address, because a server may offer differently to each client (FP-3).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct HistoryKey {
    /// Role of this host.
    pub role: Role,
    /// This host's address.
    pub own: IpAddr,
    /// The peer: one address, or every server that gives a name.
    pub peer: HistoryPeer,
    /// The server's port.
    pub port: u16,
}

/// How a peer is identified.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryPeer {
    /// By address.
    Address(IpAddr),
    /// By the name in greeting or EHLO reply, in lower case.
    Name(String),
}

/// A name that a peer gave: a server in a session that offered STARTTLS or established TLS, or a client under TLS.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct KnownName {
    /// The name, in lower case.
    pub name: String,
    /// First session with this name.
    pub first_seen: Timestamp,
    /// Newest session with this name.
    pub last_seen: Timestamp,
}

impl KnownName {
    /// Whether this is `name`, in any case, with or without the final dot.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.trim_end_matches('.'))
    }
}

/// Record of a peer's sessions.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HistoryRecord {
    /// Sessions with a complete EHLO reply in cleartext.
    pub sessions: u64,
    /// Rate of sessions in which the server offered STARTTLS.
    pub offered: Rate,
    /// Rate of sessions in which TLS began, among those with an offer.
    pub used: Rate,
    /// First session.
    pub first_seen: Timestamp,
    /// Newest session.
    pub last_seen: Timestamp,
    /// Newest session that offered STARTTLS.
    pub last_offered: Timestamp,
    /// Profile of the peer from its last session under TLS. Shared, because a copy of the record goes out with every
    /// session.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<Profile>"))]
    pub profile: Option<Arc<Profile>>,
    /// Names that the peer of this address gave, bounded. Empty in a record by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<KnownName>,
}

/// Serializes a shared value as the value itself.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Option<Arc<T>>, to: S) -> Result<S::Ok, S::Error> {
        value.as_deref().serialize(to)
    }

    pub(super) fn deserialize<'a, T: Deserialize<'a>, D: Deserializer<'a>>(
        from: D,
    ) -> Result<Option<Arc<T>>, D::Error> {
        Ok(Option::<T>::deserialize(from)?.map(Arc::new))
    }
}

impl HistoryRecord {
    /// The offers in words: `offered in 412 of 412 sessions on 50 days since 2026-10-02`.
    #[must_use]
    pub fn offers(&self) -> String {
        self.in_words("offered", &self.offered)
    }

    /// The use in words: `used in 412 of 412 sessions on 50 days since 2026-10-02`.
    #[must_use]
    pub fn uses(&self) -> String {
        self.in_words("used", &self.used)
    }

    fn in_words(&self, verb: &str, rate: &Rate) -> String {
        let days = match rate.spread.with.days {
            0 => String::new(),
            1 => " on 1 day".to_owned(),
            days => format!(" on {days} days"),
        };
        format!("{verb} in {} of {} sessions{days} since {}", rate.yes, rate.sessions(), self.first_seen.date())
    }

    /// The answers to EHLO in words: `EHLO was answered in 412 sessions since 2026-10-02`.
    #[must_use]
    pub fn answers(&self) -> String {
        format!("EHLO was answered in {} sessions since {}", self.sessions, self.first_seen.date())
    }

    /// Fills in the days of a record of a version without them, as if its sessions were evenly spread over its age.
    #[must_use]
    pub fn with_days(mut self) -> Self {
        for rate in [&mut self.offered, &mut self.used] {
            if rate.spread == Spread::default() {
                rate.spread.with = Tally::estimate(rate.yes, self.first_seen, self.last_seen);
                rate.spread.run = Tally::estimate(rate.run, self.last_offered, self.last_seen);
                rate.spread.lapses = Tally::estimate(rate.returns, self.first_seen, self.last_seen);
            }
        }
        self
    }

    /// Whether the peer of this address has given this name.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|known| known.is(name))
    }

    /// Names that are the peer's own: given from the start, or over a week.
    pub fn own_names(&self) -> impl Iterator<Item = &KnownName> {
        let start = self.names.iter().map(|known| known.first_seen).min().unwrap_or_default();
        let own =
            move |known: &&KnownName| known.first_seen == start || known.last_seen.since(known.first_seen) >= NAME_OWN;
        self.names.iter().filter(own)
    }

    /// Whether a session at `at` that offers STARTTLS makes the rate of offers too weak to be evidence: the offer has
    /// come and gone so often that history treats the peer as a farm whose members differ.
    #[must_use]
    pub fn loses_strength(&self, at: Timestamp, strength: Strength) -> bool {
        let mut after = self.offered;
        after.note(true, strength, self.sighting(at, true));
        self.offered.is_strong(strength) && !after.is_strong(strength)
    }

    fn sighting(&self, at: Timestamp, alike: bool) -> Sighting {
        Sighting { at, age: at.since(self.first_seen), alike }
    }

    pub(super) fn note(&mut self, session: SessionNote, strength: Strength) {
        let sighting = self.sighting(session.at, session.alike);
        self.sessions += u64::from(session.answered);
        self.last_seen = self.last_seen.max(session.at);
        self.offered.note(session.offered, strength, sighting);
        if session.offered {
            self.last_offered = self.last_offered.max(session.at);
        }
        // A client that did not ask for the offer did not use it.
        if session.offered || !session.answered {
            self.used.note(session.used, strength, sighting);
        }
        if let Some(profile) = session.profile {
            let profile = match self.profile.take() {
                Some(before) => profile.after(&before),
                None => profile,
            };
            self.profile = Some(Arc::new(profile));
        }
        // Not in sessions that may be an attack: otherwise a lasting strip would remove the name.
        if session.names.is_empty() {
            return;
        }
        self.names.retain(|known| session.at.since(known.last_seen) <= NAME_KEPT);
        for name in session.names {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            if let Some(known) = self.names.iter_mut().find(|known| known.name == name) {
                known.last_seen = known.last_seen.max(session.at);
            } else if self.names.len() < NAMES && (1..=NAME_BYTES).contains(&name.len()) {
                self.names.push(KnownName { name, first_seen: session.at, last_seen: session.at });
            }
        }
    }
}

/// Normal form of a peer: an address in canonical form, or a name in lower case without the final dot.
#[must_use]
pub fn normal_peer(peer: &str) -> String {
    match peer.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => peer.trim_end_matches('.').to_ascii_lowercase(),
    }
}

/// Whether a key is of this peer, an address or a name.
#[must_use]
pub fn is_peer(key: &HistoryKey, peer: &str) -> bool {
    peer_text(&key.peer).1 == normal_peer(peer)
}

/// The kind of a peer, `address` or `name`, and its text.
#[must_use]
pub fn peer_text(peer: &HistoryPeer) -> (&'static str, String) {
    match peer {
        HistoryPeer::Address(address) => ("address", address.to_string()),
        HistoryPeer::Name(name) => ("name", name.clone()),
    }
}
