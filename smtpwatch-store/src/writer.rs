//! The thread that writes the store.

mod recovery;
mod reports;

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use smtpwatch_config::{Config, Retention};
use smtpwatch_core::{
    Finding, Timestamp,
    engine::{Delivery, SessionSummary},
    policy::{
        history::{HistoryKey, HistoryRecord, is_peer},
        known::Known,
    },
};
use smtpwatch_system::clock::now;

use super::{
    Entry, Store, StoreError, WriterLock, condition::Status, damage, deliveries, findings::KeptAs, offers, policies,
    watch::Watch,
};
use recovery::Faults;
use reports::{Reported, Reports, Waiting};

/// Changes that may wait for the writer thread; what comes when it is full is dropped and counted.
pub const QUEUE: usize = 8_192;
/// Changes are written at the latest after this.
const BATCH_TIME: Duration = Duration::from_millis(500);
/// A batch is written when it holds this many rows.
const BATCH_ROWS: usize = 4_096;
/// A finding is written at the latest after this: those that come together are written together.
const FINDING_TIME: Duration = Duration::from_millis(50);
/// Findings that wait while the store cannot be written; the oldest is evicted, and is counted as lost.
const FINDINGS: usize = 1_024;
/// Findings are compared with their age this often.
const EXPIRY: Duration = Duration::from_secs(60);
/// Requests of other processes that may wait for the pipeline.
const REQUESTS: usize = 64;
/// Pieces of history that may wait for the writer thread.
const RESTORES: usize = 8;
/// Rows of history in one piece.
pub const PIECE: usize = 512;

/// What another process asks of the daemon: to forget a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Names the request when it is done.
    pub id: i64,
    /// Address or name.
    pub peer: String,
}

/// Hands a finding to the journal. The flag: it may be in the journal already. Returns whether the journal has queued it; then
/// an [`Outcome`] follows.
pub type Tell = Box<dyn FnMut(&Finding, bool) -> bool + Send>;
/// Stores a finding.
pub type OnRecord = Box<dyn FnMut(&Finding, &KeptAs) + Send>;

/// The way to the journal and back.
pub struct Reporter {
    /// Hands a finding over.
    pub tell: Tell,
    /// What came of it.
    pub outcomes: Receiver<Outcome>,
}

/// What came of a finding that the journal had queued.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The finding.
    pub id: String,
    /// The journal has it.
    pub written: bool,
}

/// What is kept, and for how long.
pub struct Keeping {
    /// Peers whose history is held.
    pub peers: usize,
    /// For how long findings are kept.
    pub retention: Retention,
    /// Findings that are farther apart than this are two incidents.
    pub window: Duration,
    /// The journal gets each finding once it is stored; one that cannot be put there, as soon as that is known; and at the
    /// start those that it did not get before. `None`: there is no journal, and nothing is noted for one.
    pub journal: Option<Reporter>,
    /// Gets each finding once it is stored.
    pub on_record: OnRecord,
}

impl Keeping {
    /// What a configuration says; without a journal.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            peers: config.limits.peers,
            retention: config.retention,
            window: config.window,
            journal: None,
            on_record: Box::new(|_, _| ()),
        }
    }
}

impl Default for Keeping {
    fn default() -> Self {
        Self::of(&Config::default())
    }
}

/// The writer thread. Dropped: what is queued is written, then the thread ends.
pub struct Writer {
    handle: Option<StoreHandle>,
    thread: Option<JoinHandle<()>>,
    requests: Receiver<Request>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    /// Rows that no store will ever hold.
    lost: AtomicU64,
    /// Attempts to write that failed; up to a batch of rows is kept and tried again.
    failures: AtomicU64,
    /// Sessions that did not fit in the counts of their day.
    full: AtomicU64,
    /// The store lacks rows of history that the pipeline has.
    history_wanted: AtomicBool,
    /// Pieces of history that wait to be written.
    restoring: AtomicUsize,
    status: Mutex<Status>,
}

/// The way to the writer thread.
#[derive(Clone)]
pub struct StoreHandle {
    queue: SyncSender<Change>,
    counts: Arc<Counts>,
    patient: bool,
}

enum Change {
    Keep(HistoryKey, HistoryRecord),
    Forget(HistoryKey),
    Done(Request),
    Delivery(Box<Delivery>),
    Reported(Box<deliveries::Reported>),
    Offer(Box<SessionSummary>, Timestamp),
    Policy(Box<Known>),
    Finding(Box<Finding>),
    Restore(Vec<Entry>),
}

