//! Recovery when the files of the store are missing, belong to another store, or are not writable.
//!
//! A store that was unlinked or replaced is still complete in the open connection: it is copied to its path. A
//! damaged one is replaced with an empty store, and the history in memory is written to it. Files that are in the way
//! are set aside.

use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use smtpwatch_system::clock::now;

use super::{BATCH_TIME, Worker};
use crate::{
    Store, StoreError,
    condition::{Condition, Status},
    damage::{self, SIDE_FILES},
    file_monitor::{Fault, FileId, FileMonitor},
    lock, lock_path, make_directory, with_suffix,
};

/// Maximum interval between two attempts to write.
const SLOWEST: Duration = Duration::from_secs(4);
/// Minimum interval between two recoveries of the store; it doubles each time that the new store is soon lost again,
/// because each file that is set aside takes disk space.
const PACE: Duration = Duration::from_secs(5);
const SLOWEST_PACE: Duration = Duration::from_secs(600);
/// Suffix of the new store's file name while it is written.
const FRESH: &str = ".fresh";

/// Current faults of the store, and the times of the next attempts.
#[derive(Default)]
pub(super) struct Faults {
    /// Fault of the files.
    files: Option<Fault>,
    /// Fault of the last attempt to write.
    writes: Option<Fault>,
    write: Retry,
    recover: Retry,
    recovered: Option<(Instant, Duration)>,
    /// Why the store could not be recreated.
    unrecovered: Option<String>,
    /// Rows of history were dropped that the pipeline still has.
    lacks_history: bool,
}

/// Retry timer with exponential backoff.
#[derive(Default)]
struct Retry {
    at: Option<Instant>,
    wait: Duration,
}

impl Retry {
    fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at <= Instant::now())
    }

    fn failed(&mut self) {
        self.wait = (self.wait * 2).clamp(BATCH_TIME, SLOWEST);
        self.at = Some(Instant::now() + self.wait);
    }
}

impl Faults {
    /// Whether the last attempt to write failed.
    pub(super) const fn are_writes_failing(&self) -> bool {
        self.writes.is_some()
    }

    /// Whether a write may be attempted at this time.
    pub(super) fn may_write(&self) -> bool {
        self.write.is_due()
    }

    /// Records a successful write.
    pub(super) fn written(&mut self) {
        self.writes = None;
        self.write = Retry::default();
    }

    /// Allows an immediate attempt: the daemon is about to end.
    pub(super) fn try_at_once(&mut self) {
        self.write.at = None;
        self.recover.at = None;
        self.recovered = None;
    }

    pub(super) const fn lacks_history(&mut self) {
        self.lacks_history = true;
    }

    pub(super) const fn take_lack_of_history(&mut self) -> bool {
        std::mem::replace(&mut self.lacks_history, false)
    }

    fn worst(&self) -> Option<&Fault> {
        self.files.as_ref().or(self.writes.as_ref())
    }
}

