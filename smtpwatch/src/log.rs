//! The log: stderr, logfmt or JSON. Findings are not log lines; they go to stdout ([`crate::output::journal`]).

use clap::ValueEnum;
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Minimum level of log messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// Anything that limits monitoring.
    Warn,
    /// Normal operation.
    Info,
    /// Details for finding a problem; includes addresses of peers.
    Debug,
    /// Single packets.
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Format of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// logfmt; without time stamps under journald, which has its own.
    Auto,
    /// `key=value` pairs.
    Logfmt,
    /// One JSON object per line.
    Json,
}

/// Initialises the log. Later calls do nothing.
pub fn init(level: LogLevel, format: LogFormat) {
    let level = LevelFilter::from(level);
    let filter = targets(level);
    let journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => Box::new(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_writer(std::io::stderr),
        ),
        LogFormat::Auto | LogFormat::Logfmt => Box::new(
            tracing_logfmt::builder()
                .with_timestamp(!(journald && format == LogFormat::Auto))
                .with_target(false)
                .with_span_name(false)
                .layer()
                .with_writer(std::io::stderr),
        ),
    };
    // A second call, in tests, finds a subscriber already set, which stays.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}

/// The level of each crate.
fn targets(level: LevelFilter) -> Targets {
    // Warnings of libraries; all messages of smtpwatch up to the configured level, those of the kernel programs
    // included.
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        // aya warns about attempts that may fail, such as type information in a format that this kernel does not
        // support; relevant failures are returned as errors, which the capture reports.
        .with_target("aya", level.min(LevelFilter::ERROR))
        // hickory warns about each answer that does not validate, with its name: every sender of mail could fill the
        // log. Its result is returned to the caller.
        .with_target("hickory_proto", LevelFilter::OFF)
        .with_target("hickory_net", LevelFilter::OFF)
        .with_target("hickory_resolver", LevelFilter::OFF)
        // The same applies to the certificates of policy hosts.
        .with_target("rustls_platform_verifier", LevelFilter::OFF)
        // A target covers all crates whose names begin with it.
        .with_target("smtpwatch", level)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn own_crates_log_at_the_configured_level_and_libraries_from_warnings_up() {
        let targets = targets(LevelFilter::DEBUG);
        for ours in ["smtpwatch::daemon", "smtpwatch::kernel", "smtpwatch_capture::attach", "smtpwatch_ebpf"] {
            assert!(targets.would_enable(ours, &Level::DEBUG), "{ours}");
            assert!(!targets.would_enable(ours, &Level::TRACE), "{ours}");
        }
        for (library, level) in [("hyper", Level::INFO), ("aya::maps", Level::WARN), ("hickory_net::udp", Level::ERROR)]
        {
            assert!(!targets.would_enable(library, &level), "{library}");
        }
        assert!(targets.would_enable("hyper", &Level::WARN));
    }
}
