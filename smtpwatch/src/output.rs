//! Outputs of the daemon: metrics, the journal, and alerts. Nothing here makes decisions about findings.

pub mod alertmanager;
pub mod journal;
pub mod metrics;
