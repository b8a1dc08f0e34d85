//! Addresses that recently scraped metrics or health, or have logged in ([`Scrapers`]): they have their own pool of
//! connections and their own rate limit, so that other clients cannot block monitoring.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::connections::wide_network;

/// Time that an address stays known after its last answered request.
const LATELY: Duration = Duration::from_secs(3600);
/// Maximum number of known addresses.
const MAX_KNOWN: usize = 64;
/// Known addresses of one IPv4 /24 or IPv6 /48.
const MAX_PER_NETWORK: usize = 8;

#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    logged_in: bool,
}

/// The known addresses.
#[derive(Default)]
pub(super) struct Scrapers(Mutex<BTreeMap<IpAddr, Seen>>);

impl Scrapers {
    /// Records an answered request of `client`. When the table is full, known addresses stay and `client` remains
    /// unknown; only an address that has logged in replaces one that has not.
    pub(super) fn note(&self, client: IpAddr, logged_in: bool, now: Instant) {
        if client.is_loopback() {
            return;
        }
        let known = &mut *self.lock();
        if let Some(seen) = known.get_mut(&client) {
            *seen = Seen { at: now, logged_in: logged_in || seen.logged_in };
            return;
        }
        known.retain(|_, seen| is_lately(*seen, now));
        let network = wide_network(client);
        let of_network = |address: &IpAddr| wide_network(*address) == network;
        let room = known.keys().filter(|address| of_network(address)).count() < MAX_PER_NETWORK
            || logged_in && remove_oldest_without_login(known, of_network);
        let room = room && (known.len() < MAX_KNOWN || logged_in && remove_oldest_without_login(known, |_| true));
        if room {
            known.insert(client, Seen { at: now, logged_in });
        }
    }

    pub(super) fn contains(&self, client: IpAddr, now: Instant) -> bool {
        self.lock().get(&client).is_some_and(|seen| is_lately(*seen, now))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Seen>> {
        // A panic cannot leave the table half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_lately(seen: Seen, now: Instant) -> bool {
    now.saturating_duration_since(seen.at) < LATELY
}

fn remove_oldest_without_login(known: &mut BTreeMap<IpAddr, Seen>, matches: impl Fn(&IpAddr) -> bool) -> bool {
    let candidates = known.iter().filter(|(address, seen)| !seen.logged_in && matches(address));
    match candidates.min_by_key(|(_, seen)| seen.at).map(|(address, _)| *address) {
        Some(oldest) => known.remove(&oldest).is_some(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(network: usize, host: usize) -> IpAddr {
        format!("10.1.{network}.{host}").parse().unwrap()
    }

    #[test]
    fn an_address_is_known_for_an_hour() {
        let (scrapers, now) = (Scrapers::default(), Instant::now());
        let client = address(0, 1);
        assert!(!scrapers.contains(client, now));
        scrapers.note(client, false, now);
        assert!(scrapers.contains(client, now + LATELY / 2) && !scrapers.contains(client, now + LATELY));
        scrapers.note("127.0.0.1".parse().unwrap(), true, now);
        assert_eq!(scrapers.lock().len(), 1, "loopback has a pool of its own");
    }

    #[test]
    fn strangers_do_not_take_the_place_of_what_is_known() {
        let (scrapers, now) = (Scrapers::default(), Instant::now());
        scrapers.note(address(0, 1), false, now);
        for network in 0..20 {
            for host in 1..100 {
                scrapers.note(address(network, host), false, now + Duration::from_secs(1));
            }
        }
        assert!(scrapers.contains(address(0, 1), now));
        assert_eq!(scrapers.lock().len(), MAX_KNOWN);
        assert_eq!(
            scrapers.lock().keys().filter(|known| wide_network(**known) == wide_network(address(0, 1))).count(),
            8
        );
        // A login takes precedence, even if the network or the table is full.
        scrapers.note(address(0, 200), true, now);
        scrapers.note(address(200, 1), true, now);
        assert!(scrapers.contains(address(0, 200), now) && scrapers.contains(address(200, 1), now));
        assert_eq!(scrapers.lock().len(), MAX_KNOWN);
        // After an hour the entries have expired.
        let later = now + LATELY + Duration::from_secs(1);
        scrapers.note(address(201, 1), false, later);
        assert_eq!(scrapers.lock().len(), 1);
    }
}
