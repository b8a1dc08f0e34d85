//! The service that looks up published policies: a separate thread with bounded queues. Callers never block: answers
//! arrive asynchronously, and requests beyond a bound are dropped and counted.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use smtpwatch_config::PolicySettings;
use smtpwatch_core::{
    Timestamp,
    policy::{
        known::{Kept, Known, KnownDomain, KnownHost, KnownList},
        memory::Memory,
        published::{
            self, Answer, DomainFacts, HostFacts, LookupRequest, LookupResult, State, demand::Source,
            list::StarttlsList,
        },
    },
};
use smtpwatch_system::clock::now;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{Id, JoinError, JoinSet},
};

use super::{
    list::{self, ListSource},
    lookup::{DomainLookup, Sources, Timeouts, Trust},
    lookup_schedule::{Evictions, LookupSchedule, MAX_SUBJECTS, RequestOutcome},
    metrics::PolicyMetrics,
    probes::Probes,
    resolver::{Dnssec, REMEDY},
};

/// Maximum number of requests queued for the service.
pub const QUEUE: usize = 1_024;
/// Maximum number of answers queued for the pipeline.
pub const ANSWERS: usize = 1_024;
/// Maximum number of concurrent look-ups.
const MAX_LOOKUPS: usize = 16;
/// Interval between checks whether the file of a list has changed.
const LIST_FILE: Duration = Duration::from_secs(60);
/// Interval between fetches of a list from a URL (its publisher demands at most 48 hours), and the interval after a
/// failure.
const LIST_URL: Duration = Duration::from_secs(86_400);
const LIST_RETRY: Duration = Duration::from_secs(3_600);
/// Interval until the name servers are tried again after a task panicked or was cancelled.
const RETRY_AFTER_PANIC: Duration = Duration::from_secs(300);
/// After a loss of the store, cached answers are stored again in batches of this many subjects, one batch per
/// interval: the store's queue must keep capacity for other changes.
const STORE_AGAIN_BATCH: usize = 64;
const STORE_AGAIN_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum sleep of the event loop before it checks the clock.
const MAX_SLEEP: Duration = Duration::from_secs(60);

smtpwatch_system::vocabulary! {
    /// Why a look-up was not done, or its answer was discarded.
    pub enum Dropped {
        /// The queue of requests holds [`QUEUE`] entries.
        QueueFull = "queue_full",
        /// [`super::lookup_schedule::MAX_WAITING`] subjects wait for their first look-up: the one that waited longest was dropped.
        WaitingFull = "waiting_full",
        /// The queue of answers holds [`ANSWERS`] entries.
        AnswersFull = "answers_full",
        /// A subject was evicted or refused: there are [`MAX_SUBJECTS`] of its kind, or all answers together reach
        /// [`super::lookup_schedule::MAX_ANSWER_BYTES`].
        Capacity = "capacity",
    }
}

/// Parameters of a service.
pub struct Setup {
    /// `[policy]` of the configuration.
    pub settings: PolicySettings,
    /// Trust anchors and certificate authorities from the configured files.
    pub trust: Trust,
    /// Timeouts of the sources.
    pub timeouts: Timeouts,
    /// Answers stored by an earlier run.
    pub kept: Kept,
    /// The list that was fetched last, if it comes from a URL.
    pub list: Option<KnownList>,
    /// Metrics to update.
    pub metrics: Arc<PolicyMetrics>,
    /// Stores results; must not block.
    pub store: Box<dyn Fn(Known) + Send>,
}

