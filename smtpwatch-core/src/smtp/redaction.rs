//! Redaction of lines: hides secrets, user names, and arguments of unknown verbs.
//!
//! [`Redacted`] decides once for each byte how it is shown; the transcript and the evidence are two renderings of the
//! same decision.

use std::{borrow::Cow, fmt::Write as _, ops::Range};

use super::{
    auth::MechanismClass,
    command::{Command, split_word},
    secret::{BLANK, Secret},
    transcript::{is_verb, push_printable_whole},
};
use crate::{evidence, limits, secret_buffer::SecretBuffer};

/// How a byte is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mark {
    /// Unchanged.
    Plain,
    /// As `[secret]`.
    Secret,
    /// As `[12 bytes]`.
    Counted,
    /// As `*`.
    Starred,
    /// As `*` too: an identity that authenticated to the client (RFC 4954 §5).
    Identity,
}

/// A line with some bytes hidden.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Redacted<'a> {
    line: &'a [u8],
    /// One mark for each byte; empty if all bytes are plain.
    marks: Vec<Mark>,
}

/// Estimate of the bytes that redaction adds to the printable form of a line.
const REPLACED: usize = 16;

impl<'a> Redacted<'a> {
    const fn plain(line: &'a [u8]) -> Self {
        Self { line, marks: Vec::new() }
    }

    /// Hides the whole line except its length and the surrounding blanks.
    pub(super) fn nothing(line: &'a [u8]) -> Self {
        Self::plain(line).counted(line.trim_ascii())
    }

    /// Redacts a command.
    pub(super) fn command(command: &Command, line: &'a [u8]) -> Self {
        let (verb, rest) = split_word(line);
        let shown = Self::plain(line);
        match command {
            Command::Auth { mechanism, .. } => {
                let (word, rest) = split_word(rest);
                let initial = rest.trim_ascii();
                let shown = if initial == b"=" { shown } else { shown.counted(initial) };
                // A word that is not a mechanism may be the secret itself.
                let known = MechanismClass::of(mechanism.name()) != MechanismClass::Unknown;
                if known { shown } else { shown.counted(word) }
            }
            Command::Other if is_verb(verb) => shown.counted(rest.trim_ascii()),
            Command::Other => Self::nothing(line),
            Command::Mail { .. } | Command::Rcpt(_) => shown.without_path(),
            Command::Ehlo(_) | Command::Helo(_) | Command::Turn => shown.with_words(rest, 1),
            Command::Bdat { .. } => shown.with_words(rest, 2),
            Command::Starttls | Command::Data | Command::Rset | Command::Quit => shown.with_words(rest, 0),
        }
    }

    /// Redacts everything but the code of a reply.
    pub(super) fn code_alone(line: &'a [u8]) -> Self {
        Self::plain(line).counted(&line[line.len().min(4)..])
    }

