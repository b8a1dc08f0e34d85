//! Sources of published policies, tested with name servers and policy hosts on loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod cli;
mod dns;
mod https;
mod mta_sts;
mod service;
mod states;
