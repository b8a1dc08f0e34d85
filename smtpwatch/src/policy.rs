//! Sources of published policies: DNS, HTTPS, files. Whatever is found here is handed on as plain data
//! ([`smtpwatch_core::policy::published`]); nothing here judges, and nothing here runs where packets are read.

pub mod address;
pub mod anchors;
pub mod denial;
pub mod fetch;
mod line;
pub mod list;
pub mod lookup;
mod probes;
pub mod resolver;
pub mod service;
pub mod subjects;
