//! Services of the operating system that several crates of smtpwatch share.
//!
//! [`clock`]: the wall clock, and a clock for the engine that follows it without steps; elsewhere time is an
//! argument. [`whole_file`]: regular files that are read whole, up to a bound, and replaced atomically.
//!
//! Imports `smtpwatch-core` for its [`Timestamp`](smtpwatch_core::Timestamp). Contains no code for configuration,
//! packets or mail.
#![forbid(unsafe_code)]

pub mod clock;
pub mod whole_file;
