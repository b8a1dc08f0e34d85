//! Splits one direction of a session into lines, each ended by LF or CRLF. [`Lines`] keeps the unfinished line
//! between segments.

use std::{fmt, ops::Deref};

use crate::{limits, secret_buffer::SecretBuffer};

/// One line without its line ending.
pub(super) struct Line<'a> {
    /// The bytes before CRLF or LF, at most [`limits::LINE`].
    pub(super) bytes: LineBytes<'a>,
    /// Ended by LF alone (RFC 5321 §2.3.8 forbids it; servers accept it).
    pub(super) bare_lf: bool,
    /// Bytes beyond the bound were cut off.
    pub(super) truncated: bool,
    /// Number of bytes in the stream, including the line ending and the bytes that were cut off.
    pub(super) stream_len: usize,
}

/// The bytes of a line: borrowed if the line arrived in one segment. They may hold a secret: `Debug` shows only their
/// number.
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

/// Line splitter of one direction; segment boundaries do not matter.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: SecretBuffer,
    /// Number of bytes cut off from the unfinished line.
    overflow: usize,
}

impl Lines {
    /// Consumes `input` up to and including the next LF. `None`: the input is consumed and the line is not complete.
    pub(super) fn take<'a>(&mut self, input: &mut &'a [u8]) -> Option<Line<'a>> {
        let end = input.iter().position(|&byte| byte == b'\n');
        let (piece, rest) = input.split_at(end.map_or(input.len(), |at| at + 1));
        *input = rest;
        // Common case: the line arrived in one segment and needs no copy.
        if self.buffer.is_empty()
            && piece.len() <= limits::LINE
            && let Some(body) = piece.strip_suffix(b"\n")
        {
            let bare = body.strip_suffix(b"\r");
            return Some(Line {
                bytes: LineBytes::Lent(bare.unwrap_or(body)),
                bare_lf: bare.is_none(),
                truncated: false,
                stream_len: piece.len(),
            });
        }
        let room = limits::LINE.saturating_sub(self.buffer.len());
        let body = if end.is_some() { &piece[..piece.len() - 1] } else { piece };
        self.buffer.extend_from_slice(&body[..body.len().min(room)]);
        // A CR exactly at the bound belongs to the line ending, not to the content.
        let ends = end.is_some() && body.len() == room + 1 && body.ends_with(b"\r");
        let (cut, end_bytes) = if ends { (0, 2) } else { (body.len().saturating_sub(room), 1) };
        self.overflow += cut;
        end?;
        let mut bytes = std::mem::take(&mut self.buffer);
        let cut = std::mem::take(&mut self.overflow);
        let (truncated, stream_len) = (cut > 0, bytes.len() + cut + end_bytes);
        let bare_lf = bytes.last() != Some(&b'\r') && !truncated;
        if !bare_lf && bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        Some(Line { bytes: LineBytes::Own(bytes), bare_lf, truncated, stream_len })
    }

    /// The unfinished line.
    pub(super) fn partial(&self) -> &[u8] {
        &self.buffer
    }

    /// Discards the unfinished line.
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
            while let Some(Line { bytes, bare_lf, truncated, stream_len }) = lines.take(&mut input) {
                taken += stream_len;
                found.push((bytes.to_vec(), bare_lf, truncated));
            }
        }
        let all: usize = pieces.iter().map(|piece| piece.len()).sum();
        assert_eq!(taken + lines.partial().len() + lines.overflow, all, "every byte is of a line");
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
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(split(&bytes), expected);
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
