//! The profile of a peer from its last session under TLS: [`Profile`], stored in a history record. The rules compare an
//! edited session with it (docs/threats.md FO-2, FO-4, FO-6, FO-8). A difference raises no finding by itself.

use serde::{Deserialize, Serialize};

/// Keywords stored of an EHLO reply.
const KEYWORDS: usize = 32;
/// Characters stored of a keyword.
const KEYWORD_OCTETS: usize = 32;

/// Words of a date (RFC 5322 §3.3): Exim and Exchange put a date into their greeting.
const DATE: [&str; 19] = [
    "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep",
    "Oct", "Nov", "Dec",
];

/// Properties of a server in a session that established TLS.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Profile {
    /// Keywords of the EHLO reply in cleartext, in order, in upper case.
    pub keywords: Vec<String>,
    /// Size of that reply in bytes, line ends included.
    pub ehlo_octets: usize,
    /// SASL mechanisms offered before TLS that send the secret itself.
    pub plaintext_mechanisms: Vec<String>,
    /// The line that offers STARTTLS, as the server writes it.
    pub offer: String,
    /// The greeting is readable: it names a host.
    pub readable_greeting: bool,
    /// For a client, the name that it gave; empty for a server.
    pub client: String,
    /// Shape of the greeting and of the first line of the EHLO reply; see [`Profile::shape`].
    pub words: [String; 2],
    /// Address of this host as quoted in the first line of the EHLO reply; empty if there is none.
    pub quoted: String,
    /// Time to live (hop limit) of the SYN-ACK on arrival.
    pub ttl: u8,
    /// Maximum segment size in the SYN-ACK, in bytes; zero if it had none.
    pub mss: u16,
    /// Option kinds of the SYN-ACK in order.
    pub options: Vec<u8>,
    /// Lowest time between SYN and SYN-ACK, in nanoseconds; zero if it was not seen.
    pub round_trip: u64,
    /// Highest TLS version chosen, as on the wire; zero if it was not seen.
    pub tls_version: u16,
    /// The chosen suite does not encrypt or authenticate as RFC 9325 §4.1 demands.
    pub weak_suite: bool,
}

impl Profile {
    /// Limits keywords to the number and length that are stored.
    pub fn keep(keywords: impl Iterator<Item = String>) -> Vec<String> {
        let cut = |keyword: String| match start(&keyword, KEYWORD_OCTETS) {
            cut if cut.len() < keyword.len() => cut.to_owned(),
            _ => keyword,
        };
        keywords.take(KEYWORDS).map(cut).collect()
    }

    /// A line of text without the parts that change between sessions: a word with a digit and a word of a date become
    /// `#`, an address in brackets becomes `[]`.
    #[must_use]
    pub fn shape(line: &str) -> String {
        let is_date = |word: &str| DATE.contains(&word.trim_end_matches(','));
        let mut shape = String::with_capacity(line.len());
        for word in line.split_whitespace().take(KEYWORDS) {
            if !shape.is_empty() {
                shape.push(' ');
            }
            shape.push_str(match word {
                _ if is_literal(word) => "[]",
                _ if word.bytes().any(|byte| byte.is_ascii_digit()) || is_date(word) => "#",
                _ => start(word, KEYWORD_OCTETS),
            });
        }
        shape.shrink_to_fit();
        shape
    }

    /// The address in brackets that a line quotes (RFC 5321 §4.1.3), brackets included; empty if there is none.
    #[must_use]
    pub fn quoted(line: &str) -> String {
        let word = line.split_whitespace().find(|word| is_literal(word)).unwrap_or_default();
        start(word, 2 * KEYWORD_OCTETS).to_owned()
    }

    /// This profile, with the best values of an earlier one.
    #[must_use]
    pub fn after(self, before: &Self) -> Self {
        let round_trip = match (self.round_trip, before.round_trip) {
            (0, best) | (best, 0) => best,
            (one, other) => one.min(other),
        };
        Self { round_trip, tls_version: self.tls_version.max(before.tls_version), ..self }
    }
}

/// The first `characters` characters of a text, or all of it.
pub(crate) fn start(text: &str, characters: usize) -> &str {
    // Most texts are not longer.
    let cut = if text.len() > characters { text.char_indices().nth(characters) } else { None };
    cut.map_or(text, |(end, _)| &text[..end])
}

fn is_literal(word: &str) -> bool {
    word.starts_with('[') && word.ends_with(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_keeps_what_does_not_change() {
        let one = Profile::shape("220 mx.google.com ESMTP a1-20020a05si123.45 - gsmtp");
        assert_eq!(one, "# mx.google.com ESMTP # - gsmtp");
        assert_eq!(one, Profile::shape("220 mx.google.com ESMTP 9si4567890qkj.1 - gsmtp"));
        let exim = Profile::shape("220 mx.example.net ESMTP Exim 4.97 Wed, 25 Nov 2026 17:00:00 +0000");
        assert_eq!(exim, "# mx.example.net ESMTP Exim # # # # # # #");
        let hello = "smtp.gmail.com at your service, [203.0.113.7]";
        assert_eq!(Profile::shape(hello), "smtp.gmail.com at your service, []");
        assert_eq!((Profile::quoted(hello).as_str(), Profile::quoted("mx Hello").as_str()), ("[203.0.113.7]", ""));
    }
}
