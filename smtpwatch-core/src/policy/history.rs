//! History of peers, from this host's own sessions (RFC 3207 §6; docs/threats.md FP-1, FP-3, FP-21).
//!
//! [`History`] is a bounded table of [`HistoryRecord`]s. The engine records each session in it; the store persists the
//! records.

mod days;
mod rate;
mod record;
pub mod surprise;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use slab::Slab;

use self::surprise::{Population, Priors};
pub use self::{
    days::{Spread, Tally},
    rate::{Rate, Wear},
    record::{HistoryKey, HistoryPeer, HistoryRecord, KnownName, SessionNote, is_peer, normal_peer, peer_text},
};
use crate::{Role, hash::HashMap, lru::LruLists};

/// Maximum capacity that is allocated at the start: more than there are mail hosts.
const AT_ONCE: usize = 10_000_000;
/// Divisor: each role owns this part of the rows. It may use more while the other role does not need it.
const SHARE: usize = 2;
/// Divisor: this part of the rows stays free for a role, whatever the other one needs.
const RESERVE: usize = 8;
/// Rows by address of one network (IPv4 /24, IPv6 /48) that are not evicted first: enough for a /24 full of mail hosts.
const QUOTA: usize = 256;
/// Divisor for a small table: one network may have this part of it, but at least [`QUOTA_LEAST`] rows.
const QUOTA_PART: usize = 64;
const QUOTA_LEAST: usize = 16;

/// Bounded table of the history of all peers.
///
/// If the table is full, the evicted row has the role of the inserted row: it is the least recently seen one of the
/// lowest `Class`. Only while the other role has more than its half does that role give up a row, and never an
/// established one. Rows of strangers are in the lowest classes, so a stranger evicts only strangers, and first those
/// of a network with many rows. Each operation takes constant time.
#[derive(Debug)]
pub struct History {
    places: HashMap<Arc<HistoryKey>, usize>,
    rows: Slab<Row>,
    /// LRU lists by the newest session, one for each role and class.
    ages: LruLists<LISTS>,
    networks: HashMap<Network, Count>,
    /// Number of rows of each role.
    roles: [usize; 2],
    /// Shares of the peers of each role, by address: of offers, and of their use.
    populations: [[Population; 2]; 2],
    capacity: usize,
    quota: u32,
}

/// Number of lists: one for each role and class.
const LISTS: usize = 2 * Class::ALL.len();

#[derive(Debug)]
struct Row {
    /// The key in `places`.
    key: Arc<HistoryKey>,
    record: HistoryRecord,
    class: Class,
}

/// Value of a row; the lowest class is evicted first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    /// The network has more rows of this value than its quota.
    Surplus,
    /// Too weak to be evidence.
    Young,
    /// Strong enough to be evidence.
    Known,
    /// Strong for many sessions over days.
    Established,
}

impl Class {
    const ALL: [Self; 4] = [Self::Surplus, Self::Young, Self::Known, Self::Established];

    /// Class of a record. For a client only the use of STARTTLS counts: the offer was this host's own.
    fn of(role: Role, record: &HistoryRecord, strength: Strength) -> Self {
        let offered = Some(&record.offered).filter(|_| role == Role::Client);
        let strong = || offered.into_iter().chain([&record.used]).filter(|rate| rate.is_strong(strength));
        if strong().any(|rate| rate.wear.established) {
            Self::Established
        } else if strong().next().is_some() {
            Self::Known
        } else {
            Self::Young
        }
    }
}

/// An IPv4 /24 or IPv6 /48 in one role, for which rows are counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Network(Role, u64);

/// Number of young and of known rows of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Count {
    young: u32,
    known: u32,
}

impl Count {
    const fn of(&mut self, class: Class) -> Option<&mut u32> {
        match class {
            Class::Surplus => None,
            Class::Young => Some(&mut self.young),
            Class::Known | Class::Established => Some(&mut self.known),
        }
    }
}

/// The network of a row by address. Rows by name need no quota: they exist only for the few names that a row by address
/// has stored (see [`History::note`]).
fn network(key: &HistoryKey) -> Option<Network> {
    const IPV6: u64 = 1 << 63;
    let HistoryPeer::Address(address) = key.peer else { return None };
    let number = match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
        IpAddr::V6(address) => IPV6 | (address.to_bits() >> 80) as u64,
    };
    Some(Network(key.role, number))
}

