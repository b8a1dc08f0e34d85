//! Detection rules: [`judge`] compares the observation of a session with what was expected, and returns [`Claim`]s.
//!
//! The module is pure. The engine calls [`judge`] whenever a session changes; the rules judge what is known at that
//! time. Each submodule holds the rules of one kind of attack; `certainty` and `indicators` then adjust every claim.
//!
//! A claim is held back while its outcome can still get worse ([`Claim::is_final`]), because the outcome is part of the
//! claim.

mod auth;
pub mod catalogue;
mod certainty;
pub mod certificate;
mod conflict;
mod ehlo;
mod handshake;
mod indicators;
mod injection;
mod offer;
mod policy;
mod refused;
pub mod reported;
pub mod severity;
mod stranger;
mod unused;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

pub use catalogue::RuleId;
pub use severity::Limit;

use crate::{
    Role, Timestamp,
    finding::{Evidence, Expected, ExpectedSource, Kind, Outcome, Severity},
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

/// Input of all rules, for one session.
#[derive(Clone, Copy, Debug)]
pub struct RuleInput<'a> {
    /// Observation of the SMTP dialogue.
    pub session: &'a Observation,
    /// Observation of the packets.
    pub wire: &'a Wire<'a>,
    /// What rules, history and published policies expect of the peer.
    pub expectation: &'a Expectation<'a>,
    /// Role of this host.
    pub role: Role,
    /// Port of the server.
    pub port: u16,
    /// The connection has ended: no more segments will come.
    pub closed: bool,
    /// How STARTTLS went with other peers in the last hour (docs/threats.md FO-13).
    pub scope: &'a Scope,
    /// Address of the peer.
    pub peer: IpAddr,
    /// Time of the judgement.
    pub at: Timestamp,
    /// A look-up of published policies for this session is outstanding.
    pub pending: bool,
    /// Result of comparing the server's certificate with the policy.
    pub certificate: Option<&'a certificate::Comparison>,
    /// A look-up was requested and got no answer before the verdict.
    pub unanswered: bool,
    /// The client relays for another client (FP-13): the history of its address says nothing about that client.
    pub proxied: bool,
    /// The client is local or in a trusted network, or this host is the client.
    pub trusted: bool,
    /// The session transferred mail or credentials, or tried to.
    pub at_stake: bool,
}

/// Packet properties of a connection, which may show that another device sent some of the packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wire<'a> {
    /// Fingerprint of the server's SYN-ACK.
    pub syn_ack: Option<&'a SynFingerprint>,
    /// Lowest and highest time to live (hop limit) of the peer's packets with payload.
    pub ttl: Option<(u8, u8)>,
    /// Time to live (hop limit) of a reset from the peer.
    pub reset_ttl: Option<u8>,
    /// Time between SYN and SYN-ACK of this connection.
    pub round_trip: Option<Duration>,
    /// Number of conflicts beyond those in `conflicts`.
    pub conflicts_dropped: u64,
    /// The client sent most of its bytes keystroke by keystroke, at the pace of a person (FP-25).
    pub typed: bool,
    /// Two different copies of one range of bytes.
    pub conflicts: &'a [Conflict],
    /// Number of segments of the peer that this host's own stack discards (EV-8, EV-9).
    pub discarded: u64,
}

/// One claim about a session. The engine completes it to a [`Finding`](crate::Finding).
#[derive(Clone, PartialEq, Debug)]
pub struct Claim {
    /// Kind of the finding.
    pub kind: Kind,
    /// Distinguishes claims of one kind in one session, for example by the index of the SASL exchange.
    pub instance: usize,
    /// The row of docs/threats.md.
    pub rule: RuleId,
    /// Strength of the evidence.
    pub evidence: Evidence,
    /// What the session has lost so far.
    pub outcome: Outcome,
    /// Severity, derived from evidence, outcome and `limits`.
    pub severity: Severity,
    /// Why the severity differs from the table of [`severity`], in the order in which they apply.
    pub limits: Vec<Limit>,
    /// No further event in this session can make it worse.
    pub is_final: bool,
    /// The client is unknown (see `RuleInput::is_by_stranger`).
    pub by_stranger: bool,
    /// What was expected, and by which source.
    pub expected: Expected,
    /// SASL mechanism, for claims about AUTH.
    pub mechanism: Option<String>,
    /// Code of the reply to the deciding command.
    pub reply: Option<u16>,
    /// Further indicators, one line each, with numbers.
    pub indicators: Vec<String>,
}

