//! Calendar days in UTC, the unit of reports and daily counts (RFC 8460 §4.1).

use std::{fmt, str::FromStr};

use crate::Timestamp;

const SECONDS: i64 = 86_400;

/// A day in UTC, as days since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Day(i64);

impl Day {
    /// The day that contains a point in time.
    #[must_use]
    pub const fn of(at: Timestamp) -> Self {
        Self(at.as_secs().div_euclid(SECONDS))
    }

    /// Days since the Unix epoch.
    #[must_use]
    pub const fn number(self) -> i64 {
        self.0
    }

    /// First second of the day.
    #[must_use]
    pub const fn begin(self) -> Timestamp {
        Timestamp::from_secs(self.0.saturating_mul(SECONDS))
    }

    /// Last second of the day.
    #[must_use]
    pub const fn end(self) -> Timestamp {
        Timestamp::from_secs(self.0.saturating_mul(SECONDS).saturating_add(SECONDS - 1))
    }

    /// The day `days` later; earlier if `days` is negative. Saturates.
    #[must_use]
    pub const fn plus(self, days: i64) -> Self {
        Self(self.0.saturating_add(days))
    }

    /// Days from `other` to this day; negative if `other` is later.
    #[must_use]
    pub const fn since(self, other: Self) -> i64 {
        self.0.saturating_sub(other.0)
    }
}

/// `YYYY-MM-DD`.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.begin().date())
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = format!("{text}T00:00:00Z").parse::<jiff::Timestamp>().ok().filter(|_| text.len() == 10);
        let at = at.ok_or_else(|| format!("{text:?}: expected a day of UTC, such as 2026-11-23"))?;
        Ok(Self(at.as_second().div_euclid(SECONDS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_begin_and_end_at_midnight_of_utc() {
        let day: Day = "2026-11-23".parse().expect("a day");
        assert_eq!(day.to_string(), "2026-11-23");
        assert_eq!(day.begin().to_string(), "2026-11-23T00:00:00.000000Z");
        assert_eq!(day.end().to_string(), "2026-11-23T23:59:59.000000Z");
        assert_eq!((Day::of(day.begin()), Day::of(day.end())), (day, day));
        assert_eq!(Day::of(Timestamp(day.begin().0 - 1)), day.plus(-1));
        assert_eq!("1969-12-31".parse(), Ok(Day(-1)));
        for bad in ["", "2026-11-31", "20261123", "2026-11-23T00", "yesterday"] {
            assert!(bad.parse::<Day>().is_err(), "{bad}");
        }
    }
}
