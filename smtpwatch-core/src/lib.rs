//! The detection engine of smtpwatch: TCP segments in, findings out.
//!
//! The crate is sans-IO: it opens no socket and no file and reads no clock. Each [`Segment`] carries its time. The
//! caller feeds segments to the [`Engine`] and drains [`Engine::poll`]; each [`Output`] is one action for the caller:
//! write a finding, mute a flow in the kernel, store a history record.
//!
//! Data flows from left to right. A module imports nothing from the modules to its right:
//!
//! ```text
//! segment → flow (bytes in order, gaps explicit) → smtp (dialogue → observation) → judge (+ policy) → finding
//! ```
#![forbid(unsafe_code)]

pub mod cause;
pub mod day;
pub mod engine;
pub mod evidence;
pub mod finding;
pub mod flow;
pub mod hash;
pub mod judge;
pub mod limits;
mod lru;
pub mod offers;
pub mod policy;
pub mod secret_buffer;
pub mod segment;
pub mod smtp;
pub mod time;

pub use engine::{Engine, Output, Settings};
pub use finding::Finding;
pub use segment::{FlowKey, Role, Segment, Side, TcpFlags};
pub use time::Timestamp;

/// Package version, shared by all crates of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
