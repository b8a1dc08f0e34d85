//! The hash function of every table whose keys come from the network.
//!
//! It is seeded at random in each process, so that an attacker cannot choose colliding keys; and it is several times
//! as fast as the standard library's, which matters because every packet is hashed.

/// What makes that hash.
pub type HashState = foldhash::fast::RandomState;

/// A map with that hash.
pub type HashMap<K, V> = std::collections::HashMap<K, V, HashState>;
