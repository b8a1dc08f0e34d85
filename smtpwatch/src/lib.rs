//! The daemon and command line of smtpwatch: what puts the other crates together, and nothing else.
//!
//! [`daemon`] starts and ends threads in order and hands the engine's outputs to store, journal, alerts and metrics;
//! [`daemon`]'s threads give up what they do not need by [`confine`]. [`cli`] has the verbs, [`output`] the sinks that are of the
//! daemon alone and the registry of metrics.
//!
//! Data flows from left to right; a crate imports nothing from its right:
//!
//! ```text
//! smtpwatch-capture → smtpwatch-pipeline (smtpwatch-core) → smtpwatch → smtpwatch-store → smtpwatch-tlsrpt, smtpwatch-web
//! ```

pub mod cli;
pub mod confine;
pub mod daemon;
pub mod log;
pub mod output;
pub mod service_manager;
pub mod version;
