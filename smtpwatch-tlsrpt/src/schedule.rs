//! Decides when a report is written, looked up and sent (RFC 8460 §4.1, §5.5). Time is an argument, tasks are the
//! result; there is no I/O here. The sender thread owns the [`Schedule`] and executes its tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use smtpwatch_core::{Timestamp, day::Day};

use super::record::Target;

/// Maximum number of waiting tasks; further domains get no report, and are counted.
pub const TASKS: usize = 100_000;
/// Delay after the end of a day before it is processed: the store has written the last sessions by then.
pub const GRACE: Duration = Duration::from_secs(60);
/// Maximum time for redelivery of a report (RFC 8460 §5.5).
pub const REDELIVERY: Duration = Duration::from_secs(24 * 3600);
/// Delay before the second attempt; it doubles with each further one.
const BACK_OFF: Duration = Duration::from_secs(300);
/// Maximum delay between two attempts.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(4 * 3600);
/// Time after which a task without an answer is handed out again.
const LEASE: Duration = Duration::from_secs(600);

/// A task of the sender.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Task {
    /// The day that the report covers.
    pub day: Day,
    /// The policy domain of the report.
    pub domain: String,
    /// The step to execute.
    pub step: Step,
}

/// The steps of a report's delivery.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// Write the report into the directory.
    Write,
    /// Look up the targets to which the domain wants its reports sent (its TLSRPT record).
    Find,
    /// Send the report to one target.
    Send(Target),
}

impl Step {
    /// The name under which the store records the step as done.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Write => "file".to_owned(),
            Self::Find => "record".to_owned(),
            Self::Send(target) => target.to_string(),
        }
    }
}

/// What the configuration enables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wants {
    /// Reports are written to the directory.
    pub write: bool,
    /// Reports are sent.
    pub send: bool,
    /// Maximum random delay of each report.
    pub max_delay: Duration,
}

/// The result of a failed attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// A retry follows at this time.
    Again(Timestamp),
    /// The task is dropped.
    GivenUp,
}

/// The waiting tasks.
#[derive(Debug)]
pub struct Schedule {
    wants: Wants,
    tasks: BTreeMap<Task, Attempt>,
    days: BTreeSet<Day>,
    dropped: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Attempt {
    next: Timestamp,
    last: Timestamp,
    made: u32,
}

impl Schedule {
    /// An empty schedule.
    #[must_use]
    pub const fn new(wants: Wants) -> Self {
        Self { wants, tasks: BTreeMap::new(), days: BTreeSet::new(), dropped: 0 }
    }

    /// Returns each day once: when it is over, and while a report about it is still useful. The caller passes the
    /// domains of the day to [`Self::add`].
    pub fn days(&mut self, now: Timestamp) -> Vec<Day> {
        let today = Day::of(now);
        let over = |day: &Day| now.0 >= (day.end() + GRACE).0;
        // For any older day, the times of delay and redelivery are over.
        let days: Vec<_> = (1..=2).map(|ago| today.plus(-ago)).filter(over).collect();
        self.days.retain(|day| *day >= today.plus(-2));
        days.into_iter().filter(|day| self.days.insert(*day)).collect()
    }

    /// Makes [`Self::days`] return the day again. For the case that its domains could not be read.
    pub fn again(&mut self, day: Day) {
        self.days.remove(&day);
    }

    /// Adds the steps for one domain of a day that [`Self::days`] returned. `lot` is a random number that determines
    /// the delay; `done` are the names of completed steps.
    pub fn add(&mut self, day: Day, domain: &str, lot: u64, done: &BTreeSet<String>, now: Timestamp) {
        let delay = lot % self.wants.max_delay.as_secs().saturating_add(1);
        let next = day.end() + GRACE + Duration::from_secs(delay);
        let last = next + REDELIVERY;
        if last < now {
            return;
        }
        let planned = [(self.wants.write, Step::Write), (self.wants.send, Step::Find)];
        for (_, step) in planned.into_iter().filter(|(planned, step)| *planned && !done.contains(&step.name())) {
            self.put(Task { day, domain: domain.to_owned(), step }, Attempt { next, last, made: 0 });
        }
    }

    /// The tasks that are due, at most `most`. The caller answers each with [`Self::done`], [`Self::found`] or
    /// [`Self::failed`].
    pub fn due(&mut self, now: Timestamp, most: usize) -> Vec<Task> {
        let due = self.tasks.iter_mut().filter(|(_, attempt)| attempt.next <= now).take(most);
        due.map(|(task, attempt)| {
            attempt.next = now + LEASE;
            task.clone()
        })
        .collect()
    }

    /// The task is done, or unnecessary.
    pub fn done(&mut self, task: &Task) {
        self.tasks.remove(task);
    }

    /// The look-up found these targets; `done` are the names of completed steps.
    pub fn found(&mut self, task: &Task, targets: Vec<Target>, done: &BTreeSet<String>, now: Timestamp) {
        let Some(attempt) = self.tasks.remove(task) else { return };
        for step in targets.into_iter().map(Step::Send).filter(|step| !done.contains(&step.name())) {
            let task = Task { day: task.day, domain: task.domain.clone(), step };
            self.put(task, Attempt { next: now, made: 0, ..attempt });
        }
    }

