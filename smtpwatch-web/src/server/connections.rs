//! The open connections, and the choice of the one to close for another. The accept loop calls [`Connections::admit`]
//! for each new connection, and closes one whose [`Slot::closed`] resolves.
//!
//! There are three pools, so that no kind of client can block another: clients on loopback, known scrapers
//! ([`Scrapers`]), and all others. A connection is idle while no complete request has arrived on it: before the first
//! request, during a TLS handshake, during a head that arrives slowly, and between two requests. Idle connections are
//! closed before any client is refused.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::Notify;

use super::{limits::network, scrapers::Scrapers};
use crate::metrics::{ConnectionClosed, WebMetrics};

/// Idle connections of one IPv4 address or IPv6 /64. A browser holds about 6.
const IDLE_PER_ADDRESS: usize = 32;
/// Idle connections of one IPv4 /24 or IPv6 /48.
const IDLE_PER_NETWORK: usize = 64;
/// From this number on, an address can lose a connection with a request under way when its pool is full.
const BUSY_SHARE: usize = 8;

/// The pool of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Pool {
    Loopback,
    Known,
    Other,
}

impl Pool {
    /// Maximum of open connections in this pool.
    const fn bound(self) -> usize {
        match self {
            Self::Loopback | Self::Other => 128,
            Self::Known => 64,
        }
    }
}

struct Entry {
    pool: Pool,
    address: Ipv6Addr,
    network: Ipv6Addr,
    /// Active requests.
    requests: u32,
    /// Whether a request on it has ended.
    answered: bool,
    /// Sequence number of its last change between idle and busy.
    changed: u64,
    close: Arc<Notify>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<u64, Entry>,
    /// Number of the next connection or change.
    next: u64,
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Closes the oldest of the connections that `matches` selects, preferring those with an answered request: on the
    /// others a request may still be unread. Returns whether there was one.
    fn close_oldest(&mut self, matches: impl Fn(&Entry) -> bool) -> bool {
        let selected = self.entries.iter().filter(|(_, entry)| matches(entry));
        let Some(oldest) = selected.min_by_key(|(_, entry)| (!entry.answered, entry.changed)).map(|(id, _)| *id) else {
            return false;
        };
        if let Some(entry) = self.entries.remove(&oldest) {
            entry.close.notify_one();
        }
        true
    }

    fn count(&self, matches: impl Fn(&Entry) -> bool) -> usize {
        self.entries.values().filter(|entry| matches(entry)).count()
    }

    /// The address with the most connections that `matches` selects, and their number; of equals, the one with the
    /// oldest connection.
    fn busiest(&self, matches: impl Fn(&Entry) -> bool) -> Option<(Ipv6Addr, usize)> {
        let mut counts: BTreeMap<Ipv6Addr, (usize, u64)> = BTreeMap::new();
        for entry in self.entries.values().filter(|entry| matches(entry)) {
            let (count, oldest) = counts.entry(entry.address).or_insert((0, entry.changed));
            *count += 1;
            *oldest = entry.changed.min(*oldest);
        }
        let most = counts.into_iter().max_by_key(|(_, (count, oldest))| (*count, std::cmp::Reverse(*oldest)));
        most.map(|(address, (count, _))| (address, count))
    }
}

/// All open connections.
pub(super) struct Connections {
    table: Mutex<Table>,
    scrapers: Arc<Scrapers>,
    metrics: Arc<WebMetrics>,
}

