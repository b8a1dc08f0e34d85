//! Judgement: takes observation and expectation, returns claims. It is pure: it can run at any time and judges what
//! is known so far.
//!
//! A claim is held back while its outcome can still get worse ([`Claim::is_final`]), because the outcome is part of
//! the claim.

mod auth;
pub mod catalogue;
mod certainty;
pub mod certificate;
mod ehlo;
mod handshake;
mod injection;
mod offer;
mod policy;
mod proof;
mod refused;
mod tamper;
mod unused;
mod witness;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use crate::{
    Role, Timestamp,
    finding::{Evidence, Expected, Kind, Outcome, Severity},
    flow::{Conflict, SynFingerprint},
    policy::{
        expectation::{Expectation, KnownBy},
        history::HistoryRecord,
        precedence::{self, Authority},
        published::demand::{Demand, Weight},
        rule::StarttlsRule,
        scope::Scope,
    },
    smtp::{Doubt, Observation, Starttls},
};

/// What the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct RuleInput<'a> {
    /// What was seen of the dialogue.
    pub session: &'a Observation,
    /// What was seen of the packets.
    pub wire: &'a Wire<'a>,
    /// What was expected.
    pub expectation: &'a Expectation<'a>,
    /// Which end this host is.
    pub role: Role,
    /// The server's port.
    pub port: u16,
    /// The connection has ended: nothing more will come.
    pub closed: bool,
    /// What became of STARTTLS with others lately (docs/threats.md FO-13).
    pub scope: &'a Scope,
    /// The peer's address.
    pub peer: IpAddr,
    /// When.
    pub at: Timestamp,
    /// What published policies say of this session is being looked up.
    pub pending: bool,
    /// Certificate of the server, compared with the policy.
    pub certificate: Option<&'a certificate::Comparison>,
    /// Someone was asked, and this goes out without an answer.
    pub unanswered: bool,
    /// The client speaks for another one (FP-13): history of its address says nothing about that one.
    pub proxied: bool,
    /// Something was handed over, or was to be.
    pub at_stake: bool,
}

/// What the packets of a connection tell about who sent them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wire<'a> {
    /// The server's SYN-ACK.
    pub syn_ack: Option<&'a SynFingerprint>,
    /// Lowest and highest time to live (hop limit) of the peer's packets with payload.
    pub ttl: Option<(u8, u8)>,
    /// Time to live (hop limit) of a reset from the peer.
    pub reset_ttl: Option<u8>,
    /// Time between SYN and SYN-ACK of this connection.
    pub round_trip: Option<Duration>,
    /// Conflicting copies beyond those that are kept.
    pub conflicts_dropped: u64,
    /// The client sent most of its bytes key by key, as far apart as a person's are (FP-25).
    pub typed: bool,
    /// Two different copies of one range of bytes.
    pub conflicts: &'a [Conflict],
    /// Segments of the peer that this host's own stack discards (EV-8, EV-9).
    pub discarded: u64,
}

/// One claim about a session. The engine adds what every finding says of its flow.
#[derive(Clone, PartialEq, Debug)]
pub struct Claim {
    /// What happened.
    pub kind: Kind,
    /// Which one of several of this kind in one session: the place of the SASL exchange.
    pub instance: usize,
    /// Identifier of a row of docs/threats.md.
    pub rule: &'static str,
    /// How sure.
    pub evidence: Evidence,
    /// What it cost so far.
    pub outcome: Outcome,
    /// Severity.
    pub severity: Severity,
    /// Nothing that can still happen in this session makes it worse.
    pub is_final: bool,
    /// What was expected, and who says so.
    pub expected: Expected,
    /// SASL mechanism, for claims about AUTH.
    pub mechanism: Option<String>,
    /// Code of the reply to the deciding command.
    pub reply: Option<u16>,
    /// Further signs with their numbers.
    pub proof: Vec<String>,
}

/// Asks every rule.
#[must_use]
pub fn judge(case: RuleInput<'_>) -> Vec<Claim> {
    let case = &case;
    if case.is_inconclusive() {
        return Vec::new();
    }
    let mut claims = Vec::new();
    claims.extend(offer::judge(case));
    claims.extend(witness::judge(case));
    claims.extend(offer::flapping(case));
    claims.extend(refused::judge(case));
    claims.extend(unused::judge(case));
    claims.extend(ehlo::judge(case));
    claims.extend(handshake::judge(case));
    claims.extend(injection::judge(case));
    claims.extend(auth::judge(case));
    claims.extend(policy::judge(case));
    claims.extend(tamper::judge(case));
    claims.extend(certificate::judge(case));
    for claim in &mut claims {
        certainty::weigh(case, claim);
        proof::add(case, claim);
        if case.unanswered && claim.evidence < Evidence::Policy && claim.kind.is_about_starttls() {
            claim
                .proof
                .push("pending-policy: no (published policies were requested, and no answer came in time)".to_owned());
        }
        let mut said = BTreeSet::new();
        claim.proof.retain(|line| !line.is_empty() && said.insert(line.clone()));
    }
    claims
}

impl<'a> RuleInput<'a> {
    /// Not even what was seen can be believed: lines may be a body's (joined midstream), may never have been received
    /// (one side only), or may be half of the dialogue (multipath). Behind a gap nothing is read at all, so what stands before it is sound.
    fn is_inconclusive(&self) -> bool {
        match self.session.doubt {
            Some(Doubt::Midstream | Doubt::OneSided | Doubt::Multipath) => true,
            Some(Doubt::Gap | Doubt::Ambiguous | Doubt::Server) | None => false,
        }
    }

