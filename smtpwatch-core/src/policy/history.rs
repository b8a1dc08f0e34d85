//! History: what this host has itself seen of a peer (RFC 3207 §6; THREATS FP-1, FP-3, FP-21).

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use slab::Slab;

use super::profile::Profile;
use crate::{Role, Timestamp, hash::HashMap, order::Order};

/// Interruptions of the offer that came back and are forgiven: one outage, one strip that ended. A farm whose members
/// answer differently soon shows more of them.
const FORGIVEN_RETURNS: u64 = 2;
/// Rows that room is made for at the start; more than there are hosts that anybody exchanges mail with.
const AT_ONCE: usize = 10_000_000;

/// What has been seen of every peer, bounded; the least recently seen makes room.
#[derive(Debug)]
pub struct History {
    places: HashMap<Arc<HistoryKey>, usize>,
    rows: Slab<Row>,
    /// By the newest session.
    ages: Order,
    capacity: usize,
}

#[derive(Debug)]
struct Row {
    /// The one of `places`.
    key: Arc<HistoryKey>,
    record: HistoryRecord,
}

impl History {
    /// Room for `capacity` rows.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        // At once, so that it never grows while packets wait: it would have to look at every key. And with some room to spare,
        // without which it had to be put in order now and then, as rows go and others come. What is not used is not in memory.
        let room = capacity.min(AT_ONCE);
        let places = HashMap::with_capacity_and_hasher(room + room / 4, Default::default());
        Self { places, rows: Slab::new(), ages: Order::default(), capacity }
    }

    /// Puts back a row that was kept elsewhere: rows that are restored later count as older.
    pub fn restore(&mut self, key: HistoryKey, record: HistoryRecord) {
        match self.places.get(&key) {
            Some(&place) => self.rows[place].record = record,
            None => {
                let place = self.insert(key, record);
                self.ages.put_last(place);
            }
        }
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

    /// Notes one session and returns the row as it stands after it, with the rows that had to make room: of a full table one.
    pub fn note(
        &mut self,
        key: HistoryKey,
        session: SessionNote,
        strength: Strength,
    ) -> (HistoryRecord, Vec<HistoryKey>) {
        let mut forgotten = Vec::new();
        let place = match self.places.get(&key) {
            Some(&place) => place,
            None => {
                while self.rows.len() >= self.capacity
                    && let Some(oldest) = self.ages.oldest()
                {
                    forgotten.push(self.remove(oldest));
                }
                self.insert(key, HistoryRecord { first_seen: session.at, ..HistoryRecord::default() })
            }
        };
        self.ages.renew(place);
        let record = &mut self.rows[place].record;
        record.note(session, strength);
        (record.clone(), forgotten)
    }

    fn insert(&mut self, key: HistoryKey, record: HistoryRecord) -> usize {
        let key = Arc::new(key);
        let place = self.rows.insert(Row { key: key.clone(), record });
        self.places.insert(key, place);
        place
    }

    fn remove(&mut self, place: usize) -> HistoryKey {
        self.ages.take_out(place);
        let Row { key, .. } = self.rows.remove(place);
        self.places.remove(&*key);
        Arc::unwrap_or_clone(key)
    }
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

/// What one session says about a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionNote {
    /// When it was judged.
    pub at: Timestamp,
    /// The last EHLO reply in clear offered STARTTLS.
    pub offered: bool,
    /// TLS began.
    pub used: bool,
    /// What the peer looked like, of a session under TLS: what a later session in clear is compared with.
    pub profile: Option<Profile>,
}

/// Of whom a record speaks. The own address is part of it, because a server may offer differently to each client (FP-3).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct HistoryKey {
    /// Which end this host is.
    pub role: Role,
    /// This host's address.
    pub own: IpAddr,
    /// The peer: one address, or every server that calls itself by a name.
    pub peer: HistoryPeer,
    /// The server's port.
    pub port: u16,
}

/// The two ways to know a peer again.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryPeer {
    /// By address.
    Address(IpAddr),
    /// By the name in greeting or EHLO reply, in lower case.
    Name(String),
}

/// How often something was so: a rate, not a bit (THREATS FP-1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rate {
    /// Sessions in which it was so.
    pub yes: u64,
    /// Sessions in which it was not, while the rate was too weak to call that a regression.
    pub no: u64,
    /// Times it came back after a regression: a farm whose members differ does this often, a strip does not.
    pub returns: u64,
    /// The newest sessions in a row that were a regression. They do not weaken the rate: otherwise a strip that lasts
    /// would become the norm and accuse itself of nothing.
    pub run: u64,
}

impl Rate {
    /// Share of sessions in which it was so, as far as they speak of the peer itself: 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        let counted = self.yes + self.no + self.returns.saturating_sub(FORGIVEN_RETURNS);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts far below 2^52")]
        if counted == 0 { 0.0 } else { self.yes as f64 / counted as f64 }
    }

    /// Sessions that count.
    #[must_use]
    pub const fn sessions(&self) -> u64 {
        self.yes + self.no
    }

    /// Whether the rate is strong enough to call the opposite a regression.
    #[must_use]
    pub fn is_strong(&self, strength: Strength) -> bool {
        self.sessions() >= strength.min_sessions && self.share() >= strength.min_offer_ratio
    }

    fn note(&mut self, so: bool, strength: Strength) {
        let strong = self.is_strong(strength);
        if so {
            self.yes += 1;
            self.returns += u64::from(self.run > 0);
            self.run = 0;
        } else if strong {
            self.run += 1;
        } else {
            self.no += 1;
        }
    }
}

