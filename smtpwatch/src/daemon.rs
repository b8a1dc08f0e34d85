//! The daemon: starts and stops capture, pipeline, store and web server in order. [`run`] is the entry point of
//! `smtpwatch run`; the pipeline's thread owns a `CaptureThread`, and passes the engine's outputs to `Outputs`.
//!
//! Order of the start: store, listener, capture, pages. A failure before the capture leaves nothing attached, and the
//! capture attaches everything or nothing. Order of the stop: hooks are detached, open sessions are judged with what
//! was seen, then store and journal are written completely.

mod control;
mod exceptions;
mod reload;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    iter,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use smtpwatch_capture::{
    Capture, CaptureError, CaptureSettings, Drained, Hook, Survey,
    counters::{Counters, losses},
    interfaces::is_glob,
    listeners::{self, Unwatched},
};
use smtpwatch_common::{Direction, counters::Label};
use smtpwatch_config::{Config, DEFAULT_PATH, drop_in};
use smtpwatch_core::{
    Finding, Output, Role, Timestamp,
    engine::GateOrder,
    policy::{history::History, published::LookupResult},
};
use smtpwatch_pipeline::{Pipeline, RecordSource, incident::cgroup};
use smtpwatch_policy::{
    lookup::{Timeouts, Trust},
    service::{Service, Setup},
};
use smtpwatch_store::{
    Condition, HISTORY_BATCH, JournalLink, Store, StoreHandle, StoredAs, Writer, WriterSettings, make_directory,
};
use smtpwatch_system::clock::now;
use smtpwatch_tlsrpt::{outbound::host_name, report_sender::ReportSender};
use smtpwatch_web::{
    api,
    app_state::{AppState, EventBus},
    pages,
    server::{self, ConfigFile, Health},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    confine::{self, Privileges},
    output::{
        alertmanager::{self, AlertWorker},
        journal::Journal,
        metrics::{self, Metrics, RouteLookupDrop},
    },
    service_manager,
};

use reload::{Change, Reloader};

/// Maximum time that the pipeline waits for the ring buffer.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// Pause after records were read, so that the next read takes several at once. The kernel signals a record to a reader
/// that has read everything before it; the interrupt and the wake-up cost more than the record itself, and a reader
/// that keeps up with a stream of records would be signalled for each.
const GATHER: Duration = Duration::from_millis(1);
/// Interval of tasks that are not urgent: counters, requests, interfaces.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between scans for listening sockets: a scan walks every process.
const LISTENER_SCAN: Duration = Duration::from_secs(300);

/// Maximum number of policy look-up results that are processed between packets.
const MAX_RESULTS: usize = 64;
/// Maximum number of interfaces with metrics of their own: a glob over container interfaces may match any number.
const MAX_INTERFACES: usize = 64;

/// The inputs of the daemon.
pub struct Start {
    /// The configuration at the start.
    pub config: Config,
    /// The sources that a reload reads again.
    pub source: smtpwatch_config::ConfigSource,
    /// The listen address of pages and metrics.
    pub listen: SocketAddr,
    /// TLS and logins of the HTTP server.
    pub web: Option<ConfigFile>,
}

