//! The EHLO phase: EHLO refused (B1), verbs rewritten on the path (B2, C4), greeting masked (B3).

use super::{Claim, Limit, RuleId, RuleInput, nothing_expected, offer_expected, use_expected};
use crate::{
    Role,
    finding::{Evidence, Expected, ExpectedSource, Kind},
};

pub(super) fn judge(input: &RuleInput<'_>) -> Vec<Claim> {
    if input.session.doubt.is_some() || input.starttls_ignored() {
        return Vec::new();
    }
    [downgraded(input), rewritten(input), masked_banner(input)].into_iter().flatten().collect()
}

/// HELO after EHLO was refused, or after a masked greeting that keeps clients from trying EHLO, with a peer known to
/// support EHLO. HELO alone is normal for old devices (FP-5).
fn downgraded(input: &RuleInput<'_>) -> Option<Claim> {
    let session = input.session;
    // A client that sends STARTTLS anyway knows the server. A client that did not wait had all its commands refused
    // (FP-23).
    let went_on = session.helo || session.went_on;
    if session.capabilities.is_some() || !went_on || session.tls_began() {
        return None;
    }
    let (known, cause) = match input.role {
        Role::Client => (offer_expected(input), session.ehlo_rejected.is_some() || session.greeting_is_masked()),
        // A client that used STARTTLS here sent EHLO.
        Role::Server => {
            (use_expected(input).filter(|_| input.known_user().is_some()), session.helo && session.mail_sent)
        }
    };
    let known = known.or_else(|| speaks_ehlo(input));
    let (evidence, expected) = known.filter(|_| cause)?;
    let offered = expected.starttls;
    let mut claim = Claim::new(input, Kind::EhloDowngraded, RuleId::B1, evidence, expected);
    claim.reply = session.ehlo_rejected.filter(|code| *code != 0);
    if !offered {
        claim.add_limit(Limit::EhloOnly);
    }
    Some(claim)
}

fn speaks_ehlo(input: &RuleInput<'_>) -> Option<(Evidence, Expected)> {
    let record = input.expectation.speaks_ehlo.filter(|_| input.role == Role::Client)?;
    Some((
        Evidence::Regression,
        Expected { starttls: false, ..Expected::starttls(ExpectedSource::History, record.answers()) },
    ))
}

/// Any client can send a line of X, and so does a person typing through a device that masks each byte (FP-25): without
/// a second sign the severity is at most `medium`.
fn rewritten(input: &RuleInput<'_>) -> Option<Claim> {
    let rewritten = input.session.rewritten.as_ref()?;
    let arrived = rewritten.sent.is_empty();
    // A quote of this host's own server came from the monitored direction, so it cannot differ.
    if !arrived && input.role == Role::Server {
        return None;
    }
    let known = use_expected(input);
    // A device on the path that splits and delays segments also looks like a person. For an address that has used TLS,
    // typing therefore suppresses nothing, whatever name the client gives.
    let uses_tls = known.is_some() || input.expectation.uses.is_some();
    if arrived && input.wire.typed && !uses_tls {
        return None;
    }
    let starttls = rewritten.sent == "STARTTLS" || (arrived && rewritten.arrived.len() == "STARTTLS".len());
    let second_sign = known.is_some() || !arrived;
    let expected = known.map_or_else(nothing_expected, |(_, expected)| expected);
    let rule = if starttls { RuleId::C4 } else { RuleId::B2 };
    let claim = Claim::new(input, Kind::CommandRewritten, rule, Evidence::Tamper, expected);
    let mut claim = claim.indicator(if arrived {
        format!("the verb {:?} arrived: a run of X as long as the verb that it hides", rewritten.arrived)
    } else {
        format!("{:?} was sent, and the server quotes {:?} (FO-12)", rewritten.sent, rewritten.arrived)
    });
    if !second_sign {
        claim.add_limit(Limit::OneSign);
    }
    Some(claim)
}

/// The greeting keeps only the characters 2, 0, `*` and blanks. It makes default Postfix send HELO, and does not prove
/// by itself that STARTTLS is lost.
fn masked_banner(input: &RuleInput<'_>) -> Option<Claim> {
    let readable = input.expectation.profile.is_some_and(|profile| profile.readable_greeting);
    let under_tls = input.session.tls_began();
    if !input.session.greeting_is_masked() || under_tls && !readable {
        return None;
    }
    let evidence = if readable { Evidence::Tamper } else { Evidence::Suspicious };
    let expected = offer_expected(input).map_or_else(nothing_expected, |(_, expected)| expected);
    let claim = Claim::new(input, Kind::CommandRewritten, RuleId::B3, evidence, expected);
    let mut claim =
        claim.indicator(format!("the greeting is masked: {:?}", input.session.greeting.as_deref().unwrap_or_default()));
    if under_tls {
        claim.add_limit(Limit::UnderTls);
    }
    Some(if readable { claim.indicator("the greeting of this server was readable before") } else { claim })
}
