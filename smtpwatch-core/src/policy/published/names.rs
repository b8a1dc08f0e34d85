//! Names as policies are asked for.

/// A domain in the form in which policies are looked up: A-labels (RFC 5891), lower case, without the final dot. `None` of what
/// has no policy: address literals, names of one label, and what is no name (RFC 8461 §3, RFC 7672 §2.2).
#[must_use]
pub fn domain_name(text: &str) -> Option<String> {
    let name = idna::domain_to_ascii_strict(text.trim_end_matches('.')).ok()?;
    let is_name = name.contains('.') && name.len() <= 253 && name.parse::<std::net::IpAddr>().is_err();
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_asked_for_in_one_form() {
        assert_eq!(domain_name("Bücher.Example.").as_deref(), Some("xn--bcher-kva.example"));
        assert_eq!(domain_name("EXAMPLE.net").as_deref(), Some("example.net"));
        for bad in ["", ".", "localhost", "[192.0.2.1]", "192.0.2.1", "a..b", "a b.example", "-x.example"] {
            assert_eq!(domain_name(bad), None, "{bad}");
        }
    }
}
