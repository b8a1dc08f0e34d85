//! The command line, store, API and pages, tested without privileges.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod api;
mod api_events;
mod capture_file;
mod cli;
mod config;
mod incidents;
mod metrics;
mod operations;
mod peers;
mod replay;
mod schema;
mod silence;
mod store;
mod store_faults;
mod threats;
mod tlsrpt;
mod web;
mod web_access;
mod wire_forms;

use smtpwatch_testkit::traffic;
