//! TCP: turns the segments of one flow into bytes in order.
//!
//! [`Connection`] accepts the segments of one flow and returns [`FlowEvent`]s; the engine delivers them to the SMTP
//! session. This module knows nothing of SMTP.
//!
//! The *receiver* decides what counts as delivered: bytes of one side are delivered once the other side has
//! acknowledged them (docs/threats.md, "What the host acknowledged"). Bytes that are never acknowledged are delivered
//! when the flow ends, and are marked as such. If two copies of one range differ, both are stored as a [`Conflict`]:
//! the difference is evidence, and the engine does not silently choose a copy.

mod assembler;
mod connection;
mod fingerprint;
mod seq;
mod standing;
mod stream;

pub use connection::{CloseCause, Conflict, Connection, FlowEvent, GapCause, SynClaims};
pub use fingerprint::SynFingerprint;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
