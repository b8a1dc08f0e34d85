//! A verb as the server quotes it back (THREATS FO-12): one that differs from what was sent was overwritten on the way.
//! The method of Durumeric et al. (IMC 2015), without sending anything.

/// Marks in which servers put what they quote.
const QUOTES: [u8; 4] = [b'"', b'\'', b'`', b'<'];

/// The verb that `line` quotes in the place of `sent` (in upper case), where it is no other spelling of it but an edit: as
/// long, and a run of one letter, or a long word with one or two letters changed. Servers that cut, fold or translate what
/// they quote do none of that.
pub(super) fn rewritten(sent: &str, line: &[u8]) -> Option<String> {
    if sent.len() < 4 || is_run(sent.as_bytes()) {
        return None;
    }
    let is_word = |octet: &u8| octet.is_ascii_alphanumeric();
    let edited = |word: &&[u8], quoted: bool| {
        let differ = word.iter().zip(sent.bytes()).filter(|(a, b)| a.to_ascii_uppercase() != *b).count();
        word.len() == sent.len()
            && differ > 0
            && (word.iter().all(|octet| *octet == b'X')
                || quoted
                    && (is_run(word) || (sent.len() >= 8 && differ <= 2 && word.iter().all(u8::is_ascii_alphabetic))))
    };
    let starts = (0..line.len()).filter(|at| is_word(&line[*at]) && (*at == 0 || !is_word(&line[*at - 1])));
    starts
        .map(|at| {
            let rest = &line[at..];
            let word = &rest[..rest.iter().position(|octet| !is_word(octet)).unwrap_or(rest.len())];
            (word, at > 0 && QUOTES.contains(&line[at - 1]))
        })
        .find(|(word, quoted)| edited(word, *quoted))
        .map(|(word, _)| String::from_utf8_lossy(word).into_owned())
}

/// One letter, over and over.
fn is_run(word: &[u8]) -> bool {
    word.first().is_some_and(|first| first.is_ascii_alphabetic() && word.iter().all(|octet| octet == first))
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
        ] {
            assert_eq!(rewritten(sent, line.as_bytes()).as_deref(), arrived, "{sent}: {line}");
        }
    }
}
