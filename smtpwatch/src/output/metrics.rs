//! All metrics, in one registry ([`Metrics`]). The daemon creates it and passes it to every part that counts. Label
//! values are closed sets, except interface names, which the configuration bounds. Every label set is exported as zero
//! from the start, because `increase()` misses a counter that first appears with the value 1.

pub mod page;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    process_collector::ProcessCollector,
};
use smtpwatch_capture::Hook;
use smtpwatch_common::{Counter, Direction, Encapsulation, counters::Label};
use smtpwatch_core::{
    Finding, Role, Timestamp,
    engine::{EvictReason, LossCause, SessionResult, SessionSummary},
    finding::{Kind, Severity, StarttlsState},
    judge::certificate::Verdict,
    policy::{
        history::Forgotten,
        published::demand::Source,
        rule::{Rule, RuleState},
    },
    smtp::TlsVersion,
};
use smtpwatch_metrics::{counters, gauges, opts, register, seconds};
use smtpwatch_policy::metrics::PolicyMetrics;
use smtpwatch_store::{
    Condition, Recoveries,
    retention::{PROTECTED_SEVERITIES, Reason, Removals},
};
use smtpwatch_web::metrics::WebMetrics;

use crate::version;

/// Upper bounds of `smtpwatch_verdict_latency_seconds`: a verdict takes microseconds, or waits for the end of a
/// session up to [`smtpwatch_core::limits::VERDICT_DEADLINE`].
const LATENCY_BUCKETS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];
/// Maximum number of ports with a label of their own, lowest first; it bounds the number of series.
const PORT_LABELS: usize = 8;
/// Label of all other ports.
const OTHER_PORT: &str = "other";

smtpwatch_system::vocabulary! {
    /// Values of the `output` label.
    pub enum Output {
        /// Findings in the journal.
        Journal = "journal",
        /// Rows in the store: history, findings, and counts for TLS reports.
        Store = "store",
        /// TLS reports, written or delivered.
        Tlsrpt = "tlsrpt",
        /// Alerts sent to Alertmanagers.
        Alertmanager = "alertmanager",
    }
}

smtpwatch_system::vocabulary! {
    /// Values of the `reason` label of skipped route look-ups.
    pub enum RouteLookupDrop {
        /// The maximum number of connections per survey was reached.
        Connections = "connections",
        /// The maximum number of routes per survey was reached.
        Routes = "routes",
        /// The kernel did not respond.
        Failed = "failed",
    }
}

