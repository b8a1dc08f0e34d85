//! The daemon and command line of smtpwatch.
//!
//! The way of the data, left to right; nothing imports from its right:
//!
//! ```text
//! capture (kernel ring, or capture file) → pipeline (engine) → incident → output (journal, metrics, http), store
//! ```

// The kernel object that is embedded is little-endian, and both sides share structures of 64-bit words.
#[cfg(not(all(target_endian = "little", target_pointer_width = "64")))]
compile_error!(
    "smtpwatch runs on little-endian 64-bit machines only: its kernel programs are compiled for them (target bpfel)"
);

pub mod cli;
pub mod confine;
pub mod daemon;
pub mod log;
pub mod output;
pub mod service_manager;
pub mod version;
