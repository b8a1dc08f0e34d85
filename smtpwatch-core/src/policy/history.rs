//! History: what this host has seen of a peer itself (RFC 3207 §6; docs/threats.md FP-1, FP-3, FP-21).

mod rate;
mod record;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use slab::Slab;

pub use self::{
    rate::{Rate, Wear},
    record::{HistoryKey, HistoryPeer, HistoryRecord, KnownName, SessionNote, is_peer, normal_peer, peer_text},
};
use crate::{Role, hash::HashMap, lru::LruLists};

/// Rows that room is made for at the start; more than there are hosts that anyone exchanges mail with.
const AT_ONCE: usize = 10_000_000;
/// Each role owns this part of the rows. It may use more while the other role does not need it.
const SHARE: usize = 2;
/// This part of the rows is kept free for a role whatever the other one needs.
const RESERVE: usize = 8;
/// Rows by address of one network (IPv4 /24, IPv6 /48) that are not the first to go: a /24 full of mail hosts has room.
const QUOTA: usize = 256;
/// No network may have more than this part of a small table, or [`QUOTA_LEAST`] rows.
const QUOTA_PART: usize = 64;
const QUOTA_LEAST: usize = 16;

/// What has been seen of every peer, bounded.
///
/// When there is no room, the row that goes is of the role of the row that comes: the least recently seen one of its lowest
/// [`Class`]. Only while the other role has more than its half does that role give a row, and none that is established. So a
/// stranger, whose rows are of the lowest classes, pushes out strangers, and first those of a network that has many.
/// Each operation takes the same time, however many rows there are.
#[derive(Debug)]
pub struct History {
    places: HashMap<Arc<HistoryKey>, usize>,
    rows: Slab<Row>,
    /// By the newest session: of each role, of each class.
    ages: LruLists<LISTS>,
    networks: HashMap<Network, Count>,
    /// Rows of each role.
    roles: [usize; 2],
    capacity: usize,
    quota: u32,
}

/// Role and class of a row.
const LISTS: usize = 2 * Class::ALL.len();

#[derive(Debug)]
struct Row {
    /// The one of `places`.
    key: Arc<HistoryKey>,
    record: HistoryRecord,
    class: Class,
}

/// How much a row is worth; the least goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    /// Its network has more rows of that worth than its quota.
    Surplus,
    /// It accuses of nothing.
    Young,
    /// It is strong enough to accuse.
    Known,
    /// It is so for many sessions over days.
    Established,
}

impl Class {
    const ALL: [Self; 4] = [Self::Surplus, Self::Young, Self::Known, Self::Established];

    /// What the record of a peer is worth. Of a client only that it used STARTTLS: the offer was this host's own.
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

/// A role's IPv4 /24 or IPv6 /48, of which rows are counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Network(Role, u64);

/// Rows of a network that are young, and that accuse.
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

/// The network of a peer that is known by its address. Names need no quota: a row by name is made only for a name that a row by
/// address remembers, and these are few (see [`History::note`]).
fn network(key: &HistoryKey) -> Option<Network> {
    const IPV6: u64 = 1 << 63;
    let HistoryPeer::Address(address) = key.peer else { return None };
    let number = match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
        IpAddr::V6(address) => IPV6 | (address.to_bits() >> 80) as u64,
    };
    Some(Network(key.role, number))
}

/// A row that made room for another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forgotten {
    /// Of whom it spoke.
    pub key: HistoryKey,
    /// It was strong enough to accuse: what it knew is lost.
    pub known: bool,
}

