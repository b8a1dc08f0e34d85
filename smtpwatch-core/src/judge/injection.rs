//! Cleartext where TLS should begin: commands (E1, E3), replies (E2), and replies that answer no command (E4).

use super::{Claim, Limit, RuleId, RuleInput, by_standard};
use crate::{
    finding::{Evidence, Kind, Outcome},
    smtp::Starttls,
};

pub(super) fn judge(input: &RuleInput<'_>) -> Vec<Claim> {
    [commands(input), replies(input), unsolicited(input)].into_iter().flatten().collect()
}

fn commands(input: &RuleInput<'_>) -> Option<Claim> {
    let injection = input.session.injected_commands.as_ref()?;
    let carries = injection.auth || injection.mail;
    let rule = if carries { RuleId::E3 } else { RuleId::E1 };
    let expected = by_standard("no data between STARTTLS and the first TLS record (RFC 3207 §4)");
    let claim = Claim::new(input, Kind::CommandInjection, rule, Evidence::Tamper, expected);
    // The commands run under TLS as if TLS had protected them; if TLS was refused they are ordinary commands.
    let granted = matches!(input.session.starttls, Starttls::Granted(_));
    let outcome = match () {
        () if injection.auth && granted => Outcome::Credential,
        () if injection.mail && granted => Outcome::Content,
        () => claim.outcome,
    };
    let sent = if injection.before_reply { "before the reply to STARTTLS was known" } else { "after the go-ahead" };
    let mut claim = claim.with_outcome(outcome.max(input.session.outcome()));
    if granted {
        claim.add_limit(Limit::Injection);
    }
    claim.indicators.push(format!(
        "{} bytes in cleartext, sent {sent}: {}",
        injection.octets,
        injection.verbs.join(", ")
    ));
    claim.reply = match input.session.starttls {
        Starttls::Granted(code) | Starttls::Refused(code) => Some(code),
        Starttls::NotSent | Starttls::Sent => None,
    };
    Some(claim)
}

/// If the client continues in cleartext it does not treat them as protected replies: that is a failed handshake (C6).
fn replies(input: &RuleInput<'_>) -> Option<Claim> {
    let session = input.session;
    let injection = session.injected_replies.as_ref()?;
    // Without TLS, an error or a line that is not a reply comes from a server that cannot do TLS: that is C6 too.
    if !session.tls_began() && (!input.closed || session.clear_after_go_ahead || !injection.replies) {
        return None;
    }
    let expected = by_standard("no data between the go-ahead and the first TLS record (RFC 3207 §4)");
    let claim = Claim::new(input, Kind::ResponseInjection, RuleId::E2, Evidence::Tamper, expected);
    Some(claim.limit(Limit::Injection).indicator(format!(
        "{} bytes in cleartext after the go-ahead: {}",
        injection.octets,
        quoted(&injection.verbs)
    )))
}

pub(super) fn quoted(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line:?}")).collect::<Vec<_>>().join(", ")
}

/// One reply too many before STARTTLS, where it shifts the replies that the client assigns to its commands. After a
/// mail transaction it is a confused server.
fn unsolicited(input: &RuleInput<'_>) -> Option<Claim> {
    let code = input.session.unsolicited.filter(|_| !input.session.mail_sent)?;
    let expected = by_standard("one reply for each command (RFC 5321 §4.2)");
    let claim = Claim::new(input, Kind::ResponseInjection, RuleId::E4, Evidence::Suspicious, expected);
    let mut claim = claim.limit(Limit::ExtraReply);
    claim.reply = Some(code);
    Some(claim.indicator(format!("a reply {code} that answers no command")))
}
