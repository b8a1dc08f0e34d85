//! Time, files and closed vocabularies, for the crates of smtpwatch that share them.
//!
//! [`clock`]: the wall clock, and a clock for the engine that follows it without steps; elsewhere time is an
//! argument. [`moment`]: a point in time as people write it. [`vocabulary!`]: enums with names. [`whole_file`]:
//! regular files that are read whole, up to a bound, and replaced atomically.
//!
//! Imports `smtpwatch-core` for its [`Timestamp`](smtpwatch_core::Timestamp). Contains no code for configuration,
//! packets or mail.
#![forbid(unsafe_code)]

pub mod clock;
pub mod moment;
mod vocabulary;
pub mod whole_file;