impl History {
    /// Room for `capacity` rows.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        // At once, so that it never grows while packets wait: it would have to look at every key. And with some room to spare,
        // without which it had to be put in order now and then, as rows go and others come. What is not used is not in memory.
        let room = capacity.min(AT_ONCE);
        let room = room + room / 4;
        Self {
            places: HashMap::with_capacity_and_hasher(room, Default::default()),
            rows: Slab::new(),
            ages: LruLists::default(),
            networks: HashMap::with_capacity_and_hasher(room, Default::default()),
            roles: [0; 2],
            capacity,
            quota: u32::try_from((capacity / QUOTA_PART).clamp(QUOTA_LEAST, QUOTA)).unwrap_or(u32::MAX),
        }
    }

    /// Rows that one role may have at most.
    #[must_use]
    pub const fn most(capacity: usize) -> usize {
        capacity - capacity / RESERVE
    }

    /// Puts back a row that was kept elsewhere: rows that are restored later count as older. Returns the row that there is no room
    /// for, by the same rule as [`Self::note`].
    pub fn restore(&mut self, key: HistoryKey, record: HistoryRecord) -> Option<Forgotten> {
        // What the configuration wants of a strong rate is known when the peer is seen again.
        let strength = Strength::default();
        if let Some(&place) = self.places.get(&key) {
            self.rows[place].record = record;
            let list = self.classify(place, strength);
            self.ages.push_front(list, place);
            return None;
        }
        let role = key.role;
        // The least of all may be the row itself.
        let full = self.is_full(role);
        let place = self.insert(key, record);
        let list = self.classify(place, strength);
        self.ages.push_front(list, place);
        full.then(|| self.make_room(role, strength)).flatten()
    }

    /// The row of a peer.
    #[must_use]
    pub fn get(&self, key: &HistoryKey) -> Option<&HistoryRecord> {
        self.places.get(key).map(|&place| &self.rows[place].record)
    }

    /// Every row, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&HistoryKey, &HistoryRecord)> {
        self.rows.iter().map(|(_, row)| (&*row.key, &row.record))
    }

    /// Copies of at most `most` rows from this position on, and the position after them; `None`: there are no more. Rows that
    /// are noted or forgotten between two calls are met or left out, as they come; no other row is.
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

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Forgets every row that `matches`; returns the keys.
    pub fn forget(&mut self, matches: impl Fn(&HistoryKey) -> bool) -> Vec<HistoryKey> {
        let found = self.rows.iter().filter(|(_, row)| matches(&row.key)).map(|(place, _)| place);
        let places: Vec<_> = found.collect();
        places.into_iter().map(|place| self.remove(place)).collect()
    }

    /// Notes one session and returns the row as it stands after it, with the row that had to make room.
    ///
    /// A row by name is made only where [`Self::admits`] it: a server can call itself by any number of names.
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
        self.rows[place].record.note(session, strength);
        let list = self.classify(place, strength);
        self.ages.push_back(list, place);
        (self.rows[place].record.clone(), forgotten)
    }

    /// Whether a row by this name may be made: the server of the address has called itself so under TLS, and its
    /// network has no more rows than its quota.
    #[must_use]
    pub fn admits(&self, address: &HistoryKey, name: &str) -> bool {
        self.places.get(address).is_some_and(|&place| {
            let row = &self.rows[place];
            row.class > Class::Surplus && row.record.is_named(name)
        })
    }

    /// One more row of this role needs room.
    fn is_full(&self, role: Role) -> bool {
        self.rows.len() >= self.capacity || self.roles[role as usize] >= Self::most(self.capacity)
    }

    /// Forgets the row that is worth least.
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

    /// The row of a role that is worth least.
    fn least(&self, role: Role) -> Option<usize> {
        Class::ALL.into_iter().find_map(|class| self.ages.oldest(list(role, class)))
    }

    /// A row that is in none of the orders, and counts nowhere.
    fn insert(&mut self, key: HistoryKey, record: HistoryRecord) -> usize {
        let key = Arc::new(key);
        self.roles[key.role as usize] += 1;
        let place = self.rows.insert(Row { key: key.clone(), record, class: Class::Surplus });
        self.places.insert(key, place);
        place
    }

    /// Takes a row out of its order, and says which one it belongs to.
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

/// When "always offered" is strong enough to accuse (`[baseline]` of the configuration).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Strength {
    /// Sessions that must have been seen.
    pub min_sessions: u64,
    /// Share of them that offered STARTTLS, 0 to 1.
    pub min_offer_ratio: f64,
}

impl Default for Strength {
    fn default() -> Self {
        Self { min_sessions: 5, min_offer_ratio: 0.95 }
    }
}
