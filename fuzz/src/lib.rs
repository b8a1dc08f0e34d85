//! What the fuzz targets share, and what the program that writes their kept corpus needs.
//!
//! A target is thin: it turns octets into calls of the public API and asserts what the documentation there promises.

pub mod allocation;
pub mod alphabet;
pub mod frames;
pub mod operation;
pub mod wire;
