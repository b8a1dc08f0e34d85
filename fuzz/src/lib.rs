//! Shared by the fuzz targets and by the program that writes their committed corpus.
//!
//! A target is thin: it turns bytes into calls of the public API and asserts what the documentation there promises.

pub mod allocation;
pub mod alphabet;
pub mod chain;
pub mod frames;
pub mod operation;
pub mod wire;

/// Asserts that the text of an error or a reason can be displayed: not empty, at most two lines, without control
/// characters.
pub fn shown(text: &dyn std::fmt::Display) {
    let text = text.to_string();
    assert!(!text.is_empty() && text.len() < 4096 && !text.contains(char::is_control), "{text:?}");
}
