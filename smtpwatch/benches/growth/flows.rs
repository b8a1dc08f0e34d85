//! Flows open at once: processor time per session, and memory per flow.

use std::{collections::HashMap, ops::Range, rc::Rc, time::Duration};

use anyhow::ensure;
use smtpwatch_capture::userspace_gate::{CapturedFrame, UserspaceGate};
use smtpwatch_common::{Link, PortSet};
use smtpwatch_config::Config;
use smtpwatch_core::{
    Output, Timestamp,
    engine::{EvictReason, GateOrder, SessionResult},
    policy::history::History,
};
use smtpwatch_pipeline::{Pipeline, RecordSource};

use crate::{
    cpu,
    memory::{self, Owner},
    per,
    traffic::{OWN, Part, Traffic},
};

/// Packets generated in one step, outside the measured time.
const BATCH: usize = 1_024;
/// Minimum number of sessions in a measurement.
const SESSIONS: usize = 200_000;
/// Number of rounds; the fastest one counts. A million flows are replayed once, because that takes minutes.
const ROUNDS: usize = 3;
const OWNERS: [Owner; 2] = [Owner::Gate, Owner::Engine];
/// 2026-11-23T15:00:00Z, in nanoseconds.
const START: i64 = 1_795_446_000_000_000_000;
/// Time between two packets, ns.
const STEP: i64 = 1_000;

/// Results with this many flows open at once.
#[derive(Clone, Debug)]
pub struct Flows {
    pub flows: usize,
    /// Processor time per session.
    pub session: Duration,
    /// Bytes per flow that waits after the EHLO reply.
    pub dialogue: Held,
    /// Bytes per flow that waits after its handshake or its message.
    pub rest: Held,
    /// Resident memory of the process per flow, during the dialogue.
    pub resident: f64,
}

/// Bytes allocated per flow.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub gate: f64,
    pub engine: f64,
}

impl Held {
    pub fn sum(self) -> f64 {
        self.gate + self.engine
    }
}

/// Result of opening more flows than the configuration allows.
#[derive(Clone, Copy, Debug)]
pub struct Bounded {
    /// Flows that were opened.
    pub offered: usize,
    /// Flows that the configuration allows; this many were held at the end.
    pub held: usize,
    /// Flows that were evicted, each counted.
    pub evicted: usize,
    /// Bytes allocated by gate and engine.
    pub bytes: usize,
}

struct Lab {
    gate: Option<UserspaceGate>,
    pipeline: Option<Pipeline>,
    traffic: Rc<Traffic>,
    now: i64,
    busy: Duration,
    sessions: HashMap<SessionResult, usize>,
    evicted: HashMap<EvictReason, usize>,
    findings: usize,
    /// Memory of gate and engine before the first packet.
    empty: [usize; 2],
}

impl Lab {
    fn new(flows: usize) -> Self {
        let mut config = Config::default();
        config.limits.flows = flows;
        config.local = OWN.to_string().parse().into_iter().collect();
        memory::serve(Owner::Gate);
        let gate = UserspaceGate::bounded(PortSet::new(&config.ports), config.limits.gate_flows());
        memory::serve(Owner::Engine);
        let history = History::new(config.limits.peers);
        let pipeline = Pipeline::new(config, history, RecordSource::File);
        memory::serve(Owner::Other);
        Self {
            gate: Some(gate),
            pipeline: Some(pipeline),
            traffic: Rc::new(Traffic::new()),
            now: START,
            busy: Duration::ZERO,
            sessions: HashMap::new(),
            evicted: HashMap::new(),
            findings: 0,
            empty: OWNERS.map(memory::held),
        }
    }

    /// Plays one part of the sessions.
    fn play(&mut self, numbers: Range<usize>, part: Part) {
        let traffic = self.traffic.clone();
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        traffic.play(numbers, part, |packet| {
            bytes.extend_from_slice(packet);
            ends.push(bytes.len());
            if ends.len() == BATCH {
                self.feed(&bytes, &ends);
                bytes.clear();
                ends.clear();
            }
        });
        self.feed(&bytes, &ends);
    }