/// Runs until SIGTERM or SIGINT.
///
/// The capture thread is started first and alone keeps the capabilities that capturing needs; all other threads have
/// none from their start ([`confine`]).
///
/// # Errors
///
/// The failure, its cause and its remedy.
pub fn run(start: Start) -> anyhow::Result<()> {
    let Start { config, source, listen, web } = start;
    let files = files(&config, &source, web.as_ref())?;
    confine::no_core()?;
    let (thread, start) = idle_thread("pipeline")?;
    warn_unsupported(&confine::thread(&files)?);

    let metrics = Arc::new(Metrics::new(&config.ports)?);
    metrics.config_read(now());
    metrics.rules(&config.rules, now());
    exceptions::announce(&config, now());
    let journal = Journal::start(&config.journal, metrics.clone());
    let (journal, outcomes) = journal.with_context(|| match config.journal.file() {
        Some(path) => format!("cannot write the journal {}", path.display()),
        None => "cannot start the journal's thread".to_owned(),
    })?;
    let journal = Arc::new(journal);
    let events = EventBus::new();
    let (alert_sender, alert_worker) =
        alertmanager::start(&config.alertmanager, &config.cluster, &host_name())?.unzip();
    let (lines, event_bus, counts) = (journal.clone(), events.clone(), metrics.clone());
    // A finding in the journal is also in the store, unless the log says that the store cannot be written.
    let write = Box::new(move |finding: &Finding, again: bool| lines.write(Box::new(finding.clone()), again));
    let on_record = Box::new(move |finding: &Finding, stored: &StoredAs| {
        event_bus.publish(finding, stored);
        if let Some(alert_sender) = &alert_sender {
            alert_sender.send(finding, stored, &counts);
        }
    });
    let settings =
        WriterSettings { journal: Some(JournalLink { write, outcomes }), on_record, ..WriterSettings::of(&config) };
    let (writer, entries) = Writer::start(&config.store, settings)?;
    let mut history = History::new(config.limits.peers);
    tracing::info!(path = %config.store.display(), rows = entries.len(), "history read");
    // The store has returned only the rows that fit.
    entries.into_iter().for_each(|(key, record)| _ = history.restore(key, record));
    let policies = policies(&config, &metrics, &writer)?;

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let _guard = runtime.enter();
    let listener = std::net::TcpListener::bind(listen)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .and_then(tokio::net::TcpListener::from_std)
        .with_context(|| {
            format!(
                "cannot listen on {listen}; is smtpwatch running already? --web.listen-address sets another address"
            )
        })?;
    // From this point on, a signal ends the daemon in order.
    let mut signals = Signals::new()?;

    let health = Arc::new(Health::default());
    let app = Arc::new(AppState::new(config.store.clone(), metrics.web.clone(), health.clone(), events));
    let sender = match writer.handle() {
        // A handle that waits: a sent report must be recorded, and nothing waits for the sender's thread.
        Some(store) => ReportSender::start(&config, store.blocking(), now)?,
        None => None,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, pipeline_ended) = tokio::sync::oneshot::channel::<()>();
    let (policies, known) = Service::start(policies).context("cannot start the policy look-up thread")?;
    let (changes, changed) = mpsc::channel();
    let reloader = Arc::new(Reloader {
        source,
        current: tokio::sync::Mutex::new(config.clone()),
        pipeline: changes,
        metrics: metrics.clone(),
    });
    let (attached, attaching) = tokio::sync::oneshot::channel();
    let reopen = journal.clone();
    let work = {
        let (metrics, health, stop, store) = (metrics.clone(), health.clone(), stop.clone(), writer.handle());
        move || {
            // Dropped when the thread ends, also by a panic: the main thread must not continue without a pipeline.
            let _ended = ended;
            let capture = match Capture::start(&CaptureSettings::from(&config)) {
                Ok(capture) => capture,
                Err(error) => {
                    _ = attached.send(Err(error));
                    return Ok(());
                }
            };
            let kernel = capture.counters();
            let mut capture_thread = CaptureThread {
                named: named(&config),
                interfaces: BTreeMap::new(),
                ports: config.ports.clone(),
                privileges: capture_privileges(&config, &capture, files),
                pipeline: Pipeline::new(config, history, RecordSource::Live),
                outputs: Outputs { metrics, kernel, journal, store, policies, orders: Vec::new() },
                capture,
                changed,
                sender,
                writer,
                history_position: None,
                health,
                stop,
                store_counts: (0, 0),
                report_counts: (0, 0),
                reported_servers: Vec::new(),
            };
            tracing::info!(subjects = known.len(), "published policies read");
            known.into_iter().for_each(|result| capture_thread.learn(result));
            capture_thread.drop_privileges()?;
            _ = attached.send(Ok(()));
            capture_thread.run()
        }
    };
    start.send(Box::new(work)).ok().context("the pipeline's thread has ended")?;
    let stopped_by = runtime.block_on(async {
        match attaching.await {
            Ok(outcome) => outcome?,
            // The thread returns its own error.
            Err(_) => return Ok("a failure"),
        }
        tracing::info!(address = %listen, "serving /metrics");
        service_manager::ready();
        let guarded = pages::router(app.clone()).merge(api::router(app)).merge(control::router(reloader.clone()));
        tokio::select! {
            signal = signals.run(&reloader, &reopen) => Ok(signal),
            never = alerts(alert_worker, &metrics) => match never {},
            never = watchdog(&health) => match never {},
            never = exceptions::watch(&reloader, &metrics) => match never {},
            _ = pipeline_ended => Err(anyhow::anyhow!("the pipeline has ended")),
            served = server::serve(listener, metrics.web.clone(), health.clone(), guarded, web, std::future::pending()) => {
                served.context("cannot continue to serve the pages").and_then(|()| anyhow::bail!("the pages have ended"))
            }
        }
    });
    if let Ok(name) = &stopped_by {
        tracing::info!(signal = name, "stopping");
    }
    service_manager::stopping();
    health.stopping();
    stop.store(true, Ordering::Relaxed);
    match thread.join() {
        Ok(result) => result.and(stopped_by.map(drop)),
        Err(_) => anyhow::bail!("the pipeline panicked; please report it with the lines above"),
    }
}

