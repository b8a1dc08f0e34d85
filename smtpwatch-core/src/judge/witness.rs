//! Evidence from this host's own bytes when the server's bytes are ambiguous (EV-2): this host sent mail in cleartext
//! to a peer that offers STARTTLS.

use super::{Claim, RuleInput, offer_expected};
use crate::{Role, finding::Kind, smtp::Doubt};

pub(super) fn judge(input: &RuleInput<'_>) -> Option<Claim> {
    let session = input.session;
    let in_clear = session.mail_sent && !session.tls_began();
    if input.role != Role::Client || session.doubt != Some(Doubt::Server) || !in_clear || input.starttls_ignored() {
        return None;
    }
    let (evidence, expected) = offer_expected(input)?;
    let claim = Claim::new(input, Kind::StarttlsStripped, "A1", evidence, expected);
    Some(claim.indicator(
        "copies of the server's reply differ, and this host's acknowledgments do not say which one it took in; \
         its own bytes do: it sent MAIL and did not begin TLS",
    ))
}
