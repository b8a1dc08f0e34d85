//! The journal: findings, one per line, to stdout or a file. A separate thread writes it: a slow reader costs findings
//! in the journal (counted), never packets. The store's writer passes findings to [`Journal::write`] and receives each
//! [`JournalOutcome`].

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use smtpwatch_config::{JournalFormat, JournalSettings, journal_refusal};
use smtpwatch_core::Finding;
use smtpwatch_render::{export, text};
use smtpwatch_store::JournalOutcome;

use super::metrics::{Metrics, Output};

/// Capacity of the queue of findings.
pub const QUEUE: usize = 1_024;
/// Size of the file's end, in bytes, that is searched for findings from an earlier run.
const TAIL: u64 = 4 * 1024 * 1024;
/// Maximum time at the end for writing the queue.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The journal. On drop the queue is written first.
pub struct Journal {
    queue: Option<SyncSender<Entry>>,
    reopen: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    metrics: Arc<Metrics>,
}

enum Entry {
    /// The flag says that the file may already contain the finding.
    Finding(Box<Finding>, bool),
    /// Wakes the thread, which then reopens the file if requested.
    Look,
}

/// The destination of the lines.
enum JournalTarget {
    Stream(Box<dyn Write + Send>),
    File { path: PathBuf, file: Option<File> },
}

impl JournalTarget {
    fn write(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write_all(line.as_bytes()).and_then(|()| stream.flush()),
            Self::File { path, file } => {
                // A failed open is retried: the disk may have space again.
                let open = match file.take() {
                    Some(open) => open,
                    None => open(path)?,
                };
                // A partial line would be joined with the next one.
                let whole = open.metadata()?.len();
                let written = file.insert(open).write_all(line.as_bytes());
                if written.is_err()
                    && let Some(file) = file
                {
                    _ = file.set_len(whole);
                }
                written
            }
        }
    }

    /// Identifiers in the last lines; empty if they cannot be read back.
    fn ids(&self) -> HashSet<String> {
        match self {
            Self::File { path, .. } if path.is_file() => ids_of(path),
            Self::Stream(_) | Self::File { .. } => HashSet::new(),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(_) => Ok(()),
            Self::File { path, file } => {
                *file = None;
                *file = Some(open(path)?);
                Ok(())
            }
        }
    }
}

