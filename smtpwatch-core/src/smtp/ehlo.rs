//! Parser of the EHLO reply: an ordered list of capability lines, and how they offer STARTTLS. The main type is
//! [`Capabilities`]; the session fills it and the judge reads it.

use super::{
    auth::MechanismClass,
    reply::{Reply, ReplyLine},
    transcript::push_printable,
};
use crate::limits;

/// The keyword of a line of an EHLO reply, if it has the form of one: other words may be a name or a secret.
pub(crate) fn plain_keyword(line: &[u8]) -> Option<&[u8]> {
    let word = line.strip_prefix(b"250-").or_else(|| line.strip_prefix(b"250 "))?;
    let word = word.split(|byte| matches!(byte, b' ' | b'=' | b'\r')).next()?;
    let formed = (1..=20).contains(&word.len())
        && word.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'-');
    formed.then_some(word)
}

/// How STARTTLS is offered (docs/threats.md A3, A5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Offer {
    /// No client recognises it.
    Absent,
    /// Some clients recognise it: lower case, a parameter, an odd separator.
    Lenient,
    /// Exactly the form of RFC 3207 §2.
    Strict,
}

/// One capability line without code and separator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability<'a> {
    /// The line in printable form.
    pub text: &'a str,
    keyword: &'a str,
    /// Code of the line if it differs from the code of the reply: some clients skip such a line.
    other_code: Option<u16>,
    offer: Offer,
}

/// The capability list of the last complete EHLO reply in cleartext.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// The first line, in printable form: greeting text, never a keyword.
    pub first_line: String,
    /// Host name of the server in that line.
    pub name: Option<String>,
    /// STARTTLS is on the first line, where it is greeting text and no client recognises it (docs/threats.md A5).
    pub starttls_on_first_line: bool,
    /// Concatenated text of the lines after the first, in order. A keyword that is not a prefix of its line follows
    /// that line.
    texts: String,
    /// Boundaries within `texts`. One text and one compact list: an open flow retains them for its whole lifetime.
    places: Vec<Place>,
}

/// Boundaries of one line within [`Capabilities::texts`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    /// End of the line's text.
    text: u32,
    /// End of its keyword: after the text, or within it.
    keyword: u32,
    /// See [`Capability::other_code`]; [`SAME_CODE`] if it is the code of the reply.
    other_code: u16,
    /// How the line offers STARTTLS: computed once, because every verdict needs it.
    offer: Offer,
    /// See [`Capabilities::masked`].
    masked: bool,
}

/// Marks a line with the code of its reply. No reply has this value: a code has three digits.
const SAME_CODE: u16 = u16::MAX;

impl Capability<'_> {
    /// A mask preserves the length of the masked keyword (docs/threats.md FP-26).
    pub(crate) fn is_as_long_as_starttls(&self) -> bool {
        self.keyword.len() == "STARTTLS".len()
    }
}

impl Offer {
    /// How a line offers STARTTLS.
    fn of(text: &str, keyword: &str, other_code: Option<u16>) -> Self {
        match text.trim_end() {
            "STARTTLS" if other_code.is_none() => Self::Strict,
            _ if keyword == "STARTTLS" => Self::Lenient,
            _ => Self::Absent,
        }
    }
}

/// Keywords of eight letters, which a mask of eight letters may hide (docs/threats.md FP-26).
const EIGHT_LETTERS: [&str; 4] = ["STARTTLS", "CHUNKING", "8BITMIME", "SMTPUTF8"];

/// Keywords adjacent to STARTTLS in the capability lists of servers with a fixed order: before, after. From the
/// sources of Postfix (`smtpd.c`), Exim (`smtp_in.c`), Sendmail (`srvrsmtp.c`), and from replies of Exchange.
const STARTTLS_SLOTS: [(&[&str], &[&str]); 4] = [
    (&["ETRN", "VRFY"], &["AUTH", "AUTH=PLAIN", "AUTH=LOGIN", "XVERP", "XCLIENT", "ENHANCEDSTATUSCODES", "8BITMIME"]),
    (&["PIPELINING", "PIPECONNECT", "CHUNKING"], &["PRDR", "SMTPUTF8", "HELP"]),
    (&["DSN", "ETRN", "AUTH"], &["DELIVERBY"]),
    (&["ENHANCEDSTATUSCODES"], &["X-ANONYMOUSTLS", "AUTH", "8BITMIME"]),
];

