//! The finding: its fields, their closed vocabularies, and its severity.
//!
//! The engine creates each [`Finding`]; the incident stage completes it, and the outputs, the store and the web
//! interface read it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    Role, Side, Timestamp,
    evidence::EvidenceBundle,
    policy::published::demand::{Source, Weight},
};

/// Version of the JSON form of a [`Finding`].
pub const SCHEMA_VERSION: u32 = 1;

/// Declares an enum of names that are part of the public format.
macro_rules! vocabulary {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        pub enum $name {
            $($(#[$vmeta])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in JSON, on the command line and in metric labels.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| {
                    let names: Vec<_> = Self::ALL.iter().map(|value| value.as_str()).collect();
                    format!("expected one of {}", names.join(", "))
                })
            }
        }
    };
}

pub(crate) use vocabulary;

vocabulary! {
    /// Kind of a finding. The names are stable: they are metric labels and alert selectors.
    Kind {
        /// The EHLO reply lacks STARTTLS although a policy or the history says it is offered.
        StarttlsStripped = "starttls-stripped",
        /// A capability line was overwritten in place.
        StarttlsMasked = "starttls-masked",
        /// STARTTLS was offered, sent, and not granted.
        StarttlsRefused = "starttls-refused",
        /// STARTTLS was offered and not used by a peer that is known to use it.
        StarttlsUnused = "starttls-unused",
        /// A verb arrived, or was quoted by the server, that was not sent.
        CommandRewritten = "command-rewritten",
        /// EHLO was refused by a peer that is known to support it.
        EhloDowngraded = "ehlo-downgraded",
        /// No TLS after the go-ahead.
        TlsHandshakeFailed = "tls-handshake-failed",
        /// Delivery in cleartext on a new connection after a failed handshake.
        DowngradeRetry = "downgrade-retry",
        /// TLS version or suite below the minimum or below the history.
        TlsDowngraded = "tls-downgraded",
        /// The certificate contradicts a policy or the history.
        CertificateMismatch = "certificate-mismatch",
        /// Cleartext client bytes between STARTTLS and the first TLS record.
        CommandInjection = "command-injection",
        /// Cleartext server bytes between the go-ahead and the first TLS record.
        ResponseInjection = "response-injection",
        /// Credentials sent in cleartext.
        AuthPlaintext = "auth-plaintext",
        /// A challenge-response exchange in cleartext.
        AuthExchangePlaintext = "auth-exchange-plaintext",
        /// AUTH offered before TLS.
        AuthOfferedPlaintext = "auth-offered-plaintext",
        /// Mail accepted in cleartext although a policy demands TLS.
        PolicyViolation = "policy-violation",
        /// Bytes, lengths or timing that only a device on the path explains.
        StreamTampering = "stream-tampering",
    }
}

impl Kind {
    /// A credential, or what it can be guessed from, crossed in cleartext.
    #[must_use]
    pub const fn is_login(self) -> bool {
        matches!(self, Self::AuthPlaintext | Self::AuthExchangePlaintext)
    }

    /// As the server, this host's own listener sends the deciding bytes.
    #[must_use]
    pub const fn is_of_own_listener(self) -> bool {
        matches!(self, Self::AuthOfferedPlaintext | Self::StarttlsRefused)
    }

    /// Whether a policy about STARTTLS can strengthen the evidence of this kind.
    #[must_use]
    pub const fn is_about_starttls(self) -> bool {
        match self {
            Self::StarttlsStripped
            | Self::StarttlsMasked
            | Self::StarttlsRefused
            | Self::StarttlsUnused
            | Self::CommandRewritten
            | Self::EhloDowngraded
            | Self::TlsHandshakeFailed
            | Self::DowngradeRetry
            | Self::TlsDowngraded
            | Self::CertificateMismatch
            | Self::PolicyViolation => true,
            Self::CommandInjection
            | Self::ResponseInjection
            | Self::AuthPlaintext
            | Self::AuthExchangePlaintext
            | Self::AuthOfferedPlaintext
            | Self::StreamTampering => false,
        }
    }
}

vocabulary! {
    /// Strength of the evidence (docs/threats.md, "Evidence and outcome"). Ordered: later is stronger.
    Evidence {
        /// Unusual, but honest systems do it too.
        Suspicious = "suspicious",
        /// The peer's history contradicts the session.
        Regression = "regression",
        /// A published or local policy contradicts the session.
        Policy = "policy",
        /// The bytes are those that an editor on the path leaves.
        Tamper = "tamper",
    }
}

