//! The engine: owns the flow table, feeds each segment to its flow, and turns verdicts into outputs.
//!
//! [`Engine`] is the main type. The daemon and the capture reader call [`Engine::handle`] for each segment,
//! [`Engine::tick`] as real time passes and [`Engine::finish`] at the end of the input, and drain [`Engine::poll`]
//! after each call.
//!
//! A flow ends by FIN, reset, idle timeout or eviction. Its session is then judged a last time and counted
//! (`Engine::conclude`). A claim that may still change is held back until [`limits::VERDICT_DEADLINE`]. A verdict that
//! depends on a policy look-up waits up to [`LOOKUP_TIMEOUT`].

mod arena;
mod delivery;
mod flow;
mod output;
mod packet_log;
mod quota;
mod table;

use std::{collections::VecDeque, hash::BuildHasher as _, net::IpAddr, sync::Arc, time::Duration};

pub use self::{
    delivery::{Delivery, PolicyType, ResultType},
    output::{EvictReason, GateAction, GateOrder, LossCause, Output, SessionResult, SessionSummary},
};
use smtpwatch_common::Admission;

use self::{
    arena::FlowId,
    flow::{Context, Flow},
    quota::Quota,
    table::Table,
};
use crate::{
    FlowKey, Role, Segment, Side, TcpFlags, Timestamp,
    evidence::{AppliedPolicy, Known},
    finding::Kind,
    flow::{CloseCause, FlowEvent, SynClaims},
    judge::{self, RuleInput},
    limits,
    policy::{
        expectation::{self, Expectation, Rules, Subject},
        failures::{FailedHandshakes, Failure},
        history::{History, HistoryKey, HistoryPeer, HistoryRecord, SessionNote, Strength},
        published::{self, LOOKUP_TIMEOUT, LookupRequest, LookupResult, Published, domain_name},
        rule::{Network, Rule, StarttlsRule},
        scope::Scope,
    },
    smtp::{HandshakeEnd, SessionEvent, Starttls, TlsPhase},
};

/// Parameters of the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Thresholds from which history counts as evidence.
    pub strength: Strength,
    /// Maximum number of tracked flows; the least recently active flow is evicted. See [`limits::FLOWS`].
    pub flows: usize,
    /// The caller answers [`Output::LookupRequest`].
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

/// The flow table, with the rules, the history and the published policies that sessions are judged against.
pub struct Engine {
    settings: Settings,
    rules: Vec<Rule>,
    history: History,
    failures: FailedHandshakes,
    published: Published,
    /// One scope for each role of this host, in the order of [`Role`].
    scopes: [Scope; 2],
    flows: Table,
    quota: Quota,
    /// Flows with a claim held back, ordered by the time when it must be raised.
    deadlines: VecDeque<(Timestamp, FlowKey)>,
    /// Flows that received a reset, ordered by the time when the reset is accepted as real.
    resets: VecDeque<(Timestamp, FlowKey)>,
    /// Flows whose reset was accepted, ordered by the time when they are dropped.
    believed: VecDeque<(Timestamp, FlowKey)>,
    /// Ended connections whose verdict waits for a policy look-up, ordered by the time when the wait ends.
    pending: VecDeque<PendingVerdict>,
    hasher: foldhash::fast::RandomState,
    /// The input has ended: no verdict waits any longer for a look-up.
    finishing: bool,
    outputs: VecDeque<Output>,
    /// Interface of the newest flow.
    interface: Arc<str>,
    now: Timestamp,
    /// Earliest time at which a flow can exceed an idle or handshake timeout.
    silent_at: Timestamp,
}

/// An ended connection whose verdict waits for policy look-ups.
struct PendingVerdict {
    /// When the wait ends.
    due: Timestamp,
    /// When the connection ended: the time of its findings.
    ended: Timestamp,
    place: FlowId,
    /// Hashes of the look-ups that are outstanding.
    subjects: Vec<u64>,
}

