//! Formats words and times for the pages. All text from peers must go through [`escaped`], which escapes it.

use maud::{Markup, html};
use smtpwatch_core::{Timestamp, finding::Severity};
use smtpwatch_render::text::printable;

/// Text from a peer: control and format characters are escaped as on a terminal, HTML is escaped, and the text
/// direction is isolated from its surroundings.
pub(super) fn escaped(text: &str) -> Markup {
    html! { bdi { (printable(text)) } }
}

/// A time with seconds; its `datetime` attribute has the microseconds.
pub(super) fn moment(at: Timestamp) -> Markup {
    let whole = at.to_string();
    let shown = whole.get(..19).unwrap_or(&whole).replace('T', " ");
    html! { time datetime=(whole) { (shown) } }
}

/// A severity as a coloured word.
pub(super) fn severity(severity: Severity) -> Markup {
    html! { span class={ "severity " (severity.as_str()) } { (severity.as_str()) } }
}

/// A number with its noun.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

/// A number in groups of three digits.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            // A narrow no-break space.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_say_is_text_and_nothing_else() {
        let page = escaped("<script>\u{1b}[2J\u{202e}\"&").into_string();
        assert_eq!(page, "<bdi>&lt;script&gt;\\u{1b}[2J\\u{202e}&quot;&amp;</bdi>");
    }

    #[test]
    fn numbers_and_moments_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
        assert_eq!((count(1, "peer", "peers").as_str(), count(2, "peer", "peers").as_str()), ("1 peer", "2 peers"));
        let page = moment(Timestamp::from_secs(1_795_446_245)).into_string();
        assert_eq!(page, "<time datetime=\"2026-11-23T15:04:05.000000Z\">2026-11-23 15:04:05</time>");
    }
}
