//! Runs capture files through the gate and the engine of the daemon, for `smtpwatch replay` and tests. The main type
//! is [`Replay`].

use std::{path::Path, sync::Arc};

use smtpwatch_capture::{
    pcap::{self, FileReport, PcapFileError},
    userspace_gate::{CapturedFrame, Cuts, UserspaceGate},
};
use smtpwatch_common::{Counter, Encapsulation, PortSet, counters::Label};
use smtpwatch_config::Config;
use smtpwatch_core::{
    Finding, Output, Timestamp,
    engine::{SessionResult, SessionSummary},
    policy::{
        history::{History, HistoryKey, HistoryRecord},
        published::{LookupResult, list::StarttlsList},
    },
};

use crate::{Pipeline, RecordSource};

/// A result of a replay; results are in the order of the packets.
#[derive(Debug)]
pub enum Event {
    /// A finding.
    Finding(Box<Finding>),
    /// A session was judged, at this time.
    Session(SessionSummary, Timestamp),
    /// A history record changed.
    History(HistoryKey, HistoryRecord),
    /// A history record was evicted.
    HistoryForgotten(HistoryKey),
}

/// Totals over all files.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Number of files read, including partially read ones.
    pub files: u64,
    /// Number of packets read.
    pub packets: u64,
    /// Packets that could not be judged: unknown link layer, fragment, truncated, or invalid headers.
    pub unread: u64,
    /// Sessions by result, in the order of [`SessionResult::ALL`].
    pub sessions: [u64; SessionResult::ALL.len()],
    /// Gaps that affected a dialogue.
    pub gaps: u64,
    /// Connections evicted before their end was seen.
    pub evicted: u64,
    /// Number of findings.
    pub findings: u64,
    /// Records of packets with unknown direction.
    pub undirected: u64,
    /// Packets with mail in an encapsulation that is not analysed, in the order of [`Encapsulation::ALL`].
    pub encapsulated: [u64; Encapsulation::ALL.len()],
    /// Packets that the capture's snap length has cut.
    pub cuts: Cuts,
}

/// Index of the first interface of a capture file: it must differ from the loopback index of this host.
const FIRST_INTERFACE: u32 = smtpwatch_common::binding::LOOPBACK + 1;

/// One timeline over several capture files: history from one file applies to the next.
pub struct Replay {
    gate: UserspaceGate,
    pipeline: Pipeline,
    newest: Timestamp,
    summary: Summary,
}

impl Replay {
    /// Creates a replay with the rules and ports of `config` and the peers of `history`.
    #[must_use]
    pub fn new(config: &Config, history: History) -> Self {
        Self {
            gate: UserspaceGate::bounded(PortSet::new(&config.ports), config.limits.gate_flows())
                .with_local(config.local.clone()),
            pipeline: Pipeline::new(config.clone(), history, RecordSource::File),
            newest: Timestamp::default(),
            summary: Summary::default(),
        }
    }

    /// Adds a STARTTLS-Everywhere list. Other published policies are not available to a replay: current policies
    /// prove nothing about past mail.
    pub fn list(&mut self, list: StarttlsList) {
        self.pipeline.apply(LookupResult::List(Arc::new(list)), &mut |_| ());
    }

    /// Reads one file up to its end or its first damage.
    ///
    /// # Errors
    ///
    /// No packet of the file could be read.
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

    /// Ends the replay: open sessions are judged in their current state.
    pub fn finish(mut self, mut on: impl FnMut(Event)) -> Summary {
        let Self { pipeline, newest, summary, .. } = &mut self;
        pipeline.finish(*newest, &mut |output| count(summary, output, *newest, &mut on));
        for counter in Counter::ALL {
            match counter.label() {
                Label::Dropped { .. } => self.summary.unread += self.gate.counter(counter),
                Label::Packets { .. } | Label::Encapsulated(_) => {}
            }
        }
        self.summary.encapsulated = Encapsulation::ALL.map(|one| self.gate.counter(Counter::encapsulated(one)));
        self.summary.cuts = self.gate.cuts();
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
        // The input has ended: no packets are left to mute.
        Output::Gate(_) => {}
        // Replays do no look-ups and send no reports.
        Output::LookupRequest(_) | Output::Delivery(_) => {}
    }
}
