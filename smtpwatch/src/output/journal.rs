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