vocabulary! {
    /// What the session lost (docs/threats.md, "Evidence and outcome"). Ordered: later is worse.
    Outcome {
        /// Nothing: the session ended, or continued under TLS.
        Attempt = "attempt",
        /// Envelope addresses crossed in cleartext.
        Envelope = "envelope",
        /// The message was accepted in cleartext.
        Content = "content",
        /// Credentials crossed in cleartext.
        Credential = "credential",
    }
}

// `judge::severity` derives it.
vocabulary! {
    /// Severity of a finding, by how soon an operator should look. Ordered: later is more severe.
    Severity {
        /// For information only.
        Info = "info",
        /// Look when there is time.
        Low = "low",
        /// Look this week.
        Medium = "medium",
        /// Look today.
        High = "high",
        /// Look now.
        Critical = "critical",
    }
}

/// One claim with its evidence: one JSON line. The field order is part of the public format.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// Version of the JSON form: [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Identifier in UUIDv7 form; empty until the incident stage assigns it.
    pub id: String,
    /// When the deciding segment was seen.
    pub time: Timestamp,
    /// Kind of the finding.
    pub kind: Kind,
    /// Identifier of the matching row of docs/threats.md.
    // Not a `RuleId`: a finding of another version may name a row that this one does not have.
    pub rule: Cow<'static, str>,
    /// Severity, by how soon an operator should look.
    pub severity: Severity,
    /// Strength of the evidence.
    pub evidence: Evidence,
    /// What the session lost.
    pub outcome: Outcome,
    /// Role of this host.
    pub role: Role,
    /// The connection.
    pub flow: FlowInfo,
    /// The server, or for role `server` the client, with the name that it gave.
    pub peer: PeerInfo,
    /// What was expected, and by which source.
    pub expected: Expected,
    /// What was seen.
    pub observed: Observed,
    /// The dialogue in cleartext, with secrets blanked.
    pub transcript: Vec<TranscriptLine>,
    /// Gaps in the reassembled streams of this session.
    pub gaps: u32,
    /// Further indicators, one line each, with numbers.
    #[serde(rename = "proof", default)]
    pub indicators: Vec<String>,
    /// Local owner of the sending socket, if this host is the client and the kernel reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<Sender>,
    /// Version and inputs of the judgement; empty until the incident stage fills it in.
    #[serde(default)]
    pub provenance: Provenance,
    /// The evidence. It is stored and exported separately, not in the JSON line.
    #[serde(skip)]
    pub exhibit: Option<Box<EvidenceBundle>>,
}

/// Whether this reply to AUTH accepts the login: 2yz, except the 221 with which a server ends the session (RFC 4954 §4).
#[must_use]
pub const fn is_accepted(code: u16) -> bool {
    code / 100 == 2 && code != 221
}

impl Finding {
    /// An unknown client caused the finding, and this host's server did not accept what it sent.
    #[must_use]
    pub fn is_by_stranger(&self) -> bool {
        self.peer.stranger && !self.observed.reply.is_some_and(is_accepted)
    }
}

/// Owner of the socket that sent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sender {
    /// User id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Id of the cgroup (v2); zero if the kernel did not report it.
    pub cgroup_id: u64,
    /// Path of the cgroup below its root; empty if it was gone before the look-up.
    #[serde(default)]
    pub cgroup: String,
    /// systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Kubernetes pod, by its UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Container id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// Program version, configuration and policies that produced a finding. The same three reproduce it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Provenance {
    /// Version of smtpwatch.
    pub version: String,
    /// SHA-256 of the configuration in force, in hexadecimal.
    pub config_sha256: String,
    /// SHA-256 of the policies that applied to this session (see [`EvidenceBundle::policies`]), in hexadecimal.
    pub policy_sha256: String,
}

/// The connection of a finding.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FlowInfo {
    /// Client as `address:port`, IPv6 as `[address]:port`.
    pub client: String,
    /// Server as `address:port`, IPv6 as `[address]:port`.
    pub server: String,
    /// Interface name; empty if a capture does not report it.
    pub interface: String,
    /// Community ID v1; empty until the incident stage fills it in.
    pub community_id: String,
}

/// The peer, with the name that it gave.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PeerInfo {
    /// Host name from the greeting or the EHLO reply (role `client`), or from EHLO/HELO (role `server`).
    pub name: String,
    /// First line of the greeting.
    pub greeting: String,
    /// This host is the server, and the client is unknown: its address has never used TLS here, and it is neither local
    /// nor in `trusted_clients`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stranger: bool,
}