/// Handle of the service; dropping it stops the service.
pub struct Service {
    requests: mpsc::Sender<LookupRequest>,
    answers: Receiver<LookupResult>,
    metrics: Arc<PolicyMetrics>,
    lost: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts the thread. Also returns the stored answers of an earlier run that are still valid.
    ///
    /// # Errors
    ///
    /// The thread or its runtime cannot be started.
    pub fn start(setup: Setup) -> std::io::Result<(Self, Vec<LookupResult>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (requests, incoming) = mpsc::channel(QUEUE);
        let (sender, answers) = sync_channel(ANSWERS);
        let (stop, stopped) = oneshot::channel();
        let (metrics, lost) = (setup.metrics.clone(), Arc::new(Notify::new()));
        let store_again = lost.clone();
        let (worker, known) = Worker::new(setup, sender, now());
        let thread = std::thread::Builder::new().name("policies".to_owned()).spawn(move || {
            runtime.block_on(worker.run(incoming, store_again, stopped));
            // A look-up in progress must not delay shutdown.
            runtime.shutdown_background();
        })?;
        Ok((Self { requests, answers, metrics, lost, stop: Some(stop), thread: Some(thread) }, known))
    }

    /// Requests a look-up. The answer is returned by [`Self::next_result`], unless a queue is full.
    pub fn request(&self, subject: LookupRequest) {
        if self.requests.try_send(subject).is_err() {
            self.metrics.policy_dropped(Dropped::QueueFull);
        }
    }

    /// The store lost its data: all cached answers are stored again, in batches.
    pub fn store_again(&self) {
        self.lost.notify_one();
    }

