//! The HTTP server: access control, the pages, and the JSON API. Nothing here decides what is a finding.
//!
//! [`server`] accepts connections, authenticates users and certificates, and serves metrics and health without a login;
//! [`pages`] and [`api`] are routers that it guards. Both read from [`app_state::AppState`]: the store through a few readers,
//! the totals of the metrics, the health of the daemon, and live events.
//!
//! Imports `smtpwatch-store` (incidents), `smtpwatch-render` (texts and exports), `smtpwatch-core`, `smtpwatch-metrics`
//! and `smtpwatch-system`; links no resolver, no HTTP client and no loader of kernel programs.

pub mod api;
pub mod app_state;
pub mod metrics;
pub mod pages;
pub mod server;
