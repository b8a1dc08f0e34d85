//! One step of the reassembly target: a segment near where its stream stands, or what the owner of a connection does.

use arbitrary::Arbitrary;

/// A step. All fields are bytes or pairs of them, so that a changed byte changes one of them.
#[derive(Arbitrary, Clone, Copy, Debug, Default)]
pub struct Operation {
    /// Bits of [`what`].
    pub what: u8,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number, from where the sender's stream stands.
    pub ahead: i16,
    /// Acknowledgment number, from where the peer's stream stands.
    pub ack: i16,
    /// Bytes of payload.
    pub length: u16,
    /// Bytes of it that stand before those captured.
    pub offset: u8,
    /// Where the payload is taken from: other numbers give other bytes.
    pub fill: u8,
    /// Milliseconds since the step before. Of the first step also which side this host is: 0 unknown, 1 the client, 2 the server, modulo 3.
    pub after: u8,
}

/// Bits of [`Operation::what`].
pub mod what {
    /// From the server, else from the client.
    pub const SERVER: u8 = 1;
    /// The sender's stream moves on to the end of this segment.
    pub const ADVANCE: u8 = 2;
    /// The payload was not captured.
    pub const HOLE: u8 = 4;
    /// The events are left where they are.
    pub const UNDRAINED: u8 = 8;
    /// The verdict stands ([`smtpwatch_core::flow::Connection::settle`]) after the segment.
    pub const SETTLE: u8 = 16;
    /// The connection is closed from outside after the segment.
    pub const CLOSE: u8 = 32;
    /// `ahead` counts thousands.
    pub const FAR: u8 = 64;
    /// A hundred segments of this kind, each two bytes further, with a gap of one between them.
    pub const COMB: u8 = 128;
}

/// The bytes that [`arbitrary`] reads as this list.
#[must_use]
pub fn encode(operations: &[Operation]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for operation in operations {
        bytes.push(1); // there is one more
        bytes.extend([operation.what, operation.flags]);
        bytes.extend(operation.ahead.to_le_bytes());
        bytes.extend(operation.ack.to_le_bytes());
        bytes.extend(operation.length.to_le_bytes());
        bytes.extend([operation.offset, operation.fill, operation.after]);
    }
    bytes
}
