//! The catalogue of rules: each row A to G of docs/threats.md, with the finding that it raises, or the reason why a
//! passive monitor raises none. `docs/detection.md` and `smtpwatch generate rules` are generated from it; tests compare
//! it with the findings that the rules raise.

use serde::Serialize;

use crate::finding::Kind;

/// The end of the connection from which a row is visible (docs/threats.md, "Which end sees what").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SeenFrom {
    /// The SMTP client, which sends mail.
    Client,
    /// The SMTP server, which receives mail.
    Server,
    /// Both ends.
    Both,
    /// Neither end.
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

/// One row of the catalogue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// Identifier, the same as in a finding's `rule`.
    pub id: &'static str,
    /// What happens, in a few words.
    pub title: &'static str,
    /// Kind of the finding; `None` if none is raised.
    pub kind: Option<Kind>,
    /// The ends of the connection from which it is visible.
    pub seen_from: SeenFrom,
    /// What must be known in advance.
    pub needs: &'static str,
    /// Evidence that the finding reaches, with its conditions.
    pub evidence: &'static str,
    /// What can mislead the rule, or why no finding is raised.
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

/// All rows, in the order of docs/threats.md.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("A1", "STARTTLS deleted from the EHLO reply", StarttlsStripped, Client, "rule, published policy or history; nothing if the server demands STARTTLS in a reply", "regression, policy; suspicious if only the server's demand says so; tamper with FO-1; low or medium if TLS began anyway", "a server that stopped offering TLS looks the same until its history is forgotten"),
    row("A2", "capability overwritten in place, as by Cisco's SMTP inspection", StarttlsMasked, Client, "nothing", "tamper; suspicious while STARTTLS is still offered", "a server can write such a line itself; a mask does not show which keyword it hides (FP-26)"),
    row("A3", "other same-length mangling: all X, one letter, case", StarttlsMasked, Client, "nothing; rule or history if other letters replace it", "tamper; regression, policy for other letters; suspicious, info for a change of case", "a server with its own spelling, until TLS was seen with it"),
    row("A4", "whole reply replaced", StarttlsStripped, Client, "history of its greeting and EHLO reply", "regression, policy", "a server replaced by its owner"),
    row("A5", "STARTTLS moved to the first line, or reshaped", StarttlsStripped, Client, "rule or history; nothing for a form that some clients still accept", "regression, policy; suspicious, info as starttls-masked", "servers that put it there themselves"),
    row("A6", "reply cut off, or an earlier line turned into its last", StarttlsStripped, Client, "nothing; rule or history for more", "suspicious, regression, policy; tamper if lines follow the last one", "a server that aborts its reply itself"),
    row("A7", "STARTTLS duplicated", StreamTampering, Client, "nothing", "suspicious", "a badly configured server, until TLS was seen with it"),
    row("A8", "STARTTLS deleted from this host's own reply, inferred", StarttlsUnused, Server, "history of the client", "regression", "a client reconfigured not to use TLS; not raised for a client never seen using TLS; at most medium if the client gives another name, because it may be another one behind the same address (FP-21)"),
    row("A9", "STARTTLS missing intermittently", StarttlsStripped, Client, "history", "regression; suspicious, low when history classifies the peer as a farm", "a farm whose members differ: after a few interruptions, spread over its age, it counts as a farm and raises nothing (FP-1)"),
    row("A10", "plaintext mechanisms added before TLS", AuthOfferedPlaintext, Client, "history", "suspicious; regression with F8", "a change by the administrator"),
    row("B1", "EHLO refused, then HELO", EhloDowngraded, Both, "rule or history", "regression, policy; low if STARTTLS was never offered", "as the server: any client that used TLS before and sends HELO"),
    row("B2", "EHLO rewritten on the path", CommandRewritten, Both, "nothing", "tamper", "any client can send X; not raised when a person types it (FP-25)"),
    row("B3", "greeting masked", CommandRewritten, Client, "nothing; history for tamper", "suspicious, tamper; info once TLS began", "greetings masked for privacy; it does not prove that STARTTLS is lost"),
    unseen("B4", "the word ESMTP removed from the greeting", "harmless: clients send EHLO whatever the greeting says; the greeting is in the transcript"),
    unseen("B5", "forged 421 or 554 greeting", "indistinguishable from overload, greylisting and block lists, which give the same answer for many servers"),
    row("C1", "454 to STARTTLS", StarttlsRefused, Both, "nothing; a rule for more", "suspicious, policy", "honest servers short of resources: history never raises it (FP-2)"),
    row("C2", "5xx to STARTTLS that was offered", StarttlsRefused, Both, "nothing; rule or history for more", "suspicious, regression, policy", "a server whose TLS has failed"),
    row("C3", "any other reply to STARTTLS", StarttlsRefused, Both, "nothing; rule or history for more", "suspicious, regression, policy; tamper if it names an attack tool", "a 2xx after which TLS begins is a go-ahead"),
    row("C4", "STARTTLS rewritten on the path", CommandRewritten, Both, "nothing", "tamper", "as the client: only if a 500 or 502 quotes what it received"),
    row("C5", "connection cut after STARTTLS", StarttlsRefused, Both, "nothing; a rule for more", "suspicious, policy", "crashes, load balancers"),
    row("C6", "go-ahead, then cleartext", TlsHandshakeFailed, Both, "nothing", "suspicious; tamper if mail is sent in cleartext", "a broken client or server; a server that notices after the go-ahead that its TLS does not work, or that times out"),
    row("C7", "a client on this host does not use STARTTLS", StarttlsUnused, Client, "rule", "policy", "own configuration (FP-20)"),
    row("D1", "handshake sabotaged, then delivery in cleartext on another connection", DowngradeRetry, Both, "a failed handshake within five days, with the same address or name", "suspicious, regression, policy", "servers whose TLS is broken; the first half is tls-handshake-failed"),
    unseen("D2", "certificate substituted", "without a policy, a changed key is an ordinary renewal; against a policy it is D5"),
    unseen("D3", "TLS on one leg, cleartext on the other", "each leg looks normal; as the server it is A8"),
    row("D4", "TLS version or suite downgraded", TlsDowngraded, Both, "nothing for weak suites and the TLS 1.3 sentinel; rule, history, or port 587 for versions", "suspicious, regression, policy, tamper", "old peers on port 25 are normal and raise nothing"),
    row("D5", "certificate contradicts TLSA records or MTA-STS", CertificateMismatch, Client, "DANE or MTA-STS; TLS 1.2 or below", "policy", "in TLS 1.3 the certificate is encrypted and not observable; the issuer is not checked"),
    unseen("D6", "TLS without STARTTLS", "counted as a TLS session: scanners do it"),
    unseen("D7", "mail redirected by forged DNS", "indistinguishable from a smart host, through which most networks send mail"),
    row("E1", "cleartext commands after STARTTLS", CommandInjection, Both, "nothing", "tamper", "testing tools; clients that do not wait for a refusal; never raised after a line without a code"),
    row("E2", "cleartext replies after the go-ahead", ResponseInjection, Both, "nothing", "tamper", "if TLS does not begin, only 2yz and 3yz count; errors are C6; blank lines are ignored"),
    row("E3", "injected AUTH, MAIL or DATA", CommandInjection, Both, "nothing", "tamper", "testing tools"),
    row("E4", "reply that answers no command", ResponseInjection, Both, "nothing", "suspicious", "faulty servers; early commands are normal (FP-12) and raise nothing"),
    unseen("E5", "SMTP smuggling", "bodies are not copied out of the kernel; only CRLF.CRLF ends a message for the parser"),
    row("F1", "AUTH PLAIN with initial response", AuthPlaintext, Both, "nothing", "suspicious, policy", "–"),
    row("F2", "AUTH PLAIN in two steps", AuthPlaintext, Both, "nothing", "suspicious, policy", "–"),
    row("F3", "AUTH LOGIN", AuthPlaintext, Both, "nothing", "suspicious, policy", "a user name alone raises nothing"),
    row("F4", "bearer tokens", AuthPlaintext, Both, "nothing", "suspicious, policy", "–"),
    row("F5", "challenge-response exchange", AuthExchangePlaintext, Both, "nothing", "suspicious, policy", "–"),
    row("F6", "plaintext mechanisms offered before TLS", AuthOfferedPlaintext, Both, "nothing", "suspicious, policy", "internal listeners: add a rule with auth_plaintext = \"allow\""),
    row("F7", "AUTH refused, secret sent", AuthPlaintext, Both, "nothing", "suspicious, policy", "bots that guess passwords"),
    row("F8", "STARTTLS stripped and AUTH offered in one reply", AuthOfferedPlaintext, Client, "rule or history", "regression, policy", "as A1"),
    row("F9", "Exchange's X-EXPS", AuthPlaintext, Both, "nothing", "suspicious, policy", "XCLIENT carries an identity, not a secret, and raises nothing"),
    row("G1", "mail accepted in cleartext against a local rule, or MTA-STS in mode enforce", PolicyViolation, Both, "rule or MTA-STS", "policy", "–"),
    row("G2", "the same, MTA-STS in mode testing", PolicyViolation, Client, "MTA-STS", "policy, at most medium", "the owner of the domain does not want mail delayed"),
    row("G3", "mail accepted in cleartext by a host with secure TLSA records", PolicyViolation, Client, "DANE", "policy", "bogus and insecure answers count as no policy"),
    row("G4", "the same, by the STARTTLS-Everywhere list", PolicyViolation, Client, "list", "policy", "after its expiry the list is only a hint"),
    row("G5", "STARTTLS offered, always used before, not used this time", StarttlsUnused, Client, "history", "regression", "own configuration (FP-20)"),
    unseen("G6", "mail host is not in the policy", "indistinguishable from a smart host; a policy that matches none of the domain's own mail hosts is invalid and raises nothing"),
    row("G7", "REQUIRETLS in cleartext", PolicyViolation, Both, "nothing", "policy", "–"),
    row("G8", "submission on port 587 in cleartext", StarttlsUnused, Both, "nothing", "suspicious, regression, policy", "trusted networks: add a rule with starttls = \"ignore\""),
    row("G9", "a sender reports that this host does not offer STARTTLS, and the own record shows that it did", StarttlsStripped, Server, "its TLS report, and the own record of that day (smtpwatch tlsrpt import)", "tamper", "the granularity is one day; a sender behind NAT is not found; not raised if the own record has gaps or fewer such sessions than reported"),
    unseen("G10", "policy look-ups blocked", "counted by smtpwatch_policy_refresh_failures_total; a cached policy stays in force until its max_age"),
    row("FO-1", "two different copies of one range of bytes", StreamTampering, Both, "nothing", "tamper", "a device that normalises TCP leaves no copies: absence proves nothing"),
];

/// Finds a row by its identifier.
#[must_use]
pub fn find(id: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.id == id)
}

/// The text of `docs/detection.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Detection\n\nAll rules: what happens, which finding it raises, from which end of the connection it can be seen, what must be known, the\n\
         evidence it reaches, and what can mislead it. Generated by `smtpwatch generate rules --format markdown`; do not edit.\n\
         Findings depend on [which reply answers which command](pairing.md). [threats.md](threats.md) has the rows FP, EV and FO.\n\n\
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
