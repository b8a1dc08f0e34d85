//! The state that pages and API share. [`AppState`] gives them readers of the store, the totals of the metrics, the health
//! of the daemon, and live events ([`EventBus`]). The daemon creates one and passes it to the routers.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use schemars::JsonSchema;
use serde::Serialize;
use smtpwatch_core::{
    Finding, Timestamp,
    finding::{Kind, Severity},
};
use smtpwatch_store::{
    Store, StoreError, StoredAs,
    incidents::{LookupError, StoreCounts},
};
use smtpwatch_system::clock::now;
use tokio::sync::{Semaphore, broadcast};

use super::{metrics::WebMetrics, server::Health};

/// Maximum number of concurrent queries to the store; further queries wait.
const MAX_READERS: usize = 4;
/// Number of events by which a slow listener may lag. Beyond it the listener gets the event `lagged` and must reload
/// everything.
const MAX_LAG: usize = 256;

/// The shared state; one instance per daemon.
pub struct AppState {
    path: PathBuf,
    readers: Mutex<Vec<Store>>,
    permits: Arc<Semaphore>,
    metrics: Arc<WebMetrics>,
    health: Arc<Health>,
    events: EventBus,
    started: Timestamp,
    /// Why this process never captures packets; `None` in the daemon.
    no_capture: Option<&'static str>,
}

/// Broadcasts findings to all listeners.
#[derive(Clone)]
pub struct EventBus(broadcast::Sender<FindingEvent>);

/// The event for a finding that was stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct FindingEvent {
    /// Identifier of the finding.
    pub finding: String,
    /// Identifier of its incident.
    pub incident: String,
    /// Number of findings of that incident, including this one.
    pub findings: u64,
    /// Kind of the finding.
    pub kind: Kind,
    /// Severity of the finding.
    pub severity: Severity,
    /// Time of the finding.
    pub time: Timestamp,
}

/// State of the daemon and of its capture.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
pub struct Status {
    /// Version of smtpwatch.
    pub version: &'static str,
    /// When the daemon was started.
    pub started: Timestamp,
    /// Time of this response.
    pub time: Timestamp,
    /// Why the daemon captures nothing, one reason per line; empty if it captures.
    pub not_watching: Vec<String>,
    /// One line for each hook that smtpwatch is attached to.
    pub attached: Vec<String>,
    /// One line for each configured hook or interface that is missing.
    pub missing: Vec<String>,
    /// One line for each problem while the daemon captures: what fails, or what was lost.
    pub degraded: Vec<String>,
    /// Sessions since the start, by result.
    pub sessions: BTreeMap<String, u64>,
    /// Findings since the start, by severity.
    pub findings: BTreeMap<String, u64>,
    /// Number of connections that are followed.
    pub flows: u64,
    /// Number of rows of the history.
    pub peers: u64,
    /// Number of losses since the start, by reason; reasons without a loss are left out.
    pub losses: BTreeMap<String, u64>,
    /// Contents of the store; `None` if it cannot be read.
    pub store: Option<StoreCounts>,
}

impl EventBus {
    /// A channel without listeners.
    #[must_use]
    pub fn new() -> Self {
        Self(broadcast::channel(MAX_LAG).0)
    }

    /// Publishes a finding that was stored.
    pub fn publish(&self, finding: &Finding, stored: &StoredAs) {
        let event = FindingEvent {
            finding: finding.id.clone(),
            incident: stored.incident.clone(),
            findings: stored.findings,
            kind: finding.kind,
            severity: finding.severity,
            time: finding.time,
        };
        // An error means that there are no listeners.
        let _ = self.0.send(event);
    }

    /// Subscribes to the findings stored from this time on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<FindingEvent> {
        self.0.subscribe()
    }
}

impl Default for EventBus {
    fn default() -> Self {
        Self::new()
    }
}

impl AppState {
    /// For the store at this path, which must exist.
    #[must_use]
    pub fn new(path: PathBuf, metrics: Arc<WebMetrics>, health: Arc<Health>, events: EventBus) -> Self {
        let (readers, permits) = (Mutex::new(Vec::new()), Arc::new(Semaphore::new(MAX_READERS)));
        Self { path, readers, permits, metrics, health, events, started: now(), no_capture: None }
    }

    /// For a store that is read without a running capture; the pages show the reason.
    #[must_use]
    pub fn without_capture(self, why: &'static str) -> Self {
        Self { no_capture: Some(why), ..self }
    }

    /// Why this process never captures packets; `None` in the daemon.
    #[must_use]
    pub const fn no_capture(&self) -> Option<&'static str> {
        self.no_capture
    }

    /// The channel of live events.
    #[must_use]
    pub const fn events(&self) -> &EventBus {
        &self.events
    }

    /// Runs a query on the store, on a blocking thread.
    ///
    /// # Errors
    ///
    /// The store cannot be opened, or the query fails.
    pub async fn with_store<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&mut Store) -> Result<T, LookupError> + Send + 'static,
    ) -> Result<T, LookupError> {
        // The semaphore is never closed.
        let permit = self.permits.clone().acquire_owned().await;
        let app = self.clone();
        let answer = tokio::task::spawn_blocking(move || {
            // Held until the query ends, even if the client has disconnected: the bound is on running queries.
            let _permit = permit;
            let reader = lock(&app.readers).pop();
            // The writer may have recreated the store.
            let mut reader = match reader.filter(Store::is_current) {
                Some(reader) => reader,
                None => Store::open_existing(&app.path)?,
            };
            let answer = query(&mut reader);
            if !matches!(answer, Err(LookupError::Store(_))) {
                lock(&app.readers).push(reader);
            }
            answer
        });
        answer.await.unwrap_or_else(|_| Err(StoreError::Missing(self.path.clone()).into()))
    }

    /// The current state of the daemon.
    pub async fn status(self: &Arc<Self>) -> Status {
        let store = self.with_store(|store| Ok(store.counts()?)).await.ok();
        let capture = self.health.capture_status();
        let sums = |name: &str, label: &str| self.metrics.sums(name, label);
        let mut losses = BTreeMap::new();
        for (name, label, what) in [
            ("smtpwatch_kernel_dropped_total", "reason", "kernel"),
            ("smtpwatch_encapsulated_packets_total", "encapsulation", "encapsulated"),
            ("smtpwatch_reassembly_gaps_total", "cause", "gap"),
            ("smtpwatch_flows_evicted_total", "reason", "evicted"),
            ("smtpwatch_output_failures_total", "output", "output"),
        ] {
            let lost = sums(name, label).into_iter().filter(|(_, count)| *count > 0);
            losses.extend(lost.map(|(reason, count)| (format!("{what}: {reason}"), count)));
        }
        let gauge = |name: &str| sums(name, "").into_values().sum();
        Status {
            version: smtpwatch_core::VERSION,
            started: self.started,
            time: now(),
            not_watching: self.no_capture.map_or_else(|| self.health.not_watching(), |why| vec![why.to_owned()]),
            attached: capture.attached,
            missing: capture.missing,
            degraded: self.health.degraded(),
            sessions: sums("smtpwatch_sessions_total", "result"),
            findings: sums("smtpwatch_findings_total", "severity"),
            flows: gauge("smtpwatch_flows"),
            peers: gauge("smtpwatch_baseline_peers"),
            losses,
            store,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panicking thread leaves a valid value: readers are added and removed atomically.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
