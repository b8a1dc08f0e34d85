//! Parser of command lines: the client's side of the dialogue.

use super::{auth, verb::Verb};
use crate::secret_buffer::SecretBuffer;

/// One parsed command line, with the parameters that the session needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// `EHLO`, or `LHLO` (RFC 2033), with the name given.
    Ehlo(String),
    /// `HELO` with the name given.
    Helo(String),
    /// `STARTTLS`, or Exchange's `X-ANONYMOUSTLS`, which starts TLS the same way.
    Starttls,
    /// `AUTH` or Exchange's `X-EXPS`.
    Auth {
        /// Mechanism, if the word has the form of one.
        mechanism: auth::Mechanism,
        /// Bytes of the initial response; `None` without one. `=` is a response of no bytes (RFC 4954 §4).
        initial: Option<usize>,
    },
    /// `MAIL FROM`.
    Mail {
        /// `REQUIRETLS` is among the parameters (RFC 8689).
        requiretls: bool,
        /// Keywords of the EHLO reply that the parameters make use of.
        acted_on: Vec<&'static str>,
    },
    /// `RCPT TO`, with the domain of the recipient in lower case, if it can be parsed.
    Rcpt(Option<String>),
    /// `DATA`.
    Data,
    /// `BDAT`, with the size of the chunk in bytes; `None` if it is not a number.
    Bdat {
        /// Bytes that follow the line.
        size: Option<u64>,
        /// Last chunk of the message.
        last: bool,
    },
    /// `TURN` (RFC 821 §3.8) or `ATRN` (RFC 2645): client and server swap roles.
    Turn,
    /// `RSET`.
    Rset,
    /// `QUIT`.
    Quit,
    /// Any other verb.
    Other,
}

impl Command {
    /// Parses a line. Never fails: an unrecognised line is [`Command::Other`].
    pub(super) fn parse(line: &[u8]) -> Self {
        let (verb, rest) = split_word(line);
        match Verb::of(verb).as_str() {
            "EHLO" | "LHLO" => Self::Ehlo(word(rest)),
            "HELO" => Self::Helo(word(rest)),
            "STARTTLS" => Self::Starttls,
            "AUTH" | "X-EXPS" => parse_auth(rest),
            "MAIL" => parse_mail(rest),
            "RCPT" => Self::Rcpt(domain(rest)),
            "DATA" if trim(rest).is_empty() => Self::Data,
            "BDAT" => parse_bdat(rest),
            "TURN" | "ATRN" => Self::Turn,
            "RSET" => Self::Rset,
            "QUIT" => Self::Quit,
            // Longer than `Verb` holds.
            _ if verb.eq_ignore_ascii_case(b"X-ANONYMOUSTLS") => Self::Starttls,
            _ => Self::Other,
        }
    }
}

/// Existing commands that [`Command`] does not represent, in upper case: RFC 5321, RFC 821, RFC 1985, RFC 4468, those
/// of Postfix and of Exchange, and the methods of HTTP, which reach mail ports by mistake. Any other word may be a
/// secret.
const OTHERS: [&[u8]; 23] = [
    b"NOOP",
    b"HELP",
    b"VRFY",
    b"EXPN",
    b"SEND",
    b"SOML",
    b"SAML",
    b"ETRN",
    b"BURL",
    b"ONEX",
    b"XUSR",
    b"XCLIENT",
    b"XFORWARD",
    b"XEXCH50",
    b"X-LINK2STATE",
    b"XSHADOW",
    b"XRDST",
    b"XPROXYTO",
    b"PROXY",
    b"GET",
    b"POST",
    b"HEAD",
    b"CONNECT",
];
/// Verbs of the commands that [`Command`] represents, and the cancellation of AUTH.
const FOLLOWED: [&[u8]; 16] = [
    b"EHLO",
    b"LHLO",
    b"HELO",
    b"STARTTLS",
    b"X-ANONYMOUSTLS",
    b"AUTH",
    b"X-EXPS",
    b"MAIL",
    b"RCPT",
    b"DATA",
    b"BDAT",
    b"TURN",
    b"ATRN",
    b"RSET",
    b"QUIT",
    b"*",
];

/// Whether a word is the verb of an existing command.
pub(super) fn is_known(word: &[u8]) -> bool {
    OTHERS.iter().chain(&FOLLOWED).any(|verb| word.eq_ignore_ascii_case(verb))
}

/// Repairs a command whose first letters were overwritten with NULs: two copies of the segment arrived, and one is a
/// keep-alive that some stacks send with an acknowledgment. The rest of the verb identifies the command; `None` for
/// any other line.
pub(super) fn without_nuls(line: &[u8]) -> Option<SecretBuffer> {
    let (word, _) = split_word(line);
    let nuls = word.iter().take_while(|byte| **byte == 0).count();
    if nuls == 0 {
        return None;
    }
    let left = &word[nuls..];
    let same = |verb: &&&[u8]| verb.len() == word.len() && verb[nuls..].eq_ignore_ascii_case(left);
    let verb = FOLLOWED.iter().find(same).filter(|_| !left.is_empty())?;
    let start = line.len() - line.trim_ascii_start().len();
    let mut restored = SecretBuffer::from(line);
    restored[start..start + verb.len()].copy_from_slice(verb);
    Some(restored)
}

/// A line without content: blanks, and the NULs that some clients send to keep a connection open.
pub(super) fn is_blank(line: &[u8]) -> bool {
    line.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0)
}

/// Whether a line where a SASL response is possible is one: a single word that is not a command.
pub(super) fn is_response(line: &[u8]) -> bool {
    !line.is_empty() && !line.contains(&b' ') && Command::parse(line) == Command::Other && !is_known(line)
}

