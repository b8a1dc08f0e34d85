//! Policy look-ups: which ones a session needs, and which verdicts wait for an answer.

use std::hash::BuildHasher as _;

use super::{Engine, Output, arena::FlowId, flow::Flow, lifecycle::Lifecycle, timers::Timer};
use crate::{
    Role,
    policy::published::{self, LookupRequest, LookupResult, domain_name},
};

/// Port of message submission (RFC 6409): its server is not a mail host of the recipient.
const SUBMISSION: u16 = 587;

impl Engine {
    /// Applies the result of a policy look-up: resumes the verdicts that have waited for it, and requests the look-ups
    /// that follow from it. Drain [`Self::poll`] after it.
    pub fn apply(&mut self, result: LookupResult) {
        let mail_hosts = match &result {
            LookupResult::Domain(_, facts) => published::hosts(facts).filter_map(|host| domain_name(host)).collect(),
            LookupResult::Host(..) | LookupResult::List(_) => Vec::new(),
        };
        let answered = match &result {
            LookupResult::Domain(name, _) => Some(LookupRequest::Domain(name.clone())),
            LookupResult::Host(name, _) => Some(LookupRequest::Host(name.clone())),
            LookupResult::List(_) => None,
        };
        self.published.apply(result);
        // The answer for a domain names its mail hosts; look up their addresses next.
        for host in mail_hosts {
            self.request(LookupRequest::Host(host));
        }
        // Resume only the verdicts that wait for this answer: many may wait, and segments queue meanwhile.
        let Some(answered) = answered.map(|request| self.hash(&request)) else { return };
        let waiting = self.timers.flows(Timer::PolicyAfterClose);
        let concerned: Vec<_> = waiting.filter(|id| self.flows[*id].lifecycle.awaits(answered)).collect();
        for id in concerned {
            let flow = &self.flows[id];
            let outstanding = self.outstanding_lookups(flow, &flow.server_names(&self.history));
            if outstanding.is_empty() {
                self.resume(id);
            } else if let Lifecycle::AwaitingPolicy { lookups, .. } = &mut self.flows[id].lifecycle {
                *lookups = outstanding.into();
            }
        }
    }

    /// Published policies may apply to this flow: this host is the client, and the port is not the submission port.
    pub(super) fn is_published_for(&self, flow: &Flow) -> bool {
        flow.role == Role::Client && flow.key.server.port() != SUBMISSION && !self.published.is_silent()
    }

    /// Requests the look-ups that the policy of a flow depends on.
    pub(super) fn request_lookups(&mut self, id: FlowId) {
        let flow = &self.flows[id];
        if !self.is_published_for(flow) {
            return;
        }
        let names = flow.server_names(&self.history);
        for request in self.published.lookups(flow.peer_query(&names)) {
            self.request(request);
        }
    }

    fn request(&mut self, request: LookupRequest) {
        if self.published.request(&request, self.now) {
            self.outputs.push_back(Output::LookupRequest(request));
        }
    }

    /// Hashes of the look-ups that the verdict on an ended flow must wait for. Empty unless the session may have sent
    /// mail in cleartext against a policy or may have seen a wrong certificate.
    pub(super) fn awaited_lookups(&self, id: FlowId) -> Vec<u64> {
        let flow = &self.flows[id];
        let seen = &flow.session.seen;
        let protected = seen.tls.as_deref().is_some_and(|tls| tls.is_established() && tls.certificates.is_empty());
        if flow.recorded || !flow.at_stake() || seen.doubt.is_some() || protected || !self.is_published_for(flow) {
            return Vec::new();
        }
        self.outstanding_lookups(flow, &flow.server_names(&self.history))
    }

    /// Hashes of the outstanding look-ups that the policy of a flow depends on.
    pub(super) fn outstanding_lookups(&self, flow: &Flow, names: &[&str]) -> Vec<u64> {
        if self.finishing || !self.is_published_for(flow) {
            return Vec::new();
        }
        let requests = self.published.lookups(flow.peer_query(names)).into_iter();
        requests.filter(|request| self.published.is_pending(request, self.now)).map(|one| self.hash(&one)).collect()
    }

    /// The server's certificates are of no use to a flow to which no policy applies, and its session may be long.
    pub(super) fn forget_unneeded_certificates(&mut self, id: FlowId) {
        if !self.is_published_for(&self.flows[id]) {
            self.flows[id].session.forget_certificates();
        }
    }

    fn hash(&self, request: &LookupRequest) -> u64 {
        self.hasher.hash_one(request)
    }
}
