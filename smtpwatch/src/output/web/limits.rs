//! How often something may happen, and how often a login may fail.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Failed logins of one network.
const OF_NETWORK: Quota = Quota { burst: 10, interval: Duration::from_secs(30) };
/// Failed logins of all together: guesses that come from many networks.
const OVERALL: Quota = Quota { burst: 60, interval: Duration::from_secs(1) };
/// Networks that are remembered for their failures.
const MAX_NETWORKS: usize = 4096;

/// So many at once, and one more after each interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Quota {
    /// At once.
    pub(super) burst: u32,
    /// Until there is one more.
    pub(super) interval: Duration,
}

/// What is left of a quota, as a generic cell rate algorithm has it: the time at which all of it is there again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket(Instant);

impl Bucket {
    /// All of a quota.
    pub(super) const fn full(now: Instant) -> Self {
        Self(now)
    }

    /// Takes one; how long to wait when there is none.
    pub(super) fn take(&mut self, quota: Quota, now: Instant) -> Result<(), Duration> {
        let full_at = self.0.max(now) + quota.interval;
        let missing = full_at - now;
        match missing.checked_sub(quota.interval * quota.burst) {
            None | Some(Duration::ZERO) => {
                self.0 = full_at;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }

    fn give_back(&mut self, quota: Quota) {
        self.0 = self.0.checked_sub(quota.interval).unwrap_or(self.0);
    }
}

/// Who failed to log in, and how often. An attempt is paid for before the password is looked at, and a good one is given
/// back: many at once get no further than one after the other.
pub(super) struct Logins(Mutex<Table>);

struct Table {
    networks: BTreeMap<Ipv6Addr, Bucket>,
    overall: Bucket,
}

impl Logins {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Table { networks: BTreeMap::new(), overall: Bucket::full(now) }))
    }

    /// An attempt from this network; how long to wait when it is one too many.
    pub(super) fn attempt(&self, network: Ipv6Addr, now: Instant) -> Result<(), Duration> {
        let networks = &mut self.lock().networks;
        if networks.len() >= MAX_NETWORKS && !networks.contains_key(&network) {
            networks.retain(|_, bucket| bucket.0 > now);
            if networks.len() >= MAX_NETWORKS
                && let Some(least) = networks.iter().min_by_key(|(_, bucket)| bucket.0).map(|(network, _)| *network)
            {
                networks.remove(&least);
            }
        }
        networks.entry(network).or_insert(Bucket::full(now)).take(OF_NETWORK, now)
    }

    /// An attempt whose password has to be looked at.
    pub(super) fn attempt_overall(&self, now: Instant) -> Result<(), Duration> {
        self.lock().overall.take(OVERALL, now)
    }

    /// The attempt was none to guess.
    pub(super) fn succeeded(&self, network: Ipv6Addr, looked_at: bool, now: Instant) {
        let table = &mut *self.lock();
        if let Some(bucket) = table.networks.get_mut(&network) {
            bucket.give_back(OF_NETWORK);
            if bucket.0 <= now {
                table.networks.remove(&network);
            }
        }
        if looked_at {
            table.overall.give_back(OVERALL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // What a panicking thread left is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one who guesses has for himself: an IPv4 address, or an IPv6 /64.
pub(super) fn network(client: IpAddr) -> Ipv6Addr {
    match client.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_one_per_interval() {
        let (start, quota) = (Instant::now(), Quota { burst: 3, interval: Duration::from_secs(10) });
        let mut bucket = Bucket::full(start);
        for _ in 0..3 {
            assert_eq!(bucket.take(quota, start), Ok(()));
        }
        assert_eq!(bucket.take(quota, start), Err(Duration::from_secs(10)));
        assert_eq!(bucket.take(quota, start + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        assert_eq!(bucket.take(quota, start + Duration::from_secs(10)), Ok(()));
        bucket.give_back(quota);
        assert_eq!(bucket.take(quota, start + Duration::from_secs(10)), Ok(()));
        let later = start + Duration::from_secs(1000);
        assert_eq!((0..9).filter(|_| bucket.take(quota, later).is_ok()).count(), 3);
    }

    #[test]
    fn one_network_does_not_use_up_the_attempts_of_another() {
        let now = Instant::now();
        let logins = Logins::new(now);
        let [guesser, other] = ["2001:db8::1", "2001:db8:0:1::1"].map(|text| network(text.parse().unwrap()));
        assert_eq!((0..99).filter(|_| logins.attempt(guesser, now).is_ok()).count(), 10);
        assert_eq!(logins.attempt(other, now), Ok(()));
        assert!(logins.attempt(network("2001:db8::2".parse().unwrap()), now).is_err(), "the same /64");
        assert_eq!((0..99).filter(|_| logins.attempt_overall(now).is_ok()).count(), 60);
    }

    #[test]
    fn who_logs_in_pays_nothing() {
        let now = Instant::now();
        let logins = Logins::new(now);
        let network = network("192.0.2.1".parse().unwrap());
        for _ in 0..1000 {
            assert_eq!((logins.attempt(network, now), logins.attempt_overall(now)), (Ok(()), Ok(())));
            logins.succeeded(network, true, now);
        }
        assert!(logins.lock().networks.is_empty());
    }

    #[test]
    fn the_table_has_a_bound() {
        let now = Instant::now();
        let logins = Logins::new(now);
        for address in 0..6000 {
            assert_eq!(logins.attempt(network(IpAddr::V4(address.into())), now), Ok(()));
        }
        assert_eq!(logins.lock().networks.len(), MAX_NETWORKS);
    }

    #[test]
    fn networks() {
        for (client, expected) in [
            ("192.0.2.7", "::ffff:192.0.2.7"),
            ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            assert_eq!(network(client.parse().unwrap()), expected.parse::<Ipv6Addr>().unwrap(), "{client}");
        }
    }
}