/// The first word and the rest of the line. Leading blanks are skipped (docs/threats.md EV-14).
pub(super) fn split_word(line: &[u8]) -> (&[u8], &[u8]) {
    let line = line.trim_ascii_start();
    line.split_at(line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len()))
}

fn trim(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii()
}

fn word(rest: &[u8]) -> String {
    String::from_utf8_lossy(split_word(rest).0).chars().take(255).collect()
}

fn parse_auth(rest: &[u8]) -> Command {
    let (mechanism, rest) = split_word(rest);
    let initial = trim(rest);
    let initial = match initial {
        b"" => None,
        b"=" => Some(0),
        _ => Some(initial.len()),
    };
    Command::Auth { mechanism: auth::Mechanism::parse(mechanism), initial }
}

fn parse_bdat(rest: &[u8]) -> Command {
    let (size, rest) = split_word(rest);
    let last = rest.trim_ascii();
    // A server refuses any other word here and does not read a chunk.
    let tail = last.is_empty() || last.eq_ignore_ascii_case(b"LAST");
    let size = Some(size).filter(|_| tail).and_then(|size| std::str::from_utf8(size).ok());
    let size = size.filter(|text| text.bytes().all(|c| c.is_ascii_digit()));
    Command::Bdat { size: size.and_then(|text| text.parse().ok()), last: last.eq_ignore_ascii_case(b"LAST") }
}

/// Parameters of MAIL, and the keyword of the EHLO reply that each of them uses.
const ACTED_ON: [(&[u8], &str); 5] =
    [(b"SIZE", "SIZE"), (b"BODY", "8BITMIME"), (b"SMTPUTF8", "SMTPUTF8"), (b"RET", "DSN"), (b"ENVID", "DSN")];

fn parse_mail(rest: &[u8]) -> Command {
    let after = rest.iter().rposition(|&c| c == b'>').map_or(rest, |at| &rest[at + 1..]);
    let mut requiretls = false;
    let mut acted_on = Vec::new();
    // Compared in place: a copy of a parameter may hold a secret and would be freed without being overwritten.
    for parameter in after.split(u8::is_ascii_whitespace) {
        requiretls |= parameter.eq_ignore_ascii_case(b"REQUIRETLS");
        let name = parameter.split(|&c| c == b'=').next().unwrap_or_default();
        let known = ACTED_ON.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
        acted_on.extend(known.map(|(_, keyword)| *keyword));
    }
    Command::Mail { requiretls, acted_on }
}

/// The domain of `TO:<local@domain>`, with or without brackets.
fn domain(rest: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(rest).ok()?;
    let (_, path) = text.split_once(':')?;
    let path = path.trim_start();
    let path = match path.strip_prefix('<') {
        Some(inner) => inner.split_once('>').map_or(inner, |(inner, _)| inner),
        None => path.split_ascii_whitespace().next()?,
    };
    let (_, domain) = path.rsplit_once('@')?;
    (!domain.is_empty() && domain.len() <= 255).then(|| domain.trim_end_matches('.').to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_taken_apart() {
        let auth = |name: &str, initial| Command::Auth { mechanism: auth::Mechanism::parse(name.as_bytes()), initial };
        for (line, expected) in [
            (&b"EHLO mail.example.org"[..], Command::Ehlo("mail.example.org".into())),
            (b"eHlO  x ", Command::Ehlo("x".into())),
            (b"HELO x", Command::Helo("x".into())),
            (b"  sTaRtTlS ", Command::Starttls),
            (b"STARTTLSX", Command::Other),
            (b"\tSTARTTLS\t", Command::Starttls),
            (b"AUTH PLAIN AHVzZXIAcGFzcw==", auth("PLAIN", Some(16))),
            (b"auth plain", auth("PLAIN", None)),
            (b"AUTH PLAIN =", auth("PLAIN", Some(0))),
            (b"X-EXPS LOGIN", auth("LOGIN", None)),
            (b"MAIL FROM:<a@b> AUTH=<>", Command::Mail { requiretls: false, acted_on: vec![] }),
            (b"MAIL FROM:<a@b> REQUIRETLS size=9", Command::Mail { requiretls: true, acted_on: vec!["SIZE"] }),
            (b"MAIL FROM:<REQUIRETLS@b>", Command::Mail { requiretls: false, acted_on: vec![] }),
            (b"RCPT TO:<A@Example.ORG> NOTIFY=NEVER", Command::Rcpt(Some("example.org".into()))),
            (b"RCPT TO: a@example.org", Command::Rcpt(Some("example.org".into()))),
            (b"RCPT TO:<postmaster>", Command::Rcpt(None)),
            (b"RCPT", Command::Rcpt(None)),
            (b"DATA", Command::Data),
            (b"data ", Command::Data),
            (b"BDAT 100 LAST", Command::Bdat { size: Some(100), last: true }),
            (b"BDAT 0", Command::Bdat { size: Some(0), last: false }),
            (b"BDAT -1 LAST", Command::Bdat { size: None, last: true }),
            (b"BDAT 99999999999999999999999 LAST", Command::Bdat { size: None, last: true }),
            (b"BDAT +1", Command::Bdat { size: None, last: false }),
            (b"BDAT 5 X", Command::Bdat { size: None, last: false }),
            (b"TURN", Command::Turn),
            (b"ATRN example.org", Command::Turn),
            (b"RSET", Command::Rset),
            (b"QUIT", Command::Quit),
            (b"", Command::Other),
            (b"\x00\xff\xf4", Command::Other),
        ] {
            assert_eq!(Command::parse(line), expected, "{:?}", String::from_utf8_lossy(line));
        }
    }
}
