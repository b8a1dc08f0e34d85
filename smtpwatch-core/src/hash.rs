//! Hash functions: the seeded hash of every table whose keys come from the network, and SHA-256 in hexadecimal.
//!
//! The table hash is seeded at random in each process, so that an attacker cannot choose colliding keys. It is several
//! times as fast as the standard library's hash, which matters because every packet is hashed.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Random state of the table hash.
pub type HashState = foldhash::fast::RandomState;

/// A map with the table hash.
pub type HashMap<K, V> = std::collections::HashMap<K, V, HashState>;

/// Encodes bytes in lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of bytes, in lower-case hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
