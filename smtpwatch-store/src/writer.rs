//! The thread that writes the store. [`Writer`] opens the store and owns the thread; the pipeline and the sinks send it
//! changes through a [`StoreHandle`], a bounded queue. Each finding is stored before the journal gets it.

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
    Entry, Store, StoreError, WriterLock, condition::Status, damage, deliveries, file_monitor::FileMonitor,
    findings::StoredAs, offers, policies,
};
use recovery::Faults;
use reports::{PendingFinding, ReportState, Reports};

/// Capacity of the writer's queue, in changes; when it is full, further changes are dropped and counted.
pub const QUEUE: usize = 8_192;
/// Maximum delay before a change is written.
const BATCH_TIME: Duration = Duration::from_millis(500);
/// Number of rows that completes a batch.
const BATCH_ROWS: usize = 4_096;
/// Maximum delay before a finding is written, so that simultaneous findings share a transaction.
const FINDING_TIME: Duration = Duration::from_millis(50);
/// Maximum number of findings that wait while the store cannot be written; the oldest is evicted and counted as lost.
const FINDINGS: usize = 1_024;
/// Interval between checks of the findings' age.
const EXPIRY: Duration = Duration::from_secs(60);
/// Maximum number of requests of other processes that wait for the pipeline.
const REQUESTS: usize = 64;
/// Maximum number of pieces of history that wait for the writer thread.
const RESTORES: usize = 8;
/// Number of rows in one piece of history.
pub const HISTORY_BATCH: usize = 512;

/// A request of another process to the daemon: forget a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Identifies the request in the store.
    pub id: i64,
    /// Address or name of the peer.
    pub peer: String,
}

/// Sends a finding to the journal. The flag says that the journal may already have it. Returns whether the journal has
/// queued it; an [`JournalOutcome`] follows if it has.
pub type WriteToJournal = Box<dyn FnMut(&Finding, bool) -> bool + Send>;
/// Called for each finding after it is stored.
pub type OnRecord = Box<dyn FnMut(&Finding, &StoredAs) + Send>;

/// The connection to the journal.
pub struct JournalLink {
    /// Sends a finding to the journal.
    pub write: WriteToJournal,
    /// Results of queued findings.
    pub outcomes: Receiver<JournalOutcome>,
}

/// The result of a finding that the journal had queued.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalOutcome {
    /// The identifier of the finding.
    pub id: String,
    /// Whether the journal has written it.
    pub written: bool,
}

/// What is stored, and for how long.
pub struct WriterSettings {
    /// Maximum number of peers with stored history.
    pub peers: usize,
    /// Retention of findings.
    pub retention: Retention,
    /// Maximum gap between two findings of the same incident.
    pub window: Duration,
    /// The journal gets each finding once it is stored, or once storing has failed; at the start it gets the findings
    /// that it lacks. `None`: there is no journal, and no finding is marked as unreported.
    pub journal: Option<JournalLink>,
    /// Called for each finding after it is stored.
    pub on_record: OnRecord,
}

