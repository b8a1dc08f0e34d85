//! One range of the stream arrived in two different copies: editing that the bytes themselves show (FO-1, EV-2, EV-3).

use super::{Claim, RuleId, RuleInput, by_standard, offer_expected};
use crate::{
    Role,
    finding::{Evidence, Kind},
    smtp::Doubt,
};

pub(super) fn judge(input: &RuleInput<'_>) -> Option<Claim> {
    if input.wire.conflicts.is_empty() {
        return None;
    }
    let expected = by_standard("a retransmission repeats the same bytes (RFC 9293 §3.8.1)");
    Some(Claim::new(input, Kind::StreamTampering, RuleId::Fo1, Evidence::Tamper, expected))
}

/// The server's bytes are ambiguous (EV-2), but this host's own bytes are not: it sent mail in cleartext to a peer that
/// offers STARTTLS (A1).
pub(super) fn stripped(input: &RuleInput<'_>) -> Option<Claim> {
    let session = input.session;
    let in_clear = session.mail_sent && !session.tls_began();
    if input.role != Role::Client || session.doubt != Some(Doubt::Server) || !in_clear || input.starttls_ignored() {
        return None;
    }
    let (evidence, expected) = offer_expected(input)?;
    let claim = Claim::new(input, Kind::StarttlsStripped, RuleId::A1, evidence, expected);
    Some(claim.indicator(
        "copies of the server's reply differ, and this host's acknowledgments do not say which one it took in; \
         its own bytes do: it sent MAIL and did not begin TLS",
    ))
}
