//! How bytes of a packet are read, whatever holds them.

/// A packet, from its link layer on.
///
/// The kernel's hooks implement it over their contexts, replay over a byte slice. Offsets count from the first byte of
/// the link layer.
pub trait Packet {
    /// Bytes of the packet on the wire, from the link layer to the end of the frame.
    fn len(&self) -> u32;

    /// Bytes that can be read: less than [`Packet::len`] in a capture with a snapshot length.
    fn captured(&self) -> u32 {
        self.len()
    }

    /// The first `N` bytes, if they lie in directly accessible memory. `None` does not mean that the packet is shorter.
    fn head<const N: usize>(&self) -> Option<&[u8; N]>;

    /// The same bytes, to be read a word at a time.
    fn words<const N: usize>(&self) -> Option<impl Words>;

    /// A copy of `N` bytes at `offset`; `None` if they are not all there.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Copies `length` bytes (1 to `N`) at `offset` to the start of `into`. False, and `into` is unspecified, if they are
    /// not all there.
    fn copy<const N: usize>(&self, offset: u32, length: u32, into: &mut [u8; N]) -> bool;

    /// Whether the packet holds nothing at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The first bytes of a packet as words in network byte order.
///
/// Put together from single bytes, as an array gives them, a word costs the kernel program four loads and three shifts.
pub trait Words {
    /// The byte at `AT`.
    fn octet<const AT: usize>(&self) -> u8;

    /// Two bytes from `AT` on. `AT` must be even.
    fn half<const AT: usize>(&self) -> u16;

    /// Four bytes from `AT` on. `AT + 2` must be a multiple of four: such is the layout of Ethernet, IP and TCP.
    fn word<const AT: usize>(&self) -> u32;
}

impl<const N: usize> Words for [u8; N] {
    fn octet<const AT: usize>(&self) -> u8 {
        const { assert!(AT < N) };
        self[AT]
    }

    fn half<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= N && AT.is_multiple_of(2)) };
        u16::from_ne_bytes([self[AT], self[AT + 1]])
    }

    fn word<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= N && AT % 4 == 2) };
        u32::from_ne_bytes([self[AT], self[AT + 1], self[AT + 2], self[AT + 3]])
    }
}

/// The largest packet that is believed, in bytes: Linux puts at most 8 × 65,535 together (`GSO_MAX_SIZE`), and headers.
pub const MAX_WIRE_LEN: u32 = 1 << 20;

/// A packet in memory, as a capture file holds it.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    bytes: &'a [u8],
    wire_len: u32,
}

impl<'a> Slice<'a> {
    /// `bytes` were captured of a packet that had `wire_len` bytes on the wire: not fewer, and not more than
    /// [`MAX_WIRE_LEN`], whatever a capture file says.
    #[must_use]
    pub fn new(bytes: &'a [u8], wire_len: u32) -> Self {
        let captured = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { bytes, wire_len: wire_len.min(MAX_WIRE_LEN).max(captured) }
    }

    fn at(&self, offset: u32, length: usize) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.bytes.get(start..start.checked_add(length)?)
    }
}

impl Packet for Slice<'_> {
    fn len(&self) -> u32 {
        self.wire_len
    }

    fn captured(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes.first_chunk()
    }

    fn words<const N: usize>(&self) -> Option<impl Words> {
        self.bytes.first_chunk::<N>().copied()
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.at(offset, N)?.try_into().ok()
    }

    fn copy<const N: usize>(&self, offset: u32, length: u32, into: &mut [u8; N]) -> bool {
        let Ok(length) = usize::try_from(length) else { return false };
        let (Some(from), Some(to)) = (self.at(offset, length), into.get_mut(..length)) else { return false };
        if length == 0 {
            return false;
        }
        to.copy_from_slice(from);
        true
    }
}
