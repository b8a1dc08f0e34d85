//! What several crates of smtpwatch ask of the operating system in the same way.
//!
//! [`clock`]: the wall clock, and a time for the engine that follows it without a step; read here alone, an argument
//! everywhere else. [`whole_file`]: regular files that are read whole, within a bound, and replaced in one step.
//!
//! Imports `smtpwatch-core` for its [`Timestamp`](smtpwatch_core::Timestamp). Knows no configuration, no packet and no mail.
#![forbid(unsafe_code)]

pub mod clock;
pub mod whole_file;
