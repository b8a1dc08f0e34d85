//! What is expected of a peer, and why: plain data. Nothing here fetches anything.

pub mod effective;
pub mod expectation;
pub mod failures;
pub mod history;
pub mod known;
pub mod memory;
pub mod precedence;
pub mod profile;
pub mod published;
pub mod rule;
pub mod scope;