    /// The local rule says that nothing is to be said about STARTTLS of this peer.
    fn starttls_ignored(&self) -> bool {
        self.expectation.starttls_rule() == Some(StarttlsRule::Ignore)
    }

    /// The history of a peer with which STARTTLS is used. What a client calls itself changes nothing: the address is who it is, and
    /// [`certainty`] says how sure that is.
    fn known_user(&self) -> Option<&'a HistoryRecord> {
        self.expectation.uses.filter(|_| !self.proxied)
    }

    /// The client has drawn its conclusion from the EHLO reply, or will not: another one may follow until then (FP-6), also
    /// where a capture ends.
    fn is_settled(&self) -> bool {
        let session = self.session;
        session.mail_sent || !session.auth.is_empty() || session.ended.is_some() || session.timed_out
    }

    /// No one asked for STARTTLS, and an envelope crossed in cleartext.
    fn in_clear(&self) -> bool {
        let session = self.session;
        session.starttls == Starttls::NotSent && session.mail_sent && !session.tls_began()
    }

    /// STARTTLS was offered and not asked for, and an envelope crossed in cleartext.
    fn offer_unused(&self) -> bool {
        self.session.offers_starttls() && self.in_clear()
    }
}

impl Claim {
    fn new(case: &RuleInput<'_>, kind: Kind, rule: &'static str, evidence: Evidence, expected: Expected) -> Self {
        let outcome = case.session.outcome();
        // What a policy says may still make it surer.
        let waits = case.pending && evidence < Evidence::Policy && kind.is_about_starttls();
        Self {
            kind,
            instance: 0,
            rule,
            evidence,
            outcome,
            severity: severity(evidence, outcome, &expected),
            is_final: !waits && (case.closed || outcome >= Outcome::Content || case.session.tls_began()),
            expected,
            mechanism: None,
            reply: None,
            proof: Vec::new(),
        }
    }

    fn cost(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self.severity = severity(self.evidence, outcome, &self.expected);
        self
    }

    fn indicator(mut self, line: impl Into<String>) -> Self {
        self.proof.push(line.into());
        self
    }
}

/// The loudest that the breach of a policy in testing may be: its owner wants to hear of it, and no mail to be held up
/// (docs/threats.md G2).
const TESTING: Severity = Severity::Medium;

fn severity(evidence: Evidence, outcome: Outcome, expected: &Expected) -> Severity {
    let severity = Severity::of(evidence, outcome);
    match (expected.mode.as_deref(), outcome) {
        // A credential is lost whatever the policy says.
        (Some("testing"), Outcome::Attempt | Outcome::Envelope) => severity.min(Severity::Low),
        (Some("testing"), Outcome::Content) => severity.min(TESTING),
        _ => severity,
    }
}

/// What a local rule says about STARTTLS of this peer.
fn demanded(case: &RuleInput<'_>) -> Option<(Evidence, Expected)> {
    let (place, rule) = case.expectation.rule?;
    let demand = match rule.starttls? {
        StarttlsRule::Required => "required",
        StarttlsRule::Expected => "expected",
        StarttlsRule::Ignore => return None,
    };
    let detail = format!("rule {place} of the configuration: starttls = \"{demand}\"");
    Some((Evidence::Policy, Expected::starttls("rule", detail)))
}

/// What a published policy of this weight says.
fn published(case: &RuleInput<'_>, weight: Weight) -> Option<(Evidence, Expected)> {
    let demand = case.expectation.published.iter().find(|demand| demand.weight == weight)?;
    let evidence = if weight == Weight::Hint { Evidence::Suspicious } else { Evidence::Policy };
    Some((evidence, expected_of(demand)))
}

fn expected_of(demand: &Demand) -> Expected {
    Expected {
        mode: demand.weight.mode().map(Into::into),
        ..Expected::starttls(demand.source.as_str(), demand.detail.clone())
    }
}

/// What the first source in the order of [`precedence`] says about this peer.
fn known(case: &RuleInput<'_>, history: impl Fn() -> Option<(Evidence, Expected)>) -> Option<(Evidence, Expected)> {
    precedence::first(|authority| match authority {
        Authority::Rule => demanded(case),
        Authority::Published(weight) => published(case, weight),
        Authority::History => history().filter(|(evidence, _)| *evidence >= Evidence::Regression),
    })
}

/// What is known about the offer of STARTTLS by this peer, as evidence and in words; `None` where nothing is.
fn offer_expected(case: &RuleInput<'_>) -> Option<(Evidence, Expected)> {
    let history = || {
        let (how, record) = case.expectation.offers?;
        let (evidence, detail) = match how {
            KnownBy::Address => (Evidence::Regression, record.offers()),
            KnownBy::Name => {
                (Evidence::Suspicious, format!("by servers of this name, at other addresses: {}", record.offers()))
            }
        };
        Some((evidence, Expected::starttls("history", detail)))
    };
    known(case, history).or_else(history)
}

/// What is known about the use of STARTTLS with this peer.
fn use_expected(case: &RuleInput<'_>) -> Option<(Evidence, Expected)> {
    let history = || {
        let expected = Expected::starttls("history", case.known_user()?.uses());
        Some((Evidence::Regression, expected))
    };
    known(case, history)
}

/// Nothing is known about this peer: what was seen speaks for itself.
fn nothing_expected() -> Expected {
    Expected { starttls: false, ..Expected::starttls("none", "nothing is known about this peer".to_owned()) }
}

/// What a standard says, anyone who the peer is.
fn by_standard(detail: &str) -> Expected {
    Expected::starttls("standard", detail.to_owned())
}
