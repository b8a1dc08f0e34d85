//! SMTP TLS reports (RFC 8460): reports about mail that this host sent, and reports of other senders, compared with
//! what this host offered.
//!
//! Outbound: `smtpwatch_store::deliveries` → [`outbound`] → [`mod@file`], [`mail`], HTTPS; [`schedule`] decides when,
//! and the thread of [`report_sender`] does the work. Inbound: [`inbound`] parses, [`reconcile`] brings
//! reports and `smtpwatch_store::offers` to the rule in `smtpwatch_core::judge::reported`.
//!
//! Imports `smtpwatch-store` (the daily counts), `smtpwatch-policy` (TXT records, HTTPS), `smtpwatch-core`,
//! `smtpwatch-config` and `smtpwatch-system`; sees no packet.

pub mod file;
pub mod inbound;
pub mod mail;
pub mod outbound;
pub mod reconcile;
pub mod record;
pub mod report;
pub mod report_sender;
pub mod schedule;
