//! What the fuzz targets share, and what the program that writes their kept corpus needs.
//!
//! A target is thin: it turns bytes into calls of the public API and asserts what the documentation there promises.

pub mod allocation;
pub mod alphabet;
pub mod chain;
pub mod frames;
pub mod operation;
pub mod wire;

/// Asserts that what an error, or a reason, says can be shown: it says something, in a line or two, without control characters.
pub fn shown(text: &dyn std::fmt::Display) {
    let text = text.to_string();
    assert!(!text.is_empty() && text.len() < 4096 && !text.contains(char::is_control), "{text:?}");
}
