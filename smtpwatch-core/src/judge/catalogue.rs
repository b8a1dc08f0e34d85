//! What is detected, as data: the rows of the threat table, each with the finding that it raises, or the reason why a
//! passive watcher does not raise it. `docs/detection.md` and `smtpwatch generate rules` are printed from it, and the
//! tests hold the rules to it.

use serde::Serialize;

use crate::finding::Kind;

/// From which end of the connection a row can be seen (docs/threats.md, "Which end sees what").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SeenFrom {
    /// As the SMTP client, sending mail out.
    Client,
    /// As the SMTP server, taking mail in.
    Server,
    /// From both.
    Both,
    /// From neither.
    Nowhere,
}

impl SeenFrom {
    /// The name in tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Both => "client, server",
            Self::Nowhere => "–",
        }
    }
}

/// One row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// Identifier, as in a finding's `rule`.
    pub id: &'static str,
    /// What happens.
    pub title: &'static str,
    /// The finding; `None` where none is raised.
    pub kind: Option<Kind>,
    /// From which end it is seen.
    pub seen_from: SeenFrom,
    /// What must be known beforehand.
    pub needs: &'static str,
    /// The evidence it reaches.
    pub evidence: &'static str,
    /// What can fool it, or why it is not raised.
    pub limits: &'static str,
}

const fn row(
    id: &'static str,
    title: &'static str,
    kind: Kind,
    seen_from: SeenFrom,
    needs: &'static str,
    evidence: &'static str,
    limits: &'static str,
) -> Row {
    Row { id, title, kind: Some(kind), seen_from, needs, evidence, limits }
}

const fn unseen(id: &'static str, title: &'static str, reason: &'static str) -> Row {
    Row { id, title, kind: None, seen_from: SeenFrom::Nowhere, needs: "–", evidence: "–", limits: reason }
}

use Kind::{
    AuthExchangePlaintext, AuthOfferedPlaintext, AuthPlaintext, CertificateMismatch, CommandInjection,
    CommandRewritten, DowngradeRetry, EhloDowngraded, PolicyViolation, ResponseInjection, StarttlsMasked,
    StarttlsRefused, StarttlsStripped, StarttlsUnused, StreamTampering, TlsDowngraded, TlsHandshakeFailed,
};
use SeenFrom::{Both, Client, Server};

