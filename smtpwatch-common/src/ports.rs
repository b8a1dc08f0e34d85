//! The watched ports: one bit per port, so that a long list costs what a short one costs.

/// Words of the bitmap.
pub const WORDS: usize = 65_536 / 64;

/// Ports watched when nothing is configured: relay (RFC 5321) and submission (RFC 6409).
pub const DEFAULT_PORTS: [u16; 2] = [25, 587];

/// A set of TCP ports.
///
/// In the kernel program it is a read-only global that the loader overrides with [`PortSet::as_words`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct PortSet([u64; WORDS]);

impl PortSet {
    /// The set of `ports`.
    #[must_use]
    pub const fn new(ports: &[u16]) -> Self {
        let mut words = [0; WORDS];
        let mut i = 0;
        while i < ports.len() {
            let wire = ports[i].to_be();
            words[word_of(wire)] |= 1 << bit_of(wire);
            i += 1;
        }
        Self(words)
    }

    /// Whether `port` is watched.
    #[must_use]
    pub const fn contains(&self, port: u16) -> bool {
        let wire = port.to_be();
        self.0[word_of(wire)] >> bit_of(wire) & 1 != 0
    }

    /// The bitmap: see [`word_of`] and [`bit_of`].
    #[must_use]
    pub const fn as_words(&self) -> &[u64; WORDS] {
        &self.0
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::new(&DEFAULT_PORTS)
    }
}

/// Index of the word of the bitmap that holds a port in network byte order: the fast path does not swap bytes. Always below [`WORDS`].
#[must_use]
#[inline(always)]
pub const fn word_of(wire: u16) -> usize {
    (wire >> 6) as usize
}

/// The bit of that word.
#[must_use]
#[inline(always)]
pub const fn bit_of(wire: u16) -> u32 {
    (wire & 63) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_exactly_the_ports_given() {
        let set = PortSet::new(&[0, 25, 587, 65_535]);
        let held: std::vec::Vec<u16> = (0..=u16::MAX).filter(|port| set.contains(*port)).collect();
        assert_eq!(held, [0, 25, 587, 65_535]);
    }

    #[test]
    fn defaults_to_relay_and_submission() {
        assert_eq!(PortSet::default(), PortSet::new(&[25, 587]));
    }
}