/// The work of a thread that is started before the work is known.
type Work = Box<dyn FnOnce() -> anyhow::Result<()> + Send>;

/// Starts a thread that waits for its work.
fn idle_thread(name: &str) -> anyhow::Result<(JoinHandle<anyhow::Result<()>>, mpsc::Sender<Work>)> {
    let (start, beginning) = mpsc::channel::<Work>();
    let thread = std::thread::Builder::new().name(name.to_owned());
    // Without work the start has failed, and its own error is reported.
    let thread = thread.spawn(move || beginning.recv().map_or(Ok(()), |work| work()));
    Ok((thread.with_context(|| format!("cannot start the thread {name}"))?, start))
}

/// The files that all threads may read and write; no other files are accessible.
fn files(
    config: &Config,
    source: &smtpwatch_config::ConfigSource,
    web: Option<&ConfigFile>,
) -> anyhow::Result<Privileges> {
    let named = [&*config.policy.trust_anchor, &*config.policy.ca_file, &*config.policy.starttls_everywhere];
    // These settings may also be keywords or URLs.
    let named = named.into_iter().map(Path::new).filter(|path| path.exists());
    let read = source.path.iter().map(PathBuf::as_path).chain(named);
    let main = source.path.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    // Both as configured and as its links lead: a volume of Kubernetes replaces the directory that a link leads to.
    let beside = main.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let drop_ins = drop_in::directory(main);
    let drop_ins = [drop_ins.canonicalize().unwrap_or(drop_ins), beside.to_owned()];
    let files = read.map(Path::to_owned).chain(web.into_iter().flat_map(ConfigFile::files));
    let drop_ins = drop_ins.into_iter().filter(|path| path.exists());
    let readable = files.map(|path| directory(&path)).chain(drop_ins).chain(cgroup::mount_point()).collect();
    // Landlock rules need existing directories.
    let state = config.store.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut writable: Vec<_> =
        iter::once(state).chain(config.tlsrpt.directory.as_deref()).map(Path::to_owned).collect();
    for directory in &writable {
        make_directory(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    // The path as configured: a symbolic link that replaces it later does not widen the writable area.
    let journal = config.journal.file();
    writable.extend(journal.as_deref().and_then(Path::parent).map(|parent| match parent.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => parent.to_owned(),
    }));
    Ok(Privileges { readable, writable, ..Privileges::default() })
}

/// The directory of a file: the file itself may be replaced.
fn directory(file: &Path) -> PathBuf {
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The privileges of the capture thread: for attaching to interfaces that appear later, and for detaching filters,
/// which have no link.
fn capture_privileges(config: &Config, capture: &Capture, files: Privileges) -> Privileges {
    let filters = capture.attachments().any(|attachment| attachment.hook == Some(Hook::Clsact));
    let capabilities: &[_] = if config.hot_plug || filters {
        &smtpwatch_capture::capabilities::HOT_PLUG
    } else if confine::without_capabilities(|| capture.counters().read().is_ok()) {
        &[]
    } else {
        // Before Linux 5.19 (commit c8644cd0efe7) `kernel.unprivileged_bpf_disabled` also blocks access to open maps.
        &smtpwatch_capture::capabilities::MAPS
    };
    Privileges { capabilities, bpf: true, ..files }
}

/// Logs restrictions that the kernel does not support.
fn warn_unsupported(unsupported: &confine::Unsupported) {
    for what in unsupported {
        tracing::warn!("{what}");
    }
}

/// Interfaces that are configured by name and not by a glob.
fn named(config: &Config) -> Vec<String> {
    config.interfaces.iter().filter(|name| !is_glob(name)).cloned().collect()
}

/// The signals that the daemon handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    rotated: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let wait = |kind, name| signal(kind).with_context(|| format!("cannot wait for {name}"));
        Ok(Self {
            terminate: wait(SignalKind::terminate(), "SIGTERM")?,
            interrupt: wait(SignalKind::interrupt(), "SIGINT")?,
            hangup: wait(SignalKind::hangup(), "SIGHUP")?,
            rotated: wait(SignalKind::user_defined1(), "SIGUSR1")?,
        })
    }

    /// Reloads the configuration at SIGHUP and reopens the journal at SIGUSR1, until another signal ends the daemon;
    /// returns its name.
    async fn run(&mut self, reloader: &Reloader, journal: &Journal) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => {
                    // The result is in the log and in the metrics.
                    _ = reloader.reload().await;
                }
                _ = self.rotated.recv() => journal.reopen(),
            }
        }
    }
}

