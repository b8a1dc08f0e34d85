//! Parser of replies, the server's side of the dialogue (RFC 5321 §4.2). [`Replies`] assembles lines to complete
//! replies.

use super::line::{Line, LineBytes};
use crate::limits;

/// One complete reply with all its lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reply<'a> {
    /// The code of the last line; zero if that line had none.
    pub(super) code: u16,
    /// At most [`limits::REPLY_LINES`]: the first lines, and later ones only if they concern STARTTLS.
    pub(super) lines: Vec<ReplyLine<'a>>,
}

/// One line of a reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ReplyLine<'a> {
    /// Code of this line; RFC 5321 §4.2.1 requires the same code on all lines.
    pub(super) code: u16,
    /// Text after code and separator. It may quote a secret. Borrowed for the last line, which is the only one of
    /// most replies.
    pub(super) text: LineBytes<'a>,
}

impl Reply<'_> {
    /// First digit: the class of the reply.
    pub(super) const fn class(&self) -> u16 {
        self.code / 100
    }

    /// Text of the first line.
    pub(super) fn first(&self) -> &[u8] {
        self.lines.first().map(|line| &*line.text).unwrap_or_default()
    }

    pub(super) const fn is_positive(&self) -> bool {
        self.class() == 2
    }
}

/// Initial capacity for the lines of a multi-line reply.
const USUAL: usize = 12;

/// Number of lines reserved for those that concern STARTTLS, regardless of the number of lines before them.
const TELLING: usize = 16;

/// Whether a line offers STARTTLS or may hide it (docs/threats.md A2, A5): dropping such a line would look like a
/// missing offer.
fn tells_of_starttls(line: &[u8]) -> bool {
    const KEYWORD: &[u8] = b"STARTTLS";
    line.starts_with(b"XXX") || line.windows(KEYWORD.len()).any(|word| word.eq_ignore_ascii_case(KEYWORD))
}

/// One parsed line, and whether the reply continues after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Parsed<'a> {
    code: u16,
    more: bool,
    text: &'a [u8],
}

/// Assembles lines to complete replies.
#[derive(Debug, Default)]
pub(super) struct Replies {
    lines: Vec<ReplyLine<'static>>,
    begun: bool,
}

impl Replies {
    /// Adds one line; returns the reply that the line completes.
    pub(super) fn push<'a>(&mut self, line: &Line<'a>) -> Option<Reply<'a>> {
        let Parsed { code, mut more, text } = parse(&line.bytes);
        // A line without a code inside a reply does not end it: the client waits for the last line too.
        more |= code == 0 && self.begun;
        let bound = if tells_of_starttls(text) { limits::REPLY_LINES } else { limits::REPLY_LINES - TELLING };
        self.begun = more;
        let has_room = self.lines.len() < bound;
        if more {
            if has_room {
                if self.lines.capacity() == 0 {
                    // Fits the capability list of most servers.
                    self.lines.reserve_exact(USUAL);
                }
                self.lines.push(ReplyLine { code, text: text.into() });
            }
            return None;
        }
        let mut lines: Vec<ReplyLine<'a>> = std::mem::take(&mut self.lines);
        if has_room {
            let text = match line.bytes {
                // The text is the tail of the line.
                LineBytes::Lent(bytes) => LineBytes::Lent(&bytes[bytes.len() - text.len()..]),
                LineBytes::Own(_) => text.into(),
            };
            if lines.capacity() == 0 {
                // Most replies have one line.
                lines.reserve_exact(1);
            }
            lines.push(ReplyLine { code, text });
        }
        Some(Reply { code, lines })
    }

    /// Discards the lines of an unfinished reply.
    pub(super) fn clear(&mut self) {
        self.lines = Vec::new();
    }

    /// A reply has begun, and its last line has not arrived.
    pub(super) const fn has_begun(&self) -> bool {
        self.begun
    }
}

/// Parses one line. A line without a code (docs/threats.md EV-18) is a complete reply with code zero, so the session
/// continues.
fn parse(line: &[u8]) -> Parsed<'_> {
    let digits = line.iter().take(3).take_while(|c| c.is_ascii_digit()).count();
    if digits < 3 || line.get(3).is_some_and(u8::is_ascii_alphanumeric) {
        return Parsed { code: 0, more: false, text: line };
    }
    let code = line[..3].iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    // An invalid separator stays in the text, so that it is visible.
    let text = match line.get(3) {
        Some(b' ' | b'-') | None => line.get(4..),
        Some(_) => line.get(3..),
    };
    Parsed { code, more: line.get(3) == Some(&b'-'), text: text.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::line::LineBytes;

    fn replies(lines: &[&'static str]) -> Vec<(u16, Vec<String>)> {
        let mut replies = Replies::default();
        let line = |text: &'static str| Line {
            bytes: LineBytes::Lent(text.as_bytes()),
            bare_lf: false,
            truncated: false,
            stream_len: text.len() + 2,
        };
        let text = |reply: Reply| {
            (reply.code, reply.lines.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect())
        };
        lines.iter().filter_map(|text| replies.push(&line(text))).map(text).collect()
    }

    #[test]
    fn replies_are_put_together() {
        let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        assert_eq!(replies(&["220 mx"]), [(220, owned(&["mx"]))]);
        assert_eq!(replies(&["250-mx", "250-SIZE 1", "250 STARTTLS"]), [(250, owned(&["mx", "SIZE 1", "STARTTLS"]))]);
        assert_eq!(replies(&["250-mx", "250"]), [(250, owned(&["mx", ""]))], "FP-24: a bare code ends the reply");
        assert_eq!(replies(&["250-"]), []);
        assert_eq!(replies(&["250-mx", "stray", "250 x"]), [(250, owned(&["mx", "stray", "x"]))]);
        assert_eq!(replies(&["334"]), [(334, owned(&[""]))]);
        assert_eq!(replies(&["250\tSTARTTLS"]), [(250, owned(&["\tSTARTTLS"]))]);
        assert_eq!(replies(&["hello", "200 x"]), [(0, owned(&["hello"])), (200, owned(&["x"]))]);
        assert_eq!(replies(&["25", "2500 x"]), [(0, owned(&["25"])), (0, owned(&["2500 x"]))]);
    }

    #[test]
    fn a_reply_without_end_is_bounded_and_keeps_what_counts() {
        let mut replies = Replies::default();
        let line = |text: &'static [u8]| Line {
            bytes: LineBytes::Lent(text),
            bare_lf: false,
            truncated: false,
            stream_len: text.len() + 2,
        };
        for text in [&b"250-SIZE"[..], b"250-STARTTLS"] {
            for _ in 0..10 * limits::REPLY_LINES {
                assert_eq!(replies.push(&line(text)), None);
            }
        }
        assert_eq!(replies.lines.len(), limits::REPLY_LINES);
        assert!(replies.begun && replies.lines.iter().any(|line| *line.text == *b"STARTTLS"));
    }
}