/// Minimum interval between two LRU touches of one flow, so that a busy flow does not pay for one per segment.
const AGE_STEP: Duration = Duration::from_secs(10);
/// Stale entries that each deadline list may hold in addition to two per tracked flow.
const LIST_SLACK: usize = 4096;
/// Time from a reset to the verdict. A host that obeyed the reset sends nothing more; a host that saw a decoy usually
/// continues within this time (docs/threats.md EV-22).
const LINGER: Duration = Duration::from_secs(2);
/// How long a reset flow is retained after its verdict in case the host ignores the reset.
const KEPT: Duration = Duration::from_secs(128);

/// Port of message submission (RFC 6409): its server is not a mail host of the recipient.
const SUBMISSION: u16 = 587;

/// Time without a segment after which a handshake counts as stalled.
const STALLED: Duration = Duration::from_secs(10);

/// Which claims are raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Urgency {
    /// Only claims that cannot get worse.
    Progress,
    /// All claims: the deadline has passed.
    Overdue,
    /// All claims: the session has ended.
    Closed,
}

impl Engine {
    /// Creates an engine with its local rules, in order of precedence, and the stored history.
    #[must_use]
    pub fn new(settings: Settings, rules: Vec<Rule>, history: History) -> Self {
        Self {
            quota: Quota::new(settings.flows),
            published: Published::new(settings.lookups),
            settings,
            rules,
            history,
            failures: FailedHandshakes::default(),
            scopes: Role::ALL.map(Scope::new),
            flows: Table::default(),
            deadlines: VecDeque::new(),
            resets: VecDeque::new(),
            believed: VecDeque::new(),
            pending: VecDeque::new(),
            hasher: foldhash::fast::RandomState::default(),
            finishing: false,
            outputs: VecDeque::new(),
            interface: Arc::default(),
            now: Timestamp::default(),
            silent_at: Timestamp::default(),
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
        self.close_silent();
        let mut found = self.flows.find(&segment.flow);
        let mut claims = SynClaims::default();
        if let Some(place) = found {
            let flow = &mut self.flows[place];
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
                self.end(place, segment.at);
                found = None;
            }
        }
        let place = if let Some(place) = found {
            let flow = &mut self.flows[place];
            flow.push(segment);
            if self.now.since(flow.aged) >= AGE_STEP {
                flow.aged = self.now;
                self.flows.touch(place);
            }
            place
        } else if segment.flags.contains(TcpFlags::SYN) || segment.length > 0 {
            self.make_room();
            let interface = self.interface(segment.interface);
            self.flows.insert(Flow::new(segment, interface, self.now, claims))
        } else {
            // A last segment of a flow that was already judged, or of a flow never seen: it carries no information.
            return;
        };
        let flow = &mut self.flows[place];
        if segment.body_ended
            && let Some(offset) = flow.connection.offset_at(Side::Client, segment.seq.wrapping_add(segment.offset))
        {
            flow.session.body_ended(offset);
        }
        if flow.open && !flow.counted && !self.grant(place) {
            self.outputs.push_back(Output::Evicted(EvictReason::PeerQuota));
            self.end(place, segment.at);
            return;
        }
        self.drain(place, segment.at);
        let flow = &mut self.flows[place];
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
        match flow.connection.closed() {
            Some(CloseCause::Finished) => self.end(place, segment.at),
            Some(CloseCause::Reset) if flow.lingers.is_none() => {
                let due = segment.at + LINGER;
                flow.lingers = Some(due);
                // The client may retry before the reset is accepted as real.
                Self::note_failure(&mut self.failures, &self.history, flow, segment.at);
                self.resets.push_back((due, segment.flow));
                self.compact();
            }
            Some(CloseCause::Reset) => {}
            None if flow.lingers.is_some() => {
                flow.lingers = None;
                flow.session.resume_after_reset();
            }
            None => {}
        }
    }

    /// Advances real time: closes silent flows, and raises claims that were held back for [`limits::VERDICT_DEADLINE`],
    /// because an operator waits for them. Do not call it for a capture: there, time passes with the segments, and each
    /// claim waits for the outcome of its session. Drain [`Self::poll`] after it.
    pub fn tick(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        while let Some(&(due, key)) = self.deadlines.front()
            && due <= self.now
        {
            self.deadlines.pop_front();
            if let Some(place) = self.flows.find(&key) {
                self.flows[place].held_back = false;
                self.judge(place, due, Urgency::Overdue);
            }
        }
        self.close_silent();
    }