/// Sends alerts, if an Alertmanager is configured.
async fn alerts(alert_worker: Option<AlertWorker>, metrics: &Metrics) -> Infallible {
    if let Some(alert_worker) = alert_worker {
        alert_worker.run(metrics, now).await;
    }
    std::future::pending().await
}

/// Notifies the watchdog of the service manager while the daemon is healthy, if the manager requests it.
async fn watchdog(health: &Health) -> Infallible {
    let Some(period) = service_manager::watchdog() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(period);
    loop {
        ticks.tick().await;
        if health.unhealthy().is_empty() {
            service_manager::alive();
        }
    }
}

/// The settings of policy look-ups. Their files are read here, so that an invalid one fails the start.
fn policies(config: &Config, metrics: &Arc<Metrics>, writer: &Writer) -> anyhow::Result<Setup> {
    let trust = Trust::load(&config.policy)?;
    let mut store = Store::open_existing(&config.store)?;
    let list = store.policy_list(&config.policy.starttls_everywhere)?;
    let handle = writer.handle();
    let store_policy = move |known| {
        if let Some(handle) = &handle {
            handle.policy(known);
        }
    };
    Ok(Setup {
        settings: config.policy.clone(),
        trust,
        timeouts: Timeouts::default(),
        kept: store.policies()?,
        list,
        metrics: metrics.policy.clone(),
        store: Box::new(store_policy),
    })
}

/// The state of the pipeline's thread.
struct CaptureThread {
    pipeline: Pipeline,
    outputs: Outputs,
    capture: Capture,
    /// Configurations to apply.
    changed: mpsc::Receiver<Change>,
    /// Privileges that this thread keeps.
    privileges: Privileges,
    sender: Option<ReportSender>,
    writer: Writer,
    /// Position from which history must be written to the store again; `None`: the store has all of it.
    history_position: Option<usize>,
    health: Arc<Health>,
    stop: Arc<AtomicBool>,
    /// Interfaces that the configuration names.
    named: Vec<String>,
    /// Interfaces with metrics of their own, each with the time of its newest record since the last housekeeping.
    interfaces: BTreeMap<String, Option<Timestamp>>,
    /// The writer's counts at the last housekeeping.
    store_counts: (u64, u64),
    /// The report sender's counts at the last housekeeping.
    report_counts: (u64, u64),
    /// Watched ports.
    ports: Vec<u16>,
    /// Mail servers whose unwatched ports the log has reported.
    reported_servers: Vec<Unwatched>,
}