/// Every row, in order.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("A1", "STARTTLS deleted from the EHLO reply", StarttlsStripped, Client, "rule, published policy or history; nothing where the server demands STARTTLS in a reply", "regression, policy; suspicious by the server's demand alone; tamper with FO-1; low or medium where TLS began all the same", "a server that gave TLS up looks the same until its history is forgotten"),
    row("A2", "capability overwritten in place, as Cisco's inspection does", StarttlsMasked, Client, "nothing", "tamper; suspicious while STARTTLS is still offered", "a server can write such a line itself; a mask does not tell which keyword it hides (FP-26)"),
    row("A3", "other same-length mangling: all X, one letter, case", StarttlsMasked, Client, "nothing; rule or history for other letters in its place", "tamper; regression, policy for other letters; suspicious, info for a change of case", "a server that writes it in its own way, until TLS was seen with it"),
    row("A4", "whole reply replaced", StarttlsStripped, Client, "history of its words", "regression, policy", "a server replaced by its owner"),
    row("A5", "STARTTLS moved to the first line, or reshaped", StarttlsStripped, Client, "rule or history; nothing for a shape that some clients still take", "regression, policy; suspicious, info as starttls-masked", "servers that put it there themselves"),
    row("A6", "reply cut off, or its end promoted", StarttlsStripped, Client, "nothing; rule or history for more", "suspicious, regression, policy; tamper where lines stand behind the end", "a server that breaks off by itself"),
    row("A7", "STARTTLS duplicated", StreamTampering, Client, "nothing", "suspicious", "a badly configured server, until TLS was seen with it"),
    row("A8", "strip of our own reply, inferred", StarttlsUnused, Server, "history of the client", "regression", "a client that was told to do without; a client that was never seen using TLS; at most medium where the client gives another name: it may be another one behind the same address (FP-21)"),
    row("A9", "strip that comes and goes", StarttlsStripped, Client, "history", "regression; suspicious, low when history gives the peer up as a farm", "a farm whose members differ: after a few returns, spread over its age, it counts as one and is not accused (FP-1)"),
    row("A10", "plaintext mechanisms added before TLS", AuthOfferedPlaintext, Client, "history", "suspicious; regression with F8", "a change by the administrator"),
    row("B1", "EHLO refused, then HELO", EhloDowngraded, Both, "rule or history", "regression, policy; low where STARTTLS was never offered", "as the server: any client that used TLS before and says HELO"),
    row("B2", "EHLO rewritten on the way", CommandRewritten, Both, "nothing", "tamper", "any client can send X; not scored when typed octet by octet (FP-25)"),
    row("B3", "banner masked", CommandRewritten, Client, "nothing; history for tamper", "suspicious, tamper; info once TLS began", "banners masked for privacy; it does not prove that STARTTLS is lost"),
    unseen("B4", "the word ESMTP removed from the banner", "harmless: clients send EHLO whatever the banner says; the banner is in the transcript"),
    unseen("B5", "forged 421 or 554 greeting", "not to be told from overload, greylisting and block lists, which answer alike for many servers"),
    row("C1", "454 to STARTTLS", StarttlsRefused, Both, "nothing; a rule for more", "suspicious, policy", "honest servers short of resources: history never makes more of it (FP-2)"),
    row("C2", "5xx to STARTTLS that was offered", StarttlsRefused, Both, "nothing; rule or history for more", "suspicious, regression, policy", "a server whose TLS broke"),
    row("C3", "any other reply to STARTTLS", StarttlsRefused, Both, "nothing; rule or history for more", "suspicious, regression, policy; tamper where it names its tool", "a 2xx of which TLS comes is a go-ahead"),
    row("C4", "STARTTLS rewritten on the way", CommandRewritten, Both, "nothing", "tamper", "as the client: only where a 500 or 502 quotes what it got"),
    row("C5", "connection cut after STARTTLS", StarttlsRefused, Both, "nothing; a rule for more", "suspicious, policy", "crashes and load balancers"),
    row("C6", "go-ahead, then clear text", TlsHandshakeFailed, Both, "nothing", "suspicious; tamper once mail goes in clear", "a broken client or server; a server that finds its TLS missing after the go-ahead, or that times out"),
    row("C7", "our own client does not ask for STARTTLS", StarttlsUnused, Client, "rule", "policy", "own configuration (FP-20)"),
    row("D1", "handshake sabotaged, then delivery in clear on another connection", DowngradeRetry, Both, "the failed handshake within five days, with the same address or name", "suspicious, regression, policy", "servers whose TLS is broken; the first half is tls-handshake-failed"),
    unseen("D2", "certificate substituted", "without a policy a new key is an everyday renewal; against a policy it is D5"),
    unseen("D3", "TLS on one leg, clear on the other", "each leg looks whole; as the server it is A8"),
    row("D4", "TLS version or suite downgraded", TlsDowngraded, Both, "nothing for weak suites and the TLS 1.3 sentinel; rule, history, or port 587 for versions", "suspicious, regression, policy, tamper", "old peers on port 25 are normal and not named"),
    row("D5", "certificate contradicts TLSA records or MTA-STS", CertificateMismatch, Client, "DANE or MTA-STS; TLS 1.2 or below", "policy", "in TLS 1.3 the certificate is encrypted and not observable; who signed it is not checked"),
    unseen("D6", "TLS without STARTTLS", "counted as a TLS session: scanners do it"),
    unseen("D7", "mail redirected by forged DNS", "not to be told from a smart host, which is how most mail leaves a network"),
    row("E1", "commands in clear behind STARTTLS", CommandInjection, Both, "nothing", "tamper", "testing tools do it too; clients that do not wait for a refusal; never after a line without a code"),
    row("E2", "replies in clear behind the go-ahead", ResponseInjection, Both, "nothing", "tamper", "without TLS only 2yz and 3yz; errors are C6; blank lines are nothing"),
    row("E3", "injected AUTH, MAIL or DATA", CommandInjection, Both, "nothing", "tamper", "testing tools do it too"),
    row("E4", "reply that answers no command", ResponseInjection, Both, "nothing", "suspicious", "confused servers; early commands are normal (FP-12) and not named"),
    unseen("E5", "SMTP smuggling", "bodies are not copied out of the kernel; only CRLF.CRLF ends a message for the parser"),
    row("F1", "AUTH PLAIN with initial response", AuthPlaintext, Both, "nothing", "suspicious, policy", "–"),
    row("F2", "AUTH PLAIN in two steps", AuthPlaintext, Both, "nothing", "suspicious, policy", "–"),
    row("F3", "AUTH LOGIN", AuthPlaintext, Both, "nothing", "suspicious, policy", "a user name alone is no finding"),
    row("F4", "bearer tokens", AuthPlaintext, Both, "nothing", "suspicious, policy", "–"),
    row("F5", "challenge-response exchange", AuthExchangePlaintext, Both, "nothing", "suspicious, policy", "–"),
    row("F6", "plaintext mechanisms offered before TLS", AuthOfferedPlaintext, Both, "nothing", "suspicious, policy", "internal listeners: say so with auth_plaintext = \"allow\""),
    row("F7", "AUTH refused, secret sent", AuthPlaintext, Both, "nothing", "suspicious, policy", "bots guess with made-up secrets"),
    row("F8", "STARTTLS stripped and AUTH offered in one reply", AuthOfferedPlaintext, Client, "rule or history", "regression, policy", "as A1"),
    row("F9", "Exchange's X-EXPS", AuthPlaintext, Both, "nothing", "suspicious, policy", "XCLIENT carries an identity, not a secret, and is no finding"),
    row("G1", "mail accepted in clear against a local rule, or MTA-STS in mode enforce", PolicyViolation, Both, "rule or MTA-STS", "policy", "–"),
    row("G2", "the same, MTA-STS in mode testing", PolicyViolation, Client, "MTA-STS", "policy, at most medium", "its owner does not want mail held up"),
    row("G3", "mail accepted in clear by a host with secure TLSA records", PolicyViolation, Client, "DANE", "policy", "bogus and insecure answers are no policy"),
    row("G4", "the same, by the STARTTLS-Everywhere list", PolicyViolation, Client, "list", "policy", "behind its expiry the list is a hint only"),
    row("G5", "offered, always used, not used now", StarttlsUnused, Client, "history", "regression", "own configuration (FP-20)"),
    unseen("G6", "mail host is not in the policy", "not to be told from a smart host; a policy that none of the domain's own mail hosts fits is invalid and accuses nobody"),
    row("G7", "REQUIRETLS in clear", PolicyViolation, Both, "nothing", "policy", "–"),
    row("G8", "submission on port 587 in clear", StarttlsUnused, Both, "nothing", "suspicious, regression, policy", "trusted networks: say so with starttls = \"ignore\""),
    row("G9", "a sender reports a server without STARTTLS, and our own record shows the offer to it", StarttlsStripped, Server, "its TLS report, and our record of that day (smtpwatch tlsrpt import)", "tamper", "a day is the finest grain; a sender behind NAT is not found; silent where our record has gaps or fewer such sessions than are reported"),
    unseen("G10", "policy made unreachable", "told by smtpwatch_policy_refresh_failures_total; a policy that is cached holds until its max_age"),
    row("FO-1", "two different copies of one range of octets", StreamTampering, Both, "nothing", "tamper", "a device that normalises TCP leaves none: absence proves nothing"),
];

/// The row of an identifier.
#[must_use]
pub fn find(id: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.id == id)
}

/// `docs/detection.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Detection\n\nWhat is raised, from which end, with which evidence; what must be known for it, and what can fool it.\n\
         Printed by `smtpwatch generate rules --format markdown` from the rules themselves.\n\
         What a session is taken to say rests on [which reply answers which command](pairing.md).\n\n\
         | id | what happens | finding | seen from | needs | evidence | limits |\n|---|---|---|---|---|---|---|\n",
    );
    for Row { id, title, kind, seen_from, needs, evidence, limits } in ROWS {
        let kind = kind.map_or_else(|| "not raised".to_owned(), |kind| format!("`{kind}`"));
        text.push_str(&format!(
            "| {id} | {title} | {kind} | {} | {needs} | {evidence} | {limits} |\n",
            seen_from.as_str()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_unique() {
        let mut ids: Vec<_> = ROWS.iter().map(|row| row.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ROWS.len());
    }

    #[test]
    fn the_table_has_a_line_for_each_row() {
        assert_eq!(markdown().lines().filter(|line| line.starts_with("| ")).count(), ROWS.len() + 1);
    }
}
