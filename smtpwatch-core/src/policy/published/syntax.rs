//! Grammar shared by several published policies, and quoting of foreign text in error messages.

/// Maximum characters of foreign text quoted in an error.
const QUOTED: usize = 64;

/// Quotes bytes for an error message: at most one line, control characters escaped.
pub(super) fn quoted(octets: &[u8]) -> String {
    // A character has at most four bytes, and one more character shows that the text was cut.
    let text = String::from_utf8_lossy(&octets[..octets.len().min(4 * (QUOTED + 1))]);
    format!("\"{}\"", shown(&text, QUOTED))
}

/// The first `limit` characters of a text, control characters escaped.
pub(super) fn shown(text: &str, limit: usize) -> String {
    let mut characters = text.chars();
    let mut shown = String::new();
    for character in characters.by_ref().take(limit) {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Whether a text is a domain of letters, digits and hyphens (RFC 5321 §4.1.2), hence of A-labels only, without a final
/// dot.
pub(super) fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Whether bytes can be the name of a field that a later version may define (RFC 8461 §3.1, §3.2).
pub(super) fn is_field_name(name: &[u8]) -> bool {
    let rest = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'-' | b'.');
    name.len() <= 32 && name.first().is_some_and(u8::is_ascii_alphanumeric) && name.iter().all(rest)
}

/// A host name in the form used for comparison: lower case, without the final dot.
pub(super) fn comparable(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The name without its left-most label.
pub(super) fn parent(name: &str) -> Option<&str> {
    name.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_quoted_short_and_without_control_characters() {
        assert_eq!(quoted(b"a\r\nb\xff"), "\"a\\r\\nb\u{fffd}\"");
        assert_eq!(quoted(&[b'x'; 64]).chars().count(), 66);
        assert!(quoted(&[b'x'; 65]).ends_with("x…\""));
        assert_eq!(quoted("ü".repeat(1000).as_bytes()).chars().count(), 67);
    }

    #[test]
    fn domains_have_the_form_of_rfc_5321() {
        for good in ["a", "mx1.example.net", "3com.example", "xn--bcher-kva.example", &"a.".repeat(127)[..253]] {
            assert!(is_domain(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "-a", "a-.b", "a_b", "bücher", "a b", "*.a", &"a".repeat(64)] {
            assert!(!is_domain(bad), "{bad}");
        }
        assert!(!is_domain(&"a.".repeat(128)[..255]), "a name has at most 253 characters");
    }
}
