//! Combines local rules and history into the [`Expectation`] for one flow. The engine builds one for each judgement and
//! adds published policies and failed handshakes.

use std::net::IpAddr;

use super::{
    failures::Failure,
    history::{History, HistoryKey, HistoryPeer, HistoryRecord, Rate, Strength, surprise::Priors},
    profile::Profile,
    published::demand::Demand,
    rule::{AuthRule, Rule, StarttlsRule},
};
use crate::{FlowKey, Role, Timestamp};

/// The flow for which an expectation is built.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The connection.
    pub flow: FlowKey,
    /// Role of this host.
    pub role: Role,
    /// Names of the server; see [`names`].
    pub names: &'a [&'a str],
}

/// The local rules at the time of a session.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// All rules, in order of precedence.
    pub all: &'a [Rule],
    /// Begin of the session: a rule that has ended by then does not apply.
    pub at: Timestamp,
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

    /// Key of the history record by the peer's address.
    #[must_use]
    pub const fn address_key(&self) -> HistoryKey {
        let (role, own, port) = (self.role, self.own(), self.flow.server.port());
        HistoryKey { role, own, peer: HistoryPeer::Address(self.peer()), port }
    }

    /// The identities of this peer in history: by address, then by name.
    pub fn peers(&self) -> impl Iterator<Item = HistoryPeer> {
        // A client may give any name, so it is identified only by its address.
        let name = self.names.first().filter(|_| self.role == Role::Client);
        let name = name.map(|name| HistoryPeer::Name(name.to_ascii_lowercase()));
        [Some(HistoryPeer::Address(self.peer())), name].into_iter().flatten()
    }

    /// Keys of the history records of this peer.
    pub fn history_keys(&self) -> impl Iterator<Item = HistoryKey> {
        let (role, own, port) = (self.role, self.own(), self.flow.server.port());
        self.peers().map(move |peer| HistoryKey { role, own, peer, port })
    }
}

