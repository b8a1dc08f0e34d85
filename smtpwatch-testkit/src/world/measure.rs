//! Figures from findings: numbers by severity, incidents, notifications, and the order on the start page.

use std::collections::{BTreeMap, HashMap};

use smtpwatch_core::{
    Timestamp,
    cause::{About, Cause},
    day::Day,
    finding::{Kind, Severity},
};

use super::{
    habits::Truth,
    replay::Raised,
    scene::{DAY, DAYS, HOUR, START},
};

/// Findings of one cause, as the store groups them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Incident {
    /// The worst.
    pub severity: Severity,
    /// When its severity first reached `high`: the time of the notification.
    pub notified: Option<i64>,
    /// Time of the newest finding.
    pub last_seen: i64,
    /// What its most hostile session was.
    pub truth: Truth,
}

/// Window of an incident about a peer, the default of `[incidents] window_minutes`.
const WINDOW: i64 = HOUR;
/// Window of an incident of this host's own doing.
const WINDOW_OF_THIS_HOST: i64 = 25 * HOUR;

/// Whether a finding of the same cause belongs to the incident that was last seen at `last`.
fn is_same(about: About, last: i64, at: i64) -> bool {
    match about {
        About::Peer => at - last <= WINDOW,
        About::ThisHost => at - last <= WINDOW_OF_THIS_HOST,
        About::Guessing => Day::of(Timestamp(last)) == Day::of(Timestamp(at)),
    }
}

/// Groups findings, in the order of their time.
pub fn incidents(raised: &[Raised]) -> Vec<Incident> {
    let mut all: Vec<Incident> = Vec::new();
    let mut open: HashMap<Cause, usize> = HashMap::new();
    for raised in raised {
        let is_open = |place: &usize| is_same(raised.cause.about, all[*place].last_seen, raised.at);
        let known = open.get(&raised.cause).copied().filter(is_open);
        let place = known.unwrap_or_else(|| {
            all.push(Incident {
                severity: raised.severity,
                notified: None,
                last_seen: raised.at,
                truth: raised.label.truth,
            });
            all.len() - 1
        });
        open.insert(raised.cause.clone(), place);
        let incident = &mut all[place];
        incident.severity = incident.severity.max(raised.severity);
        incident.last_seen = incident.last_seen.max(raised.at);
        incident.truth = incident.truth.max(raised.label.truth);
        if raised.severity >= Severity::High && incident.notified.is_none() {
            incident.notified = Some(raised.at);
        }
    }
    all
}

/// The incidents in the order in which the start page shows them: by severity, then the newest first.
pub fn page(mut incidents: Vec<Incident>) -> Vec<Incident> {
    incidents.reverse();
    incidents.sort_by_key(|incident| std::cmp::Reverse((incident.severity, incident.last_seen)));
    incidents
}

/// Number of findings by truth, kind and severity.
pub fn by_kind(raised: &[Raised]) -> BTreeMap<(Truth, Kind), [u64; 5]> {
    let mut counts = BTreeMap::<_, [u64; 5]>::new();
    for raised in raised {
        counts.entry((raised.label.truth, raised.kind)).or_default()[raised.severity as usize] += 1;
    }
    counts
}

/// Number of findings by habit and severity.
pub fn by_habit(raised: &[Raised]) -> BTreeMap<usize, [u64; 5]> {
    let mut counts = BTreeMap::<_, [u64; 5]>::new();
    for raised in raised {
        counts.entry(raised.label.habit).or_default()[raised.severity as usize] += 1;
    }
    counts
}

/// Findings of this severity.
pub fn of_severity(raised: &[Raised], severity: Severity) -> usize {
    raised.iter().filter(|raised| raised.severity == severity).count()
}

/// What an operator gets in a day of a world, on average and on the worst day.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct PerDay {
    pub findings: f64,
    pub incidents: f64,
    /// Incidents of severity high or critical.
    pub pages: f64,
    pub pages_of_the_worst_day: usize,
}

/// Counts for a month, of the findings whose truth is one of these.
pub fn per_day(raised: &[Raised], truths: &[Truth]) -> PerDay {
    let raised: Vec<_> = raised.iter().filter(|raised| truths.contains(&raised.label.truth)).cloned().collect();
    let incidents = incidents(&raised);
    let mut days = BTreeMap::<i64, usize>::new();
    for at in incidents.iter().filter_map(|incident| incident.notified) {
        *days.entry((at - START) / DAY).or_default() += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let daily = |count: usize| count as f64 / DAYS as f64;
    PerDay {
        findings: daily(raised.len()),
        incidents: daily(incidents.len()),
        pages: daily(days.values().sum()),
        pages_of_the_worst_day: days.values().copied().max().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use smtpwatch_core::Role;

    use super::*;
    use crate::world::{replay::Label, scene::SECOND};

    fn raised(minute: i64, severity: Severity, truth: Truth) -> Raised {
        let at = START + minute * 60 * SECOND;
        Raised {
            label: Label { truth, habit: 0, peer: 0, attacked: 0, of_all: 0, begun: at },
            kind: Kind::StarttlsStripped,
            rule: "A1".to_owned(),
            severity,
            at,
            role: Role::Client,
            peer: IpAddr::from([192, 0, 2, 1]),
            cause: Cause {
                kind: Kind::StarttlsStripped,
                role: Role::Client,
                about: About::Peer,
                address: IpAddr::from([192, 0, 2, 1]),
                port: 25,
            },
        }
    }

    #[test]
    fn guesses_are_grouped_by_day_and_this_host_without_an_end() {
        let about = |about, hour: i64| {
            let raised = raised(60 * hour, Severity::Low, Truth::Noise);
            Raised { cause: Cause { about, ..raised.cause.clone() }, ..raised }
        };
        assert_eq!(START % DAY, 0, "hours of the world are hours of the day");
        let counts =
            |which, hours: &[i64]| incidents(&hours.iter().map(|hour| about(which, *hour)).collect::<Vec<_>>()).len();
        assert_eq!(counts(About::Guessing, &[0, 12, 23, 24, 40]), 2);
        assert_eq!(counts(About::ThisHost, &[0, 20, 44, 69, 95]), 2);
    }

    #[test]
    fn findings_within_an_hour_of_each_other_are_one_incident() {
        let all = [
            raised(0, Severity::Low, Truth::Honest),
            raised(60, Severity::High, Truth::Attack),
            raised(121, Severity::Medium, Truth::Honest),
        ];
        let incidents = incidents(&all);
        assert_eq!(incidents.len(), 2);
        assert_eq!((incidents[0].severity, incidents[0].truth), (Severity::High, Truth::Attack));
        assert_eq!(incidents[0].notified, Some(all[1].at), "the notification comes with the severity");
        assert_eq!(incidents[1].notified, None);
        assert_eq!(page(incidents.clone()), incidents, "the most severe first, although it is older");
        let equal = [Incident { severity: Severity::Medium, ..incidents[0] }, incidents[1]];
        assert_eq!(page(equal.to_vec()), [equal[1], equal[0]], "of one severity, the newest first");
    }

    #[test]
    fn pages_are_counted_by_day() {
        let all: Vec<_> = [0, 100, 24 * 60].map(|minute| raised(minute, Severity::High, Truth::Honest)).into();
        let counts = per_day(&all, &[Truth::Honest]);
        assert_eq!(counts.pages_of_the_worst_day, 2);
        assert!((counts.pages - 0.1).abs() < 1e-9, "{counts:?}");
        assert_eq!(per_day(&all, &[Truth::Attack]), PerDay::default());
    }
}
