//! The dialogue in printable lines of bounded number and length: the human-readable part of the evidence. Functions
//! of this file also make untrusted bytes printable.

use std::{collections::VecDeque, fmt::Write as _};

use super::{command::is_known, quoted_command, verb::Verb};
use crate::{Side, finding::TranscriptLine, limits};

/// The first half of the lines and the newest half; the lines in between are only counted.
///
/// An open flow retains its transcript for its whole lifetime, so the memory layout is compact: the first half, which
/// most dialogues do not exceed, is one string.
#[derive(Clone, Debug, Default)]
pub(super) struct Transcript {
    /// Each line with its side as prefix and a line ending as suffix; the line itself contains no line ending.
    first: String,
    first_lines: usize,
    rest: Option<Box<Rest>>,
}

#[derive(Clone, Debug, Default)]
struct Rest {
    newest: VecDeque<TranscriptLine>,
    left_out: usize,
}

/// Growth step of the first half, in bytes; a longer line adds its own length.
const STEP: usize = 64;
/// Prefix of a line.
const CLIENT: char = '>';
const SERVER: char = '<';

impl Transcript {
    pub(super) fn push(&mut self, from: Side, text: &str) {
        self.push_with(from, text.len(), |line| line.push_str(text));
    }

    /// Adds a line that `write` appends in printable form; `length` is an estimate of its length.
    pub(super) fn push_with(&mut self, from: Side, length: usize, write: impl FnOnce(&mut String)) {
        if self.first_lines < limits::TRANSCRIPT_LINES / 2 {
            self.first_lines += 1;
            let needed = length + 2;
            if self.first.capacity() - self.first.len() < needed {
                self.first.reserve_exact(needed.max(STEP));
            }
            self.first.push(match from {
                Side::Client => CLIENT,
                Side::Server => SERVER,
            });
            let start = self.first.len();
            write(&mut self.first);
            debug_assert!(!self.first[start..].contains('\n'), "printable");
            self.first.push('\n');
            return;
        }
        let mut text = String::with_capacity(length);
        write(&mut text);
        let rest = self.rest.get_or_insert_default();
        if rest.newest.len() >= limits::TRANSCRIPT_LINES / 2 {
            rest.newest.pop_front();
            rest.left_out += 1;
        }
        rest.newest.push_back(TranscriptLine { from, text });
    }

    /// All lines in order, with a marker in place of the dropped lines.
    pub(super) fn lines(&self) -> Vec<TranscriptLine> {
        let first = self.first.split_terminator('\n').map(|line| {
            let from = if line.starts_with(CLIENT) { Side::Client } else { Side::Server };
            TranscriptLine { from, text: line.get(1..).unwrap_or_default().to_owned() }
        });
        let mut lines: Vec<_> = first.collect();
        if let Some(Rest { newest, left_out }) = self.rest.as_deref() {
            let mark = TranscriptLine { from: Side::Client, text: format!("[{left_out} lines left out]") };
            lines.extend((*left_out > 0).then_some(mark));
            lines.extend(newest.iter().cloned());
        }
        lines
    }
}

/// Printable form of `bytes`, cut after [`limits::TRANSCRIPT_LINE`] bytes of input.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().min(limits::TRANSCRIPT_LINE));
    push_printable(&mut text, bytes);
    text
}

/// Appends [`printable`].
pub(super) fn push_printable(text: &mut String, bytes: &[u8]) {
    let cut = &bytes[..bytes.len().min(limits::TRANSCRIPT_LINE)];
    push_printable_whole(text, cut);
    if bytes.len() > cut.len() {
        // Writing to a String cannot fail.
        let _ = write!(text, "[{} bytes cut]", bytes.len() - cut.len());
    }
}

/// Appends text that is safe on a terminal, in JSON and in a page: printable characters are unchanged, every other
/// byte becomes `\xNN`.
pub(super) fn push_printable_whole(text: &mut String, cut: &[u8]) {
    // Common case. The fold has no early exit, so that the compiler can vectorise it.
    let plain = |byte: u8| matches!(byte, b' '..=b'~') & (byte != b'\\');
    if cut.iter().fold(true, |all, byte| all & plain(*byte))
        && let Ok(plain) = str::from_utf8(cut)
    {
        text.push_str(plain);
        return;
    }
    for chunk in cut.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || c.is_control() || is_invisible(c) {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
}

/// Whether a word may be shown: the verb of an existing command, or a verb that was overwritten on the path
/// (docs/threats.md B2, C4). Any other word may be a secret that a confused client sent as a command.
pub(super) fn is_verb(word: &[u8]) -> bool {
    !Verb::of(word).is_empty() && (is_known(word) || quoted_command::is_overwritten(word))
}

/// Characters that reorder or hide text: bidirectional controls, zero-width and format characters.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{ad}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_that_a_terminal_would_obey() {
        assert_eq!(printable(b"250 ok"), "250 ok");
        assert_eq!(printable(b"a\x1b[31m\0\xff\\"), "a\\u{1b}[31m\\u{0}\\xff\\\\");
        assert_eq!(printable("Grüße\u{202e}".as_bytes()), "Grüße\\u{202e}");
        assert!(printable(&vec![b'a'; 1000]).ends_with("[488 bytes cut]"));
    }

    #[test]
    fn a_long_dialogue_keeps_its_start_and_its_end() {
        let mut transcript = Transcript::default();
        for line in 0..200 {
            transcript.push(Side::Client, &line.to_string());
        }
        let lines = transcript.lines();
        assert_eq!(lines.len(), limits::TRANSCRIPT_LINES + 1);
        assert_eq!((lines[0].text.as_str(), lines[64].text.as_str()), ("0", "199"));
        assert_eq!(lines[32].text, "[136 lines left out]");
    }
}
