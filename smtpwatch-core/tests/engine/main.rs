//! Tests of the engine as a whole, from segments to findings.

mod dialogues;
mod evasions;
mod exceptions;
mod exhibits;
mod history;
mod pairing;
mod properties;
mod published;
mod siblings;
mod stubborn;
mod threats;
mod traps;
mod witness;

use smtpwatch_testkit::talk;