/// A row that was evicted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forgotten {
    /// Key of the row.
    pub key: HistoryKey,
    /// The row was strong enough to be evidence, which is lost.
    pub known: bool,
}

impl History {
    /// Creates a table for `capacity` rows.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        // Allocate at once, so that the table never grows while packets wait: growth rehashes every key. The spare
        // quarter avoids rehashing in place as rows come and go. Unused memory is not resident.
        let room = capacity.min(AT_ONCE);
        let room = room + room / 4;
        Self {
            places: HashMap::with_capacity_and_hasher(room, Default::default()),
            rows: Slab::new(),
            ages: LruLists::default(),
            networks: HashMap::with_capacity_and_hasher(room, Default::default()),
            roles: [0; 2],
            populations: Default::default(),
            capacity,
            quota: u32::try_from((capacity / QUOTA_PART).clamp(QUOTA_LEAST, QUOTA)).unwrap_or(u32::MAX),
        }
    }

    /// Maximum number of rows of one role.
    #[must_use]
    pub const fn most(capacity: usize) -> usize {
        capacity - capacity / RESERVE
    }

    /// Restores a stored row; rows that are restored later count as older. Returns the row that is evicted, by the same
    /// rule as in [`Self::note`].
    pub fn restore(&mut self, key: HistoryKey, record: HistoryRecord) -> Option<Forgotten> {
        // The configured thresholds apply when the peer is seen again.
        let strength = Strength::default();
        if let Some(&place) = self.places.get(&key) {
            self.leave(place);
            self.rows[place].record = record;
            self.join(place);
            let list = self.classify(place, strength);
            self.ages.push_front(list, place);
            return None;
        }
        let role = key.role;
        // The row with the lowest value may be the restored row itself.
        let full = self.is_full(role);
        let place = self.insert(key, record);
        let list = self.classify(place, strength);
        self.ages.push_front(list, place);
        full.then(|| self.make_room(role, strength)).flatten()
    }

    /// The record of a peer.
    #[must_use]
    pub fn get(&self, key: &HistoryKey) -> Option<&HistoryRecord> {
        self.places.get(key).map(|&place| &self.rows[place].record)
    }

    /// What is known of a peer of this role before its first session.
    #[must_use]
    pub const fn priors(&self, role: Role) -> Priors {
        let [offered, used] = self.populations[role as usize];
        Priors { offered, used }
    }

    /// Every record, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&HistoryKey, &HistoryRecord)> {
        self.rows.iter().map(|(_, row)| (&*row.key, &row.record))
    }

    /// Copies of at most `most` records from position `from` on, and the next position; `None` at the end. A record
    /// that is added or removed between two calls may or may not be returned; every other record is returned once.
    #[must_use]
    pub fn piece(&self, from: usize, most: usize) -> (Vec<(HistoryKey, HistoryRecord)>, Option<usize>) {
        let end = from.saturating_add(most).min(self.rows.capacity());
        let rows = (from..end).filter_map(|place| self.rows.get(place));
        let rows = rows.map(|row| ((*row.key).clone(), row.record.clone())).collect();
        (rows, (end < self.rows.capacity()).then_some(end))
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the history is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Removes every record whose key `matches`; returns the keys.
    pub fn forget(&mut self, matches: impl Fn(&HistoryKey) -> bool) -> Vec<HistoryKey> {
        let found = self.rows.iter().filter(|(_, row)| matches(&row.key)).map(|(place, _)| place);
        let places: Vec<_> = found.collect();
        places.into_iter().map(|place| self.remove(place)).collect()
    }

    /// Records one session. Returns the updated record and the row that was evicted, if any.
    ///
    /// Add a row by name only if [`Self::admits`] it: a server can give any number of names.
    pub fn note(
        &mut self,
        key: HistoryKey,
        session: SessionNote,
        strength: Strength,
    ) -> (HistoryRecord, Option<Forgotten>) {
        let (place, forgotten) = match self.places.get(&key) {
            Some(&place) => (place, None),
            None => {
                let forgotten = if self.is_full(key.role) { self.make_room(key.role, strength) } else { None };
                let record = HistoryRecord { first_seen: session.at, ..HistoryRecord::default() };
                (self.insert(key, record), forgotten)
            }
        };
        self.leave(place);
        self.rows[place].record.note(session, strength);
        self.join(place);
        let list = self.classify(place, strength);
        self.ages.push_back(list, place);
        (self.rows[place].record.clone(), forgotten)
    }

    /// Whether a row by this name may be added: the server at the address has given this name under TLS, and its
    /// network is within its quota.
    #[must_use]
    pub fn admits(&self, address: &HistoryKey, name: &str) -> bool {
        self.places.get(address).is_some_and(|&place| {
            let row = &self.rows[place];
            row.class > Class::Surplus && row.record.is_named(name)
        })
    }

    /// Whether another row of this role needs an eviction.
    fn is_full(&self, role: Role) -> bool {
        self.rows.len() >= self.capacity || self.roles[role as usize] >= Self::most(self.capacity)
    }

    /// Evicts the row with the lowest value.
    fn make_room(&mut self, role: Role, strength: Strength) -> Option<Forgotten> {
        let share = self.capacity / SHARE;
        let other = match role {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        };
        let (ours, theirs) = (self.roles[role as usize], self.roles[other as usize]);
        let lent = (ours < share && theirs > share).then(|| self.least(other)).flatten();
        let lent = lent.filter(|place| self.rows[*place].class < Class::Established);
        let place = lent.or_else(|| self.least(role)).or_else(|| self.least(other))?;
        let Row { key, record, .. } = &self.rows[place];
        let known = Class::of(key.role, record, strength) >= Class::Known;
        Some(Forgotten { key: self.remove(place), known })
    }

    /// The row of a role with the lowest value.
    fn least(&self, role: Role) -> Option<usize> {
        Class::ALL.into_iter().find_map(|class| self.ages.oldest(list(role, class)))
    }

    /// Adds a row that is not yet in any list or count.
    fn insert(&mut self, key: HistoryKey, record: HistoryRecord) -> usize {
        let key = Arc::new(key);
        self.roles[key.role as usize] += 1;
        let place = self.rows.insert(Row { key: key.clone(), record, class: Class::Surplus });
        self.places.insert(key, place);
        self.join(place);
        place
    }

    /// Adds the shares of a row to those of its population. Rows by name repeat the sessions of rows by address.
    fn join(&mut self, place: usize) {
        let Row { key, record, .. } = &self.rows[place];
        if let HistoryPeer::Address(_) = key.peer {
            let [offered, used] = &mut self.populations[key.role as usize];
            offered.add(&record.offered);
            used.add(&record.used);
        }
    }

    /// Removes the shares of a row from those of its population.
    fn leave(&mut self, place: usize) {
        let Row { key, record, .. } = &self.rows[place];
        if let HistoryPeer::Address(_) = key.peer {
            let [offered, used] = &mut self.populations[key.role as usize];
            offered.remove(&record.offered);
            used.remove(&record.used);
        }
    }

    /// Removes a row from its list, and returns the list to which it belongs.
    fn classify(&mut self, place: usize, strength: Strength) -> usize {
        let Row { key, record, class } = &mut self.rows[place];
        let role = key.role;
        self.ages.unlink(list(role, *class), place);
        let wanted = Class::of(role, record, strength);
        let before = std::mem::replace(class, wanted);
        if let Some(network) = network(key) {
            let count = self.networks.entry(network).or_default();
            if let Some(rows) = count.of(before) {
                *rows -= 1;
            }
            match count.of(wanted) {
                Some(rows) if *rows < self.quota => *rows += 1,
                Some(_) | None => *class = Class::Surplus,
            }
            if *count == Count::default() {
                self.networks.remove(&network);
            }
        }
        list(role, *class)
    }

    fn remove(&mut self, place: usize) -> HistoryKey {
        self.leave(place);
        let Row { key, class, .. } = self.rows.remove(place);
        self.ages.unlink(list(key.role, class), place);
        self.roles[key.role as usize] -= 1;
        self.places.remove(&*key);
        if let Some(network) = network(&key)
            && let Some(count) = self.networks.get_mut(&network)
        {
            if let Some(rows) = count.of(class) {
                *rows -= 1;
            }
            if *count == Count::default() {
                self.networks.remove(&network);
            }
        }
        Arc::unwrap_or_clone(key)
    }
}

const fn list(role: Role, class: Class) -> usize {
    role as usize * Class::ALL.len() + class as usize
}

/// Thresholds from which "always offered" counts as evidence (`[baseline]` of the configuration).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Strength {
    /// Minimum number of sessions seen.
    pub min_sessions: u64,
    /// Minimum share of these sessions that offered STARTTLS, 0 to 1.
    pub min_offer_ratio: f64,
}

impl Default for Strength {
    fn default() -> Self {
        Self { min_sessions: 5, min_offer_ratio: 0.95 }
    }
}