    /// Redacts a reply, which may quote what the client sent. `answers_other`: the command was not a known one.
    pub(super) fn reply<'s>(line: &'a [u8], secrets: impl Iterator<Item = &'s Secret>, answers_other: bool) -> Self {
        let mut shown = Self::plain(line);
        for secret in secrets {
            for range in secret.places(line) {
                shown.mark(range, Mark::Secret);
            }
        }
        if answers_other {
            shown = shown.without_quotes();
        }
        shown.without_local_parts(0..line.len())
    }

    /// The line in printable form, with at most [`limits::TRANSCRIPT_LINE`] plain bytes.
    pub(super) fn text(&self) -> String {
        let mut text = String::with_capacity(self.length());
        self.write(&mut text);
        text
    }

    /// Estimated length of the printable form, in bytes.
    pub(super) fn length(&self) -> usize {
        let replaced = if self.marks.is_empty() { 0 } else { REPLACED };
        self.line.len().min(limits::TRANSCRIPT_LINE) + replaced
    }

    /// Appends [`Self::text`] to `text`.
    pub(super) fn write(&self, text: &mut String) {
        if self.marks.is_empty() && self.line.len() <= limits::TRANSCRIPT_LINE {
            return push_printable_whole(text, self.line);
        }
        let (mut room, mut cut) = (limits::TRANSCRIPT_LINE, 0);
        for (range, mark) in self.runs() {
            let length = range.len();
            // Writing to a String cannot fail.
            match mark {
                Mark::Plain => {
                    let fits = length.min(room);
                    push_printable_whole(text, &self.line[range.start..range.start + fits]);
                    (room, cut) = (room - fits, cut + length - fits);
                }
                Mark::Secret => text.push_str(BLANK),
                Mark::Counted => _ = write!(text, "[{length} bytes]"),
                Mark::Starred | Mark::Identity => text.push('*'),
            }
        }
        if cut > 0 {
            let _ = write!(text, "[{cut} bytes cut]");
        }
    }

    /// The bytes of the line with the hidden ones overwritten; the length is unchanged.
    pub(super) fn bytes(&self) -> Cow<'a, [u8]> {
        if self.marks.is_empty() {
            return self.line.into();
        }
        let blank = |(byte, mark): (&u8, &Mark)| if *mark == Mark::Plain { *byte } else { evidence::BLANK };
        self.line.iter().zip(&self.marks).map(blank).collect::<Vec<_>>().into()
    }

    /// The parts of the line that violate the grammar of its command, or that name an authenticated identity: they
    /// may be secrets in the wrong place, and a server may quote them. `None` if there are none.
    pub(super) fn unexpected(&self) -> Option<Secret> {
        let mut words = SecretBuffer::default();
        for (range, _) in self.runs().filter(|(_, mark)| matches!(mark, Mark::Counted | Mark::Identity)) {
            words.extend_from_slice(&self.line[range]);
            words.extend_from_slice(b" ");
        }
        (!words.is_empty()).then(|| Secret::new(&words))
    }

    /// Runs of adjacent bytes with the same mark.
    fn runs(&self) -> impl Iterator<Item = (Range<usize>, Mark)> {
        let mut start = 0;
        std::iter::from_fn(move || {
            if start >= self.line.len() {
                return None;
            }
            let mark = self.marks.get(start).copied().unwrap_or(Mark::Plain);
            let same = self.marks.get(start..).unwrap_or_default().iter().take_while(|other| **other == mark).count();
            let end = if same == 0 { self.line.len() } else { start + same };
            Some((std::mem::replace(&mut start, end)..end, mark))
        })
    }

    fn mark(&mut self, range: Range<usize>, mark: Mark) {
        if range.is_empty() {
            return;
        }
        if self.marks.is_empty() {
            self.marks = vec![Mark::Plain; self.line.len()];
        }
        if let Some(marks) = self.marks.get_mut(range) {
            marks.fill(mark);
        }
    }

    /// Hides a part of the line but shows its length.
    fn counted(mut self, part: &[u8]) -> Self {
        self.mark(self.place(part), Mark::Counted);
        self
    }

    /// The range of a part of the line within it.
    fn place(&self, part: &[u8]) -> Range<usize> {
        let start = part.as_ptr().addr().saturating_sub(self.line.as_ptr().addr());
        start..start + part.len()
    }

    /// Shows the first `words` words, as many as the grammar of the verb has; the rest is replaced with its length.
    fn with_words(mut self, mut rest: &'a [u8], words: usize) -> Self {
        for _ in 0..words {
            let (word, more) = split_word(rest);
            let place = self.place(word);
            self = self.without_local_parts(place);
            rest = more;
        }
        self.counted(rest.trim_ascii())
    }

    /// Hides the quotations in a refusal of an unknown line, which may be body text if the server refused the
    /// message. A quoted verb stays visible: it may differ from the one that was sent (docs/threats.md FO-12).
    fn without_quotes(mut self) -> Self {
        let line = self.line;
        for piece in line.split(|byte| b"\"'`".contains(byte)).skip(1).step_by(2) {
            if !is_verb(piece) {
                self = self.counted(piece);
            }
        }
        self
    }

    /// MAIL and RCPT: hides the local part, which is everything between `<` (or the colon) and the last `@` of the
    /// path, quoted or not, and the identity in the AUTH parameter (RFC 4954 §5).
    fn without_path(mut self) -> Self {
        let line = self.line;
        let end = line.iter().position(|byte| *byte == b'>').unwrap_or(line.len());
        let start = line[..end].iter().position(|byte| b"<:".contains(byte)).map_or(0, |at| at + 1);
        // Requires exactly `MAIL FROM` or `RCPT TO` before the path.
        let (_, before) = split_word(&line[..start]);
        let before = before.trim_ascii_end().strip_suffix(b":").unwrap_or(before).trim_ascii();
        if !before.eq_ignore_ascii_case(b"FROM") && !before.eq_ignore_ascii_case(b"TO") {
            self = self.counted(before);
        }
        let path = line[start..end].trim_ascii();
        let path = path.strip_prefix(b"<").unwrap_or(path);
        let local = path.iter().rposition(|byte| *byte == b'@').unwrap_or(path.len());
        self.mark(self.place(&path[..local]), Mark::Starred);
        for word in line[end..].split(|byte| *byte == b' ') {
            let name = word.split(|byte| *byte == b'=').next().unwrap_or_default();
            let is = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
            if IDENTITIES.iter().any(is) {
                let value = word.get(name.len() + 1..).unwrap_or_default();
                let names_user = name.eq_ignore_ascii_case(b"AUTH") && value != b"<>";
                self.mark(self.place(value), if names_user { Mark::Identity } else { Mark::Starred });
            } else if !matches!(word, b"" | b">") && !PARAMETERS.iter().any(is) {
                self = self.counted(word);
            }
        }
        self
    }

    /// Shows `local@domain` as `*@domain`: full addresses belong in the mail server's log, under the retention rules
    /// of its operator.
    fn without_local_parts(mut self, range: Range<usize>) -> Self {
        let line = self.line;
        let Some(part) = line.get(range).filter(|part| part.contains(&b'@')) else { return self };
        for word in part.split(|byte| b"<>:,;()[] \t".contains(byte)) {
            if let Some(at) = word.iter().rposition(|byte| *byte == b'@') {
                self.mark(self.place(&word[..at]), Mark::Starred);
            }
        }
        self
    }
}

