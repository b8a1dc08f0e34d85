//! One step of the reassembly target: a segment near its stream's position, or a call by the user of the connection.

use arbitrary::Arbitrary;

/// A step. All fields are bytes or pairs of bytes, so that a changed byte changes one field.
#[derive(Arbitrary, Clone, Copy, Debug, Default)]
pub struct Operation {
    /// Bits of [`what`].
    pub what: u8,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number, relative to the sender's next one.
    pub ahead: i16,
    /// Acknowledgment number, relative to the peer's next sequence number.
    pub ack: i16,
    /// Length of the payload, bytes.
    pub length: u16,
    /// Number of payload bytes before the captured ones.
    pub offset: u8,
    /// Start offset of the payload in the source bytes: other numbers yield other bytes.
    pub fill: u8,
    /// Milliseconds since the previous step. In the first step, the value modulo 3 also says which side this host is: 0
    /// unknown, 1 the client, 2 the server.
    pub after: u8,
}

/// Bits of [`Operation::what`].
pub mod what {
    /// From the server, else from the client.
    pub const SERVER: u8 = 1;
    /// The sender's stream advances to the end of this segment.
    pub const ADVANCE: u8 = 2;
    /// The payload was not captured.
    pub const HOLE: u8 = 4;
    /// The events are not drained.
    pub const UNDRAINED: u8 = 8;
    /// The verdict is final ([`smtpwatch_core::flow::Connection::settle`]) after the segment.
    pub const SETTLE: u8 = 16;
    /// The connection is closed after the segment.
    pub const CLOSE: u8 = 32;
    /// `ahead` is in units of a thousand.
    pub const FAR: u8 = 64;
    /// A hundred segments of this kind, each two bytes further, with gaps of one byte.
    pub const COMB: u8 = 128;
}

/// The bytes that [`arbitrary`] decodes to this list.
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
