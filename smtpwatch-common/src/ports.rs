//! The watched ports: one bit per port, so that a long list costs what a short one costs.

/// Octets of the bitmap.
pub const BITMAP_LEN: usize = 65_536 / 8;

/// Ports watched when nothing is configured: relay (RFC 5321) and submission (RFC 6409).
pub const DEFAULT_PORTS: [u16; 2] = [25, 587];

/// A set of TCP ports.
///
/// In the kernel program it is a read-only global that the loader overrides with [`PortSet::as_bytes`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct PortSet([u8; BITMAP_LEN]);

impl PortSet {
    /// The set of `ports`.
    #[must_use]
    pub const fn new(ports: &[u16]) -> Self {
        let mut bits = [0; BITMAP_LEN];
        let mut i = 0;
        while i < ports.len() {
            bits[byte_of(ports[i])] |= bit_of(ports[i]);
            i += 1;
        }
        Self(bits)
    }

    /// Whether `port` is watched.
    #[must_use]
    pub const fn contains(&self, port: u16) -> bool {
        self.0[byte_of(port)] & bit_of(port) != 0
    }

    /// The bitmap: port `p` is bit `p % 8` of octet `p / 8`.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; BITMAP_LEN] {
        &self.0
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::new(&DEFAULT_PORTS)
    }
}

/// The octet of the bitmap that holds `port`; always below [`BITMAP_LEN`].
#[must_use]
pub const fn byte_of(port: u16) -> usize {
    (port >> 3) as usize
}

/// The bit of that octet.
#[must_use]
pub const fn bit_of(port: u16) -> u8 {
    1 << (port & 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_exactly_the_ports_given() {
        let set = PortSet::new(&[0, 25, 587, 65_535]);
        let held: std::vec::Vec<u16> = (0..=u16::MAX).filter(|port| set.contains(*port)).collect();
        assert_eq!(held, [0, 25, 587, 65_535]);
        assert_eq!(set.as_bytes()[3], 0b10, "port 25 is bit 1 of octet 3");
    }

    #[test]
    fn defaults_to_relay_and_submission() {
        assert_eq!(PortSet::default(), PortSet::new(&[25, 587]));
    }
}