/// What was seen of a peer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HistoryRecord {
    /// Sessions whose EHLO reply in clear was seen whole.
    pub sessions: u64,
    /// In how many the server offered STARTTLS.
    pub offered: Rate,
    /// In how many of those that offered it TLS began.
    pub used: Rate,
    /// First session.
    pub first_seen: Timestamp,
    /// Newest session.
    pub last_seen: Timestamp,
    /// Newest session that offered STARTTLS.
    pub last_offered: Timestamp,
    /// What the peer looked like when TLS last began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Box<Profile>>,
}

impl HistoryRecord {
    /// The offers in words: `offered in 412 of 412 sessions since 2026-10-02`.
    #[must_use]
    pub fn offers(&self) -> String {
        format!(
            "offered in {} of {} sessions since {}",
            self.offered.yes,
            self.offered.sessions(),
            self.first_seen.date()
        )
    }

    /// The use in words: `used in 412 of 412 sessions since 2026-10-02`.
    #[must_use]
    pub fn uses(&self) -> String {
        format!("used in {} of {} sessions since {}", self.used.yes, self.used.sessions(), self.first_seen.date())
    }

    /// The answers to EHLO in words: `EHLO was answered in 412 sessions since 2026-10-02`.
    #[must_use]
    pub fn answers(&self) -> String {
        format!("EHLO was answered in {} sessions since {}", self.sessions, self.first_seen.date())
    }

    fn note(&mut self, session: SessionNote, strength: Strength) {
        self.sessions += 1;
        self.last_seen = self.last_seen.max(session.at);
        self.offered.note(session.offered, strength);
        if session.offered {
            self.last_offered = self.last_offered.max(session.at);
            self.used.note(session.used, strength);
        }
        if let Some(profile) = session.profile {
            let profile = match self.profile.take() {
                Some(before) => profile.after(&before),
                None => profile,
            };
            self.profile = Some(Box::new(profile));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(last: u8) -> HistoryKey {
        HistoryKey {
            role: Role::Client,
            own: [192, 0, 2, 1].into(),
            peer: HistoryPeer::Address([198, 51, 100, last].into()),
            port: 25,
        }
    }

    fn record(pattern: &str) -> HistoryRecord {
        let mut history = History::new(10);
        for (second, offer) in (0..).zip(pattern.chars()) {
            let at = Timestamp::from_secs(second);
            let note = SessionNote { at, offered: offer == 'O', used: offer == 'O', profile: None };
            history.note(key(1), note, Strength::default());
        }
        history.get(&key(1)).expect("noted").clone()
    }

    #[test]
    fn a_lasting_strip_does_not_become_the_norm() {
        let stripped = record("OOOOO.........................");
        assert!(stripped.offered.is_strong(Strength::default()));
        assert_eq!(stripped.offered, Rate { yes: 5, no: 0, returns: 0, run: 25 });
        assert_eq!(stripped.offers(), "offered in 5 of 5 sessions since 1970-01-01");
    }

    #[test]
    fn one_interruption_that_ended_is_forgiven() {
        assert!(record("OOOOOO...OOO").offered.is_strong(Strength::default()));
    }

    #[test]
    fn pieces_make_up_the_whole() {
        let mut history = History::new(100);
        for last in 0..50 {
            history.restore(key(last), HistoryRecord { sessions: u64::from(last), ..HistoryRecord::default() });
        }
        assert_eq!(
            history
                .forget(|key| matches!(key.peer, HistoryPeer::Address(IpAddr::V4(ip)) if ip.octets()[3] % 7 == 3))
                .len(),
            7
        );
        let (mut rows, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let (piece, after) = history.piece(from, 8);
            assert!(piece.len() <= 8);
            rows.extend(piece);
            next = after;
        }
        let mut all: Vec<_> = history.iter().map(|(key, record)| (key.clone(), record.clone())).collect();
        rows.sort_by_key(|(_, record)| record.sessions);
        all.sort_by_key(|(_, record)| record.sessions);
        assert_eq!((rows.len(), &rows), (43, &all));
    }

    #[test]
    fn a_farm_is_a_rate_and_is_not_accused() {
        assert!(!record("O.O.O.O.O.").offered.is_strong(Strength::default()), "FP-1: mixed from the start");
        assert!(!record("OOOOO.O.O.O.O.O").offered.is_strong(Strength::default()), "FP-1: mixed after a lucky start");
    }

    #[test]
    fn too_few_sessions_are_not_strong() {
        assert!(!record("OOOO").offered.is_strong(Strength::default()));
        assert!(record("OOOOO").offered.is_strong(Strength::default()));
    }

    #[test]
    fn the_least_recently_seen_makes_room() {
        let mut history = History::new(4);
        let mut gone = Vec::new();
        for last in 0..9 {
            let note =
                SessionNote { at: Timestamp::from_secs(i64::from(last)), offered: true, used: true, profile: None };
            gone.extend(history.note(key(last), note, Strength::default()).1);
        }
        assert_eq!(history.len(), 4);
        assert_eq!(gone, (0..5).map(key).collect::<Vec<_>>());
    }
}
