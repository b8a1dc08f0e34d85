//! The engine of smtpwatch: TCP segments in, findings out.
//!
//! Sans-IO: no socket, no file, no clock. Time comes with each [`Segment`]; what the engine wants done (a finding
//! written, a flow muted in the kernel, a row of history kept) comes out of [`Engine::poll`] as an [`Output`].
//!
//! Data flows from left to right; code imports nothing from its right:
//!
//! ```text
//! segment → flow (bytes in order, gaps explicit) → smtp (dialogue → observation) → judge (+ policy) → finding
//! ```
#![forbid(unsafe_code)]

pub mod day;
pub mod engine;
pub mod evidence;
pub mod finding;
pub mod flow;
pub mod hash;
pub mod judge;
pub mod limits;
mod lru;
pub mod policy;
pub mod secret_buffer;
pub mod segment;
pub mod smtp;
pub mod time;

pub use engine::{Engine, Output, Settings};
pub use finding::Finding;
pub use segment::{FlowKey, Role, Segment, Side, TcpFlags};
pub use time::Timestamp;

/// Version of the package: every crate of the workspace has the same.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
