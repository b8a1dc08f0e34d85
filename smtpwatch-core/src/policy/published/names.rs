//! Normal form of the names by which policies are looked up.

/// A domain in normal form: A-labels (RFC 5891), lower case, without the final dot. `None` for text that has no policy:
/// address literals, names of one label, and text that is not a name (RFC 8461 §3, RFC 7672 §2.2).
///
/// An ASCII name is accepted if DNS accepts it, even if IDNA does not: mail hosts have names such as `r1---sn` and
/// `mail_1`.
#[must_use]
pub fn domain_name(text: &str) -> Option<String> {
    let text = text.trim_end_matches('.');
    let name = if text.is_ascii() { text.to_ascii_lowercase() } else { idna::domain_to_ascii_strict(text).ok()? };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
    };
    let is_name = name.len() <= 253 && name.contains('.') && name.split('.').all(label);
    (is_name && name.parse::<std::net::IpAddr>().is_err()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_asked_for_in_one_form() {
        assert_eq!(domain_name("Bücher.Example.").as_deref(), Some("xn--bcher-kva.example"));
        assert_eq!(domain_name("EXAMPLE.net").as_deref(), Some("example.net"));
        for odd in ["ab--cd.example", "r1---sn.example", "mail_1.example.net", "xn--bcher-kva.example"] {
            assert_eq!(domain_name(odd).as_deref(), Some(odd));
        }
        for bad in ["", ".", "localhost", "[192.0.2.1]", "192.0.2.1", "a..b", "a b.example", "-x.example", "x-.example"]
        {
            assert_eq!(domain_name(bad), None, "{bad}");
        }
    }
}