impl CaptureThread {
    /// Does the work that needs privileges, then drops them.
    fn drop_privileges(&mut self) -> anyhow::Result<()> {
        self.survey();
        self.attachments();
        self.listeners();
        warn_unsupported(&confine::thread(&self.privileges)?);
        Ok(())
    }

    fn run(mut self) -> anyhow::Result<()> {
        let (mut housekeeping, mut listeners) = (Instant::now(), Instant::now());
        while !self.stop.load(Ordering::Relaxed) {
            let gather = if self.restore() { GATHER } else { MAX_WAIT };
            match self.records()? {
                Drained::Nothing => self.capture.wait(gather)?,
                Drained::Everything => std::thread::sleep(GATHER),
                Drained::Part => {}
            }
            for _ in 0..MAX_RESULTS {
                let Some(result) = self.outputs.policies.next_result() else { break };
                self.learn(result);
            }
            self.pipeline.tick(self.capture.now()?, &mut |output| self.outputs.dispatch(output));
            for order in self.outputs.orders.drain(..) {
                self.capture.order(&order)?;
            }
            if let Ok(Change { config, done }) = self.changed.try_recv() {
                // An error means that the client has disconnected; the configuration is in force.
                _ = done.send(self.reconfigure(config));
            }
            self.health.heartbeat();
            if housekeeping.elapsed() >= HOUSEKEEPING_INTERVAL {
                housekeeping = Instant::now();
                self.housekeeping()?;
            }
            if listeners.elapsed() >= LISTENER_SCAN {
                listeners = Instant::now();
                self.listeners();
            }
        }
        // Records in the ring buffer are still judged; then the hooks are detached.
        self.records()?;
        self.housekeeping()?;
        let Self { mut pipeline, mut outputs, capture, sender, writer, .. } = self;
        let end = capture.now()?;
        drop(capture);
        tracing::info!("detached");
        drop(sender);
        pipeline.finish(end, &mut |output| outputs.dispatch(output));
        drop(outputs);
        let lost = writer.finish();
        if lost > 0 {
            tracing::warn!(rows = lost, "rows of the store could not be written");
        }
        Ok(())
    }

    /// Passes the next piece of history to a store that lacks it. False: there is none left.
    fn restore(&mut self) -> bool {
        let (Some(from), Some(store)) = (self.history_position, &self.outputs.store) else { return false };
        if !store.takes_history() {
            return true;
        }
        let history = self.pipeline.engine().history();
        let (rows, next) = history.piece(from, HISTORY_BATCH);
        if !rows.is_empty() && !store.restore(rows) {
            return true;
        }
        self.history_position = next;
        if next.is_none() {
            tracing::info!(rows = history.len(), "the history in memory was passed to the store");
        }
        true
    }

    /// Applies a configuration. If it names an interface that does not exist, the previous one stays in force.
    fn reconfigure(&mut self, config: Config) -> Result<(), CaptureError> {
        let changed = self.capture.rewatch(&config.interfaces)?;
        self.named = named(&config);
        self.pipeline.reconfigure(config);
        if changed {
            self.attachments();
        }
        Ok(())
    }

    fn learn(&mut self, result: LookupResult) {
        self.pipeline.apply(result, &mut |output| self.outputs.dispatch(output));
    }

    fn records(&mut self) -> anyhow::Result<Drained> {
        let Self { pipeline, outputs, capture, interfaces, .. } = self;
        capture
            .drain(|record, at, interface| {
                if let Some(newest) = interfaces.get_mut(interface) {
                    *newest = Some(at);
                }
                pipeline.record(&record, at, interface, &mut |output| outputs.dispatch(output));
                std::mem::take(&mut outputs.orders)
            })
            .map_err(Into::into)
    }

