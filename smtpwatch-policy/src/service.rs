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
    list::{self, Place},
    lookup::{DomainLook, Patience, Sources, Trust},
    metrics::PolicyMetrics,
    probes::Probes,
    resolver::{Dnssec, REMEDY},
    subjects::{Asked, Room, SUBJECTS, Subjects},
};

/// Maximum number of requests queued for the service.
pub const QUEUE: usize = 1_024;
/// Maximum number of answers queued for the pipeline.
pub const ANSWERS: usize = 1_024;
/// Maximum number of concurrent look-ups.
const AT_ONCE: usize = 16;
/// Interval between checks whether the file of a list has changed.
const LIST_FILE: Duration = Duration::from_secs(60);
/// Interval between fetches of a list from a URL (its publisher demands at most 48 hours), and the interval after a
/// failure.
const LIST_URL: Duration = Duration::from_secs(86_400);
const LIST_RETRY: Duration = Duration::from_secs(3_600);
/// Interval until the name servers are tried again after a task panicked or was cancelled.
const BROKE_OFF: Duration = Duration::from_secs(300);
/// After a loss of the store, cached answers are stored again in batches of this many subjects, one batch per
/// interval: the store's queue must keep capacity for other changes.
const KEPT_AGAIN: usize = 64;
const KEEP_AGAIN: Duration = Duration::from_millis(50);
/// Maximum sleep of the event loop before it checks the clock.
const TICK: Duration = Duration::from_secs(60);

/// Why a look-up was not done, or its answer was discarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// The queue of requests holds [`QUEUE`] entries.
    QueueFull,
    /// [`super::subjects::WAITING`] subjects wait for their first look-up: the one that waited longest was dropped.
    WaitingFull,
    /// The queue of answers holds [`ANSWERS`] entries.
    AnswersFull,
    /// A subject was evicted or refused: there are [`SUBJECTS`] of its kind, or all answers together reach
    /// [`super::subjects::OCTETS`].
    Capacity,
}

impl Dropped {
    /// Every reason, for metric labels.
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::WaitingFull, Self::AnswersFull, Self::Capacity];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::WaitingFull => "waiting_full",
            Self::AnswersFull => "answers_full",
            Self::Capacity => "capacity",
        }
    }
}

/// Parameters of a service.
pub struct Setup {
    /// `[policy]` of the configuration.
    pub settings: PolicySettings,
    /// Trust anchors and certificate authorities from the configured files.
    pub trust: Trust,
    /// Timeouts of the sources.
    pub patience: Patience,
    /// Answers stored by an earlier run.
    pub kept: Kept,
    /// The list that was fetched last, if it comes from a URL.
    pub list: Option<KnownList>,
    /// Metrics to update.
    pub metrics: Arc<PolicyMetrics>,
    /// Stores results; must not block.
    pub keep: Box<dyn Fn(Known) + Send>,
}

