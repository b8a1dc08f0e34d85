//! The daemon and command line of smtpwatch.
//!
//! Data flows from left to right; code imports nothing from its right:
//!
//! ```text
//! capture (kernel ring, or capture file) → pipeline (engine) → incident → output (journal, metrics, http), store
//! ```

// The kernel object that is embedded is little-endian, and both sides share structures of 64-bit words.
#[cfg(not(all(target_endian = "little", target_pointer_width = "64")))]
compile_error!(
    "smtpwatch runs on little-endian 64-bit machines only: its kernel programs are compiled for them (target bpfel)"
);

pub mod capture;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confine;
pub mod daemon;
pub mod day;
mod hash;
pub mod incident;
pub mod log;
pub mod output;
pub mod pipeline;
pub mod policy;
pub mod replay;
pub mod service_manager;
pub mod store;
pub mod tlsrpt;
pub mod version;
pub mod whole_file;
