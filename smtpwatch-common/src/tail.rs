//! The last bytes of a segment: recognizes a command, the last line of a reply, the end of a message.
//!
//! ```text
//! TailBuffer: | end of the line before | segment's last bytes (at most 128) |
//!             0                      128                   count+128
//! ```

use core::hint::black_box;

use crate::{Packet, Segment};

/// Bytes at the end of a segment that are read: the gate recognizes a reply whose last line begins there.
pub const TAIL: usize = 128;

/// No message ends in a segment.
pub const NO_END: u32 = u32::MAX;

/// The last bytes of a segment, after room for the bytes before them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct TailBuffer([u8; 2 * TAIL]);

impl TailBuffer {
    /// Zeroes.
    pub const EMPTY: Self = Self([0; 2 * TAIL]);
}

/// What the client's last line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LastLine {
    /// `DATA`.
    Data,
    /// `STARTTLS`.
    StartTls,
    /// Neither, or no whole line.
    Other,
}

/// The last bytes of a segment.
///
/// They end at `count + TAIL` in the buffer, so that the last [`TAIL`] of them always begin at `count`, whatever the
/// segment's length. A segment that begins a line is preceded by the end of the line before. Everything read from here is
/// straight-line arithmetic: a loop that ends, or an index that depends, on what was read multiplies the verifier's work.
pub(crate) struct Tail<'a> {
    buffer: &'a TailBuffer,
    count: usize,
}

impl<'a> Tail<'a> {
    /// The bytes of `segment` that [`Self::of`] has copied.
    #[inline(always)]
    pub fn left(segment: &Segment, buffer: &'a TailBuffer) -> Self {
        let count = if segment.length < TAIL_U32 { segment.length } else { TAIL_U32 };
        Self { buffer, count: count as usize }
    }

    /// Copies the bytes of `segment`; `line_start`: it begins a line. `None` if the packet does not have all of them.
    #[inline(always)]
    pub fn of<P: Packet>(packet: &P, segment: &Segment, line_start: bool, buffer: &'a mut TailBuffer) -> Option<Self> {
        let whole = segment.length <= TAIL_U32;
        let count = if whole { segment.length } else { TAIL_U32 };
        let (before, octets) = buffer.0.split_at_mut(TAIL);
        // The bytes before these two are always zero.
        [before[TAIL - 2], before[TAIL - 1]] = if whole && line_start { *b"\r\n" } else { [0; 2] };
        let octets: &mut [u8; TAIL] = octets.try_into().ok()?;
        if !packet.copy(segment.payload + segment.length - count, count, octets) {
            return None;
        }
        Some(Self { buffer, count: count as usize })
    }

    /// Eight bytes, the first of them `from` bytes after the start of the window.
    #[inline(always)]
    fn word(&self, from: usize) -> u64 {
        let mut word = 0;
        let mut i = 0;
        while i < 8 {
            // The mask changes nothing: it shows the bound.
            word = (word << 8) | u64::from(self.buffer.0[(self.count + from + i) & (2 * TAIL - 1)]);
            i += 1;
        }
        word
    }

    #[inline(always)]
    pub fn ends_line(&self) -> bool {
        self.word(TAIL - 8) & 0xff == u64::from(b'\n')
    }

    /// The command that the client's last line is, without its trailing blanks and CR.
    #[inline(always)]
    pub fn command(&self) -> LastLine {
        let (mut high, mut low) = (self.word(TAIL - 16), self.word(TAIL - 8));
        if low & 0xff != u64::from(b'\n') {
            return LastLine::Other;
        }
        let mut i = 0;
        while i < 1 + BLANKS {
            // The LF first, then CR and blanks.
            let last = low & 0xff;
            let strip = i == 0 || last == u64::from(b'\r') || last == u64::from(b' ') || last == u64::from(b'\t');
            let by = if strip { 8 } else { 0 };
            low = (low >> by) | ((high << 8) << (56 - by));
            high >>= by;
            i += 1;
        }
        // Upper and lower case differ in this bit (RFC 5321 §2.4: verbs are case-insensitive).
        const CASE: u64 = 0x2020_2020_2020_2020;
        if (low | (CASE >> 32)) & 0xff_ffff_ffff == number(b"\0\0\0\ndata") {
            LastLine::Data
        } else if low | CASE == number(b"starttls") && high & 0xff == u64::from(b'\n') {
            LastLine::StartTls
        } else {
            LastLine::Other
        }
    }

    /// Bytes after a line of one dot, which ends a message; [`NO_END`] if there is none in the window.
    #[inline(always)]
    pub fn behind_body(&self) -> u32 {
        const END: u64 = number(b"\0\0\0\r\n.\r\n");
        let (mut word, mut behind) = (0_u64, u64::from(NO_END));
        let mut i = 0;
        while i < TAIL {
            word = word << 8 | u64::from(self.buffer.0[(self.count + i) & (2 * TAIL - 1)]);
            let other = word & 0xff_ffff_ffff ^ END;
            // All ones where the last five bytes are the end. Hidden, because a branch here doubles the verifier's work.
            let hit = black_box(((other | other.wrapping_neg()) >> 63).wrapping_sub(1));
            behind = behind & !hit | (TAIL - 1 - i) as u64 & hit;
            i += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a place in the window, or the value of NO_END")]
        {
            behind as u32
        }
    }

    /// How many bytes of the segment's end are its last line; `None` if that does not end in LF or begins too early.
    #[inline(always)]
    pub fn last_line(&self) -> Option<u32> {
        let early = self.line_feeds(0);
        let late = self.line_feeds(TAIL / 2);
        if late & 1 == 0 {
            return None;
        }
        let (ends, from) = if late >> 1 != 0 { (late & !1, 0) } else { (early, 64) };
        if ends == 0 {
            return None;
        }
        // The line begins after the last LF but one.
        Some(from + ends.trailing_zeros())
    }

    /// Positions of LF in 64 bytes of the window: the last byte is the lowest bit.
    #[inline(always)]
    fn line_feeds(&self, from: usize) -> u64 {
        let mut bits = 0;
        let mut word = 0;
        while word < 8 {
            bits = (bits << 8) | zero_octets(self.word(from + word * 8) ^ 0x0a0a_0a0a_0a0a_0a0a);
            word += 1;
        }
        bits
    }
}

/// Blanks, and CR, before the LF of a command line that are ignored.
const BLANKS: usize = 4;
const TAIL_U32: u32 = 128;
const _: () = assert!(TAIL_U32 as usize == TAIL && TAIL == 128);

/// Which bytes of `word` are zero, one bit for each in their order.
#[inline(always)]
const fn zero_octets(word: u64) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // 0x80 where the byte is zero, without carries between bytes.
    let zero = !(((word & LOW) + LOW) | word | LOW);
    // Gathers the eight top bits in the top byte.
    ((zero >> 7).wrapping_mul(0x0102_0408_1020_4080)) >> 56
}

const fn number(octets: &[u8; 8]) -> u64 {
    u64::from_be_bytes(*octets)
}
