//! Encodes records as the kernel does, independently of its code: the table in the documentation of
//! `smtpwatch_common::record`.

use smtpwatch_common::record::{Header, OPTIONS_MAX};

/// The bytes of a record.
#[must_use]
pub fn encode(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(Header::SIZE + payload.len());
    for number in [header.timestamp, header.flow, header.cgroup] {
        bytes.extend(number.to_ne_bytes());
    }
    for number in [header.uid, header.interface] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend(header.key.to_bytes());
    for number in [header.seq, header.ack, header.length, header.offset] {
        bytes.extend(number.to_ne_bytes());
    }
    for number in [header.captured, header.window, header.ip_id, header.flags] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend([
        header.abi,
        header.direction,
        header.from,
        header.ip_version,
        header.tcp_flags,
        header.ttl,
        header.options_len,
        header.data_offset,
    ]);
    for number in [header.checksum, header.urgent] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend(header.options);
    assert_eq!(bytes.len(), Header::SIZE, "the layout's table");
    assert_eq!(header.options.len(), OPTIONS_MAX);
    bytes.extend(payload);
    bytes
}
