//! What the engine remembers of a session: failed handshakes, the scope of interference, and the history of the peer.

use super::{Engine, Output, arena::FlowId, flow::Flow};
use crate::{
    Role, Side, Timestamp,
    policy::{
        expectation::Subject,
        failures::{FailedHandshakes, Failure},
        history::{
            HistoryKey, HistoryPeer, SessionNote,
            surprise::{Prior, Priors},
        },
    },
    smtp::{HandshakeEnd, Starttls, TlsPhase},
};

impl Engine {
    /// Records a session in the peer's history. Probes that send only EHLO and QUIT (docs/threats.md FP-17) and
    /// sessions with an uncertain outcome are not recorded.
    pub(super) fn record(&mut self, id: FlowId, at: Timestamp) {
        let flow = &self.flows[id];
        let key = flow.key;
        let seen = &flow.session.seen;
        // Incoming frames alone prove nothing.
        if seen.doubt.is_some() || !flow.is_witnessed() {
            return;
        }
        let used = seen.tls_began() && seen.handshake_end().is_none();
        let names = flow.server_names(&self.history);
        let subject = Subject { flow: key, role: flow.role, names: &names };
        record_failure(&mut self.failures, &subject, flow, at);
        if seen.tls.as_deref().is_some_and(TlsPhase::is_established) {
            self.failures.clear(&subject);
        }
        if self.is_proxied(flow) {
            return;
        }
        // A client that injects commands makes itself no history: a test tool would become known by what it tests.
        if flow.role == Role::Server && seen.injected_commands.is_some() {
            return;
        }
        // Without an EHLO reply there is something to record only of a client that sent HELO, and of a server that refused EHLO.
        let answered = seen.capabilities.is_some();
        if !flow.at_stake() || !answered && !seen.helo {
            return;
        }
        let offered = seen.offers_starttls();
        let address = subject.address_key();
        let known = self.history.get(&address);
        if !answered && known.is_none() {
            return;
        }
        let granted = match flow.role {
            Role::Client => Some(offered && !matches!(seen.starttls, Starttls::Refused(_))),
            // For a client that has never used TLS, a session without TLS does not show interference. Nor does it for another
            // client behind the same address.
            Role::Server => known.filter(|known| flow.is_alike(known)).map(|_| used),
        };
        if let Some(granted) = granted {
            let priors = self.history.priors(flow.role);
            let surprise = known.and_then(|known| {
                let (rate, prior): (_, fn(&Priors) -> Prior) = match flow.role {
                    Role::Client => (&known.offered, Priors::offered),
                    Role::Server => (&known.used, Priors::used),
                };
                rate.is_strong(self.settings.strength).then(|| prior(&priors).of_next(rate))
            });
            self.scopes[flow.role as usize].note(at, subject.peer(), granted, surprise);
        }
        // A client is recorded once it has used TLS here: any host may connect, and most never return.
        if flow.role == Role::Server && !used && known.is_none() {
            return;
        }
        let alike = known.is_none_or(|known| flow.is_alike(known));
        let note =
            SessionNote { at, answered, offered, used, profile: flow.profile(), names: flow.names_given(), alike };
        // Use the name given in this session, not one recorded for the address.
        let given = seen.server_names();
        let name = given.iter().find(|name| known.is_some_and(|known| known.is_named(name))).or(given.first());
        let name = name.filter(|_| flow.role == Role::Client).map(|name| name.to_ascii_lowercase());
        self.update_history(address.clone(), note.clone());
        let Some(name) = name else { return };
        let by_name = HistoryKey { peer: HistoryPeer::Name(name.clone()), ..address.clone() };
        if self.history.get(&by_name).is_some() || self.history.admits(&address, &name) {
            self.update_history(by_name, SessionNote { names: Vec::new(), ..note });
        }
    }

    /// Records the failed handshake of a flow, if it has one.
    pub(super) fn note_failure(&mut self, id: FlowId, at: Timestamp) {
        let flow = &self.flows[id];
        if flow.session.seen.handshake_end().is_none() {
            return;
        }
        let names = flow.server_names(&self.history);
        let subject = Subject { flow: flow.key, role: flow.role, names: &names };
        record_failure(&mut self.failures, &subject, flow, at);
    }

    /// Adds a session to one history record, and reports the records that this evicts.
    fn update_history(&mut self, key: HistoryKey, note: SessionNote) {
        let (record, forgotten) = self.history.note(key.clone(), note, self.settings.strength);
        self.outputs.push_back(Output::History(key, record));
        self.outputs.extend(forgotten.map(Output::HistoryForgotten));
    }

    /// The client relays for another client whose address is not visible: this host granted XCLIENT, or the client is a
    /// trusted proxy (docs/threats.md FP-13).
    pub(super) fn is_proxied(&self, flow: &Flow) -> bool {
        let seen = &flow.session.seen;
        let address = flow.key.client.ip();
        let trusted = || self.settings.trusted_proxies.iter().any(|network| network.contains(address));
        flow.role == Role::Server && (seen.xclient_granted || seen.proxy_header && trusted())
    }
}

/// Records a failed handshake. A client that closes after the go-ahead without sending a TLS byte is a probe and does
/// not count.
fn record_failure(failures: &mut FailedHandshakes, subject: &Subject<'_>, flow: &Flow, at: Timestamp) {
    let seen = &flow.session.seen;
    if let Some(end) = seen.handshake_end()
        && (seen.tls_began() || end != HandshakeEnd::Closed(Side::Client))
    {
        // The verdict may come after the retry; the connection ended before both.
        let at = flow.connection.last_activity().min(at);
        failures.record(subject, Failure { at, flow: flow.key, end });
    }
}
