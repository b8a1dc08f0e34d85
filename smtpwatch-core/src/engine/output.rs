//! Outputs of the engine: findings, session summaries, and orders to the gate, the store and the policy look-up.
//!
//! [`Engine::poll`](super::Engine::poll) returns them; the daemon and the capture reader dispatch them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    Finding, FlowKey, Role, Side, Timestamp,
    finding::{Kind, StarttlsState},
    flow::GapCause,
    judge::certificate::Verdict,
    policy::{
        history::{Forgotten, HistoryKey, HistoryRecord},
        published::{LookupRequest, demand::Source},
    },
    smtp::TlsVersion,
};

/// One action for the caller. Drain [`Engine::poll`](super::Engine::poll) after every call that changes the engine.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// A finding with its evidence.
    Finding(Box<Finding>),
    /// A session ended, or was judged and continues unmonitored.
    Session(SessionSummary),
    /// Reduces what the gate forwards of a flow.
    Gate(GateOrder),
    /// The rest of a dialogue cannot be followed: its result is unknown.
    Lost(LossCause),
    /// A flow was dropped before its end was seen.
    Evicted(EvictReason),
    /// A history record changed and must be stored.
    History(HistoryKey, HistoryRecord),
    /// A look-up is needed; the caller returns the result through [`Engine::apply`](super::Engine::apply).
    LookupRequest(LookupRequest),
    /// Result of an outbound session for a TLS report: one for each policy domain.
    Delivery(Box<Delivery>),
    /// The history was full: this record was evicted from memory and must be deleted from the store.
    HistoryForgotten(Forgotten),
}

/// Order from the engine to the gate about one flow. No other message flows against the direction of the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GateOrder {
    /// The flow to which the order applies.
    pub flow: FlowKey,
    /// What the gate may drop.
    pub action: GateAction,
}

/// What the gate may drop of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GateAction {
    /// Everything but SYN, FIN and RST: the verdict is final.
    Mute,
    /// A message body from the client, up to the server's next reply (354 was sent).
    MuteBody,
    /// Payload of `from` before sequence number `until` (BDAT chunk).
    SkipUntil {
        /// The sender of the skipped payload.
        from: Side,
        /// The first sequence number that is needed again.
        until: u32,
    },
}

/// Why a dialogue cannot be followed any further.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LossCause {
    /// The capture began in the middle of the stream.
    CaptureStart,
    /// Bytes were not captured.
    Missing,
    /// The reassembly limit was exceeded.
    Window,
    /// The flow's budget at the gate is spent: a cleartext dialogue of extreme length.
    Budget,
    /// Replies cannot be matched with commands.
    OutOfStep,
}

impl LossCause {
    /// Every cause, for metric labels.
    pub const ALL: [Self; 5] = [Self::CaptureStart, Self::Missing, Self::Window, Self::Budget, Self::OutOfStep];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CaptureStart => "capture_start",
            Self::Missing => "lost_event",
            Self::Window => "window",
            Self::Budget => "budget",
            Self::OutOfStep => "out_of_step",
        }
    }
}

impl From<GapCause> for LossCause {
    fn from(cause: GapCause) -> Self {
        match cause {
            GapCause::CaptureStart => Self::CaptureStart,
            GapCause::Lost => Self::Missing,
            GapCause::Window => Self::Window,
        }
    }
}

/// Why a flow left the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EvictReason {
    /// Silent for longer than [`crate::limits::FLOW_IDLE`].
    Idle,
    /// The table was full.
    Capacity,
    /// The peer's network exceeds its share of open connections; see [`crate::limits::PEER_SHARE`].
    PeerQuota,
}

impl EvictReason {
    /// Every reason, for metric labels.
    pub const ALL: [Self; 3] = [Self::Idle, Self::Capacity, Self::PeerQuota];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Capacity => "capacity",
            Self::PeerQuota => "peer_quota",
        }
    }
}

