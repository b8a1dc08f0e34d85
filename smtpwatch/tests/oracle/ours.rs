//! smtpwatch's reading: header parsing, reassembly and dialogue. It runs without the gate, so that it has message
//! bodies like the other readers.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use smtpwatch_capture::pcap;
use smtpwatch_common::{ParsedPacket, PortSet, Scratch, Slice, headers};
use smtpwatch_core::{
    FlowKey, Role, Segment, Side, TcpFlags,
    finding::TranscriptLine,
    flow::{Connection, FlowEvent, SynClaims},
    smtp::Session,
};

use crate::{Reading, UNKNOWN};

/// Flows of a file. Of several connections between the same end points only the first is compared.
pub type Flows = BTreeMap<FlowKey, Flow>;

/// One flow.
pub struct Flow {
    connection: Connection,
    session: Session,
    ended: bool,
    lines: usize,
    /// The bytes of each side, in the causal order that the acknowledgments show.
    pub stream: Vec<(Side, Vec<u8>)>,
    /// smtpwatch's result for the flow.
    pub reading: Reading,
}

/// Reads a file.
pub fn read(path: &Path, ports: &BTreeSet<u16>) -> Flows {
    let ports = PortSet::new(&ports.iter().copied().collect::<Vec<_>>());
    let mut flows = Flows::new();
    let mut scratch = Box::new(Scratch::EMPTY);
    pcap::read(path, |captured| {
        let packet = Slice::new(captured.bytes, captured.wire_len);
        let parsed = headers::parse_headers(&packet, captured.link, |port| ports.contains(port), || Some(&mut scratch));
        let ParsedPacket::Segment(scratch) = parsed else { return };
        let found = &scratch.segment;
        if !found.is_whole(&packet) {
            return;
        }
        let start = usize::try_from(found.payload).expect("an offset");
        let end = start + usize::try_from(found.length).expect("a length");
        let segment = Segment {
            at: captured.at,
            flow: FlowKey { client: found.key.client(), server: found.key.server() },
            from: match found.from {
                smtpwatch_common::Side::Client => Side::Client,
                smtpwatch_common::Side::Server => Side::Server,
            },
            role: Role::Client,
            direction: None,
            interface: "",
            interface_index: 0,
            seq: found.seq,
            ack: found.ack,
            flags: TcpFlags(found.flags),
            urgent: 0,
            window: found.window,
            ttl: found.ttl,
            ip_id: found.ip_id,
            checksum_right: None,
            options: &[],
            length: found.length,
            unusual: false,
            offset: 0,
            payload: captured.bytes.get(start..end.min(captured.bytes.len())).unwrap_or(&[]),
            body_ended: false,
            budget_spent: false,
            sender: None,
        };
        match flows.get_mut(&segment.flow) {
            Some(flow) => flow.push(&segment),
            None => drop(flows.insert(segment.flow, Flow::new(&segment))),
        }
    })
    .expect("a capture file");
    for flow in flows.values_mut() {
        flow.connection.close(flow.connection.last_activity());
        flow.drain();
        flow.session.finish();
        flow.note();
    }
    flows
}

impl Flow {
    fn new(first: &Segment<'_>) -> Self {
        let connection = Connection::new(first, None, SynClaims::default());
        let session = Session::new(connection.midstream());
        let mut flow =
            Self { connection, session, ended: false, lines: 0, stream: Vec::new(), reading: Reading::default() };
        flow.drain();
        flow
    }

    /// Whether both sides sent data.
    pub fn two_sided(&self) -> bool {
        [Side::Client, Side::Server].iter().all(|side| self.stream.iter().any(|(from, _)| from == side))
    }

    fn push(&mut self, segment: &Segment<'_>) {
        self.ended |= self.connection.is_new_connection(segment);
        if !self.ended {
            self.connection.push(segment);
            self.drain();
        }
    }

    fn drain(&mut self) {
        let mut data = Vec::new();
        while let Some(event) = self.connection.poll() {
            match event {
                FlowEvent::Data { from, at, offset, bytes, .. } => data.push((from, at, offset, Some(bytes.to_vec()))),
                FlowEvent::Gap { from, at, length, .. } => data.push((from, at, length, None)),
                FlowEvent::Finished { .. } | FlowEvent::Reset { .. } => {}
            }
        }
        for (from, at, offset, bytes) in data {
            let Some(bytes) = bytes else {
                self.session.gap(from, offset);
                continue;
            };
            let mut offset = offset;
            // Line by line, so that each transcript line is read before it is evicted.
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                self.session.data(from, at, offset, piece);
                offset += piece.len() as u64;
                while self.session.poll().is_some() {}
                self.note();
            }
            self.stream.push((from, bytes));
        }
    }

    /// Reads the new lines of the transcript.
    fn note(&mut self) {
        let transcript = self.session.seen.transcript();
        let left_out = transcript
            .iter()
            .find_map(|line| line.text.strip_prefix('[')?.strip_suffix(" lines left out]")?.parse::<usize>().ok());
        let total = left_out.map_or(transcript.len(), |count| count + transcript.len() - 1);
        for line in &transcript[transcript.len() - (total - self.lines).min(transcript.len())..] {
            self.reading.take(line);
        }
        self.lines = total;
        if let Some(capabilities) = &self.session.seen.capabilities {
            self.reading.keywords = capabilities.keywords().map(str::to_owned).collect();
        }
    }
}

impl Reading {
    fn take(&mut self, line: &TranscriptLine) {
        match line.from {
            // Text in brackets describes omitted bytes: a SASL response, a word without the form of a verb, a body,
            // TLS.
            Side::Client if line.text.contains(" bytes]") && line.text.starts_with('[') => {
                if self.codes.last() != Some(&334) {
                    self.verbs.push(UNKNOWN.to_owned());
                }
            }
            Side::Client if line.text.starts_with('[') => {}
            Side::Client => {
                let verb = line.text.split_whitespace().next().unwrap_or_default();
                self.verbs.push(verb.to_ascii_uppercase());
            }
            Side::Server if line.text.starts_with('[') || line.text.as_bytes().get(3) == Some(&b'-') => {}
            Side::Server => self.codes.push(line.text.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0)),
        }
    }
}
