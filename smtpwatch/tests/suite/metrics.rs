//! The registry: names, labels, zeroes, and the budget of series.

use std::collections::BTreeSet;

use smtpwatch::output::metrics::Metrics;
use smtpwatch_common::Encapsulation;
use smtpwatch_core::{
    FlowKey, Role,
    engine::{SessionResult, SessionSummary},
    finding::StarttlsState,
    smtp::TlsVersion,
};

/// Every permitted label, including those of the metrics themselves; any other label could expose addresses or names.
const LABELS: [&str; 18] = [
    "kind",
    "severity",
    "role",
    "port",
    "result",
    "offered",
    "interface",
    "direction",
    "hook",
    "outcome",
    "reason",
    "cause",
    "output",
    "state",
    "source",
    "le",
    "version",
    "encapsulation",
];
const BUILD_LABELS: [&str; 3] = ["version", "revision", "rustc"];
const SERIES_BUDGET: usize = 400;

/// The registry of a host with four interfaces.
fn metrics() -> Metrics {
    metrics_of(&[25, 587])
}

fn metrics_of(ports: &[u16]) -> Metrics {
    let metrics = Metrics::new(ports).unwrap();
    for interface in ["eth0", "eth1", "eth2", "eth3"] {
        metrics.watch_interface(interface);
        for (direction, hooks) in
            [("ingress", ["xdp", "xdp-generic", "tcx", "clsact"].as_slice()), ("egress", &["tcx", "clsact"])]
        {
            for hook in hooks {
                metrics.attached(interface, direction, hook, Some(false));
            }
        }
    }
    metrics
}

#[test]
fn names_labels_and_budget() {
    let series = walk(&metrics());
    assert!(series < SERIES_BUDGET, "{series} series");
    // However many ports are watched, the number of series is bounded.
    let ports: Vec<u16> = (1..=1_000).collect();
    let series = walk(&metrics_of(&ports));
    assert!(series < SERIES_BUDGET + 50, "{series} series");
}

/// Checks every family; returns the number of series.
fn walk(metrics: &Metrics) -> usize {
    let mut series = 0;
    for family in metrics.registry().gather() {
        let name = family.name().to_owned();
        assert!(name.starts_with("smtpwatch_") || name.starts_with("process_"), "{name}");
        assert!(!family.help().is_empty(), "{name}");
        let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
        assert_eq!(counter, name.ends_with("_total"), "{name}: _total on counters, and only there");
        assert!(!name.contains("_ms") && !name.contains("milli"), "{name}: base units");
        for metric in family.get_metric() {
            series += match family.get_field_type() {
                prometheus::proto::MetricType::HISTOGRAM => metric.get_histogram().get_bucket().len() + 3,
                _ => 1,
            };
            for label in metric.get_label() {
                let known = LABELS.contains(&label.name())
                    || (name == "smtpwatch_build_info" && BUILD_LABELS.contains(&label.name()));
                assert!(known, "{name}: unknown label {}", label.name());
            }
        }
    }
    series
}

#[test]
fn every_label_set_is_exported_as_zero() {
    let text = metrics().render();
    for line in [
        r#"smtpwatch_findings_total{kind="starttls-stripped",role="client",severity="high"} 0"#,
        r#"smtpwatch_findings_total{kind="stream-tampering",role="server",severity="info"} 0"#,
        r#"smtpwatch_last_finding_timestamp_seconds{kind="auth-plaintext"} 0"#,
        r#"smtpwatch_sessions_total{port="587",result="unknown",role="server"} 0"#,
        r#"smtpwatch_sessions_total{port="other",result="tls",role="client"} 0"#,
        r#"smtpwatch_tls_sessions_total{role="client",version="1.0"} 0"#,
        r#"smtpwatch_tls_sessions_total{role="client",version="1.1"} 0"#,
        r#"smtpwatch_tls_sessions_total{role="server",version="1.2"} 0"#,
        r#"smtpwatch_tls_sessions_total{role="server",version="1.3"} 0"#,
        r#"smtpwatch_tls_sessions_total{role="server",version="unknown"} 0"#,
        r#"smtpwatch_starttls_offers_total{offered="masked",role="client"} 0"#,
        r#"smtpwatch_certificate_checks_total{result="not_observable",source="dane"} 0"#,
        r#"smtpwatch_probe_attached{direction="egress",hook="clsact",interface="eth3"} 0"#,
        r#"smtpwatch_kernel_packets_total{direction="egress",outcome="muted"} 0"#,
        r#"smtpwatch_kernel_dropped_total{reason="ring_full"} 0"#,
        r#"smtpwatch_kernel_last_packet_timestamp_seconds{interface="eth0"} 0"#,
        r#"smtpwatch_store_state{state="ok"} 1"#,
        r#"smtpwatch_store_state{state="read_only"} 0"#,
        r#"smtpwatch_store_recoveries_total{cause="missing"} 0"#,
        r#"smtpwatch_store_removed_total{reason="quota"} 0"#,
        r#"smtpwatch_store_evidence_evicted_total{severity="critical"} 0"#,
        "smtpwatch_flows 0",
        r#"smtpwatch_flows_evicted_total{reason="capacity"} 0"#,
        "smtpwatch_verdict_latency_seconds_count 0",
        "smtpwatch_baseline_peers 0",
        "smtpwatch_policy_subjects 0",
        "smtpwatch_policy_dnssec 0",
        r#"smtpwatch_policy_last_refresh_timestamp_seconds{source="dane"} 0"#,
        r#"smtpwatch_policy_refresh_failures_total{source="mta-sts"} 0"#,
        r#"smtpwatch_policy_refresh_failures_total{source="list"} 0"#,
        r#"smtpwatch_policy_lookups_dropped_total{reason="queue_full"} 0"#,
        r#"smtpwatch_output_records_total{output="journal"} 0"#,
        r#"smtpwatch_output_failures_total{output="store"} 0"#,
        r#"smtpwatch_web_login_failures_total{reason="password"} 0"#,
        r#"smtpwatch_web_login_failures_total{reason="limited"} 0"#,
        "smtpwatch_web_connections_refused_total 0",
        r#"smtpwatch_web_connections_closed_total{reason="idle_address"} 0"#,
        r#"smtpwatch_web_connections_closed_total{reason="idle_network"} 0"#,
        r#"smtpwatch_web_connections_closed_total{reason="idle_full"} 0"#,
        r#"smtpwatch_web_connections_closed_total{reason="busy_full"} 0"#,
        "smtpwatch_web_config_reload_failures_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "missing: {line}\n{text}");
    }
    for cause in smtpwatch_core::engine::LossCause::ALL {
        let line = format!("smtpwatch_reassembly_gaps_total{{cause=\"{}\"}} 0", cause.as_str());
        assert!(text.lines().any(|found| found == line), "missing: {line}");
    }
}

