//! The verdict on a session: brings together what is known of the peer, judges, and raises claims or holds them back.

use std::time::Duration;

use super::{
    Engine, Output,
    arena::FlowId,
    delivery,
    flow::{Context, Flow},
    output::SessionSummary,
    timers::Timer,
};
use crate::{
    Role, Timestamp,
    evidence::{AppliedPolicy, Known},
    finding::Kind,
    judge::{self, RuleInput, certificate::Comparison},
    policy::{
        expectation::{Expectation, Rules, Subject},
        failures::Failure,
        history::HistoryPeer,
        published::demand::Identity,
        rule::StarttlsRule,
    },
    smtp::{HandshakeEnd, Starttls, TlsPhase},
};
/// Time without a segment after which a handshake counts as stalled.
const STALLED: Duration = Duration::from_secs(10);

/// Which claims are raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Urgency {
    /// Only claims that cannot get worse.
    Progress,
    /// All claims: the deadline has passed.
    Overdue,
    /// All claims: the session has ended.
    Closed,
}

/// The peer of a flow according to the published policies.
pub(super) struct PublishedPeer {
    identity: Identity,
    /// The server's certificate, compared with its policy.
    certificate: Option<Comparison>,
}

/// What a verdict found besides its claims.
pub(super) struct Judged {
    /// The peer according to the published policies, if any may apply.
    peer: Option<PublishedPeer>,
    /// Kinds of the findings that an exception with an end suppressed; empty before the session has ended.
    exempted: Vec<Kind>,
}

impl Engine {
    /// Gives the final verdict on a session, and once per session records it in history and counts it.
    pub(super) fn conclude(&mut self, id: FlowId, at: Timestamp) {
        self.flows[id].finish_session();
        let Judged { peer, exempted } = self.judge(id, at, Urgency::Closed);
        let flow = &mut self.flows[id];
        // A session whose bytes were all lost counts too, for example one in IP fragments.
        let seen = flow.payload_seen || flow.session.seen.gaps > 0;
        if !seen || std::mem::replace(&mut flow.recorded, true) {
            return;
        }
        let mut summary = SessionSummary { exempted, ..flow.summary() };
        if let Some(PublishedPeer { identity, certificate }) = peer {
            summary.certificate = certificate.as_ref().map(|compared| (compared.source, compared.verdict));
            let deliveries = delivery::classify(flow, &identity, certificate.as_ref(), at, self.now);
            self.outputs.extend(deliveries.into_iter().map(|delivery| Output::Delivery(Box::new(delivery))));
        }
        self.record(id, at);
        self.outputs.push_back(Output::Session(summary));
    }

    /// Judges a session: raises the claims that are due, and holds back the others.
    pub(super) fn judge(&mut self, id: FlowId, at: Timestamp, urgency: Urgency) -> Judged {
        let flow = &self.flows[id];
        let key = flow.key;
        let names = flow.server_names(&self.history);
        let query = flow.peer_query(&names);
        let peer = self.is_published_for(flow).then(|| {
            let identity = self.published.identify(query, self.now);
            PublishedPeer { certificate: flow.certificate(&identity, self.now), identity }
        });
        // Without this host's own side no session took place: incoming frames alone prove nothing.
        if !flow.is_witnessed() {
            return Judged { peer, exempted: Vec::new() };
        }
        let subject = Subject { flow: key, role: flow.role, names: &names };
        let rules = Rules { all: &self.rules, at: flow.begun };
        let stalled = self.stalled(&subject, at);
        let mut expectation = Expectation::of(&subject, rules, &self.history, self.settings.strength);
        expectation.failure =
            flow.retried.as_deref().or_else(|| self.failures.last_before(&subject, at)).or(stalled.as_ref());
        let demands = peer.as_ref().map(|peer| self.published.demands(&peer.identity, self.now)).unwrap_or_default();
        expectation.published = &demands;
        let pending = !self.outstanding_lookups(flow, &names).is_empty();
        let unanswered = peer.is_some() && urgency != Urgency::Progress && self.published.is_unanswered(query);
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
            certificate: peer.as_ref().and_then(|peer| peer.certificate.as_ref()),
            unanswered,
            proxied: self.is_proxied(flow),
            trusted: self.is_trusted(flow),
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
        if urgency == Urgency::Closed {
            self.failures.end(key);
        } else if matches!(flow.session.seen.starttls, Starttls::Granted(_)) && !flow.tls_established {
            self.failures.start(&subject);
        }
        let flow = &mut self.flows[id];
        if let Some(failure) = retried {
            flow.retried = Some(Box::new(failure));
        }
        let mut due = Vec::new();
        // The outstanding answer may lead to a claim, so the session must be judged again at the deadline.
        let mut holds = pending && urgency == Urgency::Progress && flow.at_stake();
        for claim in claims {
            if !flow.escalates(&claim) {
                continue;
            }
            if claim.is_final || urgency != Urgency::Progress {
                due.push(claim);
                continue;
            }
            flow.hold(claim);
            holds = true;
        }
        if holds && !self.timers.is_armed(Timer::VerdictDeadline, id) {
            self.timers.arm(Timer::VerdictDeadline, id, at);
        }
        if urgency != Urgency::Progress {
            due.extend(flow.release(&due));
        }
        for claim in due {
            flow.raise(&claim);
            self.outputs.push_back(Output::Finding(Box::new(flow.finding(at, claim, &context))));
        }
        Judged { peer, exempted }
    }

    /// This host is the client, or the client is local or in a trusted network.
    fn is_trusted(&self, flow: &Flow) -> bool {
        let client = flow.key.client.ip().to_canonical();
        flow.role == Role::Client
            || client.is_loopback()
            || client == flow.key.server.ip().to_canonical()
            || self.settings.trusted_clients.iter().any(|network| network.contains(client))
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
}

/// The policies that demand TLS for a session, in order of precedence.
fn policies_used(expectation: &Expectation<'_>) -> Vec<AppliedPolicy> {
    let rule = expectation.rule.filter(|(_, rule)| rule.starttls.is_some_and(|rule| rule != StarttlsRule::Ignore));
    let rule = rule.map(|(number, rule)| AppliedPolicy {
        source: "rule".to_owned(),
        mode: if rule.starttls == Some(StarttlsRule::Required) { "enforce" } else { "testing" }.to_owned(),
        subject: String::new(),
        detail: format!("rule {number} of the configuration"),
    });
    let published = expectation.published.iter().map(|demand| AppliedPolicy {
        source: demand.source.as_str().to_owned(),
        mode: demand.weight.mode().unwrap_or("hint").to_owned(),
        subject: demand.subject.clone(),
        detail: demand.detail.clone(),
    });
    rule.into_iter().chain(published).collect()
}
