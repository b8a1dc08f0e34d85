//! One flow table, one loop: segments in, outputs out.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use crate::{
    Finding, FlowKey, Role, Segment, Side, TcpFlags, Timestamp,
    finding::{FlowInfo, Kind, Observed, Outcome, PeerInfo, SCHEMA_VERSION, Severity, StarttlsState},
    flow::{Connection, FlowEvent, GapCause},
    judge::{self, Case, Claim},
    limits,
    policy::{
        expectation::{Expectation, Subject},
        history::{History, HistoryKey, HistoryRecord, SessionNote, Strength},
        rule::Rule,
    },
    smtp::{Offer, Session, SessionEvent, Starttls},
};

/// What the engine wants done. Drain [`Engine::poll`] after every call that changes it.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// A claim with its proof.
    Finding(Box<Finding>),
    /// A session ended, or is judged and goes on unseen.
    Session(SessionSummary),
    /// Tell the gate how little of this flow is still needed.
    Gate(GateOrder),
    /// A hole in a stream that the dialogue needed.
    Gap(GapCause),
    /// A flow left the table before its end was seen.
    Evicted(EvictReason),
    /// A row of history changed and wants to be kept.
    History(HistoryKey, HistoryRecord),
    /// History had no room: this row was forgotten in memory and must be forgotten in the store.
    HistoryForgotten(HistoryKey),
}

/// The one message against the stream of data: from the engine back to the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GateOrder {
    /// The flow.
    pub flow: FlowKey,
    /// What may be left out.
    pub action: GateAction,
}

/// What the gate may leave out of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GateAction {
    /// Everything but SYN, FIN and RST: the verdict stands.
    Mute,
    /// A message body follows from the client until the server speaks (354 was answered).
    MuteBody,
    /// Payload of `from` before sequence number `until` (BDAT chunk).
    SkipUntil {
        /// The sender of what is skipped.
        from: Side,
        /// First sequence number that is wanted again.
        until: u32,
    },
}

/// Why a flow left the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EvictReason {
    /// Silent for longer than [`crate::limits::FLOW_IDLE`].
    Idle,
    /// The table was full.
    Capacity,
}

impl EvictReason {
    /// Every reason, for metric labels.
    pub const ALL: [Self; 2] = [Self::Idle, Self::Capacity];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Capacity => "capacity",
        }
    }
}

/// How a session came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionResult {
    /// TLS began.
    Tls,
    /// Mail or credentials went in clear.
    Plaintext,
    /// Nothing was handed over: refused, or the client left.
    Rejected,
    /// A hole, one side only, or joined midstream: nothing can be said.
    Unknown,
}

impl SessionResult {
    /// Every result, for metric labels.
    pub const ALL: [Self; 4] = [Self::Tls, Self::Plaintext, Self::Rejected, Self::Unknown];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Plaintext => "plaintext",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
        }
    }
}

/// What the metrics need to know of one session.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SessionSummary {
    /// The connection.
    #[serde(skip)]
    pub flow: FlowKey,
    /// Which end this host is.
    pub role: Role,
    /// How it came out.
    pub result: SessionResult,
    /// The offer in the last EHLO reply in clear; [`StarttlsState::Unknown`] where none was seen.
    pub starttls: StarttlsState,
    /// STARTTLS was sent.
    pub starttls_sent: bool,
    /// Messages accepted in clear.
    pub messages: u32,
    /// SASL exchanges begun in clear, with the code of their last reply (0: none seen), in order.
    pub auth: Vec<(String, u16)>,
    /// SMTP was spoken in clear: at least one command or reply was understood.
    pub smtp: bool,
    /// Holes that hurt.
    pub gaps: u32,
}

/// How the engine judges.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// When history is strong enough to accuse.
    pub strength: Strength,
}

