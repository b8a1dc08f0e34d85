//! What is expected of one flow, and which source says so.

use std::net::IpAddr;

use super::{
    history::{History, HistoryKey, HistoryPeer, HistoryRecord, Strength},
    rule::{AuthRule, Rule, StarttlsRule},
};
use crate::{FlowKey, Role};

/// Whom an expectation is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The connection.
    pub flow: FlowKey,
    /// Which end this host is.
    pub role: Role,
    /// The names that the server gave: EHLO reply, greeting, SNI.
    pub names: &'a [&'a str],
}

impl Subject<'_> {
    /// This host's own address.
    #[must_use]
    pub const fn own(&self) -> IpAddr {
        match self.role {
            Role::Client => self.flow.client.ip(),
            Role::Server => self.flow.server.ip(),
        }
    }

    /// The peer's address.
    #[must_use]
    pub const fn peer(&self) -> IpAddr {
        match self.role {
            Role::Client => self.flow.server.ip(),
            Role::Server => self.flow.client.ip(),
        }
    }

    /// The rows of history that speak of this peer: by address, then by name.
    pub fn history_keys(&self) -> impl Iterator<Item = HistoryKey> {
        let (own, port) = (self.own(), self.flow.server.port());
        let name = self.names.first().map(|name| HistoryPeer::Name(name.to_ascii_lowercase()));
        [Some(HistoryPeer::Address(self.peer())), name].into_iter().flatten().map(move |peer| HistoryKey {
            own,
            peer,
            port,
        })
    }
}

/// What is expected of a peer. The sources are kept apart: each is asked for what it can know.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Expectation {
    /// The local rule that speaks for this flow, with its place in the configuration (counted from 1).
    pub rule: Option<(usize, Rule)>,
    /// The history of this peer, where it is strong enough to accuse.
    pub history: Option<HistoryRecord>,
}

impl Expectation {
    /// Asks every source.
    #[must_use]
    pub fn of(subject: &Subject<'_>, rules: &[Rule], history: &History, strength: Strength) -> Self {
        let rule = (1..)
            .zip(rules)
            .find(|(_, rule)| rule.matches(subject.peer(), subject.flow.server.port(), subject.role, subject.names))
            .map(|(place, rule)| (place, rule.clone()));
        Self { rule, history: strong_history(subject, history, strength) }
    }

    /// What the local rule demands of STARTTLS.
    #[must_use]
    pub fn starttls_rule(&self) -> Option<StarttlsRule> {
        self.rule.as_ref().and_then(|(_, rule)| rule.starttls)
    }

    /// What the local rule demands of AUTH in clear.
    #[must_use]
    pub fn auth_rule(&self) -> Option<AuthRule> {
        self.rule.as_ref().and_then(|(_, rule)| rule.auth_plaintext)
    }
}

/// Every row that has seen enough sessions must agree: a known address behind a name whose members differ is a farm
/// (FP-1), and so is a name that moved to a server without TLS.
fn strong_history(subject: &Subject<'_>, history: &History, strength: Strength) -> Option<HistoryRecord> {
    let rows = subject.history_keys().filter_map(|key| history.get(&key));
    let mut enough = rows.filter(|record| record.offered + record.missed >= strength.min_sessions);
    let first = *enough.next()?;
    (first.is_strong(strength) && enough.all(|record| record.is_strong(strength))).then_some(first)
}
