//! What is expected of a peer, and why: plain data. Nothing here fetches anything.

pub mod expectation;
pub mod history;
pub mod rule;
