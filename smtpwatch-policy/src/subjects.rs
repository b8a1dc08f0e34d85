//! Schedule of look-ups: which domains and mail hosts are looked up, and when. The table is bounded, each subject has
//! at most one look-up in flight, and the order is: configured domains, then requested subjects, then answers about
//! to expire. Time and randomness are arguments. [`super::service::Service`] owns the [`Subjects`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use smtpwatch_core::{
    Timestamp,
    policy::{
        memory::Memory,
        published::{LookupRequest, LookupResult},
    },
};

use super::line::Line;

/// Maximum number of domains, and of mail hosts: neither kind evicts the other. The least recently requested subject
/// is evicted first, a domain with a remembered MTA-STS policy only if there is no other.
pub const SUBJECTS: usize = 10_000;
/// Maximum size of all answers and policies in bytes, in addition to the fixed size per subject: a policy rarely
/// exceeds one KiB, but may have 64.
pub const OCTETS: usize = 64 * 1024 * 1024;
/// Maximum number of subjects that wait for their first look-up, besides configured ones; the one that waited longest
/// is dropped.
pub const WAITING: usize = 1_000;
/// Refreshes of a subject end after this time without a request.
const IDLE: Duration = Duration::from_secs(7 * 86_400);
/// Minimum interval between scheduled refreshes of a subject, whatever the TTL of its records; a request after expiry
/// starts a look-up at once.
const SELDOM: Duration = Duration::from_secs(900);
/// Maximum interval between refreshes (RFC 8461 §3.3 suggests once a day).
const OFTEN: Duration = Duration::from_secs(86_400);
/// Minimum interval between the starts of refreshes: after a long stop everything is due at once.
const PACE: Duration = Duration::from_millis(100);
/// Delay of a refresh that would exceed the bound of look-ups below its parent, and the maximum number of delays per
/// call.
const PUT_OFF: Duration = Duration::from_secs(10);
const PUT_OFF_AT_ONCE: usize = 100;

/// Result of a request for a subject.
#[derive(Clone, PartialEq, Debug)]
pub enum Asked {
    /// An answer is cached: a copy of it.
    Known(LookupResult),
    /// A look-up is scheduled.
    Waits(Room),
    /// The table is full, and every subject is configured or in flight.
    Refused,
}

/// The subjects that were evicted or dropped for another one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// Evicted from the table.
    pub gone: Option<LookupRequest>,
    /// Dropped from the queue: it had waited longest.
    pub dropped: Option<LookupRequest>,
}

/// The table of subjects, with their answers and their schedule.
#[derive(Debug)]
pub struct Subjects {
    entries: HashMap<LookupRequest, Entry>,
    domains: Share,
    hosts: Share,
    asked: u64,
    /// Configured subjects without an answer.
    first: VecDeque<LookupRequest>,
    /// Other requested subjects without an answer, in the order of their requests.
    line: Line,
    /// Refreshes by time.
    due: BTreeSet<(Timestamp, LookupRequest)>,
    paced_until: Timestamp,
    /// Maximum number of subjects per share.
    capacity: usize,
    /// Size of all answers in bytes.
    octets: usize,
}

/// The share of the domains or of the mail hosts: their number and the order of eviction. Configured subjects are
/// never evicted.
#[derive(Debug, Default)]
struct Share {
    len: usize,
    /// Unprotected subjects by the sequence number of their latest request.
    plain: BTreeMap<u64, LookupRequest>,
    /// Subjects with an unexpired remembered policy, likewise: an attacker could block a new look-up of an evicted
    /// policy (RFC 8461 §10.2).
    guarded: BTreeMap<u64, LookupRequest>,
    /// When the protection of guarded subjects expires.
    ends: BTreeSet<(Timestamp, LookupRequest)>,
}

#[derive(Debug)]
struct Entry {
    /// Sequence number of the latest request: its key in a list of its share.
    order: u64,
    /// When the protection by its policy expires.
    guarded: Option<Timestamp>,
    asked_at: Timestamp,
    /// Configured: never evicted.
    pinned: bool,
    waits: bool,
    in_flight: bool,
    answer: Option<LookupResult>,
    until: Timestamp,
    due: Option<Timestamp>,
    memory: Memory,
    octets: usize,
}