#[test]
fn sessions_with_tls_are_counted_by_version() {
    let metrics = metrics();
    let mut session = SessionSummary {
        flow: FlowKey { client: "192.0.2.25:40000".parse().unwrap(), server: "198.51.100.25:25".parse().unwrap() },
        role: Role::Client,
        result: SessionResult::Tls,
        starttls: StarttlsState::Offered,
        starttls_sent: true,
        messages: 0,
        auth: Vec::new(),
        smtp: true,
        gaps: 0,
        certificate: None,
        exempted: Vec::new(),
        tls_version: Some(TlsVersion::V1_2),
    };
    metrics.session(&session);
    metrics.session(&session);
    session.tls_version = Some(TlsVersion::Unknown);
    metrics.session(&session);
    (session.result, session.tls_version) = (SessionResult::Plaintext, None);
    metrics.session(&session);
    let text = metrics.render();
    let counted: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("smtpwatch_tls_sessions_total{") && !line.ends_with(" 0"))
        .collect();
    assert_eq!(
        counted,
        [
            r#"smtpwatch_tls_sessions_total{role="client",version="1.2"} 2"#,
            r#"smtpwatch_tls_sessions_total{role="client",version="unknown"} 1"#,
        ]
    );
}

#[test]
fn the_kernels_counters_become_ours() {
    let metrics = metrics();
    metrics.kernel_dropped("fragment", 3);
    metrics.kernel_dropped("fragment", 5);
    metrics.kernel_dropped("unparsed", 5);
    metrics.kernel_packets("ingress", "other", 9);
    metrics.encapsulated(Encapsulation::Vxlan, 2);
    metrics.encapsulated(Encapsulation::Vxlan, 7);
    let text = metrics.render();
    assert!(text.contains("smtpwatch_encapsulated_packets_total{encapsulation=\"vxlan\"} 7\n"));
    assert!(text.contains("smtpwatch_encapsulated_packets_total{encapsulation=\"mpls\"} 0\n"));
    assert!(text.contains("smtpwatch_kernel_dropped_total{reason=\"fragment\"} 5\n"));
    assert!(text.contains("smtpwatch_kernel_packets_total{direction=\"ingress\",outcome=\"other\"} 9\n"));
}

/// An alert rule that names a missing metric or label value would never fire.
#[test]
fn alert_rules_speak_of_metrics_that_exist() {
    let rules =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus/alerts.yaml")).unwrap();
    let exported = metrics().render();
    let names: BTreeSet<_> = rules
        // A name with colons is that of a recording rule.
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| (word.starts_with("smtpwatch_") || word.starts_with("process_")) && !word.contains(':'))
        .collect();
    assert!(names.len() > 5);
    for name in names {
        assert!(exported.lines().any(|line| line.starts_with(&format!("# TYPE {name} "))), "{name} is not exported");
    }
    for kind in rules.split("kind=").skip(1) {
        let value = kind.trim_start_matches('~').split('"').nth(1).unwrap();
        for kind in value.split('|') {
            assert!(exported.contains(&format!("kind=\"{kind}\"")), "{kind} is no kind");
        }
    }
}
