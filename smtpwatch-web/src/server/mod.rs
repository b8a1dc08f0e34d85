//! The HTTP server: metrics and health without a login, pages and API for authorised clients. Its manual is
//! `docs/web.md`.
//!
//! `serve` is the entry point. What each client may see is decided once per loaded web configuration (`access`). A
//! connection keeps the configuration that it began with, and a change of the configuration closes it.

mod access;
mod address;
mod auth;
mod config;
mod connections;
mod files;
mod headers;
mod health;
mod host;
mod limits;
mod paths;
mod scrapers;
mod serve;
mod tls;
mod users;

pub use self::{
    address::{DEFAULT_LISTEN, ListenAddress},
    config::{ConfigFile, WebConfigError},
    health::{CaptureStatus, Health, StoreHealth},
    serve::serve,
};
