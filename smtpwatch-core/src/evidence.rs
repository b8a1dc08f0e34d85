//! The evidence of a finding: [`EvidenceBundle`] holds cleartext bytes of both directions, the packet headers, and what
//! was known about the peer. The engine builds it because the packets are gone when the finding is read; the store
//! keeps it and the web interface exports it.
//!
//! The bundle is bounded and free of secrets. The parser overwrites secrets byte by byte beforehand, so lengths stay
//! true.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{Side, Timestamp, policy::history::HistoryRecord};

/// Replaces each byte that is not shown.
pub const BLANK: u8 = b'*';

/// The evidence of one finding.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EvidenceBundle {
    /// Bytes of both directions, each direction in stream order, at most [`EXHIBIT_OCTETS`] of each. Message bodies and
    /// encrypted bytes are not included.
    ///
    /// [`EXHIBIT_OCTETS`]: crate::limits::EXHIBIT_OCTETS
    pub octets: Vec<ByteRange>,
    /// Number of cleartext bytes that did not fit.
    pub octets_left_out: u64,
    /// Headers of the packets that passed the gate, in the order in which they were seen: the first half of
    /// [`EXHIBIT_PACKETS`] and the newest half.
    ///
    /// [`EXHIBIT_PACKETS`]: crate::limits::EXHIBIT_PACKETS
    pub packets: Vec<Packet>,
    /// Number of packets between the two halves that did not fit.
    pub packets_left_out: u64,
    /// Ranges of bytes with two different copies (FO-1).
    pub copies: Vec<ConflictingSegments>,
    /// History of the peer before this session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<Known>,
    /// Policies that demand TLS for this session, in order of precedence, including a local rule.
    pub policies: Vec<AppliedPolicy>,
    /// Packets that the kernel dropped since the start of the program, by reason. Empty in a replay.
    pub losses: BTreeMap<String, u64>,
}

/// Consecutive bytes of one stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ByteRange {
    /// The sending side.
    pub from: Side,
    /// TCP sequence number of the first byte.
    pub seq: u32,
    /// The bytes; secrets are overwritten by [`BLANK`].
    pub octets: Octets,
}

/// The header of one packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Packet {
    /// When the hook saw the packet.
    pub time: Timestamp,
    /// The sending side.
    pub from: Side,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// The flag byte of the TCP header (RFC 9293 §3.1).
    pub flags: u8,
    /// Payload bytes on the wire.
    pub length: u32,
    /// IPv4 time to live or IPv6 hop limit.
    pub ttl: u8,
    /// IPv4 identification; zero for IPv6.
    pub ip_id: u16,
    /// Window field in bytes, not scaled.
    pub window: u16,
    /// TCP options as on the wire.
    pub options: Octets,
}

/// Two different copies of one range of bytes, of the same length.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConflictingSegments {
    /// The sender of both copies.
    pub from: Side,
    /// TCP sequence number of the first byte.
    pub seq: u32,
    /// The copy that came first. If the range may hold a secret, every byte of both copies is blank.
    pub first: Octets,
    /// The copy that came later.
    pub other: Octets,
    /// When the later copy was seen.
    pub time: Timestamp,
    /// Time to live (hop limit) of the later copy.
    pub ttl: u8,
}

/// History of the peer at the time of a finding.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Known {
    /// Address of the peer, or the name by which it is known.
    pub peer: String,
    /// The history record when the finding was made.
    pub record: HistoryRecord,
}

/// A policy that demands TLS.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AppliedPolicy {
    /// `rule`, `dane`, `mta-sts` or `list`.
    pub source: String,
    /// `enforce`, `testing`, or `hint` for a list that has expired.
    pub mode: String,
    /// The domain or mail host to which the policy applies; empty for a local rule.
    pub subject: String,
    /// The content of the policy, in words.
    pub detail: String,
}

/// Bytes; base64 in JSON. `Debug` prints only their number.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Octets(pub Vec<u8>);

impl std::ops::Deref for Octets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} octets]", self.0.len())
    }
}

impl Serialize for Octets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Octets {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Octets".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "contentEncoding": "base64" })
    }
}
