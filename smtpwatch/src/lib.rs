//! The daemon and command line of smtpwatch; both only combine the other crates.
//!
//! [`daemon`] starts and ends threads in order and passes the engine's outputs to store, journal, alerts and metrics;
//! its threads drop their privileges with [`confine`]. [`cli`] has the verbs; [`output`] has the sinks that only the
//! daemon uses, and the registry of metrics.
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