/// The flow table and what hangs on it.
pub struct Engine {
    settings: Settings,
    rules: Vec<Rule>,
    history: History,
    flows: HashMap<FlowKey, Flow>,
    /// Flows in the order of their last activity, oldest first; an entry is stale when the flow has been active since.
    ages: VecDeque<(Timestamp, FlowKey)>,
    /// Flows with a claim that is held back, by the time when it must go out.
    deadlines: VecDeque<(Timestamp, FlowKey)>,
    outputs: VecDeque<Output>,
    now: Timestamp,
}

struct Flow {
    connection: Connection,
    session: Session,
    role: Role,
    interface: Arc<str>,
    /// Any payload was seen: without it this was no session.
    payload: bool,
    /// The gate was told to mute it.
    muted: bool,
    /// The newest entry in the list of ages.
    aged: Timestamp,
    /// When the first claim was made that is held back.
    held_since: Option<Timestamp>,
    /// Claims that went out, with their severity then.
    raised: Vec<(Kind, usize, Severity)>,
}

/// How often a flow is moved to the young end of the list of ages at most: the list stays short for busy flows.
const AGE_STEP: Duration = Duration::from_secs(10);

impl Engine {
    /// An engine with its local rules, in order, and the history that it starts from.
    #[must_use]
    pub fn new(settings: Settings, rules: Vec<Rule>, history: History) -> Self {
        Self {
            settings,
            rules,
            history,
            flows: HashMap::new(),
            ages: VecDeque::new(),
            deadlines: VecDeque::new(),
            outputs: VecDeque::new(),
            now: Timestamp::default(),
        }
    }

    /// Takes one segment. Drain [`Self::poll`] after it.
    pub fn handle(&mut self, segment: &Segment<'_>) {
        self.now = self.now.max(segment.at);
        self.close_idle();
        let key = segment.flow;
        if self.flows.get(&key).is_some_and(|flow| flow.connection.is_new_connection(segment)) {
            self.end(key, segment.at);
        }
        let syn = segment.flags.contains(TcpFlags::SYN);
        if !self.flows.contains_key(&key) {
            if !syn && segment.length == 0 {
                // The last words of a flow that has been judged, or of one that was never seen: nothing to learn from.
                return;
            }
            self.make_room();
            self.flows.insert(key, Flow::new(segment));
            self.ages.push_back((segment.at, key));
        }
        let Some(flow) = self.flows.get_mut(&key) else { return };
        flow.payload |= segment.length > 0;
        if segment.at.since(flow.aged) >= AGE_STEP {
            flow.aged = segment.at;
            self.ages.push_back((segment.at, key));
        }
        flow.connection.push(segment);
        self.drain(key, segment.at);
        if self.flows.get(&key).is_some_and(|flow| flow.connection.closed().is_some()) {
            self.end(key, segment.at);
        }
    }

    /// Lets real time pass: idle flows are closed, and claims that were held back for [`limits::VERDICT_DEADLINE`] go out,
    /// because somebody is waiting for them. A capture has no such reader: its time passes with its segments, and each
    /// claim waits for its outcome. Drain [`Self::poll`] after it.
    pub fn tick(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        while let Some(&(due, key)) = self.deadlines.front()
            && due <= self.now
        {
            self.deadlines.pop_front();
            self.judge(key, due, Urgency::Overdue);
        }
        self.close_idle();
    }

    fn close_idle(&mut self) {
        while let Some(&(aged, key)) = self.ages.front()
            && self.now.since(aged) >= limits::FLOW_IDLE
        {
            self.ages.pop_front();
            if self.flows.get(&key).is_some_and(|flow| flow.aged == aged) {
                self.outputs.push_back(Output::Evicted(EvictReason::Idle));
                self.end(key, self.now);
            }
        }
    }

    /// The end of the input: every flow is closed. Drain [`Self::poll`] after it.
    pub fn finish(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        let mut keys: Vec<_> = self.flows.iter().map(|(key, flow)| (flow.aged, *key)).collect();
        keys.sort_unstable();
        for (_, key) in keys {
            self.end(key, self.now);
        }
    }

    /// What is to be done, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Flows in the table.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// What has been seen of every peer.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// The same, to correct it.
    pub const fn history_mut(&mut self) -> &mut History {
        &mut self.history
    }

