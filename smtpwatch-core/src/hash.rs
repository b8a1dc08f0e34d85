//! The hash of every table whose keys come from the wire.
//!
//! Seeded at random in each process, so that nobody who does not see the process can choose keys that collide; and several
//! times as fast as the standard library's, which every packet would pay for.

/// What makes that hash.
pub type HashState = foldhash::fast::RandomState;

/// A map with that hash.
pub type HashMap<K, V> = std::collections::HashMap<K, V, HashState>;
