//! Tracks which stored findings the journal has written. Each finding is stored with the mark "unreported", which is
//! removed when the journal has written it. Findings that a crash, a full queue or a failing journal left out are
//! reported again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use smtpwatch_core::Finding;

use super::{FINDING_TIME, JournalOutcome, Worker};
use crate::findings::Unreported;

/// Findings that are read from the store atomically.
const PAGE: usize = 64;
/// Maximum of re-reported findings in the queue of the journal: it also needs room for current findings.
const MAX_AWAITED: usize = 256;
/// Minimum interval between attempts to report findings again.
const BACKLOG_RETRY: Duration = Duration::from_secs(30);
/// Time that the journal has at the end to write its queue.
const LAST_OUTCOMES: Duration = Duration::from_secs(1);

/// A finding that waits to be stored.
pub(super) struct PendingFinding {
    pub(super) finding: Box<Finding>,
    pub(super) reported: ReportState,
}

/// What the journal has of a waiting finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReportState {
    /// It was not offered the finding.
    NotOffered,
    /// It was offered the finding; the outcome is unknown, or it refused.
    Offered,
    /// It has the finding.
    Written,
}

#[derive(Default)]
pub(super) struct Reports {
    /// Findings in the queue of the journal, with their numbers in the store; bounded by that queue.
    awaited: HashMap<String, Option<i64>>,
    /// Numbers of findings that it has written and that are still marked as unreported.
    done: Vec<i64>,
    /// Range of findings to report again: after the first number, up to the second.
    again: Option<Backlog>,
    /// The journal has failed since the last attempt to report findings again.
    failed: bool,
    /// The last write of the journal succeeded.
    works: bool,
    repeated: Option<Instant>,
}

struct Backlog {
    after: i64,
    end: i64,
    /// Only the journal lacks them, because they were raised in this run.
    journal_only: bool,
}

impl Reports {
    /// State at the start, with the number of the newest unreported finding.
    pub(super) fn after_start(unreported: Option<i64>) -> Self {
        let again = unreported.map(|end| Backlog { after: 0, end, journal_only: false });
        Self { again, ..Self::default() }
    }

    pub(super) fn are_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// A finding that was reported before it was stored has got this number.
    pub(super) fn is_on_record(&mut self, id: &str, number: i64) {
        match self.awaited.get_mut(id) {
            Some(awaited) => *awaited = Some(number),
            // The journal refused it.
            None => self.failed = true,
        }
    }

    /// Numbers of findings whose marks can be removed.
    pub(super) fn done(&self) -> &[i64] {
        &self.done
    }

    /// Their marks were removed.
    pub(super) fn marks_removed(&mut self) {
        self.done.clear();
    }

    /// The store was replaced: numbers of the previous one are invalid.
    pub(super) fn renumber(&mut self) {
        self.done.clear();
        self.awaited.clear();
        self.again = None;
    }
}

impl Worker {
    /// Passes a finding to the journal; `number` is its number in the store. Returns false if the queue is full.
    pub(super) fn report(&mut self, finding: &Finding, number: Option<i64>, again: bool) -> bool {
        let Some(journal) = &mut self.settings.journal else { return true };
        let queued = (journal.write)(finding, again);
        if queued {
            self.reports.awaited.insert(finding.id.clone(), number);
        } else {
            self.reports.failed = true;
        }
        queued
    }

    /// Reports findings that cannot be stored at the moment.
    pub(super) fn report_waiting(&mut self) {
        for at in 0..self.findings.len() {
            if self.findings[at].reported == ReportState::NotOffered {
                self.findings[at].reported = ReportState::Offered;
                let finding = self.findings[at].finding.clone();
                self.report(&finding, None, false);
            }
        }
    }

    /// Processes the outcomes of queued findings.
    pub(super) fn take_outcomes(&mut self) {
        let Some(journal) = &self.settings.journal else { return };
        while let Ok(JournalOutcome { id, written }) = journal.outcomes.try_recv() {
            let Some(number) = self.reports.awaited.remove(&id) else { continue };
            self.reports.works = written;
            match number {
                _ if !written => self.reports.failed = true,
                Some(number) => self.reports.done.push(number),
                None => {
                    if let Some(waiting) = self.findings.iter_mut().find(|waiting| waiting.finding.id == id) {
                        waiting.reported = ReportState::Written;
                    }
                }
            }
        }
    }

    /// Reports again the findings that the journal lacks: at the start, and when the journal works again.
    pub(super) fn report_backlog(&mut self) {
        if !self.faults.may_write() {
            return;
        }
        self.start_backlog();
        let Some(Backlog { after, end, journal_only }) = self.reports.again else { return };
        if self.reports.awaited.len() >= MAX_AWAITED {
            return;
        }
        let page = match self.store.unreported(after, end, PAGE) {
            Ok(page) => page,
            Err(error) => return self.fail(&error),
        };
        if page.is_empty() {
            self.reports.again = None;
            return;
        }
        for Unreported { number, finding, stored } in page {
            match finding {
                Some(finding) => {
                    if !self.report(&finding, Some(number), true) {
                        return;
                    }
                    if !journal_only {
                        (self.settings.on_record)(&finding, &stored);
                    }
                }
                // It can never be reported.
                None => self.reports.done.push(number),
            }
            self.reports.again = Some(Backlog { after: number, end, journal_only });
        }
    }

    /// Restarts reporting when the journal has written a finding after failures.
    fn start_backlog(&mut self) {
        let Reports { awaited, done, again, failed, works, repeated } = &mut self.reports;
        let due = *failed && *works && again.is_none() && awaited.is_empty() && done.is_empty();
        if !due || repeated.is_some_and(|at| at.elapsed() < BACKLOG_RETRY) {
            return;
        }
        match self.store.last_unreported() {
            Ok(end) => {
                *again = end.map(|end| Backlog { after: 0, end, journal_only: true });
                (*failed, *repeated) = (false, Some(Instant::now()));
            }
            Err(error) => self.fail(&error),
        }
    }

    /// At the end: waits until the journal has written its queue, and removes the marks.
    pub(super) fn await_outcomes(&mut self) {
        let end = Instant::now() + LAST_OUTCOMES;
        while self.reports.are_awaited() && Instant::now() < end {
            std::thread::sleep(FINDING_TIME / 10);
            self.take_outcomes();
        }
        if !self.reports.done().is_empty() {
            self.flush();
        }
    }
}
