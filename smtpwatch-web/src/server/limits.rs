//! Rate limits of requests and of failed logins: token buckets ([`Bucket`]) for requests, and [`LoginThrottle`] for failed
//! logins by network, by account and overall. The authentication middleware calls them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hashlink::LruCache;
use smtpwatch_core::hash;

/// Failed logins of one network.
const OF_NETWORK: Quota = Quota { burst: 10, interval: Duration::from_secs(30) };
/// Failed logins of all networks: bounds distributed guessing.
const OVERALL: Quota = Quota { burst: 60, interval: Duration::from_secs(1) };
/// Maximum number of networks with recorded failures.
const MAX_NETWORKS: usize = 4096;
/// Wrong passwords for a user from an address that this user has logged in from; beyond it, even the right password is
/// refused there. Equal to [`OVERALL`]. Without this bound, the password of a remembered login could be guessed at
/// network speed.
const OF_ACCOUNT: Quota = OVERALL;
/// Maximum number of accounts: pairs of a network and a user that has logged in from it.
const MAX_ACCOUNTS: usize = 256;

/// A burst, and one more after each interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Quota {
    /// Size of the burst.
    pub(super) burst: u32,
    /// Time until one more is allowed.
    pub(super) interval: Duration,
}

/// The remaining quota, as in the generic cell rate algorithm: the time at which the bucket is full again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket(Instant);

impl Bucket {
    /// A full bucket.
    pub(super) const fn full(now: Instant) -> Self {
        Self(now)
    }

    /// Takes one token; the error is the time until there is one.
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

/// A user at a network. The name is stored as its SHA-256: its length is not bounded, and users sometimes type a
/// password as the name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Account {
    network: Ipv6Addr,
    user: String,
}

impl Account {
    pub(super) fn new(client: IpAddr, user: &[u8]) -> Self {
        Self { network: network(client), user: hash::sha256(user) }
    }

    pub(super) const fn network(&self) -> Ipv6Addr {
        self.network
    }
}

/// The buckets that a login attempt has taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Payer {
    /// Only the buckets of the account, which has logged in before: failures of other clients do not count against it.
    Account,
    /// The bucket of the network, and the overall bucket.
    Network,
}

/// Counts failed logins. An attempt takes from its buckets before the password is verified, and a successful one is
/// refunded: parallel attempts have no advantage over sequential ones.
pub(super) struct LoginThrottle(Mutex<Table>);

struct Table {
    networks: BTreeMap<Ipv6Addr, Bucket>,
    overall: Bucket,
    accounts: LruCache<Account, AccountBuckets>,
}

struct AccountBuckets {
    /// [`OF_NETWORK`]: wrong passwords that were verified.
    verified: Bucket,
    /// [`OF_ACCOUNT`]: all wrong passwords, including those refused without verification.
    all: Bucket,
}

impl LoginThrottle {
    pub(super) fn new(now: Instant) -> Self {
        let accounts = LruCache::new(MAX_ACCOUNTS);
        Self(Mutex::new(Table { networks: BTreeMap::new(), overall: Bucket::full(now), accounts }))
    }

    /// Checks a remembered login; the error is the time to wait after too many wrong passwords for this account.
    pub(super) fn remembered(&self, account: &Account, now: Instant) -> Result<(), Duration> {
        match self.lock().accounts.get_mut(account) {
            Some(buckets) => {
                // Taken from a copy: a successful login uses no quota.
                let mut left = buckets.all;
                left.take(OF_ACCOUNT, now)
            }
            None => Ok(()),
        }
    }

    /// Takes quota for a login whose password must be verified; the error is the time to wait.
    pub(super) fn attempt(&self, account: &Account, now: Instant) -> Result<Payer, Duration> {
        let table = &mut *self.lock();
        if let Some(buckets) = table.accounts.get_mut(account) {
            buckets.all.take(OF_ACCOUNT, now)?;
            buckets.verified.take(OF_NETWORK, now)?;
            return Ok(Payer::Account);
        }
        let networks = &mut table.networks;
        if networks.len() >= MAX_NETWORKS && !networks.contains_key(&account.network) {
            networks.retain(|_, bucket| bucket.0 > now);
            if networks.len() >= MAX_NETWORKS
                && let Some(least) = networks.iter().min_by_key(|(_, bucket)| bucket.0).map(|(network, _)| *network)
            {
                networks.remove(&least);
            }
        }
        let bucket = networks.entry(account.network).or_insert(Bucket::full(now));
        bucket.take(OF_NETWORK, now)?;
        if let Err(wait) = table.overall.take(OVERALL, now) {
            // The overall limit was used up by other networks and is not charged to this one.
            bucket.give_back(OF_NETWORK);
            return Err(wait);
        }
        Ok(Payer::Network)
    }

