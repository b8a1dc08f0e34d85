//! The catalogue of rules: each row A to G of docs/threats.md, with the finding that it raises, or the reason why a
//! passive monitor raises none. `docs/detection.md` and `smtpwatch generate rules` are generated from it; tests compare
//! each finding that a rule raises with [`Row::allows`].
//!
//! One invocation of the macro `catalogue` declares [`RuleId`] and the row of each variant, so that none is without the other.

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    Finding, Role,
    finding::{Evidence, ExpectedSource, Kind, vocabulary},
};

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

    /// Whether a host in this role sees the row.
    #[must_use]
    pub const fn includes(self, role: Role) -> bool {
        match (self, role) {
            (Self::Both, _) | (Self::Client, Role::Client) | (Self::Server, Role::Server) => true,
            (Self::Client, Role::Server) | (Self::Server, Role::Client) | (Self::Nowhere, _) => false,
        }
    }
}

/// Evidence that a finding reaches under one condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grade {
    /// Levels of evidence; empty if the condition affects the severity only.
    pub evidence: &'static [Evidence],
    /// The condition, in words; empty if there is none.
    pub condition: &'static str,
}

/// One row of the catalogue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// Identifier, the same as in a finding's `rule`.
    pub id: RuleId,
    /// What happens, in a few words.
    pub title: &'static str,
    /// Kinds of the finding, the main one first; empty if none is raised.
    #[serde(rename = "kind", serialize_with = "main_kind")]
    pub kinds: &'static [Kind],
    /// The ends of the connection from which it is visible.
    pub seen_from: SeenFrom,
    /// What must be known in advance.
    pub needs: &'static str,
    /// Sources that the finding may name in `expected`.
    #[serde(skip)]
    pub expected: &'static [ExpectedSource],
    /// Evidence that the finding reaches, with its conditions.
    #[serde(serialize_with = "as_text")]
    pub evidence: &'static [Grade],
    /// What can mislead the rule, or why no finding is raised.
    pub limits: &'static str,
}

impl Row {
    /// Main kind of the finding; `None` if none is raised.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        self.kinds.first().copied()
    }

    /// Whether a rule may raise this finding under the identifier of the row.
    #[must_use]
    pub fn allows(&self, finding: &Finding) -> bool {
        finding.rule == self.id.as_str()
            && self.kinds.contains(&finding.kind)
            && self.seen_from.includes(finding.role)
            && self.evidence.iter().any(|grade| grade.evidence.contains(&finding.evidence))
            && self.expected.iter().any(|source| finding.expected.is_from(*source))
    }
}

fn main_kind<S: Serializer>(kinds: &[Kind], serializer: S) -> Result<S::Ok, S::Error> {
    kinds.first().serialize(serializer)
}

fn as_text<S: Serializer>(evidence: &[Grade], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&evidence_text(evidence))
}

/// Evidence in words, as in the tables. A condition that begins with a comma continues the list of levels.
fn evidence_text(evidence: &[Grade]) -> String {
    if evidence.is_empty() {
        return "–".to_owned();
    }
    let grade = |Grade { evidence, condition }: &Grade| {
        let levels = evidence.iter().map(|level| level.as_str()).collect::<Vec<_>>().join(", ");
        let gap = if levels.is_empty() || condition.is_empty() || condition.starts_with(',') { "" } else { " " };
        format!("{levels}{gap}{condition}")
    };
    evidence.iter().map(grade).collect::<Vec<_>>().join("; ")
}

