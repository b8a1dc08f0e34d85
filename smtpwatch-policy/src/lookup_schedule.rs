//! Schedule of look-ups: which domains and mail hosts are looked up, and when. The table is bounded, each subject has
//! at most one look-up in flight, and the order is: configured domains, then requested subjects, then answers about
//! to expire. Time and randomness are arguments. [`super::service::Service`] owns the [`LookupSchedule`].

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

use super::wait_queue::WaitQueue;

/// Maximum number of domains, and of mail hosts: neither kind evicts the other. The least recently requested subject
/// is evicted first, a domain with a remembered MTA-STS policy only if there is no other.
pub const MAX_SUBJECTS: usize = 10_000;
/// Maximum size of all answers and policies in bytes, in addition to the fixed size per subject: a policy rarely
/// exceeds one KiB, but may have 64.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Maximum number of subjects that wait for their first look-up, besides configured ones; the one that waited longest
/// is dropped.
pub const MAX_WAITING: usize = 1_000;
/// Refreshes of a subject end after this time without a request.
const IDLE: Duration = Duration::from_secs(7 * 86_400);
/// Minimum interval between scheduled refreshes of a subject, whatever the TTL of its records; a request after expiry
/// starts a look-up at once.
const MIN_REFRESH: Duration = Duration::from_secs(900);
/// Maximum interval between refreshes (RFC 8461 §3.3 suggests once a day).
const MAX_REFRESH: Duration = Duration::from_secs(86_400);
/// Minimum interval between the starts of refreshes: after a long stop everything is due at once.
const REFRESH_PACE: Duration = Duration::from_millis(100);
/// Delay of a refresh that would exceed the bound of look-ups below its parent, and the maximum number of delays per
/// call.
const POSTPONE: Duration = Duration::from_secs(10);
const MAX_POSTPONED: usize = 100;

/// Result of a request for a subject.
#[derive(Clone, PartialEq, Debug)]
pub enum RequestOutcome {
    /// An answer is cached: a copy of it.
    Cached(LookupResult),
    /// A look-up is scheduled.
    Scheduled(Evictions),
    /// The table is full, and every subject is configured or in flight.
    Refused,
}

/// The subjects that were evicted or dropped for another one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Evictions {
    /// Evicted from the table.
    pub evicted: Option<LookupRequest>,
    /// Dropped from the queue: it had waited longest.
    pub dropped: Option<LookupRequest>,
}

/// The table of subjects, with their answers and their schedule.
#[derive(Debug)]
pub struct LookupSchedule {
    entries: HashMap<LookupRequest, Entry>,
    domains: Partition,
    hosts: Partition,
    requests: u64,
    /// Configured subjects without an answer.
    first: VecDeque<LookupRequest>,
    /// Other requested subjects without an answer, in the order of their requests.
    queue: WaitQueue,
    /// Refreshes by time.
    due: BTreeSet<(Timestamp, LookupRequest)>,
    paced_until: Timestamp,
    /// Maximum number of subjects per partition.
    capacity: usize,
    /// Size of all answers in bytes.
    bytes: usize,
}

/// The partition of the domains or of the mail hosts: their number and the order of eviction. Configured subjects are
/// never evicted.
#[derive(Debug, Default)]
struct Partition {
    len: usize,
    /// Unprotected subjects by the sequence number of their latest request.
    plain: BTreeMap<u64, LookupRequest>,
    /// Subjects with an unexpired remembered policy, likewise: an attacker could block a new look-up of an evicted
    /// policy (RFC 8461 §10.2).
    protected: BTreeMap<u64, LookupRequest>,
    /// When the protection of guarded subjects expires.
    protected_until: BTreeSet<(Timestamp, LookupRequest)>,
}

#[derive(Debug)]
struct Entry {
    /// Sequence number of the latest request: its key in a list of its partition.
    order: u64,
    /// When the protection by its policy expires.
    protected: Option<Timestamp>,
    requested_at: Timestamp,
    /// Configured: never evicted.
    pinned: bool,
    waiting: bool,
    in_flight: bool,
    answer: Option<LookupResult>,
    until: Timestamp,
    due: Option<Timestamp>,
    memory: Memory,
    bytes: usize,
}

