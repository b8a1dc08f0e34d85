//! Generates `docs/metrics.md` from the registry, for `smtpwatch generate metrics`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use prometheus::proto::{MetricFamily, MetricType};

use super::Metrics;

const HEAD: &str = "\
# Metrics

Printed by `smtpwatch generate metrics` from the program itself. Served at `/metrics` (default `127.0.0.1:19587`) in Prometheus' text
format. Every counter is there from the start, at zero, for each set of labels: an alert on its first step works. Labels are closed
sets; no address, domain, name or user is ever one. Names and labels are [stable](compatibility.md).

Rules over them: [deploy/prometheus](../deploy/prometheus). Dashboard: [deploy/grafana](../deploy/grafana).

| metric | type | labels | says |
|---|---|---|---|
";

/// The whole page.
///
/// # Errors
///
/// None in practice: see [`Metrics::new`].
pub fn page() -> Result<String, prometheus::Error> {
    let metrics = Metrics::new(&smtpwatch_config::DEFAULT_PORTS)?;
    // Series of an interface exist only while it is watched.
    metrics.watch_interface("NAME");
    for direction in smtpwatch_common::Direction::ALL {
        for hook in smtpwatch_capture::Hook::ALL {
            metrics.attached("NAME", direction.as_str(), hook.as_str(), Some(false));
        }
    }
    let mut page = HEAD.to_owned();
    for family in metrics.registry.gather() {
        let _ = writeln!(page, "| `{}` | {} | {} | {} |", family.name(), kind(&family), labels(&family), family.help());
    }
    Ok(page)
}

fn kind(family: &MetricFamily) -> &'static str {
    match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
    }
}

/// Each label of a metric with its values.
fn labels(family: &MetricFamily) -> String {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for pair in family.get_metric().iter().flat_map(|metric| metric.get_label()) {
        labels.entry(pair.name()).or_default().insert(pair.value());
    }
    // Values that differ between builds are not listed.
    let of_build = family.name() == "smtpwatch_build_info";
    let shown = labels.into_iter().map(|(name, values)| {
        if of_build {
            return format!("`{name}`");
        }
        let values: Vec<_> = values
            .into_iter()
            .map(|value| if value == "NAME" { value.to_owned() } else { format!("`{value}`") })
            .collect();
        format!("`{name}` = {}", values.join(", "))
    });
    shown.collect::<Vec<_>>().join("; ")
}