    /// Publishes attached and missing hooks in metrics and readiness. The capture has logged them.
    fn attachments(&mut self) {
        let metrics = &self.outputs.metrics;
        let mut status = server::CaptureStatus::default();
        // A named interface that disappears counts as missing; one of a glob or of a default route does not.
        let mut interfaces: BTreeSet<String> = self.named.iter().cloned().collect();
        interfaces.extend(self.capture.attachments().map(|attachment| attachment.interface.clone()));
        if interfaces.len() > MAX_INTERFACES {
            tracing::warn!(
                interfaces = interfaces.len(),
                "only the first {MAX_INTERFACES} interfaces have their own metrics"
            );
            interfaces = interfaces.into_iter().take(MAX_INTERFACES).collect();
        }
        for removed in self.interfaces.keys().filter(|held| !interfaces.contains(*held)) {
            metrics.forget_interface(removed);
            for direction in Direction::ALL {
                for hook in Hook::of(direction) {
                    metrics.attached(removed, direction.as_str(), hook.as_str(), None);
                }
            }
        }
        for interface in &interfaces {
            metrics.watch_interface(interface);
            for direction in Direction::ALL {
                let mut attachments = self.capture.attachments();
                let attachment =
                    attachments.find(|found| found.interface == *interface && found.direction == direction);
                let taken = attachment.and_then(|attachment| attachment.hook);
                for hook in Hook::of(direction) {
                    metrics.attached(interface, direction.as_str(), hook.as_str(), Some(taken == Some(*hook)));
                }
                match (attachment, taken) {
                    (_, Some(hook)) => {
                        status.attached.push(format!("{interface} {}: {}", direction.as_str(), hook.as_str()));
                    }
                    (Some(attachment), None) => {
                        let line =
                            format!("{interface} {}: no hook could be attached; see the log", direction.as_str());
                        if attachment.lost {
                            status.lost.push(line.clone());
                        }
                        status.missing.push(line);
                    }
                    (None, None) => status.missing.push(format!("{interface} {}: it is not there", direction.as_str())),
                }
            }
        }
        self.interfaces.retain(|held, _| interfaces.contains(held));
        for interface in interfaces {
            self.interfaces.entry(interface).or_default();
        }
        service_manager::status(&status.to_string());
        self.health.set(status);
    }

    /// Looks up the routes of connections, if it is time. Returns whether the attachments have changed.
    fn survey(&mut self) -> bool {
        let Some(survey) = self.capture.survey() else { return false };
        let Survey { attached, clients, servers, dropped, routes_cut, failed } = survey;
        let metrics = &self.outputs.metrics;
        // After a failure the previous values stay: unknown is not zero.
        if !failed {
            metrics.unwatched_connections(Role::Client, clients);
            metrics.unwatched_connections(Role::Server, servers);
        }
        metrics.route_lookups_dropped(RouteLookupDrop::Connections, dropped);
        metrics.route_lookups_dropped(RouteLookupDrop::Routes, u64::from(routes_cut));
        metrics.route_lookups_dropped(RouteLookupDrop::Failed, u64::from(failed));
        attached
    }

    /// Warns once about each mail server that listens on an unwatched port (docs/threats.md EV-25).
    fn listeners(&mut self) {
        let found = listeners::unwatched(&self.ports);
        for program in found.iter().filter(|program| !self.reported_servers.contains(program)) {
            tracing::warn!("{}: {}", program.describe(), listeners::REMEDY);
        }
        self.reported_servers = found;
    }

