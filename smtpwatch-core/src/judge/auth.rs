//! Credentials in cleartext (F1–F5, F7, F9), and servers that invite them (F6, F8, A10).

use super::{Claim, Limit, RuleId, RuleInput, offer_expected};
use crate::{
    Role,
    finding::{Evidence, Expected, ExpectedSource, Kind, Outcome},
    policy::rule::AuthRule,
    smtp::{AuthExchange, MechanismClass},
};

pub(super) fn judge(input: &RuleInput<'_>) -> Vec<Claim> {
    if input.expectation.auth_rule() == Some(AuthRule::Allow) {
        return Vec::new();
    }
    let exchanges = input.session.auth.iter().filter_map(|exchange| sent(input, exchange));
    exchanges.chain(offered(input)).collect()
}

/// Judges one SASL exchange. A secret that was sent before a gap is certain; only missing bytes cannot be judged.
fn sent(input: &RuleInput<'_>, exchange: &AuthExchange) -> Option<Claim> {
    if !exchange.secret_sent {
        return None;
    }
    let (kind, rule) = match exchange.class {
        MechanismClass::NoSecret => return None,
        MechanismClass::Challenge | MechanismClass::Unknown => (Kind::AuthExchangePlaintext, RuleId::F5),
        // Refused permanently or temporarily (RFC 4954 §6: 432, 454).
        MechanismClass::Plaintext if exchange.reply >= 400 => (Kind::AuthPlaintext, RuleId::F7),
        MechanismClass::Plaintext => (Kind::AuthPlaintext, plaintext_rule(exchange)),
    };
    let (evidence, expected) = demand(input);
    let mut claim = Claim::new(input, kind, rule, evidence, expected);
    claim.instance = exchange.number;
    claim.mechanism = Some(exchange.mechanism.clone());
    claim.reply = (exchange.reply != 0).then_some(exchange.reply);
    claim.is_final |= exchange.reply != 0;
    if kind == Kind::AuthExchangePlaintext {
        // The password is not exposed, but it can be guessed offline. Other exchanges of the session have claims of
        // their own.
        claim = claim.with_outcome(input.session.mail_outcome()).limit(Limit::NoPassword);
    } else if exchange.reply >= 400 {
        // An eavesdropper has the password, but it may be invalid.
        claim.add_limit(Limit::OwnLoginRefused);
    }
    Some(claim)
}

fn plaintext_rule(exchange: &AuthExchange) -> RuleId {
    match exchange.mechanism.as_str() {
        _ if exchange.exchange_verb => RuleId::F9,
        "PLAIN" if exchange.initial_response => RuleId::F1,
        "PLAIN" => RuleId::F2,
        "LOGIN" => RuleId::F3,
        _ => RuleId::F4,
    }
}

/// The server offers a mechanism that sends the secret itself before TLS (RFC 4954 §4 forbids that).
fn offered(input: &RuleInput<'_>) -> Option<Claim> {
    let mechanisms = input.session.capabilities.as_ref()?.plaintext_mechanisms();
    if mechanisms.is_empty() || input.session.doubt.is_some() {
        return None;
    }
    let (evidence, expected) = demand(input);
    let claim = Claim::new(input, Kind::AuthOfferedPlaintext, RuleId::F6, evidence, expected);
    let mut claim = stripped_too(input, claim, &mechanisms);
    claim.mechanism = Some(mechanisms.join(" "));
    if claim.rule == RuleId::F8 {
        // The outcome of the session is part of this claim.
        return Some(claim);
    }
    claim.is_final = true;
    let claim = claim.with_outcome(Outcome::Attempt);
    Some(match (input.role, input.port) {
        (Role::Server, 587) => claim.limit(Limit::OwnSubmission),
        (Role::Server, _) => claim.limit(Limit::OwnOffer),
        (Role::Client, _) => claim,
    })
}

/// The same reply lacks STARTTLS, which it should have (F8), or offers what this server never offered before TLS (A10).
fn stripped_too(input: &RuleInput<'_>, mut claim: Claim, mechanisms: &[String]) -> Claim {
    let missing = input.session.capabilities.as_ref().is_some_and(|capabilities| capabilities.offers() == 0);
    let before = input.expectation.profile.map(|profile| &profile.plaintext_mechanisms);
    let is_added = |name: &&String| before.is_some_and(|before| !before.contains(name));
    let added: Vec<_> = mechanisms.iter().filter(is_added).cloned().collect();
    if input.role != Role::Client {
        return claim;
    }
    if !added.is_empty() {
        claim.rule = RuleId::A10;
        claim = claim
            .indicator(format!("offered before TLS, which this server never did before: {} (A10)", added.join(", ")));
    }
    // If the mechanisms are known to be old, the missing STARTTLS is a finding of its own.
    let may_be_new = before.is_none() || !added.is_empty();
    if let Some((evidence, expected)) = offer_expected(input).filter(|_| missing && may_be_new) {
        claim.rule = RuleId::F8;
        claim.expected = expected;
        let strongest = claim.evidence.max(evidence);
        claim = claim.with_evidence(strongest).indicator("STARTTLS is missing from the same reply (F8)");
    }
    claim
}

fn demand(input: &RuleInput<'_>) -> (Evidence, Expected) {
    match (&input.expectation.rule, input.expectation.auth_rule()) {
        (Some((place, _)), Some(AuthRule::Forbid)) => {
            let detail = format!("rule {place} of the configuration: auth_plaintext = \"forbid\"");
            (Evidence::Policy, Expected::starttls(ExpectedSource::Rule, detail))
        }
        _ => {
            let detail = "credentials are sent only under TLS (RFC 4954 §4, RFC 8314 §3)".to_owned();
            (Evidence::Suspicious, Expected::starttls(ExpectedSource::Standard, detail))
        }
    }
}