    fn feed(&mut self, bytes: &[u8], ends: &[usize]) {
        let Self { gate, pipeline, now, sessions, evicted, findings, .. } = self;
        let (Some(gate), Some(pipeline)) = (gate, pipeline) else { return };
        let mut orders: Vec<GateOrder> = Vec::with_capacity(8);
        let mut start = 0;
        let start_time = cpu();
        for &end in ends {
            let packet = &bytes[start..end];
            start = end;
            *now += STEP;
            let at = Timestamp(*now);
            let frame = CapturedFrame {
                link: Link::Ip,
                bytes: packet,
                wire_len: u32::try_from(packet.len()).unwrap_or(u32::MAX),
                at_ns: u64::try_from(at.0).unwrap_or(0),
                interface: 0,
                direction: None,
            };
            let mut take = |output| match output {
                Output::Gate(order) => orders.push(order),
                Output::Session(session) => *sessions.entry(session.result).or_insert(0) += 1,
                Output::Evicted(reason) => *evicted.entry(reason).or_insert(0) += 1,
                Output::Finding(_) => *findings += 1,
                Output::Lost(_)
                | Output::History(..)
                | Output::HistoryForgotten(_)
                | Output::LookupRequest(_)
                | Output::Delivery(_) => {}
            };
            memory::serve(Owner::Gate);
            gate.packet(&frame, |record| {
                memory::serve(Owner::Engine);
                pipeline.record(&record, at, "eth0", &mut take);
                memory::serve(Owner::Gate);
            });
            for order in orders.drain(..) {
                gate.order(&order);
            }
            memory::serve(Owner::Other);
        }
        self.busy += cpu().saturating_sub(start_time);
    }

    /// Number of flows that the engine holds.
    fn flows(&self) -> usize {
        self.pipeline.as_ref().map_or(0, |pipeline| pipeline.engine().flows())
    }

    fn held(&self, flows: usize) -> Held {
        let [gate, engine] = self.bytes();
        Held { gate: per(gate, flows), engine: per(engine, flows) }
    }

    /// Memory that gate and engine have allocated since the start.
    fn bytes(&self) -> [usize; 2] {
        let [gate, engine] = OWNERS.map(memory::held);
        [gate.saturating_sub(self.empty[0]), engine.saturating_sub(self.empty[1])]
    }
}

impl Drop for Lab {
    /// Resets the measurement.
    fn drop(&mut self) {
        memory::serve(Owner::Gate);
        drop(self.gate.take());
        memory::serve(Owner::Engine);
        drop(self.pipeline.take());
        memory::serve(Owner::Other);
    }
}

/// Plays sessions with `flows` of them open at once.
pub fn measure(flows: usize) -> anyhow::Result<Flows> {
    let rounds = if flows >= 1_000_000 { 1 } else { ROUNDS };
    let mut best: Option<Flows> = None;
    for _ in 0..rounds {
        let found = round(flows)?;
        eprintln!(
            "growth: {flows} flows: {:?} for a session, {:?}, then {:?}",
            found.session, found.dialogue, found.rest
        );
        let resident = best.as_ref().map_or(0.0, |best| best.resident).max(found.resident);
        best = best.filter(|best| best.session <= found.session).or(Some(found));
        // Memory left by an earlier round is reused and would not show.
        if let Some(best) = &mut best {
            best.resident = resident;
        }
    }
    best.ok_or_else(|| anyhow::anyhow!("no round"))
}

fn round(flows: usize) -> anyhow::Result<Flows> {
    // SAFETY: it touches no memory that is in use.
    unsafe { libc::malloc_trim(0) };
    let resident_before = resident();
    let mut lab = Lab::new(flows);
    // The first wave grows tables and memory, and is not timed.
    lab.play(0..flows, Part::Dialogue);
    ensure!(lab.flows() == flows, "{} flows are open", lab.flows());
    let dialogue = lab.held(flows);
    let resident = per(resident().saturating_sub(resident_before), flows);
    lab.play(0..flows, Part::Rest);
    let rest = lab.held(flows);
    lab.play(0..flows, Part::End);
    let waves = (SESSIONS / flows).clamp(1, 20);
    lab.busy = Duration::ZERO;
    for wave in 1..=waves {
        let numbers = wave * flows..(wave + 1) * flows;
        for part in [Part::Dialogue, Part::Rest, Part::End] {
            lab.play(numbers.clone(), part);
        }
    }
    let sessions = (waves + 1) * flows;
    let expected = HashMap::from([(SessionResult::Tls, sessions / 4 * 3), (SessionResult::Plaintext, sessions / 4)]);
    ensure!(lab.sessions == expected && lab.evicted.is_empty() && lab.findings == 0, "not what was to be measured");
    let count = u32::try_from(waves * flows)?;
    Ok(Flows { flows, session: lab.busy / count, dialogue, rest, resident })
}

/// Opens `offered` flows with a configuration that allows a quarter of them.
pub fn bounded(offered: usize) -> anyhow::Result<Bounded> {
    let held = offered / 4;
    let mut lab = Lab::new(held);
    // Sequentially: with a full table, the next SYN would evict a flow that is not yet answered.
    for number in 0..offered {
        lab.play(number..number + 1, Part::Dialogue);
    }
    let evicted = lab.evicted.get(&EvictReason::Capacity).copied().unwrap_or(0);
    let bytes = lab.bytes().iter().sum();
    ensure!(lab.flows() == held, "{} flows are open", lab.flows());
    Ok(Bounded { offered, held, evicted, bytes })
}

/// Bytes of this process in memory (proc(5), `statm`).
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<usize>().ok()).unwrap_or(0);
    pages * 4096
}
