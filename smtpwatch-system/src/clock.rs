//! The clocks: the wall clock ([`now`]) and the engine's clock ([`Steady`]). Clocks are read only here; elsewhere
//! time is an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use smtpwatch_core::Timestamp;

/// The current time.
#[must_use]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}

/// Time for the engine: it advances with the monotonic clock, which stamps the records, and follows the wall clock
/// without steps.
///
/// Timers of the engine compare such times. If they followed a step of the wall clock (by an administrator, a time
/// server at boot, or after a suspend), a step forward would end every session as idle, and a step back would stop
/// every timer until the clock has caught up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Steady {
    /// Offset from the monotonic clock, in nanoseconds.
    offset: i64,
    /// The monotonic clock at the last measurement, in nanoseconds.
    measured: i64,
}

/// Divisor of the elapsed time that limits the change of the offset: one second of the engine takes between two
/// thirds of a second and two seconds, whatever the wall clock does. The slewing of time servers (500 ppm) is
/// followed immediately.
const SLEW: i64 = 2;

impl Steady {
    /// Reads both clocks and sets the offset to their difference.
    ///
    /// # Errors
    ///
    /// The system does not provide a clock.
    pub fn start() -> nix::Result<Self> {
        let (monotonic, wall) = read()?;
        Ok(Self::new(monotonic, wall))
    }

    const fn new(monotonic: i64, wall: i64) -> Self {
        Self { offset: wall - monotonic, measured: monotonic }
    }

    /// Reads both clocks again and moves the offset towards the wall clock, within the bound of `SLEW`.
    ///
    /// # Errors
    ///
    /// The system does not provide a clock.
    pub fn measure(&mut self) -> nix::Result<()> {
        let (monotonic, wall) = read()?;
        self.follow(monotonic, wall);
        Ok(())
    }

    fn follow(&mut self, monotonic: i64, wall: i64) {
        let most = monotonic.saturating_sub(self.measured).max(0) / SLEW;
        self.offset += (wall - monotonic).saturating_sub(self.offset).clamp(-most, most);
        self.measured = self.measured.max(monotonic);
    }

    /// Converts a reading of the monotonic clock, in nanoseconds.
    #[must_use]
    pub fn at(&self, monotonic: u64) -> Timestamp {
        Timestamp(i64::try_from(monotonic).unwrap_or(i64::MAX).saturating_add(self.offset))
    }

    /// The current time.
    ///
    /// # Errors
    ///
    /// The system does not provide a clock.
    pub fn now(&self) -> nix::Result<Timestamp> {
        Ok(Timestamp(nanoseconds(ClockId::CLOCK_MONOTONIC)?.saturating_add(self.offset)))
    }
}

/// Reads the monotonic clock and the wall clock, in nanoseconds.
fn read() -> nix::Result<(i64, i64)> {
    Ok((nanoseconds(ClockId::CLOCK_MONOTONIC)?, nanoseconds(ClockId::CLOCK_REALTIME)?))
}

fn nanoseconds(clock: ClockId) -> nix::Result<i64> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const DAY: i64 = 86_400 * SECOND;

    /// How much engine time passes in each of `seconds` seconds, and the remaining difference to the wall clock.
    fn after_step(step: i64, seconds: i64) -> (i64, i64, i64) {
        let (mut clock, begin) = (Steady::new(5 * SECOND, 100 * DAY), 5 * SECOND);
        let (mut least, mut most) = (i64::MAX, 0);
        for second in 1..=seconds {
            let before = clock.at((begin + (second - 1) * SECOND).cast_unsigned());
            clock.follow(begin + second * SECOND, 100 * DAY + second * SECOND + step);
            let passed = clock.at((begin + second * SECOND).cast_unsigned()).0 - before.0;
            (least, most) = (least.min(passed), most.max(passed));
        }
        let left = 100 * DAY + seconds * SECOND + step - clock.at((begin + seconds * SECOND).cast_unsigned()).0;
        (least, most, left)
    }

    #[test]
    fn a_step_of_a_day_is_no_step_of_the_engine() {
        let half = SECOND / 2;
        assert_eq!(after_step(DAY, 60), (SECOND + half, SECOND + half, DAY - 30 * SECOND));
        assert_eq!(after_step(-DAY, 60), (half, half, 30 * SECOND - DAY));
        // After enough time both clocks agree again.
        assert_eq!(after_step(DAY, 2 * 86_400 + 1).2, 0);
        assert_eq!(after_step(-DAY, 2 * 86_400 + 1).2, 0);
    }

    #[test]
    fn what_a_time_server_slews_is_followed_at_once() {
        let mut clock = Steady::new(0, DAY);
        clock.follow(10 * SECOND, DAY + 10 * SECOND + 5_000_000);
        assert_eq!(clock.at(10_000_000_000), Timestamp(DAY + 10 * SECOND + 5_000_000));
        // The same reading again, or an earlier one, changes nothing.
        clock.follow(10 * SECOND, 0);
        clock.follow(9 * SECOND, 0);
        assert_eq!(clock.at(10_000_000_000), Timestamp(DAY + 10 * SECOND + 5_000_000));
    }
}