/// What is expected of a peer. The sources are separate, because each rule needs particular ones.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Expectation<'a> {
    /// The local rule that applies to this flow, with its position in the configuration (counted from 1).
    pub rule: Option<(usize, &'a Rule)>,
    /// `rule` is an exception that ends ([`Rule::is_exception`]); this is the rule that would apply without it.
    pub unexempted: Option<Option<(usize, &'a Rule)>>,
    /// History of this peer, if strong enough to call a missing offer a regression.
    pub offers: Option<(KnownBy, &'a HistoryRecord)>,
    /// History of this peer, if strong enough to call an unused offer a regression.
    pub uses: Option<&'a HistoryRecord>,
    /// History of this peer, if it has answered EHLO often enough to call a refusal a regression.
    pub speaks_ehlo: Option<&'a HistoryRecord>,
    /// Profile of the peer from its last session under TLS.
    pub profile: Option<&'a Profile>,
    /// An earlier failed TLS handshake with this peer.
    pub failure: Option<&'a Failure>,
    /// Published policies that demand TLS, in order of precedence. Empty unless this host is the client.
    pub published: &'a [Demand],
    /// The history record by the peer's address.
    pub known: Option<&'a HistoryRecord>,
    /// Thresholds from which history counts as evidence.
    pub strength: Strength,
    /// What the peers of this host have in common, before the record of one is known.
    pub priors: Priors,
}

impl<'a> Expectation<'a> {
    /// Evaluates rules and history; published policies and failures are empty.
    #[must_use]
    pub fn of(subject: &Subject<'_>, rules: Rules<'a>, history: &'a History, strength: Strength) -> Self {
        let address = history.get(&subject.address_key());
        let rule = rule_for(subject, address, rules, |_| true);
        let is_exempted = rule.is_some_and(|(_, rule)| rule.is_exception());
        let unexempted = is_exempted.then(|| rule_for(subject, address, rules, |rule| !rule.is_exception()));
        // The first key is the address.
        let by_name = subject.history_keys().skip(1).filter_map(|key| Some((KnownBy::Name, history.get(&key)?)));
        let rows: Vec<_> = address.map(|record| (KnownBy::Address, record)).into_iter().chain(by_name).collect();
        Self {
            rule,
            unexempted,
            offers: agreed(&rows, strength, |record| record.offered),
            uses: agreed(&rows, strength, |record| record.used).map(|(_, record)| record),
            speaks_ehlo: rows.iter().map(|(_, record)| *record).find(|record| record.sessions >= strength.min_sessions),
            profile: rows.first().and_then(|(_, record)| record.profile.as_deref()),
            failure: None,
            published: &[],
            known: address,
            strength,
            priors: history.priors(subject.role),
        }
    }

    /// The expectation without the exception that applies to this flow; `None` if none does.
    #[must_use]
    pub fn without_exception(&self) -> Option<Self> {
        self.unexempted.map(|rule| Self { rule, unexempted: None, ..*self })
    }

    /// What the local rule demands of STARTTLS.
    #[must_use]
    pub fn starttls_rule(&self) -> Option<StarttlsRule> {
        self.rule.as_ref().and_then(|(_, rule)| rule.starttls)
    }

    /// What the local rule demands of AUTH in cleartext.
    #[must_use]
    pub fn auth_rule(&self) -> Option<AuthRule> {
        self.rule.as_ref().and_then(|(_, rule)| rule.auth_plaintext)
    }
}

/// The names by which the policies and the history of a server are found. These are the names given in this session,
/// `said`. If none of them is the host's own according to the record of its address, `known`, the own names come first.
/// Any device on the path can write greeting and EHLO reply; a foreign name must not hide what is known of the host.
#[must_use]
pub fn names<'a>(said: Vec<&'a str>, known: Option<&'a HistoryRecord>) -> Vec<&'a str> {
    let Some(known) = known.filter(|known| !known.names.is_empty()) else { return said };
    let is_own = |name: &&str| known.own_names().any(|own| own.is(name));
    // The usual case.
    if !said.is_empty() && said.iter().all(is_own) {
        return said;
    }
    let (mut names, others): (Vec<_>, Vec<_>) = said.into_iter().partition(is_own);
    if names.is_empty() {
        names.extend(known.own_names().map(|own| &*own.name));
    }
    names.extend(others);
    names
}

/// The first rule in force that matches and that `counts`. A name that is not the host's own is only a claim: the rule that it selects counts only
/// if it demands more than the rule selected by the own names.
fn rule_for<'a>(
    subject: &Subject<'_>,
    known: Option<&HistoryRecord>,
    Rules { all, at }: Rules<'a>,
    counts: impl Fn(&Rule) -> bool,
) -> Option<(usize, &'a Rule)> {
    if all.is_empty() {
        return None;
    }
    let find = |names: &[&str]| {
        // The number of a rule is its position in the configuration, also after earlier rules have ended.
        let mut numbered = (1..).zip(all).filter(|(_, rule)| rule.is_in_force(at) && counts(rule));
        numbered.find(|(_, rule)| rule.matches(subject.peer(), subject.flow.server.port(), subject.role, names))
    };
    let claimed = find(subject.names);
    let Some(known) = known.filter(|known| subject.role == Role::Client && !known.names.is_empty()) else {
        return claimed;
    };
    let names = subject.names.iter().copied().filter(|name| known.own_names().any(|own| own.is(name)));
    let sure = find(&names.collect::<Vec<_>>());
    let demand = |rule: &Option<(usize, &Rule)>| {
        let (starttls, auth) = rule.map_or((None, None), |(_, rule)| (rule.starttls, rule.auth_plaintext));
        let starttls = match starttls {
            Some(StarttlsRule::Required) => 3,
            Some(StarttlsRule::Expected) => 2,
            None => 1,
            Some(StarttlsRule::Ignore) => 0,
        };
        let auth = match auth {
            Some(AuthRule::Forbid) => 2,
            None => 1,
            Some(AuthRule::Allow) => 0,
        };
        (starttls, auth)
    };
    if demand(&claimed) > demand(&sure) { claimed } else { sure }
}

/// How history identifies a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KnownBy {
    /// By address: the same host, as far as addresses show.
    Address,
    /// By name: other hosts give the same name, and members of a farm may differ (docs/threats.md FP-1).
    Name,
}

/// The first record with enough sessions decides: the record by address, and only if the address is not known the
/// record by name, because the name comes from the reply in question. A farm at one address has its own rate (FP-1).
fn agreed<'a>(
    rows: &[(KnownBy, &'a HistoryRecord)],
    strength: Strength,
    rate: impl Fn(&HistoryRecord) -> Rate,
) -> Option<(KnownBy, &'a HistoryRecord)> {
    let (how, record) = *rows.iter().find(|(_, record)| rate(record).sessions() >= strength.min_sessions)?;
    rate(record).is_strong(strength).then_some((how, record))
}
