//! The engine: owns the flow table, feeds each segment to its flow, and turns verdicts into outputs. [`Engine`] is the
//! main type, and its documentation says how to use it.
//!
//! This file leads a segment to its flow and to what its session asks for. The rest of the engine, by idea:
//!
//! - `lifecycle`: the states of a flow, from its first segment to its last wait; `transitions`: how it moves between them
//! - `timers`: the time limits of all flows
//! - `lookups`: published policies that must be looked up before a verdict
//! - `verdict`: claims held back and raised; `record`: what is remembered of a session
//! - `flow`: the data of one flow; `table`, `arena`, `quota`: all flows
//! - `output`, `delivery`: what the caller gets

mod arena;
mod delivery;
mod flow;
mod lifecycle;
mod lookups;
mod output;
mod packet_log;
mod quota;
mod record;
mod table;
mod timers;
mod transitions;
mod verdict;

use std::{collections::VecDeque, sync::Arc, time::Duration};

pub use self::output::{
    Delivery, EvictReason, GateAction, GateOrder, LossCause, Output, PolicyType, ResultType, SessionResult,
    SessionSummary,
};
use smtpwatch_common::Admission;

use self::{
    arena::FlowId,
    flow::Flow,
    quota::Quota,
    table::Table,
    timers::{Timer, TimerTable},
    verdict::Urgency,
};
use crate::{
    Role, Segment, Side, TcpFlags, Timestamp,
    flow::{CloseCause, FlowEvent, SynClaims},
    limits,
    policy::{
        failures::FailedHandshakes,
        history::{History, Strength},
        published::Published,
        rule::{Network, Rule},
        scope::Scope,
    },
    smtp::{SessionEvent, TlsPhase},
};

/// Parameters of the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Thresholds from which history counts as evidence.
    pub strength: Strength,
    /// Maximum number of tracked flows; the least recently active flow is evicted. See [`limits::FLOWS`].
    pub flows: usize,
    /// The caller executes the look-ups of [`Output::LookupRequest`].
    pub lookups: bool,
    /// Load balancers and filters whose PROXY header is trusted. From any other address the header is an unproven
    /// claim, and the client is the address that connects.
    pub trusted_proxies: Vec<Network>,
    /// Networks whose clients are known, whatever they have done here before: their refused logins are this site's own.
    pub trusted_clients: Vec<Network>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            strength: Strength::default(),
            flows: limits::FLOWS,
            lookups: false,
            trusted_proxies: Vec::new(),
            trusted_clients: Vec::new(),
        }
    }
}

/// The detection engine: TCP segments in, findings out. It reads no clock and does no I/O.
///
/// # Use
///
/// 1. Call [`Self::handle`] for each segment.
/// 2. After each call that takes `&mut self`, call [`Self::poll`] until it returns `None`, and carry out each
///    [`Output`]. Their order is the order of events; a caller that reorders them may, for example, store an older
///    history record over a newer one.
/// 3. In live operation, call [`Self::tick`] about once a second, also while no segment arrives. A reader of captures
///    does not call it.
/// 4. When a look-up that [`Output::LookupRequest`] requested is done, call [`Self::apply`] with the result. An answer
///    may come late or never: a verdict waits for it at most
///    [`LOOKUP_TIMEOUT`](crate::policy::published::LOOKUP_TIMEOUT). Results that were not requested are accepted too,
///    for example those of an earlier run.
/// 5. At the end of the input, call [`Self::finish`] once. Each open session gets its final verdict.
///
/// The time of the engine is the newest time of any call; an older time does not turn it back.
///
/// # What a call may cause
///
/// | call | outputs |
/// |---|---|
/// | `handle` | all of them: the segment may end its flow, evict another one, and advance time |
/// | `tick` | findings whose deadline has passed, and the verdicts on flows that time has ended |
/// | `apply` | look-ups that follow from the answer, and the verdicts that have waited for it |
/// | `finish` | the verdicts on all flows; no look-ups are waited for |
/// | `reconfigure`, `history_mut` | none |
///
/// For one flow, [`Output::Finding`] may come several times, also after [`Output::Session`], when its severity rises or its
/// outcome gets worse.
/// [`Output::Session`] comes at most once, after the outputs of the final verdict and the history. A flow without
/// payload has none.
pub struct Engine {
    settings: Settings,
    /// Newest time of any call.
    now: Timestamp,
    /// The input has ended: no verdict waits for a look-up.
    finishing: bool,
    outputs: VecDeque<Output>,

