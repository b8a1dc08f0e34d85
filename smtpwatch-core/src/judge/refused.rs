//! STARTTLS was offered, sent and not granted (C1, C2, C3), or the connection was cut right after it (C5).

use super::{Claim, RuleId, RuleInput, handshake::waited, nothing_expected, offer_expected};
use crate::{
    finding::{Evidence, Kind},
    smtp::Starttls,
};

pub(super) fn judge(input: &RuleInput<'_>) -> Option<Claim> {
    let session = input.session;
    if session.doubt.is_some() || !session.starttls_was_offered || input.starttls_ignored() {
        return None;
    }
    let (rule, code) = match session.starttls {
        Starttls::Refused(code @ 454) => (RuleId::C1, Some(code)),
        Starttls::Refused(code @ 500..=599) => (RuleId::C2, Some(code)),
        Starttls::Refused(code) => (RuleId::C3, Some(code)),
        // The client may continue despite the code; once TLS is established nothing was refused.
        Starttls::Granted(code) if is_odd_grant(input) && input.closed => (RuleId::C3, Some(code)),
        Starttls::Sent if input.closed && cut(input) => (RuleId::C5, None),
        Starttls::NotSent | Starttls::Sent | Starttls::Granted(_) => return None,
    };
    let (evidence, expected) = match offer_expected(input) {
        // An honest server that is short of resources also sends 454, or sends 421 and closes: only a policy makes that
        // more than suspicious (FP-2).
        Some((Evidence::Regression, expected))
            if matches!(rule, RuleId::C1 | RuleId::C5) || code == Some(421) && !session.mail_sent =>
        {
            (Evidence::Suspicious, expected)
        }
        Some(known) => known,
        None => (Evidence::Suspicious, nothing_expected()),
    };
    let mut claim = Claim::new(input, Kind::StarttlsRefused, rule, evidence, expected);
    claim.reply = code.filter(|code| *code != 0);
    if rule == RuleId::C5 {
        let waited = waited(input).map(|waited| format!(" within {} s", waited.as_secs())).unwrap_or_default();
        claim.indicators.push(format!("no reply to STARTTLS came{waited}"));
    } else if code == Some(0) {
        claim
            .indicators
            .push("a line without a code arrived, and the client took it for the reply to STARTTLS".to_owned());
    }
    Some(claim)
}

/// A 2xx code other than 220 that did not lead to TLS: the reply was not the go-ahead (C3).
pub(super) fn is_odd_grant(input: &RuleInput<'_>) -> bool {
    let session = input.session;
    let established = session.tls.as_ref().is_some_and(|tls| tls.is_established() || tls.is_opaque());
    matches!(session.starttls, Starttls::Granted(code) if code != 220) && !established
}

/// The connection ended or fell silent, and STARTTLS was never answered (C5).
const fn cut(input: &RuleInput<'_>) -> bool {
    input.session.timed_out || input.session.ended.is_some()
}
