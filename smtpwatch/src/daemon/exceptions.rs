//! Announces rules that end: a week before, and after their end, in the log and in the metrics.

use std::{convert::Infallible, time::Duration};

use smtpwatch_config::Config;
use smtpwatch_core::{Timestamp, day::Day, policy::rule::RuleState};
use smtpwatch_system::clock::now;

use super::reload::Reloader;
use crate::output::metrics::Metrics;

/// Interval at which the rules are compared with the time.
const INTERVAL: Duration = Duration::from_secs(60);

/// Logs each rule that ends within a week, and each one that has ended.
pub(super) fn announce(config: &Config, at: Timestamp) {
    for (number, (rule, place)) in (1..).zip(config.rules.iter().zip(&config.places)) {
        let Some(until) = rule.until else { continue };
        let reason = rule.reason.as_str();
        match rule.state(at) {
            RuleState::Active => {}
            RuleState::Expiring => {
                tracing::warn!(rule = number, %place, %until, reason, "a rule ends soon: what it suppresses becomes findings");
            }
            RuleState::Expired => {
                tracing::warn!(rule = number, %place, %until, reason, "a rule has ended and has no effect: remove it");
            }
        }
    }
}

/// Keeps the metrics up to date, and repeats the announcements once a day.
pub(super) async fn watch(reloader: &Reloader, metrics: &Metrics) -> Infallible {
    let mut announced = Day::of(now());
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let config = reloader.current.lock().await;
        metrics.rules(&config.rules, now());
        let today = Day::of(now());
        if std::mem::replace(&mut announced, today) != today {
            announce(&config, now());
        }
    }
}
