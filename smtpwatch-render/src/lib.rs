//! Renders the engine's plain data for people and for other programs. Nothing here decides, and nothing here does I/O.
//!
//! [`text`]: findings for a terminal, with control characters escaped, and as lines of JSON. [`words`]: the meaning of
//! a finding and the next steps. [`difference`]: the expected EHLO reply beside the observed one. [`mod@export`]: one
//! finding as ECS, EVE, pcapng, and plain text. [`policy`]: what each policy source says about a domain; [`tables`]:
//! the same as a table that a mail server enforces; [`csv`]: rows for a spreadsheet.
//!
//! Imports `smtpwatch-core` alone.
#![forbid(unsafe_code)]

pub mod csv;
pub mod difference;
pub mod export;
pub mod policy;
pub mod tables;
pub mod text;
pub mod words;
