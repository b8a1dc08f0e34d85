//! What the engine says and what it orders.

use serde::Serialize;

use super::delivery::Delivery;
use crate::{
    Finding, FlowKey, Role, Side,
    finding::StarttlsState,
    flow::GapCause,
    judge::certificate::Verdict,
    policy::{
        history::{Forgotten, HistoryKey, HistoryRecord},
        published::{LookupRequest, demand::Source},
    },
};

/// What the engine wants done. Drain [`Engine::poll`] after every call that changes it.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// A claim with its proof.
    Finding(Box<Finding>),
    /// A session ended, or is judged and goes on unseen.
    Session(SessionSummary),
    /// Tell the gate how little of this flow is still needed.
    Gate(GateOrder),
    /// The rest of a dialogue cannot be followed: its verdict is unknown.
    Lost(LossCause),
    /// A flow left the table before its end was seen.
    Evicted(EvictReason),
    /// A row of history changed and wants to be kept.
    History(HistoryKey, HistoryRecord),
    /// Something is to be looked up; the answer comes back by [`Engine::learn`](super::Engine::learn).
    LookupRequest(LookupRequest),
    /// An outbound session, as it counts in a TLS report: one for each policy domain.
    Delivery(Box<Delivery>),
    /// History had no room: this row was forgotten in memory and must be forgotten in the store.
    HistoryForgotten(Forgotten),
}

/// The one message against the stream of data: from the engine back to the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GateOrder {
    /// The flow.
    pub flow: FlowKey,
    /// What may be left out.
    pub action: GateAction,
}

/// What the gate may leave out of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GateAction {
    /// Everything but SYN, FIN and RST: the verdict stands.
    Mute,
    /// A message body follows from the client until the server speaks (354 was answered).
    MuteBody,
    /// Payload of `from` before sequence number `until` (BDAT chunk).
    SkipUntil {
        /// The sender of what is skipped.
        from: Side,
        /// First sequence number that is wanted again.
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
    /// More would have had to be held than the reassembly may hold.
    Window,
    /// The gate has sent of this flow what it may: a dialogue in cleartext without end.
    Budget,
    /// Commands and replies cannot be told which belongs to which.
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
    /// Its peer has its share of the table in open connections; see [`crate::limits::PEER_SHARE`].
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

/// How a session came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionResult {
    /// TLS began, and nothing shows that it failed.
    Tls,
    /// Mail or credentials went in cleartext.
    Plaintext,
    /// Nothing was handed over: refused, or the client left.
    Rejected,
    /// A gap, one side only, or joined midstream: nothing can be said.
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

/// What the metrics need to know of one session.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SessionSummary {
    /// The connection.
    #[serde(skip)]
    pub flow: FlowKey,
    /// Which end this host is.
    pub role: Role,
    /// How it came out.
    pub result: SessionResult,
    /// The offer in the last EHLO reply in cleartext; [`StarttlsState::Unknown`] where none was seen.
    pub starttls: StarttlsState,
    /// STARTTLS was sent.
    pub starttls_sent: bool,
    /// Messages accepted in cleartext.
    pub messages: u32,
    /// SASL exchanges begun in cleartext, with the code of their last reply (0: none seen), in order.
    pub auth: Vec<(String, u16)>,
    /// SMTP was spoken in cleartext: at least one command or reply was understood.
    pub smtp: bool,
    /// Gaps that hurt.
    pub gaps: u32,
    /// Whose policy the server's certificate was compared with, and how that came out.
    #[serde(skip)]
    pub certificate: Option<(Source, Verdict)>,
}
