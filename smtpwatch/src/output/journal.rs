//! Findings as JSON lines on stdout (DESIGN §4), written by a thread of its own: a slow reader costs findings in the
//! journal (counted), never packets.

use std::{
    io::Write,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use smtpwatch_core::Finding;

use super::{
    metrics::{Metrics, Output},
    text,
};

/// Findings that may wait for the reader of stdout.
pub const QUEUE: usize = 1_024;
/// At the end, the reader has this long to take what is queued.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The journal. Dropped: what is queued is written first.
pub struct Journal {
    queue: Option<SyncSender<Box<Finding>>>,
    thread: JoinHandle<()>,
    metrics: Arc<Metrics>,
}

impl Journal {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    ///
    /// The thread could not be started.
    pub fn start(out: impl Write + Send + 'static, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (queue, findings) = sync_channel::<Box<Finding>>(QUEUE);
        let counts = metrics.clone();
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
            let mut out = out;
            let mut failing = false;
            for finding in findings {
                let line = text::json_line(&finding);
                match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
                    Ok(()) => counts.output(Output::Journal, 1, 0),
                    Err(error) => {
                        counts.output(Output::Journal, 0, 1);
                        if !std::mem::replace(&mut failing, true) {
                            tracing::error!(%error, "findings cannot be written to stdout; metrics still count them");
                        }
                    }
                }
            }
        })?;
        Ok(Self { queue: Some(queue), thread, metrics })
    }

    /// Queues a finding; counts it as failed when the queue is full.
    pub fn write(&self, finding: Box<Finding>) {
        let sent = self.queue.as_ref().is_some_and(|queue| queue.try_send(finding).is_ok());
        if !sent {
            self.metrics.output(Output::Journal, 0, 1);
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue = None;
        // A reader that does not read must not keep the daemon from ending.
        let end = Instant::now() + LAST_WORDS;
        while !self.thread.is_finished() {
            if Instant::now() >= end {
                tracing::warn!("nobody reads stdout: the last findings are lost there");
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
            Evidence, Expected, FlowInfo, Kind, Observed, Outcome, PeerInfo, Provenance, SCHEMA_VERSION, Severity,
            StarttlsState,
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
            expected: Expected::starttls("history", String::new()),
            observed: Observed {
                capabilities: Vec::new(),
                starttls: StarttlsState::Absent,
                mechanism: None,
                reply: None,
            },
            transcript: Vec::new(),
            gaps: 0,
            proof: Vec::new(),
            sender: None,
            provenance: Provenance::default(),
            exhibit: None,
        })
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
        let journal = Journal::start(Broken, metrics.clone()).expect("thread");
        journal.write(finding());
        drop(journal);
        assert!(counted(&metrics, 0, 1));
    }

    struct Stuck(Mutex<mpsc::Receiver<()>>);

    impl Write for Stuck {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let _ = self.0.lock().expect("one thread").recv();
            Ok(octets.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_costs_findings_and_not_the_end() {
        let metrics = Arc::new(Metrics::new(&[25]).expect("metrics"));
        let (release, stuck) = mpsc::channel();
        let journal = Journal::start(Stuck(Mutex::new(stuck)), metrics.clone()).expect("thread");
        journal.write(finding());
        // The thread has taken the first one, or is about to; beyond the queue each is counted and nothing waits.
        for _ in 0..QUEUE + 10 {
            journal.write(finding());
        }
        assert!(counted(&metrics, 0, 10) || counted(&metrics, 0, 11));
        let start = Instant::now();
        drop(journal);
        assert!(start.elapsed() < LAST_WORDS + Duration::from_millis(500));
        drop(release);
    }
}