impl Connections {
    pub(super) fn new(scrapers: Arc<Scrapers>, metrics: Arc<WebMetrics>) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), scrapers, metrics })
    }

    /// Admits a connection of `client`, and closes others if a bound is reached. `None`: all connections of its pool
    /// have an active request, and no address has a large share of them.
    pub(super) fn admit(self: &Arc<Self>, client: IpAddr, now: Instant) -> Option<Slot> {
        let pool = if client.is_loopback() {
            Pool::Loopback
        } else if self.scrapers.contains(client, now) {
            Pool::Known
        } else {
            Pool::Other
        };
        let (address, network) = (network(client), wide_network(client));
        let table = &mut *self.lock();
        let idle = |entry: &Entry| entry.requests == 0;
        let of_address = |entry: &Entry| idle(entry) && entry.address == address;
        while table.count(of_address) >= IDLE_PER_ADDRESS && table.close_oldest(of_address) {
            self.metrics.web_connection_closed(ConnectionClosed::IdleAddress);
        }
        let of_network = |entry: &Entry| idle(entry) && entry.network == network;
        while table.count(of_network) >= IDLE_PER_NETWORK && table.close_oldest(of_network) {
            self.metrics.web_connection_closed(ConnectionClosed::IdleNetwork);
        }
        if table.count(|entry| entry.pool == pool) >= pool.bound() {
            let idle = |entry: &Entry| idle(entry) && entry.pool == pool;
            let busy = |entry: &Entry| entry.pool == pool;
            if let Some((most, _)) = table.busiest(idle) {
                table.close_oldest(|entry| idle(entry) && entry.address == most);
                self.metrics.web_connection_closed(ConnectionClosed::IdleFull);
            } else if let Some((most, BUSY_SHARE..)) = table.busiest(busy) {
                table.close_oldest(|entry| busy(entry) && entry.address == most);
                self.metrics.web_connection_closed(ConnectionClosed::BusyFull);
            } else {
                self.metrics.web_connection_refused();
                return None;
            }
        }
        let (id, changed, close) = (table.number(), table.number(), Arc::new(Notify::new()));
        table
            .entries
            .insert(id, Entry { pool, address, network, requests: 0, answered: false, changed, close: close.clone() });
        Some(Slot { connections: self.clone(), id, close })
    }

    /// Records that a request of the connection `id` begins (`true`) or ends.
    fn request(&self, id: u64, begins: bool) {
        let table = &mut *self.lock();
        let changed = table.number();
        if let Some(entry) = table.entries.get_mut(&id) {
            entry.answered |= !begins;
            entry.requests = if begins { entry.requests + 1 } else { entry.requests.saturating_sub(1) };
            entry.changed = changed;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic cannot leave the table half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of one connection, until it is dropped.
pub(super) struct Slot {
    connections: Arc<Connections>,
    id: u64,
    close: Arc<Notify>,
}

impl Slot {
    /// Resolves when the connection must be closed for another.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    /// The request tracker of this connection.
    pub(super) fn requests(&self) -> Requests {
        Requests { connections: self.connections.clone(), id: self.id }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.lock().entries.remove(&self.id);
    }
}

/// Tracks the requests of one connection.
#[derive(Clone)]
pub(super) struct Requests {
    connections: Arc<Connections>,
    id: u64,
}

impl Requests {
    /// Marks a request as active; called when its complete head has arrived.
    pub(super) fn begin(&self) -> UnderWay {
        self.connections.request(self.id, true);
        UnderWay(self.clone())
    }
}

/// An active request: until it is dropped, its connection is not idle.
pub(super) struct UnderWay(Requests);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.connections.request(self.0.id, false);
    }
}

