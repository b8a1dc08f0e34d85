//! Outputs of the process: metrics, findings, pages and API. Nothing here makes decisions about findings.

pub mod alertmanager;
pub mod journal;
pub mod metrics;