/// Result of a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionResult {
    /// TLS began, and nothing shows that it failed.
    Tls,
    /// Mail or credentials went in cleartext.
    Plaintext,
    /// No mail or credentials were transferred: refused, or the client left.
    Rejected,
    /// Not observable: a gap, only one side seen, or joined midstream.
    Unknown,
}

impl SessionResult {
    /// Every result, for metric labels.
    pub const ALL: [Self; 4] = [Self::Tls, Self::Plaintext, Self::Rejected, Self::Unknown];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Plaintext => "plaintext",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
        }
    }
}

/// Summary of one session, for the metrics.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SessionSummary {
    /// Key of the connection.
    #[serde(skip)]
    pub flow: FlowKey,
    /// Role of this host.
    pub role: Role,
    /// Result of the session.
    pub result: SessionResult,
    /// The STARTTLS offer in the last cleartext EHLO reply; [`StarttlsState::Unknown`] if no reply was seen.
    pub starttls: StarttlsState,
    /// The client sent STARTTLS.
    pub starttls_sent: bool,
    /// Messages that the server accepted in cleartext.
    pub messages: u32,
    /// SASL mechanisms used in cleartext, in order, each with the code of its last reply (0: none seen).
    pub auth: Vec<(String, u16)>,
    /// At least one cleartext command or reply was parsed.
    pub smtp: bool,
    /// Gaps that interrupted the dialogue.
    pub gaps: u32,
    /// The policy source with which the server's certificate was compared, and the verdict.
    #[serde(skip)]
    pub certificate: Option<(Source, Verdict)>,
    /// Kinds of the findings that a rule with an end suppressed, each once.
    #[serde(skip)]
    pub exempted: Vec<Kind>,
    /// The negotiated version; `None` unless the result is [`SessionResult::Tls`].
    #[serde(skip)]
    pub tls_version: Option<TlsVersion>,
}

/// Result of one outbound session for one policy domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// When the session ended.
    pub at: Timestamp,
    /// The policy domain: the recipient domain, or for DANE the TLSA base domain.
    pub domain: String,
    /// Type of the policy that applied to the session.
    pub policy: PolicyType,
    /// The policy as a report quotes it: each line of an MTA-STS policy, or each TLSA record.
    pub policy_strings: Vec<String>,
    /// MX host patterns of an MTA-STS policy.
    pub mx_hosts: Vec<String>,
    /// What failed; `None`: TLS was established, as far as a monitor can observe.
    pub failure: Option<ResultType>,
    /// Detail of the failure, such as `tls-alert-40`.
    pub reason: Option<String>,
    /// Address of this host.
    pub sending: IpAddr,
    /// Address of the mail host.
    pub receiving: IpAddr,
    /// Name of the mail host: from the policy index if known there, else from its own greeting or EHLO reply.
    pub receiving_host: String,
    /// The name in the mail host's EHLO reply; empty without one.
    pub receiving_helo: String,
}

/// `policy-type` of a report.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyType {
    /// DANE.
    Tlsa,
    /// MTA-STS.
    Sts,
    /// Neither DANE nor MTA-STS.
    NoPolicyFound,
}

/// `result-type` of a report, limited to what a monitor on the path can observe (RFC 8460 §4.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultType {
    /// STARTTLS was not offered, or was refused.
    StarttlsNotSupported,
    /// The certificate is not valid for the expected name.
    CertificateHostMismatch,
    /// The certificate has expired.
    CertificateExpired,
    /// The certificate is not signed by a trusted issuer.
    CertificateNotTrusted,
    /// TLS failed in another way.
    ValidationFailure,
    /// No TLSA record matches, or none is usable.
    TlsaInvalid,
    /// DNSSEC does not prove the TLSA records.
    DnssecInvalid,
    /// DANE was required and no TLSA records exist.
    DaneRequired,
    /// The policy could not be fetched.
    StsPolicyFetchError,
    /// The policy is not a valid MTA-STS policy.
    StsPolicyInvalid,
    /// The certificate of the policy host is not valid.
    StsWebpkiInvalid,
}