/// Parameters of MAIL and RCPT whose values are shown (IANA registry of SMTP service extensions).
const PARAMETERS: [&str; 12] = [
    "SIZE",
    "BODY",
    "SMTPUTF8",
    "RET",
    "NOTIFY",
    "REQUIRETLS",
    "HOLDFOR",
    "HOLDUNTIL",
    "BY",
    "MT-PRIORITY",
    "RRVS",
    "CONPERM",
];
/// Parameters of MAIL and RCPT that hold an identity.
const IDENTITIES: [&str; 3] = ["AUTH", "ENVID", "ORCPT"];

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> (String, String) {
        let shown = Redacted::command(&Command::parse(line.as_bytes()), line.as_bytes());
        (shown.text(), String::from_utf8(shown.bytes().into_owned()).expect("text"))
    }

    #[test]
    fn what_is_hidden_is_hidden_in_both_ways_of_writing() {
        for (line, text, bytes) in [
            ("EHLO mail.example.org", "EHLO mail.example.org", "EHLO mail.example.org"),
            ("EHLO anna@example.org x", "EHLO *@example.org [1 bytes]", "EHLO ****@example.org *"),
            ("AUTH PLAIN AGEAYg==", "AUTH PLAIN [8 bytes]", "AUTH PLAIN ********"),
            ("auth login", "auth login", "auth login"),
            ("AUTH PLAIN =", "AUTH PLAIN =", "AUTH PLAIN ="),
            ("AUTH hunter2", "AUTH [7 bytes]", "AUTH *******"),
            ("AUTH AGEAYg==", "AUTH [8 bytes]", "AUTH ********"),
            (
                "MAIL FROM:<a.b@example.org> SIZE=9",
                "MAIL FROM:<*@example.org> SIZE=9",
                "MAIL FROM:<***@example.org> SIZE=9",
            ),
            ("MAIL FROM: <a@example.org>", "MAIL FROM: <*@example.org>", "MAIL FROM: <*@example.org>"),
            ("MAIL FROM:<>", "MAIL FROM:<>", "MAIL FROM:<>"),
            ("MAIL FROM:<a@b> AUTH=anna X=1", "MAIL FROM:<*@b> AUTH=* [3 bytes]", "MAIL FROM:<*@b> AUTH=**** ***"),
            ("RCPT TO:<\"a@b c\"@example.net>", "RCPT TO:<*@example.net>", "RCPT TO:<*******@example.net>"),
            ("RCPT TO:postmaster", "RCPT TO:*", "RCPT TO:**********"),
            ("RCPT hunter2 TO:<a@b>", "RCPT [10 bytes]:<*@b>", "RCPT **********:<*@b>"),
            ("STARTTLS now", "STARTTLS [3 bytes]", "STARTTLS ***"),
            ("XXXX mail.example.org", "XXXX [16 bytes]", "XXXX ****************"),
            ("dXNlcg==", "[8 bytes]", "********"),
            ("BDAT 100 LAST", "BDAT 100 LAST", "BDAT 100 LAST"),
            ("", "", ""),
        ] {
            assert_eq!(command(line), (text.to_owned(), bytes.to_owned()), "{line}");
            assert_eq!(command(line).1.len(), line.len());
        }
    }

    #[test]
    fn a_long_line_is_cut_and_what_is_hidden_is_counted_whole() {
        let long = format!("EHLO {}", "a".repeat(1000));
        assert!(command(&long).0.ends_with("a[493 bytes cut]"));
        let long = format!("AUTH PLAIN {}", "A".repeat(12_000));
        assert_eq!(command(&long).0, "AUTH PLAIN [12000 bytes]");
    }

    #[test]
    fn replies_quote_no_secret() {
        let secrets = [Secret::new(b"AGFubmEATjB0LWEtczNjcmV0")];
        let shown = |line: &'static str, other| {
            let shown = Redacted::reply(line.as_bytes(), secrets.iter(), other);
            (shown.text(), String::from_utf8_lossy(&shown.bytes()).into_owned())
        };
        assert_eq!(
            shown("535 user anna, password N0t-a-s3cret wrong", false),
            ("535 user [secret], password [secret] wrong".into(), "535 user ****, password ************ wrong".into())
        );
        assert_eq!(shown("250 <anna.b@example.org> ok", false).1, "250 <******@example.org> ok");
        assert_eq!(shown("500 unknown: \"hello there\"", true).0, "500 unknown: \"[11 bytes]\"");
        assert_eq!(shown("500 unknown: \"XXXX\"", true).0, "500 unknown: \"XXXX\"");
        assert_eq!(Redacted::code_alone(b"250-a secret").text(), "250-[8 bytes]");
        assert_eq!(Redacted::code_alone(b"25").bytes(), &b"25"[..]);
    }
}