/// Opens the file, at the start and after each rotation. The flags repeat the checks of [`journal_refusal`] for a file
/// that was replaced since: no symbolic link is followed, and a named pipe without a reader is an error and does not
/// block.
fn open(path: &Path) -> io::Result<File> {
    if let Some((what, remedy)) = journal_refusal(path) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}: {remedy}")));
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = File::options().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    // A line that an earlier process or a full disk has truncated must not be joined with the next one.
    if file.metadata()?.is_file() && end_of(path, 1).is_ok_and(|end| !end.is_empty() && end != "\n") {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// The last bytes of a file, at most `most`.
fn end_of(path: &Path, most: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut end = Vec::new();
    file.take(most).read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

/// Identifiers in the last complete lines of a file: these findings need not be written again.
fn ids_of(path: &Path) -> HashSet<String> {
    let end = end_of(path, TAIL).unwrap_or_default();
    // A truncated line is not valid JSON.
    let whole = end.lines().filter(|line| serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok());
    let texts = whole.flat_map(|line| line.split('"'));
    texts.filter(|text| uuid::Uuid::try_parse(text).is_ok()).map(str::to_owned).collect()
}

impl Journal {
    /// Starts the thread that writes as `settings` say. The receiver gets the outcome of each finding.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or the thread cannot be started.
    pub fn start(settings: &JournalSettings, metrics: Arc<Metrics>) -> io::Result<(Self, Receiver<JournalOutcome>)> {
        let target = match settings.file() {
            None => JournalTarget::Stream(Box::new(io::stdout())),
            Some(path) => JournalTarget::File { file: Some(open(&path)?), path },
        };
        Self::start_at(target, *settings.format, metrics)
    }

    fn start_at(
        mut target: JournalTarget,
        format: JournalFormat,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, Receiver<JournalOutcome>)> {
        let (queue, entries) = sync_channel::<Entry>(QUEUE);
        let (outcomes, outcome_of) = sync_channel(QUEUE);
        let reopen = Arc::new(AtomicBool::new(false));
        let (counts, asked) = (metrics.clone(), reopen.clone());
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
            let mut failing = false;
            // Read at the first finding that the file may already contain.
            let mut before = None;
            for entry in entries {
                let mut outcome = if asked.swap(false, Ordering::Relaxed) { target.reopen() } else { Ok(()) };
                if let Entry::Finding(finding, again) = entry {
                    let is_there = again && before.get_or_insert_with(|| target.ids()).contains(&finding.id);
                    if !is_there {
                        outcome = target.write(&line(&finding, format));
                        counts.output(Output::Journal, u64::from(outcome.is_ok()), u64::from(outcome.is_err()));
                    }
                    // Blocks while the receiver is slow: then the queue here fills, and dropped findings are counted.
                    // An error means that there is no receiver.
                    _ = outcomes.send(JournalOutcome { id: finding.id, written: outcome.is_ok() });
                }
                match outcome {
                    Ok(()) => failing = false,
                    Err(error) if !std::mem::replace(&mut failing, true) => {
                        tracing::error!(%error, "cannot write findings to the journal; the store has them, and they are written when the journal works again");
                    }
                    Err(_) => {}
                }
            }
        })?;
        Ok((Self { queue: Some(queue), reopen, thread, metrics }, outcome_of))
    }

    /// Queues a finding; `again` says that an earlier run may have written it: it is not repeated if it is found in the
    /// file. Returns false, and counts a failure, if the queue is full.
    pub fn write(&self, finding: Box<Finding>, again: bool) -> bool {
        let sent = self.queue.as_ref().is_some_and(|queue| queue.try_send(Entry::Finding(finding, again)).is_ok());
        if !sent {
            self.metrics.output(Output::Journal, 0, 1);
        }
        sent
    }

    /// Requests that the file is reopened before the next line, after logrotate has renamed it.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
        // If the queue is full, the thread wakes up anyway.
        _ = self.queue.as_ref().map(|queue| queue.try_send(Entry::Look));
    }
}

