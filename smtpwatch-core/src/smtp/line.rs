//! Lines: bytes up to LF.

use std::{fmt, ops::Deref};

use crate::{limits, secret_buffer::SecretBuffer};

/// One line without its end.
pub(super) struct Line<'a> {
    /// The bytes before CRLF or LF, at most [`limits::LINE`].
    pub(super) bytes: LineBytes<'a>,
    /// Ended by LF alone (RFC 5321 §2.3.8 forbids it; servers accept it).
    pub(super) bare_lf: bool,
    /// Bytes were cut off at the end.
    pub(super) truncated: bool,
    /// How many it took in the stream, with its end and what was cut off.
    pub(super) octets: usize,
}

/// The bytes of a line: lent where it came in one piece. They may hold a secret: `Debug` shows their number alone.
#[derive(Clone)]
pub(super) enum LineBytes<'a> {
    Lent(&'a [u8]),
    Own(SecretBuffer),
}

impl Deref for LineBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Lent(bytes) => bytes,
            Self::Own(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for LineBytes<'_> {
    fn from(bytes: &[u8]) -> Self {
        Self::Own(bytes.into())
    }
}

impl PartialEq for LineBytes<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for LineBytes<'_> {}

impl fmt::Debug for LineBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LineBytes({} bytes)", self.len())
    }
}

/// Splits one direction into lines, however it is cut into pieces.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: SecretBuffer,
    /// Bytes of the line that were cut off.
    overflow: usize,
}

impl Lines {
    /// Takes bytes from `input` up to and including the next LF. `None`: the input is used up and no line is whole.
    pub(super) fn take<'a>(&mut self, input: &mut &'a [u8]) -> Option<Line<'a>> {
        let end = input.iter().position(|&octet| octet == b'\n');
        let (piece, rest) = input.split_at(end.map_or(input.len(), |at| at + 1));
        *input = rest;
        // Nearly every line comes in one piece, and needs no copy.
        if self.buffer.is_empty()
            && piece.len() <= limits::LINE
            && let Some(body) = piece.strip_suffix(b"\n")
        {
            let bare = body.strip_suffix(b"\r");
            return Some(Line {
                bytes: LineBytes::Lent(bare.unwrap_or(body)),
                bare_lf: bare.is_none(),
                truncated: false,
                octets: piece.len(),
            });
        }
        let room = limits::LINE.saturating_sub(self.buffer.len());
        let body = if end.is_some() { &piece[..piece.len() - 1] } else { piece };
        self.buffer.extend_from_slice(&body[..body.len().min(room)]);
        // A CR at the very bound belongs to the line's end, not to its content.
        let ends = end.is_some() && body.len() == room + 1 && body.ends_with(b"\r");
        let (cut, end_octets) = if ends { (0, 2) } else { (body.len().saturating_sub(room), 1) };
        self.overflow += cut;
        end?;
        let mut bytes = std::mem::take(&mut self.buffer);
        let cut = std::mem::take(&mut self.overflow);
        let (truncated, octets) = (cut > 0, bytes.len() + cut + end_octets);
        let bare_lf = bytes.last() != Some(&b'\r') && !truncated;
        if !bare_lf && bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        Some(Line { bytes: LineBytes::Own(bytes), bare_lf, truncated, octets })
    }

    /// The line that has begun and has no end yet.
    pub(super) fn partial(&self) -> &[u8] {
        &self.buffer
    }

    /// Forgets what has begun.
    pub(super) fn clear(&mut self) {
        self.buffer = SecretBuffer::default();
        self.overflow = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool, bool)> {
        let mut lines = Lines::default();
        let (mut found, mut taken) = (Vec::new(), lines.partial().len());
        for piece in pieces {
            let mut input = *piece;
            while let Some(Line { bytes, bare_lf, truncated, octets }) = lines.take(&mut input) {
                taken += octets;
                found.push((bytes.to_vec(), bare_lf, truncated));
            }
        }
        let all: usize = pieces.iter().map(|piece| piece.len()).sum();
        assert_eq!(taken + lines.partial().len() + lines.overflow, all, "every octet is of a line");
        found
    }

    #[test]
    fn any_cut_gives_the_same_lines() {
        let text = b"EHLO a\r\nbare\nx\ry\r\n\r\n\nrest";
        let whole = split(&[text]);
        let expected: Vec<(Vec<u8>, bool, bool)> = vec![
            (b"EHLO a".to_vec(), false, false),
            (b"bare".to_vec(), true, false),
            (b"x\ry".to_vec(), false, false),
            (b"".to_vec(), false, false),
            (b"".to_vec(), true, false),
        ];
        assert_eq!(whole, expected);
        let octets: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(split(&octets), expected);
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let mut text = vec![b'a'; limits::LINE + 5];
        text.extend_from_slice(b"\r\nNOOP\r\n");
        let found = split(&[&text]);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0.len(), found[0].2), (limits::LINE, true));
        assert_eq!(found[1], (b"NOOP".to_vec(), false, false));
    }

    #[test]
    fn a_line_of_the_full_length_is_whole() {
        let mut text = vec![b'a'; limits::LINE];
        text.extend_from_slice(b"\r\n");
        for pieces in [vec![&text[..]], text.chunks(7).collect()] {
            let found = split(&pieces);
            assert_eq!((found[0].0.len(), found[0].2), (limits::LINE, false));
        }
    }
}
