//! SMTP TLS reports (RFC 8460): reports about mail that left this host, and reports of others, compared with what
//! this host offered.
//!
//! Outbound: `smtpwatch_store::deliveries` → [`outbound`] → [`mod@file`], [`mail`], HTTPS; [`schedule`] decides when, [`sender`]
//! does the work. Inbound: [`inbound`] parses, [`reconcile`] compares with `smtpwatch_store::offers`.
//!
//! Imports `smtpwatch-store` (what is counted by day), `smtpwatch-policy` (where reports go, HTTPS), `smtpwatch-core`,
//! `smtpwatch-config` and `smtpwatch-system`; sees no packet.

pub mod file;
pub mod inbound;
pub mod mail;
pub mod outbound;
pub mod reconcile;
pub mod record;
pub mod report;
pub mod schedule;
pub mod sender;
