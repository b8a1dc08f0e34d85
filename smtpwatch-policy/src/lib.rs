//! Sources of published policies: DNS, HTTPS, files. The results are plain data
//! ([`smtpwatch_core::policy::published`]); this crate judges nothing, and none of it runs in the capture thread.
//!
//! [`service::Service`] is the daemon's look-up thread; [`lookup::Sources`] does a single look-up, for the service
//! and for the command line. [`resolver`] queries name servers and validates DNSSEC, [`fetch`] fetches policies,
//! [`list`] reads lists, and [`lookup_schedule`] schedules look-ups. Imports `smtpwatch-core` (policies as data),
//! `smtpwatch-config`, `smtpwatch-metrics` and `smtpwatch-system`.

pub mod address;
pub mod anchors;
pub mod denial;
pub mod fetch;
pub mod list;
pub mod lookup;
pub mod lookup_schedule;
pub mod metrics;
mod probes;
pub mod resolver;
pub mod service;
mod wait_queue;
