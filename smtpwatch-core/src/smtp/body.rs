//! A message body after 354: the session only looks for its end.

/// State of the client's stream within a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Body {
    /// Bytes of CRLF.CRLF matched so far.
    pub(super) matched: u8,
    /// A reply refused the message before its end was seen: the client may still be sending it.
    pub(super) refused: bool,
    /// Bytes of the message are missing, possibly including its end: a reply after the gap is the reply to the
    /// message.
    pub(super) hole: bool,
}

impl Body {
    /// A dot directly after the DATA line ends an empty message: CRLF counts as matched.
    pub(super) const START: Self = Self { matched: 2, refused: false, hole: false };

    /// Skips bytes up to and including CRLF.CRLF. Nothing else ends a message here (docs/threats.md E5).
    pub(super) fn scan(&mut self, input: &mut &[u8]) -> bool {
        const END: &[u8] = b"\r\n.\r\n";
        for (at, &byte) in input.iter().enumerate() {
            self.matched = match byte {
                _ if byte == END[usize::from(self.matched)] => self.matched + 1,
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
