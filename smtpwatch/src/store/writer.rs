//! The one thread that writes the store.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use smtpwatch_core::{
    Finding, Timestamp,
    engine::{Delivery, SessionSummary},
    policy::history::{HistoryKey, HistoryRecord},
};

use super::{
    Entry, Store, StoreError, damage,
    deliveries::{self, Reported},
    findings::KeptAs,
    is_peer, offers, policies,
};
use crate::{
    clock::now,
    config::{Config, Retention},
    policy::known::Known,
};

/// Changes that may wait for the writer thread; what comes when it is full is dropped and counted.
pub const QUEUE: usize = 8_192;
/// Changes are written at the latest after this.
const BATCH_TIME: Duration = Duration::from_millis(500);
/// A batch is written when it holds this many rows.
const BATCH_ROWS: usize = 4_096;
/// A finding is written at the latest after this: those that come together are written together.
const FINDING_TIME: Duration = Duration::from_millis(50);
/// Findings that wait while the store cannot be written; the oldest makes room, and is counted as lost.
const FINDINGS: usize = 1_024;
/// Findings are held against their age this often.
const EXPIRY: Duration = Duration::from_secs(60);
/// Requests of other processes that may wait for the pipeline.
const REQUESTS: usize = 64;

/// What another process asks of the daemon: to forget a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Names the request when it is done.
    pub id: i64,
    /// Address or name.
    pub peer: String,
}

/// What is told of each finding, once it is on record; of one that cannot be put there, as soon as that is known.
pub type Sink = Box<dyn FnMut(&Finding, Option<&KeptAs>) + Send>;

/// What is kept, and for how long.
pub struct Keeping {
    /// Peers whose history is held.
    pub peers: usize,
    /// For how long findings are kept.
    pub retention: Retention,
    /// Findings that are farther apart than this are two incidents.
    pub window: Duration,
    /// Who is told of findings on record.
    pub sink: Sink,
}