impl WriterSettings {
    /// The settings of a configuration, without a journal.
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

impl Default for WriterSettings {
    fn default() -> Self {
        Self::of(&Config::default())
    }
}

/// The writer thread. On drop the queued changes are written, then the thread ends.
pub struct Writer {
    handle: Option<StoreHandle>,
    thread: Option<JoinHandle<()>>,
    requests: Receiver<Request>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    /// Rows that will never be stored.
    lost: AtomicU64,
    /// Failed attempts to write; up to a batch of rows is retained and retried.
    failures: AtomicU64,
    /// Sessions beyond the bounds of their day's counts.
    full: AtomicU64,
    /// The store lacks rows of history that the pipeline has.
    history_wanted: AtomicBool,
    /// Pieces of history that wait to be written.
    restoring: AtomicUsize,
    status: Mutex<Status>,
}

/// Sends changes to the writer thread.
#[derive(Clone)]
pub struct StoreHandle {
    queue: SyncSender<Command>,
    counts: Arc<Counts>,
    blocking: bool,
}

enum Command {
    History(HistoryKey, HistoryRecord),
    Forget(HistoryKey),
    RequestDone(Request),
    Delivery(Box<Delivery>),
    ReportSent(Box<deliveries::SentReport>),
    Offer(Box<SessionSummary>, Timestamp),
    Policy(Box<Known>),
    Finding(Box<Finding>),
    Restore(Vec<Entry>),
}

impl Writer {
    /// Opens the store, reads its history as far as the bound allows, and starts the thread. A damaged store is set
    /// aside.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn start(path: &Path, settings: WriterSettings) -> Result<(Self, Vec<Entry>), StoreError> {
        let (mut store, lock) = match Store::open(path) {
            Ok(store) => (store, super::lock(path)?),
            Err(StoreError::Damaged { what, .. }) => {
                // The lock prevents that the store of a running daemon is set aside.
                let lock = super::lock(path)?;
                damage::set_aside_at_start(path, &what, now())?;
                (Store::open(path)?, lock)
            }
            Err(error) => return Err(error),
        };
        let entries = store.begin(settings.peers)?;
        store.count_held()?;
        let unreported = if settings.journal.is_some() { store.last_unreported()? } else { None };
        let files = FileMonitor::start(path).map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
        let counts = Arc::new(Counts::default());
        let (queue, changes) = sync_channel(QUEUE);
        let (forget_requests, requests) = sync_channel(REQUESTS);
        let worker = Worker {
            store,
            files,
            lock,
            path: path.to_owned(),
            changes,
            forget_requests,
            counts: counts.clone(),
            pending: HashMap::new(),
            done: Vec::new(),
            deliveries: deliveries::Pending::default(),
            offers: offers::Pending::default(),
            policies: policies::Pending::default(),
            findings: VecDeque::new(),
            reports: Reports::after_start(unreported),
            settings,
            expired: None,
            faults: Faults::default(),
            full: false,
            evidence_removed: false,
        };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(|| worker.run());
        let thread = thread.map_err(StoreError::Thread)?;
        let handle = StoreHandle { queue, counts: counts.clone(), blocking: false };
        Ok((Self { handle: Some(handle), thread: Some(thread), requests, counts }, entries))
    }

    /// A sender to the thread.
    #[must_use]
    pub fn handle(&self) -> Option<StoreHandle> {
        self.handle.clone()
    }

    /// Whether the store lacks rows of history, because it was recreated or could not be written for a long time. The
    /// caller sends them with [`StoreHandle::restore`]. Reading resets the flag.
    #[must_use]
    pub fn history_wanted(&self) -> bool {
        self.counts.history_wanted.swap(false, Ordering::Relaxed)
    }

    /// The condition of the store.
    #[must_use]
    pub fn status(&self) -> Status {
        self.counts.status().clone()
    }

    /// The next request of another process; the caller confirms it with [`StoreHandle::done`].
    #[must_use]
    pub fn request(&self) -> Option<Request> {
        self.requests.try_recv().ok()
    }

    /// Writes the queued changes and ends the thread; returns the number of lost rows. All handles must be dropped
    /// before.
    #[must_use]
    pub fn finish(mut self) -> u64 {
        self.join();
        self.counts.lost.load(Ordering::Relaxed)
    }

    fn join(&mut self) {
        // The thread ends when the last handle is dropped.
        self.handle = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Rows written; and lost rows plus failed attempts to write.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let Counts { written, lost, failures, full, .. } = &*self.counts;
        let failed = [lost, failures, full].map(|count| count.load(Ordering::Relaxed)).iter().sum();
        (written.load(Ordering::Relaxed), failed)
    }
}

impl Counts {
    fn status(&self) -> MutexGuard<'_, Status> {
        // A panicking thread leaves a valid value: it is set in one assignment.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

impl StoreHandle {
    /// A handle that waits for a slow disk. Any other handle drops and counts a change when the queue is full: packets
    /// do not wait.
    #[must_use]
    pub fn blocking(self) -> Self {
        Self { blocking: true, ..self }
    }

    /// Stores a changed row.
    pub fn keep(&self, key: HistoryKey, record: HistoryRecord) {
        self.send(Command::History(key, record));
    }

    /// Whether [`Self::restore`] would accept rows: the writer has few of them left to write.
    #[must_use]
    pub fn takes_history(&self) -> bool {
        self.counts.restoring.load(Ordering::Relaxed) < RESTORES
    }