/// Applies every rule.
#[must_use]
pub fn judge(input: RuleInput<'_>) -> Vec<Claim> {
    let input = &input;
    if input.is_inconclusive() {
        return Vec::new();
    }
    let mut claims = Vec::new();
    claims.extend(offer::judge(input));
    claims.extend(conflict::stripped(input));
    claims.extend(offer::flapping(input));
    claims.extend(refused::judge(input));
    claims.extend(unused::judge(input));
    claims.extend(ehlo::judge(input));
    claims.extend(handshake::judge(input));
    claims.extend(injection::judge(input));
    claims.extend(auth::judge(input));
    claims.extend(policy::judge(input));
    claims.extend(conflict::judge(input));
    claims.extend(certificate::judge(input));
    for claim in &mut claims {
        certainty::limit(input, claim);
        indicators::add_indicators(input, claim);
        // After all others: an edit of the bytes removes limits, and an unknown client can send edited bytes.
        stranger::limit(input, claim);
        if input.unanswered && claim.evidence < Evidence::Policy && claim.kind.is_about_starttls() {
            claim
                .indicators
                .push("pending-policy: no (published policies were requested, and no answer came in time)".to_owned());
        }
        let mut seen = BTreeSet::new();
        claim.indicators.retain(|line| !line.is_empty() && seen.insert(line.clone()));
    }
    claims
}

/// Kinds of the claims that the local rule suppressed, if it is an exception that ends: those that are raised without it
/// and are not among `claims`.
#[must_use]
pub fn exempted(input: RuleInput<'_>, claims: &[Claim]) -> Vec<Kind> {
    let Some(without) = input.expectation.without_exception() else { return Vec::new() };
    let raised: BTreeSet<Kind> = claims.iter().map(|claim| claim.kind).collect();
    let all = judge(RuleInput { expectation: &without, ..input });
    let suppressed: BTreeSet<Kind> = all.into_iter().map(|claim| claim.kind).collect();
    suppressed.difference(&raised).copied().collect()
}

impl<'a> RuleInput<'a> {
    /// The observation cannot be trusted at all: lines may belong to a message body (joined midstream), may never have
    /// been received (one side only), or may be half of the dialogue (multipath). After a gap nothing is parsed, so
    /// what was seen before a gap is sound.
    fn is_inconclusive(&self) -> bool {
        match self.session.doubt {
            Some(Doubt::Midstream | Doubt::OneSided | Doubt::Multipath) => true,
            Some(Doubt::Gap | Doubt::Ambiguous | Doubt::Server) | None => false,
        }
    }

    /// This host is the server, and the client is unknown: it has never used TLS here, and it is not trusted. Anyone may have
    /// sent what it sends. The name that it gives is no identity: anyone can give it.
    fn is_by_stranger(&self) -> bool {
        !self.trusted && self.expectation.known.is_none_or(|record| record.used.yes == 0)
    }

    /// The local rule suppresses findings about STARTTLS of this peer.
    fn starttls_ignored(&self) -> bool {
        self.expectation.starttls_rule() == Some(StarttlsRule::Ignore)
    }

    /// The history of a peer that uses STARTTLS. The name that a client gives is irrelevant here: its address
    /// identifies it, and [`certainty`] judges how reliable that is.
    fn known_user(&self) -> Option<&'a HistoryRecord> {
        self.expectation.uses.filter(|_| !self.proxied)
    }

    /// The client has acted on the EHLO reply, or the session has ended or timed out. Before that another EHLO reply may
    /// follow (FP-6), also where a capture ends.
    fn is_settled(&self) -> bool {
        let session = self.session;
        session.mail_sent || !session.auth.is_empty() || session.ended.is_some() || session.timed_out
    }

    /// The client did not send STARTTLS, and an envelope crossed in cleartext.
    fn in_clear(&self) -> bool {
        let session = self.session;
        session.starttls == Starttls::NotSent && session.mail_sent && !session.tls_began()
    }

    /// STARTTLS was offered and not sent, and an envelope crossed in cleartext.
    fn offer_unused(&self) -> bool {
        self.session.offers_starttls() && self.in_clear()
    }
}

