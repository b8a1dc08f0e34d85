//! TCP: from segments to bytes in order.
//!
//! [`Connection`] takes the segments of one flow and gives [`FlowEvent`]s. It knows nothing of SMTP.
//!
//! What counts as delivered is decided by the *receiver*: bytes of one side are handed on when the other side
//! acknowledged them (docs/threats.md, "What the host acknowledged"). Bytes that never get an acknowledgment are handed on when the
//! flow ends, marked as such. Two different copies of one range are both kept ([`Conflict`]): a copy that differs is
//! evidence, never silently chosen.

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
