//! The last bytes of a segment: recognizes a command, the last line of a reply, the end of a message.
//!
//! ```text
//! TailBuffer: | end of the line before | segment's last bytes (at most 128) |
//!             0                      128                   count+128
//! ```

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
        let (early, late) = (self.line_ends(0), self.line_ends(TAIL / 2));
        // CR LF . CR LF, each at its distance before the last LF.
        let in_late = late.line_feeds
            & before(late.returns, early.returns, 1)
            & before(late.dots, early.dots, 2)
            & before(late.line_feeds, early.line_feeds, 3)
            & before(late.returns, early.returns, 4);
        let in_early = early.line_feeds
            & before(early.returns, 0, 1)
            & before(early.dots, 0, 2)
            & before(early.line_feeds, 0, 3)
            & before(early.returns, 0, 4);
        if in_late != 0 {
            in_late.trailing_zeros()
        } else if in_early != 0 {
            64 + in_early.trailing_zeros()
        } else {
            NO_END
        }
    }

    /// How many bytes of the segment's end are its last line; `None` if that does not end in LF or begins too early.
    #[inline(always)]
    pub fn last_line(&self) -> Option<u32> {
        let early = self.line_ends(0).line_feeds;
        let late = self.line_ends(TAIL / 2).line_feeds;
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

    /// Positions of CR, LF and dots in 64 bytes of the window.
    #[inline(always)]
    fn line_ends(&self, from: usize) -> LineEnds {
        let mut found = LineEnds { returns: 0, line_feeds: 0, dots: 0 };
        let mut word = 0;
        while word < 8 {
            let bytes = self.word(from + word * 8);
            found.returns = (found.returns << 8) | zero_octets(bytes ^ 0x0d0d_0d0d_0d0d_0d0d);
            found.line_feeds = (found.line_feeds << 8) | zero_octets(bytes ^ 0x0a0a_0a0a_0a0a_0a0a);
            found.dots = (found.dots << 8) | zero_octets(bytes ^ 0x2e2e_2e2e_2e2e_2e2e);
            word += 1;
        }
        found
    }
}

/// Positions in 64 bytes of the window: the last byte is the lowest bit.
struct LineEnds {
    returns: u64,
    line_feeds: u64,
    dots: u64,
}

/// Moves each position by `distance` towards the end of the window; `earlier` are the 64 bytes before.
#[inline(always)]
const fn before(positions: u64, earlier: u64, distance: u32) -> u64 {
    positions >> distance | earlier << (64 - distance)
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

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::Slice;

    /// The same by a search of the bytes.
    fn by_search(segment: &[u8], line_start: bool) -> u32 {
        let whole = segment.len() <= TAIL;
        let mut window = if whole && line_start { b"\r\n".to_vec() } else { Vec::new() };
        window.extend(&segment[segment.len().saturating_sub(TAIL)..]);
        let window = &window[window.len().saturating_sub(TAIL)..];
        let end = window.windows(5).rposition(|part| part == b"\r\n.\r\n");
        end.map_or(NO_END, |at| u32::try_from(window.len() - at - 5).unwrap())
    }

    fn by_tail(bytes: &[u8], line_start: bool) -> u32 {
        let length = u32::try_from(bytes.len()).unwrap();
        let segment = Segment { length, ..Segment::EMPTY };
        let mut buffer = TailBuffer::EMPTY;
        let Some(tail) = Tail::of(&Slice::new(bytes, length), &segment, line_start, &mut buffer) else {
            panic!("{length} bytes are there");
        };
        tail.behind_body()
    }

    #[test]
    fn the_end_of_a_message_is_found_at_every_place_of_the_window() {
        for length in 1..=140_usize {
            for at in 0..length {
                let mut bytes = std::vec![b'x'; length];
                let end = &b"\r\n.\r\n"[..5.min(length - at)];
                bytes[at..at + end.len()].copy_from_slice(end);
                for line_start in [false, true] {
                    assert_eq!(
                        by_tail(&bytes, line_start),
                        by_search(&bytes, line_start),
                        "{length} {at} {line_start}"
                    );
                }
            }
        }
    }

    #[test]
    fn random_lines_are_searched_as_byte_by_byte() {
        let mut number = 1_u64;
        let mut random = |below: usize| {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(number >> 33).unwrap() % below
        };
        let mut found = 0;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..=random(200)).map(|_| b"\r\n.x"[random(4)]).collect();
            let line_start = random(2) == 0;
            let expected = by_search(&bytes, line_start);
            found += u32::from(expected != NO_END);
            assert_eq!(by_tail(&bytes, line_start), expected, "{bytes:?} {line_start}");
        }
        assert!((1_000..19_000).contains(&found), "{found} of 20,000 windows hold an end");
    }
}