impl Claim {
    fn new(input: &RuleInput<'_>, kind: Kind, rule: RuleId, evidence: Evidence, expected: Expected) -> Self {
        let outcome = input.session.outcome();
        let limits: Vec<_> = expected.is_testing().then_some(Limit::Testing).into_iter().collect();
        // A policy may still strengthen the evidence.
        let waits = input.pending && evidence < Evidence::Policy && kind.is_about_starttls();
        Self {
            kind,
            instance: 0,
            rule,
            evidence,
            outcome,
            severity: severity::severity(evidence, outcome, &limits),
            limits,
            is_final: !waits && (input.closed || outcome >= Outcome::Content || input.session.tls_began()),
            by_stranger: input.is_by_stranger(),
            expected,
            mechanism: None,
            reply: None,
            indicators: Vec::new(),
        }
    }

    fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self.update_severity();
        self
    }

    fn with_evidence(mut self, evidence: Evidence) -> Self {
        self.evidence = evidence;
        self.update_severity();
        self
    }

    fn limit(mut self, limit: Limit) -> Self {
        self.add_limit(limit);
        self
    }

    fn add_limit(&mut self, limit: Limit) {
        self.limits.push(limit);
        self.update_severity();
    }

    /// The bytes themselves show an edit: no doubt about the peer or its policy lowers the severity.
    fn escalate(&mut self) {
        self.evidence = Evidence::Tamper;
        self.limits.clear();
        self.update_severity();
    }

    fn update_severity(&mut self) {
        self.severity = severity::severity(self.evidence, self.outcome, &self.limits);
    }

    fn indicator(mut self, line: impl Into<String>) -> Self {
        self.indicators.push(line.into());
        self
    }
}

/// What the local rule demands of this peer.
fn demanded(input: &RuleInput<'_>) -> Option<(Evidence, Expected)> {
    let (place, rule) = input.expectation.rule?;
    let demand = match rule.starttls? {
        StarttlsRule::Required => "required",
        StarttlsRule::Expected => "expected",
        StarttlsRule::Ignore => return None,
    };
    let detail = format!("rule {place} of the configuration: starttls = \"{demand}\"");
    Some((Evidence::Policy, Expected::starttls(ExpectedSource::Rule, detail)))
}

/// What the first published policy of this weight demands.
fn published(input: &RuleInput<'_>, weight: Weight) -> Option<(Evidence, Expected)> {
    let demand = input.expectation.published.iter().find(|demand| demand.weight == weight)?;
    let evidence = if weight == Weight::Hint { Evidence::Suspicious } else { Evidence::Policy };
    Some((evidence, expected_of(demand)))
}

fn expected_of(demand: &Demand) -> Expected {
    Expected {
        mode: demand.weight.mode().map(Into::into),
        ..Expected::starttls(demand.source.into(), demand.detail.clone())
    }
}

/// What the first source in the order of [`precedence`] says about this peer.
fn known(input: &RuleInput<'_>, history: impl Fn() -> Option<(Evidence, Expected)>) -> Option<(Evidence, Expected)> {
    precedence::first(|authority| match authority {
        Authority::Rule => demanded(input),
        Authority::Published(weight) => published(input, weight),
        Authority::History => history().filter(|(evidence, _)| *evidence >= Evidence::Regression),
    })
}

/// Evidence that this peer offers STARTTLS; `None` if nothing is known.
fn offer_expected(input: &RuleInput<'_>) -> Option<(Evidence, Expected)> {
    let history = || {
        let (how, record) = input.expectation.offers?;
        let (evidence, detail) = match how {
            KnownBy::Address => (Evidence::Regression, record.offers()),
            KnownBy::Name => {
                (Evidence::Suspicious, format!("by servers of this name, at other addresses: {}", record.offers()))
            }
        };
        Some((evidence, Expected::starttls(ExpectedSource::History, detail)))
    };
    known(input, history).or_else(history)
}

/// Evidence that STARTTLS is used with this peer; `None` if nothing is known.
fn use_expected(input: &RuleInput<'_>) -> Option<(Evidence, Expected)> {
    let history = || {
        let expected = Expected::starttls(ExpectedSource::History, input.known_user()?.uses());
        Some((Evidence::Regression, expected))
    };
    known(input, history)
}

/// Nothing is known about this peer: the claim rests on the observation alone.
fn nothing_expected() -> Expected {
    Expected {
        starttls: false,
        ..Expected::starttls(ExpectedSource::Nothing, "nothing is known about this peer".to_owned())
    }
}

/// The expectation that a standard sets for every peer.
fn by_standard(detail: &str) -> Expected {
    Expected::starttls(ExpectedSource::Standard, detail.to_owned())
}
