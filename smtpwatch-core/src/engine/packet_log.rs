//! Packet log of a flow, as evidence: the first half of [`EXHIBIT_PACKETS`] headers, and the newest half.

use std::collections::VecDeque;

use crate::{
    Segment, Side, Timestamp,
    evidence::{Octets, Packet},
    limits::EXHIBIT_PACKETS,
};

/// Capacity of the log from the second packet on: a dialogue up to the EHLO reply has about as many packets.
const DIALOGUE: usize = 8;

/// Packet headers of one flow. Every open flow has a log, so the first records are compact.
#[derive(Debug, Default)]
pub(super) struct PacketLog {
    first: Vec<PacketRecord>,
    /// TCP options of the first records, concatenated.
    options: Vec<u8>,
    rest: Option<Box<Rest>>,
}

#[derive(Debug, Default)]
struct Rest {
    newest: VecDeque<Packet>,
    left_out: u64,
}

#[derive(Clone, Copy, Debug)]
struct PacketRecord {
    at: Timestamp,
    seq: u32,
    ack: u32,
    length: u32,
    window: u16,
    ip_id: u16,
    flags: u8,
    ttl: u8,
    options: u8,
    from: Side,
}

impl PacketLog {
    pub(super) fn push(&mut self, segment: &Segment<'_>) {
        // A large segment arrives in several chunks; log only the first.
        if segment.offset > 0 {
            return;
        }
        let row = PacketRecord {
            at: segment.at,
            seq: segment.seq,
            ack: segment.ack,
            length: segment.length,
            window: segment.window,
            ip_id: segment.ip_id,
            flags: segment.flags.0,
            ttl: segment.ttl,
            // TCP options have at most 40 bytes.
            options: u8::try_from(segment.options.len()).unwrap_or(0),
            from: segment.from,
        };
        if self.first.len() < EXHIBIT_PACKETS / 2 {
            if self.first.capacity() == 0 {
                // An unanswered SYN needs only one record.
                self.first.reserve_exact(1);
            } else if self.first.len() == self.first.capacity() && self.first.len() < DIALOGUE {
                self.first.reserve_exact(DIALOGUE - self.first.len());
            }
            self.first.push(row);
            self.options.extend_from_slice(segment.options.get(..row.options.into()).unwrap_or_default());
            return;
        }
        let rest = self.rest.get_or_insert_default();
        if rest.newest.len() >= EXHIBIT_PACKETS / 2 {
            rest.newest.pop_front();
            rest.left_out += 1;
        }
        rest.newest.push_back(row.packet(segment.options));
    }

    /// All packets in order, and the number of packets between the halves that were dropped.
    pub(super) fn packets(&self) -> (Vec<Packet>, u64) {
        let mut options = &self.options[..];
        let mut packets = Vec::with_capacity(self.first.len());
        for row in &self.first {
            let (own, rest) = options.split_at(usize::from(row.options).min(options.len()));
            packets.push(row.packet(own));
            options = rest;
        }
        let Some(rest) = &self.rest else { return (packets, 0) };
        packets.extend(rest.newest.iter().cloned());
        (packets, rest.left_out)
    }
}

impl PacketRecord {
    fn packet(&self, options: &[u8]) -> Packet {
        Packet {
            time: self.at,
            from: self.from,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            length: self.length,
            ttl: self.ttl,
            ip_id: self.ip_id,
            window: self.window,
            options: Octets(options.to_vec()),
        }
    }
}
