//! Policy violations: mail was accepted in cleartext although a policy demands TLS (G1 for local rules and MTA-STS, G2
//! for MTA-STS in testing, G3 for DANE, G4 for the STARTTLS-Everywhere list), or although the message itself demands it
//! (G7).

use super::{Claim, RuleId, RuleInput, by_standard, demanded, expected_of};
use crate::{
    finding::{Evidence, Kind},
    policy::{
        published::demand::{Source, Weight},
        rule::StarttlsRule,
    },
};

pub(super) fn judge(input: &RuleInput<'_>) -> Vec<Claim> {
    [local(input).or_else(|| published(input)), requiretls(input)].into_iter().flatten().collect()
}

fn local(input: &RuleInput<'_>) -> Option<Claim> {
    if input.session.messages == 0 || input.expectation.starttls_rule() != Some(StarttlsRule::Required) {
        return None;
    }
    let (_, expected) = demanded(input)?;
    Some(Claim::new(input, Kind::PolicyViolation, RuleId::G1, Evidence::Policy, expected))
}

/// The claim names each policy of this session, because the delivery violates all of them.
fn published(input: &RuleInput<'_>) -> Option<Claim> {
    if input.session.messages == 0 || input.session.doubt.is_some() || input.starttls_ignored() {
        return None;
    }
    let mut demands = input.expectation.published.iter().filter(|demand| demand.weight < Weight::Hint);
    let first = demands.next()?;
    let rule = match (first.source, first.weight) {
        (Source::MtaSts, Weight::Enforce) => RuleId::G1,
        (Source::MtaSts, _) => RuleId::G2,
        (Source::Dane, _) => RuleId::G3,
        (Source::List, _) => RuleId::G4,
    };
    let mut claim = Claim::new(input, Kind::PolicyViolation, rule, Evidence::Policy, expected_of(first));
    claim.indicators.extend(demands.map(|demand| format!("also: {}", demand.detail)));
    Some(claim)
}

/// REQUIRETLS exists only under TLS: in cleartext it contradicts itself.
fn requiretls(input: &RuleInput<'_>) -> Option<Claim> {
    let offered = input.session.capabilities.as_ref().is_some_and(|capabilities| capabilities.has("REQUIRETLS"));
    if !offered && !input.session.requiretls {
        return None;
    }
    let expected = by_standard("REQUIRETLS is offered and used only under TLS (RFC 8689 §4)");
    let mut claim = Claim::new(input, Kind::PolicyViolation, RuleId::G7, Evidence::Policy, expected);
    claim.instance = 1;
    let who = if input.session.requiretls {
        "the client requested REQUIRETLS in cleartext"
    } else {
        "the server offers REQUIRETLS in cleartext"
    };
    Some(claim.indicator(who))
}
