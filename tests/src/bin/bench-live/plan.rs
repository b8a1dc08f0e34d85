//! The amount of work: enough to measure one per cent, or only enough to check that everything runs.

use std::time::Duration;

/// Sizes of every run.
#[derive(Debug)]
pub struct Plan {
    quick: bool,
    /// Pairs of runs without and with the daemon.
    pub pairs: usize,
    /// Messages of a run of `smtp-source` in bulk.
    pub bulk_messages: u64,
    /// Messages of a run of Postfix.
    pub postfix_messages: u64,
    /// How long a stream under TLS runs.
    pub stream: Duration,
    /// Sessions of a run of the session rate.
    pub sessions: u64,
    /// Sessions of the long run.
    pub long_sessions: u64,
    /// Sessions whose latency is measured, idle and under load.
    pub latencies: usize,
    /// Short sessions of the recording.
    pub recorded_sessions: u64,
    /// Sessions of the recording with a body of one megabyte.
    pub recorded_bodies: u64,
    /// How often the recording is replayed at top speed.
    pub loops: u64,
    /// Replays of every watcher at every speed.
    pub rounds: usize,
}

impl Plan {
    /// The whole measurement, or a trial where the environment asks for one.
    pub fn asked() -> Self {
        if std::env::var_os("SMTPWATCH_BENCH_QUICK").is_some() { Self::quick() } else { Self::whole() }
    }

    /// What stands above the figures.
    pub const fn note(&self) -> &'static str {
        if self.quick { "**A trial run: too short to say anything.**" } else { "" }
    }

    const fn whole() -> Self {
        Self {
            quick: false,
            pairs: 5,
            bulk_messages: 30,
            postfix_messages: 25,
            stream: Duration::from_millis(1_200),
            sessions: 10_000,
            long_sessions: 40_000,
            latencies: 1_000,
            recorded_sessions: 8_000,
            recorded_bodies: 20,
            loops: 4,
            rounds: 3,
        }
    }

    const fn quick() -> Self {
        Self {
            quick: true,
            pairs: 2,
            bulk_messages: 10,
            postfix_messages: 5,
            stream: Duration::from_millis(300),
            sessions: 2_000,
            long_sessions: 10_000,
            latencies: 100,
            recorded_sessions: 2_000,
            recorded_bodies: 5,
            loops: 2,
            rounds: 1,
        }
    }
}
