//! Judgement: observation and expectation in, claims out. Pure: it may be asked again at any time and answers for what is
//! known so far.
//!
//! A claim is held back while its outcome can still get worse ([`Claim::is_final`]); what it cost is part of what it says.

mod auth;
mod offer;
mod policy;
mod refused;

use crate::{
    Role,
    finding::{Evidence, Expected, Kind, Outcome, Severity},
    policy::{expectation::Expectation, rule::StarttlsRule},
    smtp::{Doubt, Observation},
};

/// What the rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// What was seen.
    pub session: &'a Observation,
    /// What was expected.
    pub expectation: &'a Expectation,
    /// Which end this host is.
    pub role: Role,
    /// The server's port.
    pub port: u16,
    /// The connection has ended: nothing more will come.
    pub closed: bool,
}

impl Case<'_> {
    /// Not even what was seen can be believed: lines may be a body's (joined midstream), or may never have been received
    /// (one side only). Behind a hole nothing is read at all, so what stands before it is sound.
    fn unfounded(&self) -> bool {
        match self.session.doubt {
            Some(Doubt::Midstream | Doubt::OneSided) => true,
            Some(Doubt::Gap | Doubt::Ambiguous) | None => false,
        }
    }
}

/// One claim about a session. The engine adds what every finding says of its flow.
#[derive(Clone, PartialEq, Debug)]
pub struct Claim {
    /// What happened.
    pub kind: Kind,
    /// Which one of several of this kind in one session: the place of the SASL exchange.
    pub instance: usize,
    /// The row of THREATS.md.
    pub rule: &'static str,
    /// How sure.
    pub evidence: Evidence,
    /// What it cost so far.
    pub outcome: Outcome,
    /// How loud.
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
pub fn judge(case: Case<'_>) -> Vec<Claim> {
    let mut claims = Vec::new();
    claims.extend(offer::judge(case));
    claims.extend(refused::judge(case));
    claims.extend(auth::judge(case));
    claims.extend(policy::judge(case));
    claims
}

impl Claim {
    fn new(case: Case<'_>, kind: Kind, rule: &'static str, evidence: Evidence, expected: Expected) -> Self {
        let outcome = case.session.outcome();
        Self {
            kind,
            instance: 0,
            rule,
            evidence,
            outcome,
            severity: Severity::of(evidence, outcome),
            is_final: case.closed || outcome >= Outcome::Content || case.session.tls_began(),
            expected,
            mechanism: None,
            reply: None,
            proof: Vec::new(),
        }
    }
}

/// What is known about STARTTLS of this peer, as evidence and in words; `None` where nothing is.
fn starttls_expected(case: Case<'_>) -> Option<(Evidence, Expected)> {
    match (case.expectation.starttls_rule(), &case.expectation.rule, &case.expectation.history) {
        (Some(StarttlsRule::Required | StarttlsRule::Expected), Some((place, rule)), _) => {
            let demand = if rule.starttls == Some(StarttlsRule::Required) { "required" } else { "expected" };
            let detail = format!("rule {place} of the configuration: starttls = \"{demand}\"");
            Some((Evidence::Policy, Expected { starttls: true, source: "rule", detail }))
        }
        (_, _, Some(history)) => {
            let expected = Expected { starttls: true, source: "history", detail: history.detail() };
            Some((Evidence::Regression, expected))
        }
        _ => None,
    }
}

/// The local rule says that nothing is to be said about STARTTLS of this peer.
fn starttls_ignored(case: Case<'_>) -> bool {
    case.expectation.starttls_rule() == Some(StarttlsRule::Ignore)
}

/// Nothing is known about this peer.
fn nothing_expected() -> Expected {
    Expected { starttls: false, source: "none", detail: "nothing is known about this peer".to_owned() }
}
