//! Failed TLS handshakes of the last days: the first half of a downgrade across connections (docs/threats.md D1). The
//! engine records them in [`FailedHandshakes`] and looks them up when it judges a session in cleartext.

use std::{collections::VecDeque, time::Duration};

use super::{expectation::Subject, history::HistoryPeer};
use crate::{FlowKey, Role, Timestamp, hash::HashMap, smtp::HandshakeEnd};

/// Maximum number of entries, one or two for each peer; the oldest failure is evicted.
const PEERS: usize = 4096;
/// How long a failure is stored. A mail server retries in cleartext after its back-off at the earliest, and gives up
/// after five days (Postfix `minimal_backoff_time`, `maximal_queue_lifetime`).
const REMEMBERED: Duration = Duration::from_secs(5 * 24 * 3600);

/// One failed handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// When the connection ended.
    pub at: Timestamp,
    /// The connection.
    pub flow: FlowKey,
    /// How the handshake ended.
    pub end: HandshakeEnd,
}

/// Role of this host, peer, and port of the server. The own address is not included: a retry may use another one.
type Key = (Role, HistoryPeer, u16);

/// The newest failure with each peer, by address and by name: on a retry a server may answer at another address.
#[derive(Debug, Default)]
pub struct FailedHandshakes {
    newest: HashMap<Key, Failure>,
    order: VecDeque<(Timestamp, Key)>,
    /// Open connections on which the go-ahead was given, the newest with each peer.
    under_way: HashMap<Key, FlowKey>,
    /// The keys of each of these connections: the peer may give another name later.
    begun: HashMap<FlowKey, Vec<Key>>,
}

impl FailedHandshakes {
    /// Records that the server gave the go-ahead; call [`Self::end`] later.
    pub fn start(&mut self, subject: &Subject<'_>) {
        self.end(subject.flow);
        let keys: Vec<_> = keys(subject).collect();
        self.under_way.extend(keys.iter().cloned().map(|key| (key, subject.flow)));
        self.begun.insert(subject.flow, keys);
    }

    /// Records that the connection has ended.
    pub fn end(&mut self, flow: FlowKey) {
        for key in self.begun.remove(&flow).into_iter().flatten() {
            if self.under_way.get(&key) == Some(&flow) {
                self.under_way.remove(&key);
            }
        }
        // Release the memory after very many simultaneous handshakes.
        if self.begun.is_empty() && self.begun.capacity() > PEERS {
            (self.under_way, self.begun) = Default::default();
        }
    }

    /// Another open connection with this peer on which the go-ahead was given.
    #[must_use]
    pub fn under_way(&self, subject: &Subject<'_>) -> Option<FlowKey> {
        if self.under_way.is_empty() {
            return None;
        }
        keys(subject).find_map(|key| self.under_way.get(&key)).copied().filter(|flow| *flow != subject.flow)
    }

    /// Records a failed handshake.
    pub fn record(&mut self, subject: &Subject<'_>, failure: Failure) {
        for key in keys(subject) {
            self.newest.insert(key.clone(), failure);
            self.order.push_back((failure.at, key));
        }
        while self.order.len() > PEERS {
            let Some((at, key)) = self.order.pop_front() else { return };
            if self.newest.get(&key).is_some_and(|newest| newest.at == at) {
                self.newest.remove(&key);
            }
        }
    }

    /// TLS was established: an earlier failure does not explain later cleartext.
    pub fn clear(&mut self, subject: &Subject<'_>) {
        if self.newest.is_empty() {
            return;
        }
        for key in keys(subject) {
            self.newest.remove(&key);
        }
    }

    /// The failure before `now` that may explain why this flow is in cleartext.
    #[must_use]
    pub fn last_before(&self, subject: &Subject<'_>, now: Timestamp) -> Option<&Failure> {
        if self.newest.is_empty() {
            return None;
        }
        let found = keys(subject).find_map(|key| self.newest.get(&key));
        found.filter(|failure| failure.at <= now && now.since(failure.at) <= REMEMBERED)
    }
}

fn keys(subject: &Subject<'_>) -> impl Iterator<Item = Key> {
    let (role, port) = (subject.role, subject.flow.server.port());
    subject.peers().map(move |peer| (role, peer, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Side;

    fn failure(at: i64, port: u16) -> Failure {
        let client = std::net::SocketAddr::from(([192, 0, 2, 10], 40_000));
        let server = std::net::SocketAddr::from(([198, 51, 100, 25], port));
        Failure {
            at: Timestamp::from_secs(at),
            flow: FlowKey { client, server },
            end: HandshakeEnd::Reset(Side::Server),
        }
    }

    fn subject<'a>(flow: FlowKey, names: &'a [&'a str]) -> Subject<'a> {
        Subject { flow, role: Role::Client, names }
    }

    #[test]
    fn nothing_is_left_of_a_connection_whose_peer_changes_its_name() {
        let mut failures = FailedHandshakes::default();
        let one = failure(100, 25).flow;
        let mut other = one;
        other.client.set_port(50_000);
        for name in ["mx1.example.net", "mx2.example.net"] {
            failures.start(&subject(one, &[name]));
        }
        assert_eq!(failures.under_way(&subject(other, &["mx2.example.net"])), Some(one));
        failures.end(one);
        assert!(failures.under_way.is_empty() && failures.begun.is_empty());
    }

    #[test]
    fn a_failure_is_remembered_for_as_long_as_mail_is_retried() {
        let mut failures = FailedHandshakes::default();
        let first = failure(100, 25);
        let names = ["mx.example.net"];
        failures.record(&subject(first.flow, &names), first);
        let mut retry = first.flow;
        retry.client = ([192, 0, 2, 11], 50_000).into();
        let found = |failures: &FailedHandshakes, flow, secs| {
            failures.last_before(&subject(flow, &names), Timestamp::from_secs(secs)).copied()
        };
        assert_eq!(found(&failures, retry, 700), Some(first));
        assert_eq!(found(&failures, retry, 99), None);
        assert_eq!(found(&failures, retry, 100 + 6 * 24 * 3600), None);
        retry.server = "[2001:db8::25]:25".parse().expect("address");
        assert_eq!(found(&failures, retry, 700), Some(first), "the same name at another address");
        retry.server.set_port(587);
        assert_eq!(found(&failures, retry, 700), None);
        failures.clear(&subject(first.flow, &names));
        assert_eq!(found(&failures, first.flow, 700), None);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut failures = FailedHandshakes::default();
        for at in 0..3 * PEERS {
            let port = u16::try_from(at % 60_000).expect("small");
            let failure = failure(i64::try_from(at).expect("small"), port);
            failures.record(&subject(failure.flow, &["mx.example.net"]), failure);
        }
        assert!(failures.newest.len() <= PEERS && failures.order.len() <= PEERS);
    }
}