impl Subjects {
    /// Creates a table for `capacity` domains and as many mail hosts.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            domains: Share::default(),
            hosts: Share::default(),
            asked: 0,
            first: VecDeque::new(),
            line: Line::default(),
            due: BTreeSet::new(),
            paced_until: Timestamp::default(),
            capacity: capacity.max(1),
            octets: 0,
        }
    }

    /// Number of subjects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no subjects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Requests a subject; `pinned`: the subject is configured.
    pub fn ask(&mut self, subject: &LookupRequest, pinned: bool, now: Timestamp) -> Asked {
        self.asked += 1;
        let asked = self.asked;
        if let Some(entry) = self.entries.get_mut(subject) {
            let share = share(&mut self.domains, &mut self.hosts, subject);
            share.unlist(subject, entry);
            if entry.is_in_line() {
                self.line.remove(entry.order);
                entry.waits = false;
            }
            entry.order = asked;
            entry.asked_at = now;
            entry.pinned |= pinned;
            share.list(subject, entry);
            if let Some(answer) = entry.answer.as_ref().filter(|_| now < entry.until) {
                return Asked::Known(answer.clone());
            }
            if entry.in_flight || entry.waits {
                return Asked::Waits(Room::default());
            }
            // A repeated request makes the subject the newest of the queue again.
            let dropped = self.line_up(subject);
            return Asked::Waits(Room { gone: None, dropped });
        }
        let gone = if self.is_full(subject) { self.make_room(Some(subject), now) } else { None };
        if self.is_full(subject) {
            return Asked::Refused;
        }
        self.insert(subject.clone(), Memory::default(), pinned, now);
        let dropped = self.line_up(subject);
        Asked::Waits(Room { gone, dropped })
    }

    /// The newest answer, expired or not.
    #[must_use]
    pub fn answer(&self, subject: &LookupRequest) -> Option<&LookupResult> {
        self.entries.get(subject).and_then(|entry| entry.answer.as_ref())
    }

    /// All subjects with an answer.
    #[must_use]
    pub fn answered(&self) -> VecDeque<LookupRequest> {
        let answered = self.entries.iter().filter(|(_, entry)| entry.answer.is_some());
        answered.map(|(subject, _)| subject.clone()).collect()
    }

    /// The newest answer, and the data remembered for the next look-up.
    #[must_use]
    pub fn known(&self, subject: &LookupRequest) -> Option<(&LookupResult, &Memory)> {
        self.entries.get(subject).and_then(|entry| Some((entry.answer.as_ref()?, &entry.memory)))
    }

    /// Inserts an answer stored by an earlier run; it is refreshed as soon as the pace allows.
    pub fn restore(
        &mut self,
        subject: &LookupRequest,
        answer: LookupResult,
        until: Timestamp,
        memory: Memory,
        now: Timestamp,
    ) {
        let octets = octets(&answer, &memory);
        let full = self.is_full(subject) || self.octets + octets > OCTETS;
        if full || self.entries.contains_key(subject) {
            return;
        }
        self.octets += octets;
        self.asked += 1;
        self.insert(subject.clone(), memory, false, now);
        if let Some(entry) = self.entries.get_mut(subject) {
            entry.answer = Some(answer);
            entry.until = until;
            entry.due = Some(now);
            entry.octets = octets;
            self.due.insert((now, subject.clone()));
        }
    }

    /// The next subject to look up, and its remembered data. It is in flight until [`Self::done`] or
    /// [`Self::failed`].
    pub fn next(&mut self, now: Timestamp) -> Option<(LookupRequest, Memory)> {
        while let Some(subject) = self.first.pop_front() {
            if self.entries.get(&subject).is_some_and(|entry| entry.waits) {
                return Some(self.take_off(subject));
            }
        }
        if let Some(subject) = self.line.newest().cloned() {
            return Some(self.take_off(subject));
        }
        if now < self.paced_until {
            return None;
        }
        for _ in 0..PUT_OFF_AT_ONCE {
            let (_, subject) = self.due.first().filter(|(due, _)| *due <= now)?.clone();
            let pinned = self.entries.get(&subject).is_some_and(|entry| entry.pinned);
            if pinned || self.line.has_room(&subject) {
                self.paced_until = now + PACE;
                return Some(self.take_off(subject));
            }
            self.due.pop_first();
            if let Some(entry) = self.entries.get_mut(&subject) {
                entry.due = Some(now + PUT_OFF);
                self.due.insert((now + PUT_OFF, subject));
            }
        }
        None
    }

    /// When [`Self::next`] will return a subject, unless one is requested earlier.
    #[must_use]
    pub fn next_at(&self) -> Option<Timestamp> {
        if !self.first.is_empty() || self.line.is_ready() {
            return Some(Timestamp::default());
        }
        self.due.first().map(|(due, _)| (*due).max(self.paced_until))
    }

    /// Records the result of a look-up. The answer is valid until `until`; `chance`, from 0 to 1, spreads the
    /// refreshes. Returns the subjects that were evicted, because answers can be long.
    pub fn done(
        &mut self,
        subject: &LookupRequest,
        answer: LookupResult,
        until: Timestamp,
        memory: Memory,
        now: Timestamp,
        chance: f64,
    ) -> Vec<LookupRequest> {
        let Some(entry) = self.entries.get_mut(subject) else { return Vec::new() };
        let octets = octets(&answer, &memory);
        self.octets = self.octets - entry.octets + octets;
        entry.octets = octets;
        entry.answer = Some(answer);
        entry.until = until;
        let share = share(&mut self.domains, &mut self.hosts, subject);
        share.unlist(subject, entry);
        entry.guarded = memory.protects_until(now);
        share.list(subject, entry);
        // A remembered policy is refreshed even without mail to its domain, so that it never expires (RFC 8461
        // §10.2).
        let wanted = entry.pinned || memory.protects(now) || now < entry.asked_at + IDLE;
        entry.memory = memory;
        if wanted {
            // Before expiry, and spread over time for subjects that were looked up together.
            let life = until.since(now).clamp(SELDOM, OFTEN);
            let due = now + life.mul_f64(0.75 + 0.2 * chance.clamp(0.0, 1.0));
            entry.due = Some(due);
            self.due.insert((due, subject.clone()));
        }
        let mut gone = Vec::new();
        while self.octets > OCTETS
            && let Some(oldest) = self.make_room(None, now)
        {
            gone.push(oldest);
        }
        // Until here the subject counted as in flight, so that it cannot evict itself.
        self.landed(subject);
        gone
    }

    /// Records an aborted look-up: clears the in-flight state, and leaves everything else unchanged.
    pub fn failed(&mut self, subject: &LookupRequest) {
        self.landed(subject);
    }

    /// Schedules a refresh of all matching subjects, as the pace allows.
    pub fn renew(&mut self, which: impl Fn(&LookupRequest) -> bool, now: Timestamp) {
        for (subject, entry) in self.entries.iter_mut().filter(|(subject, entry)| which(subject) && !entry.in_flight) {
            if let Some(due) = entry.due.replace(now) {
                self.due.remove(&(due, subject.clone()));
            }
            entry.until = now;
            self.due.insert((now, subject.clone()));
        }
    }

    fn insert(&mut self, subject: LookupRequest, memory: Memory, pinned: bool, now: Timestamp) {
        let entry = Entry {
            order: self.asked,
            guarded: memory.protects_until(now),
            asked_at: now,
            pinned,
            waits: false,
            in_flight: false,
            answer: None,
            until: now,
            due: None,
            memory,
            octets: 0,
        };
        let share = share(&mut self.domains, &mut self.hosts, &subject);
        share.len += 1;
        share.list(&subject, &entry);
        self.entries.insert(subject, entry);
    }

    /// Enqueues a subject; returns the subject that was dropped for it.
    fn line_up(&mut self, subject: &LookupRequest) -> Option<LookupRequest> {
        let entry = self.entries.get_mut(subject)?;
        entry.waits = true;
        if entry.pinned {
            self.first.push_back(subject.clone());
            return None;
        }
        self.line.push(entry.order, subject.clone());
        if self.line.len() <= WAITING {
            return None;
        }
        let oldest = self.line.pop_oldest()?;
        if let Some(entry) = self.entries.get_mut(&oldest) {
            entry.waits = false;
            // Drop the entry if it has no cached answer.
            if entry.answer.is_none() {
                self.remove(&oldest);
            }
        }
        Some(oldest)
    }

    /// Removes a subject from all lists and marks it as in flight; returns it with its remembered data.
    fn take_off(&mut self, subject: LookupRequest) -> (LookupRequest, Memory) {
        let Some(entry) = self.entries.get_mut(&subject) else { return (subject, Memory::default()) };
        if entry.is_in_line() {
            self.line.remove(entry.order);
        }
        entry.waits = false;
        entry.in_flight = true;
        self.line.begun(&subject);
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, subject.clone()));
        }
        let memory = entry.memory.clone();
        (subject, memory)
    }

    fn landed(&mut self, subject: &LookupRequest) {
        if let Some(entry) = self.entries.get_mut(subject)
            && std::mem::replace(&mut entry.in_flight, false)
        {
            self.line.ended(subject);
        }
    }

    fn is_full(&self, subject: &LookupRequest) -> bool {
        let share = match subject {
            LookupRequest::Domain(_) => &self.domains,
            LookupRequest::Host(_) => &self.hosts,
        };
        share.len >= self.capacity
    }

    /// Evicts the least recently requested subject, from the share of `like` or from both, that is neither configured
    /// nor in flight. A subject with an unexpired policy is evicted only if there is no other.
    fn make_room(&mut self, like: Option<&LookupRequest>, now: Timestamp) -> Option<LookupRequest> {
        let shares = match like {
            Some(LookupRequest::Domain(_)) => [Some(&mut self.domains), None],
            Some(LookupRequest::Host(_)) => [Some(&mut self.hosts), None],
            None => [Some(&mut self.domains), Some(&mut self.hosts)],
        };
        let (mut plain, mut guarded) = (None, None);
        for share in shares.into_iter().flatten() {
            share.age(&mut self.entries, now);
            // Skips at most as many subjects as are in flight.
            let free =
                |(_, subject): &(&u64, &LookupRequest)| self.entries.get(*subject).is_some_and(|one| !one.in_flight);
            let oldest =
                |list: &BTreeMap<u64, LookupRequest>| list.iter().find(free).map(|(at, one)| (*at, one.clone()));
            plain = plain.into_iter().chain(oldest(&share.plain)).min();
            guarded = guarded.into_iter().chain(oldest(&share.guarded)).min();
        }
        let (_, subject) = plain.or(guarded)?;
        self.remove(&subject);
        Some(subject)
    }

    fn remove(&mut self, subject: &LookupRequest) {
        let Some(entry) = self.entries.remove(subject) else { return };
        let share = share(&mut self.domains, &mut self.hosts, subject);
        share.len -= 1;
        share.unlist(subject, &entry);
        if entry.is_in_line() {
            self.line.remove(entry.order);
        }
        self.octets -= entry.octets;
        if let Some(due) = entry.due {
            self.due.remove(&(due, subject.clone()));
        }
    }
}