/// Handle of the service; dropping it stops the service.
pub struct Service {
    questions: mpsc::Sender<LookupRequest>,
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
        let (questions, asked) = mpsc::channel(QUEUE);
        let (told, answers) = sync_channel(ANSWERS);
        let (stop, stopped) = oneshot::channel();
        let (metrics, lost) = (setup.metrics.clone(), Arc::new(Notify::new()));
        let keep_again = lost.clone();
        let (worker, known) = Worker::new(setup, told, now());
        let thread = std::thread::Builder::new().name("policies".to_owned()).spawn(move || {
            runtime.block_on(worker.run(asked, keep_again, stopped));
            // A look-up in progress must not delay shutdown.
            runtime.shutdown_background();
        })?;
        Ok((Self { questions, answers, metrics, lost, stop: Some(stop), thread: Some(thread) }, known))
    }

    /// Requests a look-up. The answer is returned by [`Self::learned`], unless a queue is full.
    pub fn want(&self, wanted: LookupRequest) {
        if self.questions.try_send(wanted).is_err() {
            self.metrics.policy_dropped(Dropped::QueueFull);
        }
    }

    /// The store lost its data: all cached answers are stored again, in batches.
    pub fn keep_again(&self) {
        self.lost.notify_one();
    }

    /// The next answer, if one is available.
    #[must_use]
    pub fn learned(&self) -> Option<LookupResult> {
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
enum Done {
    Sources(Result<Box<Sources>, String>),
    Domain(String, Box<DomainLook>),
    Host(String, HostFacts),
    List(Result<Vec<u8>, String>),
}

struct Worker {
    settings: PolicySettings,
    trust: Trust,
    patience: Patience,
    metrics: Arc<PolicyMetrics>,
    keep: Box<dyn Fn(Known) + Send>,
    answers: SyncSender<LookupResult>,
    subjects: Subjects,
    /// `None` until the name servers are found.
    sources: Option<Arc<Sources>>,
    sources_at: Timestamp,
    /// A search for the name servers is in progress.
    sources_wait: bool,
    /// State of DNSSEC as last logged.
    probes: Probes,
    list: List,
    tasks: JoinSet<Done>,
    /// The subject of each look-up task; other tasks are not included.
    looks: HashMap<Id, LookupRequest>,
    /// Subjects whose answers must be stored again.
    again: VecDeque<LookupRequest>,
    chance: RandomState,
    drawn: u64,
}

/// The list, and the time of its next check.
struct List {
    place: Option<Place>,
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
        let Setup { settings, trust, patience, kept, list, metrics, keep } = setup;
        let place = Place::of(&settings.starttls_everywhere);
        let mut known = Vec::new();
        let mut subjects = Subjects::new(SUBJECTS);
        // Stored answers of a source that has since been disabled are ignored.
        let domains = if *settings.mta_sts { kept.domains } else { Vec::new() };
        let hosts = if *settings.dane { kept.hosts } else { Vec::new() };
        for KnownDomain { name, facts, memory } in domains {
            let facts = Arc::new(as_of(&facts, &memory, now));
            let learned = LookupResult::Domain(name.clone(), facts);
            known.push(learned.clone());
            // Refreshed immediately: the stored answer applies until the new answer arrives.
            subjects.restore(&LookupRequest::Domain(name), learned, now, memory, now);
        }
        for KnownHost { name, facts } in hosts {
            let until = facts.addresses.until.min(facts.dane.until);
            let learned = LookupResult::Host(name.clone(), facts);
            if now < until {
                known.push(learned.clone());
            }
            subjects.restore(&LookupRequest::Host(name), learned, until, Memory::default(), now);
        }
        // After the stored answers: a known policy must not be evicted because the configuration names its domain.
        for domain in &settings.domains {
            if let Asked::Waits(Room { gone: Some(gone), .. }) =
                subjects.ask(&LookupRequest::Domain(domain.clone()), true, now)
            {
                keep(Known::Forgotten(gone));
            }
        }
        let (mut at, mut fetched_at) = (now, now);
        let mut text = Vec::new();
        if let (Some(Place::Url(url)), Some(list)) = (&place, list)
            && *url == list.url
            && let Ok(parsed) = list::parse(&list.text)
        {
            known.push(LookupResult::List(Arc::new(parsed)));
            metrics.policy_refreshed(Source::List, list.fetched_at);
            at = list.fetched_at + LIST_URL;
            fetched_at = list.fetched_at;
            text = list.text;
        }
        metrics.policy_subjects(subjects.len());
        let worker = Self {
            settings,
            trust,
            patience,
            metrics,
            keep,
            answers,
            subjects,
            sources: None,
            sources_at: now,
            sources_wait: false,
            probes: Probes::default(),
            list: List { place, at, waits: false, written: None, text, fetched_at, failing: false },
            tasks: JoinSet::new(),
            looks: HashMap::new(),
            again: VecDeque::new(),
            chance: RandomState::new(),
            drawn: 0,
        };
        (worker, known)
    }

    async fn run(
        mut self,
        mut asked: mpsc::Receiver<LookupRequest>,
        lost: Arc<Notify>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        loop {
            let begun = now();
            self.begin(begun);
            let mut wait = self.next_at(begun).map_or(TICK, |at| at.since(begun).min(TICK));
            if !self.again.is_empty() {
                self.keep_piece();
                wait = wait.min(KEEP_AGAIN);
            }
            tokio::select! {
                biased;
                _ = &mut stopped => return,
                Some(done) = self.tasks.join_next_with_id() => self.done(done),
                wanted = asked.recv() => match wanted {
                    Some(wanted) => self.ask(&wanted, false, now()),
                    None => return,
                },
                () = lost.notified() => {
                    self.again = self.subjects.answered();
                    self.keep_list();
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Stores one batch of cached answers again.
    fn keep_piece(&mut self) {
        for subject in self.again.drain(..self.again.len().min(KEPT_AGAIN)) {
            // The subject may have been evicted in the meantime.
            let known = match self.subjects.known(&subject) {
                Some((LookupResult::Domain(name, facts), memory)) => {
                    Known::Domain(KnownDomain { name: name.clone(), facts: facts.clone(), memory: memory.clone() })
                }
                Some((LookupResult::Host(name, facts), _)) => {
                    Known::Host(KnownHost { name: name.clone(), facts: facts.clone() })
                }
                Some((LookupResult::List(_), _)) | None => continue,
            };
            (self.keep)(known);
        }
    }

    /// Stores the list again, if it comes from a URL.
    fn keep_list(&self) {
        if let (Some(Place::Url(url)), false) = (&self.list.place, self.list.text.is_empty()) {
            let (url, text, fetched_at) = (url.clone(), self.list.text.clone(), self.list.fetched_at);
            (self.keep)(Known::List(KnownList { url, text, fetched_at }));
        }
    }

    /// Time of the next scheduled action, unless a request or a result comes first.
    fn next_at(&self, now: Timestamp) -> Option<Timestamp> {
        let sources = (!self.sources_wait).then_some(self.sources_at);
        let list = (self.list.place.is_some() && !self.list.waits).then_some(self.list.at);
        let free = self.sources.is_some() && self.looks.len() < AT_ONCE;
        let subjects = self.subjects.next_at().filter(|_| free);
        [sources, list, subjects].into_iter().flatten().min().map(|at| at.max(now + Duration::from_millis(10)))
    }

    /// Starts all due tasks within the bound.
    fn begin(&mut self, now: Timestamp) {
        if !self.sources_wait && self.sources_at <= now {
            self.sources_wait = true;
            let (settings, trust, patience) = (self.settings.clone(), self.trust.clone(), self.patience);
            self.tasks.spawn(async move {
                let sources = Sources::start(&settings, &trust, patience, now).await;
                Done::Sources(sources.map(Box::new).map_err(|error| error.to_string()))
            });
        }
        if !self.list.waits && self.list.at <= now {
            self.read_list(now);
        }
        let Some(sources) = self.sources.clone() else { return };
        while self.looks.len() < AT_ONCE
            && let Some((wanted, memory)) = self.subjects.next(now)
        {
            let sources = sources.clone();
            let task = match wanted.clone() {
                LookupRequest::Domain(name) => self.tasks.spawn(async move {
                    let look = sources.domain(&name, memory, now).await;
                    Done::Domain(name, Box::new(look))
                }),
                LookupRequest::Host(name) => self.tasks.spawn(async move {
                    let facts = sources.host(&name, now).await;
                    Done::Host(name, facts)
                }),
            };
            self.looks.insert(task.id(), wanted);
        }
    }

    fn ask(&mut self, wanted: &LookupRequest, pinned: bool, now: Timestamp) {
        match self.subjects.ask(wanted, pinned, now) {
            Asked::Known(learned) => self.tell(learned),
            Asked::Waits(Room { gone, dropped }) => {
                self.forget(gone);
                if dropped.is_some() {
                    self.metrics.policy_dropped(Dropped::WaitingFull);
                }
            }
            Asked::Refused => self.metrics.policy_dropped(Dropped::Capacity),
        }
        self.metrics.policy_subjects(self.subjects.len());
    }

    /// Deletes the stored answers of evicted subjects.
    fn forget(&self, gone: impl IntoIterator<Item = LookupRequest>) {
        for subject in gone {
            self.metrics.policy_dropped(Dropped::Capacity);
            (self.keep)(Known::Forgotten(subject));
        }
    }

    fn tell(&self, learned: LookupResult) {
        if self.answers.try_send(learned).is_err() {
            self.metrics.policy_dropped(Dropped::AnswersFull);
        }
    }

    fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        let now = now();
        match done {
            Ok((id, done)) => {
                let wanted = self.looks.remove(&id);
                match done {
                    Done::Sources(sources) => self.found(sources, now),
                    Done::Domain(name, look) => self.domain(name, *look, now),
                    Done::Host(name, facts) => self.host(name, facts, now),
                    Done::List(text) => self.take_list(text, now),
                }
                drop(wanted);
            }
            Err(error) => {
                tracing::error!(%error, "a look-up of published policies broke off; please report it");
                match self.looks.remove(&error.id()) {
                    Some(wanted) => self.subjects.failed(&wanted),
                    // The task of the name servers or of the list: both are retried at their next time.
                    None => {
                        (self.sources_wait, self.list.waits) = (false, false);
                        (self.sources_at, self.list.at) = (now + BROKE_OFF, now + LIST_RETRY);
                    }
                }
            }
        }
    }

    /// Handles the result of a search for name servers.
    fn found(&mut self, sources: Result<Box<Sources>, String>, now: Timestamp) {
        self.sources_wait = false;
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
        let noted = self.probes.note(dnssec);
        self.sources_at = now + self.probes.next_in();
        self.metrics.policy_dnssec(self.probes.is_on());
        if noted.adopt && sources.is_some() {
            self.sources = sources;
        }
        if noted.changed {
            match self.probes.stands() {
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
                self.subjects.renew(|subject| matches!(subject, LookupRequest::Host(_)), now);
            }
        }
    }

    fn domain(&mut self, name: String, look: DomainLook, now: Timestamp) {
        let DomainLook { mut facts, memory, failed } = look;
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
        if let Some(LookupResult::Domain(_, before)) = self.subjects.answer(&subject) {
            facts.mx = still(&before.mx, facts.mx, now);
        }
        let hosts: Vec<String> = published::hosts(&facts).cloned().collect();
        let facts = Arc::new(facts);
        let learned = LookupResult::Domain(name.clone(), facts.clone());
        let until = facts.mx.until.min(facts.sts.until);
        let chance = self.draw();
        let gone = self.subjects.done(&subject, learned.clone(), until, memory.clone(), now, chance);
        self.forget(gone);
        (self.keep)(Known::Domain(KnownDomain { name, facts, memory }));
        self.tell(learned);
        for host in hosts {
            self.ask(&LookupRequest::Host(host), false, now);
        }
    }

    fn host(&mut self, name: String, mut facts: HostFacts, now: Timestamp) {
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
        if let Some(LookupResult::Host(_, before)) = self.subjects.answer(&subject) {
            facts.addresses = still(&before.addresses, facts.addresses, now);
            facts.dane = still(&before.dane, facts.dane, now);
            if facts.dane == before.dane {
                facts.base.clone_from(&before.base);
            }
        }
        let until = facts.addresses.until.min(facts.dane.until);
        let facts = Arc::new(facts);
        let learned = LookupResult::Host(name.clone(), facts.clone());
        let chance = self.draw();
        let gone = self.subjects.done(&subject, learned.clone(), until, Memory::default(), now, chance);
        self.forget(gone);
        (self.keep)(Known::Host(KnownHost { name, facts }));
        self.tell(learned);
    }

    /// Checks whether the file has changed, or fetches the list.
    fn read_list(&mut self, now: Timestamp) {
        match &self.list.place {
            None => {}
            Some(Place::File(path)) => {
                self.list.at = now + LIST_FILE;
                let written = std::fs::metadata(path).and_then(|file| file.modified()).ok();
                if written.is_none() || written != self.list.written {
                    self.list.written = written;
                    let text = list::read_file(path);
                    self.take_list(text, now);
                }
            }
            Some(place @ Place::Url(_)) => {
                let Some(sources) = self.sources.clone() else {
                    self.list.at = now + Duration::from_secs(1);
                    return;
                };
                self.list.waits = true;
                let place = place.clone();
                self.tasks.spawn(async move { Done::List(place.read(Some(&sources)).await) });
            }
        }
    }

    /// Handles a result of reading the list; after a failure the last good list stays in use.
    fn take_list(&mut self, text: Result<Vec<u8>, String>, now: Timestamp) {
        self.list.waits = false;
        let url = match &self.list.place {
            Some(Place::Url(url)) => Some(url.clone()),
            Some(Place::File(_)) | None => None,
        };
        let parsed = text.and_then(|text| list::parse(&text).map(|list| (text, list)));
        match parsed {
            Ok((text, list)) => {
                if url.is_some() {
                    self.list.at = now + LIST_URL.mul_f64(0.9 + 0.1 * self.draw());
                }
                self.metrics.policy_refreshed(Source::List, now);
                self.list.failing = false;
                if text == self.list.text && url.is_none() {
                    return;
                }
                self.say_of(&list, now);
                self.list.text.clone_from(&text);
                self.list.fetched_at = now;
                if let Some(url) = url {
                    (self.keep)(Known::List(KnownList { url, text, fetched_at: now }));
                }
                self.tell(LookupResult::List(Arc::new(list)));
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

    fn say_of(&self, list: &StarttlsList, now: Timestamp) {
        let (domains, expires) = (list.policies.len(), list.expires);
        if list.is_expired(now) {
            tracing::warn!(domains, %expires, "the STARTTLS-Everywhere list has expired: it demands nothing any more");
        } else {
            tracing::info!(domains, %expires, "the STARTTLS-Everywhere list was read");
        }
    }

    /// A pseudo-random number from 0 to 1.
    fn draw(&mut self) -> f64 {
        self.drawn = self.drawn.wrapping_add(1);
        #[expect(clippy::cast_precision_loss, reason = "chance needs no more than the 53 bits of a float")]
        let drawn = (self.chance.hash_one(self.drawn) >> 11) as f64 / (1_u64 << 53) as f64;
        drawn
    }
}

/// A lookup failure does not evict an unexpired answer; otherwise an attacker who blocks answers could remove a
/// policy.
fn still<T: Clone>(before: &Answer<T>, found: Answer<T>, now: Timestamp) -> Answer<T> {
    let failed = matches!(found.state, State::Error | State::Bogus);
    if failed && before.state == State::Valid && now < before.until { before.clone() } else { found }
}

/// A stored answer of a domain with its state at `now`: an expired policy is marked as such.
fn as_of(facts: &DomainFacts, memory: &Memory, now: Timestamp) -> DomainFacts {
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
    fn what_is_known_is_kept_again() {
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
        let (metrics, patience) = (Arc::new(PolicyMetrics::register(&registry).expect("metrics")), Patience::default());
        let (keep, kept) = std::sync::mpsc::channel();
        let keep = Box::new(move |known| keep.send(known).expect("received"));
        let held = Kept { domains: Vec::new(), hosts };
        let setup = Setup { settings, trust, patience, kept: held, list: Some(list.clone()), metrics, keep };
        let (told, _answers) = sync_channel(1);
        let (mut worker, _) = Worker::new(setup, told, now);
        assert_eq!(kept.try_iter().count(), 0);
        worker.again = worker.subjects.answered();
        worker.keep_list();
        assert_eq!(kept.try_iter().collect::<Vec<_>>(), [Known::List(list)]);
        worker.keep_piece();
        let mut names: Vec<_> = kept.try_iter().collect();
        assert_eq!(names.len(), KEPT_AGAIN);
        worker.keep_piece();
        names.extend(kept.try_iter());
        assert_eq!((names.len(), worker.again.is_empty()), (100, true));
        assert!(names.contains(&Known::Host(KnownHost { name: "mx99.example.net".to_owned(), facts })));
    }

    #[test]
    fn a_start_before_the_network_is_up_is_tried_again_in_seconds() {
        let settings = PolicySettings::default();
        let trust = Trust::load(&settings).expect("nothing but what is built in");
        let registry = Registry::new();
        let (metrics, patience) = (Arc::new(PolicyMetrics::register(&registry).expect("metrics")), Patience::default());
        let (kept, keep) = (Kept::default(), Box::new(|_| ()));
        let setup = Setup { settings, trust, patience, kept, list: None, metrics, keep };
        let (told, _answers) = sync_channel(1);
        let mut now = Timestamp::from_secs(1_000);
        let (mut worker, _) = Worker::new(setup, told, now);
        for wait in [5, 10, 20] {
            worker.sources_wait = true;
            worker.found(Err("there are no name servers".to_owned()), now);
            now = now + Duration::from_secs(wait);
            assert_eq!((worker.sources_at, worker.sources_wait, worker.sources.is_none()), (now, false, true));
        }
        assert!(smtpwatch_metrics::render(&registry).contains("smtpwatch_policy_dnssec 0\n"));
    }
}