macro_rules! row {
    ($id:ident, $title:literal, { not raised: $reason:literal }) => {
        Row {
            id: RuleId::$id,
            title: $title,
            kinds: &[],
            seen_from: SeenFrom::Nowhere,
            needs: "–",
            expected: &[],
            evidence: &[],
            limits: $reason,
        }
    };
    ($id:ident, $title:literal, {
        kind: $($kind:ident)|+,
        seen from: $seen_from:ident,
        needs: $needs:literal,
        expected: $expected:expr,
        evidence: $($($level:ident)* $($condition:literal)?);+,
        limits: $limits:literal
    }) => {
        Row {
            id: RuleId::$id,
            title: $title,
            kinds: &[$(Kind::$kind),+],
            seen_from: SeenFrom::$seen_from,
            needs: $needs,
            expected: $expected,
            evidence: &[$(Grade { evidence: &[$(Evidence::$level),*], condition: concat!($($condition)?) }),+],
            limits: $limits,
        }
    };
}

/// Declares [`RuleId`], [`RuleId::row`] and [`ROWS`].
macro_rules! catalogue {
    ($($id:ident = $text:literal, $title:literal => $row:tt)+) => {
        vocabulary! {
            /// Identifier of a row of the catalogue. The names are stable: they are in the findings' `rule`.
            RuleId { $(#[doc = concat!($title, ".")] $id = $text),+ }
        }

        impl RuleId {
            /// The row of the catalogue.
            #[must_use]
            pub const fn row(self) -> &'static Row {
                match self { $(Self::$id => const { &row!($id, $title, $row) }),+ }
            }
        }

        /// All rows, in the order of docs/threats.md.
        pub const ROWS: &[&Row] = &[$(RuleId::$id.row()),+];
    };
}

use ExpectedSource::{Dane, History, List, MtaSts, Nothing, Rule, Standard, Tlsrpt};

/// Whatever may be known about a peer.
const PEER: &[ExpectedSource] = &[Rule, Dane, MtaSts, List, History];
/// The claim also stands if nothing is known about the peer.
const PEER_OR_NOTHING: &[ExpectedSource] = &[Rule, Dane, MtaSts, List, History, Nothing];
/// A standard demands it of every peer.
const PEER_OR_STANDARD: &[ExpectedSource] = &[Rule, Dane, MtaSts, List, History, Standard];
/// The first half of D1 stands if nothing is known about the peer, and a standard forbids the second half.
const PEER_NOTHING_OR_STANDARD: &[ExpectedSource] = &[Rule, Dane, MtaSts, List, History, Nothing, Standard];
/// Credentials belong under TLS by standard; a local rule may say so too.
const CREDENTIALS: &[ExpectedSource] = &[Rule, Standard];

catalogue! {
    A1 = "A1", "STARTTLS deleted from the EHLO reply" => {
        kind: StarttlsStripped,
        seen from: Client,
        needs: "rule, published policy or history; nothing if the server demands STARTTLS in a reply",
        expected: PEER_OR_NOTHING,
        evidence: Regression Policy; Suspicious "if only the server's demand, the history of its name or an expired list says so"; Tamper "with FO-1"; "low or medium if TLS began anyway",
        limits: "a server that stopped offering TLS looks the same until its history is forgotten"
    }
    A2 = "A2", "capability overwritten in place, as by Cisco's SMTP inspection" => {
        kind: StarttlsMasked,
        seen from: Client,
        needs: "nothing",
        expected: PEER_OR_NOTHING,
        evidence: Tamper; Suspicious "while STARTTLS is still offered",
        limits: "a server can write such a line itself; a mask does not show which keyword it hides (FP-26)"
    }
    A3 = "A3", "other same-length mangling: all X, one letter, case" => {
        kind: StarttlsMasked,
        seen from: Client,
        needs: "nothing; rule or history if other letters replace it",
        expected: PEER_OR_NOTHING,
        evidence: Tamper; Regression Policy "for other letters"; Suspicious ", info for a change of case",
        limits: "a server with its own spelling, until TLS was seen with it"
    }
    A4 = "A4", "whole reply replaced" => {
        kind: StarttlsStripped,
        seen from: Client,
        needs: "history of its greeting and EHLO reply",
        expected: PEER,
        evidence: Regression Policy; Suspicious "if only the history of its name or an expired list says so",
        limits: "a server replaced by its owner"
    }
    A5 = "A5", "STARTTLS moved to the first line, or reshaped" => {
        kind: StarttlsStripped | StarttlsMasked,
        seen from: Client,
        needs: "rule or history; nothing for a form that some clients still accept",
        expected: PEER_OR_NOTHING,
        evidence: Regression Policy; Suspicious ", info as starttls-masked",
        limits: "servers that put it there themselves"
    }
    A6 = "A6", "reply cut off, or an earlier line turned into its last" => {
        kind: StarttlsStripped,
        seen from: Client,
        needs: "nothing; rule or history for more",
        expected: PEER_OR_NOTHING,
        evidence: Suspicious Regression Policy; Tamper "if lines follow the last one",
        limits: "a server that aborts its reply itself"
    }
    A7 = "A7", "STARTTLS duplicated" => {
        kind: StreamTampering,
        seen from: Client,
        needs: "nothing",
        expected: &[Nothing],
        evidence: Suspicious,
        limits: "a badly configured server, until TLS was seen with it"
    }
    A8 = "A8", "STARTTLS deleted from this host's own reply, inferred" => {
        kind: StarttlsUnused,
        seen from: Server,
        needs: "rule, or history of the client",
        expected: &[Rule, History],
        evidence: Regression Policy,
        limits: "a client reconfigured not to use TLS; without a rule not raised for a client never seen using TLS; at most medium if the client gives another name, because it may be another one behind the same address (FP-21)"
    }
    A9 = "A9", "STARTTLS missing intermittently" => {
        kind: StarttlsStripped,
        seen from: Client,
        needs: "history",
        expected: PEER,
        evidence: Regression Policy; Suspicious ", low when history classifies the peer as a farm",
        limits: "a farm whose members differ: after a few interruptions, spread over its age, it counts as a farm and raises nothing (FP-1)"
    }
    A10 = "A10", "plaintext mechanisms added before TLS" => {
        kind: AuthOfferedPlaintext,
        seen from: Client,
        needs: "history",
        expected: CREDENTIALS,
        evidence: Suspicious Policy; "regression with F8",
        limits: "a change by the administrator"
    }
    B1 = "B1", "EHLO refused, then HELO" => {
        kind: EhloDowngraded,
        seen from: Both,
        needs: "rule or history",
        expected: PEER,
        evidence: Regression Policy; Suspicious "if only the history of its name or an expired list says so"; Tamper "if the reply names an attack tool"; "low if STARTTLS was never offered",
        limits: "as the server: any client that used TLS before and sends HELO"
    }
    B2 = "B2", "EHLO rewritten on the path" => {
        kind: CommandRewritten,
        seen from: Both,
        needs: "nothing",
        expected: PEER_OR_NOTHING,
        evidence: Tamper,
        limits: "any client can send X; not raised when a person types it (FP-25)"
    }
    B3 = "B3", "greeting masked" => {
        kind: CommandRewritten,
        seen from: Both,
        needs: "nothing; history for tamper",
        expected: PEER_OR_NOTHING,
        evidence: Suspicious Tamper; "info once TLS began",
        limits: "greetings masked for privacy; it does not prove that STARTTLS is lost"
    }
    B4 = "B4", "the word ESMTP removed from the greeting" => {
        not raised: "harmless: clients send EHLO whatever the greeting says; the greeting is in the transcript"
    }
    B5 = "B5", "forged 421 or 554 greeting" => {
        not raised: "indistinguishable from overload, greylisting and block lists, which give the same answer for many servers"
    }
    C1 = "C1", "454 to STARTTLS" => {
        kind: StarttlsRefused,
        seen from: Both,
        needs: "nothing; a rule for more",
        expected: PEER_OR_NOTHING,
        evidence: Suspicious Policy; Tamper "if it names an attack tool",
        limits: "honest servers short of resources: history never raises it (FP-2)"
    }
    C2 = "C2", "5xx to STARTTLS that was offered" => {
        kind: StarttlsRefused,
        seen from: Both,
        needs: "nothing; rule or history for more",
        expected: PEER_OR_NOTHING,
        evidence: Suspicious Regression Policy; Tamper "if it names an attack tool",
        limits: "a server whose TLS has failed"
    }
    C3 = "C3", "any other reply to STARTTLS" => {
        kind: StarttlsRefused,
        seen from: Both,
        needs: "nothing; rule or history for more",
        expected: PEER_OR_NOTHING,
        evidence: Suspicious Regression Policy; Tamper "if it names an attack tool",
        limits: "a 2xx after which TLS begins is a go-ahead"
    }
    C4 = "C4", "STARTTLS rewritten on the path" => {
        kind: CommandRewritten,
        seen from: Both,
        needs: "nothing",
        expected: PEER_OR_NOTHING,
        evidence: Tamper,
        limits: "as the client: only if a 500 or 502 quotes what it received"
    }
    C5 = "C5", "connection cut after STARTTLS" => {
        kind: StarttlsRefused,
        seen from: Both,
        needs: "nothing; a rule for more",
        expected: PEER_OR_NOTHING,
        evidence: Suspicious Policy,
        limits: "crashes, load balancers"
    }
    C6 = "C6", "go-ahead, then cleartext" => {
        kind: TlsHandshakeFailed,
        seen from: Both,
        needs: "nothing; rule or history for more",
        expected: PEER_OR_NOTHING,
        evidence: Suspicious Regression Policy; Tamper "if mail is sent in cleartext",
        limits: "a broken client or server; a server that notices after the go-ahead that its TLS does not work, or that times out"
    }
    C7 = "C7", "a client on this host does not use STARTTLS" => {
        kind: StarttlsUnused,
        seen from: Client,
        needs: "rule or published policy",
        expected: &[Rule, Dane, MtaSts, List],
        evidence: Policy; Suspicious "if only an expired list says so",
        limits: "own configuration (FP-20)"
    }
    D1 = "D1", "handshake sabotaged, then delivery in cleartext on another connection" => {
        kind: DowngradeRetry | TlsHandshakeFailed,
        seen from: Both,
        needs: "a failed handshake within five days, with the same address or name",
        expected: PEER_NOTHING_OR_STANDARD,
        evidence: Suspicious Regression Policy,
        limits: "servers whose TLS is broken; the first half is tls-handshake-failed"
    }
    D2 = "D2", "certificate substituted" => {
        not raised: "without a policy, a changed key is an ordinary renewal; against a policy it is D5"
    }
    D3 = "D3", "TLS on one leg, cleartext on the other" => {
        not raised: "each leg looks normal; as the server it is A8"
    }
    D4 = "D4", "TLS version or suite downgraded" => {
        kind: TlsDowngraded,
        seen from: Both,
        needs: "nothing for weak suites and the TLS 1.3 sentinel; rule, history, or port 587 for versions",
        expected: &[Rule, History, Standard],
        evidence: Suspicious Regression Policy Tamper,
        limits: "old peers on port 25 are normal and raise nothing"
    }
    D5 = "D5", "certificate contradicts TLSA records or MTA-STS" => {
        kind: CertificateMismatch,
        seen from: Client,
        needs: "DANE or MTA-STS; TLS 1.2 or below",
        expected: &[Dane, MtaSts],
        evidence: Policy,
        limits: "in TLS 1.3 the certificate is encrypted and not observable; the issuer is not checked"
    }
    D6 = "D6", "TLS without STARTTLS" => {
        not raised: "counted as a TLS session: scanners do it"
    }
    D7 = "D7", "mail redirected by forged DNS" => {
        not raised: "indistinguishable from a smart host, through which most networks send mail"
    }
    E1 = "E1", "cleartext commands after STARTTLS" => {
        kind: CommandInjection,
        seen from: Both,
        needs: "nothing",
        expected: &[Standard],
        evidence: Tamper,
        limits: "testing tools; clients that do not wait for a refusal; never raised after a line without a code"
    }
    E2 = "E2", "cleartext replies after the go-ahead" => {
        kind: ResponseInjection,
        seen from: Both,
        needs: "nothing",
        expected: &[Standard],
        evidence: Tamper,
        limits: "if TLS does not begin, only 2yz and 3yz count; errors are C6; blank lines are ignored"
    }
    E3 = "E3", "injected AUTH, MAIL or DATA" => {
        kind: CommandInjection,
        seen from: Both,
        needs: "nothing",
        expected: &[Standard],
        evidence: Tamper,
        limits: "testing tools"
    }
    E4 = "E4", "reply that answers no command" => {
        kind: ResponseInjection,
        seen from: Both,
        needs: "nothing",
        expected: &[Standard],
        evidence: Suspicious,
        limits: "faulty servers; early commands are normal (FP-12) and raise nothing"
    }
    E5 = "E5", "SMTP smuggling" => {
        not raised: "bodies are not copied out of the kernel; only CRLF.CRLF ends a message for the parser"
    }
    F1 = "F1", "AUTH PLAIN with initial response" => {
        kind: AuthPlaintext,
        seen from: Both,
        needs: "nothing",
        expected: CREDENTIALS,
        evidence: Suspicious Policy,
        limits: "–"
    }
    F2 = "F2", "AUTH PLAIN in two steps" => {
        kind: AuthPlaintext,
        seen from: Both,
        needs: "nothing",
        expected: CREDENTIALS,
        evidence: Suspicious Policy,
        limits: "–"
    }
    F3 = "F3", "AUTH LOGIN" => {
        kind: AuthPlaintext,
        seen from: Both,
        needs: "nothing",
        expected: CREDENTIALS,
        evidence: Suspicious Policy,
        limits: "a user name alone raises nothing"
    }
    F4 = "F4", "bearer tokens" => {
        kind: AuthPlaintext,
        seen from: Both,
        needs: "nothing",
        expected: CREDENTIALS,
        evidence: Suspicious Policy,
        limits: "–"
    }
    F5 = "F5", "challenge-response exchange" => {
        kind: AuthExchangePlaintext,
        seen from: Both,
        needs: "nothing",
        expected: CREDENTIALS,
        evidence: Suspicious Policy,
        limits: "–"
    }
    F6 = "F6", "plaintext mechanisms offered before TLS" => {
        kind: AuthOfferedPlaintext,
        seen from: Both,
        needs: "nothing",
        expected: CREDENTIALS,
        evidence: Suspicious Policy,
        limits: "internal listeners: add a rule with auth_plaintext = \"allow\""
    }
    F7 = "F7", "AUTH refused, secret sent" => {
        kind: AuthPlaintext,
        seen from: Both,
        needs: "nothing",
        expected: CREDENTIALS,
        evidence: Suspicious Policy,
        limits: "bots that guess passwords"
    }
    F8 = "F8", "STARTTLS stripped and AUTH offered in one reply" => {
        kind: AuthOfferedPlaintext,
        seen from: Client,
        needs: "rule or history",
        expected: PEER,
        evidence: Regression Policy,
        limits: "as A1"
    }
    F9 = "F9", "Exchange's X-EXPS" => {
        kind: AuthPlaintext,
        seen from: Both,
        needs: "nothing",
        expected: CREDENTIALS,
        evidence: Suspicious Policy,
        limits: "XCLIENT carries an identity, not a secret, and raises nothing"
    }
    G1 = "G1", "mail accepted in cleartext against a local rule, or MTA-STS in mode enforce" => {
        kind: PolicyViolation,
        seen from: Both,
        needs: "rule or MTA-STS",
        expected: &[Rule, MtaSts],
        evidence: Policy,
        limits: "–"
    }
    G2 = "G2", "the same, MTA-STS in mode testing" => {
        kind: PolicyViolation,
        seen from: Client,
        needs: "MTA-STS",
        expected: &[MtaSts],
        evidence: Policy ", at most medium",
        limits: "the owner of the domain does not want mail delayed"
    }
    G3 = "G3", "mail accepted in cleartext by a host with secure TLSA records" => {
        kind: PolicyViolation,
        seen from: Client,
        needs: "DANE",
        expected: &[Dane],
        evidence: Policy,
        limits: "bogus and insecure answers count as no policy"
    }
    G4 = "G4", "the same, by the STARTTLS-Everywhere list" => {
        kind: PolicyViolation,
        seen from: Client,
        needs: "list",
        expected: &[List],
        evidence: Policy,
        limits: "after its expiry the list is only a hint"
    }
    G5 = "G5", "STARTTLS offered, always used before, not used this time" => {
        kind: StarttlsUnused,
        seen from: Client,
        needs: "history",
        expected: &[History],
        evidence: Regression,
        limits: "own configuration (FP-20)"
    }
    G6 = "G6", "mail host is not in the policy" => {
        not raised: "indistinguishable from a smart host; a policy that matches none of the domain's own mail hosts is invalid and raises nothing"
    }
    G7 = "G7", "REQUIRETLS in cleartext" => {
        kind: PolicyViolation,
        seen from: Both,
        needs: "nothing",
        expected: &[Standard],
        evidence: Policy,
        limits: "–"
    }
    G8 = "G8", "submission on port 587 in cleartext" => {
        kind: StarttlsUnused,
        seen from: Both,
        needs: "nothing",
        expected: PEER_OR_STANDARD,
        evidence: Suspicious Regression Policy,
        limits: "trusted networks: add a rule with starttls = \"ignore\""
    }
    G9 = "G9", "a sender reports that this host does not offer STARTTLS, and the own record shows that it did" => {
        kind: StarttlsStripped,
        seen from: Server,
        needs: "its TLS report, and the own record of that day (smtpwatch tlsrpt import)",
        expected: &[Tlsrpt],
        evidence: Tamper,
        limits: "the granularity is one day; a sender behind NAT is not found; not raised if the own record has gaps or fewer such sessions than reported"
    }
    G10 = "G10", "policy look-ups blocked" => {
        not raised: "counted by smtpwatch_policy_refresh_failures_total; a cached policy stays in force until its max_age"
    }
    Fo1 = "FO-1", "two different copies of one range of bytes" => {
        kind: StreamTampering,
        seen from: Both,
        needs: "nothing",
        expected: &[Standard],
        evidence: Tamper,
        limits: "a device that normalises TCP leaves no copies: absence proves nothing"
    }
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
    for row in ROWS {
        let Row { id, title, seen_from, needs, evidence, limits, .. } = row;
        let kind = row.kind().map_or_else(|| "not raised".to_owned(), |kind| format!("`{kind}`"));
        let (seen_from, evidence) = (seen_from.as_str(), evidence_text(evidence));
        text.push_str(&format!("| {id} | {title} | {kind} | {seen_from} | {needs} | {evidence} | {limits} |\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_unique() {
        let mut ids: Vec<_> = ROWS.iter().map(|row| row.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ROWS.len());
    }

    #[test]
    fn identifiers_are_read_as_they_are_written() {
        for row in ROWS {
            assert_eq!(row.id.to_string().parse(), Ok(row.id));
            assert_eq!(row.id.row(), *row);
        }
        assert_eq!(RuleId::Fo1.as_str(), "FO-1");
        assert!("H1".parse::<RuleId>().is_err());
    }

    #[test]
    fn the_table_has_a_line_for_each_row() {
        assert_eq!(markdown().lines().filter(|line| line.starts_with("| ")).count(), ROWS.len() + 1);
    }
}