    fn make_room(&mut self) {
        while self.flows.len() >= limits::FLOWS {
            let Some((aged, key)) = self.ages.pop_front() else { return };
            if self.flows.get(&key).is_some_and(|flow| flow.aged == aged) {
                self.outputs.push_back(Output::Evicted(EvictReason::Capacity));
                self.end(key, self.now);
            }
        }
    }

    /// Hands what the flow has in order to its session, and does what that wants.
    fn drain(&mut self, key: FlowKey, at: Timestamp) {
        let Some(flow) = self.flows.get_mut(&key) else { return };
        let mut urgency = None;
        while let Some(event) = flow.connection.poll() {
            match event {
                FlowEvent::Data { from, offset, bytes, .. } => flow.session.data(from, offset, bytes),
                FlowEvent::Gap { from, length, cause, .. } => {
                    if flow.session.gap(from, length) {
                        self.outputs.push_back(Output::Gap(cause));
                    }
                }
                FlowEvent::Finished { from, .. } => drop(flow.session.seen.ended.get_or_insert((from, false))),
                FlowEvent::Reset { from, .. } => drop(flow.session.seen.ended.get_or_insert((from, true))),
            }
            while let Some(event) = flow.session.poll() {
                let action = match event {
                    SessionEvent::Judge => {
                        urgency = Some(Urgency::Progress);
                        continue;
                    }
                    SessionEvent::BodyFollows => GateAction::MuteBody,
                    SessionEvent::SkipClientUntil(offset) => GateAction::SkipUntil {
                        from: Side::Client,
                        until: flow.connection.seq_at(Side::Client, offset),
                    },
                    SessionEvent::Mute if flow.muted => continue,
                    SessionEvent::Mute => {
                        flow.muted = true;
                        GateAction::Mute
                    }
                };
                self.outputs.push_back(Output::Gate(GateOrder { flow: key, action }));
            }
            // Judged between the events, so that a claim is as old as the octets that decided it.
        }
        if let Some(urgency) = urgency {
            self.judge(key, at, urgency);
        }
    }

    /// Closes a flow: what is held is handed on, the last verdict is given, history is noted.
    fn end(&mut self, key: FlowKey, at: Timestamp) {
        let Some(flow) = self.flows.get_mut(&key) else { return };
        if flow.connection.one_sided() {
            flow.session.one_sided();
        }
        flow.connection.close(at);
        self.drain(key, at);
        let Some(flow) = self.flows.get_mut(&key) else { return };
        flow.session.finish(None);
        while flow.session.poll().is_some() {}
        self.judge(key, at, Urgency::Closed);
        let Some(flow) = self.flows.remove(&key) else { return };
        if flow.payload {
            self.note(key, &flow, at);
            self.outputs.push_back(Output::Session(flow.summary(key)));
        }
    }

    fn judge(&mut self, key: FlowKey, at: Timestamp, urgency: Urgency) {
        let Some(flow) = self.flows.get_mut(&key) else { return };
        let names = flow.session.seen.server_names();
        let subject = Subject { flow: key, role: flow.role, names: &names };
        let expectation = Expectation::of(&subject, &self.rules, &self.history, self.settings.strength);
        let case = Case {
            session: &flow.session.seen,
            expectation: &expectation,
            role: flow.role,
            port: key.server.port(),
            closed: urgency == Urgency::Closed,
        };
        for claim in judge::judge(case) {
            let before =
                flow.raised.iter().position(|(kind, instance, _)| (*kind, *instance) == (claim.kind, claim.instance));
            if before.is_some_and(|before| flow.raised[before].2 >= claim.severity) {
                continue;
            }
            if !claim.is_final && urgency == Urgency::Progress {
                if flow.held_since.is_none() {
                    flow.held_since = Some(at);
                    self.deadlines.push_back((at + limits::VERDICT_DEADLINE, key));
                }
                continue;
            }
            let raised = (claim.kind, claim.instance, claim.severity);
            match before {
                Some(before) => flow.raised[before] = raised,
                None => flow.raised.push(raised),
            }
            self.outputs.push_back(Output::Finding(Box::new(flow.finding(key, at, claim))));
        }
    }

