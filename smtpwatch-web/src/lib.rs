//! The HTTP server: who may see what, the pages, and the JSON API. Nothing here decides what is a finding.
//!
//! [`server`] takes connections in, knows users and certificates, and serves metrics and health to everyone; [`pages`] and [`api`]
//! are routers that it guards. Both look at [`desk::Desk`]: the store through a few readers, the sums of the metrics, the health, and
//! what happens live.
//!
//! Imports `smtpwatch-store` (incidents read back), `smtpwatch-render` (words and exports), `smtpwatch-core`, `smtpwatch-metrics`
//! and `smtpwatch-system`; links no resolver, no HTTP client and no loader of kernel programs.

pub mod api;
pub mod desk;
pub mod metrics;
pub mod pages;
pub mod server;
