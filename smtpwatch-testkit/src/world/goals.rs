//! What smtpwatch is held to: each goal with its bound and its measure.

use smtpwatch_core::finding::Severity;

use super::{
    Worlds,
    attacks::{ATTACKS, STRIP},
    habits::Truth,
    hostile::{Attacked, Delays, Known},
    measure::{incidents, of_severity, page},
};

/// Goals that are not met. The short form in the test command checks all others; a goal that is met is taken off the
/// list.
pub const NOT_MET: &[&str] = &[];

/// One goal.
pub struct Goal {
    pub id: &'static str,
    pub scenario: &'static str,
    /// What is measured, with its bound in words.
    pub what: &'static str,
    pub bound: Bound,
    pub measure: fn(&Worlds) -> f64,
}

/// What a measure may be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bound {
    AtMost(f64),
    /// At most so many in a million honest sessions; a shorter world is allowed its part, rounded up.
    PerMillion(f64),
    Exactly(f64),
}

/// A goal with its measure.
pub struct Checked {
    pub goal: &'static Goal,
    pub measured: f64,
    /// The bound for the number of sessions that was played.
    pub allowed: f64,
    pub is_met: bool,
}

/// Every goal.
pub const GOALS: &[Goal] = &[
    Goal {
        id: "honest-critical",
        scenario: "honest",
        what: "findings of critical severity: none",
        bound: Bound::PerMillion(0.0),
        measure: |worlds| honest(worlds, Severity::Critical),
    },
    Goal {
        id: "honest-high",
        scenario: "honest",
        what: "findings of high severity: at most 1 in a million sessions",
        bound: Bound::PerMillion(1.0),
        measure: |worlds| honest(worlds, Severity::High),
    },
    Goal {
        id: "honest-medium",
        scenario: "honest",
        what: "findings of medium severity: at most 10 in a million sessions",
        bound: Bound::PerMillion(10.0),
        measure: |worlds| honest(worlds, Severity::Medium),
    },
    Goal {
        id: "old-peer-first",
        scenario: "hostile, one peer with much history stripped (A1)",
        what: "session with the first finding of medium severity: the first",
        bound: Bound::AtMost(1.0),
        measure: |worlds| strip(worlds).medium.sessions,
    },
    Goal {
        id: "old-peer-third",
        scenario: "hostile, one peer with much history stripped (A1)",
        what: "session with the first finding of high severity: at the latest the third in a row",
        bound: Bound::AtMost(3.0),
        measure: |worlds| strip(worlds).high.sessions,
    },
    Goal {
        id: "uplink-old",
        scenario: "hostile, uplink",
        what: "rank of the peer from which on the first session is high: at the latest the fourth",
        bound: Bound::AtMost(4.0),
        measure: |worlds| high_from(worlds, "uplink"),
    },
    Goal {
        id: "uplink-six",
        scenario: "hostile, uplink-six",
        what: "the same with peers of six sessions: at the latest the eighth",
        bound: Bound::AtMost(8.0),
        measure: |worlds| high_from(worlds, "uplink-six"),
    },
    Goal {
        id: "mask-first",
        scenario: "hostile, masks of STARTTLS (A2, A3), much or little history",
        what: "session with the first finding of high severity: the first",
        bound: Bound::AtMost(1.0),
        measure: |worlds| latest_high(worlds, &["A2", "A3"]),
    },
    Goal {
        id: "injection-first",
        scenario: "hostile, injections (E1, E2, E3), much or little history",
        what: "session with the first finding of high severity: the first",
        bound: Bound::AtMost(1.0),
        measure: |worlds| latest_high(worlds, &["E1", "E2", "E3"]),
    },
    Goal {
        id: "guesses-pages",
        scenario: "hostile, day of guesses",
        what: "notifications of high or critical severity on that day: exactly one",
        bound: Bound::Exactly(1.0),
        measure: pages_of_guess_day,
    },
    Goal {
        id: "guesses-strip",
        scenario: "hostile, day of guesses",
        what: "notifications of the strip: exactly one",
        bound: Bound::Exactly(1.0),
        measure: strips_of_guess_day,
    },
    Goal {
        id: "guesses-first",
        scenario: "hostile, day of guesses",
        what: "place of the strip's incident on the page at the end of that day: the first",
        bound: Bound::AtMost(1.0),
        measure: place_of_strip,
    },
];

/// Whether a goal names this attack.
pub fn names(attack: usize) -> bool {
    attack == STRIP || ["A2", "A3", "E1", "E2", "E3"].contains(&ATTACKS[attack].rule)
}

/// Measures every goal.
pub fn check(worlds: &Worlds) -> Vec<Checked> {
    let checked = |goal: &'static Goal| {
        let measured = (goal.measure)(worlds);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let millions = worlds.honest.sessions as f64 / 1e6;
        let allowed = match goal.bound {
            Bound::AtMost(bound) | Bound::Exactly(bound) => bound,
            Bound::PerMillion(bound) => (bound * millions).ceil(),
        };
        let is_met = match goal.bound {
            Bound::AtMost(_) | Bound::PerMillion(_) => measured <= allowed,
            Bound::Exactly(_) => (measured - allowed).abs() < 0.5,
        };
        Checked { goal, measured, allowed, is_met }
    };
    GOALS.iter().map(checked).collect()
}

fn honest(worlds: &Worlds, severity: Severity) -> f64 {
    count(of_severity(&worlds.honest.raised, severity))
}

fn strip(worlds: &Worlds) -> Delays {
    let is_it = |attacked: &&Attacked| attacked.attack == STRIP && attacked.known == Known::Much;
    worlds.attacks.iter().find(is_it).expect("the strip is always played").delays
}

fn high_from(worlds: &Worlds, name: &str) -> f64 {
    worlds.spreads.iter().find(|spread| spread.name == name).expect("it is always played").high_from
}

fn latest_high(worlds: &Worlds, rules: &[&str]) -> f64 {
    let is_in =
        |attacked: &&Attacked| rules.contains(&ATTACKS[attacked.attack].rule) && attacked.known != Known::Nothing;
    worlds.attacks.iter().filter(is_in).map(|attacked| attacked.delays.high.sessions).fold(0.0, f64::max)
}

fn pages_of_guess_day(worlds: &Worlds) -> f64 {
    count(incidents(&worlds.guesses.raised).iter().filter(|incident| incident.notified.is_some()).count())
}

fn strips_of_guess_day(worlds: &Worlds) -> f64 {
    let is_it = |truth, notified: Option<i64>| truth == Truth::Attack && notified.is_some();
    let incidents = incidents(&worlds.guesses.raised);
    count(incidents.iter().filter(|incident| is_it(incident.truth, incident.notified)).count())
}

fn place_of_strip(worlds: &Worlds) -> f64 {
    let page = page(incidents(&worlds.guesses.raised));
    let place = page.iter().position(|incident| incident.truth == Truth::Attack);
    place.map_or(f64::INFINITY, |place| count(place + 1))
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
