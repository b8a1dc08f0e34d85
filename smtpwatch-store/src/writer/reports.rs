//! What the journal has of the findings on record: each finding is noted as unreported together with itself, and the note goes
//! when the journal has taken it. What a crash, a full queue or a journal that cannot be written leaves is reported again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use smtpwatch_core::Finding;

use super::{FINDING_TIME, Outcome, Worker};
use crate::findings::Unreported;

/// Findings that are read back at once.
const PAGE: usize = 64;
/// The journal may have this many of them in its queue: findings that are just made need room there too.
const AHEAD: usize = 256;
/// What the journal could not write is reported again no more often than this.
const AGAIN: Duration = Duration::from_secs(30);
/// At the end, the journal has this long to take what it has queued.
const LAST_OUTCOMES: Duration = Duration::from_secs(1);

/// A finding that waits to be put on record.
pub(super) struct Waiting {
    pub(super) finding: Box<Finding>,
    pub(super) reported: Reported,
}

/// Whether the journal has a finding that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reported {
    /// It was not asked to take it.
    No,
    /// It was asked; what came of it is not known, or it refused.
    Asked,
    /// It has it.
    Yes,
}

#[derive(Default)]
pub(super) struct Reports {
    /// What the journal has queued, each with its number on record; bounded by the journal's queue.
    awaited: HashMap<String, Option<i64>>,
    /// Numbers of findings that it has taken, and that are still noted as unreported.
    done: Vec<i64>,
    /// Findings that are to be reported again: those after the first number, up to the second.
    again: Option<Again>,
    /// The journal has failed since it was asked to take them again.
    failed: bool,
    /// Its newest outcome was a success.
    works: bool,
    repeated: Option<Instant>,
}

struct Again {
    after: i64,
    end: i64,
    /// Only the journal lacks them: they were made in this run.
    journal_only: bool,
}

impl Reports {
    /// At the start, with the newest finding that was not reported.
    pub(super) fn after_start(unreported: Option<i64>) -> Self {
        let again = unreported.map(|end| Again { after: 0, end, journal_only: false });
        Self { again, ..Self::default() }
    }

    pub(super) fn are_awaited(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// A finding that was reported before it was put on record is on record under this number.
    pub(super) fn is_on_record(&mut self, id: &str, number: i64) {
        match self.awaited.get_mut(id) {
            Some(awaited) => *awaited = Some(number),
            // The journal has refused it.
            None => self.failed = true,
        }
    }

    /// Numbers of findings whose notes can go.
    pub(super) fn done(&self) -> &[i64] {
        &self.done
    }

    /// Their notes are gone.
    pub(super) fn noted(&mut self) {
        self.done.clear();
    }

    /// The store is another one: numbers mean nothing there.
    pub(super) fn renumber(&mut self) {
        self.done.clear();
        self.awaited.clear();
        self.again = None;
    }
}

impl Worker {
    /// Hands a finding to the journal; `number`: under which it is on record. False: the journal has no room.
    pub(super) fn report(&mut self, finding: &Finding, number: Option<i64>, again: bool) -> bool {
        let Some(journal) = &mut self.keeping.journal else { return true };
        let queued = (journal.tell)(finding, again);
        if queued {
            self.reports.awaited.insert(finding.id.clone(), number);
        } else {
            self.reports.failed = true;
        }
        queued
    }

    /// Reports findings that cannot be put on record for the time being.
    pub(super) fn report_waiting(&mut self) {
        for at in 0..self.findings.len() {
            if self.findings[at].reported == Reported::No {
                self.findings[at].reported = Reported::Asked;
                let finding = self.findings[at].finding.clone();
                self.report(&finding, None, false);
            }
        }
    }

    /// What came of the findings that the journal had queued.
    pub(super) fn take_outcomes(&mut self) {
        let Some(journal) = &self.keeping.journal else { return };
        while let Ok(Outcome { id, written }) = journal.outcomes.try_recv() {
            let Some(number) = self.reports.awaited.remove(&id) else { continue };
            self.reports.works = written;
            match number {
                _ if !written => self.reports.failed = true,
                Some(number) => self.reports.done.push(number),
                None => {
                    if let Some(waiting) = self.findings.iter_mut().find(|waiting| waiting.finding.id == id) {
                        waiting.reported = Reported::Yes;
                    }
                }
            }
        }
    }

    /// Reports again what the journal lacks: at the start, and when it can be written again.
    pub(super) fn report_again(&mut self) {
        if !self.faults.may_write() {
            return;
        }
        self.take_up_again();
        let Some(Again { after, end, journal_only }) = self.reports.again else { return };
        if self.reports.awaited.len() >= AHEAD {
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
        for Unreported { number, finding, kept } in page {
            match finding {
                Some(finding) => {
                    if !self.report(&finding, Some(number), true) {
                        return;
                    }
                    if !journal_only {
                        (self.keeping.on_record)(&finding, &kept);
                    }
                }
                // It can never be reported.
                None => self.reports.done.push(number),
            }
            self.reports.again = Some(Again { after: number, end, journal_only });
        }
    }

    /// Begins again when the journal has taken a finding after it had failed to take others.
    fn take_up_again(&mut self) {
        let Reports { awaited, done, again, failed, works, repeated } = &mut self.reports;
        let due = *failed && *works && again.is_none() && awaited.is_empty() && done.is_empty();
        if !due || repeated.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        match self.store.last_unreported() {
            Ok(end) => {
                *again = end.map(|end| Again { after: 0, end, journal_only: true });
                (*failed, *repeated) = (false, Some(Instant::now()));
            }
            Err(error) => self.fail(&error),
        }
    }

    /// At the end: the journal takes what it has queued, and that is noted.
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
