//! Plays sessions to the engine, interleaved by time, and records the findings with what each session really was.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use smtpwatch_core::{
    Engine, FlowKey, Output, Role, Settings, Timestamp,
    cause::Cause,
    engine::SessionResult,
    finding::{Kind, Severity},
    policy::history::History,
};

use super::{habits::Truth, scene::SECOND};
use crate::{packet::Dice, scenario::Dialogue};

/// What a session is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label {
    pub truth: Truth,
    /// Index in [`super::habits::HABITS`], or in [`super::attacks::ATTACKS`] for an attack.
    pub habit: usize,
    /// The peer's number.
    pub peer: u32,
    /// Number of this session among those of its peer under attack, from 1; zero if it is none of them.
    pub attacked: usize,
    /// The same among those of all peers.
    pub of_all: usize,
    pub begun: i64,
}

/// A finding, with what its session is.
#[derive(Clone, Debug)]
pub struct Raised {
    pub label: Label,
    pub kind: Kind,
    pub rule: String,
    pub severity: Severity,
    pub at: i64,
    pub role: Role,
    pub peer: IpAddr,
    pub cause: Cause,
}

/// What the monitor misses or sees in another order, in sessions of 1,000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monitor {
    /// Sessions in which one packet in fifty is not captured.
    pub lossy: usize,
    /// Sessions in which neighbouring packets are captured in the wrong order.
    pub reordered: usize,
    /// Sessions in which packets are captured twice.
    pub duplicated: usize,
    /// Sessions that travel in segments of a few bytes.
    pub cut: usize,
    /// Sessions in which every second packet is captured.
    pub sampled: usize,
}

/// An engine at work.
pub struct Replay {
    engine: Engine,
    due: BinaryHeap<Reverse<(i64, u64)>>,
    open: HashMap<u64, Open>,
    serial: u64,
    labels: HashMap<FlowKey, Label>,
    /// The keys of `labels`, oldest first.
    order: VecDeque<FlowKey>,
    pub raised: Vec<Raised>,
    /// Sessions by result, in the order of [`SessionResult::ALL`].
    pub results: [u64; 4],
    /// A finding whose session is not known: an error of this module.
    pub unlabelled: u64,
    /// Time of the newest packet.
    now: i64,
}

struct Open {
    talk: Dialogue,
    next: usize,
}

/// Client ports, used in turn.
const PORTS: u64 = 60_000;
/// Labels kept; a session is judged at the latest 15 minutes after its last packet.
const LABELS: usize = 40_000;

impl Replay {
    /// A replay with room for the history of this many peers.
    pub fn new(peers: usize) -> Self {
        Self {
            engine: Engine::new(Settings::default(), Vec::new(), History::new(peers)),
            due: BinaryHeap::new(),
            open: HashMap::new(),
            serial: 0,
            labels: HashMap::new(),
            order: VecDeque::new(),
            raised: Vec::new(),
            results: [0; 4],
            unlabelled: 0,
            now: 0,
        }
    }

    /// Adds a session that begins at `label.begun`; every packet before that time is played first.
    pub fn add(&mut self, mut talk: Dialogue, label: Label) {
        self.advance(label.begun);
        self.serial += 1;
        let port = 1024 + u16::try_from(self.serial % PORTS).expect("below 60,000");
        talk.flow.client.set_port(port);
        let Some(first) = talk.packets.first().map(|packet| packet.at) else { return };
        for packet in &mut talk.packets {
            packet.at += label.begun - first;
        }
        if self.labels.insert(talk.flow, label).is_none() {
            self.order.push_back(talk.flow);
        }
        if self.order.len() > LABELS
            && let Some(oldest) = self.order.pop_front()
        {
            self.labels.remove(&oldest);
        }
        self.due.push(Reverse((label.begun, self.serial)));
        self.open.insert(self.serial, Open { talk, next: 0 });
    }

    /// Plays what happens before this time.
    pub fn advance(&mut self, until: i64) {
        let mut ticked = 0;
        while let Some(&Reverse((at, serial))) = self.due.peek()
            && at < until
        {
            self.due.pop();
            self.now = at;
            // As the daemon, which ticks while packets arrive.
            if at - ticked >= SECOND {
                ticked = at;
                self.engine.tick(Timestamp(at));
                self.drain();
            }
            let Some(open) = self.open.get_mut(&serial) else { continue };
            let packet = &open.talk.packets[open.next];
            self.engine.handle(&open.talk.segment(packet));
            open.next += 1;
            match open.talk.packets.get(open.next) {
                Some(next) => self.due.push(Reverse((next.at.max(at), serial))),
                None => _ = self.open.remove(&serial),
            }
            self.drain();
        }
    }

    /// Plays the rest and ends the input.
    pub fn finish(&mut self) {
        self.advance(i64::MAX);
        self.engine.finish(Timestamp(self.now));
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll() {
            if let Output::Session(session) = &output {
                let place = SessionResult::ALL.iter().position(|result| *result == session.result);
                self.results[place.expect("in the list")] += 1;
            }
            let Output::Finding(finding) = output else { continue };
            let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
            let flow = FlowKey { client: address(&finding.flow.client), server: address(&finding.flow.server) };
            let Some(label) = self.labels.get(&flow) else {
                self.unlabelled += 1;
                continue;
            };
            let peer = if finding.role == Role::Client { flow.server } else { flow.client };
            self.raised.push(Raised {
                label: *label,
                kind: finding.kind,
                rule: finding.rule.to_string(),
                severity: finding.severity,
                at: finding.time.0,
                role: finding.role,
                peer: peer.ip(),
                cause: Cause::of(&finding).expect("endpoints"),
            });
        }
    }
}

impl Monitor {
    /// Applies the monitor's faults to a session.
    pub fn capture(&self, mut talk: Dialogue, dice: &mut Dice) -> Dialogue {
        let mut is_in = |share: usize| dice.below(1000) < share;
        let (lossy, reordered) = (is_in(self.lossy), is_in(self.reordered));
        let (duplicated, cut, sampled) = (is_in(self.duplicated), is_in(self.cut), is_in(self.sampled));
        if cut {
            talk = talk.cut(1 + dice.below(30));
        }
        if lossy {
            talk.packets.retain(|_| !dice.one_in(50));
        }
        if sampled {
            talk.packets.retain(|_| dice.one_in(2));
        }
        if duplicated {
            let copies = |packet: &crate::scenario::OwnedSegment| vec![packet.clone(); 1 + usize::from(dice.one_in(5))];
            talk.packets = talk.packets.iter().flat_map(copies).collect();
        }
        // The handshake keeps its order: it shows which side is the client.
        for place in 4..talk.packets.len() {
            if reordered && dice.one_in(4) {
                talk.packets.swap(place - 1, place);
                let at = talk.packets[place - 1].at;
                talk.packets[place - 1].at = talk.packets[place].at;
                talk.packets[place].at = at;
            }
        }
        talk
    }
}
