//! Sources of published policies: DNS, HTTPS, files. Whatever is found here is handed on as plain data
//! ([`smtpwatch_core::policy::published`]); nothing here judges, and nothing here runs where packets are read.
//!
//! [`service::Service`] is the thread of the daemon; [`lookup::Sources`] does one look-up, for it and for the command line;
//! [`resolver`] asks name servers and validates DNSSEC, [`fetch`] fetches policies, [`list`] reads lists, [`subjects`] says what is
//! looked up when. Imports `smtpwatch-core` (policies as data), `smtpwatch-config`, `smtpwatch-metrics` and `smtpwatch-system`.

pub mod address;
pub mod anchors;
pub mod denial;
pub mod fetch;
mod line;
pub mod list;
pub mod lookup;
pub mod metrics;
mod probes;
pub mod resolver;
pub mod service;
pub mod subjects;
