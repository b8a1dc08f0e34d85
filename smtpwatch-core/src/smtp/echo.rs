//! A verb as the server quotes it back (THREATS FO-12): one that differs from what was sent was overwritten on the way.
//! The method of Durumeric et al. (IMC 2015), without sending anything.

/// Marks in which servers put what they quote.
const QUOTES: [u8; 4] = [b'"', b'\'', b'`', b'<'];

/// The verb that `line` quotes in the place of `sent` (in upper case), where it is no other spelling of it but an edit: as
/// long, and a run of one character, or a long word with most of its letters. Servers that cut, fold or translate what they
/// quote do none of that.
pub(super) fn rewritten(sent: &str, line: &[u8]) -> Option<String> {
    if sent.len() < 4 || is_run(sent.as_bytes()) {
        return None;
    }
    let masked = line.split(|octet| !octet.is_ascii_alphanumeric()).find(|word| is_mask(word, sent));
    let quoted = || {
        let starts = line.iter().enumerate().filter(|(_, octet)| QUOTES.contains(octet)).map(|(at, _)| at + 1);
        let word = |at: usize| {
            let rest = &line[at..];
            let ends = |octet: &u8| octet.is_ascii_whitespace() || QUOTES.contains(octet) || *octet == b'>';
            &rest[..rest.iter().position(ends).unwrap_or(rest.len())]
        };
        starts.map(word).find(|word| is_run_for(word, sent) || resembles(word, sent))
    };
    masked.or_else(quoted).map(|word| String::from_utf8_lossy(word).into_owned())
}

/// A run of X, as Cisco's inspection leaves it: it is known without quotes too.
fn is_mask(word: &[u8], sent: &str) -> bool {
    word.len() == sent.len() && word.iter().all(|octet| *octet == b'X')
}

fn is_run_for(word: &[u8], sent: &str) -> bool {
    word.len() == sent.len() && is_run(word)
}

/// One character, over and over.
fn is_run(word: &[u8]) -> bool {
    word.first().is_some_and(|first| first.is_ascii_graphic() && word.iter().all(|octet| octet == first))
}

/// Another word of the same length, most of whose letters are those of a long verb: changed, or put in another order.
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
            ("STARTTLS", "unknown command \"STRTTLSA\"", Some("STRTTLSA")),
            ("STARTTLS", "unknown command \"........\"", Some("........")),
            ("STARTTLS", "TLS is \"disabled\" here", None),
        ] {
            assert_eq!(rewritten(sent, line.as_bytes()).as_deref(), arrived, "{sent}: {line}");
        }
    }
}
