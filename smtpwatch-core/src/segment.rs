//! The only input of the engine: [`Segment`], one TCP segment of a monitored flow that passed the gate.
//!
//! The capture code and the pcapng reader build segments and give them to [`Engine::handle`](crate::Engine::handle).

use std::{
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};
pub use smtpwatch_common::Direction;

use crate::Timestamp;

/// Identity of one TCP connection: its end points. The server is the end with the monitored port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FlowKey {
    /// The end that opened the connection.
    pub client: SocketAddr,
    /// The end with the mail port.
    pub server: SocketAddr,
}

impl Hash for FlowKey {
    // Every segment is hashed by this key: hash addresses and ports as numbers, without the other fields of a socket
    // address.
    fn hash<H: Hasher>(&self, state: &mut H) {
        for ip in [self.client.ip(), self.server.ip()] {
            match ip {
                IpAddr::V4(v4) => state.write_u32(v4.to_bits()),
                IpAddr::V6(v6) => state.write_u128(v6.to_bits()),
            }
        }
        state.write_u32(u32::from(self.client.port()) << 16 | u32::from(self.server.port()));
    }
}

/// One end of a connection, in SMTP terms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Sends commands.
    Client,
    /// Sends replies.
    Server,
}

impl Side {
    /// The name in JSON and in text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The other end.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

impl From<smtpwatch_common::Side> for Side {
    fn from(side: smtpwatch_common::Side) -> Self {
        match side {
            smtpwatch_common::Side::Client => Self::Client,
            smtpwatch_common::Side::Server => Self::Server,
        }
    }
}

impl From<Side> for smtpwatch_common::Side {
    fn from(side: Side) -> Self {
        match side {
            Side::Client => Self::Client,
            Side::Server => Self::Server,
        }
    }
}

/// The end of the connection that this host is (docs/threats.md, "Which end sees what").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// This host sends mail: replies arrive after any tampering on the path.
    Client,
    /// This host receives mail: commands arrive after any tampering on the path.
    Server,
}

impl Role {
    /// Both roles, in label order.
    pub const ALL: [Self; 2] = [Self::Client, Self::Server];

    /// The name in JSON, configuration and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// This host's own side of a connection.
    #[must_use]
    pub const fn side(self) -> Side {
        match self {
            Self::Client => Side::Client,
            Self::Server => Side::Server,
        }
    }
}

/// The flag byte of a TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is significant.
    pub const URG: Self = Self(0x20);

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

impl fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Self::SYN, 'S'), (Self::ACK, '.'), (Self::PSH, 'P'), (Self::FIN, 'F'), (Self::RST, 'R')];
        names.iter().filter(|(flag, _)| self.contains(*flag)).try_for_each(|(_, name)| write!(f, "{name}"))
    }
}

/// One TCP segment, or one chunk of a large segment.
///
/// A segment without captured bytes (`payload` empty, `length` greater than zero) reports that bytes passed which the
/// gate did not copy, by order of the engine: a message body, or TLS.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// When the hook saw the packet.
    pub at: Timestamp,
    /// The connection.
    pub flow: FlowKey,
    /// The sending side.
    pub from: Side,
    /// Role of this host, derived from the direction at the hook.
    pub role: Role,
    /// Direction through this host's interface; it decides how far the segment is trusted (see
    /// [`smtpwatch_common::binding`]). `None` for a capture without directions.
    pub direction: Option<Direction>,
    /// Name of the interface; empty if a capture does not report it.
    pub interface: &'a str,
    /// Index of the interface; zero for a capture.
    pub interface_index: u32,
    /// Sequence number of the first payload byte of the *segment* (of the SYN itself if that flag is set).
    pub seq: u32,
    /// Acknowledgment number; meaningful with [`TcpFlags::ACK`].
    pub ack: u32,
    /// Flags of the TCP header.
    pub flags: TcpFlags,
    /// Urgent pointer; meaningful with [`TcpFlags::URG`].
    pub urgent: u16,
    /// Window field in bytes, not scaled.
    pub window: u16,
    /// IPv4 time to live or IPv6 hop limit.
    pub ttl: u8,
    /// IPv4 identification; zero for IPv6.
    pub ip_id: u16,
    /// TCP options as on the wire (0 to 40 bytes).
    pub options: &'a [u8],
    /// Whether the TCP checksum is correct; `None` if that is unknown: the hardware fills it in, or not all bytes were
    /// captured.
    pub checksum_right: Option<bool>,
    /// The packet arrived with IPv4 options or IPv6 extension headers, for which this host's stack may discard it
    /// (EV-6, EV-9).
    pub unusual: bool,
    /// Payload bytes of the whole segment on the wire.
    pub length: u32,
    /// Offset of `payload` in the segment's payload.
    pub offset: u32,
    /// The captured payload bytes.
    pub payload: &'a [u8],
    /// The client's message body had ended before `payload`: these bytes are commands.
    pub body_ended: bool,
    /// The flow's budget at the gate is spent: the gate drops the rest of the flow.
    pub budget_spent: bool,
    /// Local owner of the sending socket, at egress, if the kernel reported it.
    pub sender: Option<SocketOwner>,
}

/// Owner of a local socket, as reported by the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketOwner {
    /// User id; `None` if no socket was found.
    pub uid: Option<u32>,
    /// Id of the socket's cgroup (v2); zero if there is none.
    pub cgroup: u64,
}