    /// Ends the input and closes every flow. Drain [`Self::poll`] after it.
    pub fn finish(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        self.finishing = true;
        while let Some(pending) = self.pending.pop_front() {
            self.resume(&pending);
        }
        let mut places: Vec<_> = self.flows.iter().map(|(place, flow)| (flow.aged, flow.key, place)).collect();
        places.sort_unstable();
        for (.., place) in places {
            self.end(place, self.now);
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

    /// Applies the result of a policy look-up. Drain [`Self::poll`] after it.
    pub fn learn(&mut self, learned: LookupResult) {
        let mail_hosts = match &learned {
            LookupResult::Domain(_, facts) => published::hosts(facts).filter_map(|host| domain_name(host)).collect(),
            LookupResult::Host(..) | LookupResult::List(_) => Vec::new(),
        };
        let subject = match &learned {
            LookupResult::Domain(name, _) => Some(LookupRequest::Domain(name.clone())),
            LookupResult::Host(name, _) => Some(LookupRequest::Host(name.clone())),
            LookupResult::List(_) => None,
        };
        self.published.learn(learned);
        // The answer for a domain names its mail hosts; look up their addresses next.
        for host in mail_hosts {
            self.want(LookupRequest::Host(host));
        }
        // Resume only the verdicts that wait for this answer: many may wait, and segments queue meanwhile.
        let Some(subject) = subject.map(|subject| self.hash(&subject)) else { return };
        let (concerned, others) =
            std::mem::take(&mut self.pending).into_iter().partition(|pending| pending.subjects.contains(&subject));
        self.pending = others;
        let concerned: VecDeque<PendingVerdict> = concerned;
        for pending in concerned {
            let subjects = self.pending(&self.flows[pending.place]);
            if subjects.is_empty() {
                self.resume(&pending);
            } else {
                let place = self.pending.partition_point(|other| other.due <= pending.due);
                self.pending.insert(place, PendingVerdict { subjects, ..pending });
            }
        }
    }

    /// The published policies that are known.
    #[must_use]
    pub const fn published(&self) -> &Published {
        &self.published
    }

    fn want(&mut self, subject: LookupRequest) {
        if self.published.want(&subject, self.now) {
            self.outputs.push_back(Output::LookupRequest(subject));
        }
    }

    /// Published policies may apply to this flow: this host is the client, and the port is not the submission port.
    fn is_published_for(&self, flow: &Flow) -> bool {
        flow.role == Role::Client && flow.key.server.port() != SUBMISSION && !self.published.is_silent()
    }

    /// Requests the look-ups that the policy of a flow depends on.
    fn ask(&mut self, place: FlowId) {
        let flow = &self.flows[place];
        if !self.is_published_for(flow) {
            return;
        }
        let names = names(&self.history, flow);
        for subject in self.published.subjects(flow.called(&names)) {
            self.want(subject);
        }
    }

    /// Hashes of the outstanding look-ups that the policy of a flow depends on.
    fn pending(&self, flow: &Flow) -> Vec<u64> {
        if self.finishing || !self.is_published_for(flow) {
            return Vec::new();
        }
        let names = names(&self.history, flow);
        let subjects = self.published.subjects(flow.called(&names)).into_iter();
        subjects.filter(|subject| self.published.is_pending(subject, self.now)).map(|one| self.hash(&one)).collect()
    }

    fn hash(&self, subject: &LookupRequest) -> u64 {
        self.hasher.hash_one(subject)
    }

    /// Hashes of the look-ups that the verdict on an ended flow must wait for. Empty unless the session may have sent
    /// mail in cleartext against a policy or may have seen a wrong certificate.
    fn waits(&self, place: FlowId) -> Vec<u64> {
        let flow = &self.flows[place];
        let seen = &flow.session.seen;
        let protected = seen.tls.as_deref().is_some_and(|tls| tls.is_established() && tls.certificates.is_empty());
        if flow.concluded || !flow.at_stake() || seen.doubt.is_some() || protected {
            return Vec::new();
        }
        self.pending(flow)
    }

    fn resume(&mut self, pending: &PendingVerdict) {
        self.conclude(pending.place, pending.ended);
        self.flows.remove_retired(pending.place);
    }

    fn close_silent(&mut self) {
        while let Some(&(due, key)) = self.resets.front()
            && due <= self.now
        {
            self.resets.pop_front();
            if let Some(place) = self.find(&key, |flow| flow.lingers == Some(due)) {
                if !self.flows[place].waited && !self.waits(place).is_empty() {
                    let later = due + LOOKUP_TIMEOUT;
                    (self.flows[place].waited, self.flows[place].lingers) = (true, Some(later));
                    self.set_aside(place);
                    let at = self.resets.partition_point(|(other, _)| *other <= later);
                    self.resets.insert(at, (later, key));
                    continue;
                }
                self.flows[place].lingers = Some(due + KEPT);
                self.believed.push_back((due + KEPT, key));
                self.conclude(place, due);
                self.flows[place].forget_secrets();
            }
        }
        while let Some(&(due, key)) = self.believed.front()
            && due <= self.now
        {
            self.believed.pop_front();
            if let Some(place) = self.find(&key, |flow| flow.lingers == Some(due)) {
                self.end(place, due);
            }
        }
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.due <= self.now) {
            self.resume(&pending);
        }
        if self.now >= self.silent_at {
            self.close_idle();
        }
    }

    fn close_idle(&mut self) {
        while let Some(place) = self.flows.oldest_unopened()
            && self.now.since(self.flows[place].begun) >= limits::FLOW_HANDSHAKE
        {
            self.end(place, self.now);
        }
        while let Some(place) = self.flows.oldest()
            && self.now.since(self.flows[place].aged) >= limits::FLOW_IDLE
        {
            self.flows[place].session.seen.timed_out = true;
            self.outputs.push_back(Output::Evicted(EvictReason::Idle));
            self.end(place, self.now);
        }
        // Later flows are younger, and activity only makes a flow younger, so both minimums can only rise.
        let since =
            |place: Option<FlowId>, at: fn(&Flow) -> Timestamp| place.map_or(self.now, |place| at(&self.flows[place]));
        let unopened = since(self.flows.oldest_unopened(), |flow| flow.begun) + limits::FLOW_HANDSHAKE;
        self.silent_at = unopened.min(since(self.flows.oldest(), |flow| flow.aged) + limits::FLOW_IDLE);
    }

    /// Removes entries of dropped flows from the lists. Without this a flood could pile up entries until their time
    /// comes.
    fn compact(&mut self) {
        let bound = 2 * self.flows.len() + LIST_SLACK;
        if self.deadlines.len() > bound {
            self.deadlines.retain(|(_, key)| self.flows.get(key).is_some_and(|flow| flow.held_back));
        }
        for list in [&mut self.resets, &mut self.believed] {
            if list.len() > bound {
                list.retain(|(due, key)| self.flows.get(key).is_some_and(|flow| flow.lingers == Some(*due)));
            }
        }
    }

    /// The name of an interface as a shared string. The cached one fits most flows.
    fn interface(&mut self, name: &str) -> Arc<str> {
        if *self.interface != *name {
            self.interface = name.into();
        }
        self.interface.clone()
    }

    /// Counts a flow that has opened in the quota of its peer; false if the quota is full.
    fn grant(&mut self, place: FlowId) -> bool {
        let role = self.flows[place].role;
        if self.quota.is_full(role)
            && let Some(oldest) = self.flows.oldest_of(role).filter(|oldest| *oldest != place)
        {
            self.outputs.push_back(Output::Evicted(EvictReason::Capacity));
            self.end(oldest, self.now);
        }
        let flow = &mut self.flows[place];
        flow.counted = self.quota.take(role, peer(role, flow.key));
        let counted = flow.counted;
        self.flows.opened(place);
        counted
    }

    fn find(&self, key: &FlowKey, is: impl FnOnce(&Flow) -> bool) -> Option<FlowId> {
        self.flows.find(key).filter(|place| is(&self.flows[*place]))
    }

    fn make_room(&mut self) {
        self.compact();
        while self.flows.len() >= self.settings.flows.max(1) {
            if let Some((due, key)) = self.believed.pop_front() {
                if let Some(place) = self.find(&key, |flow| flow.lingers == Some(due)) {
                    self.end(place, self.now);
                }
                continue;
            }
            // Evict half-open flows first, so that a SYN flood evicts no session (docs/threats.md EV-24).
            let Some(place) = self.flows.oldest_unopened().or_else(|| self.flows.oldest()) else { return };
            self.outputs.push_back(Output::Evicted(EvictReason::Capacity));
            self.end(place, self.now);
        }
    }

    /// Delivers the flow's ordered bytes to its session, and carries out the events that the session returns.
    fn drain(&mut self, place: FlowId, at: Timestamp) {
        let flow = &mut self.flows[place];
        let (mut decided, mut named) = (false, false);
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
                        named = true;
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
                    SessionEvent::Mute if flow.muted => continue,
                    SessionEvent::Mute => {
                        flow.muted = true;
                        flow.connection.settle();
                        GateAction::Mute
                    }
                };
                self.outputs.push_back(Output::Gate(GateOrder { flow: flow.key, action }));
            }
        }
        if !flow.settled && flow.session.seen.tls.as_deref().is_some_and(TlsPhase::is_established) {
            // What follows is TLS, and the gate soon drops it.
            flow.settled = true;
            flow.connection.settle();
            flow.session.forget_secrets();
            self.failures.end(flow.key);
            if !self.is_published_for(&self.flows[place])
                && let Some(tls) = &mut self.flows[place].session.seen.tls
            {
                // No policy applies, so the certificates are not needed, and the session may be long.
                tls.certificates = Vec::new();
            }
        }
        if named || decided {
            self.ask(place);
        }
        if decided {
            self.judge(place, at, Urgency::Progress);
        }
    }

    /// Closes a flow: delivers the buffered bytes, gives the last verdict or queues it, and updates the quota.
    fn end(&mut self, place: FlowId, at: Timestamp) {
        let flow = &mut self.flows[place];
        if flow.connection.one_sided() {
            flow.session.one_sided();
        }
        flow.connection.close(at);
        self.drain(place, at);
        let subjects = self.waits(place);
        let waits = !subjects.is_empty();
        if !waits {
            self.conclude(place, at);
        }
        let flow = &self.flows[place];
        if flow.counted {
            self.quota.give_back(flow.role, peer(flow.role, flow.key));
        }
        if !waits {
            self.flows.remove(place);
            return;
        }
        self.set_aside(place);
        self.flows.retire(place);
        self.pending.push_back(PendingVerdict { due: self.now + LOOKUP_TIMEOUT, ended: at, place, subjects });
        if self.pending.len() > limits::PARKED
            && let Some(oldest) = self.pending.pop_front()
        {
            self.resume(&oldest);
        }
    }

    /// Prepares a flow for waiting: parses what is left, then frees all bytes that may hold a secret.
    fn set_aside(&mut self, place: FlowId) {
        let flow = &mut self.flows[place];
        flow.session.finish();
        while flow.session.poll().is_some() {}
        flow.forget_secrets();
    }

    /// Gives the last verdict on a session, and once per session records it in history and counts it.
    fn conclude(&mut self, place: FlowId, at: Timestamp) {
        let flow = &mut self.flows[place];
        flow.session.finish();
        while flow.session.poll().is_some() {}
        let exempted = self.judge(place, at, Urgency::Closed);
        let flow = &mut self.flows[place];
        // A session whose bytes were all lost counts too, for example one in IP fragments.
        let seen = flow.payload || flow.session.seen.gaps > 0;
        if !seen || std::mem::replace(&mut flow.concluded, true) {
            return;
        }
        let mut summary = SessionSummary { exempted, ..flow.summary() };
        let flow = &self.flows[place];
        if self.is_published_for(flow) {
            let names = names(&self.history, flow);
            let identity = self.published.identify(flow.called(&names), self.now);
            let certificate = flow.certificate(&identity, self.now);
            summary.certificate = certificate.as_ref().map(|compared| (compared.source, compared.verdict));
            let deliveries = delivery::of(flow, &identity, certificate.as_ref(), at, self.now);
            self.outputs.extend(deliveries.into_iter().map(|delivery| Output::Delivery(Box::new(delivery))));
        }
        self.remember(place, at);
        self.outputs.push_back(Output::Session(summary));
    }

    /// A stalled handshake with the same peer: its client gave up, or has waited for [`STALLED`] (D1).
    fn stalled(&self, subject: &Subject<'_>, at: Timestamp) -> Option<Failure> {
        let other = self.failures.under_way(subject)?;
        let flow = self.flows.get(&other)?;
        let last = flow.connection.last_activity();
        if flow.session.seen.tls.as_deref().is_some_and(TlsPhase::is_established) {
            return None;
        }
        let stands_still = flow.connection.is_closing() || at.since(last) >= STALLED;
        stands_still.then_some(Failure { at: last.min(at), flow: other, end: HandshakeEnd::Silence })
    }

    /// This host is the server, and nothing is known of the client: it has never used TLS here, and it is neither local nor
    /// trusted. What such a client sends may be sent by anyone. The name that it gives is no identity: anyone can give it.
    fn is_stranger(&self, flow: &Flow, known: Option<&HistoryRecord>) -> bool {
        let client = flow.key.client.ip().to_canonical();
        let is_local = client.is_loopback() || client == flow.key.server.ip().to_canonical();
        flow.role == Role::Server
            && !is_local
            && known.is_none_or(|record| record.used.yes == 0)
            && !self.settings.trusted_clients.iter().any(|network| network.contains(client))
    }

    /// Judges a session and raises what is due. Returns the kinds of the findings that an exception with an end suppressed,
    /// once the session has ended.
    fn judge(&mut self, place: FlowId, at: Timestamp, urgency: Urgency) -> Vec<Kind> {
        let flow = &self.flows[place];
        // Without this host's own side no session took place: incoming frames alone prove nothing.
        if !flow.is_witnessed() {
            return Vec::new();
        }
        let key = flow.key;
        let names = names(&self.history, flow);
        let subject = Subject { flow: key, role: flow.role, names: &names };
        let rules = Rules { all: &self.rules, at: flow.begun };
        let stalled = self.stalled(&subject, at);
        let mut expectation = Expectation::of(&subject, rules, &self.history, self.settings.strength);
        expectation.failure =
            flow.retried.as_deref().or_else(|| self.failures.last_before(&subject, at)).or(stalled.as_ref());
        let is_published = self.is_published_for(flow);
        let called = flow.called(&names);
        let demands = if is_published { self.published.demands(called, self.now) } else { Vec::new() };
        expectation.published = &demands;
        let certificate =
            is_published.then(|| flow.certificate(&self.published.identify(called, self.now), self.now)).flatten();
        let pending = !self.pending(flow).is_empty();
        let unanswered = is_published && urgency != Urgency::Progress && self.published.is_unanswered(called);
        let wire = flow.wire();
        let input = RuleInput {
            session: &flow.session.seen,
            wire: &wire,
            expectation: &expectation,
            role: flow.role,
            port: key.server.port(),
            closed: urgency == Urgency::Closed,
            scope: &self.scopes[flow.role as usize],
            peer: subject.peer(),
            at,
            pending,
            certificate: certificate.as_ref(),
            unanswered,
            proxied: self.is_proxied(flow),
            stranger: self.is_stranger(flow, expectation.known),
            at_stake: flow.at_stake(),
        };
        let claims = judge::judge(input);
        let mut exempted = if urgency == Urgency::Closed { judge::exempted(input, &claims) } else { Vec::new() };
        // Raised before the configuration got the exception.
        exempted.retain(|kind| !flow.has_raised(*kind));
        let is_retry = claims.iter().any(|claim| claim.kind == Kind::DowngradeRetry);
        let retried = expectation.failure.filter(|_| is_retry && flow.retried.is_none()).copied();
        let context = if claims.is_empty() && !flow.holds_claims() {
            Context { history: None, policies: Vec::new() }
        } else {
            Context { history: self.known(&subject), policies: policies_used(&expectation) }
        };
        let seen = &flow.session.seen;
        if urgency == Urgency::Closed {
            self.failures.end(key);
        } else if matches!(seen.starttls, Starttls::Granted(_)) && !flow.settled {
            self.failures.start(&subject);
        }
        let flow = &mut self.flows[place];
        if let Some(failure) = retried {
            flow.retried = Some(Box::new(failure));
        }
        let mut due = Vec::new();
        if pending && urgency == Urgency::Progress && flow.at_stake() && !flow.held_back {
            // The outstanding answer may lead to a claim, so the session must be judged again at the deadline.
            flow.held_back = true;
            self.deadlines.push_back((at + limits::VERDICT_DEADLINE, key));
        }
        for claim in claims {
            if !flow.escalates(&claim) {
                continue;
            }
            if claim.is_final || urgency != Urgency::Progress {
                due.push(claim);
                continue;
            }
            flow.hold(claim);
            if !flow.held_back {
                flow.held_back = true;
                self.deadlines.push_back((at + limits::VERDICT_DEADLINE, key));
            }
        }
        if urgency != Urgency::Progress {
            due.extend(flow.release(&due));
        }
        for claim in due {
            flow.raise(&claim);
            self.outputs.push_back(Output::Finding(Box::new(flow.finding(at, claim, &context))));
        }
        exempted
    }

    /// The history record of a peer: by its address, else by its name.
    fn known(&self, subject: &Subject<'_>) -> Option<Known> {
        subject.history_keys().find_map(|key| {
            let record = self.history.get(&key)?.clone();
            let peer = match key.peer {
                HistoryPeer::Address(address) => address.to_string(),
                HistoryPeer::Name(name) => name,
            };
            Some(Known { peer, record })
        })
    }

    /// Records a failed handshake. A client that closes after the go-ahead without sending a TLS byte is a probe and
    /// does not count.
    fn note_failure(failures: &mut FailedHandshakes, history: &History, flow: &Flow, at: Timestamp) {
        let (seen, key) = (&flow.session.seen, flow.key);
        if let Some(end) = seen.handshake_end()
            && (seen.tls_began() || end != HandshakeEnd::Closed(Side::Client))
        {
            let names = names(history, flow);
            let subject = Subject { flow: key, role: flow.role, names: &names };
            // The verdict may come after the retry; the connection ended before both.
            let at = flow.connection.last_activity().min(at);
            failures.record(&subject, Failure { at, flow: key, end });
        }
    }

    /// Records a session in the peer's history. Probes that send only EHLO and QUIT (docs/threats.md FP-17) and
    /// sessions with an uncertain outcome are not recorded.
    fn remember(&mut self, place: FlowId, at: Timestamp) {
        let flow = &self.flows[place];
        let key = flow.key;
        let seen = &flow.session.seen;
        // Incoming frames alone prove nothing.
        if seen.doubt.is_some() || !flow.is_witnessed() {
            return;
        }
        let used = seen.tls_began() && seen.handshake_end().is_none();
        Self::note_failure(&mut self.failures, &self.history, flow, at);
        let names = names(&self.history, flow);
        let subject = Subject { flow: key, role: flow.role, names: &names };
        if seen.tls.as_deref().is_some_and(TlsPhase::is_established) {
            self.failures.clear(&subject);
        }
        if self.is_proxied(flow) {
            return;
        }
        if !flow.at_stake() || seen.capabilities.is_none() {
            return;
        }
        let offered = seen.offers_starttls();
        let address = subject.address_key();
        let known = self.history.get(&address);
        let granted = match flow.role {
            Role::Client => Some(offered && !matches!(seen.starttls, Starttls::Refused(_))),
            // For a client that has never used TLS, a session without TLS does not show interference.
            Role::Server => known.is_some().then_some(used),
        };
        if let Some(granted) = granted {
            let priors = self.history.priors(flow.role);
            let surprise = known.and_then(|known| {
                let (prior, rate) = match flow.role {
                    Role::Client => (priors.offered, &known.offered),
                    Role::Server => (priors.used, &known.used),
                };
                rate.is_strong(self.settings.strength).then(|| prior.of_next(rate))
            });
            self.scopes[flow.role as usize].note(at, subject.peer(), granted, surprise);
        }
        // A client is recorded once it has used TLS here: any host may connect, and most never return.
        if flow.role == Role::Server && !used && known.is_none() {
            return;
        }
        let alike = known.is_none_or(|known| flow.is_alike(known));
        let note = SessionNote { at, offered, used, profile: flow.profile(), names: flow.names(), alike };
        // Use the name given in this session, not one recorded for the address.
        let said = seen.server_names();
        let name = said.iter().find(|name| known.is_some_and(|known| known.is_named(name))).or(said.first());
        let name = name.filter(|_| flow.role == Role::Client).map(|name| name.to_ascii_lowercase());
        self.teach(address.clone(), note.clone());
        let Some(name) = name else { return };
        let by_name = HistoryKey { peer: HistoryPeer::Name(name.clone()), ..address.clone() };
        if self.history.get(&by_name).is_some() || self.history.admits(&address, &name) {
            self.teach(by_name, SessionNote { names: Vec::new(), ..note });
        }
    }

    /// Adds a session to one history record, and reports the records that this evicts.
    fn teach(&mut self, key: HistoryKey, note: SessionNote) {
        let (record, forgotten) = self.history.note(key.clone(), note, self.settings.strength);
        self.outputs.push_back(Output::History(key, record));
        self.outputs.extend(forgotten.map(Output::HistoryForgotten));
    }

    /// The client relays for another client whose address is not visible: this host granted XCLIENT, or the client is a
    /// trusted proxy (docs/threats.md FP-13).
    fn is_proxied(&self, flow: &Flow) -> bool {
        let seen = &flow.session.seen;
        let address = flow.key.client.ip();
        let trusted = || self.settings.trusted_proxies.iter().any(|network| network.contains(address));
        flow.role == Role::Server && (seen.xclient_granted || seen.proxy_header && trusted())
    }
}