    // What sessions are judged against.
    rules: Vec<Rule>,
    history: History,
    failures: FailedHandshakes,
    published: Published,
    /// One scope for each role of this host, in the order of [`Role`].
    scopes: [Scope; 2],

    // The flows.
    flows: Table,
    timers: TimerTable,
    quota: Quota,

    // Caches.
    /// Interface of the newest flow.
    interface: Arc<str>,
    hasher: foldhash::fast::RandomState,
}

/// Minimum interval between two restarts of a flow's idle timer, so that a busy flow does not pay for one per segment.
const TOUCH_INTERVAL: Duration = Duration::from_secs(10);

impl Engine {
    /// Creates an engine with its local rules, in order of precedence, and the stored history.
    #[must_use]
    pub fn new(settings: Settings, rules: Vec<Rule>, history: History) -> Self {
        Self {
            now: Timestamp::default(),
            finishing: false,
            outputs: VecDeque::new(),
            rules,
            history,
            failures: FailedHandshakes::default(),
            published: Published::new(settings.lookups),
            scopes: Role::ALL.map(Scope::new),
            flows: Table::default(),
            timers: TimerTable::default(),
            quota: Quota::new(settings.flows),
            interface: Arc::default(),
            hasher: foldhash::fast::RandomState::default(),
            settings,
        }
    }

    /// Replaces the strength of history, the rules (in order of precedence), the trusted proxies and the trusted clients.
    /// They apply to open sessions too.
    pub fn reconfigure(
        &mut self,
        strength: Strength,
        rules: Vec<Rule>,
        trusted_proxies: Vec<Network>,
        trusted_clients: Vec<Network>,
    ) {
        self.settings.strength = strength;
        self.settings.trusted_proxies = trusted_proxies;
        self.settings.trusted_clients = trusted_clients;
        self.rules = rules;
    }

    /// Processes one segment. Drain [`Self::poll`] after it.
    pub fn handle(&mut self, segment: &Segment<'_>) {
        self.now = self.now.max(segment.at);
        self.fire_timers();
        let mut found = self.flows.find(&segment.flow);
        let mut claims = SynClaims::default();
        if let Some(id) = found {
            let flow = &mut self.flows[id];
            let refuted = flow.is_refuted_by(segment);
            if !refuted && matches!(flow.admit(segment), Admission::Forged | Admission::Duplicate) {
                // The gate has already counted it.
                return;
            }
            // A connection begins with the SYN or SYN-ACK of this host's side, whatever arrived before it.
            let begins =
                segment.flags.contains(TcpFlags::SYN) && segment.from == flow.role.side() && !flow.is_witnessed();
            if refuted || begins || flow.connection.is_new_connection(segment) {
                if !refuted {
                    claims = flow.connection.take_claims();
                }
                self.end(id, segment.at);
                found = None;
            }
        }
        let id = if let Some(id) = found {
            let flow = &mut self.flows[id];
            flow.push(segment);
            if self.now.since(flow.last_touched) >= TOUCH_INTERVAL {
                self.touch(id);
            }
            id
        } else if segment.flags.contains(TcpFlags::SYN) || segment.length > 0 {
            self.make_room();
            let interface = self.interface(segment.interface);
            let id = self.flows.insert(Flow::new(segment, interface, claims, self.now));
            self.timers.arm(Timer::Handshake, id, self.now);
            self.touch(id);
            id
        } else {
            // A last segment of a flow that was already judged, or of a flow never seen: it carries no information.
            return;
        };
        let flow = &mut self.flows[id];
        if segment.body_ended
            && let Some(offset) = flow.connection.offset_at(Side::Client, segment.seq.wrapping_add(segment.offset))
        {
            flow.session.body_ended(offset);
        }
        if flow.lifecycle.is_opening() && flow.completes_handshake(segment) && !self.grant(id) {
            self.outputs.push_back(Output::Evicted(EvictReason::PeerQuota));
            self.end(id, segment.at);
            return;
        }
        self.drain(id, segment.at);
        let flow = &mut self.flows[id];
        if !flow.connection.conflicts().is_empty() {
            flow.session.conflicting_retransmission(flow.connection.conflicts());
        }
        if flow.connection.is_undecided() {
            flow.session.distrust(flow.role.side().peer());
        }
        if segment.budget_spent {
            let known = segment.direction.is_some() && segment.from != flow.role.side();
            if known && flow.session.distrust(segment.from) || !known && flow.session.gap(segment.from, 0) {
                self.outputs.push_back(Output::Lost(LossCause::Budget));
            }
        }
        match (flow.connection.closed(), flow.lifecycle.reset()) {
            (Some(CloseCause::Finished), _) => self.end(id, segment.at),
            (Some(CloseCause::Reset), None) => self.begin_reset(id, segment.at),
            (None, Some(_)) => self.revoke_reset(id),
            (Some(CloseCause::Reset), Some(_)) | (None, None) => {}
        }
    }

