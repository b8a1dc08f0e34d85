//! The last octets of a segment, and what they say: a command, a reply's last line, the end of a message.

use core::hint::black_box;

use crate::{Packet, Segment};

/// Octets at the end of a segment that are looked at: a server's last line must begin there to be understood here.
pub const TAIL: usize = 128;

/// No message ends in a segment.
pub const NO_END: u32 = u32::MAX;

/// Where the last octets of a segment are put, after room for what stands before them.
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

/// The last octets of a segment.
///
/// They end at `count + TAIL` in the buffer, so that the last [`TAIL`] of them always begin at `count`, whatever the
/// segment's length. Before a segment that begins a line stands the end of the line before it. Everything read from here is
/// straight-line arithmetic: a loop that ends, or an index that depends, on what was read multiplies the verifier's work.
pub(crate) struct Tail<'a> {
    buffer: &'a TailBuffer,
    count: usize,
}

impl<'a> Tail<'a> {
    /// Those of `segment`, as [`Self::of`] has left them.
    #[inline(always)]
    pub fn left(segment: &Segment, buffer: &'a TailBuffer) -> Self {
        let count = if segment.length < TAIL_U32 { segment.length } else { TAIL_U32 };
        Self { buffer, count: count as usize }
    }

    /// Those of `segment`, which begins a line or not; `None` where they are not all there.
    #[inline(always)]
    pub fn of<P: Packet>(packet: &P, segment: &Segment, line_start: bool, buffer: &'a mut TailBuffer) -> Option<Self> {
        let whole = segment.length <= TAIL_U32;
        let count = if whole { segment.length } else { TAIL_U32 };
        let (before, octets) = buffer.0.split_at_mut(TAIL);
        // The octets before these two are zero from the start on, and nobody writes them.
        [before[TAIL - 2], before[TAIL - 1]] = if whole && line_start { *b"\r\n" } else { [0; 2] };
        let octets: &mut [u8; TAIL] = octets.try_into().ok()?;
        if !packet.copy(segment.payload + segment.length - count, count, octets) {
            return None;
        }
        Some(Self { buffer, count: count as usize })
    }

    /// Eight octets, the first of them `from` octets after the start of the window.
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

    /// How many octets stand behind a line of one dot, by which a message ends; [`NO_END`] if there is none in the window.
    #[inline(always)]
    pub fn behind_body(&self) -> u32 {
        const END: u64 = number(b"\0\0\0\r\n.\r\n");
        let (mut word, mut behind) = (0_u64, u64::from(NO_END));
        let mut i = 0;
        while i < TAIL {
            word = word << 8 | u64::from(self.buffer.0[(self.count + i) & (2 * TAIL - 1)]);
            let other = word & 0xff_ffff_ffff ^ END;
            // All ones where the last five octets are the end. Hidden, because a branch here doubles the verifier's work.
            let hit = black_box(((other | other.wrapping_neg()) >> 63).wrapping_sub(1));
            behind = behind & !hit | (TAIL - 1 - i) as u64 & hit;
            i += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a place in the window, or the value of NO_END")]
        {
            behind as u32
        }
    }

    /// How many octets of the segment's end are its last line; `None` if that does not end in LF or begins too early.
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

    /// Where LF stands in 64 octets of the window: the last of them is the lowest bit.
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

/// Blanks, and CR, before the LF of a command line that are looked through.
const BLANKS: usize = 4;
const TAIL_U32: u32 = 128;
const _: () = assert!(TAIL_U32 as usize == TAIL && TAIL == 128);

/// Which octets of `word` are zero, one bit for each in their order.
#[inline(always)]
const fn zero_octets(word: u64) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // 0x80 where the octet is zero, without carries between octets.
    let zero = !(((word & LOW) + LOW) | word | LOW);
    // Gathers the eight top bits in the top octet.
    ((zero >> 7).wrapping_mul(0x0102_0408_1020_4080)) >> 56
}

const fn number(octets: &[u8; 8]) -> u64 {
    u64::from_be_bytes(*octets)
}
