//! SHA-256 in hexadecimal.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// The bytes in hexadecimal, lower case.
#[must_use]
pub fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::with_capacity(2 * octets.len()), |mut text, octet| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{octet:02x}");
        text
    })
}

/// Their SHA-256, in hexadecimal.
#[must_use]
pub fn sha256(octets: &[u8]) -> String {
    hex(&Sha256::digest(octets))
}