    /// Advances real time: ends silent flows, and raises claims that were held back for [`limits::VERDICT_DEADLINE`],
    /// because an operator waits for them. Do not call it for a capture: there, time passes with the segments, and each
    /// claim waits for the outcome of its session. Drain [`Self::poll`] after it.
    pub fn tick(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        self.fire_verdict_deadlines();
        self.fire_timers();
    }

    /// Ends the input and every flow. Drain [`Self::poll`] after it.
    pub fn finish(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        self.finishing = true;
        while let Some(waiting) = self.timers.first_of(&[Timer::PolicyAfterClose]) {
            self.resume(waiting.id);
        }
        let mut ids: Vec<_> = self.flows.iter().map(|(id, flow)| (flow.last_touched, flow.key, id)).collect();
        ids.sort_unstable();
        for (.., id) in ids {
            self.end(id, self.now);
        }
    }

    /// The next output, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Number of flows in the table.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The history of all peers.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// Mutable access to the history, for corrections.
    pub const fn history_mut(&mut self) -> &mut History {
        &mut self.history
    }

    /// The published policies that are known.
    #[must_use]
    pub const fn published(&self) -> &Published {
        &self.published
    }

    /// Delivers the flow's ordered bytes to its session, and carries out the events that the session returns.
    fn drain(&mut self, id: FlowId, at: Timestamp) {
        let flow = &mut self.flows[id];
        let (mut decided, mut recipient_named) = (false, false);
        while let Some(event) = flow.connection.poll() {
            match event {
                FlowEvent::Data { from, at, offset, bytes, .. } => flow.session.data(from, at, offset, bytes),
                FlowEvent::Gap { from, length, cause, .. } => {
                    if flow.session.gap(from, length) {
                        self.outputs.push_back(Output::Lost(cause.into()));
                    }
                }
                FlowEvent::Finished { from, at } => flow.session.ended(from, false, at),
                FlowEvent::Reset { from, at } => flow.session.ended(from, true, at),
            }
            while let Some(event) = flow.session.poll() {
                let action = match event {
                    SessionEvent::Judge => {
                        decided = true;
                        continue;
                    }
                    SessionEvent::Recipient => {
                        recipient_named = true;
                        continue;
                    }
                    SessionEvent::OutOfStep => {
                        self.outputs.push_back(Output::Lost(LossCause::OutOfStep));
                        continue;
                    }
                    SessionEvent::InputForgotten => {
                        self.outputs.push_back(Output::Lost(LossCause::Window));
                        continue;
                    }
                    SessionEvent::BodyFollows => GateAction::MuteBody,
                    SessionEvent::SkipClientUntil(offset) => GateAction::SkipUntil {
                        from: Side::Client,
                        until: flow.connection.seq_at(Side::Client, offset),
                    },
                    SessionEvent::Mute if flow.mute_ordered => continue,
                    SessionEvent::Mute => {
                        flow.mute_ordered = true;
                        flow.connection.settle();
                        GateAction::Mute
                    }
                };
                self.outputs.push_back(Output::Gate(GateOrder { flow: flow.key, action }));
            }
        }
        if !flow.tls_established && flow.session.seen.tls.as_deref().is_some_and(TlsPhase::is_established) {
            // What follows is TLS, and the gate soon drops it.
            flow.tls_established = true;
            flow.connection.settle();
            flow.session.forget_secrets();
            self.failures.end(flow.key);
            self.forget_unneeded_certificates(id);
        }
        if recipient_named || decided {
            self.request_lookups(id);
        }
        if decided {
            self.judge(id, at, Urgency::Progress);
        }
    }

    /// Marks a flow as active.
    fn touch(&mut self, id: FlowId) {
        let flow = &mut self.flows[id];
        flow.last_touched = self.now;
        self.timers.arm(Timer::Idle(flow.role), id, self.now);
    }

    /// The name of an interface as a shared string. The cached one fits most flows.
    fn interface(&mut self, name: &str) -> Arc<str> {
        if *self.interface != *name {
            self.interface = name.into();
        }
        self.interface.clone()
    }
}