    /// The task failed; it is retried unless `permanent`.
    pub fn failed(&mut self, task: &Task, permanent: bool, now: Timestamp) -> Next {
        let Some(attempt) = self.tasks.get_mut(task) else { return Next::GivenUp };
        let back_off = BACK_OFF.saturating_mul(1 << attempt.made.min(16)).min(LONGEST_BACK_OFF);
        attempt.made = attempt.made.saturating_add(1);
        attempt.next = now + back_off;
        if permanent || attempt.next > attempt.last {
            self.tasks.remove(task);
            return Next::GivenUp;
        }
        Next::Again(attempt.next)
    }

    /// Number of waiting tasks.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.tasks.len()
    }

    /// Number of tasks dropped because the schedule was full, since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn put(&mut self, task: Task, attempt: Attempt) {
        if self.tasks.len() >= TASKS {
            self.dropped += 1;
            return;
        }
        self.tasks.insert(task, attempt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTS: Wants = Wants { write: true, send: true, max_delay: Duration::from_secs(4 * 3600) };

    fn day() -> Day {
        "2026-11-23".parse().expect("a day")
    }

    fn midnight(after: Duration) -> Timestamp {
        day().end() + Duration::from_secs(1) + after
    }

    fn with_one_domain(lot: u64) -> Schedule {
        let mut schedule = Schedule::new(WANTS);
        let now = midnight(GRACE);
        assert_eq!(schedule.days(now), [day(), day().plus(-1)]);
        schedule.add(day(), "example.net", lot, &BTreeSet::new(), now);
        schedule
    }

    fn find() -> Task {
        Task { day: day(), domain: "example.net".to_owned(), step: Step::Find }
    }

    fn target() -> Target {
        Target::Mail("reports@example.net".to_owned())
    }

    fn sent() -> Task {
        Task { step: Step::Send(target()), ..find() }
    }

    #[test]
    fn a_day_is_reported_once_when_it_is_over() {
        let mut schedule = Schedule::new(WANTS);
        assert_eq!(schedule.days(midnight(Duration::ZERO)), [day().plus(-1)]);
        assert_eq!(schedule.days(midnight(GRACE)), [day()]);
        assert!(schedule.days(midnight(GRACE)).is_empty());
    }

    #[test]
    fn a_report_waits_for_its_lot_and_not_longer_than_the_most() {
        for (lot, delay) in [(0, 0), (3600, 3600), (4 * 3600, 4 * 3600), (4 * 3600 + 1, 0)] {
            let mut schedule = with_one_domain(lot);
            let due = midnight(GRACE + Duration::from_secs(delay));
            assert!(delay == 0 || schedule.due(Timestamp(due.0 - 2_000_000_000), 10).is_empty(), "{lot}");
            assert_eq!(schedule.due(due, 10).len(), 2, "{lot}");
            assert!(schedule.due(due, 10).is_empty(), "each is handed out once");
        }
    }

    #[test]
    fn what_cannot_be_delivered_is_tried_for_a_day_ever_more_seldom() {
        let mut schedule = with_one_domain(0);
        let mut now = midnight(GRACE);
        schedule.due(now, 10);
        schedule.found(&find(), vec![target()], &BTreeSet::new(), now);
        schedule.done(&Task { step: Step::Write, ..find() });
        let mut attempts = Vec::new();
        loop {
            assert_eq!(schedule.due(now, 10), [sent()]);
            attempts.push(now.since(midnight(GRACE)).as_secs());
            match schedule.failed(&sent(), false, now) {
                Next::Again(at) => now = at,
                Next::GivenUp => break,
            }
        }
        assert_eq!(attempts[..5], [0, 300, 900, 2_100, 4_500]);
        assert!(attempts.iter().all(|at| *at < REDELIVERY.as_secs()) && attempts.len() > 8, "{attempts:?}");
        assert_eq!(schedule.waiting(), 0);
    }

    #[test]
    fn what_is_done_with_is_not_done_again() {
        let now = midnight(GRACE);
        let mut schedule = Schedule::new(WANTS);
        let done: BTreeSet<_> = ["file".to_owned(), "mailto:reports@example.net".to_owned()].into();
        schedule.add(day(), "example.net", 0, &done, now);
        assert_eq!(schedule.due(now, 10), [find()]);
        schedule.found(&find(), vec![target()], &done, now);
        assert_eq!(schedule.waiting(), 0);
        // The times of delay and redelivery are over.
        schedule.add(day().plus(-2), "example.net", 0, &BTreeSet::new(), now);
        assert_eq!(schedule.waiting(), 0);
    }

    #[test]
    fn a_refusal_for_good_ends_it_and_silence_does_not() {
        let mut schedule = with_one_domain(0);
        let now = midnight(GRACE);
        schedule.due(now, 10);
        assert!(schedule.due(now + Duration::from_secs(599), 10).is_empty());
        assert_eq!(schedule.due(now + LEASE, 10).len(), 2, "nobody answered");
        assert_eq!(schedule.failed(&find(), true, now), Next::GivenUp);
        assert_eq!(schedule.waiting(), 1);
    }

    #[test]
    fn tasks_are_bounded_and_drops_are_counted() {
        let mut schedule = Schedule::new(Wants { write: false, ..WANTS });
        let now = midnight(GRACE);
        for n in 0..TASKS + 3 {
            schedule.add(day(), &format!("d{n}.example"), 0, &BTreeSet::new(), now);
        }
        assert_eq!((schedule.waiting(), schedule.take_dropped(), schedule.take_dropped()), (TASKS, 3, 0));
    }
}