impl Keeping {
    /// What a configuration says; nobody is told.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let sink: Sink = Box::new(|_, _| ());
        Self { peers: config.limits.peers, retention: config.retention, window: config.window, sink }
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
    /// Sessions that found no room in the counts of their day.
    full: AtomicU64,
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
    Reported(Box<Reported>),
    Offer(Box<SessionSummary>, Timestamp),
    Policy(Box<Known>),
    Finding(Box<Finding>),
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
                damage::set_aside(path, &what, now())?;
                (Store::open(path)?, lock)
            }
            Err(error) => return Err(error),
        };
        let entries = store.begin(keeping.peers)?;
        store.count_held()?;
        let counts = Arc::new(Counts::default());
        let (queue, changes) = sync_channel(QUEUE);
        let (asked, requests) = sync_channel(REQUESTS);
        let worker = Worker {
            store,
            _lock: lock,
            changes,
            asked,
            counts: counts.clone(),
            pending: HashMap::new(),
            done: Vec::new(),
            deliveries: deliveries::Pending::default(),
            offers: offers::Pending::default(),
            policies: policies::Pending::default(),
            findings: VecDeque::new(),
            keeping,
            expired: None,
            failing: false,
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
        let Counts { written, lost, failures, full } = &*self.counts;
        let failed = [lost, failures, full].map(|count| count.load(Ordering::Relaxed)).iter().sum();
        (written.load(Ordering::Relaxed), failed)
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
    pub fn reported(&self, reported: Reported) {
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
    /// Held until the thread ends.
    _lock: std::fs::File,
    changes: Receiver<Change>,
    asked: SyncSender<Request>,
    counts: Arc<Counts>,
    /// The newest state of each changed row; `None`: deleted.
    pending: HashMap<HistoryKey, Option<HistoryRecord>>,
    done: Vec<Request>,
    deliveries: deliveries::Pending,
    offers: offers::Pending,
    policies: policies::Pending,
    /// Those that wait, each with whether the sink was told of it.
    findings: VecDeque<(Box<Finding>, bool)>,
    keeping: Keeping,
    /// When findings were held against their age last.
    expired: Option<Instant>,
    failing: bool,
    /// The log has said that the counts of a day are full.
    full: bool,
}

impl Worker {
    fn run(mut self) {
        // A request is handed over once; it is asked for again when it is not done within this many rounds.
        const PATIENCE: u32 = 10;
        let mut handed_over: HashMap<i64, u32> = HashMap::new();
        let mut open = true;
        while open {
            open = self.collect();
            self.flush_findings();
            self.expire();
            self.flush();
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
        self.counts.lost.fetch_add((self.rows() + self.findings.len()) as u64, Ordering::Relaxed);
    }

    /// Rows that wait to be written.
    fn rows(&self) -> usize {
        self.pending.len() + self.deliveries.rows() + self.offers.rows() + self.policies.rows()
    }

    /// Gathers changes for one batch. False: every handle is gone.
    fn collect(&mut self) -> bool {
        let mut end = Instant::now() + BATCH_TIME;
        while self.rows() < BATCH_ROWS {
            match self.changes.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Change::Keep(key, record)) => _ = self.pending.insert(key, Some(record)),
                Ok(Change::Forget(key)) => _ = self.pending.insert(key, None),
                Ok(Change::Done(request)) => {
                    // Rows from before the request go with it; rows from after it stay.
                    self.pending.retain(|key, _| !is_peer(key, &request.peer));
                    self.done.push(request);
                }
                Ok(Change::Delivery(delivery)) => self.deliveries.add(*delivery),
                Ok(Change::Reported(reported)) => self.deliveries.reported(*reported),
                Ok(Change::Offer(session, at)) => self.offers.add(&session, at),
                Ok(Change::Policy(known)) => self.policies.add(*known),
                Ok(Change::Finding(finding)) => {
                    if !self.failing {
                        end = end.min(Instant::now() + FINDING_TIME);
                    }
                    if self.findings.len() >= FINDINGS {
                        self.findings.pop_front();
                        self.counts.lost.fetch_add(1, Ordering::Relaxed);
                    }
                    self.findings.push_back((finding, false));
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// Puts findings on record, and tells of them.
    fn flush_findings(&mut self) {
        if self.findings.is_empty() {
            return;
        }
        let findings = self.findings.iter().map(|(finding, _)| &**finding);
        match self.store.keep_findings(findings, self.keeping.window, now()) {
            Ok(kept) => {
                self.counts.written.fetch_add(kept.len() as u64, Ordering::Relaxed);
                for ((finding, told), kept) in self.findings.drain(..).zip(&kept) {
                    if !told {
                        (self.keeping.sink)(&finding, Some(kept));
                    }
                }
            }
            Err(error) => {
                self.fail(&error);
                // Nobody waits for the disk to hear of them.
                for (finding, told) in self.findings.iter_mut().filter(|(_, told)| !told) {
                    (self.keeping.sink)(finding, None);
                    *told = true;
                }
                std::thread::sleep(BATCH_TIME);
            }
        }
    }

    /// Removes findings that are not wanted any more.
    fn expire(&mut self) {
        let Retention { findings, octets, .. } = self.keeping.retention;
        let over = self.store.held.findings > findings || self.store.held.octets > octets;
        if !over && self.expired.is_some_and(|at| at.elapsed() < EXPIRY) {
            return;
        }
        match self.store.expire(&self.keeping.retention, now()) {
            // More may wait for the next round.
            Ok(gone) => self.expired = (gone == 0).then(Instant::now),
            Err(error) => self.fail(&error),
        }
    }

    fn flush(&mut self) {
        let rows = self.rows();
        if rows == 0 && self.done.is_empty() {
            return;
        }
        let written = self.store.write_policies(&self.policies);
        let written =
            written.and_then(|()| self.store.write(&self.pending, &self.done, &self.deliveries, &self.offers));
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
                self.clear();
                self.done.clear();
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the store is written again");
                }
            }
            Err(error) => {
                self.fail(&error);
                if rows >= BATCH_ROWS {
                    self.counts.lost.fetch_add(rows as u64, Ordering::Relaxed);
                    self.clear();
                }
                // No spinning; meanwhile the queue fills, and what it drops is counted.
                std::thread::sleep(BATCH_TIME);
            }
        }
    }

    fn clear(&mut self) {
        self.pending.clear();
        self.deliveries = deliveries::Pending::default();
        self.offers = offers::Pending::default();
        self.policies = policies::Pending::default();
    }

    /// Counts a failure; says so once until it works again.
    fn fail(&mut self, error: &StoreError) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(%error, "history is not being kept: free space, or mend the file");
        }
    }
}
