//! [`Spread`]: over how many days the sessions of a rate are spread.
//!
//! Sessions of one day are not independent: one load balancer, one outage, or one device on the path answers them all.
//! The first session of a day therefore weighs 1, the next four 1/8 each, and all others nothing.

use serde::{Deserialize, Serialize};

use crate::{Timestamp, day::Day};

/// Unit of a weight: the first session of a day.
const ONE: u64 = 1000;
/// Number of sessions of one day that have a weight.
const BUSY: u32 = 5;

/// Number of days, and weight of the sessions on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tally {
    /// Number of distinct days (UTC) with a session.
    pub days: u32,
    /// Sum of the weights of all sessions, in thousandths.
    pub weight: u64,
    /// The newest day, in days since the Unix epoch.
    pub newest: i64,
    /// Number of sessions on the newest day.
    pub on_newest: u32,
}

/// Weight of the n-th session of a day.
const fn weight(nth: u32) -> u64 {
    match nth {
        0 | 1 => ONE,
        2..=BUSY => ONE / 8,
        _ => 0,
    }
}

impl Tally {
    pub(super) fn add(&mut self, at: Timestamp) {
        let (day, nth) = self.next(at);
        self.days = self.days.saturating_add(u32::from(nth == 1));
        (self.newest, self.on_newest) = (day, nth);
        self.weight = self.weight.saturating_add(weight(nth));
    }

    /// This tally with one more session, at `at`.
    #[must_use]
    pub fn with(mut self, at: Timestamp) -> Self {
        self.add(at);
        self
    }

    /// Sum of the weights: the number of sessions that this many independent sessions are worth.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a sum of weights far below 2^52")]
    pub fn sessions(&self) -> f64 {
        self.weight as f64 / ONE as f64
    }

    /// The day of a session, and its position among the sessions of that day. An earlier day than the newest counts as
    /// the newest: a clock that steps back adds no days.
    fn next(&self, at: Timestamp) -> (i64, u32) {
        let day = Day::of(at).number();
        if self.days > 0 && day <= self.newest { (self.newest, self.on_newest.saturating_add(1)) } else { (day, 1) }
    }

    /// The tally of `sessions` that are evenly spread from `first` to `last`: for records without one.
    #[must_use]
    pub fn estimate(sessions: u64, first: Timestamp, last: Timestamp) -> Self {
        if sessions == 0 {
            return Self::default();
        }
        let (first, newest) = (Day::of(first), Day::of(last));
        let days = u64::try_from(newest.since(first).saturating_add(1)).unwrap_or(1).clamp(1, sessions);
        // Sessions of each day, rounded down, and one more on some of the days.
        let (daily, more) = (sessions / days, sessions % days);
        let of_day =
            |sessions: u64| (1..=u32::try_from(sessions).unwrap_or(u32::MAX).min(BUSY)).map(weight).sum::<u64>();
        Self {
            days: u32::try_from(days).unwrap_or(u32::MAX),
            weight: (days - more) * of_day(daily) + more * of_day(daily + 1),
            newest: newest.number(),
            on_newest: u32::try_from(daily).unwrap_or(u32::MAX),
        }
    }
}

/// How the sessions of a rate are spread over days.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Spread {
    /// Sessions with the property.
    pub with: Tally,
    /// Regressions of the current run.
    pub run: Tally,
    /// Runs of regressions that ended.
    pub lapses: Tally,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn tally(sessions: impl IntoIterator<Item = i64>) -> Tally {
        let mut tally = Tally::default();
        sessions.into_iter().for_each(|at| tally.add(Timestamp::from_secs(at)));
        tally
    }

    #[test]
    fn days_weigh_more_than_sessions() {
        let (one_day, each_day) = (tally(0..100), tally((0..100).map(|day| day * DAY)));
        assert_eq!((one_day.days, each_day.days), (1, 100));
        assert!((one_day.sessions() - 1.5).abs() < 1e-9, "{}", one_day.sessions());
        assert!((each_day.sessions() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_clock_that_steps_back_adds_no_days() {
        assert_eq!(tally([5 * DAY, 0, 5 * DAY, DAY]).days, 1);
    }

    #[test]
    fn an_estimate_is_near_the_count() {
        let counted = tally((0..412).map(|n| n * DAY / 8));
        let (first, last) = (Timestamp::from_secs(0), Timestamp::from_secs(411 * DAY / 8));
        let estimate = Tally::estimate(412, first, last);
        assert_eq!(estimate.days, counted.days);
        assert!((estimate.sessions() / counted.sessions() - 1.0).abs() < 0.05, "{estimate:?} {counted:?}");
        assert_eq!(Tally::estimate(0, first, last), Tally::default());
        assert_eq!(Tally::estimate(5, last, first).days, 1, "a record whose times are reversed");
    }
}
