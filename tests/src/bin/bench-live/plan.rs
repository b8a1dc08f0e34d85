//! Sizes of the live benchmark: full (resolves a difference of one per cent) or quick (only checks that everything
//! runs).

use std::time::Duration;

/// Number of runs, messages and sessions of each measurement.
#[derive(Debug)]
pub struct Plan {
    quick: bool,
    /// Number of pairs of runs without and with the daemon.
    pub pairs: usize,
    /// Messages per `smtp-source` run of the bulk measurement.
    pub bulk_messages: u64,
    /// Messages per Postfix run.
    pub postfix_messages: u64,
    /// Duration of one TLS stream.
    pub stream: Duration,
    /// Sessions per run of the session-rate measurement.
    pub sessions: u64,
    /// Sessions of the long run.
    pub long_sessions: u64,
    /// Sessions whose latency is measured, idle and under load each.
    pub latencies: usize,
    /// Short sessions of the recording.
    pub recorded_sessions: u64,
    /// Sessions of the recording with a body of one megabyte.
    pub recorded_bodies: u64,
    /// Number of replays of the recording at top speed.
    pub loops: u64,
    /// Number of replays per monitor and speed.
    pub rounds: usize,
}

impl Plan {
    /// The plan selected by the environment: quick if `SMTPWATCH_BENCH_QUICK` is set, else full.
    pub fn asked() -> Self {
        if std::env::var_os("SMTPWATCH_BENCH_QUICK").is_some() { Self::quick() } else { Self::whole() }
    }

    /// Note printed above the figures.
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