/// The names by which the policies and the history of a flow's server are found.
fn names<'a>(history: &'a History, flow: &'a Flow) -> Vec<&'a str> {
    let said = flow.session.seen.server_names();
    if flow.role == Role::Server {
        return said;
    }
    let subject = Subject { flow: flow.key, role: flow.role, names: &[] };
    expectation::names(said, history.get(&subject.address_key()))
}

/// The policies that demand TLS for a session, in order of precedence.
fn policies_used(expectation: &Expectation<'_>) -> Vec<AppliedPolicy> {
    let rule = expectation.rule.filter(|(_, rule)| rule.starttls.is_some_and(|rule| rule != StarttlsRule::Ignore));
    let rule = rule.map(|(place, rule)| AppliedPolicy {
        source: "rule".to_owned(),
        mode: if rule.starttls == Some(StarttlsRule::Required) { "enforce" } else { "testing" }.to_owned(),
        subject: String::new(),
        detail: format!("rule {place} of the configuration"),
    });
    let published = expectation.published.iter().map(|demand| AppliedPolicy {
        source: demand.source.as_str().to_owned(),
        mode: demand.weight.mode().unwrap_or("hint").to_owned(),
        subject: demand.subject.clone(),
        detail: demand.detail.clone(),
    });
    rule.into_iter().chain(published).collect()
}

const fn peer(role: Role, key: FlowKey) -> IpAddr {
    match role {
        Role::Client => key.server.ip(),
        Role::Server => key.client.ip(),
    }
}
