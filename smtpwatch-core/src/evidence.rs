//! The evidence of a finding, kept because the packets are gone: cleartext bytes of both directions, a row for each
//! packet, and what was known of the peer. It is bounded and free of secrets: the parser overwrites them byte by byte
//! beforehand, so lengths stay true.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{Side, Timestamp, policy::history::HistoryRecord};

/// What stands for each byte that is not shown.
pub const BLANK: u8 = b'*';

/// The evidence of one finding.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EvidenceBundle {
    /// Bytes of both directions, each direction in the order of its stream, at most [`EXHIBIT_OCTETS`] of each. Message
    /// bodies and encrypted bytes are not among them.
    ///
    /// [`EXHIBIT_OCTETS`]: crate::limits::EXHIBIT_OCTETS
    pub octets: Vec<ByteRange>,
    /// Bytes in cleartext that did not fit.
    pub octets_left_out: u64,
    /// A row for each packet that the gate let through, in the order in which they were seen: the first half of
    /// [`EXHIBIT_PACKETS`] and the newest.
    ///
    /// [`EXHIBIT_PACKETS`]: crate::limits::EXHIBIT_PACKETS
    pub packets: Vec<Packet>,
    /// Packets between those halves that did not fit.
    pub packets_left_out: u64,
    /// Ranges of bytes of which two different copies were seen (FO-1).
    pub copies: Vec<ConflictingSegments>,
    /// What had been seen of the peer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<Known>,
    /// Policies that wanted TLS for this session, the one that speaks first; a local rule among them.
    pub policies: Vec<AppliedPolicy>,
    /// Packets that the kernel could not hand over since the start, by reason. Empty in a replay.
    pub losses: BTreeMap<String, u64>,
}

/// Bytes that stand side by side in one stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ByteRange {
    /// Who sent them.
    pub from: Side,
    /// TCP sequence number of the first one.
    pub seq: u32,
    /// The bytes, what is secret overwritten by [`BLANK`].
    pub octets: Octets,
}

/// The header of one packet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Packet {
    /// When the hook saw it.
    pub time: Timestamp,
    /// Who sent it.
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
    /// Window field, not scaled.
    pub window: u16,
    /// TCP options as on the wire.
    pub options: Octets,
}

/// Two different copies of one range of bytes, as long as each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConflictingSegments {
    /// Whose stream.
    pub from: Side,
    /// TCP sequence number of the first byte.
    pub seq: u32,
    /// The copy that came first. Where the range may hold a secret every byte of both is blank.
    pub first: Octets,
    /// The copy that came later.
    pub other: Octets,
    /// When the later copy was seen.
    pub time: Timestamp,
    /// Time to live (hop limit) of the later copy.
    pub ttl: u8,
}

/// What had been seen of the peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Known {
    /// Address, or the name by which it was known.
    pub peer: String,
    /// The row of history as it stood when the finding was made.
    pub record: HistoryRecord,
}

/// A policy that wanted TLS.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AppliedPolicy {
    /// `rule`, `dane`, `mta-sts` or `list`.
    pub source: String,
    /// `enforce`, `testing`, or `hint` of a list that has expired.
    pub mode: String,
    /// The domain or mail host that it speaks for; empty of a local rule.
    pub subject: String,
    /// What it says, in words.
    pub detail: String,
}

/// Bytes, in base64 in JSON. They are not printed: `Debug` shows how many there are.
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
