//! Runs capture files through the gate and engine of the daemon.

use std::{path::Path, sync::Arc};

use smtpwatch_capture::{
    pcap::{self, FileReport, PcapFileError},
    userspace_gate::{CapturedFrame, UserspaceGate},
};
use smtpwatch_common::{Counter, PortSet, counters::Label};
use smtpwatch_config::Config;
use smtpwatch_core::{
    Finding, Output, Timestamp,
    engine::{SessionResult, SessionSummary},
    policy::{
        history::{History, HistoryKey, HistoryRecord},
        published::{LookupResult, list::StarttlsList},
    },
};

use crate::{Pipeline, Source};

/// What a replay makes of the packets, in order.
#[derive(Debug)]
pub enum Event {
    /// A finding.
    Finding(Box<Finding>),
    /// A session was judged, at this time.
    Session(SessionSummary, Timestamp),
    /// A row of history changed.
    History(HistoryKey, HistoryRecord),
    /// A row of history made room.
    HistoryForgotten(HistoryKey),
}

/// Counts over all files.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Files read, also in part.
    pub files: u64,
    /// Packets read.
    pub packets: u64,
    /// Packets that could not be judged: unknown link layer, fragment, cut short, or headers that make no sense.
    pub unread: u64,
    /// Sessions by result, in the order of [`SessionResult::ALL`].
    pub sessions: [u64; SessionResult::ALL.len()],
    /// Gaps that hurt.
    pub gaps: u64,
    /// Connections given up before their end was seen.
    pub evicted: u64,
    /// Findings.
    pub findings: u64,
    /// Records of packets of which it is not known which way they went.
    pub undirected: u64,
}

/// Index of the first interface of a capture file: none of them is the loopback of this host.
const FIRST_INTERFACE: u32 = smtpwatch_common::binding::LOOPBACK + 1;

/// One timeline over several capture files: what is learned in one judges the next.
pub struct Replay {
    gate: UserspaceGate,
    pipeline: Pipeline,
    newest: Timestamp,
    summary: Summary,
}

impl Replay {
    /// Judges by the rules and ports of `config` and by `history`.
    #[must_use]
    pub fn new(config: &Config, history: History) -> Self {
        Self {
            gate: UserspaceGate::bounded(PortSet::new(&config.ports), config.limits.gate_flows())
                .with_local(config.local.clone()),
            pipeline: Pipeline::new(config.clone(), history, Source::File),
            newest: Timestamp::default(),
            summary: Summary::default(),
        }
    }

    /// Judges by this list too. Other published policies are not known to a replay: those of today say nothing of mail of then.
    pub fn list(&mut self, list: StarttlsList) {
        self.pipeline.learn(LookupResult::List(Arc::new(list)), &mut |_| ());
    }

    /// Reads one file, as far as it can be read.
    ///
    /// # Errors
    ///
    /// Nothing could be read of it.
    pub fn file(&mut self, path: &Path, mut on: impl FnMut(Event)) -> Result<FileReport, PcapFileError> {
        let Self { gate, pipeline, newest, summary } = self;
        let mut orders = Vec::new();
        let report = pcap::read(path, |packet| {
            *newest = (*newest).max(packet.at);
            let mut take = |output| match output {
                Output::Gate(order) => orders.push(order),
                other => count(summary, other, *newest, &mut on),
            };
            let frame = CapturedFrame {
                link: packet.link,
                bytes: packet.bytes,
                wire_len: packet.wire_len,
                at_ns: u64::try_from(packet.at.0).unwrap_or(0),
                interface: FIRST_INTERFACE + packet.interface_index,
                direction: packet.direction,
            };
            let mut undirected = 0;
            gate.packet(&frame, |record| {
                undirected += u64::from(record.header.direction().is_none() && record.header.offset == 0);
                pipeline.record(&record, packet.at, packet.interface, &mut take);
            });
            summary.undirected += undirected;
            for order in orders.drain(..) {
                gate.order(&order);
            }
        })?;
        self.summary.files += 1;
        self.summary.packets += report.packets;
        self.summary.unread += report.skipped;
        Ok(report)
    }

    /// The end: open sessions are judged as they stand.
    pub fn finish(mut self, mut on: impl FnMut(Event)) -> Summary {
        let Self { pipeline, newest, summary, .. } = &mut self;
        pipeline.finish(*newest, &mut |output| count(summary, output, *newest, &mut on));
        for counter in Counter::ALL {
            match counter.label() {
                Label::Dropped { .. } => self.summary.unread += self.gate.counter(counter),
                Label::Packets { .. } => {}
            }
        }
        self.summary
    }
}

fn count(summary: &mut Summary, output: Output, at: Timestamp, on: &mut impl FnMut(Event)) {
    match output {
        Output::Finding(finding) => {
            summary.findings += 1;
            on(Event::Finding(finding));
        }
        Output::Session(session) => {
            let result = SessionResult::ALL.iter().position(|result| *result == session.result);
            if let Some(count) = result.and_then(|index| summary.sessions.get_mut(index)) {
                *count += 1;
            }
            on(Event::Session(session, at));
        }
        Output::Lost(_) => summary.gaps += 1,
        Output::Evicted(_) => summary.evicted += 1,
        Output::History(key, record) => on(Event::History(key, record)),
        Output::HistoryForgotten(row) => on(Event::HistoryForgotten(row.key)),
        // Nothing is left out any more once the input has ended.
        Output::Gate(_) => {}
        // Recorded traffic is judged by what is known: nothing is looked up, nothing is reported.
        Output::LookupRequest(_) | Output::Delivery(_) => {}
    }
}
