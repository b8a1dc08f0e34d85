//! Commands and replies as the transcript shows them: no secret, no user name, no argument of a verb that nobody knows.

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
        Command::Ehlo(_)
        | Command::Helo(_)
        | Command::Starttls
        | Command::Data
        | Command::Bdat { .. }
        | Command::Turn
        | Command::Rset
        | Command::Quit => blank_local_parts(&printable(line)),
    }
}

/// MAIL and RCPT: everything between `<` (or the colon) and the last `@` of the path is the local part, quoted or not, and the
/// identity of the AUTH parameter (RFC 4954 §5) is one too.
fn blank_path(text: &str) -> String {
    let end = text.find('>').unwrap_or(text.len());
    let start = text[..end].find(['<', ':']).map_or(0, |at| at + 1);
    let (path, rest) = (&text[start..end], &text[end..]);
    let path = path.rsplit_once('@').map_or_else(|| "*".to_owned(), |(_, domain)| format!("*@{domain}"));
    let path = if text[start..end].trim().is_empty() { String::new() } else { path };
    let colon = if text[..start].ends_with(':') && text[start..].starts_with('<') { "<" } else { "" };
    let rest: Vec<_> = rest
        .split(' ')
        .map(|word| match word.split_once('=') {
            Some((name, _)) if name.eq_ignore_ascii_case("AUTH") => format!("{name}=*"),
            _ => blank_local_parts(word),
        })
        .collect();
    format!("{}{colon}{path}{}", &text[..start], rest.join(" "))
}

/// `local@domain` becomes `*@domain`, and the identity of MAIL's AUTH parameter (RFC 4954 §5) becomes `*`: who writes to whom
/// is in the mail server's log, where the operator decided to keep it.
pub(super) fn blank_local_parts(text: &str) -> String {
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
