//! The thread that writes and sends reports, outside the packet path ([`Sender`]). It reads the store through its own
//! connection and reports completed work to the writer. The daemon starts it.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use smtpwatch_config::{Config, TlsrptSettings};
use smtpwatch_core::{Timestamp, day::Day};
use smtpwatch_policy::{
    lookup::{Sources, Timeouts, Trust, TrustError},
    resolver::QueryResult,
};
use smtpwatch_store::{Store, StoreError, StoreHandle, deliveries::SentReport};
use tokio::{sync::watch, task::JoinSet};

use super::{
    file::Packed,
    mail::Letter,
    outbound::{Reporter, host_name},
    record::{self, RecordError, Target},
    schedule::{Next, Schedule, Step, Task, Wants},
};

/// Maximum number of concurrent tasks: a server that does not respond must not delay the others.
const AT_ONCE: usize = 8;
/// Interval between checks of the clock.
const TICK: Duration = Duration::from_secs(5);
/// The media type of RFC 8460 §5.4.
const MEDIA_TYPE: &str = "application/tlsrpt+gzip";

/// Why the thread cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ReportSenderError {
    /// A file of `[policy]` is invalid.
    #[error("TLS reports cannot be sent")]
    Trust(#[from] TrustError),
    /// The system refused the thread.
    #[error("cannot start the thread of TLS reports: {0}")]
    Thread(#[from] std::io::Error),
}

/// The thread. On drop the active tasks are interrupted; they are repeated after the next start.
pub struct ReportSender {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Reports written or delivered.
    delivered: AtomicU64,
    /// Local failures (directory, store, local mail server), and tasks dropped because the schedule was full.
    failures: AtomicU64,
}

impl ReportSender {
    /// Starts the thread, if the configuration enables writing or sending reports. `clock` returns the current time.
    ///
    /// # Errors
    ///
    /// See [`ReportSenderError`].
    pub fn start(
        config: &Config,
        store: StoreHandle,
        clock: impl Fn() -> Timestamp + Send + 'static,
    ) -> Result<Option<Self>, ReportSenderError> {
        let settings = config.tlsrpt.clone();
        if settings.directory.is_none() && !settings.send {
            return Ok(None);
        }
        let trust = if settings.send { Some((Trust::load(&config.policy)?, config.policy.clone())) } else { None };
        let wants = Wants { write: settings.directory.is_some(), send: settings.send, max_delay: settings.max_delay };
        let reporter = Reporter::new(&settings, &host_name());
        let path = config.store.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = watch::channel(false);
        let counts = Arc::new(Counts::default());
        let counted = counts.clone();
        let thread = std::thread::Builder::new().name("tlsrpt".to_owned()).spawn(move || {
            runtime.block_on(async {
                let work = async {
                    let sources = match &trust {
                        Some((trust, policy)) => Some(sources(policy, trust, &clock).await),
                        None => None,
                    };
                    let outlets = Arc::new(Outlets { reporter, settings, sources });
                    let schedule = Schedule::new(wants);
                    Work { outlets, schedule, path, store, counts: counted, failing: false }.run(clock).await;
                };
                tokio::select! {
                    // An error means that the sender was dropped: the thread ends in either case.
                    _ = stopped.changed() => {}
                    () = work => {}
                }
            });
        })?;
        Ok(Some(Self { stop, thread: Some(thread), counts }))
    }

    /// Reports written or delivered; and local failures (directory, store, local mail server) plus tasks dropped
    /// because the schedule was full.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.delivered.load(Ordering::Relaxed), self.counts.failures.load(Ordering::Relaxed))
    }
}