impl LookupSchedule {
    /// Creates a table for `capacity` domains and as many mail hosts.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            domains: Partition::default(),
            hosts: Partition::default(),
            requests: 0,
            first: VecDeque::new(),
            queue: WaitQueue::default(),
            due: BTreeSet::new(),
            paced_until: Timestamp::default(),
            capacity: capacity.max(1),
            bytes: 0,
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
    pub fn request(&mut self, subject: &LookupRequest, pinned: bool, now: Timestamp) -> RequestOutcome {
        self.requests += 1;
        let requests = self.requests;
        if let Some(entry) = self.entries.get_mut(subject) {
            let partition = partition(&mut self.domains, &mut self.hosts, subject);
            partition.discard(subject, entry);
            if entry.is_queued() {
                self.queue.remove(entry.order);
                entry.waiting = false;
            }
            entry.order = requests;
            entry.requested_at = now;
            entry.pinned |= pinned;
            partition.add(subject, entry);
            if let Some(answer) = entry.answer.as_ref().filter(|_| now < entry.until) {
                return RequestOutcome::Cached(answer.clone());
            }
            if entry.in_flight || entry.waiting {
                return RequestOutcome::Scheduled(Evictions::default());
            }
            // A repeated request makes the subject the newest of the queue again.
            let dropped = self.enqueue(subject);
            return RequestOutcome::Scheduled(Evictions { evicted: None, dropped });
        }
        let evicted = if self.is_full(subject) { self.evict(Some(subject), now) } else { None };
        if self.is_full(subject) {
            return RequestOutcome::Refused;
        }
        self.insert(subject.clone(), Memory::default(), pinned, now);
        let dropped = self.enqueue(subject);
        RequestOutcome::Scheduled(Evictions { evicted, dropped })
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
    pub fn answer_with_memory(&self, subject: &LookupRequest) -> Option<(&LookupResult, &Memory)> {
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
        let bytes = bytes(&answer, &memory);
        let full = self.is_full(subject) || self.bytes + bytes > MAX_ANSWER_BYTES;
        if full || self.entries.contains_key(subject) {
            return;
        }
        self.bytes += bytes;
        self.requests += 1;
        self.insert(subject.clone(), memory, false, now);
        if let Some(entry) = self.entries.get_mut(subject) {
            entry.answer = Some(answer);
            entry.until = until;
            entry.due = Some(now);
            entry.bytes = bytes;
            self.due.insert((now, subject.clone()));
        }
    }

    /// The next subject to look up, and its remembered data. It is in flight until [`Self::done`] or
    /// [`Self::failed`].
    pub fn next(&mut self, now: Timestamp) -> Option<(LookupRequest, Memory)> {
        while let Some(subject) = self.first.pop_front() {
            if self.entries.get(&subject).is_some_and(|entry| entry.waiting) {
                return Some(self.start(subject));
            }
        }
        if let Some(subject) = self.queue.newest().cloned() {
            return Some(self.start(subject));
        }
        if now < self.paced_until {
            return None;
        }
        for _ in 0..MAX_POSTPONED {
            let (_, subject) = self.due.first().filter(|(due, _)| *due <= now)?.clone();
            let pinned = self.entries.get(&subject).is_some_and(|entry| entry.pinned);
            if pinned || self.queue.has_room(&subject) {
                self.paced_until = now + REFRESH_PACE;
                return Some(self.start(subject));
            }
            self.due.pop_first();
            if let Some(entry) = self.entries.get_mut(&subject) {
                entry.due = Some(now + POSTPONE);
                self.due.insert((now + POSTPONE, subject));
            }
        }
        None
    }

    /// When [`Self::next`] will return a subject, unless one is requested earlier.
    #[must_use]
    pub fn next_at(&self) -> Option<Timestamp> {
        if !self.first.is_empty() || self.queue.is_ready() {
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
        let bytes = bytes(&answer, &memory);
        self.bytes = self.bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        entry.answer = Some(answer);
        entry.until = until;
        let partition = partition(&mut self.domains, &mut self.hosts, subject);
        partition.discard(subject, entry);
        entry.protected = memory.protects_until(now);
        partition.add(subject, entry);
        // A remembered policy is refreshed even without mail to its domain, so that it never expires (RFC 8461
        // §10.2).
        let refreshes = entry.pinned || memory.protects(now) || now < entry.requested_at + IDLE;
        entry.memory = memory;
        if refreshes {
            // Before expiry, and spread over time for subjects that were looked up together.
            let interval = until.since(now).clamp(MIN_REFRESH, MAX_REFRESH);
            let due = now + interval.mul_f64(0.75 + 0.2 * chance.clamp(0.0, 1.0));
            entry.due = Some(due);
            self.due.insert((due, subject.clone()));
        }
        let mut evicted = Vec::new();
        while self.bytes > MAX_ANSWER_BYTES
            && let Some(oldest) = self.evict(None, now)
        {
            evicted.push(oldest);
        }
        // Until here the subject counted as in flight, so that it cannot evict itself.
        self.finish(subject);
        evicted
    }

    /// Records an aborted look-up: clears the in-flight state, and leaves everything else unchanged.
    pub fn failed(&mut self, subject: &LookupRequest) {
        self.finish(subject);
    }

    /// Schedules a refresh of all matching subjects, as the pace allows.
    pub fn refresh_all(&mut self, which: impl Fn(&LookupRequest) -> bool, now: Timestamp) {
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
            order: self.requests,
            protected: memory.protects_until(now),
            requested_at: now,
            pinned,
            waiting: false,
            in_flight: false,
            answer: None,
            until: now,
            due: None,
            memory,
            bytes: 0,
        };
        let partition = partition(&mut self.domains, &mut self.hosts, &subject);
        partition.len += 1;
        partition.add(&subject, &entry);
        self.entries.insert(subject, entry);
    }

    /// Enqueues a subject; returns the subject that was dropped for it.
    fn enqueue(&mut self, subject: &LookupRequest) -> Option<LookupRequest> {
        let entry = self.entries.get_mut(subject)?;
        entry.waiting = true;
        if entry.pinned {
            self.first.push_back(subject.clone());
            return None;
        }
        self.queue.push(entry.order, subject.clone());
        if self.queue.len() <= MAX_WAITING {
            return None;
        }
        let oldest = self.queue.pop_oldest()?;
        if let Some(entry) = self.entries.get_mut(&oldest) {
            entry.waiting = false;
            // Drop the entry if it has no cached answer.
            if entry.answer.is_none() {
                self.remove(&oldest);
            }
        }
        Some(oldest)
    }

    /// Removes a subject from all queues and marks it as in flight; returns it with its remembered data.
    fn start(&mut self, subject: LookupRequest) -> (LookupRequest, Memory) {
        let Some(entry) = self.entries.get_mut(&subject) else { return (subject, Memory::default()) };
        if entry.is_queued() {
            self.queue.remove(entry.order);
        }
        entry.waiting = false;
        entry.in_flight = true;
        self.queue.started(&subject);
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, subject.clone()));
        }
        let memory = entry.memory.clone();
        (subject, memory)
    }

    fn finish(&mut self, subject: &LookupRequest) {
        if let Some(entry) = self.entries.get_mut(subject)
            && std::mem::replace(&mut entry.in_flight, false)
        {
            self.queue.finished(subject);
        }
    }

    fn is_full(&self, subject: &LookupRequest) -> bool {
        let partition = match subject {
            LookupRequest::Domain(_) => &self.domains,
            LookupRequest::Host(_) => &self.hosts,
        };
        partition.len >= self.capacity
    }

    /// Evicts the least recently requested subject, from the partition of `like` or from both, that is neither configured
    /// nor in flight. A subject with an unexpired policy is evicted only if there is no other.
    fn evict(&mut self, like: Option<&LookupRequest>, now: Timestamp) -> Option<LookupRequest> {
        let partitions = match like {
            Some(LookupRequest::Domain(_)) => [Some(&mut self.domains), None],
            Some(LookupRequest::Host(_)) => [Some(&mut self.hosts), None],
            None => [Some(&mut self.domains), Some(&mut self.hosts)],
        };
        let (mut plain, mut protected) = (None, None);
        for partition in partitions.into_iter().flatten() {
            partition.expire_protection(&mut self.entries, now);
            // Skips at most as many subjects as are in flight.
            let free =
                |(_, subject): &(&u64, &LookupRequest)| self.entries.get(*subject).is_some_and(|one| !one.in_flight);
            let oldest = |add: &BTreeMap<u64, LookupRequest>| add.iter().find(free).map(|(at, one)| (*at, one.clone()));
            plain = plain.into_iter().chain(oldest(&partition.plain)).min();
            protected = protected.into_iter().chain(oldest(&partition.protected)).min();
        }
        let (_, subject) = plain.or(protected)?;
        self.remove(&subject);
        Some(subject)
    }

    fn remove(&mut self, subject: &LookupRequest) {
        let Some(entry) = self.entries.remove(subject) else { return };
        let partition = partition(&mut self.domains, &mut self.hosts, subject);
        partition.len -= 1;
        partition.discard(subject, &entry);
        if entry.is_queued() {
            self.queue.remove(entry.order);
        }
        self.bytes -= entry.bytes;
        if let Some(due) = entry.due {
            self.due.remove(&(due, subject.clone()));
        }
    }
}

