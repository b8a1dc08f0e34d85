//! The HTTP server: metrics and health for everyone, pages and API for those who may see them. `docs/web.md` is its manual.
//!
//! What is served, and to whom, is decided once for each reading of the web configuration file ([`site`]); a connection
//! keeps to the reading that it began with, and a new one ends it.

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
mod site;
mod tls;
mod users;

pub use self::{
    address::{DEFAULT_LISTEN, ListenAddress},
    config::{ConfigFile, WebConfigError},
    health::{Health, StoreHealth, Watch},
    serve::serve,
};