    /// Refunds a successful attempt, and remembers the account.
    pub(super) fn succeeded(&self, account: Account, payer: Payer, now: Instant) {
        let table = &mut *self.lock();
        match payer {
            Payer::Account => {
                if let Some(buckets) = table.accounts.get_mut(&account) {
                    buckets.all.give_back(OF_ACCOUNT);
                    buckets.verified.give_back(OF_NETWORK);
                }
            }
            Payer::Network => {
                if let Some(bucket) = table.networks.get_mut(&account.network) {
                    bucket.give_back(OF_NETWORK);
                    if bucket.0 <= now {
                        table.networks.remove(&account.network);
                    }
                }
                table.overall.give_back(OVERALL);
                // A parallel attempt may have succeeded: failures counted since then stay.
                if table.accounts.get(&account).is_none() {
                    let buckets = AccountBuckets { verified: Bucket::full(now), all: Bucket::full(now) };
                    table.accounts.insert(account, buckets);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panicking thread leaves a valid value.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The unit of login limits: an IPv4 address, or an IPv6 /64.
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

    fn account(client: &str, user: &str) -> Account {
        Account::new(client.parse().unwrap(), user.as_bytes())
    }

    fn attempts(login_throttle: &LoginThrottle, account: &Account, now: Instant) -> usize {
        (0..999).filter(|_| login_throttle.attempt(account, now).is_ok()).count()
    }

    #[test]
    fn one_network_does_not_use_up_the_attempts_of_another() {
        let now = Instant::now();
        let login_throttle = LoginThrottle::new(now);
        assert_eq!(attempts(&login_throttle, &account("2001:db8::1", "anna"), now), 10);
        assert_eq!(
            attempts(&login_throttle, &account("2001:db8::2", "berta"), now),
            0,
            "the same /64, whatever the name"
        );
        assert_eq!(login_throttle.attempt(&account("2001:db8:0:1::1", "anna"), now), Ok(Payer::Network));
        let others: usize =
            (0..99).map(|n| attempts(&login_throttle, &account(&format!("192.0.2.{n}"), "anna"), now)).sum();
        assert_eq!(others, 60 - 11, "all networks together");
        let refused = account("198.51.100.1", "anna");
        assert_eq!(attempts(&login_throttle, &refused, now), 0);
        let later = now + OVERALL.interval * OVERALL.burst;
        assert_eq!(attempts(&login_throttle, &refused, later), 10, "what others have used up is not charged to it");
    }

    #[test]
    fn failures_of_others_do_not_lock_out_an_account_that_has_logged_in() {
        let now = Instant::now();
        let login_throttle = LoginThrottle::new(now);
        let anna = account("192.0.2.1", "anna");
        login_throttle.succeeded(anna.clone(), login_throttle.attempt(&anna, now).unwrap(), now);
        // Other users of the same address, and other addresses.
        attempts(&login_throttle, &account("192.0.2.1", "berta"), now);
        let others: usize =
            (2..200).map(|n| attempts(&login_throttle, &account(&format!("192.0.2.{n}"), "anna"), now)).sum();
        assert_eq!(others, 50);
        assert!(login_throttle.attempt(&account("203.0.113.1", "anna"), now).is_err(), "none is left for strangers");
        assert_eq!(login_throttle.remembered(&anna, now), Ok(()));
        assert_eq!(login_throttle.attempt(&anna, now), Ok(Payer::Account), "also when its login is not remembered");
        // Its own failures slow it down; a remembered login is admitted anyway.
        assert_eq!(attempts(&login_throttle, &anna, now + Duration::from_millis(1)), 9);
        let login_throttle = LoginThrottle::new(now);
        login_throttle.succeeded(anna.clone(), Payer::Network, now);
        assert_eq!((0..30).filter(|_| login_throttle.attempt(&anna, now).is_ok()).count(), 10);
        assert_eq!(login_throttle.remembered(&anna, now), Ok(()));
    }

    #[test]
    fn a_remembered_login_cannot_be_guessed_at_the_speed_of_the_network() {
        let now = Instant::now();
        let login_throttle = LoginThrottle::new(now);
        let anna = account("192.0.2.1", "anna");
        login_throttle.succeeded(anna.clone(), Payer::Network, now);
        assert_eq!(attempts(&login_throttle, &anna, now), 10);
        assert!(login_throttle.remembered(&anna, now).is_err(), "the right one looks like a wrong one");
        assert_eq!(login_throttle.remembered(&anna, now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn a_good_login_takes_nothing() {
        let now = Instant::now();
        let login_throttle = LoginThrottle::new(now);
        for n in 0..1000 {
            let account = account("192.0.2.1", if n % 2 == 0 { "anna" } else { "berta" });
            let payer = login_throttle.attempt(&account, now).unwrap();
            login_throttle.succeeded(account, payer, now);
        }
        let table = login_throttle.lock();
        assert!(table.networks.is_empty() && table.overall.0 <= now);
        assert_eq!(table.accounts.len(), 2);
    }

    #[test]
    fn the_tables_have_bounds() {
        let mut now = Instant::now();
        let login_throttle = LoginThrottle::new(now);
        for address in 0..6000_u32 {
            now += OVERALL.interval;
            let account = Account::new(IpAddr::V4(address.into()), b"anna");
            let payer = login_throttle.attempt(&account, now).unwrap();
            if address % 2 == 0 {
                login_throttle.succeeded(account, payer, now);
            }
            assert!(
                login_throttle.lock().networks.len() <= MAX_NETWORKS
                    && login_throttle.lock().accounts.len() <= MAX_ACCOUNTS
            );
        }
        assert_eq!(login_throttle.lock().accounts.len(), MAX_ACCOUNTS);
        let now = Instant::now();
        let login_throttle = LoginThrottle::new(now);
        for address in 0..6000_u32 {
            login_throttle.lock().overall = Bucket::full(now);
            assert_eq!(
                login_throttle.attempt(&Account::new(IpAddr::V4(address.into()), b"anna"), now),
                Ok(Payer::Network)
            );
        }
        assert_eq!(login_throttle.lock().networks.len(), MAX_NETWORKS);
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
