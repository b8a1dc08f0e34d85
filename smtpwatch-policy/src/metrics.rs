//! Prometheus metrics of policy look-ups ([`PolicyMetrics`]). Labels are closed sets, exported as zero from the start.

use prometheus::{GaugeVec, IntCounterVec, IntGauge};
use smtpwatch_core::{Timestamp, policy::published::demand::Source};
use smtpwatch_metrics::{Registry, counters, gauges, opts, register, seconds};

use crate::service::Dropped;

/// Metrics of cached policies and of dropped look-ups.
pub struct PolicyMetrics {
    policy_subjects: IntGauge,
    policy_dnssec: IntGauge,
    policy_refreshed: GaugeVec,
    policy_failures: IntCounterVec,
    policy_dropped: IntCounterVec,
}

impl PolicyMetrics {
    /// Registers all metrics, at zero.
    ///
    /// # Errors
    ///
    /// The registry already contains these metrics.
    pub fn register(r: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            policy_subjects: register(
                r,
                IntGauge::with_opts(opts(
                    "policy_subjects",
                    "Domains and mail hosts whose published policies are known.",
                ))?,
            )?,
            policy_dnssec: register(
                r,
                IntGauge::with_opts(opts("policy_dnssec", "Whether DNSSEC is validated; 0: DANE is off."))?,
            )?,
            policy_refreshed: gauges(
                r,
                "policy_last_refresh_timestamp_seconds",
                "When this source last answered; 0: never.",
                &["source"],
            )?,
            policy_failures: counters(
                r,
                "policy_refresh_failures_total",
                "Look-ups of published policies that failed; cached policies stay in force.",
                &["source"],
            )?,
            policy_dropped: counters(
                r,
                "policy_lookups_dropped_total",
                "Look-ups of published policies that were skipped, or whose answers were dropped.",
                &["reason"],
            )?,
        };
        for source in Source::ALL {
            let _ = metrics.policy_refreshed.with_label_values(&[source.as_str()]);
            let _ = metrics.policy_failures.with_label_values(&[source.as_str()]);
        }
        for reason in Dropped::ALL {
            let _ = metrics.policy_dropped.with_label_values(&[reason.as_str()]);
        }
        Ok(metrics)
    }

    /// Sets the number of domains and mail hosts with a known answer.
    pub fn policy_subjects(&self, subjects: usize) {
        self.policy_subjects.set(i64::try_from(subjects).unwrap_or(i64::MAX));
    }

    /// Sets whether DNSSEC is validated.
    pub fn policy_dnssec(&self, validated: bool) {
        self.policy_dnssec.set(i64::from(validated));
    }

    /// Records a successful refresh of a source.
    pub fn policy_refreshed(&self, source: Source, at: Timestamp) {
        self.policy_refreshed.with_label_values(&[source.as_str()]).set(seconds(at));
    }

    /// Counts a failure of a source.
    pub fn policy_failed(&self, source: Source) {
        self.policy_failures.with_label_values(&[source.as_str()]).inc();
    }

    /// Counts a look-up that was not done, or whose answer was discarded.
    pub fn policy_dropped(&self, reason: Dropped) {
        self.policy_dropped.with_label_values(&[reason.as_str()]).inc();
    }
}
