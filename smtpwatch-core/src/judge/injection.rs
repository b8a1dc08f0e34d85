//! Cleartext where TLS should begin: commands (E1, E3), replies (E2), and replies that answer no command (E4).

use super::{Claim, RuleInput, by_standard};
use crate::{
    finding::{Evidence, Kind, Outcome, Severity},
    smtp::Starttls,
};

pub(super) fn judge(case: &RuleInput<'_>) -> Vec<Claim> {
    [commands(case), replies(case), unsolicited(case)].into_iter().flatten().collect()
}

fn commands(case: &RuleInput<'_>) -> Option<Claim> {
    let injection = case.session.injected_commands.as_ref()?;
    let carries = injection.auth || injection.mail;
    let rule = if carries { "E3" } else { "E1" };
    let expected = by_standard("no data between STARTTLS and the first TLS record (RFC 3207 §4)");
    let claim = Claim::new(case, Kind::CommandInjection, rule, Evidence::Tamper, expected);
    // They run under TLS as if it had protected them; where TLS was refused they are what they look like.
    let granted = matches!(case.session.starttls, Starttls::Granted(_));
    let cost = match () {
        () if injection.auth && granted => Outcome::Credential,
        () if injection.mail && granted => Outcome::Content,
        () => claim.outcome,
    };
    let sent = if injection.before_reply { "before the reply to STARTTLS was known" } else { "after the go-ahead" };
    let mut claim = claim.cost(cost.max(case.session.outcome()));
    claim.proof.push(format!("{} bytes in cleartext, sent {sent}: {}", injection.octets, injection.verbs.join(", ")));
    claim.reply = match case.session.starttls {
        Starttls::Granted(code) | Starttls::Refused(code) => Some(code),
        Starttls::NotSent | Starttls::Sent => None,
    };
    Some(claim)
}

/// Where the client goes on in clear nobody takes them for replies that TLS protected: that is a handshake that failed (C6).
fn replies(case: &RuleInput<'_>) -> Option<Claim> {
    let session = case.session;
    let injection = session.injected_replies.as_ref()?;
    // Without TLS an error, or anything that is not a reply, is what a server says that cannot do TLS: that is C6 too.
    if !session.tls_began() && (!case.closed || session.clear_after_go_ahead || !injection.replies) {
        return None;
    }
    let expected = by_standard("no data between the go-ahead and the first TLS record (RFC 3207 §4)");
    let claim = Claim::new(case, Kind::ResponseInjection, "E2", Evidence::Tamper, expected);
    Some(claim.indicator(format!(
        "{} bytes in cleartext after the go-ahead: {}",
        injection.octets,
        quoted(&injection.verbs)
    )))
}

/// Lines of the server, in quotes.
pub(super) fn quoted(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line:?}")).collect::<Vec<_>>().join(", ")
}

/// One reply too many before STARTTLS, where it shifts what the client believes about it. Behind a mail transaction it is a
/// confused server.
fn unsolicited(case: &RuleInput<'_>) -> Option<Claim> {
    let code = case.session.unsolicited.filter(|_| !case.session.mail_sent)?;
    let expected = by_standard("one reply for each command (RFC 5321 §4.2)");
    let mut claim = Claim::new(case, Kind::ResponseInjection, "E4", Evidence::Suspicious, expected);
    claim.severity = claim.severity.min(Severity::Low);
    claim.reply = Some(code);
    Some(claim.indicator(format!("a reply {code} that answers no command")))
}