impl Entry {
    /// Configured subjects have a queue of their own.
    const fn is_in_line(&self) -> bool {
        self.waits && !self.pinned
    }
}

/// The share of a subject.
const fn share<'a>(domains: &'a mut Share, hosts: &'a mut Share, subject: &LookupRequest) -> &'a mut Share {
    match subject {
        LookupRequest::Domain(_) => domains,
        LookupRequest::Host(_) => hosts,
    }
}

impl Share {
    fn list(&mut self, subject: &LookupRequest, entry: &Entry) {
        if entry.pinned {
            return;
        }
        if let Some(end) = entry.guarded {
            self.guarded.insert(entry.order, subject.clone());
            self.ends.insert((end, subject.clone()));
        } else {
            self.plain.insert(entry.order, subject.clone());
        }
    }

    fn unlist(&mut self, subject: &LookupRequest, entry: &Entry) {
        self.plain.remove(&entry.order);
        self.guarded.remove(&entry.order);
        if let Some(end) = entry.guarded {
            self.ends.remove(&(end, subject.clone()));
        }
    }

    /// Ends the protection of subjects whose policy has expired.
    fn age(&mut self, entries: &mut HashMap<LookupRequest, Entry>, now: Timestamp) {
        while let Some((_, subject)) = self.ends.first().filter(|(end, _)| *end <= now).cloned() {
            self.ends.pop_first();
            if let Some(entry) = entries.get_mut(&subject) {
                self.unlist(&subject, entry);
                entry.guarded = None;
                self.list(&subject, entry);
            }
        }
    }
}

