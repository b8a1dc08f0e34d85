//! A message after 354, of which nothing needs to be seen but its end.

/// How far into a message the client's stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Body {
    /// Bytes of CRLF.CRLF matched so far.
    pub(super) matched: u8,
    /// A reply came that did not accept the message, and its end was not seen: the client may still be sending it.
    pub(super) refused: bool,
    /// Bytes of it were left out, its end perhaps among them: a reply after them is the reply to the message.
    pub(super) hole: bool,
}

impl Body {
    /// A dot directly after 354's line is the end of an empty message: CRLF counts as matched.
    pub(super) const START: Self = Self { matched: 2, refused: false, hole: false };

    /// Skips bytes up to and including CRLF.CRLF. Nothing else ends a message here (docs/threats.md E5).
    pub(super) fn scan(&mut self, input: &mut &[u8]) -> bool {
        const END: &[u8] = b"\r\n.\r\n";
        for (at, &octet) in input.iter().enumerate() {
            self.matched = match octet {
                _ if octet == END[usize::from(self.matched)] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            if usize::from(self.matched) == END.len() {
                *input = &input[at + 1..];
                return true;
            }
        }
        *input = &[];
        false
    }
}
