//! SMTP TLS reports (RFC 8460): ours, of what left this host, and those of others, held against what left this host.
//!
//! Outbound: `store::deliveries` → [`outbound`] → [`file`], [`mail`], [`https`], when [`schedule`] says so, done by
//! [`sender`]. Inbound: [`inbound`] reads, [`reconcile`] compares with `store::offers`.

pub mod record;
pub mod report;