    /// Stores rows of history as they are in memory. False: the queue is full, and the caller must retry.
    #[must_use]
    pub fn restore(&self, rows: Vec<Entry>) -> bool {
        self.counts.restoring.fetch_add(1, Ordering::Relaxed);
        let taken = self.queue.try_send(Command::Restore(rows)).is_ok();
        if !taken {
            self.counts.restoring.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    /// Deletes a row.
    pub fn forget(&self, key: HistoryKey) {
        self.send(Command::Forget(key));
    }

    /// Confirms that a request is done in memory: the store then deletes the peer's rows. If the confirmation is lost,
    /// the request is repeated.
    pub fn done(&self, request: Request) {
        self.send(Command::RequestDone(request));
    }

    /// Counts an outbound session for the TLS report of its day.
    pub fn delivery(&self, delivery: Box<Delivery>) {
        self.send(Command::Delivery(delivery));
    }

    /// Records that a TLS report needs no further delivery.
    pub fn reported(&self, reported: deliveries::SentReport) {
        self.send(Command::ReportSent(Box::new(reported)));
    }

    /// Counts what an inbound session, which ended at this time, offered to its client.
    pub fn offer(&self, session: SessionSummary, at: Timestamp) {
        self.send(Command::Offer(Box::new(session), at));
    }

    /// Stores a finding. Returns it as the error if the queue is full.
    pub fn finding(&self, finding: Box<Finding>) -> Result<(), Box<Finding>> {
        let change = Command::Finding(finding);
        let refused = if self.blocking {
            self.queue.send(change).err().map(|refused| refused.0)
        } else {
            self.queue.try_send(change).err().map(|refused| match refused {
                TrySendError::Full(change) | TrySendError::Disconnected(change) => change,
            })
        };
        match refused {
            Some(Command::Finding(finding)) => {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
                Err(finding)
            }
            _ => Ok(()),
        }
    }

    /// Stores what a look-up of published policies found.
    pub fn policy(&self, known: Known) {
        self.send(Command::Policy(Box::new(known)));
    }

    fn send(&self, change: Command) {
        let sent = if self.blocking { self.queue.send(change).is_ok() } else { self.queue.try_send(change).is_ok() };
        if !sent {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Worker {
    store: Store,
    files: FileMonitor,
    /// Held until the thread ends.
    lock: WriterLock,
    path: PathBuf,
    changes: Receiver<Command>,
    forget_requests: SyncSender<Request>,
    counts: Arc<Counts>,
    /// The newest state of each changed row; `None` if it was deleted.
    pending: HashMap<HistoryKey, Option<HistoryRecord>>,
    done: Vec<Request>,
    deliveries: deliveries::Pending,
    offers: offers::Pending,
    policies: policies::Pending,
    /// Findings that wait to be stored.
    findings: VecDeque<PendingFinding>,
    reports: Reports,
    settings: WriterSettings,
    /// Time of the last check of the findings' age.
    expired: Option<Instant>,
    faults: Faults,
    /// The log has reported that the counts of a day are full.
    full: bool,
    /// The log has reported that evidence of high or critical severity was removed.
    evidence_removed: bool,
}

impl Worker {
    fn run(mut self) {
        let mut passed: HashMap<i64, u32> = HashMap::new();
        let mut open = true;
        while open {
            open = self.collect();
            if !open {
                self.faults.try_at_once();
            }
            self.take_outcomes();
            self.examine();
            self.report_backlog();
            self.flush_findings();
            self.expire();
            self.flush();
            self.probe();
            self.show();
            if self.faults.may_write() {
                self.pass_requests(&mut passed);
            }
        }
        self.await_outcomes();
        self.counts.lost.fetch_add((self.rows() + self.findings.len()) as u64, Ordering::Relaxed);
    }

    /// Passes requests of other processes to the pipeline.
    fn pass_requests(&mut self, passed: &mut HashMap<i64, u32>) {
        // A request is passed on once, and again if it is not done within this many rounds.
        const REPEAT_AFTER: u32 = 10;
        match self.store.requests() {
            Ok(requests) => {
                passed.retain(|id, _| requests.iter().any(|request| request.id == *id));
                for request in requests {
                    let rounds = passed.entry(request.id).or_insert(0);
                    // The pipeline accepts requests between packets; with a full queue the next round tries again.
                    if !rounds.is_multiple_of(REPEAT_AFTER) || self.forget_requests.try_send(request).is_ok() {
                        *rounds += 1;
                    }
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Number of rows that wait to be written.
    fn rows(&self) -> usize {
        self.pending.len() + self.counted_rows()
    }

    /// Number of waiting rows that the pipeline does not hold in memory.
    fn counted_rows(&self) -> usize {
        self.deliveries.rows() + self.offers.rows() + self.policies.rows()
    }

    /// Collects changes for one batch. False: all handles are dropped.
    fn collect(&mut self) -> bool {
        let begin = Instant::now();
        // The marks of findings in the journal are removed soon: after a crash, findings with a mark are reported once
        // more.
        let mut end = begin + if self.reports.are_awaited() { FINDING_TIME } else { BATCH_TIME };
        loop {
            // While writes fail, changes stay in the queue; findings are accepted all the same.
            if self.rows() >= BATCH_ROWS {
                if !self.faults.are_writes_failing() {
                    return true;
                }
                self.evict_oldest();
            }
            match self.changes.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Command::History(key, record)) => _ = self.pending.insert(key, Some(record)),
                Ok(Command::Forget(key)) => _ = self.pending.insert(key, None),
                Ok(Command::Restore(rows)) => {
                    self.counts.restoring.fetch_sub(1, Ordering::Relaxed);
                    self.pending.extend(rows.into_iter().map(|(key, record)| (key, Some(record))));
                }
                Ok(Command::RequestDone(request)) => {
                    // Rows changed before the request are dropped with it; rows changed after it stay.
                    self.pending.retain(|key, _| !is_peer(key, &request.peer));
                    if !self.done.contains(&request) {
                        self.done.push(request);
                    }
                }
                Ok(Command::Delivery(delivery)) => self.deliveries.add(*delivery),
                Ok(Command::ReportSent(reported)) => self.deliveries.reported(*reported),
                Ok(Command::Offer(session, at)) => self.offers.add(&session, at),
                Ok(Command::Policy(known)) => self.policies.add(*known),
                Ok(Command::Finding(finding)) => {
                    end = end.min(Instant::now() + FINDING_TIME);
                    if self.findings.len() >= FINDINGS {
                        self.findings.pop_front();
                        self.counts.lost.fetch_add(1, Ordering::Relaxed);
                    }
                    self.findings.push_back(PendingFinding { finding, reported: ReportState::NotOffered });
                    // The bound of one batch, even if findings arrive faster than they are written.
                    if self.findings.len() >= FINDINGS {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Limits what waits while the store cannot be written. The pipeline holds the history and can send it again; other
    /// rows are lost and counted.
    fn evict_oldest(&mut self) {
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

    /// Stores findings, and passes them to the journal.
    fn flush_findings(&mut self) {
        if self.findings.is_empty() {
            return;
        }
        if !self.faults.may_write() {
            self.report_waiting();
            return;
        }
        let has_journal = self.settings.journal.is_some();
        let findings = self.findings.iter();
        let findings =
            findings.map(|waiting| (&*waiting.finding, has_journal && waiting.reported != ReportState::Written));
        match self.store.keep_findings(findings, self.settings.window, now()) {
            Ok(stored) => {
                self.counts.written.fetch_add(stored.len() as u64, Ordering::Relaxed);
                self.faults.written();
                for (PendingFinding { finding, reported }, (number, stored)) in
                    std::mem::take(&mut self.findings).into_iter().zip(stored)
                {
                    match reported {
                        ReportState::NotOffered => _ = self.report(&finding, Some(number), false),
                        ReportState::Offered => self.reports.is_on_record(&finding.id, number),
                        ReportState::Written => {}
                    }
                    (self.settings.on_record)(&finding, &stored);
                }
            }
            Err(error) => {
                self.fail(&error);
                self.report_waiting();
            }
        }
    }

    /// Removes findings beyond the retention limits.
    fn expire(&mut self) {
        let over = self.store.is_over(&self.settings.retention);
        if !self.faults.may_write() || !over && self.expired.is_some_and(|at| at.elapsed() < EXPIRY) {
            return;
        }
        match self.store.expire(&self.settings.retention, now()) {
            // If findings were removed, the next round continues.
            Ok(removals) => {
                self.expired = (removals.total() == 0).then(Instant::now);
                self.counts.status().removals.add(&removals);
                if removals.evidence.iter().any(|&total| total > 0)
                    && !std::mem::replace(&mut self.evidence_removed, true)
                {
                    tracing::error!(
                        "the store is full of findings of high and critical severity: evidence is removed before max_age_days; \
                         raise max_findings and max_megabytes in [store], and look at smtpwatch incidents list --severity high"
                    );
                }
            }
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
                self.reports.marks_removed();
                self.faults.written();
                if self.faults.take_lack_of_history() {
                    self.counts.history_wanted.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// While the store cannot be written and nothing waits, tests whether it can be written again.
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
