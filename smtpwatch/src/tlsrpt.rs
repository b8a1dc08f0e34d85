//! SMTP TLS reports (RFC 8460): ours, of what left this host, and those of others, held against what this host offered.
//!
//! Outbound: `store::deliveries` → [`outbound`] → [`file`], [`mail`], HTTPS, when [`schedule`] says so, done by
//! [`sender`]. Inbound: [`inbound`] reads, [`reconcile`] compares with `store::offers`.

pub mod file;
pub mod inbound;
pub mod mail;
pub mod outbound;
pub mod reconcile;
pub mod record;
pub mod report;
pub mod schedule;
pub mod sender;
