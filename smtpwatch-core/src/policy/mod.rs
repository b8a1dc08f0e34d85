//! Expectations of a peer and their sources: local rules, published policies and history. Plain data; nothing here
//! fetches anything.
//!
//! [`expectation`] combines the sources for one flow; the rules in [`judge`](crate::judge) read the result.

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
