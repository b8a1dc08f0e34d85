//! STARTTLS was offered and not sent, and mail was sent in cleartext (A8, C7, G5, G8), or the delivery is the retry
//! after a sabotaged handshake (D1).
//!
//! On port 25 an unused offer is common and means nothing by itself (docs/threats.md FP-20, FP-28).

use super::{Claim, RuleId, RuleInput, by_standard, use_expected};
use crate::{
    Role, Side,
    finding::{Evidence, Kind},
    policy::failures::Failure,
    smtp::HandshakeEnd,
};

/// Port of message submission, where cleartext is obsolete (RFC 8314 §3.3).
const SUBMISSION: u16 = 587;

pub(super) fn judge(input: &RuleInput<'_>) -> Option<Claim> {
    if input.session.doubt.is_some() || input.starttls_ignored() {
        return None;
    }
    if let Some(failure) = input.expectation.failure.filter(|_| input.in_clear()) {
        return Some(retry(input, failure));
    }
    if !input.offer_unused() {
        return in_clear_on_587(input);
    }
    if input.port == SUBMISSION {
        return Some(submission(input));
    }
    let (evidence, expected) = use_expected(input)?;
    let rule = match (input.role, evidence) {
        (Role::Server, _) => RuleId::A8,
        (Role::Client, Evidence::Regression) => RuleId::G5,
        (Role::Client, Evidence::Suspicious | Evidence::Policy | Evidence::Tamper) => RuleId::C7,
    };
    let claim = Claim::new(input, Kind::StarttlsUnused, rule, evidence, expected);
    Some(acted_on(input, claim))
}

fn submission(input: &RuleInput<'_>) -> Claim {
    let known = use_expected(input);
    let (evidence, expected) =
        known.unwrap_or_else(|| (Evidence::Suspicious, by_standard("submission on port 587 uses TLS (RFC 8314 §3.3)")));
    acted_on(input, Claim::new(input, Kind::StarttlsUnused, RuleId::G8, evidence, expected))
}

/// Submission in cleartext to a server that does not offer TLS: the same finding, unless a more severe one reports it.
fn in_clear_on_587(input: &RuleInput<'_>) -> Option<Claim> {
    let session = input.session;
    let in_clear = input.port == SUBMISSION && session.messages > 0 && !session.tls_began();
    (in_clear && !session.offers_starttls() && super::offer::judge(input).is_none()).then(|| submission(input))
}

/// The client uses other lines of the same reply: the reply reached the client, only STARTTLS did not (FO-14).
fn acted_on(input: &RuleInput<'_>, claim: Claim) -> Claim {
    let others: Vec<_> = input.session.acted_on.iter().copied().collect();
    if others.is_empty() {
        return claim;
    }
    claim.indicator(format!("the client uses other lines of the same reply: {} (FO-14)", others.join(", ")))
}

fn retry(input: &RuleInput<'_>, failure: &Failure) -> Claim {
    let (evidence, expected) = use_expected(input).unwrap_or_else(|| {
        (
            Evidence::Suspicious,
            by_standard("after a failed handshake a client does not send mail in cleartext (RFC 3207 §4.1)"),
        )
    });
    let claim = Claim::new(input, Kind::DowngradeRetry, RuleId::D1, evidence, expected);
    let (client, server) = (failure.flow.client, failure.flow.server);
    claim.indicator(format!(
        "{}: the TLS handshake of {client} with {server} failed: {}",
        failure.at,
        handshake_end(failure.end)
    ))
}

/// Describes how a handshake ended.
pub(super) fn handshake_end(end: HandshakeEnd) -> String {
    match end {
        HandshakeEnd::Clear(Side::Client) => "the client continued in cleartext".to_owned(),
        HandshakeEnd::Clear(Side::Server) => "the server continued in cleartext".to_owned(),
        HandshakeEnd::Alert(side, description) => {
            format!("the {} sent alert {description} (RFC 8446 §6)", side.as_str())
        }
        HandshakeEnd::Reset(side) => format!("a reset came from the {}", side.as_str()),
        HandshakeEnd::Closed(side) => format!("the {} closed the connection", side.as_str()),
        HandshakeEnd::Silence => "neither side sent anything more".to_owned(),
    }
}
