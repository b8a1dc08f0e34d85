//! The hash of every table whose keys come from the wire, and SHA-256 as people compare it: in hexadecimal.
//!
//! The first is seeded at random in each process, so that nobody who does not see the process can choose keys that collide; and
//! several times as fast as the standard library's, which every packet would pay for.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// A map with that hash.
pub type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// The octets in hexadecimal, lower case.
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
