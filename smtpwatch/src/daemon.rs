//! The daemon: capture, pipeline, store and pages, started and stopped in order.
//!
//! Start: store, listener, capture, pages; what fails before the capture leaves nothing attached, and the capture attaches
//! all or nothing. Stop: the hooks are let go, open sessions are judged as they stand, and the store and the journal are
//! written to their end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use smtpwatch_common::{Counter, counters::Label};
use smtpwatch_core::{Output, Timestamp, engine::GateOrder, limits, policy::history::History};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    capture::{Capture, CaptureSettings},
    config::Config,
    output::{
        http::{self, Health},
        journal::Journal,
        metrics::{self, Metrics},
    },
    pipeline::{Pipeline, Source},
    store::{self, StoreHandle, Writer},
};

/// The pipeline looks up from the ring this often, also when nothing comes.
const WAIT: Duration = Duration::from_millis(100);
/// What is not urgent is done this often: counters, requests, interfaces.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
///
/// What failed, why, and what to do.
pub fn run(config: Config, listen: SocketAddr) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new(&config.ports)?);
    let (writer, entries) = Writer::start(&config.store)?;
    let mut history = History::new(limits::HISTORY_PEERS);
    tracing::info!(path = %config.store.display(), rows = entries.len(), "history read");
    entries.into_iter().for_each(|(key, record)| history.restore(key, record));

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let _guard = runtime.enter();
    let listener = std::net::TcpListener::bind(listen)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .and_then(tokio::net::TcpListener::from_std)
        .with_context(|| {
            format!("cannot listen on {listen}; is smtpwatch running already? --web.listen-address names another")
        })?;
    // From here on a signal ends the daemon in order.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;

    let health = Arc::new(Health::default());
    let journal = Journal::start(std::io::stdout(), metrics.clone()).context("cannot start the journal's thread")?;
    let capture = Capture::start(&CaptureSettings::from(&config))?;
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, pipeline_ended) = tokio::sync::oneshot::channel::<()>();
    let watch = Watch {
        pipeline: Pipeline::new(config, history, Source::Live),
        outputs: Outputs { metrics: metrics.clone(), journal, store: writer.handle(), orders: Vec::new() },
        capture,
        writer,
        health: health.clone(),
        stop: stop.clone(),
        written: (0, 0),
    };
    let thread = std::thread::Builder::new().name("pipeline".to_owned()).spawn(move || {
        // Dropped at the end, also by a panic: the main thread must not go on without a pipeline.
        let _ended = ended;
        watch.run()
    });
    let thread = thread.context("cannot start the pipeline's thread")?;
    tracing::info!(address = %listen, "serving /metrics");
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            _ = pipeline_ended => tracing::error!("the pipeline has ended: stopping"),
            served = http::serve(listener, metrics, health.clone(), std::future::pending()) => {
                tracing::error!(error = ?served.err(), "the pages have ended: stopping");
            }
        }
    });
    health.stopping();
    stop.store(true, Ordering::Relaxed);
    match thread.join() {
        Ok(result) => result,
        Err(_) => anyhow::bail!("the pipeline panicked; please report it with the lines above"),
    }
}

/// What the pipeline's thread owns.
struct Watch {
    pipeline: Pipeline,
    outputs: Outputs,
    capture: Capture,
    writer: Writer,
    health: Arc<Health>,
    stop: Arc<AtomicBool>,
    /// What was seen of the writer's counts.
    written: (u64, u64),
}

impl Watch {
    fn run(mut self) -> anyhow::Result<()> {
        self.attachments();
        let mut housekeeping = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            self.capture.wait(WAIT)?;
            self.records()?;
            self.pipeline.tick(now(), &mut |output| self.outputs.take(output));
            for order in self.outputs.orders.drain(..) {
                self.capture.order(&order)?;
            }
            self.health.beat();
            if housekeeping.elapsed() >= HOUSEKEEPING {
                housekeeping = Instant::now();
                self.housekeeping()?;
            }
        }
        // What the kernel has already handed over is judged too; after that nothing is ours on any interface.
        self.records()?;
        self.housekeeping()?;
        let Self { mut pipeline, mut outputs, capture, writer, .. } = self;
        drop(capture);
        tracing::info!("detached");
        pipeline.finish(now(), &mut |output| outputs.take(output));
        drop(outputs);
        let lost = writer.finish();
        if lost > 0 {
            tracing::warn!(rows = lost, "rows of history could not be written");
        }
        Ok(())
    }

    fn records(&mut self) -> anyhow::Result<()> {
        let Self { pipeline, outputs, capture, .. } = self;
        capture.drain(|record, at, interface| {
            outputs.metrics.last_packet(interface, at);
            pipeline.record(&record, at, interface, &mut |output| outputs.take(output));
        })?;
        Ok(())
    }

    /// Tells what is attached: log, metrics, readiness.
    fn attachments(&mut self) {}

    fn housekeeping(&mut self) -> anyhow::Result<()> {
        if self.capture.refresh()? {
            self.attachments();
        }
        for (counter, total) in self.capture.counters()? {
            match counter.label() {
                Label::Packets { direction, outcome } => {
                    self.outputs.metrics.kernel_packets(direction.as_str(), outcome, total);
                }
                Label::Dropped { reason } => self.outputs.metrics.kernel_dropped(reason, total),
            }
        }
        while let Some(request) = self.writer.request() {
            let gone = self.pipeline.history_mut().forget(|key| store::is_peer(key, &request.peer));
            tracing::info!(rows = gone.len(), "a peer was forgotten on request");
            if let Some(store) = &self.outputs.store {
                store.done(request);
            }
        }
        let engine = self.pipeline.engine();
        self.outputs.metrics.tables(engine.flows(), engine.history().len());
        let (records, failures) = self.writer.counts();
        let (records_before, failures_before) = std::mem::replace(&mut self.written, (records, failures));
        self.outputs.metrics.output(metrics::Output::Store, records - records_before, failures - failures_before);
        Ok(())
    }
}

/// The hooks that exist at each direction, for the label sets of `smtpwatch_probe_attached`.
const HOOKS: [(&str, &[&str]); 2] =
    [("ingress", &["xdp", "xdp-generic", "tcx", "clsact"]), ("egress", &["tcx", "clsact"])];

/// Where the engine's outputs go.
struct Outputs {
    metrics: Arc<Metrics>,
    journal: Journal,
    store: Option<StoreHandle>,
    orders: Vec<GateOrder>,
}

impl Outputs {
    fn take(&mut self, output: Output) {
        match output {
            Output::Finding(finding) => {
                self.metrics.finding(&finding);
                self.metrics.verdict(now().since(finding.time));
                self.journal.write(finding);
            }
            Output::Session(session) => self.metrics.session(&session),
            Output::Gate(order) => self.orders.push(order),
            Output::Gap(cause) => self.metrics.gap(cause),
            Output::Evicted(reason) => self.metrics.evicted(reason),
            Output::History(key, record) => {
                if let Some(store) = &self.store {
                    store.keep(key, record);
                }
            }
            Output::HistoryForgotten(key) => {
                if let Some(store) = &self.store {
                    store.forget(key);
                }
            }
        }
    }
}

/// The wall clock.
fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}