    /// The next answer, if one is available.
    #[must_use]
    pub fn next_result(&self) -> Option<LookupResult> {
        self.answers.try_recv().ok()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // If the thread has already ended, nothing receives this, and joining does not block.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Result of a task.
enum TaskResult {
    Sources(Result<Box<Sources>, String>),
    Domain(String, Box<DomainLookup>),
    Host(String, HostFacts),
    List(Result<Vec<u8>, String>),
}

struct Worker {
    settings: PolicySettings,
    trust: Trust,
    timeouts: Timeouts,
    metrics: Arc<PolicyMetrics>,
    store: Box<dyn Fn(Known) + Send>,
    answers: SyncSender<LookupResult>,
    schedule: LookupSchedule,
    /// `None` until the name servers are found.
    sources: Option<Arc<Sources>>,
    search_at: Timestamp,
    /// A search for the name servers is in progress.
    searching: bool,
    /// State of DNSSEC as last logged.
    probes: Probes,
    list: List,
    tasks: JoinSet<TaskResult>,
    /// The subject of each look-up task; other tasks are not included.
    lookups: HashMap<Id, LookupRequest>,
    /// Subjects whose answers must be stored again.
    to_store_again: VecDeque<LookupRequest>,
    chance: RandomState,
    random_count: u64,
}

/// The list, and the time of its next check.
struct List {
    source: Option<ListSource>,
    at: Timestamp,
    waits: bool,
    /// Modification time of the file when it was last read.
    written: Option<SystemTime>,
    text: Vec<u8>,
    /// Time of the fetch.
    fetched_at: Timestamp,
    failing: bool,
}

impl Worker {
    fn new(setup: Setup, answers: SyncSender<LookupResult>, now: Timestamp) -> (Self, Vec<LookupResult>) {
        let Setup { settings, trust, timeouts, kept, list, metrics, store } = setup;
        let source = ListSource::of(&settings.starttls_everywhere);
        let mut known = Vec::new();
        let mut schedule = LookupSchedule::new(MAX_SUBJECTS);
        // Stored answers of a source that has since been disabled are ignored.
        let domains = if *settings.mta_sts { kept.domains } else { Vec::new() };
        let hosts = if *settings.dane { kept.hosts } else { Vec::new() };
        for KnownDomain { name, facts, memory } in domains {
            let facts = Arc::new(with_current_state(&facts, &memory, now));
            let result = LookupResult::Domain(name.clone(), facts);
            known.push(result.clone());
            // Refreshed immediately: the stored answer applies until the new answer arrives.
            schedule.restore(&LookupRequest::Domain(name), result, now, memory, now);
        }
        for KnownHost { name, facts } in hosts {
            let until = facts.addresses.until.min(facts.dane.until);
            let result = LookupResult::Host(name.clone(), facts);
            if now < until {
                known.push(result.clone());
            }
            schedule.restore(&LookupRequest::Host(name), result, until, Memory::default(), now);
        }
        // After the stored answers: a known policy must not be evicted because the configuration names its domain.
        for domain in &settings.domains {
            if let RequestOutcome::Scheduled(Evictions { evicted: Some(evicted), .. }) =
                schedule.request(&LookupRequest::Domain(domain.clone()), true, now)
            {
                store(Known::Forgotten(evicted));
            }
        }
        let (mut at, mut fetched_at) = (now, now);
        let mut text = Vec::new();
        if let (Some(ListSource::Url(url)), Some(list)) = (&source, list)
            && *url == list.url
            && let Ok(parsed) = list::parse(&list.text)
        {
            known.push(LookupResult::List(Arc::new(parsed)));
            metrics.policy_refreshed(Source::List, list.fetched_at);
            at = list.fetched_at + LIST_URL;
            fetched_at = list.fetched_at;
            text = list.text;
        }
        metrics.policy_subjects(schedule.len());
        let worker = Self {
            settings,
            trust,
            timeouts,
            metrics,
            store,
            answers,
            schedule,
            sources: None,
            search_at: now,
            searching: false,
            probes: Probes::default(),
            list: List { source, at, waits: false, written: None, text, fetched_at, failing: false },
            tasks: JoinSet::new(),
            lookups: HashMap::new(),
            to_store_again: VecDeque::new(),
            chance: RandomState::new(),
            random_count: 0,
        };
        (worker, known)
    }

    async fn run(
        mut self,
        mut incoming: mpsc::Receiver<LookupRequest>,
        lost: Arc<Notify>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        loop {
            let started = now();
            self.start_due(started);
            let mut wait = self.next_at(started).map_or(MAX_SLEEP, |at| at.since(started).min(MAX_SLEEP));
            if !self.to_store_again.is_empty() {
                self.store_again_batch();
                wait = wait.min(STORE_AGAIN_INTERVAL);
            }
            tokio::select! {
                biased;
                _ = &mut stopped => return,
                Some(result) = self.tasks.join_next_with_id() => self.finished(result),
                subject = incoming.recv() => match subject {
                    Some(subject) => self.request(&subject, false, now()),
                    None => return,
                },
                () = lost.notified() => {
                    self.to_store_again = self.schedule.answered();
                    self.store_list();
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Stores one batch of cached answers again.
    fn store_again_batch(&mut self) {
        for subject in self.to_store_again.drain(..self.to_store_again.len().min(STORE_AGAIN_BATCH)) {
            // The subject may have been evicted in the meantime.
            let known = match self.schedule.answer_with_memory(&subject) {
                Some((LookupResult::Domain(name, facts), memory)) => {
                    Known::Domain(KnownDomain { name: name.clone(), facts: facts.clone(), memory: memory.clone() })
                }
                Some((LookupResult::Host(name, facts), _)) => {
                    Known::Host(KnownHost { name: name.clone(), facts: facts.clone() })
                }
                Some((LookupResult::List(_), _)) | None => continue,
            };
            (self.store)(known);
        }
    }

    /// Stores the list again, if it comes from a URL.
    fn store_list(&self) {
        if let (Some(ListSource::Url(url)), false) = (&self.list.source, self.list.text.is_empty()) {
            let (url, text, fetched_at) = (url.clone(), self.list.text.clone(), self.list.fetched_at);
            (self.store)(Known::List(KnownList { url, text, fetched_at }));
        }
    }

    /// Time of the next scheduled action, unless a request or a result comes first.
    fn next_at(&self, now: Timestamp) -> Option<Timestamp> {
        let sources = (!self.searching).then_some(self.search_at);
        let list = (self.list.source.is_some() && !self.list.waits).then_some(self.list.at);
        let free = self.sources.is_some() && self.lookups.len() < MAX_LOOKUPS;
        let schedule = self.schedule.next_at().filter(|_| free);
        [sources, list, schedule].into_iter().flatten().min().map(|at| at.max(now + Duration::from_millis(10)))
    }

    /// Starts all due tasks within the bound.
    fn start_due(&mut self, now: Timestamp) {
        if !self.searching && self.search_at <= now {
            self.searching = true;
            let (settings, trust, timeouts) = (self.settings.clone(), self.trust.clone(), self.timeouts);
            self.tasks.spawn(async move {
                let sources = Sources::start(&settings, &trust, timeouts, now).await;
                TaskResult::Sources(sources.map(Box::new).map_err(|error| error.to_string()))
            });
        }
        if !self.list.waits && self.list.at <= now {
            self.read_list(now);
        }
        let Some(sources) = self.sources.clone() else { return };
        while self.lookups.len() < MAX_LOOKUPS
            && let Some((subject, memory)) = self.schedule.next(now)
        {
            let sources = sources.clone();
            let task = match subject.clone() {
                LookupRequest::Domain(name) => self.tasks.spawn(async move {
                    let lookup = sources.domain(&name, memory, now).await;
                    TaskResult::Domain(name, Box::new(lookup))
                }),
                LookupRequest::Host(name) => self.tasks.spawn(async move {
                    let facts = sources.host(&name, now).await;
                    TaskResult::Host(name, facts)
                }),
            };
            self.lookups.insert(task.id(), subject);
        }
    }

    fn request(&mut self, subject: &LookupRequest, pinned: bool, now: Timestamp) {
        match self.schedule.request(subject, pinned, now) {
            RequestOutcome::Cached(result) => self.send(result),
            RequestOutcome::Scheduled(Evictions { evicted, dropped }) => {
                self.forget(evicted);
                if dropped.is_some() {
                    self.metrics.policy_dropped(Dropped::WaitingFull);
                }
            }
            RequestOutcome::Refused => self.metrics.policy_dropped(Dropped::Capacity),
        }
        self.metrics.policy_subjects(self.schedule.len());
    }

    /// Deletes the stored answers of evicted subjects.
    fn forget(&self, evicted: impl IntoIterator<Item = LookupRequest>) {
        for subject in evicted {
            self.metrics.policy_dropped(Dropped::Capacity);
            (self.store)(Known::Forgotten(subject));
        }
    }

    fn send(&self, result: LookupResult) {
        if self.answers.try_send(result).is_err() {
            self.metrics.policy_dropped(Dropped::AnswersFull);
        }
    }

    fn finished(&mut self, done: Result<(Id, TaskResult), JoinError>) {
        let now = now();
        match done {
            Ok((id, done)) => {
                self.lookups.remove(&id);
                match done {
                    TaskResult::Sources(sources) => self.name_servers_found(sources, now),
                    TaskResult::Domain(name, lookup) => self.domain_finished(name, *lookup, now),
                    TaskResult::Host(name, facts) => self.host_finished(name, facts, now),
                    TaskResult::List(text) => self.list_finished(text, now),
                }
            }
            Err(error) => {
                tracing::error!(%error, "a look-up of published policies broke off; please report it");
                match self.lookups.remove(&error.id()) {
                    Some(subject) => self.schedule.failed(&subject),
                    // The task of the name servers or of the list: both are retried at their next time.
                    None => {
                        (self.searching, self.list.waits) = (false, false);
                        (self.search_at, self.list.at) = (now + RETRY_AFTER_PANIC, now + LIST_RETRY);
                    }
                }
            }
        }
    }

    /// Handles the result of a search for name servers.
    fn name_servers_found(&mut self, sources: Result<Box<Sources>, String>, now: Timestamp) {
        self.searching = false;
        let (sources, dnssec) = match sources {
            Ok(sources) => {
                let dnssec = sources.dnssec().clone();
                (Some(Arc::from(sources)), dnssec)
            }
            // The previous name servers may still work.
            Err(why) => (None, Dnssec::Broken(why)),
        };
        if let Dnssec::Broken(why) = &dnssec {
            tracing::debug!("a probe of DNSSEC failed: {why}");
            self.metrics.policy_failed(Source::Dane);
        }
        let effect = self.probes.note(dnssec);
        self.search_at = now + self.probes.next_in();
        self.metrics.policy_dnssec(self.probes.is_on());
        if effect.adopt && sources.is_some() {
            self.sources = sources;
        }
        if effect.changed {
            match self.probes.state() {
                Some(Dnssec::On) => tracing::info!("DNSSEC is validated: DANE is on"),
                Some(Dnssec::Off) => tracing::info!("DANE is switched off by the configuration"),
                Some(Dnssec::Broken(why)) if *self.settings.dane => tracing::warn!("DANE is off: {why}: {REMEDY}"),
                // Without DANE, DNSSEC is not needed; but MTA-STS needs name servers.
                Some(Dnssec::Broken(why)) if *self.settings.mta_sts => {
                    tracing::warn!("published policies cannot be looked up: {why}");
                }
                Some(Dnssec::Broken(why)) => tracing::debug!("no name servers: {why}"),
                None => {}
            }
            // Secure answers stay valid for their TTL; insecure ones are looked up again.
            if self.probes.is_on() {
                self.schedule.refresh_all(|subject| matches!(subject, LookupRequest::Host(_)), now);
            }
        }
    }

    fn domain_finished(&mut self, name: String, lookup: DomainLookup, now: Timestamp) {
        let DomainLookup { mut facts, memory, failed } = lookup;
        tracing::debug!(domain = %name, mx = facts.mx.state.as_str(), mta_sts = facts.sts.state.as_str(), "looked up");
        if failed {
            self.metrics.policy_failed(Source::MtaSts);
        } else if *self.settings.mta_sts {
            self.metrics.policy_refreshed(Source::MtaSts, now);
        }
        if self.probes.is_on() && matches!(facts.mx.state, State::Error | State::Bogus) {
            // Without its mail hosts, the domain's TLSA records cannot be found.
            self.metrics.policy_failed(Source::Dane);
        }
        let subject = LookupRequest::Domain(name.clone());
        if let Some(LookupResult::Domain(_, before)) = self.schedule.answer(&subject) {
            facts.mx = keep_unexpired(&before.mx, facts.mx, now);
        }
        let hosts: Vec<String> = published::hosts(&facts).cloned().collect();
        let facts = Arc::new(facts);
        let result = LookupResult::Domain(name.clone(), facts.clone());
        let until = facts.mx.until.min(facts.sts.until);
        let chance = self.random();
        let evicted = self.schedule.done(&subject, result.clone(), until, memory.clone(), now, chance);
        self.forget(evicted);
        (self.store)(Known::Domain(KnownDomain { name, facts, memory }));
        self.send(result);
        for host in hosts {
            self.request(&LookupRequest::Host(host), false, now);
        }
    }

    fn host_finished(&mut self, name: String, mut facts: HostFacts, now: Timestamp) {
        let (found, dane) = (facts.addresses.state.as_str(), facts.dane.state.as_str());
        tracing::debug!(host = %name, addresses = found, dane, "looked up");
        if self.probes.is_on() {
            match facts.dane.state {
                State::Error | State::Bogus => self.metrics.policy_failed(Source::Dane),
                State::Valid | State::Absent | State::Insecure | State::Expired | State::Invalid => {
                    self.metrics.policy_refreshed(Source::Dane, now);
                }
            }
        }
        let subject = LookupRequest::Host(name.clone());
        if let Some(LookupResult::Host(_, before)) = self.schedule.answer(&subject) {
            facts.addresses = keep_unexpired(&before.addresses, facts.addresses, now);
            facts.dane = keep_unexpired(&before.dane, facts.dane, now);
            if facts.dane == before.dane {
                facts.base.clone_from(&before.base);
            }
        }
        let until = facts.addresses.until.min(facts.dane.until);
        let facts = Arc::new(facts);
        let result = LookupResult::Host(name.clone(), facts.clone());
        let chance = self.random();
        let evicted = self.schedule.done(&subject, result.clone(), until, Memory::default(), now, chance);
        self.forget(evicted);
        (self.store)(Known::Host(KnownHost { name, facts }));
        self.send(result);
    }

    /// Checks whether the file has changed, or fetches the list.
    fn read_list(&mut self, now: Timestamp) {
        match &self.list.source {
            None => {}
            Some(ListSource::File(path)) => {
                self.list.at = now + LIST_FILE;
                let written = std::fs::metadata(path).and_then(|file| file.modified()).ok();
                if written.is_none() || written != self.list.written {
                    self.list.written = written;
                    let text = list::read_file(path);
                    self.list_finished(text, now);
                }
            }
            Some(source @ ListSource::Url(_)) => {
                let Some(sources) = self.sources.clone() else {
                    self.list.at = now + Duration::from_secs(1);
                    return;
                };
                self.list.waits = true;
                let source = source.clone();
                self.tasks.spawn(async move { TaskResult::List(source.read(Some(&sources)).await) });
            }
        }
    }

    /// Handles a result of reading the list; after a failure the last good list stays in use.
    fn list_finished(&mut self, text: Result<Vec<u8>, String>, now: Timestamp) {
        self.list.waits = false;
        let url = match &self.list.source {
            Some(ListSource::Url(url)) => Some(url.clone()),
            Some(ListSource::File(_)) | None => None,
        };
        let parsed = text.and_then(|text| list::parse(&text).map(|list| (text, list)));
        match parsed {
            Ok((text, list)) => {
                if url.is_some() {
                    self.list.at = now + LIST_URL.mul_f64(0.9 + 0.1 * self.random());
                }
                self.metrics.policy_refreshed(Source::List, now);
                self.list.failing = false;
                if text == self.list.text && url.is_none() {
                    return;
                }
                self.log_list(&list, now);
                self.list.text.clone_from(&text);
                self.list.fetched_at = now;
                if let Some(url) = url {
                    (self.store)(Known::List(KnownList { url, text, fetched_at: now }));
                }
                self.send(LookupResult::List(Arc::new(list)));
            }
            Err(why) => {
                if url.is_some() {
                    self.list.at = now + LIST_RETRY;
                }
                self.metrics.policy_failed(Source::List);
                if !std::mem::replace(&mut self.list.failing, true) {
                    tracing::warn!("{why}; the list that was read before stays in use, if there was one");
                }
            }
        }
    }

    fn log_list(&self, list: &StarttlsList, now: Timestamp) {
        let (domains, expires) = (list.policies.len(), list.expires);
        if list.is_expired(now) {
            tracing::warn!(domains, %expires, "the STARTTLS-Everywhere list has expired: it demands nothing any more");
        } else {
            tracing::info!(domains, %expires, "the STARTTLS-Everywhere list was read");
        }
    }

    /// A pseudo-random number from 0 to 1.
    fn random(&mut self) -> f64 {
        self.random_count = self.random_count.wrapping_add(1);
        #[expect(clippy::cast_precision_loss, reason = "chance needs no more than the 53 bits of a float")]
        let random_count = (self.chance.hash_one(self.random_count) >> 11) as f64 / (1_u64 << 53) as f64;
        random_count
    }
}

/// A lookup failure does not evict an unexpired answer; otherwise an attacker who blocks answers could remove a
/// policy.
fn keep_unexpired<T: Clone>(before: &Answer<T>, found: Answer<T>, now: Timestamp) -> Answer<T> {
    let failed = matches!(found.state, State::Error | State::Bogus);
    if failed && before.state == State::Valid && now < before.until { before.clone() } else { found }
}

/// A stored answer of a domain with its state at `now`: an expired policy is marked as such.
fn with_current_state(facts: &DomainFacts, memory: &Memory, now: Timestamp) -> DomainFacts {
    let mut facts = facts.clone();
    if facts.sts.state == State::Valid && memory.holding(now).is_none() {
        facts.sts.state = State::Expired;
    }
    facts
}

#[cfg(test)]
mod tests {
    use smtpwatch_metrics::Registry;

    use super::*;

    #[test]
    fn cached_answers_are_stored_again() {
        let now = Timestamp::from_secs(1_000_000);
        let answer = |until| Answer { state: State::Absent, value: None, detail: String::new(), at: now, until };
        let facts = Arc::new(HostFacts {
            addresses: answer(now + LIST_URL),
            dane: Answer { state: State::Absent, value: None, detail: String::new(), at: now, until: now + LIST_URL },
            base: String::new(),
        });
        let hosts: Vec<_> =
            (0..100).map(|n| KnownHost { name: format!("mx{n}.example.net"), facts: facts.clone() }).collect();
        let list = KnownList {
            url: "https://example.net/list".to_owned(),
            text: br#"{"version":"0.1","timestamp":1700000000,"expires":4000000000,"policy-aliases":{},"policies":{}}"#
                .to_vec(),
            fetched_at: now,
        };
        let settings: PolicySettings =
            toml::from_str(&format!("starttls_everywhere = {:?}", list.url)).expect("settings");
        let trust = Trust::load(&settings).expect("what is built in");
        let registry = Registry::new();
        let (metrics, timeouts) = (Arc::new(PolicyMetrics::register(&registry).expect("metrics")), Timeouts::default());
        let (store, kept) = std::sync::mpsc::channel();
        let store = Box::new(move |known| store.send(known).expect("received"));
        let held = Kept { domains: Vec::new(), hosts };
        let setup = Setup { settings, trust, timeouts, kept: held, list: Some(list.clone()), metrics, store };
        let (sender, _answers) = sync_channel(1);
        let (mut worker, _) = Worker::new(setup, sender, now);
        assert_eq!(kept.try_iter().count(), 0);
        worker.to_store_again = worker.schedule.answered();
        worker.store_list();
        assert_eq!(kept.try_iter().collect::<Vec<_>>(), [Known::List(list)]);
        worker.store_again_batch();
        let mut names: Vec<_> = kept.try_iter().collect();
        assert_eq!(names.len(), STORE_AGAIN_BATCH);
        worker.store_again_batch();
        names.extend(kept.try_iter());
        assert_eq!((names.len(), worker.to_store_again.is_empty()), (100, true));
        assert!(names.contains(&Known::Host(KnownHost { name: "mx99.example.net".to_owned(), facts })));
    }

    #[test]
    fn a_start_before_the_network_is_up_is_tried_again_in_seconds() {
        let settings = PolicySettings::default();
        let trust = Trust::load(&settings).expect("nothing but what is built in");
        let registry = Registry::new();
        let (metrics, timeouts) = (Arc::new(PolicyMetrics::register(&registry).expect("metrics")), Timeouts::default());
        let (kept, store) = (Kept::default(), Box::new(|_| ()));
        let setup = Setup { settings, trust, timeouts, kept, list: None, metrics, store };
        let (sender, _answers) = sync_channel(1);
        let mut now = Timestamp::from_secs(1_000);
        let (mut worker, _) = Worker::new(setup, sender, now);
        for wait in [5, 10, 20] {
            worker.searching = true;
            worker.name_servers_found(Err("there are no name servers".to_owned()), now);
            now = now + Duration::from_secs(wait);
            assert_eq!((worker.search_at, worker.searching, worker.sources.is_none()), (now, false, true));
        }
        assert!(smtpwatch_metrics::render(&registry).contains("smtpwatch_policy_dnssec 0\n"));
    }
}