/// The registry and every metric in it.
pub struct Metrics {
    registry: Registry,
    ports: Vec<u16>,
    findings: IntCounterVec,
    last_finding: GaugeVec,
    sessions: IntCounterVec,
    tls_sessions: IntCounterVec,
    offers: IntCounterVec,
    certificates: IntCounterVec,
    attached: IntGaugeVec,
    probe_lost: IntCounterVec,
    kernel_packets: IntCounterVec,
    kernel_dropped: IntCounterVec,
    encapsulated: IntCounterVec,
    last_packet: GaugeVec,
    unwatched_connections: IntGaugeVec,
    route_lookups_dropped: IntCounterVec,
    flows: IntGauge,
    evicted: IntCounterVec,
    gaps: IntCounterVec,
    latency: Histogram,
    baseline_peers: IntGauge,
    history_evicted: IntCounterVec,
    /// Metrics of policy look-ups.
    pub policy: Arc<PolicyMetrics>,
    output_records: IntCounterVec,
    output_failures: IntCounterVec,
    store_state: IntGaugeVec,
    store_recoveries: IntCounterVec,
    store_removed: IntCounterVec,
    store_evidence_evicted: IntCounterVec,
    /// Metrics of the HTTP server.
    pub web: Arc<WebMetrics>,
    reload_successful: IntGauge,
    reloaded: Gauge,
    rules: IntGaugeVec,
    exceptions: IntCounterVec,
    /// The kernel counts from the load of its program: value of each counter at the last read.
    kernel_seen: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Metrics {
    /// All metrics, at zero; `ports` are the watched ports.
    ///
    /// # Errors
    ///
    /// None in practice: a name or label is invalid or registered twice.
    pub fn new(ports: &[u16]) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            findings: counters(r, "findings_total", "Findings.", &["kind", "severity", "role"])?,
            last_finding: gauges(
                r,
                "last_finding_timestamp_seconds",
                "When the newest finding of this kind was made; 0: never.",
                &["kind"],
            )?,
            sessions: counters(r, "sessions_total", "SMTP sessions by result.", &["role", "port", "result"])?,
            tls_sessions: counters(
                r,
                "tls_sessions_total",
                "Sessions in which TLS began, by the negotiated version; unknown: the server's hello was not seen whole, or SSL 3.0.",
                &["role", "version"],
            )?,
            offers: counters(
                r,
                "starttls_offers_total",
                "Cleartext EHLO replies by their offer of STARTTLS.",
                &["role", "offered"],
            )?,
            certificates: counters(
                r,
                "certificate_checks_total",
                "Certificates of mail hosts compared with a published policy; not observable: TLS 1.3, or not seen completely.",
                &["source", "result"],
            )?,
            attached: register(
                r,
                IntGaugeVec::new(
                    opts("probe_attached", "Whether smtpwatch is attached to this hook of the interface."),
                    &["interface", "direction", "hook"],
                )?,
            )?,
            probe_lost: counters(
                r,
                "probe_lost_total",
                "Hooks that another program removed from the running daemon, which attaches them again if possible.",
                &["direction", "hook"],
            )?,
            kernel_packets: counters(
                r,
                "kernel_packets_total",
                "Packets seen by the kernel programs: forwarded to the daemon, of a muted flow, or not of a mail port.",
                &["direction", "outcome"],
            )?,
            kernel_dropped: counters(
                r,
                "kernel_dropped_total",
                "Records that the kernel programs could not deliver (the packets themselves always pass).",
                &["reason"],
            )?,
            encapsulated: counters(
                r,
                "encapsulated_packets_total",
                "Packets with mail in an encapsulation whose inner packets no watched interface shows; this mail is not checked.",
                &["encapsulation"],
            )?,
            last_packet: gauges(
                r,
                "kernel_last_packet_timestamp_seconds",
                "When the newest packet of a mail dialogue was seen; 0: never.",
                &["interface"],
            )?,
            unwatched_connections: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "unwatched_connections",
                        "Open connections of watched ports on interfaces that are not watched, during the last minute.",
                    ),
                    &["role"],
                )?,
            )?,
            route_lookups_dropped: counters(
                r,
                "route_lookups_dropped_total",
                "Connections of watched ports whose interface was not looked up; look-ups that did not read all routes, or failed.",
                &["reason"],
            )?,
            flows: register(r, IntGauge::with_opts(opts("flows", "Connections that are being followed."))?)?,
            evicted: counters(r, "flows_evicted_total", "Connections dropped before their end was seen.", &["reason"])?,
            gaps: counters(
                r,
                "reassembly_gaps_total",
                "Gaps in dialogues; the verdict of such a session is unknown.",
                &["cause"],
            )?,
            latency: register(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "smtpwatch_verdict_latency_seconds",
                        "From the kernel's time stamp of the deciding packet to the finding.",
                    )
                    .buckets(LATENCY_BUCKETS.to_vec()),
                )?,
            )?,
            baseline_peers: register(r, IntGauge::with_opts(opts("baseline_peers", "Rows of history."))?)?,
            history_evicted: counters(
                r,
                "history_evicted_total",
                "History rows strong enough to raise findings that were dropped because the table is full.",
                &["role"],
            )?,
            policy: Arc::new(PolicyMetrics::register(r)?),
            output_records: counters(r, "output_records_total", "Records written, by output.", &["output"])?,
            output_failures: counters(
                r,
                "output_failures_total",
                "Records lost and writes that failed, by output.",
                &["output"],
            )?,
            store_state: register(
                r,
                IntGaugeVec::new(
                    opts("store_state", "Whether the store is in this state; ok: it is writable."),
                    &["state"],
                )?,
            )?,
            store_recoveries: counters(
                r,
                "store_recoveries_total",
                "Stores that were recreated while running, by what happened to the previous one.",
                &["cause"],
            )?,
            store_removed: counters(
                r,
                "store_removed_total",
                "Findings that retention has removed from the store, by the bound that was reached.",
                &["reason"],
            )?,
            store_evidence_evicted: counters(
                r,
                "store_evidence_evicted_total",
                "Findings with evidence that were removed before max_age_days, because the store was full of such findings.",
                &["severity"],
            )?,
            web: Arc::new(WebMetrics::register(r)?),
            reload_successful: register(
                r,
                IntGauge::with_opts(opts(
                    "config_last_reload_successful",
                    "Whether the last reload of the configuration succeeded; 0: the previous one stays in force.",
                ))?,
            )?,
            reloaded: register(
                r,
                Gauge::with_opts(opts(
                    "config_last_reload_success_timestamp_seconds",
                    "When the configuration was last loaded successfully.",
                ))?,
            )?,
            rules: register(
                r,
                IntGaugeVec::new(
                    opts(
                        "rules",
                        "Local rules; expiring: `until` is at most a week away, expired: it has passed, and the rule has no effect.",
                    ),
                    &["state"],
                )?,
            )?,
            exceptions: counters(
                r,
                "rule_exceptions_total",
                "Sessions in which a rule with `until` suppressed findings, by their kind.",
                &["kind"],
            )?,
            registry: registry.clone(),
            ports: ports.iter().copied().take(PORT_LABELS).collect(),
            kernel_seen: Mutex::default(),
        };
        register(r, build_info()?)?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        metrics.zero();
        Ok(metrics)
    }

    /// Counts a finding.
    pub fn finding(&self, finding: &Finding) {
        let kind = finding.kind.as_str();
        self.findings.with_label_values(&[kind, finding.severity.as_str(), finding.role.as_str()]).inc();
        self.last_finding.with_label_values(&[kind]).set(seconds(finding.time));
    }

    /// Records the time from the deciding packet to the finding.
    pub fn verdict(&self, latency: Duration) {
        self.latency.observe(latency.as_secs_f64());
    }

    /// Counts a session that was judged.
    pub fn session(&self, session: &SessionSummary) {
        let role = session.role.as_str();
        let port = self.port(session.flow.server.port());
        self.sessions.with_label_values(&[role, &port, session.result.as_str()]).inc();
        if let Some(version) = session.tls_version {
            self.tls_sessions.with_label_values(&[role, version.as_str()]).inc();
        }
        if let Some(offered) = offered(session.starttls) {
            self.offers.with_label_values(&[role, offered]).inc();
        }
        if let Some((source, verdict)) = session.certificate {
            self.certificates.with_label_values(&[source.as_str(), verdict.as_str()]).inc();
        }
        for kind in &session.exempted {
            self.exceptions.with_label_values(&[kind.as_str()]).inc();
        }
    }

    /// Sets the numbers of local rules at `at`.
    pub fn rules(&self, rules: &[Rule], at: Timestamp) {
        for state in RuleState::ALL {
            let count = rules.iter().filter(|rule| rule.state(at) == state).count();
            self.rules.with_label_values(&[state.as_str()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts a dialogue that could not be followed to its end.
    pub fn lost(&self, cause: LossCause) {
        self.gaps.with_label_values(&[cause.as_str()]).inc();
    }

    /// Counts a flow that was dropped from the table.
    pub fn evicted(&self, reason: EvictReason) {
        self.evicted.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts a row of history that was evicted.
    pub fn history_evicted(&self, row: &Forgotten) {
        if row.known {
            self.history_evicted.with_label_values(&[row.key.role.as_str()]).inc();
        }
    }

    /// Sets the sizes of the two tables.
    pub fn tables(&self, flows: usize, baseline_peers: usize) {
        self.flows.set(i64::try_from(flows).unwrap_or(i64::MAX));
        self.baseline_peers.set(i64::try_from(baseline_peers).unwrap_or(i64::MAX));
    }

    /// Adds the records written and lost since the last call.
    pub fn output(&self, output: Output, records: u64, failures: u64) {
        self.output_records.with_label_values(&[output.as_str()]).inc_by(records);
        self.output_failures.with_label_values(&[output.as_str()]).inc_by(failures);
    }

    /// Sets the condition and the recoveries of the store.
    pub fn store(&self, condition: Condition, recoveries: &Recoveries) {
        for state in Condition::ALL {
            self.store_state.with_label_values(&[state.as_str()]).set(i64::from(state == condition));
        }
        for (cause, total) in Condition::LOSSES.iter().zip(recoveries) {
            let counter = self.store_recoveries.with_label_values(&[cause.as_str()]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Sets what retention has removed since the start.
    pub fn retention(&self, removals: &Removals) {
        for (reason, total) in Reason::ALL.iter().zip(removals.reasons) {
            let counter = self.store_removed.with_label_values(&[reason.as_str()]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        for (severity, total) in PROTECTED_SEVERITIES.iter().zip(removals.evidence) {
            let counter = self.store_evidence_evicted.with_label_values(&[severity.as_str()]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Records a successful read of the configuration at `at`, the first one included.
    pub fn config_read(&self, at: Timestamp) {
        self.reload_successful.set(1);
        self.reloaded.set(seconds(at));
    }

    /// Counts a reload with an invalid configuration.
    pub fn config_failed(&self) {
        self.reload_successful.set(0);
    }

    /// Sets whether a hook of an interface has our program; `None`: the interface is not watched any more.
    pub fn attached(&self, interface: &str, direction: &str, hook: &str, attached: Option<bool>) {
        let labels = [interface, direction, hook];
        match attached {
            Some(attached) => self.attached.with_label_values(&labels).set(i64::from(attached)),
            // An error means that the series does not exist, which is the wanted state.
            None => _ = self.attached.remove_label_values(&labels),
        }
    }

    /// Counts a hook that another program has replaced.
    pub fn probe_lost(&self, direction: Direction, hook: Hook) {
        self.probe_lost.with_label_values(&[direction.as_str(), hook.as_str()]).inc();
    }

    /// Exports the time of the interface's newest packet as 0 when watching begins.
    pub fn watch_interface(&self, interface: &str) {
        let _ = self.last_packet.with_label_values(&[interface]);
    }

    /// Removes the series of an interface that is not watched any more.
    pub fn forget_interface(&self, interface: &str) {
        let _ = self.last_packet.remove_label_values(&[interface]);
    }

    /// Sets the time of the newest packet of a mail dialogue on this interface.
    pub fn last_packet(&self, interface: &str, at: Timestamp) {
        self.last_packet.with_label_values(&[interface]).set(seconds(at));
    }

    /// Sets the number of connections through interfaces that are not watched.
    pub fn unwatched_connections(&self, role: Role, connections: u64) {
        let connections = i64::try_from(connections).unwrap_or(i64::MAX);
        self.unwatched_connections.with_label_values(&[role.as_str()]).set(connections);
    }

    /// Counts route look-ups that were skipped.
    pub fn route_lookups_dropped(&self, reason: RouteLookupDrop, lookups: u64) {
        self.route_lookups_dropped.with_label_values(&[reason.as_str()]).inc_by(lookups);
    }

    /// Updates a counter of packets from its total since the kernel program was loaded.
    pub fn kernel_packets(&self, direction: &'static str, outcome: &'static str, total: u64) {
        self.kernel_packets
            .with_label_values(&[direction, outcome])
            .inc_by(self.kernel_delta((direction, outcome), total));
    }

    /// Updates a counter of drops from its total since the kernel program was loaded.
    pub fn kernel_dropped(&self, reason: &'static str, total: u64) {
        self.kernel_dropped.with_label_values(&[reason]).inc_by(self.kernel_delta(("dropped", reason), total));
    }

    /// Updates a counter of packets with mail in an encapsulation from its total since the kernel program was loaded.
    pub fn encapsulated(&self, encapsulation: Encapsulation, total: u64) {
        let label = encapsulation.as_str();
        self.encapsulated.with_label_values(&[label]).inc_by(self.kernel_delta(("encapsulated", label), total));
    }

    /// The registry in the text exposition format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        smtpwatch_metrics::render(&self.registry)
    }

    /// The registry, for tests that walk it.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    fn port(&self, port: u16) -> String {
        if self.ports.contains(&port) { port.to_string() } else { OTHER_PORT.to_owned() }
    }

    fn kernel_delta(&self, counter: (&'static str, &'static str), total: u64) -> u64 {
        // A poisoned lock still holds valid counters.
        let mut seen = self.kernel_seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = seen.insert(counter, total).unwrap_or(0);
        total.saturating_sub(before)
    }

    /// Exports every label set of every closed label as zero.
    fn zero(&self) {
        self.rules(&[], Timestamp::default());
        for kind in Kind::ALL {
            if Rule::suppressing(*kind).is_some() {
                let _ = self.exceptions.with_label_values(&[kind.as_str()]);
            }
            let _ = self.last_finding.with_label_values(&[kind.as_str()]);
            for severity in Severity::ALL {
                for role in Role::ALL {
                    let _ = self.findings.with_label_values(&[kind.as_str(), severity.as_str(), role.as_str()]);
                }
            }
        }
        let ports: Vec<_> = self.ports.iter().map(u16::to_string).chain([OTHER_PORT.to_owned()]).collect();
        for role in Role::ALL {
            for port in &ports {
                for result in SessionResult::ALL {
                    let _ = self.sessions.with_label_values(&[role.as_str(), port, result.as_str()]);
                }
            }
            for version in TlsVersion::ALL {
                let _ = self.tls_sessions.with_label_values(&[role.as_str(), version.as_str()]);
            }
            for offered in StarttlsState::ALL.iter().copied().filter_map(offered) {
                let _ = self.offers.with_label_values(&[role.as_str(), offered]);
            }
        }
        for role in Role::ALL {
            let _ = self.history_evicted.with_label_values(&[role.as_str()]);
        }
        for source in [Source::Dane, Source::MtaSts] {
            for verdict in Verdict::ALL {
                let _ = self.certificates.with_label_values(&[source.as_str(), verdict.as_str()]);
            }
        }
        for direction in Direction::ALL {
            for hook in Hook::of(direction) {
                let _ = self.probe_lost.with_label_values(&[direction.as_str(), hook.as_str()]);
            }
        }
        for counter in Counter::ALL {
            match counter.label() {
                Label::Packets { direction, outcome } => self.kernel_packets(direction.as_str(), outcome, 0),
                Label::Dropped { reason } => self.kernel_dropped(reason, 0),
                Label::Encapsulated(encapsulation) => self.encapsulated(encapsulation, 0),
            }
        }
        for role in Role::ALL {
            self.unwatched_connections(role, 0);
        }
        for reason in RouteLookupDrop::ALL {
            self.route_lookups_dropped(reason, 0);
        }
        for reason in EvictReason::ALL {
            let _ = self.evicted.with_label_values(&[reason.as_str()]);
        }
        for cause in LossCause::ALL {
            let _ = self.gaps.with_label_values(&[cause.as_str()]);
        }
        for output in Output::ALL {
            self.output(output, 0, 0);
        }
        self.store(Condition::Ok, &Recoveries::default());
        self.retention(&Removals::default());
    }
}

/// The `offered` label; `None` if no EHLO reply was seen.
const fn offered(state: StarttlsState) -> Option<&'static str> {
    match state {
        StarttlsState::Offered | StarttlsState::Refused => Some("yes"),
        StarttlsState::Absent => Some("no"),
        StarttlsState::Masked => Some("masked"),
        StarttlsState::Unknown => None,
    }
}

fn build_info() -> Result<Gauge, prometheus::Error> {
    let info = opts("build_info", "Always 1; the labels identify the build.")
        .const_label("version", version::VERSION)
        .const_label("revision", version::REVISION)
        .const_label("rustc", version::RUSTC);
    let info = Gauge::with_opts(info)?;
    info.set(1.0);
    Ok(info)
}
