//! What people and other programs read, made from the engine's plain data; nothing here decides, and nothing here does I/O.
//!
//! [`text`]: findings for a terminal, safe on it, and as lines of JSON. [`words`]: what a finding means and what to do.
//! [`difference`]: a session beside what was expected. [`mod@export`]: one finding as ECS, EVE, pcapng, and a letter. [`policy`]: what
//! is known of one domain, source by source; [`tables`]: the same as a table that a mail server enforces.
//!
//! Imports `smtpwatch-core` alone.
#![forbid(unsafe_code)]

pub mod difference;
pub mod export;
pub mod policy;
pub mod tables;
pub mod text;
pub mod words;