impl Worker {
    /// Counts a failure of the store, and delays the next attempt.
    pub(super) fn fail(&mut self, error: &StoreError) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        let condition = Condition::of(error, self.directory());
        self.faults.writes = Some(Fault { condition, cause: error.to_string() });
        self.faults.write.failed();
    }

    /// Checks the files, and recreates the store if necessary.
    pub(super) fn examine(&mut self) {
        let store = &mut self.store;
        let mut found = self.files.examine(|| store.checkpoint());
        if found.is_none() {
            // SQLite has found damage that the check of the header does not show.
            found = self.faults.writes.clone().filter(|fault| fault.condition == Condition::Damaged);
        }
        if found.as_ref().map(|fault| fault.condition) != self.faults.files.as_ref().map(|fault| fault.condition) {
            self.faults.unrecovered = None;
        }
        self.faults.files = found;
        let Some(fault) = self.faults.files.clone() else { return };
        // Logged before the attempt, which can take long.
        self.show();
        let lost = Condition::LOSSES.iter().position(|loss| *loss == fault.condition);
        let before = self.faults.recovered.map(|(at, pace)| (at.elapsed(), pace));
        let paced = before.is_some_and(|(ago, pace)| ago < pace);
        let Some(which) = lost.filter(|_| !paced && self.faults.recover.is_due()) else { return };
        // A copy that is damaged soon after was copied from damaged pages.
        let soon = before.filter(|(ago, pace)| *ago < *pace * 4);
        let may_copy = fault.condition != Condition::Damaged || soon.is_none();
        match self.recover(&fault, may_copy) {
            Ok(summary) => {
                let pace = soon.map_or(PACE, |(_, pace)| (pace * 2).min(SLOWEST_PACE));
                let lacks_history = std::mem::take(&mut self.faults).lacks_history;
                self.faults = Faults { recovered: Some((Instant::now(), pace)), lacks_history, ..Faults::default() };
                let mut status = self.counts.status();
                status.recoveries[which] += 1;
                status.recovered = summary;
            }
            Err(error) => {
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                self.faults.unrecovered = Some(error.to_string());
                self.faults.recover.failed();
            }
        }
    }

    /// Publishes the condition of the store, and logs a change.
    pub(super) fn show(&mut self) {
        let condition = self.faults.worst().map_or(Condition::Ok, |fault| fault.condition);
        let mut cause = self.faults.worst().map_or(String::new(), |fault| fault.cause.clone());
        if let Some(why) = &self.faults.unrecovered {
            cause = format!("{cause}; it cannot be made again: {why}");
        }
        let mut status = self.counts.status();
        let next = Status { condition, cause, ..status.clone() };
        let before = std::mem::replace(&mut *status, next);
        // Whether the store can be recreated is known only after the first attempt.
        let changed = before.condition != condition || before.cause.is_empty() != status.cause.is_empty();
        let stuck = self.faults.unrecovered.is_some() && !before.cause.contains("it cannot be made again");
        match condition {
            Condition::Ok if changed => tracing::info!("the store is writable again"),
            Condition::Ok => {}
            _ if changed || stuck => tracing::error!(
                condition = condition.as_str(),
                cause = status.cause,
                remedy = condition.remedy(),
                "the store is unreliable: findings go to the journal at once, and history waits in memory"
            ),
            _ => {}
        }
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// Recreates the store at its path. Returns the message for the log.
    fn recover(&mut self, fault: &Fault, may_copy: bool) -> Result<String, StoreError> {
        make_directory(self.directory()).map_err(|source| StoreError::Create { path: self.path.clone(), source })?;
        // A directory that was made again has no lock: another daemon may have taken the place.
        let locked = self.lock.0.metadata().ok().map(|lock| FileId::of(&lock));
        let lock = match FileId::at(&lock_path(&self.path)).ok() {
            Some(found) if Some(found) == locked => None,
            _ => Some(lock(&self.path)?),
        };
        let fresh = with_suffix(&self.path, FRESH);
        let copied = self.make(&fresh, may_copy)?;
        let aside = self.clear_the_way(fault.condition)?;
        std::fs::rename(&fresh, &self.path).map_err(|source| StoreError::Create { path: self.path.clone(), source })?;
        let mut store = Store::open(&self.path)?;
        store.count_held()?;
        self.files =
            FileMonitor::start(&self.path).map_err(|source| StoreError::Create { path: self.path.clone(), source })?;
        self.store = store;
        if let Some(lock) = lock {
            self.lock = lock;
        }
        if !copied {
            self.reports.renumber();
            self.counts.history_wanted.store(true, Ordering::Relaxed);
        }
        let content = if copied {
            "everything in it was copied from the open file"
        } else {
            "history in memory is written to it; findings and TLS report counts from before are not in it"
        };
        let stored = if aside.is_empty() {
            String::new()
        } else {
            let names: Vec<_> = aside.iter().map(|path| path.display().to_string()).collect();
            format!("; what was there is kept as {}", names.join(", "))
        };
        let summary = format!("{} (at {}): a store was made again, {content}{stored}", fault.cause, now());
        tracing::error!(condition = fault.condition.as_str(), "{summary}");
        Ok(summary)
    }

    /// Creates a store with this file name: a copy of the open one if possible, otherwise a blank one. True: a copy.
    fn make(&mut self, fresh: &Path, may_copy: bool) -> Result<bool, StoreError> {
        remove(fresh)?;
        if may_copy {
            // Opened to check its pages: the copy of a damaged file may be damaged too.
            let copied = self.store.copy_to(fresh).and_then(|()| Store::open(fresh).map(drop));
            let Err(error) = copied else { return Ok(true) };
            tracing::warn!("the store cannot be copied from the open file: {error}");
            remove(fresh)?;
        }
        Store::open(fresh).map(|_| false)
    }

    /// Sets aside the file at the store's path and its side files. A log of the open store does not belong to a foreign
    /// file.
    fn clear_the_way(&self, condition: Condition) -> Result<Vec<PathBuf>, StoreError> {
        let (path, files) = (&self.path, &self.files);
        let is_theirs = path.symlink_metadata().is_ok() && !files.is_ours(path);
        let (at, mut aside) = (now(), Vec::new());
        aside.extend(damage::set_aside(path, condition.as_str(), at, |side| !is_theirs || !files.is_ours(side))?);
        if is_theirs {
            aside.extend(damage::set_aside(path, Condition::Missing.as_str(), at, |_| true)?);
        }
        Ok(aside)
    }
}

/// Removes an unfinished store.
fn remove(fresh: &Path) -> Result<(), StoreError> {
    for suffix in std::iter::once("").chain(SIDE_FILES) {
        let path = with_suffix(fresh, suffix);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Create { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}