    /// Notes the offer in the history of the server, where this host was its client and something was at stake: probes that
    /// say EHLO and QUIT are not noted (THREATS FP-17).
    fn note(&mut self, key: FlowKey, flow: &Flow, at: Timestamp) {
        let session = &flow.session.seen;
        let Some(capabilities) = &session.capabilities else { return };
        let at_stake = session.mail_sent || session.starttls != Starttls::NotSent || !session.auth.is_empty();
        if flow.role != Role::Client || session.doubt.is_some() || !at_stake {
            return;
        }
        let note = SessionNote { at, offered: capabilities.offer() != Offer::Absent, used: session.tls_began() };
        let names = session.server_names();
        let subject = Subject { flow: key, role: flow.role, names: &names };
        for key in subject.history_keys() {
            let (record, forgotten) = self.history.note(key.clone(), note, self.settings.strength);
            self.outputs.push_back(Output::History(key, record));
            self.outputs.extend(forgotten.into_iter().map(Output::HistoryForgotten));
        }
    }
}

/// Which claims go out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Urgency {
    /// Those that cannot get worse.
    Progress,
    /// All: they were held back long enough.
    Overdue,
    /// All: nothing more will come.
    Closed,
}

impl Flow {
    fn new(segment: &Segment<'_>) -> Self {
        let connection = Connection::new(segment);
        let session = Session::new(connection.midstream());
        Self {
            connection,
            session,
            role: segment.role,
            interface: segment.interface.into(),
            payload: false,
            muted: false,
            aged: segment.at,
            held_since: None,
            raised: Vec::new(),
        }
    }

    fn finding(&self, key: FlowKey, at: Timestamp, claim: Claim) -> Finding {
        let session = &self.session.seen;
        let name = match self.role {
            Role::Client => session.server_names().first().map(|name| (*name).to_owned()),
            Role::Server => session.client_name.clone(),
        };
        let lines = session.capabilities.iter().flat_map(|capabilities| &capabilities.lines);
        let conflicts = self.connection.conflicts().len();
        let mut proof = claim.proof;
        if conflicts > 0 {
            proof.push(format!("{conflicts} byte ranges of this connection came in two different copies"));
        }
        Finding {
            schema_version: SCHEMA_VERSION,
            id: String::new(),
            time: at,
            kind: claim.kind,
            rule: claim.rule,
            severity: claim.severity,
            evidence: claim.evidence,
            outcome: claim.outcome,
            role: self.role,
            flow: FlowInfo {
                client: key.client.to_string(),
                server: key.server.to_string(),
                interface: self.interface.to_string(),
                community_id: String::new(),
            },
            peer: PeerInfo { name: name.unwrap_or_default(), greeting: session.greeting.clone().unwrap_or_default() },
            expected: claim.expected,
            observed: Observed {
                capabilities: lines.map(|line| line.text.clone()).collect(),
                starttls: session.starttls_state(),
                mechanism: claim.mechanism,
                reply: claim.reply,
            },
            transcript: session.transcript(),
            gaps: session.gaps,
            proof,
        }
    }

    fn summary(&self, flow: FlowKey) -> SessionSummary {
        let session = &self.session.seen;
        let result = if session.doubt.is_some() {
            SessionResult::Unknown
        } else if session.tls_began() {
            SessionResult::Tls
        } else if matches!(session.outcome(), Outcome::Content | Outcome::Credential) {
            SessionResult::Plaintext
        } else {
            SessionResult::Rejected
        };
        SessionSummary {
            flow,
            role: self.role,
            result,
            starttls: session.starttls_state(),
            starttls_sent: session.starttls != Starttls::NotSent,
            messages: session.messages,
            auth: session.auth.iter().map(|exchange| (exchange.mechanism.clone(), exchange.reply)).collect(),
            smtp: session.smtp,
            gaps: session.gaps,
        }
    }
}