/// The body of a response; its request is active until hyper has consumed all of it.
pub(super) struct ResponseBody {
    pub(super) body: axum::body::Body,
    pub(super) _under_way: UnderWay,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The IPv4 /24 (as an IPv4-mapped address) or the IPv6 /48 of an address.
pub(super) fn wide_network(client: IpAddr) -> Ipv6Addr {
    let (address, host_bits) = match client.to_canonical() {
        IpAddr::V4(address) => (address.to_ipv6_mapped(), 8),
        IpAddr::V6(address) => (address, 80),
    };
    Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << host_bits))
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Waker};

    use super::*;

    /// Whether a connection was selected for closing since the last call.
    fn is_closed(slot: &Slot) -> bool {
        pin!(slot.closed()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn connections() -> Arc<Connections> {
        Connections::new(Arc::default(), Arc::new(WebMetrics::register(&smtpwatch_metrics::Registry::new()).unwrap()))
    }

    fn admit(connections: &Arc<Connections>, client: &str) -> Option<Slot> {
        connections.admit(client.parse().unwrap(), Instant::now())
    }

    fn closed(connections: &Connections, reason: &str) -> u64 {
        let text = connections.metrics.render();
        let name = format!("smtpwatch_web_connections_closed_total{{reason=\"{reason}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }

    #[test]
    fn idle_connections_have_a_bound_per_address_and_the_oldest_makes_room() {
        for (client, same) in [("127.0.0.1", "127.0.0.1"), ("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::2")] {
            let connections = connections();
            let mut open: Vec<_> = (0..IDLE_PER_ADDRESS).map(|_| admit(&connections, client).unwrap()).collect();
            assert!(open.iter().all(|slot| !is_closed(slot)));
            let request = open[0].requests().begin();
            open.push(admit(&connections, same).unwrap());
            assert!(open.iter().all(|slot| !is_closed(slot)), "one of them is busy");
            open.push(admit(&connections, same).unwrap());
            let which: Vec<_> = open.iter().map(is_closed).collect();
            assert_eq!(which.iter().position(|closed| *closed), Some(1), "the oldest idle one: {which:?}");
            assert_eq!(which.iter().filter(|closed| **closed).count(), 1);
            assert_eq!(closed(&connections, "idle_address"), 1);
            drop(request);
        }
    }

    #[test]
    fn a_connection_that_was_answered_makes_room_before_one_that_was_not() {
        let connections = connections();
        let open: Vec<_> = (0..IDLE_PER_ADDRESS).map(|_| admit(&connections, "127.0.0.1").unwrap()).collect();
        for answered in [5, 3] {
            drop(open[answered].requests().begin());
        }
        let newer = [(); 3].map(|()| admit(&connections, "127.0.0.1").unwrap());
        let which: Vec<_> = open.iter().enumerate().filter(|(_, slot)| is_closed(slot)).map(|(n, _)| n).collect();
        assert_eq!(which, [0, 3, 5]);
        assert!(!newer.iter().any(is_closed));
    }

    #[test]
    fn many_addresses_of_one_network_have_a_bound_in_common() {
        for (form, bound) in [("192.0.2.", 200), ("2001:db8:0:", 200)] {
            let connections = connections();
            let client = |n: usize| if form.contains(':') { format!("{form}{n}::1") } else { format!("{form}{n}") };
            let open: Vec<_> = (0..bound).map(|n| admit(&connections, &client(n)).unwrap()).collect();
            assert_eq!(open.iter().filter(|slot| !is_closed(slot)).count(), IDLE_PER_NETWORK, "{form}");
            assert_eq!(closed(&connections, "idle_network"), (bound - IDLE_PER_NETWORK) as u64);
        }
    }

    #[test]
    fn a_full_pool_closes_an_idle_connection_of_the_address_with_most() {
        let connections = connections();
        // Each connection is from its own network.
        let mut open: Vec<_> =
            (0..Pool::Other.bound() - 2).map(|n| admit(&connections, &format!("10.1.{n}.1")).unwrap()).collect();
        open.extend((0..2).map(|_| admit(&connections, "10.2.0.1").unwrap()));
        let newest = admit(&connections, "10.3.0.1").unwrap();
        let which: Vec<_> = open.iter().map(is_closed).collect();
        assert_eq!(which.iter().position(|closed| *closed), Some(Pool::Other.bound() - 2));
        assert_eq!(which.iter().filter(|closed| **closed).count(), 1);
        assert!(!is_closed(&newest));
        assert_eq!(closed(&connections, "idle_full"), 1);
        drop(newest);
        assert_eq!(connections.lock().entries.len(), Pool::Other.bound() - 1);
    }

    #[test]
    fn busy_connections_are_refused_to_none_but_the_pool_that_they_fill() {
        let connections = connections();
        let open: Vec<_> =
            (0..Pool::Other.bound()).map(|n| admit(&connections, &format!("10.1.{n}.1")).unwrap()).collect();
        let _busy: Vec<_> = open.iter().map(|slot| slot.requests().begin()).collect();
        assert!(admit(&connections, "10.9.0.1").is_none(), "no address has a large share");
        assert!(open.iter().all(|slot| !is_closed(slot)));
        assert!(connections.metrics.render().contains("smtpwatch_web_connections_refused_total 1\n"));
        connections.scrapers.note("10.9.0.1".parse().unwrap(), false, Instant::now());
        assert!(admit(&connections, "10.9.0.1").is_some(), "a known scraper");
        assert!(admit(&connections, "127.0.0.1").is_some() && admit(&connections, "::1").is_some());
    }

    #[test]
    fn an_address_that_fills_a_pool_with_requests_loses_the_oldest() {
        let connections = connections();
        let open: Vec<_> = (0..Pool::Loopback.bound())
            .map(|_| {
                let slot = admit(&connections, "127.0.0.1").unwrap();
                let request = slot.requests().begin();
                (slot, request)
            })
            .collect();
        assert!(admit(&connections, "127.0.0.1").is_some());
        assert!(is_closed(&open[0].0) && !open[1..].iter().any(|(slot, _)| is_closed(slot)));
        assert_eq!(closed(&connections, "busy_full"), 1);
    }
}