impl Capabilities {
    /// Parses a reply to EHLO.
    pub(super) fn parse(reply: &Reply<'_>) -> Self {
        let mut capabilities = Self::default();
        capabilities.extend(reply);
        capabilities
    }

    /// Adds the lines of a continued reply (docs/threats.md A6, EV-17); the first line of the whole reply is greeting
    /// text, never a keyword.
    pub(super) fn extend(&mut self, reply: &Reply<'_>) {
        let mut lines = reply.lines.iter();
        if self.first_line.is_empty() && self.places.is_empty() {
            let first = lines.next().map(|line| &*line.text).unwrap_or_default();
            self.first_line = super::transcript::printable(first);
            self.name = host_name(first);
            self.starttls_on_first_line =
                first.split(u8::is_ascii_whitespace).any(|word| word.eq_ignore_ascii_case(b"STARTTLS"));
        }
        let room = limits::REPLY_LINES.saturating_sub(self.places.len());
        let lines = lines.as_slice();
        let lines = &lines[..lines.len().min(room)];
        self.places.reserve_exact(lines.len());
        self.texts.reserve_exact(lines.iter().map(|line| line.text.len()).sum());
        for line in lines {
            self.push(line, reply.code);
        }
        self.texts.shrink_to_fit();
    }

    fn push(&mut self, line: &ReplyLine<'_>, code: u16) {
        // Cannot overflow: at most a few hundred lines of a few thousand bytes.
        let end = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let start = self.texts.len();
        push_printable(&mut self.texts, &line.text);
        let text_end = self.texts.len();
        let lossy = String::from_utf8_lossy(&line.text);
        let word = keyword(&lossy);
        let text = self.texts.as_bytes()[start..].iter();
        let (begins, keyword) = if word.len() <= text.len()
            && text.zip(word.as_bytes()).all(|(text, word)| *text == word.to_ascii_uppercase())
        {
            (start, start + word.len())
        } else {
            self.texts.extend(word.chars().map(|c| c.to_ascii_uppercase()));
            (text_end, self.texts.len())
        };
        let other_code = (line.code != code).then_some(line.code);
        let own = &self.texts[begins..keyword];
        let offer = Offer::of(&self.texts[start..text_end], own, other_code);
        let masked = is_masked(own) || is_near_starttls(own);
        let other_code = other_code.unwrap_or(SAME_CODE);
        self.places.push(Place { text: end(text_end), keyword: end(keyword), other_code, offer, masked });
    }

