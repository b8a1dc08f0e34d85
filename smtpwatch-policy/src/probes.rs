//! Tracks the state of DNSSEC over successive probes of the name servers ([`Probes`]). A single failure proves
//! little: the network may not be up yet, or an answer was lost.

use std::time::Duration;

use super::resolver::Dnssec;

/// Initial interval between probes while DNSSEC is broken or the name servers are unreachable; each failure doubles
/// it.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Maximum of that interval.
const MAX_RETRY: Duration = Duration::from_secs(300);
/// Interval between probes while DNSSEC works: the name servers may change with the network.
const RECHECK_INTERVAL: Duration = Duration::from_secs(3_600);
/// Number of consecutive failures after which working name servers are given up.
const MAX_FAILURES: u32 = 3;

/// State after the probes so far.
#[derive(Debug, Default)]
pub(super) struct Probes {
    state: Option<Dnssec>,
    /// Number of consecutive failures.
    failed: u32,
}

/// The effect of a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ProbeEffect {
    /// The probed name servers replace the current ones.
    pub adopt: bool,
    /// The change must be logged.
    pub changed: bool,
}

impl Probes {
    /// Whether DNSSEC is considered to work.
    pub(super) fn is_on(&self) -> bool {
        self.state == Some(Dnssec::On)
    }

    /// State of DNSSEC; None before the first probe.
    pub(super) const fn state(&self) -> Option<&Dnssec> {
        self.state.as_ref()
    }

    /// Records the result of a probe.
    pub(super) fn note(&mut self, found: Dnssec) -> ProbeEffect {
        let broken = matches!(found, Dnssec::Broken(_));
        self.failed = if broken { self.failed.saturating_add(1) } else { 0 };
        if broken && self.is_on() && self.failed < MAX_FAILURES {
            return ProbeEffect { adopt: false, changed: false };
        }
        // The reason may differ between probes: that is not a change.
        let still_broken = broken && matches!(self.state, Some(Dnssec::Broken(_)));
        let changed = !still_broken && self.state.as_ref() != Some(&found);
        self.state = Some(found);
        ProbeEffect { adopt: true, changed }
    }

    /// Time from the newest probe to the next one.
    pub(super) fn next_in(&self) -> Duration {
        match self.failed.checked_sub(1) {
            Some(before) => FIRST_RETRY.saturating_mul(2_u32.saturating_pow(before)).min(MAX_RETRY),
            None => RECHECK_INTERVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(why: &str) -> Dnssec {
        Dnssec::Broken(why.to_owned())
    }

    const NOTHING: ProbeEffect = ProbeEffect { adopt: false, changed: false };
    const NEWS: ProbeEffect = ProbeEffect { adopt: true, changed: true };
    const NO_NEWS: ProbeEffect = ProbeEffect { adopt: true, changed: false };

    #[test]
    fn what_served_is_given_up_after_three_failures_in_a_row() {
        let mut probes = Probes::default();
        assert_eq!(probes.note(Dnssec::On), NEWS);
        for _ in 0..2 {
            assert_eq!((probes.note(broken("timeout")), probes.note(broken("refused"))), (NOTHING, NOTHING));
            assert!(probes.is_on());
            assert_eq!((probes.note(Dnssec::On), probes.next_in()), (NO_NEWS, RECHECK_INTERVAL));
        }
        assert_eq!((probes.note(broken("a")), probes.note(broken("b"))), (NOTHING, NOTHING));
        assert_eq!((probes.note(broken("c")), probes.is_on()), (NEWS, false));
        assert_eq!(probes.note(broken("d")), NO_NEWS);
        assert_eq!((probes.note(Dnssec::On), probes.is_on()), (NEWS, true));
    }

    #[test]
    fn it_is_tried_again_soon_and_then_less_often() {
        let mut probes = Probes::default();
        assert_eq!(probes.note(broken("the network is not up")), NEWS);
        let mut waits = vec![probes.next_in().as_secs()];
        for _ in 0..7 {
            assert_eq!(probes.note(broken("neither now")), NO_NEWS);
            waits.push(probes.next_in().as_secs());
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
        probes.failed = u32::MAX;
        assert_eq!(probes.note(broken("for years")), NO_NEWS);
        assert_eq!(probes.next_in(), MAX_RETRY);
    }
}