impl Entry {
    /// Configured subjects have a queue of their own.
    const fn is_queued(&self) -> bool {
        self.waiting && !self.pinned
    }
}

/// The partition of a subject.
const fn partition<'a>(
    domains: &'a mut Partition,
    hosts: &'a mut Partition,
    subject: &LookupRequest,
) -> &'a mut Partition {
    match subject {
        LookupRequest::Domain(_) => domains,
        LookupRequest::Host(_) => hosts,
    }
}

impl Partition {
    fn add(&mut self, subject: &LookupRequest, entry: &Entry) {
        if entry.pinned {
            return;
        }
        if let Some(end) = entry.protected {
            self.protected.insert(entry.order, subject.clone());
            self.protected_until.insert((end, subject.clone()));
        } else {
            self.plain.insert(entry.order, subject.clone());
        }
    }

    fn discard(&mut self, subject: &LookupRequest, entry: &Entry) {
        self.plain.remove(&entry.order);
        self.protected.remove(&entry.order);
        if let Some(end) = entry.protected {
            self.protected_until.remove(&(end, subject.clone()));
        }
    }

    /// Ends the protection of subjects whose policy has expired.
    fn expire_protection(&mut self, entries: &mut HashMap<LookupRequest, Entry>, now: Timestamp) {
        while let Some((_, subject)) = self.protected_until.first().filter(|(end, _)| *end <= now).cloned() {
            self.protected_until.pop_first();
            if let Some(entry) = entries.get_mut(&subject) {
                self.discard(&subject, entry);
                entry.protected = None;
                self.add(&subject, entry);
            }
        }
    }
}