/// What was expected of the peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Expected {
    /// Whether STARTTLS was expected to be offered and used.
    pub starttls: bool,
    /// `rule`, `history`, `dane`, `mta-sts`, `list`, `standard`, `tlsrpt` (a TLS report of another host contradicts
    /// this host's own record), or `none`.
    pub source: Cow<'static, str>,
    /// `enforce` or `testing`, for a published policy; a policy in testing mode lowers the severity (RFC 8461 §5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Cow<'static, str>>,
    /// The reason, in words and numbers.
    pub detail: String,
}

impl Expected {
    /// STARTTLS is expected, as `source` says.
    #[must_use]
    pub const fn starttls(source: ExpectedSource, detail: String) -> Self {
        Self { starttls: true, source: Cow::Borrowed(source.as_str()), mode: None, detail }
    }

    /// Whether this source says it.
    #[must_use]
    pub fn is_from(&self, source: ExpectedSource) -> bool {
        self.source == source.as_str()
    }

    /// Whether a published policy in testing mode says it.
    #[must_use]
    pub fn is_testing(&self) -> bool {
        self.mode.as_deref() == Weight::Testing.mode()
    }
}

vocabulary! {
    /// Source of an expectation.
    ExpectedSource {
        /// A `[[rule]]` of the configuration.
        Rule = "rule",
        /// TLSA records proven by DNSSEC.
        Dane = "dane",
        /// MTA-STS.
        MtaSts = "mta-sts",
        /// The STARTTLS-Everywhere list.
        List = "list",
        /// This host's own sessions with the peer.
        History = "history",
        /// A standard, which applies to every peer.
        Standard = "standard",
        /// A TLS report of another host contradicts this host's own record.
        Tlsrpt = "tlsrpt",
        /// Nothing is known about the peer: the finding rests on the observation alone.
        Nothing = "none",
    }
}

impl From<Source> for ExpectedSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Dane => Self::Dane,
            Source::MtaSts => Self::MtaSts,
            Source::List => Self::List,
        }
    }
}

/// What was seen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Observed {
    /// Capability lines of the last EHLO reply in cleartext, in order.
    pub capabilities: Vec<String>,
    /// State of the STARTTLS offer.
    pub starttls: StarttlsState,
    /// SASL mechanism, for findings about AUTH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<String>,
    /// Code of the server's reply to the deciding command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<u16>,
}

vocabulary! {
    /// State of the STARTTLS offer in the last EHLO reply in cleartext.
    StarttlsState {
        /// The reply has the keyword.
        Offered = "offered",
        /// The reply does not have the keyword.
        Absent = "absent",
        /// A line of the reply was overwritten in place.
        Masked = "masked",
        /// STARTTLS was offered, sent, and not granted.
        Refused = "refused",
        /// No complete EHLO reply was seen.
        Unknown = "unknown",
    }
}

/// One line of the dialogue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TranscriptLine {
    /// The sending side.
    pub from: Side,
    /// The line without its end, at most [`crate::limits::TRANSCRIPT_LINE`] bytes, as text: bytes that are not
    /// printable ASCII or valid UTF-8 are escaped.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_may_name_a_rule_that_this_version_does_not_have() {
        let finding = serde_json::json!({
            "schema_version": 1, "id": "", "time": "2026-11-23T15:04:05.123456Z", "kind": "starttls-stripped",
            "rule": "Z99", "severity": "high", "evidence": "regression", "outcome": "envelope", "role": "client",
            "flow": { "client": "", "server": "", "interface": "", "community_id": "" },
            "peer": { "name": "", "greeting": "" },
            "expected": { "starttls": true, "source": "fleet", "detail": "" },
            "observed": { "capabilities": [], "starttls": "absent" },
            "transcript": [], "gaps": 0, "proof": ["a line"],
        });
        let read: Finding = serde_json::from_value(finding.clone()).expect("a finding");
        assert_eq!((&*read.rule, &*read.expected.source, read.indicators.len()), ("Z99", "fleet", 1));
        let written = serde_json::to_value(&read).expect("serialises");
        for key in ["rule", "expected", "proof"] {
            assert_eq!(written[key], finding[key]);
        }
    }

    #[test]
    fn a_published_source_has_one_name() {
        for source in Source::ALL {
            assert_eq!(ExpectedSource::from(source).as_str(), source.as_str());
        }
    }
}
