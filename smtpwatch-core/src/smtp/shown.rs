//! Commands and replies as the transcript shows them: no secret, no user name, no argument of a verb that nobody knows.

use std::{borrow::Cow, fmt::Write as _};

use super::{
    command::{Command, split_word},
    transcript::{is_verb, printable},
};

/// A command as the transcript shows it: no secret, no user name, no argument of a verb that nobody knows.
pub(super) fn shown(command: &Command, line: &[u8]) -> String {
    let (verb, rest) = split_word(line);
    match command {
        Command::Auth { mechanism, initial } => match initial {
            Some(octets) => format!("{} {} [{octets} octets]", printable(verb), mechanism.name()),
            None => format!("{} {}", printable(verb), mechanism.name()),
        },
        Command::Other => {
            let rest = rest.trim_ascii().len();
            let verb = if is_verb(verb) { printable(verb) } else { format!("[{} octets]", verb.len()) };
            if rest == 0 { verb } else { format!("{verb} [{rest} octets]") }
        }
        Command::Mail { .. } | Command::Rcpt(_) => blank_path(&printable(line)),
        Command::Ehlo(_) | Command::Helo(_) | Command::Turn => with_words(verb, rest, 1),
        Command::Bdat { .. } => with_words(verb, rest, 2),
        Command::Starttls | Command::Data | Command::Rset | Command::Quit => with_words(verb, rest, 0),
    }
}

/// A verb with so many words that its grammar has; whatever else stands there is counted.
fn with_words(verb: &[u8], mut rest: &[u8], words: usize) -> String {
    let mut shown = printable(verb);
    for _ in 0..words {
        let (word, more) = split_word(rest);
        if !word.is_empty() {
            shown.push(' ');
            shown.push_str(&blank_local_parts(printable(word)));
        }
        rest = more;
    }
    match rest.trim_ascii().len() {
        0 => shown,
        octets => format!("{shown} [{octets} octets]"),
    }
}

/// A refusal without what it quotes of a line that nobody knows: body text, where the server refused the message. A verb
/// stays: it may be one that was not sent (THREATS FO-12).
pub(super) fn without_quotes(text: Cow<'_, str>) -> Cow<'_, str> {
    const QUOTES: [char; 3] = ['"', '\'', '`'];
    if !text.contains(QUOTES) {
        return text;
    }
    let pieces = text.split(QUOTES).enumerate();
    let shown = pieces.map(|(place, piece)| match place % 2 {
        1 if !is_verb(piece.as_bytes()) => format!("[{} octets]", piece.len()),
        _ => piece.to_owned(),
    });
    shown.collect::<Vec<_>>().join("\"").into()
}

/// Parameters of MAIL and RCPT whose values may be shown (IANA registry of SMTP service extensions).
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
/// Those that hold an identity.
const IDENTITIES: [&str; 3] = ["AUTH", "ENVID", "ORCPT"];

/// MAIL and RCPT: everything between `<` (or the colon) and the last `@` of the path is the local part, quoted or not, and the
/// identity of the AUTH parameter (RFC 4954 §5) is one too.
fn blank_path(text: &str) -> String {
    let end = text.find('>').unwrap_or(text.len());
    let start = text[..end].find(['<', ':']).map_or(0, |at| at + 1);
    let (path, rest) = (&text[start..end], &text[end..]);
    let mut shown = String::with_capacity(text.len());
    shown.push_str(&text[..start]);
    if text[..start].ends_with(':') && path.starts_with('<') {
        shown.push('<');
    }
    if !path.trim().is_empty() {
        shown.push('*');
        shown.push_str(path.rfind('@').map_or("", |at| &path[at..]));
    }
    for (place, word) in rest.split(' ').enumerate() {
        if place > 0 {
            shown.push(' ');
        }
        let name = word.split('=').next().unwrap_or_default();
        let is = |known: &&str| name.eq_ignore_ascii_case(known);
        match word {
            "" | ">" => shown.push_str(word),
            _ if IDENTITIES.iter().any(is) => {
                shown.push_str(name);
                shown.push_str("=*");
            }
            _ if PARAMETERS.iter().any(is) => shown.push_str(word),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(shown, "[{} octets]", word.len());
            }
        }
    }
    shown
}

/// `local@domain` becomes `*@domain`, and the identity of MAIL's AUTH parameter (RFC 4954 §5) becomes `*`: who writes to whom
/// is in the mail server's log, where the operator decided to keep it.
pub(super) fn blank_local_parts(text: String) -> String {
    if !text.contains('@') {
        return text;
    }
    const DELIMITERS: [char; 11] = ['<', '>', ':', ',', ';', '(', ')', '[', ']', ' ', '\t'];
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(DELIMITERS) {
        match word.rsplit_once('@') {
            Some((_, domain)) => {
                shown.push_str("*@");
                shown.push_str(domain);
            }
            None => shown.push_str(word),
        }
    }
    shown
}