/// Approximate size of the variable parts of an answer in bytes.
fn bytes(answer: &LookupResult, memory: &Memory) -> usize {
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

    fn result(subject: &LookupRequest) -> LookupResult {
        let answer = |state| Answer { state, value: None, detail: String::new(), at: at(0), until: at(0) };
        let addresses = Answer { value: None, ..answer(State::Absent) };
        let dane = Answer { state: State::Absent, value: None, detail: String::new(), at: at(0), until: at(0) };
        let (LookupRequest::Domain(name) | LookupRequest::Host(name)) = subject;
        LookupResult::Host(name.clone(), Arc::new(HostFacts { addresses, dane, base: name.clone() }))
    }

    fn look_up(schedule: &mut LookupSchedule, now: Timestamp, until: Timestamp) -> Option<LookupRequest> {
        let (subject, memory) = schedule.next(now)?;
        assert!(schedule.done(&subject, result(&subject), until, memory, now, 0.5).is_empty());
        Some(subject)
    }

    #[test]
    fn one_lookup_at_a_time_and_a_cached_answer_until_it_expires() {
        let mut schedule = LookupSchedule::new(10);
        assert_eq!(schedule.request(&host(1), false, at(0)), RequestOutcome::Scheduled(Evictions::default()));
        assert_eq!(schedule.request(&host(1), false, at(0)), RequestOutcome::Scheduled(Evictions::default()));
        let (subject, memory) = schedule.next(at(0)).expect("it waits");
        assert_eq!(schedule.request(&host(1), false, at(1)), RequestOutcome::Scheduled(Evictions::default()));
        assert!(schedule.next(at(1)).is_none(), "in flight once");
        let _ = schedule.done(&subject, result(&subject), at(100), memory, at(2), 0.5);
        assert!(matches!(schedule.request(&host(1), false, at(99)), RequestOutcome::Cached(_)));
        assert!(schedule.next(at(99)).is_none());
        // After expiry it is looked up on request, but its own refresh is not due yet.
        assert!(schedule.next(at(101)).is_none());
        assert_eq!(schedule.request(&host(1), false, at(101)), RequestOutcome::Scheduled(Evictions::default()));
        assert_eq!(look_up(&mut schedule, at(101), at(200)), Some(host(1)));
    }

    #[test]
    fn refreshes_precede_expiry_keep_the_pace_and_end_without_requests() {
        let mut schedule = LookupSchedule::new(10);
        for number in 0..3 {
            schedule.request(&host(number), false, at(0));
            look_up(&mut schedule, at(0), at(10_000));
        }
        assert!(schedule.next(at(7_499)).is_none());
        let next = schedule.next_at().expect("due");
        assert!(next >= at(7_500) && next < at(10_000));
        assert!(look_up(&mut schedule, next, at(1_000_000)).is_some());
        assert!(look_up(&mut schedule, next, at(1_000_000)).is_none(), "not all at once");
        assert!(look_up(&mut schedule, next + REFRESH_PACE, at(1_000_000)).is_some());
        // Eight days later they are refreshed once more, and then no more.
        let late = at(8 * 86_400);
        let looks = (0..10)
            .filter(|step| look_up(&mut schedule, late + REFRESH_PACE * *step, late + MAX_REFRESH).is_some())
            .count();
        assert_eq!((looks, schedule.next_at()), (3, None));
    }

    fn evicts(evicted: LookupRequest) -> RequestOutcome {
        RequestOutcome::Scheduled(Evictions { evicted: Some(evicted), dropped: None })
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_is_evicted() {
        let mut schedule = LookupSchedule::new(3);
        schedule.request(&host(0), true, at(0));
        for number in 1..3 {
            schedule.request(&host(number), false, at(0));
        }
        while look_up(&mut schedule, at(0), at(1_000)).is_some() {}
        schedule.request(&host(1), false, at(1));
        // The first is configured; the second was requested since.
        assert_eq!(schedule.request(&host(3), false, at(2)), evicts(host(2)));
        assert_eq!(schedule.len(), 3);
        let mut schedule = LookupSchedule::new(MAX_SUBJECTS);
        for number in 0..MAX_WAITING + 5 {
            let dropped = number.checked_sub(MAX_WAITING).map(host);
            assert_eq!(
                schedule.request(&host(number), false, at(0)),
                RequestOutcome::Scheduled(Evictions { evicted: None, dropped })
            );
        }
        assert_eq!((schedule.len(), schedule.queue.len()), (MAX_WAITING, MAX_WAITING));
    }

    /// Hosts with different owners.
    fn stranger(number: usize) -> LookupRequest {
        LookupRequest::Host(format!("mx.s{number}.example"))
    }

    #[test]
    fn configured_subjects_come_first_then_the_newest() {
        let mut schedule = LookupSchedule::new(MAX_SUBJECTS);
        for number in 0..2 * MAX_WAITING {
            schedule.request(&stranger(number), false, at(0));
        }
        // The queue is full: neither of these is refused, and a repeated request makes its subject the newest.
        let oldest = stranger(MAX_WAITING + 1);
        assert!(matches!(
            schedule.request(&domain(0), true, at(1)),
            RequestOutcome::Scheduled(Evictions { dropped: None, .. })
        ));
        assert!(matches!(
            schedule.request(&domain(1), true, at(1)),
            RequestOutcome::Scheduled(Evictions { dropped: None, .. })
        ));
        assert!(matches!(
            schedule.request(&host(0), false, at(1)),
            RequestOutcome::Scheduled(Evictions { dropped: Some(_), .. })
        ));
        assert_eq!(schedule.request(&oldest, false, at(1)), RequestOutcome::Scheduled(Evictions::default()));
        let newest = stranger(2 * MAX_WAITING - 1);
        for expected in [domain(0), domain(1), oldest, host(0), newest] {
            assert_eq!(look_up(&mut schedule, at(1), at(100)), Some(expected));
        }
    }

    #[test]
    fn a_subject_dropped_from_the_queue_keeps_its_answer() {
        let mut schedule = LookupSchedule::new(MAX_SUBJECTS);
        schedule.restore(&domain(0), result(&domain(0)), at(0), policy("enforce", ""), at(100));
        assert_eq!(schedule.request(&domain(0), false, at(1)), RequestOutcome::Scheduled(Evictions::default()));
        for number in 0..MAX_WAITING {
            schedule.request(&stranger(number), false, at(1));
        }
        assert!(schedule.answer(&domain(0)).is_some() && schedule.domains.protected.len() == 1);
        while schedule.next(at(1)).is_some() {}
        assert_eq!(
            schedule.request(&domain(0), false, at(2)),
            RequestOutcome::Scheduled(Evictions::default()),
            "it may wait once more"
        );
        assert_eq!(schedule.next(at(2)), Some((domain(0), policy("enforce", ""))));
    }

    #[test]
    fn slow_servers_of_one_parent_do_not_block_others() {
        let mut schedule = LookupSchedule::new(MAX_SUBJECTS);
        schedule.request(&stranger(0), false, at(0));
        for number in 0..20 {
            schedule.request(&host(number), false, at(0));
            // Refreshes count, and wait, like other look-ups.
            schedule.restore(&domain(number), result(&domain(number)), at(0), Memory::default(), at(0));
        }
        let in_flight: Vec<LookupRequest> =
            std::iter::from_fn(|| schedule.next(at(0)).map(|(subject, _)| subject)).collect();
        assert_eq!(in_flight, [host(19), host(18), host(17), host(16), stranger(0)]);
        assert_eq!(schedule.next_at(), Some(at(0) + POSTPONE), "there is nothing to do until one ends");
        // They do not delay configured domains either.
        schedule.request(&domain(100), true, at(0));
        assert_eq!(schedule.next(at(0)).map(|(subject, _)| subject), Some(domain(100)));
        for (subject, expected) in [(host(18), None), (host(19), Some(host(15)))] {
            schedule.failed(&subject);
            assert_eq!(schedule.next(at(0)).map(|(subject, _)| subject), expected);
        }
    }

    #[test]
    fn a_subject_in_flight_is_not_evicted() {
        let mut schedule = LookupSchedule::new(1);
        schedule.request(&host(0), false, at(0));
        let (subject, memory) = schedule.next(at(0)).expect("it waits");
        assert_eq!(schedule.request(&host(1), false, at(0)), RequestOutcome::Refused);
        let _ = schedule.done(&subject, result(&subject), at(100), memory, at(0), 0.5);
        assert_eq!(schedule.request(&host(1), false, at(0)), evicts(host(0)));
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

    fn request_and_start(
        schedule: &mut LookupSchedule,
        subject: &LookupRequest,
        memory: &Memory,
        now: Timestamp,
    ) -> Vec<LookupRequest> {
        let evicted = match schedule.request(subject, false, now) {
            RequestOutcome::Scheduled(Evictions { evicted, dropped: None }) => evicted,
            other => panic!("{other:?}"),
        };
        let (next, _) = schedule.next(now).expect("it waits");
        assert_eq!(next, *subject);
        let more = schedule.done(&next, result(&next), now + MAX_REFRESH, memory.clone(), now, 0.5);
        evicted.into_iter().chain(more).collect()
    }

    #[test]
    fn a_flood_of_names_evicts_no_unexpired_policy() {
        let mut schedule = LookupSchedule::new(10);
        for (number, mode) in (0..).zip(["enforce", "testing", "none"]) {
            request_and_start(&mut schedule, &domain(number), &policy(mode, ""), at(0));
        }
        let flood = |schedule: &mut LookupSchedule, numbers: std::ops::Range<usize>, now| -> Vec<LookupRequest> {
            let look = |number| request_and_start(schedule, &domain(number), &Memory::default(), now);
            numbers.flat_map(look).collect()
        };
        let evicted = flood(&mut schedule, 100..200, at(1));
        assert!(!evicted.contains(&domain(0)) && !evicted.contains(&domain(1)), "{evicted:?}");
        assert!(evicted.contains(&domain(2)), "a policy that demands nothing is as good as none");
        // A protected subject is evicted only if there is no other; an expired policy does not protect.
        let mut full = LookupSchedule::new(2);
        for number in 0..2 {
            request_and_start(&mut full, &domain(number), &policy("enforce", ""), at(0));
        }
        assert_eq!(request_and_start(&mut full, &domain(2), &Memory::default(), at(1)), [domain(0)]);
        assert_eq!(request_and_start(&mut full, &domain(3), &Memory::default(), at(2)), [domain(2)]);
        assert_eq!(request_and_start(&mut full, &domain(4), &Memory::default(), at(1_000)), [domain(1)]);
        assert!(full.domains.protected_until.is_empty() && full.domains.protected.is_empty());
    }

    #[test]
    fn a_restored_policy_is_protected() {
        let mut schedule = LookupSchedule::new(2);
        schedule.restore(&domain(0), result(&domain(0)), at(0), policy("enforce", ""), at(0));
        request_and_start(&mut schedule, &domain(1), &Memory::default(), at(0));
        assert_eq!(request_and_start(&mut schedule, &domain(2), &Memory::default(), at(1)), [domain(1)]);
    }

    #[test]
    fn mail_hosts_evict_no_domain() {
        let mut schedule = LookupSchedule::new(3);
        request_and_start(&mut schedule, &domain(0), &Memory::default(), at(0));
        let look = |number| request_and_start(&mut schedule, &host(number), &Memory::default(), at(1));
        let evicted: Vec<LookupRequest> = (0..20).flat_map(look).collect();
        assert_eq!(evicted, (0..17).map(host).collect::<Vec<_>>());
        assert_eq!((schedule.len(), schedule.domains.len), (4, 1));
        assert!(matches!(schedule.request(&domain(0), false, at(2)), RequestOutcome::Cached(_)));
    }

    #[test]
    fn the_size_of_policies_is_bounded() {
        let memory = policy("enforce", &"x: y\n".repeat(13_000));
        let mut schedule = LookupSchedule::new(MAX_SUBJECTS);
        let mut evicted = 0;
        for number in 0..1_000 {
            schedule.request(&host(number), false, at(0));
            let (subject, _) = schedule.next(at(0)).expect("it waits");
            evicted += schedule.done(&subject, result(&subject), at(100), memory.clone(), at(0), 0.5).len();
        }
        assert!(schedule.bytes <= MAX_ANSWER_BYTES && schedule.len() == 1_000 - evicted && evicted > 600, "{evicted}");
    }
}
