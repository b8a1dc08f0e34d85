//! What leaves the process: metrics, findings, and the pages that tell how the watch is doing. Nothing here decides.

pub mod alertmanager;
pub mod journal;
pub mod metrics;
