//! TLS handshakes that failed a while ago: the first half of a downgrade across connections (THREATS D1).

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use crate::{FlowKey, Role, Timestamp, smtp::HandshakeEnd};

/// Peers remembered; the oldest failure makes room.
const PEERS: usize = 4096;
/// A mail server retries in clear after its back-off at the earliest, and gives up after five days (Postfix
/// `minimal_backoff_time`, `maximal_queue_lifetime`).
const REMEMBERED: Duration = Duration::from_secs(5 * 24 * 3600);

/// One failed handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// When the connection ended.
    pub at: Timestamp,
    /// The connection.
    pub flow: FlowKey,
    /// How.
    pub end: HandshakeEnd,
}

type Pair = (Role, IpAddr, IpAddr, u16);

/// The newest failure of each pair of hosts.
#[derive(Debug, Default)]
pub struct Failures {
    newest: HashMap<Pair, Failure>,
    order: VecDeque<(Timestamp, Pair)>,
}

impl Failures {
    /// Notes a failure.
    pub fn note(&mut self, role: Role, failure: Failure) {
        let pair = pair(role, failure.flow);
        self.newest.insert(pair, failure);
        self.order.push_back((failure.at, pair));
        while self.order.len() > PEERS {
            let Some((at, pair)) = self.order.pop_front() else { return };
            if self.newest.get(&pair).is_some_and(|newest| newest.at == at) {
                self.newest.remove(&pair);
            }
        }
    }

    /// TLS came about: what failed before is not what makes the peer speak in clear.
    pub fn forgive(&mut self, role: Role, flow: FlowKey) {
        self.newest.remove(&pair(role, flow));
    }

    /// The failure before `now` that may explain why this flow is in clear.
    #[must_use]
    pub fn before(&self, role: Role, flow: FlowKey, now: Timestamp) -> Option<&Failure> {
        self.newest.get(&pair(role, flow)).filter(|failure| failure.at <= now && now.since(failure.at) <= REMEMBERED)
    }
}

const fn pair(role: Role, flow: FlowKey) -> Pair {
    (role, flow.client.ip(), flow.server.ip(), flow.server.port())
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

    #[test]
    fn a_failure_is_remembered_for_as_long_as_mail_is_retried() {
        let mut failures = Failures::default();
        let first = failure(100, 25);
        failures.note(Role::Client, first);
        let mut retry = first.flow;
        retry.client.set_port(50_000);
        let found =
            |failures: &Failures, secs| failures.before(Role::Client, retry, Timestamp::from_secs(secs)).copied();
        assert_eq!(found(&failures, 700), Some(first));
        assert_eq!(found(&failures, 99), None);
        assert_eq!(found(&failures, 100 + 6 * 24 * 3600), None);
        failures.forgive(Role::Client, retry);
        assert_eq!(found(&failures, 700), None);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut failures = Failures::default();
        for at in 0..3 * PEERS {
            let port = u16::try_from(at % 60_000).expect("small");
            failures.note(Role::Client, failure(i64::try_from(at).expect("small"), port));
        }
        assert!(failures.newest.len() <= PEERS && failures.order.len() <= PEERS);
    }
}