    /// The lines after the first, in order.
    pub fn lines(&self) -> impl Iterator<Item = Capability<'_>> {
        let mut start = 0;
        self.places.iter().map(move |place| {
            let (text, keyword) = (place.text as usize, place.keyword as usize);
            let own = if keyword > text { text..keyword } else { start..keyword };
            let line = Capability {
                text: &self.texts[start..text],
                keyword: &self.texts[own],
                other_code: Some(place.other_code).filter(|code| *code != SAME_CODE),
                offer: place.offer,
            };
            start = text.max(keyword);
            line
        })
    }

    /// Number of lines after the first.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are no lines after the first.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The strongest offer of STARTTLS among the lines. Clients parse leniently (Postfix: any of ` `, tab, `=` ends
    /// the keyword, in any case), so its presence is judged leniently.
    #[must_use]
    pub fn offer(&self) -> Offer {
        self.offer_within(self.len())
    }

    /// The keywords in order, upper-case.
    pub fn keywords(&self) -> impl Iterator<Item = &str> {
        self.lines().map(|line| line.keyword)
    }

    /// The offer as seen by a client that reads only the first `lines` lines, up to the first line that ends the
    /// reply.
    #[must_use]
    pub fn offer_within(&self, lines: usize) -> Offer {
        self.places.iter().take(lines).map(|place| place.offer).max().unwrap_or(Offer::Absent)
    }

    /// The line that offers STARTTLS, in printable form; with its code if that differs from the code of the reply.
    #[must_use]
    pub fn offer_line(&self) -> Option<String> {
        let line = self.lines().nth(self.places.iter().position(|place| place.offer != Offer::Absent)?)?;
        Some(line.other_code.map_or_else(|| line.text.to_owned(), |code| format!("{code} {}", line.text)))
    }

    /// Whether every other keyword is in lower case too: then the server writes lower case, and the line was not
    /// edited.
    #[must_use]
    pub fn is_lower_case(&self) -> bool {
        let others = || self.lines().filter(|line| line.offer == Offer::Absent);
        others().next().is_some()
            && others().all(|line| {
                let keyword = line.text.split([' ', '=']).next().unwrap_or_default();
                !keyword.contains(|c: char| c.is_ascii_uppercase())
            })
    }

    /// Number of lines that offer STARTTLS.
    #[must_use]
    pub fn offers(&self) -> usize {
        self.places.iter().filter(|place| place.offer != Offer::Absent).count()
    }

    /// A line that contains STARTTLS without offering it: joined to another keyword, or without a separator
    /// (docs/threats.md A5).
    #[must_use]
    pub fn glued(&self) -> Option<&str> {
        let line = self.lines().find(|line| line.text.to_ascii_uppercase().contains("STARTTLS"));
        line.filter(|line| line.offer == Offer::Absent).map(|line| line.text)
    }

    /// Whether a keyword, given in upper case, is in the list.
    #[must_use]
    pub fn has(&self, keyword: &str) -> bool {
        self.lines().any(|line| line.keyword == keyword)
    }

    /// The lines that were overwritten in place: the whole keyword is a run of `X` with a letter at its end, as
    /// Cisco's SMTP inspection writes it (docs/threats.md A2), or STARTTLS with one letter changed (A3).
    pub fn masked(&self) -> impl Iterator<Item = (usize, Capability<'_>)> {
        let any = self.places.iter().any(|place| place.masked);
        let lines = any.then(|| self.lines().zip(&self.places)).into_iter().flatten();
        lines.enumerate().filter(|(_, (_, place))| place.masked).map(|(index, (line, _))| (index, line))
    }

    /// Whether a masked line is STARTTLS, by elimination or by its position in the list (docs/threats.md FP-26): a
    /// mask preserves the length of the masked keyword, and that keyword is missing from the rest of the list.
    #[must_use]
    pub fn mask_is_starttls(&self, index: usize) -> bool {
        let Some(line) = self.lines().nth(index) else { return false };
        if is_near_starttls(line.keyword) {
            return true;
        }
        if !line.is_as_long_as_starttls() {
            return false;
        }
        let others_present =
            EIGHT_LETTERS.iter().filter(|keyword| **keyword != "STARTTLS").all(|keyword| self.has(keyword));
        let neighbour = |at: Option<usize>| at.and_then(|at| self.lines().nth(at)).map(|line| line.keyword);
        let (before, after) = (neighbour(index.checked_sub(1)), neighbour(index.checked_add(1)));
        let in_slot = STARTTLS_SLOTS.iter().any(|(befores, afters)| {
            before.is_some_and(|keyword| befores.contains(&keyword))
                && after.is_some_and(|keyword| afters.contains(&keyword))
        });
        others_present || in_slot
    }

    /// SASL mechanisms offered that send the secret itself, in upper case, without duplicates; from `AUTH PLAIN` and
    /// `AUTH=PLAIN`.
    #[must_use]
    pub fn plaintext_mechanisms(&self) -> Vec<String> {
        let mut found = Vec::new();
        for line in self.lines().filter(|line| line.keyword == "AUTH") {
            for word in line.text.to_ascii_uppercase().split([' ', '\t', '=']).skip(1) {
                if MechanismClass::of(word) == MechanismClass::Plaintext && !found.iter().any(|known| known == word) {
                    found.push(word.to_owned());
                }
            }
        }
        found
    }
}

/// Whether a line may be a capability (RFC 5321 §4.1.1.1), rather than the text of another reply such as `2.0.0 Ok`
/// or `OK`.
pub(super) fn may_be_keyword(line: &[u8]) -> bool {
    let line = String::from_utf8_lossy(line);
    let keyword = keyword(&line);
    let formed = keyword.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'));
    formed && !keyword.is_empty() && !keyword.eq_ignore_ascii_case("OK")
}

/// The keyword of a capability line in any case, as lenient clients parse it.
fn keyword(line: &str) -> &str {
    let bytes = line.as_bytes();
    let start = bytes.iter().position(|byte| !matches!(byte, b' ' | b'-' | b'\t')).unwrap_or(bytes.len());
    let ends = |byte: &u8| matches!(byte, b' ' | b'\t' | b'=');
    let end = bytes[start..].iter().position(ends).map_or(bytes.len(), |length| start + length);
    &line[start..end]
}

fn is_masked(keyword: &str) -> bool {
    let bytes = keyword.as_bytes();
    bytes.len() >= 4
        && bytes[..bytes.len() - 1].iter().all(|&c| c == b'X')
        && bytes.last().is_some_and(u8::is_ascii_uppercase)
}

