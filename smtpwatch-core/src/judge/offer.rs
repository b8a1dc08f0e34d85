//! The offer of STARTTLS is missing from the EHLO reply: deleted (A1, A4, A6, A9) or overwritten (A2, A3).
//!
//! Only this host's own view as a client can tell: as a server it sees its reply before any device on the path does
//! (THREATS §0).

use super::{Case, Claim, nothing_expected, starttls_expected, starttls_ignored};
use crate::{
    Role,
    finding::{Evidence, Kind, Severity},
    smtp::{Capabilities, Offer, Starttls},
};

pub(super) fn judge(case: Case<'_>) -> Option<Claim> {
    let session = case.session;
    let capabilities = session.capabilities.as_ref()?;
    if case.role != Role::Client || session.doubt.is_some() || starttls_ignored(case) {
        return None;
    }
    if capabilities.masked().next().is_some() {
        return Some(masked(case, capabilities));
    }
    if capabilities.offer() != Offer::Absent || session.tls_began() || matches!(session.starttls, Starttls::Granted(_))
    {
        return None;
    }
    let (evidence, expected) = starttls_expected(case)?;
    Some(Claim::new(case, Kind::StarttlsStripped, "A1", evidence, expected))
}

/// The edit is proven by the line itself; that it was STARTTLS is not (THREATS FP-14, FP-26).
fn masked(case: Case<'_>, capabilities: &Capabilities) -> Claim {
    let lines: Vec<_> = capabilities.masked().collect();
    let all_x = lines.iter().any(|(_, line)| line.text.starts_with("XXX"));
    let rule = if all_x { "A2" } else { "A3" };
    let quoted = lines.iter().map(|(_, line)| format!("{:?}", line.text)).collect::<Vec<_>>().join(", ");
    let still_offered = capabilities.offer() != Offer::Absent;
    let known = starttls_expected(case);
    let in_place = lines.iter().any(|(index, _)| capabilities.mask_is_starttls(*index));
    let loss = if still_offered {
        "STARTTLS is still offered"
    } else if known.is_some() {
        "STARTTLS is known to be offered by this peer and is not there"
    } else if in_place {
        "the line stands where STARTTLS belongs, or hides the only keyword of its length that is not there"
    } else {
        "possibly STARTTLS: the length of the line does not tell which keyword it hides"
    };
    let evidence = if still_offered { Evidence::Suspicious } else { Evidence::Tamper };
    let expected = known.map_or_else(nothing_expected, |(_, expected)| expected);
    let proven = expected.starttls || in_place;
    let mut claim = Claim::new(case, Kind::StarttlsMasked, rule, evidence, expected);
    claim.proof.push(format!("overwritten in place: {quoted}; {loss}"));
    if still_offered {
        claim.severity = Severity::Info;
    } else if !proven {
        claim.severity = claim.severity.min(Severity::Medium);
    }
    claim
}
