//! Tests of the engine as a whole, from segments to findings.

mod adversarial;
mod dialogues;
mod evasions;
mod exceptions;
mod exhibits;
mod false_positives;
mod history;
mod pairing;
mod properties;
mod published;
mod severity;
mod siblings;
mod threats;
mod truth;
mod witness;

use smtpwatch_testkit::scenario;
