//! Helpers for registering Prometheus metrics: one common prefix, one registry passed as an argument, and no other
//! state.
//!
//! Each crate declares its metrics beside the code that counts (`PolicyMetrics` in `smtpwatch-policy`, `WebMetrics`
//! in `smtpwatch-web`, the rest in the program) with [`counters`], [`gauges`] and [`register`]. The program creates
//! the [`Registry`]; [`render`] is the response of `/metrics`, and pages read [`sums`].
//!
//! Imports `smtpwatch-core` for its time stamps. Names, labels and help texts are a contract: `docs/metrics.md`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

pub use prometheus::Registry;
use prometheus::{Encoder as _, GaugeVec, IntCounterVec, Opts, TextEncoder, core::Collector};
use smtpwatch_core::Timestamp;

/// A time stamp in Prometheus format: seconds since the epoch.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "Prometheus' times are floats; microseconds survive until 2255")]
pub fn seconds(at: Timestamp) -> f64 {
    at.0 as f64 / 1e9
}

/// Options of a metric from its name, without the common prefix, and its help text.
#[must_use]
pub fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("smtpwatch_{name}"), help)
}

/// Adds a metric to the registry.
///
/// # Errors
///
/// The registry already contains a metric of that name.
pub fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// Registers a counter with labels.
///
/// # Errors
///
/// A name or label is invalid or a duplicate.
pub fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    register(registry, IntCounterVec::new(opts(name, help), labels)?)
}

/// Registers a gauge with labels.
///
/// # Errors
///
/// A name or label is invalid or a duplicate.
pub fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    register(registry, GaugeVec::new(opts(name, help), labels)?)
}

/// Renders the registry in the text exposition format, version 0.0.4.
#[must_use]
pub fn render(registry: &Registry) -> String {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut text) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("# {error}\n"),
    }
}

/// The values of one metric, summed by one of its labels; without that label, under an empty name.
#[must_use]
pub fn sums(registry: &Registry, name: &str, label: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    let families = registry.gather();
    for metric in families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric()) {
        let by = metric.get_label().iter().find(|pair| pair.name() == label).map_or("", |pair| pair.value());
        let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, far below 2^52")]
        {
            *sums.entry(by.to_owned()).or_default() += value.max(0.0) as u64;
        }
    }
    sums
}