fn is_near_starttls(keyword: &str) -> bool {
    keyword.len() == "STARTTLS".len() && keyword.bytes().zip("STARTTLS".bytes()).filter(|(a, b)| a != b).count() == 1
}

/// The host name at the start of a greeting or of an EHLO reply: a name with a dot, or an address literal.
pub(super) fn host_name(line: &[u8]) -> Option<String> {
    let word = line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty())?;
    let word = std::str::from_utf8(word).ok()?.trim_end_matches('.');
    let literal = word.starts_with('[') && word.ends_with(']');
    let formed = word.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '[' | ']'));
    (word.len() <= 255 && formed && (literal || word.contains('.'))).then(|| word.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(lines: &[&str]) -> Capabilities {
        parse(&[&["mx.example.net Hello"], lines].concat())
    }

    fn parse(lines: &[&str]) -> Capabilities {
        let line = |text: &&str| ReplyLine { code: 250, text: text.as_bytes().into() };
        Capabilities::parse(&Reply { code: 250, lines: lines.iter().map(line).collect() })
    }

    #[test]
    fn the_offer_is_read_as_clients_read_it() {
        for (line, offer) in [
            ("STARTTLS", Offer::Strict),
            ("starttls", Offer::Lenient),
            ("STARTTLS ", Offer::Strict),
            (" STARTTLS", Offer::Lenient),
            ("STARTTLS=", Offer::Lenient),
            ("STARTTLS REQUIRED", Offer::Lenient),
            ("STARTTLSX", Offer::Absent),
            ("XXXXXXXA", Offer::Absent),
        ] {
            assert_eq!(capabilities(&["SIZE 1", line]).offer(), offer, "{line:?}");
        }
        let first_line = parse(&["STARTTLS", "SIZE 1"]);
        assert_eq!(first_line.offer(), Offer::Absent, "the first line is greeting text (A5)");
    }

    #[test]
    fn masks_are_whole_words_of_x() {
        for (line, masked) in [
            ("XXXXXXXA", true),
            ("XXXXXXXX", true),
            ("XXXB", true),
            ("XXXXXXXXXXXE", true),
            ("XXXXXXA 35882577", true),
            ("STARTTLX", true),
            ("XCLIENT", false),
            ("XXXA1", false),
            ("X-EXPS", false),
            ("XXXXXXXX.com", false),
            ("CHUNKING", false),
        ] {
            assert_eq!(capabilities(&[line]).masked().count(), usize::from(masked), "{line}");
        }
        let name_of_x = parse(&["XXXXXXXX Hello"]);
        assert_eq!(name_of_x.masked().count(), 0, "FP-15");
    }

    #[test]
    fn a_mask_is_starttls_only_by_place_or_by_elimination() {
        assert!(capabilities(&["ETRN", "XXXXXXXA", "ENHANCEDSTATUSCODES"]).mask_is_starttls(1), "Postfix order");
        assert!(capabilities(&["CHUNKING", "XXXXXXXA", "HELP"]).mask_is_starttls(1), "Exim order");
        assert!(capabilities(&["8BITMIME", "CHUNKING", "SMTPUTF8", "XXXXXXXA"]).mask_is_starttls(3), "by elimination");
        assert!(
            !capabilities(&["BINARYMIME", "XXXXXXXB", "XXXC"]).mask_is_starttls(1),
            "FP-26: Exchange 2003's CHUNKING"
        );
        assert!(!capabilities(&["ETRN", "XXXB", "ENHANCEDSTATUSCODES"]).mask_is_starttls(1), "a mask keeps the length");
        assert!(capabilities(&["STARTTLX"]).mask_is_starttls(0));
    }

    #[test]
    fn plaintext_mechanisms_in_both_dialects() {
        let found = capabilities(&["AUTH CRAM-MD5 LOGIN", "AUTH=LOGIN PLAIN"]).plaintext_mechanisms();
        assert_eq!(found, ["LOGIN", "PLAIN"]);
        assert!(capabilities(&["AUTH SCRAM-SHA-256 GSSAPI", "XAUTH PLAIN"]).plaintext_mechanisms().is_empty());
    }

    #[test]
    fn host_names_are_read_or_left_out() {
        assert_eq!(host_name(b"MX1.example.net ESMTP").as_deref(), Some("mx1.example.net"));
        assert_eq!(host_name(b"[192.0.2.1] ready").as_deref(), Some("[192.0.2.1]"));
        for text in [&b"ESMTP ready"[..], b"", b"<script>.x", b"***.***"] {
            assert_eq!(host_name(text), None);
        }
    }
}