impl Drop for ReportSender {
    fn drop(&mut self) {
        // An error means that the thread has already ended.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until name servers are configured: at boot the network may start later than the daemon.
async fn sources(
    policy: &smtpwatch_config::PolicySettings,
    trust: &Trust,
    clock: &(impl Fn() -> Timestamp + Send),
) -> Sources {
    let mut logged = false;
    loop {
        match Sources::start(policy, trust, Timeouts::default(), clock()).await {
            Ok(sources) => return sources,
            Err(error) => {
                if !std::mem::replace(&mut logged, true) {
                    tracing::warn!(%error, "cannot send TLS reports yet");
                }
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

/// The clients that deliver reports.
struct Outlets {
    reporter: Reporter,
    settings: TlsrptSettings,
    sources: Option<Sources>,
}

/// The result of a task.
enum Outcome {
    /// Done; a description of the delivery.
    Done(String),
    Found(Vec<Target>),
    Failed {
        why: String,
        permanent: bool,
    },
}

struct Work {
    outlets: Arc<Outlets>,
    schedule: Schedule,
    path: PathBuf,
    store: StoreHandle,
    counts: Arc<Counts>,
    /// The log has reported that the store cannot be read.
    failing: bool,
}

impl Work {
    async fn run(mut self, clock: impl Fn() -> Timestamp) {
        loop {
            let now = clock();
            if let Err(error) = self.plan(now) {
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "cannot create TLS reports");
                }
                tokio::time::sleep(TICK).await;
                continue;
            }
            let dropped = self.schedule.take_dropped();
            if dropped > 0 {
                self.counts.failures.fetch_add(dropped, Ordering::Relaxed);
                tracing::warn!(dropped, "too many TLS reports are waiting: some domains get none");
            }
            let tasks = self.schedule.due(now, AT_ONCE);
            if tasks.is_empty() {
                tokio::time::sleep(TICK).await;
                continue;
            }
            let mut running = JoinSet::new();
            for task in tasks {
                match self.pack(&task) {
                    Ok(Some(report)) => {
                        let outlets = self.outlets.clone();
                        running.spawn(async move {
                            let outcome = outlets.perform(&task, &report, now).await;
                            (task, outcome)
                        });
                    }
                    // The sessions have been removed: there is nothing to report.
                    Ok(None) => self.schedule.done(&task),
                    Err(error) => {
                        self.note(task, Outcome::Failed { why: error.to_string(), permanent: false }, clock());
                    }
                }
            }
            while let Some(joined) = running.join_next().await {
                // A task that panicked is retried when its lease expires.
                if let Ok((task, outcome)) = joined {
                    self.note(task, outcome, clock());
                }
            }
        }
    }

    /// Adds the domains of days that are over to the schedule.
    fn plan(&mut self, now: Timestamp) -> Result<(), StoreError> {
        for day in self.schedule.days(now) {
            let read = |mut store: Store| Ok((store.reported(day)?, store.delivery_domains(day)?));
            let (reported, domains) =
                Store::open_existing(&self.path).and_then(read).inspect_err(|_| self.schedule.again(day))?;
            for domain in domains {
                let lot = self.outlets.reporter.lot(day, &domain);
                self.schedule.add(day, &domain, lot, &done(&reported, &domain), now);
            }
        }
        self.failing = false;
        Ok(())
    }

    fn pack(&self, task: &Task) -> Result<Option<Packed>, StoreError> {
        let Task { day, domain, .. } = task;
        let sessions = Store::open_existing(&self.path)?.deliveries(*day, domain)?;
        if sessions.is_empty() {
            return Ok(None);
        }
        let reporter = &self.outlets.reporter;
        let report = reporter.report(*day, domain, sessions);
        Ok(Some(Packed::new(&report, &reporter.submitter, domain, &reporter.unique_id(*day, domain))))
    }

    fn note(&mut self, task: Task, outcome: Outcome, now: Timestamp) {
        let name = task.step.name();
        let (day, domain) = (task.day, &task.domain);
        match outcome {
            Outcome::Done(outcome) => {
                // The look-up of a domain without a record is not a delivery.
                let delivered = task.step != Step::Find;
                self.counts.delivered.fetch_add(u64::from(delivered), Ordering::Relaxed);
                tracing::debug!(%day, domain, target = name, outcome, "TLS report");
                self.schedule.done(&task);
                self.reported(&task, outcome, now);
            }
            Outcome::Found(targets) => {
                match Store::open_existing(&self.path).and_then(|mut store| store.reported(day)) {
                    Ok(reported) => self.schedule.found(&task, targets, &done(&reported, domain), now),
                    Err(error) => {
                        // Without the record of sent reports, nothing is sent.
                        tracing::debug!(%day, domain, %error, "TLS report");
                        self.schedule.failed(&task, false, now);
                    }
                }
            }
            Outcome::Failed { why, permanent } => {
                // Failures of foreign name servers and web servers are not counted: they need no action here.
                let local = match task.step {
                    Step::Write | Step::Send(Target::Mail(_)) => true,
                    Step::Find | Step::Send(Target::Https(_)) => false,
                };
                self.counts.failures.fetch_add(u64::from(local), Ordering::Relaxed);
                match self.schedule.failed(&task, permanent, now) {
                    Next::Again(at) => {
                        tracing::debug!(%day, domain, target = name, why, again = %at, "TLS report");
                    }
                    Next::GivenUp => {
                        tracing::warn!(%day, domain, target = name, why, "a TLS report could not be delivered");
                        self.reported(&task, format!("given up: {why}"), now);
                    }
                }
            }
        }
    }

    fn reported(&self, task: &Task, outcome: String, at: Timestamp) {
        let Task { day, domain, step } = task;
        self.store.reported(SentReport { day: *day, domain: domain.clone(), target: step.name(), outcome, at });
    }
}

impl Outlets {
    async fn perform(&self, task: &Task, report: &Packed, now: Timestamp) -> Outcome {
        match &task.step {
            Step::Write => self.write(report),
            Step::Find => self.find(&task.domain).await,
            Step::Send(Target::Mail(to)) => self.mail(task.day, &task.domain, to, report, now).await,
            Step::Send(Target::Https(url)) => self.post(url, report).await,
        }
    }

    fn write(&self, report: &Packed) -> Outcome {
        let Some(directory) = &self.settings.directory else { return Outcome::Done("not configured".to_owned()) };
        match report.write(directory) {
            Ok(path) => Outcome::Done(format!("written to {}", path.display())),
            Err(error) => Outcome::Failed {
                why: format!("cannot write into {}: {error}: see [tlsrpt] directory", directory.display()),
                permanent: false,
            },
        }
    }

    async fn find(&self, domain: &str) -> Outcome {
        let Some(sources) = &self.sources else { return Outcome::Done("not configured".to_owned()) };
        match sources.txt(&format!("_smtp._tls.{domain}")).await {
            QueryResult::Present { value, .. } => match record::targets(&value) {
                Ok(targets) => Outcome::Found(targets),
                Err(why) => Outcome::Done(why.to_string()),
            },
            QueryResult::Absent { .. } => Outcome::Done(RecordError::Absent.to_string()),
            QueryResult::Bogus(why) | QueryResult::Error(why) => Outcome::Failed { why, permanent: false },
        }
    }

    async fn mail(&self, day: Day, domain: &str, to: &str, report: &Packed, now: Timestamp) -> Outcome {
        let from = self.settings.from.as_ref().unwrap_or(&self.reporter.contact);
        let id = self.reporter.unique_id(day, domain);
        let letter = Letter { reporter: &self.reporter, from, to, domain, id: &id, report };
        match letter.send(self.settings.smtp, now).await {
            Ok(()) => Outcome::Done(format!("taken by {}", self.settings.smtp)),
            Err(error) => Outcome::Failed { why: error.to_string(), permanent: error.is_permanent() },
        }
    }

    async fn post(&self, url: &str, report: &Packed) -> Outcome {
        let Some(sources) = &self.sources else { return Outcome::Done("not configured".to_owned()) };
        match sources.post(url, MEDIA_TYPE, report.gzip.clone()).await {
            // RFC 8460 §5.4 names 200 and 201; any other 2xx status means success too.
            Ok(status @ 200..300) => Outcome::Done(format!("HTTP status {status}")),
            Ok(status) => Outcome::Failed { why: format!("HTTP status {status}"), permanent: false },
            Err(error) => Outcome::Failed { why: error.to_string(), permanent: false },
        }
    }
}

/// The names of the completed steps of one domain.
fn done(reported: &[(String, String)], domain: &str) -> BTreeSet<String> {
    reported.iter().filter(|(of, _)| of == domain).map(|(_, target)| target.clone()).collect()
}