fn line(finding: &Finding, format: JournalFormat) -> String {
    match format {
        JournalFormat::Json => text::json_line(finding),
        JournalFormat::Ecs => text::json_line(&export::ecs(finding)),
        JournalFormat::Eve => text::json_line(&export::eve(finding)),
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue = None;
        // A reader that does not read must not prevent the end of the daemon.
        let end = Instant::now() + LAST_WORDS;
        while !self.thread.is_finished() {
            if Instant::now() >= end {
                tracing::warn!("the journal has no reader: its last findings are lost");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Mutex, mpsc},
        time::{Duration, Instant},
    };

    use smtpwatch_core::{
        Finding, Role, Timestamp,
        finding::{
            Evidence, Expected, ExpectedSource, FlowInfo, Kind, Observed, Outcome, PeerInfo, Provenance,
            SCHEMA_VERSION, Severity, StarttlsState,
        },
    };

    use super::*;

    fn finding() -> Box<Finding> {
        Box::new(Finding {
            schema_version: SCHEMA_VERSION,
            id: String::new(),
            time: Timestamp::from_secs(0),
            kind: Kind::StarttlsStripped,
            rule: "A1".into(),
            severity: Severity::High,
            evidence: Evidence::Regression,
            outcome: Outcome::Content,
            role: Role::Client,
            flow: FlowInfo {
                client: "192.0.2.10:41234".to_owned(),
                server: "198.51.100.25:25".to_owned(),
                interface: String::new(),
                community_id: String::new(),
            },
            peer: PeerInfo::default(),
            expected: Expected::starttls(ExpectedSource::History, String::new()),
            observed: Observed {
                capabilities: Vec::new(),
                starttls: StarttlsState::Absent,
                mechanism: None,
                reply: None,
            },
            transcript: Vec::new(),
            gaps: 0,
            indicators: Vec::new(),
            sender: None,
            provenance: Provenance::default(),
            exhibit: None,
        })
    }

    fn start(out: impl Write + Send + 'static, metrics: &Arc<Metrics>) -> io::Result<Journal> {
        Journal::start_at(JournalTarget::Stream(Box::new(out)), JournalFormat::Json, metrics.clone())
            .map(|(journal, _)| journal)
    }

    fn counted(metrics: &Metrics, records: u64, failures: u64) -> bool {
        let text = metrics.render();
        text.contains(&format!("smtpwatch_output_records_total{{output=\"journal\"}} {records}\n"))
            && text.contains(&format!("smtpwatch_output_failures_total{{output=\"journal\"}} {failures}\n"))
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_pipe_is_counted() {
        let metrics = Arc::new(Metrics::new(&[25]).expect("metrics"));
        let journal = start(Broken, &metrics).expect("thread");
        _ = journal.write(finding(), false);
        drop(journal);
        assert!(counted(&metrics, 0, 1));
    }

    struct Stuck(Mutex<Receiver<()>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.lock().expect("one thread").recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_costs_findings_and_not_the_end() {
        let metrics = Arc::new(Metrics::new(&[25]).expect("metrics"));
        let (release, stuck) = mpsc::channel();
        let journal = start(Stuck(Mutex::new(stuck)), &metrics).expect("thread");
        _ = journal.write(finding(), false);
        // The thread has taken the first finding, or is about to; findings beyond the queue are counted, and nothing
        // blocks.
        for _ in 0..QUEUE + 10 {
            _ = journal.write(finding(), false);
        }
        assert!(counted(&metrics, 0, 10) || counted(&metrics, 0, 11));
        let start = Instant::now();
        drop(journal);
        assert!(start.elapsed() < LAST_WORDS + Duration::from_millis(500));
        drop(release);
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    #[test]
    fn a_file_that_was_renamed_is_opened_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, old) = (directory.path().join("findings.json"), directory.path().join("findings.json.1"));
        let text = format!("path = {path:?}\nformat = \"eve\"\n");
        let settings: JournalSettings = toml::from_str(&text).expect("settings");
        let metrics = Arc::new(Metrics::new(&[25]).expect("metrics"));
        let (journal, _) = Journal::start(&settings, metrics.clone()).expect("a file");
        _ = journal.write(finding(), false);
        while !counted(&metrics, 1, 0) {
            std::thread::yield_now();
        }
        std::fs::rename(&path, &old).expect("renamed");
        journal.reopen();
        // The file is reopened even without a finding.
        while !path.exists() {
            std::thread::yield_now();
        }
        _ = journal.write(finding(), false);
        _ = journal.write(finding(), false);
        drop(journal);
        assert_eq!((lines(&old).len(), lines(&path).len()), (1, 2));
        assert_eq!(lines(&path)[0]["event_type"], "alert");
        assert!(counted(&metrics, 3, 0));
    }

    #[test]
    fn no_link_is_followed_at_the_start_or_after_a_rotation() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, outside) = (directory.path().join("findings.json"), directory.path().join("outside"));
        std::fs::write(&outside, "untouched").expect("written");
        let settings: JournalSettings = toml::from_str(&format!("path = {path:?}\n")).expect("settings");
        let metrics = Arc::new(Metrics::new(&[25]).expect("metrics"));
        std::os::unix::fs::symlink(&outside, &path).expect("a link");
        let error = Journal::start(&settings, metrics.clone()).err().expect("refused").to_string();
        assert!(error.contains("symbolic link") && error.contains("name the file"), "{error}");

        std::fs::remove_file(&path).expect("removed");
        let (journal, _) = Journal::start(&settings, metrics.clone()).expect("a file");
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(&outside, &path).expect("a link");
        journal.reopen();
        _ = journal.write(finding(), false);
        drop(journal);
        assert!(counted(&metrics, 0, 1));
        assert_eq!(std::fs::read_to_string(&outside).expect("read"), "untouched");
    }

    #[test]
    fn a_full_device_is_counted() {
        let metrics = Arc::new(Metrics::new(&[25]).expect("metrics"));
        let full: JournalSettings = toml::from_str("path = \"/dev/full\"").expect("settings");
        let (journal, _) = Journal::start(&full, metrics.clone()).expect("a device");
        _ = journal.write(finding(), false);
        drop(journal);
        assert!(counted(&metrics, 0, 1));
    }
}
