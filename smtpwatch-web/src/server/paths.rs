//! Paths that the server itself answers, outside of pages and API.

/// Paths that are served without a login, on every listen address.
pub(super) const OPEN_PATHS: [&str; 3] = [METRICS, HEALTHY, READY];
pub(super) const METRICS: &str = "/metrics";
pub(super) const HEALTHY: &str = "/-/healthy";
pub(super) const READY: &str = "/-/ready";