impl Writer {
    /// Opens the store, reads the history that it holds, as far as there is room for it, and starts the thread. A damaged
    /// store is set aside.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn start(path: &Path, keeping: Keeping) -> Result<(Self, Vec<Entry>), StoreError> {
        let (mut store, lock) = match Store::open(path) {
            Ok(store) => (store, super::lock(path)?),
            Err(StoreError::Damaged { what, .. }) => {
                // Not under the hands of another one that goes on with it.
                let lock = super::lock(path)?;
                damage::set_aside_at_start(path, &what, now())?;
                (Store::open(path)?, lock)
            }
            Err(error) => return Err(error),
        };
        let entries = store.begin(keeping.peers)?;
        store.count_held()?;
        let unreported = if keeping.journal.is_some() { store.last_unreported()? } else { None };
        let watch = Watch::start(path).map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
        let counts = Arc::new(Counts::default());
        let (queue, changes) = sync_channel(QUEUE);
        let (asked, requests) = sync_channel(REQUESTS);
        let worker = Worker {
            store,
            watch,
            lock,
            path: path.to_owned(),
            changes,
            asked,
            counts: counts.clone(),
            pending: HashMap::new(),
            done: Vec::new(),
            deliveries: deliveries::Pending::default(),
            offers: offers::Pending::default(),
            policies: policies::Pending::default(),
            findings: VecDeque::new(),
            reports: Reports::after_start(unreported),
            keeping,
            expired: None,
            faults: Faults::default(),
            full: false,
        };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(|| worker.run());
        let thread = thread.map_err(StoreError::Thread)?;
        let handle = StoreHandle { queue, counts: counts.clone(), patient: false };
        Ok((Self { handle: Some(handle), thread: Some(thread), requests, counts }, entries))
    }

    /// The way to the thread.
    #[must_use]
    pub fn handle(&self) -> Option<StoreHandle> {
        self.handle.clone()
    }

    /// Whether the store lacks rows of history: it was made again, or could not be written for long. They are given with
    /// [`StoreHandle::restore`]. Says so once.
    #[must_use]
    pub fn history_wanted(&self) -> bool {
        self.counts.history_wanted.swap(false, Ordering::Relaxed)
    }

    /// How the store is doing.
    #[must_use]
    pub fn status(&self) -> Status {
        self.counts.status().clone()
    }

    /// The next thing that another process asks; answered with [`StoreHandle::done`].
    #[must_use]
    pub fn request(&self) -> Option<Request> {
        self.requests.try_recv().ok()
    }

    /// Writes what is queued and ends the thread; returns how many rows were lost. Every handle must be gone.
    #[must_use]
    pub fn finish(mut self) -> u64 {
        self.join();
        self.counts.lost.load(Ordering::Relaxed)
    }

    fn join(&mut self) {
        // The thread ends when the last handle is gone.
        self.handle = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Rows written; and rows lost or without room, together with attempts that failed.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let Counts { written, lost, failures, full, .. } = &*self.counts;
        let failed = [lost, failures, full].map(|count| count.load(Ordering::Relaxed)).iter().sum();
        (written.load(Ordering::Relaxed), failed)
    }
}

impl Counts {
    fn status(&self) -> MutexGuard<'_, Status> {
        // What a panicking thread left is whole: it is set in one assignment.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

impl StoreHandle {
    /// One that waits for a slow disk. Without this a change is dropped, and counted, when the queue is full: packets do
    /// not wait.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { patient: true, ..self }
    }

    /// A row changed.
    pub fn keep(&self, key: HistoryKey, record: HistoryRecord) {
        self.send(Change::Keep(key, record));
    }

    /// Whether [`Self::restore`] would take rows: the writer has few of them to write.
    #[must_use]
    pub fn takes_history(&self) -> bool {
        self.counts.restoring.load(Ordering::Relaxed) < RESTORES
    }

