//! After the go-ahead: no TLS (C6, first half of D1), or TLS weaker than expected (D4).

use std::time::Duration;

use super::{
    Claim, RuleId, RuleInput, demanded, injection::quoted, nothing_expected, refused, unused::handshake_end,
    use_expected,
};
use crate::{
    Role, Side,
    finding::{Evidence, Expected, ExpectedSource, Kind, Outcome},
    limits,
    smtp::{HandshakeEnd, version_name},
};

/// Lower versions are forbidden (RFC 8996), on port 587 too (RFC 8997).
const TLS_1_2: u16 = 0x0303;
const TLS_1_3: u16 = 0x0304;

/// Minimum silence before the end of a connection that is reported: one side was waiting for an answer.
const SILENCE: Duration = Duration::from_secs(10);

pub(super) fn judge(input: &RuleInput<'_>) -> Vec<Claim> {
    if input.session.doubt.is_some() || input.starttls_ignored() {
        return Vec::new();
    }
    [failed(input), downgraded(input)].into_iter().flatten().collect()
}

fn failed(input: &RuleInput<'_>) -> Option<Claim> {
    let end = input.session.handshake_end()?;
    // A reply other than 220 is already reported as C3, and replies before the first TLS byte as E2.
    let is_e2 = input.session.injected_replies.as_ref().is_some_and(|injection| injection.replies)
        && end == HandshakeEnd::Clear(Side::Server);
    if refused::is_odd_grant(input) || is_e2 {
        return None;
    }
    let in_clear = matches!(end, HandshakeEnd::Clear(_));
    // Until the end TLS may still begin, even after bytes in cleartext (E2), unless both sides have continued in
    // cleartext.
    if !input.closed && !input.session.clear_after_go_ahead {
        return None;
    }
    let rule = if in_clear { RuleId::C6 } else { RuleId::D1 };
    // Mail in cleartext after a go-ahead: one end assumes TLS that the other never saw.
    let tampered = in_clear && input.session.outcome() > Outcome::Attempt;
    let (known, expected) = use_expected(input).unwrap_or_else(|| (Evidence::Suspicious, nothing_expected()));
    let evidence = if tampered { Evidence::Tamper } else { known };
    let claim = Claim::new(input, Kind::TlsHandshakeFailed, rule, evidence, expected);
    if end == HandshakeEnd::Silence {
        let waited = waited(input).unwrap_or_default();
        return Some(
            claim.indicator(format!("after the go-ahead neither side sent anything for {} s", waited.as_secs())),
        );
    }
    let said = input.session.injected_replies.as_deref().filter(|_| end == HandshakeEnd::Clear(Side::Server));
    let silence = if said.is_some() { input.session.clear_after } else { input.session.silence };
    let silence = silence.filter(|silence| *silence >= SILENCE);
    let silence = silence.map(|silence| format!("neither side sent anything for {} s, and then ", silence.as_secs()));
    let claim = claim.indicator(format!("after the go-ahead {}{}", silence.unwrap_or_default(), handshake_end(end)));
    Some(match said {
        Some(said) => claim.indicator(format!("the server said in cleartext: {}", quoted(&said.verbs))),
        None => claim,
    })
}

/// How long one side waited for an answer, if at least [`SILENCE`]: until the connection ended or timed out.
pub(super) fn waited(input: &RuleInput<'_>) -> Option<Duration> {
    let given_up = input.session.timed_out.then_some(limits::FLOW_IDLE);
    input.session.silence.or(given_up).filter(|silence| *silence >= SILENCE)
}

fn downgraded(input: &RuleInput<'_>) -> Option<Claim> {
    let tls = input.session.tls.as_ref()?;
    let (client, server) = (tls.client_hello.as_ref()?, tls.server_hello?);
    let chosen = version_name(server.version);
    let minimum = input.expectation.rule.and_then(|(place, rule)| Some((place, rule.min_tls?)));
    let best = input.expectation.profile.map_or(0, |profile| profile.tls_version);
    let (evidence, expected) = if let Some((place, minimum)) = minimum
        && server.version < minimum
    {
        let detail = format!("rule {place} of the configuration: min_tls is {}", version_name(minimum));
        (Evidence::Policy, Expected::starttls(ExpectedSource::Rule, detail))
    } else if input.role == Role::Client && server.downgrade_sentinel && client.version >= TLS_1_3 {
        let detail = format!(
            "the client offered {}; the server's random says that it received a lower version",
            version_name(client.version)
        );
        (Evidence::Tamper, Expected::starttls(ExpectedSource::Standard, detail))
    } else if server.version < best && (server.version < TLS_1_2 || client.version >= best) {
        (
            Evidence::Regression,
            Expected::starttls(ExpectedSource::History, format!("{} was chosen before", version_name(best))),
        )
    } else if server.version < TLS_1_2 && input.port == 587 {
        (
            Evidence::Suspicious,
            Expected::starttls(ExpectedSource::Standard, "at least TLS 1.2 on port 587 (RFC 8997)".to_owned()),
        )
    } else if server.weak_suite().is_some() {
        let detail = "a suite that encrypts and authenticates (RFC 9325 §4.1)".to_owned();
        let known = match input.expectation.profile {
            _ if demanded(input).is_some() => Evidence::Policy,
            Some(profile) if profile.tls_version != 0 && !profile.weak_suite => Evidence::Regression,
            Some(_) | None => Evidence::Suspicious,
        };
        (known, Expected::starttls(ExpectedSource::Standard, detail))
    } else {
        return None;
    };
    let claim = Claim::new(input, Kind::TlsDowngraded, RuleId::D4, evidence, expected);
    let suite = server.weak_suite().map_or_else(|| format!("suite {:#06x}", server.cipher), str::to_owned);
    let mut claim = claim.indicator(format!(
        "the server chose {chosen}, {suite}; the client offered up to {}",
        version_name(client.version)
    ));
    claim.is_final = true;
    Some(claim)
}