/// Approximate size of the variable parts of an answer in bytes.
fn octets(answer: &LookupResult, memory: &Memory) -> usize {
    let body = memory.kept.as_ref().map_or(0, |kept| kept.body.len());
    // The policy parsed from the text takes about as much as the text, in memory and in the answer.
    let of_answer = match answer {
        LookupResult::Domain(_, facts) => {
            let hosts = facts.mx.value.iter().flat_map(|mx| &mx.hosts).map(String::len).sum::<usize>();
            hosts + facts.mx.detail.len() + facts.sts.detail.len()
        }
        LookupResult::Host(_, facts) => facts.dane.value.iter().flatten().map(|tlsa| tlsa.data.len()).sum(),
        LookupResult::List(_) => 0,
    };
    3 * body + of_answer
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use smtpwatch_core::policy::published::{Answer, HostFacts, State, sts::StsPolicy};

    use super::*;
    use smtpwatch_core::policy::memory::Kept;

    fn host(number: usize) -> LookupRequest {
        LookupRequest::Host(format!("mx{number}.example.net"))
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    fn learned(subject: &LookupRequest) -> LookupResult {
        let answer = |state| Answer { state, value: None, detail: String::new(), at: at(0), until: at(0) };
        let addresses = Answer { value: None, ..answer(State::Absent) };
        let dane = Answer { state: State::Absent, value: None, detail: String::new(), at: at(0), until: at(0) };
        let (LookupRequest::Domain(name) | LookupRequest::Host(name)) = subject;
        LookupResult::Host(name.clone(), Arc::new(HostFacts { addresses, dane, base: name.clone() }))
    }

    fn look(subjects: &mut Subjects, now: Timestamp, until: Timestamp) -> Option<LookupRequest> {
        let (subject, memory) = subjects.next(now)?;
        assert!(subjects.done(&subject, learned(&subject), until, memory, now, 0.5).is_empty());
        Some(subject)
    }

    #[test]
    fn one_look_at_a_time_and_the_answer_again_while_it_holds() {
        let mut subjects = Subjects::new(10);
        assert_eq!(subjects.ask(&host(1), false, at(0)), Asked::Waits(Room::default()));
        assert_eq!(subjects.ask(&host(1), false, at(0)), Asked::Waits(Room::default()));
        let (subject, memory) = subjects.next(at(0)).expect("it waits");
        assert_eq!(subjects.ask(&host(1), false, at(1)), Asked::Waits(Room::default()));
        assert!(subjects.next(at(1)).is_none(), "in flight once");
        let _ = subjects.done(&subject, learned(&subject), at(100), memory, at(2), 0.5);
        assert!(matches!(subjects.ask(&host(1), false, at(99)), Asked::Known(_)));
        assert!(subjects.next(at(99)).is_none());
        // After expiry it is looked up on request, but its own refresh is not due yet.
        assert!(subjects.next(at(101)).is_none());
        assert_eq!(subjects.ask(&host(1), false, at(101)), Asked::Waits(Room::default()));
        assert_eq!(look(&mut subjects, at(101), at(200)), Some(host(1)));
    }

    #[test]
    fn refreshes_come_before_the_end_at_a_pace_and_stop_when_nobody_asks() {
        let mut subjects = Subjects::new(10);
        for number in 0..3 {
            subjects.ask(&host(number), false, at(0));
            look(&mut subjects, at(0), at(10_000));
        }
        assert!(subjects.next(at(7_499)).is_none());
        let next = subjects.next_at().expect("due");
        assert!(next >= at(7_500) && next < at(10_000));
        assert!(look(&mut subjects, next, at(1_000_000)).is_some());
        assert!(look(&mut subjects, next, at(1_000_000)).is_none(), "not all at once");
        assert!(look(&mut subjects, next + PACE, at(1_000_000)).is_some());
        // Eight days later they are refreshed once more, and then no more.
        let late = at(8 * 86_400);
        let looks = (0..10).filter(|step| look(&mut subjects, late + PACE * *step, late + OFTEN).is_some()).count();
        assert_eq!((looks, subjects.next_at()), (3, None));
    }

    fn makes_room(gone: LookupRequest) -> Asked {
        Asked::Waits(Room { gone: Some(gone), dropped: None })
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_makes_room() {
        let mut subjects = Subjects::new(3);
        subjects.ask(&host(0), true, at(0));
        for number in 1..3 {
            subjects.ask(&host(number), false, at(0));
        }
        while look(&mut subjects, at(0), at(1_000)).is_some() {}
        subjects.ask(&host(1), false, at(1));
        // The first is configured; the second was requested since.
        assert_eq!(subjects.ask(&host(3), false, at(2)), makes_room(host(2)));
        assert_eq!(subjects.len(), 3);
        let mut subjects = Subjects::new(SUBJECTS);
        for number in 0..WAITING + 5 {
            let dropped = number.checked_sub(WAITING).map(host);
            assert_eq!(subjects.ask(&host(number), false, at(0)), Asked::Waits(Room { gone: None, dropped }));
        }
        assert_eq!((subjects.len(), subjects.line.len()), (WAITING, WAITING));
    }

    /// Hosts with different owners.
    fn stranger(number: usize) -> LookupRequest {
        LookupRequest::Host(format!("mx.s{number}.example"))
    }

    #[test]
    fn the_newest_is_looked_up_first_and_what_the_configuration_names_before_it() {
        let mut subjects = Subjects::new(SUBJECTS);
        for number in 0..2 * WAITING {
            subjects.ask(&stranger(number), false, at(0));
        }
        // The queue is full: neither of these is refused, and a repeated request makes its subject the newest.
        let oldest = stranger(WAITING + 1);
        assert!(matches!(subjects.ask(&domain(0), true, at(1)), Asked::Waits(Room { dropped: None, .. })));
        assert!(matches!(subjects.ask(&domain(1), true, at(1)), Asked::Waits(Room { dropped: None, .. })));
        assert!(matches!(subjects.ask(&host(0), false, at(1)), Asked::Waits(Room { dropped: Some(_), .. })));
        assert_eq!(subjects.ask(&oldest, false, at(1)), Asked::Waits(Room::default()));
        let newest = stranger(2 * WAITING - 1);
        for expected in [domain(0), domain(1), oldest, host(0), newest] {
            assert_eq!(look(&mut subjects, at(1), at(100)), Some(expected));
        }
    }

    #[test]
    fn one_that_gave_way_keeps_what_is_known_of_it() {
        let mut subjects = Subjects::new(SUBJECTS);
        subjects.restore(&domain(0), learned(&domain(0)), at(0), policy("enforce", ""), at(100));
        assert_eq!(subjects.ask(&domain(0), false, at(1)), Asked::Waits(Room::default()));
        for number in 0..WAITING {
            subjects.ask(&stranger(number), false, at(1));
        }
        assert!(subjects.answer(&domain(0)).is_some() && subjects.domains.guarded.len() == 1);
        while subjects.next(at(1)).is_some() {}
        assert_eq!(subjects.ask(&domain(0), false, at(2)), Asked::Waits(Room::default()), "it may wait once more");
        assert_eq!(subjects.next(at(2)), Some((domain(0), policy("enforce", ""))));
    }

    #[test]
    fn slow_servers_of_one_owner_hold_nobody_else_up() {
        let mut subjects = Subjects::new(SUBJECTS);
        subjects.ask(&stranger(0), false, at(0));
        for number in 0..20 {
            subjects.ask(&host(number), false, at(0));
            // Refreshes count, and wait, like other look-ups.
            subjects.restore(&domain(number), learned(&domain(number)), at(0), Memory::default(), at(0));
        }
        let in_flight: Vec<LookupRequest> =
            std::iter::from_fn(|| subjects.next(at(0)).map(|(subject, _)| subject)).collect();
        assert_eq!(in_flight, [host(19), host(18), host(17), host(16), stranger(0)]);
        assert_eq!(subjects.next_at(), Some(at(0) + PUT_OFF), "there is nothing to do until one ends");
        // They do not delay configured domains either.
        subjects.ask(&domain(100), true, at(0));
        assert_eq!(subjects.next(at(0)).map(|(subject, _)| subject), Some(domain(100)));
        for (subject, expected) in [(host(18), None), (host(19), Some(host(15)))] {
            subjects.failed(&subject);
            assert_eq!(subjects.next(at(0)).map(|(subject, _)| subject), expected);
        }
    }

    #[test]
    fn what_is_being_looked_up_makes_no_room() {
        let mut subjects = Subjects::new(1);
        subjects.ask(&host(0), false, at(0));
        let (subject, memory) = subjects.next(at(0)).expect("it waits");
        assert_eq!(subjects.ask(&host(1), false, at(0)), Asked::Refused);
        let _ = subjects.done(&subject, learned(&subject), at(100), memory, at(0), 0.5);
        assert_eq!(subjects.ask(&host(1), false, at(0)), makes_room(host(0)));
    }

    /// Remembered data of a domain whose policy is valid for 1,000 seconds from the start.
    fn policy(mode: &str, more: &str) -> Memory {
        let body = format!("version: STSv1\nmode: {mode}\nmx: a.example\nmax_age: 1000\n{more}");
        let policy = StsPolicy::parse(body.as_bytes(), "1").expect("a policy");
        Memory { kept: Some(Kept { policy, body, fetched_at: at(0) }), failed: None }
    }

    fn domain(number: usize) -> LookupRequest {
        LookupRequest::Domain(format!("d{number}.example.net"))
    }

    fn ask_and_look(
        subjects: &mut Subjects,
        subject: &LookupRequest,
        memory: &Memory,
        now: Timestamp,
    ) -> Vec<LookupRequest> {
        let gone = match subjects.ask(subject, false, now) {
            Asked::Waits(Room { gone, dropped: None }) => gone,
            other => panic!("{other:?}"),
        };
        let (next, _) = subjects.next(now).expect("it waits");
        assert_eq!(next, *subject);
        let more = subjects.done(&next, learned(&next), now + OFTEN, memory.clone(), now, 0.5);
        gone.into_iter().chain(more).collect()
    }

    #[test]
    fn a_flood_of_names_takes_no_policy_that_protects() {
        let mut subjects = Subjects::new(10);
        for (number, mode) in (0..).zip(["enforce", "testing", "none"]) {
            ask_and_look(&mut subjects, &domain(number), &policy(mode, ""), at(0));
        }
        let flood = |subjects: &mut Subjects, numbers: std::ops::Range<usize>, now| -> Vec<LookupRequest> {
            let look = |number| ask_and_look(subjects, &domain(number), &Memory::default(), now);
            numbers.flat_map(look).collect()
        };
        let gone = flood(&mut subjects, 100..200, at(1));
        assert!(!gone.contains(&domain(0)) && !gone.contains(&domain(1)), "{gone:?}");
        assert!(gone.contains(&domain(2)), "a policy that demands nothing is as good as none");
        // A protected subject is evicted only if there is no other; an expired policy does not protect.
        let mut full = Subjects::new(2);
        for number in 0..2 {
            ask_and_look(&mut full, &domain(number), &policy("enforce", ""), at(0));
        }
        assert_eq!(ask_and_look(&mut full, &domain(2), &Memory::default(), at(1)), [domain(0)]);
        assert_eq!(ask_and_look(&mut full, &domain(3), &Memory::default(), at(2)), [domain(2)]);
        assert_eq!(ask_and_look(&mut full, &domain(4), &Memory::default(), at(1_000)), [domain(1)]);
        assert!(full.domains.ends.is_empty() && full.domains.guarded.is_empty());
    }

    #[test]
    fn a_policy_that_was_kept_elsewhere_is_guarded_too() {
        let mut subjects = Subjects::new(2);
        subjects.restore(&domain(0), learned(&domain(0)), at(0), policy("enforce", ""), at(0));
        ask_and_look(&mut subjects, &domain(1), &Memory::default(), at(0));
        assert_eq!(ask_and_look(&mut subjects, &domain(2), &Memory::default(), at(1)), [domain(1)]);
    }

    #[test]
    fn mail_hosts_push_no_domain_out() {
        let mut subjects = Subjects::new(3);
        ask_and_look(&mut subjects, &domain(0), &Memory::default(), at(0));
        let look = |number| ask_and_look(&mut subjects, &host(number), &Memory::default(), at(1));
        let gone: Vec<LookupRequest> = (0..20).flat_map(look).collect();
        assert_eq!(gone, (0..17).map(host).collect::<Vec<_>>());
        assert_eq!((subjects.len(), subjects.domains.len), (4, 1));
        assert!(matches!(subjects.ask(&domain(0), false, at(2)), Asked::Known(_)));
    }

    #[test]
    fn long_policies_make_room_too() {
        let memory = policy("enforce", &"x: y\n".repeat(13_000));
        let mut subjects = Subjects::new(SUBJECTS);
        let mut gone = 0;
        for number in 0..1_000 {
            subjects.ask(&host(number), false, at(0));
            let (subject, _) = subjects.next(at(0)).expect("it waits");
            gone += subjects.done(&subject, learned(&subject), at(100), memory.clone(), at(0), 0.5).len();
        }
        assert!(subjects.octets <= OCTETS && subjects.len() == 1_000 - gone && gone > 600, "{gone}");
    }
}