    /// Rows as they are in memory. False: the queue is full, they are to be given again later.
    #[must_use]
    pub fn restore(&self, rows: Vec<Entry>) -> bool {
        self.counts.restoring.fetch_add(1, Ordering::Relaxed);
        let taken = self.queue.try_send(Change::Restore(rows)).is_ok();
        if !taken {
            self.counts.restoring.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    /// A row is gone.
    pub fn forget(&self, key: HistoryKey) {
        self.send(Change::Forget(key));
    }

    /// A request is done in memory: what the store holds of the peer goes too. Were this lost, the request would come again.
    pub fn done(&self, request: Request) {
        self.send(Change::Done(request));
    }

    /// An outbound session, for the TLS report of its day.
    pub fn delivery(&self, delivery: Box<Delivery>) {
        self.send(Change::Delivery(delivery));
    }

    /// A TLS report is done with.
    pub fn reported(&self, reported: deliveries::Reported) {
        self.send(Change::Reported(Box::new(reported)));
    }

    /// An inbound session ended at this time: what its client was offered.
    pub fn offer(&self, session: SessionSummary, at: Timestamp) {
        self.send(Change::Offer(Box::new(session), at));
    }

    /// A finding was made. Gives it back where it cannot be taken.
    pub fn finding(&self, finding: Box<Finding>) -> Result<(), Box<Finding>> {
        let change = Change::Finding(finding);
        let refused = if self.patient {
            self.queue.send(change).err().map(|refused| refused.0)
        } else {
            self.queue.try_send(change).err().map(|refused| match refused {
                TrySendError::Full(change) | TrySendError::Disconnected(change) => change,
            })
        };
        match refused {
            Some(Change::Finding(finding)) => {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
                Err(finding)
            }
            _ => Ok(()),
        }
    }

    /// Something was learnt of published policies.
    pub fn policy(&self, known: Known) {
        self.send(Change::Policy(Box::new(known)));
    }

    fn send(&self, change: Change) {
        let sent = if self.patient { self.queue.send(change).is_ok() } else { self.queue.try_send(change).is_ok() };
        if !sent {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Worker {
    store: Store,
    watch: Watch,
    /// Held until the thread ends.
    lock: WriterLock,
    path: PathBuf,
    changes: Receiver<Change>,
    asked: SyncSender<Request>,
    counts: Arc<Counts>,
    /// The newest state of each changed row; `None`: deleted.
    pending: HashMap<HistoryKey, Option<HistoryRecord>>,
    done: Vec<Request>,
    deliveries: deliveries::Pending,
    offers: offers::Pending,
    policies: policies::Pending,
    /// Those that wait to be put on record.
    findings: VecDeque<Waiting>,
    reports: Reports,
    keeping: Keeping,
    /// When findings were compared with their age last.
    expired: Option<Instant>,
    faults: Faults,
    /// The log has said that the counts of a day are full.
    full: bool,
}

impl Worker {
    fn run(mut self) {
        let mut handed_over: HashMap<i64, u32> = HashMap::new();
        let mut open = true;
        while open {
            open = self.collect();
            if !open {
                self.faults.try_at_once();
            }
            self.take_outcomes();
            self.examine();
            self.report_again();
            self.flush_findings();
            self.expire();
            self.flush();
            self.probe();
            self.show();
            if self.faults.may_write() {
                self.hand_over(&mut handed_over);
            }
        }
        self.await_outcomes();
        self.counts.lost.fetch_add((self.rows() + self.findings.len()) as u64, Ordering::Relaxed);
    }

    /// Hands requests of other processes to the pipeline.
    fn hand_over(&mut self, handed_over: &mut HashMap<i64, u32>) {
        // A request is handed over once; it is asked for again when it is not done within this many rounds.
        const PATIENCE: u32 = 10;
        match self.store.requests() {
            Ok(requests) => {
                handed_over.retain(|id, _| requests.iter().any(|request| request.id == *id));
                for request in requests {
                    let rounds = handed_over.entry(request.id).or_insert(0);
                    // The pipeline takes requests between packets: a full queue is tried again next round.
                    if !rounds.is_multiple_of(PATIENCE) || self.asked.try_send(request).is_ok() {
                        *rounds += 1;
                    }
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Rows that wait to be written.
    fn rows(&self) -> usize {
        self.pending.len() + self.counted_rows()
    }

    /// Those of them that the pipeline does not have any more.
    fn counted_rows(&self) -> usize {
        self.deliveries.rows() + self.offers.rows() + self.policies.rows()
    }

    /// Gathers changes for one batch. False: every handle is gone.
    fn collect(&mut self) -> bool {
        let begin = Instant::now();
        // What the journal has taken is noted soon: after a crash it is reported once more until then.
        let mut end = begin + if self.reports.are_awaited() { FINDING_TIME } else { BATCH_TIME };
        loop {
            // Changes wait in the queue while their batch cannot be written; findings wait for nothing.
            if self.rows() >= BATCH_ROWS {
                if !self.faults.are_writes_failing() {
                    return true;
                }
                self.make_room();
            }
            match self.changes.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Change::Keep(key, record)) => _ = self.pending.insert(key, Some(record)),
                Ok(Change::Forget(key)) => _ = self.pending.insert(key, None),
                Ok(Change::Restore(rows)) => {
                    self.counts.restoring.fetch_sub(1, Ordering::Relaxed);
                    self.pending.extend(rows.into_iter().map(|(key, record)| (key, Some(record))));
                }
                Ok(Change::Done(request)) => {
                    // Rows from before the request go with it; rows from after it stay.
                    self.pending.retain(|key, _| !is_peer(key, &request.peer));
                    if !self.done.contains(&request) {
                        self.done.push(request);
                    }
                }
                Ok(Change::Delivery(delivery)) => self.deliveries.add(*delivery),
                Ok(Change::Reported(reported)) => self.deliveries.reported(*reported),
                Ok(Change::Offer(session, at)) => self.offers.add(&session, at),
                Ok(Change::Policy(known)) => self.policies.add(*known),
                Ok(Change::Finding(finding)) => {
                    end = end.min(Instant::now() + FINDING_TIME);
                    if self.findings.len() >= FINDINGS {
                        self.findings.pop_front();
                        self.counts.lost.fetch_add(1, Ordering::Relaxed);
                    }
                    self.findings.push_back(Waiting { finding, reported: Reported::No });
                    // The bound of one batch, also when they come faster than they are written.
                    if self.findings.len() >= FINDINGS {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Of what cannot be written, keeps only what fits. The pipeline has the history, and gives it again; of the rest rows are
    /// lost, and counted.
    fn make_room(&mut self) {
        if !self.pending.is_empty() {
            self.pending.clear();
            self.faults.lacks_history();
        }
        let rows = self.counted_rows();
        if rows >= BATCH_ROWS {
            self.counts.lost.fetch_add(rows as u64, Ordering::Relaxed);
            self.clear();
        }
    }

    /// Stores findings, and hands them to the journal.
    fn flush_findings(&mut self) {
        if self.findings.is_empty() {
            return;
        }
        if !self.faults.may_write() {
            self.report_waiting();
            return;
        }
        let has_journal = self.keeping.journal.is_some();
        let findings = self.findings.iter();
        let findings = findings.map(|waiting| (&*waiting.finding, has_journal && waiting.reported != Reported::Yes));
        match self.store.keep_findings(findings, self.keeping.window, now()) {
            Ok(kept) => {
                self.counts.written.fetch_add(kept.len() as u64, Ordering::Relaxed);
                self.faults.written();
                for (Waiting { finding, reported }, (number, kept)) in
                    std::mem::take(&mut self.findings).into_iter().zip(kept)
                {
                    match reported {
                        Reported::No => _ = self.report(&finding, Some(number), false),
                        Reported::Asked => self.reports.is_on_record(&finding.id, number),
                        Reported::Yes => {}
                    }
                    (self.keeping.on_record)(&finding, &kept);
                }
            }
            Err(error) => {
                self.fail(&error);
                self.report_waiting();
            }
        }
    }

    /// Removes findings that are not wanted any more.
    fn expire(&mut self) {
        let Retention { findings, octets, .. } = self.keeping.retention;
        let over = self.store.held.findings > findings || self.store.held.octets > octets;
        if !self.faults.may_write() || !over && self.expired.is_some_and(|at| at.elapsed() < EXPIRY) {
            return;
        }
        match self.store.expire(&self.keeping.retention, now()) {
            // More may wait for the next round.
            Ok(gone) => self.expired = (gone == 0).then(Instant::now),
            Err(error) => self.fail(&error),
        }
    }

    fn flush(&mut self) {
        let (rows, reported) = (self.rows(), self.reports.done());
        if rows == 0 && self.done.is_empty() && reported.is_empty() || !self.faults.may_write() {
            return;
        }
        let written = self.store.write_policies(&self.policies).and_then(|()| {
            self.store.write(&self.pending, &self.done, &self.deliveries, &self.offers, self.reports.done())
        });
        match written {
            Ok(full) => {
                self.counts.written.fetch_add(rows as u64, Ordering::Relaxed);
                self.counts.full.fetch_add(full, Ordering::Relaxed);
                if full > 0 && !std::mem::replace(&mut self.full, true) {
                    tracing::warn!(
                        "a table of the store is full for the day: some sessions are missing from TLS reports, or from what \
                         reports of others are held against"
                    );
                }
                self.pending.clear();
                self.clear();
                self.done.clear();
                self.reports.noted();
                self.faults.written();
                if self.faults.take_lack_of_history() {
                    self.counts.history_wanted.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Whether a store that could not be written can be, when nothing else is to be written.
    fn probe(&mut self) {
        let waits = self.rows() > 0 || !self.findings.is_empty();
        if waits || !self.faults.are_writes_failing() || !self.faults.may_write() {
            return;
        }
        match self.store.probe() {
            Ok(()) => self.faults.written(),
            Err(error) => self.fail(&error),
        }
    }

    fn clear(&mut self) {
        self.deliveries = deliveries::Pending::default();
        self.offers = offers::Pending::default();
        self.policies = policies::Pending::default();
    }
}