    fn housekeeping(&mut self) -> anyhow::Result<()> {
        let refreshed = self.capture.refresh()?;
        if self.survey() || refreshed {
            self.attachments();
        }
        for (direction, hook) in self.capture.take_lost() {
            self.outputs.metrics.probe_lost(direction, hook);
        }
        for (interface, newest) in &mut self.interfaces {
            if let Some(at) = newest.take() {
                self.outputs.metrics.last_packet(interface, at);
            }
        }
        for (counter, total) in self.outputs.kernel.read()? {
            match counter.label() {
                Label::Packets { direction, outcome } => {
                    self.outputs.metrics.kernel_packets(direction.as_str(), outcome, total);
                }
                Label::Dropped { reason } => self.outputs.metrics.kernel_dropped(reason, total),
                Label::Encapsulated(encapsulation) => self.outputs.metrics.encapsulated(encapsulation, total),
            }
        }
        self.health.set_encapsulated(self.capture.encapsulated()?);
        while let Some(request) = self.writer.request() {
            let removed =
                self.pipeline.history_mut().forget(|key| smtpwatch_core::policy::history::is_peer(key, &request.peer));
            tracing::info!(rows = removed.len(), "the history of a peer was deleted on request");
            if let Some(store) = &self.outputs.store {
                store.done(request);
            }
        }
        if self.writer.history_wanted() {
            self.history_position = Some(0);
            self.outputs.policies.store_again();
        }
        let status = self.writer.status();
        self.outputs.metrics.store(status.condition, &status.recoveries);
        self.outputs.metrics.retention(&status.removals);
        self.health.set_store(server::StoreHealth {
            trouble: (status.condition != Condition::Ok)
                .then(|| format!("{}: {}", status.condition.as_str(), status.cause)),
            recovered: Some(status.recovered).filter(|text| !text.is_empty()),
        });
        let engine = self.pipeline.engine();
        self.outputs.metrics.tables(engine.flows(), engine.history().len());
        let (records, failures) = self.writer.counts();
        let (records_before, failures_before) = std::mem::replace(&mut self.store_counts, (records, failures));
        self.outputs.metrics.output(metrics::Output::Store, records - records_before, failures - failures_before);
        let (records, failures) = self.sender.as_ref().map_or((0, 0), ReportSender::counts);
        let (records_before, failures_before) = std::mem::replace(&mut self.report_counts, (records, failures));
        self.outputs.metrics.output(metrics::Output::Tlsrpt, records - records_before, failures - failures_before);
        Ok(())
    }
}

/// The receivers of the engine's outputs.
struct Outputs {
    metrics: Arc<Metrics>,
    kernel: Arc<Counters>,
    /// For findings that the store refuses.
    journal: Arc<Journal>,
    store: Option<StoreHandle>,
    policies: Service,
    orders: Vec<GateOrder>,
}

impl Outputs {
    fn dispatch(&mut self, output: Output) {
        match output {
            Output::Finding(mut finding) => {
                if let Some(exhibit) = &mut finding.exhibit {
                    // If the kernel's counters cannot be read, the next housekeeping ends the daemon; the finding is
                    // published before.
                    exhibit.losses = self.kernel.read().map(|counted| losses(&counted)).unwrap_or_default();
                }
                self.metrics.finding(&finding);
                self.metrics.verdict(now().since(finding.time));
                let refused = match &self.store {
                    Some(store) => store.finding(finding).err(),
                    None => Some(finding),
                };
                if let Some(finding) = refused {
                    self.journal.write(finding, false);
                }
            }
            Output::Session(session) => {
                self.metrics.session(&session);
                if let Some(store) = &self.store {
                    store.offer(session, now());
                }
            }
            Output::Gate(order) => self.orders.push(order),
            Output::Lost(cause) => self.metrics.lost(cause),
            Output::Evicted(reason) => self.metrics.evicted(reason),
            Output::History(key, record) => {
                if let Some(store) = &self.store {
                    store.keep(key, record);
                }
            }
            Output::HistoryForgotten(row) => {
                self.metrics.history_evicted(&row);
                if let Some(store) = &self.store {
                    store.forget(row.key);
                }
            }
            Output::Delivery(delivery) => {
                if let Some(store) = &self.store {
                    store.delivery(delivery);
                }
            }
            Output::LookupRequest(request) => self.policies.request(request),
        }
    }
}
