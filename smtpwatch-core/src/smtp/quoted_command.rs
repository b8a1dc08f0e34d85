//! Compares the verb that a server quotes in its reply with the verb that was sent (docs/threats.md FO-12): a
//! difference shows that a device on the path overwrote the command. The method of Durumeric et al. (IMC 2015),
//! without active probes.

/// Opening quotation marks used by servers.
const QUOTES: [u8; 4] = [b'"', b'\'', b'`', b'<'];

/// The verb that `line` quotes instead of `sent` (in upper case), if it is an edit and not another spelling: of the
/// same length, and either a run of one character or, for a long word, with most of its letters. Servers that
/// truncate, fold or translate their quotations produce neither.
pub(super) fn rewritten(sent: &str, line: &[u8]) -> Option<String> {
    if sent.len() < 4 || is_run(sent.as_bytes()) {
        return None;
    }
    let quoted = || {
        // The first quotation is the command line; the words after its first one are arguments.
        let start = line.iter().position(|byte| QUOTES.contains(byte))? + 1;
        let rest = &line[start..];
        let ends = |byte: &u8| byte.is_ascii_whitespace() || QUOTES.contains(byte) || *byte == b'>';
        let word = &rest[..rest.iter().position(ends).unwrap_or(rest.len())];
        (is_run_for(word, sent) || resembles(word, sent)).then_some(word)
    };
    unquoted_mask(sent, line).or_else(quoted).map(|word| String::from_utf8_lossy(word).into_owned())
}

/// Words after which servers write an unrecognised command without quotation marks.
const BEFORE_COMMAND: [&[u8]; 7] =
    [b"command", b"unrecognized", b"unrecognised", b"recognized", b"unknown", b"verb", b"error"];

/// A run of X as long as the verb, at a position where servers name the command: at the start of the text, or after
/// one of [`BEFORE_COMMAND`]. At any other position it may be a telephone number.
fn unquoted_mask<'a>(sent: &str, line: &'a [u8]) -> Option<&'a [u8]> {
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut before: Option<&[u8]> = None;
    for word in words {
        let bare = word.trim_ascii_end().strip_suffix(b".").unwrap_or(word);
        let named = before.is_none_or(|before| {
            let before = before.strip_suffix(b":").unwrap_or(before);
            BEFORE_COMMAND.iter().any(|known| before.eq_ignore_ascii_case(known))
        });
        if named && is_mask(bare, sent) {
            return Some(bare);
        }
        // Skips an enhanced status code (RFC 3463).
        let status = before.is_none() && word.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
        before = if status { None } else { Some(word) };
    }
    None
}

/// Whether a word is what an editor on the path leaves of a verb: a run of one letter, or most of the letters of
/// STARTTLS.
pub(super) fn is_overwritten(word: &[u8]) -> bool {
    word.len() >= 4 && is_run(word) || resembles(word, "STARTTLS")
}

/// A run of X, as Cisco's inspection writes it: recognised without quotation marks too.
fn is_mask(word: &[u8], sent: &str) -> bool {
    word.len() == sent.len() && word.iter().all(|byte| *byte == b'X')
}

fn is_run_for(word: &[u8], sent: &str) -> bool {
    word.len() == sent.len() && is_run(word)
}

/// One character, repeated.
fn is_run(word: &[u8]) -> bool {
    word.first().is_some_and(|first| first.is_ascii_graphic() && word.iter().all(|byte| byte == first))
}

/// Another word of the same length that shares most letters with a long verb: changed or permuted.
fn resembles(word: &[u8], sent: &str) -> bool {
    if sent.len() < 8
        || word.len() != sent.len()
        || word.eq_ignore_ascii_case(sent.as_bytes())
        || !word.iter().all(u8::is_ascii_alphabetic)
    {
        return false;
    }
    let mut left = sent.as_bytes().to_vec();
    let common = word.iter().filter(|letter| {
        let place = left.iter().position(|other| other.eq_ignore_ascii_case(letter));
        place.map(|place| left.swap_remove(place)).is_some()
    });
    common.count() + 2 >= sent.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_verb_is_known_from_one_that_is_quoted_as_it_came() {
        for (sent, line, arrived) in [
            ("STARTTLS", "5.5.1 Command unrecognized: \"XXXXXXXX\"", Some("XXXXXXXX")),
            ("STARTTLS", "unknown command 'BBBBBBBB'", Some("BBBBBBBB")),
            ("STARTTLS", "unknown command STARTTLX", None),
            ("STARTTLS", "unknown command \"STARTTLX\"", Some("STARTTLX")),
            ("EHLO", "unrecognized command <XXXX gw.example.org>", Some("XXXX")),
            ("EHLO", "use \"HELO\" instead", None),
            ("STARTTLS", "5.5.1 Command unrecognized: \"starttls\"", None),
            ("STARTTLS", "5.5.1 Command unrecognized: \"STAR\"", None),
            ("STARTTLS", "unrecognized: \"CHUNKING\"", None),
            ("XXXXXXXX", "unrecognized: \"XXXXXXXX\"", None),
            ("NOOP", "XXXX", Some("XXXX")),
            ("NOOP", "the number is 5555", None),
            ("RCPT", "5.7.1 blocked, call +1 800 555 XXXX", None),
            ("RCPT", "please call XXXX", None),
            ("RCPT", "5.5.2 unknown command XXXX", Some("XXXX")),
            ("RCPT", "5.5.2 unknown command: XXXX.", Some("XXXX")),
            ("RCPT", "bad argument \"TO:<a@example.net>\" \"XXXX\"", None),
            ("RCPT", "unrecognized \"RCPT TO:<XXXX>\"", None),
            ("STARTTLS", "unknown command \"STRTTLSA\"", Some("STRTTLSA")),
            ("STARTTLS", "unknown command \"........\"", Some("........")),
            ("STARTTLS", "TLS is \"disabled\" here", None),
        ] {
            assert_eq!(rewritten(sent, line.as_bytes()).as_deref(), arrived, "{sent}: {line}");
        }
    }
}
