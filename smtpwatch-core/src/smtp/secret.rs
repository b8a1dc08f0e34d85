//! A [`Secret`] of a SASL exchange: it can be searched for in replies, but not printed.

use std::ops::Range;

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::ntlm;
use crate::secret_buffer::SecretBuffer;

/// Bytes of a SASL exchange, or bytes that may belong to one. A session retains them only to redact them in the
/// server's replies, which may quote them (docs/threats.md FO-12), and overwrites them on drop. The type cannot be
/// printed, compared or serialised.
pub(super) struct Secret {
    bytes: SecretBuffer,
}

/// Some clients omit the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Words shorter than this are redacted only as separate words: they may be part of an ordinary word.
const SHORTEST: usize = 4;
/// Words shorter than this are not searched for: one letter is not distinctive.
const SHORTEST_ALONE: usize = 2;
/// Length of the prefix that identifies a longer word.
const BEGINNING: usize = 8;
/// Words of a line that are shorter than this are not decoded as base64.
const SHORTEST_ENCODED: usize = 6;
/// Replacement text for a secret.
pub(super) const BLANK: &str = "[secret]";

impl Secret {
    /// Builds a secret from a line. Each word of the line is a secret of its own, and so is its base64 decoding (RFC
    /// 4954 §4): a server may quote the password itself.
    pub(super) fn new(line: &[u8]) -> Self {
        let mut bytes = SecretBuffer::from(line);
        let value = |word: &[u8]| word.iter().position(|byte| *byte == b'=').map(|at| at + 1);
        let words = line.split(u8::is_ascii_whitespace);
        for word in words.flat_map(|word| std::iter::once(word).chain(value(word).map(|at| &word[at..]))) {
            let start = bytes.len();
            if !append_decoded(word, &mut bytes) {
                continue;
            }
            let message = SecretBuffer::from(bytes.get(start..).unwrap_or_default());
            blank_controls(bytes.get_mut(start..).unwrap_or_default());
            ntlm::words(&message, &mut bytes);
        }
        Self { bytes }
    }

    /// The ranges in a line of every word of the secret, in any case, and of each word whose base64 decoding contains
    /// one: within AUTH, servers prompt and refuse in base64 (RFC 4954 §4).
    pub(super) fn places(&self, line: &[u8]) -> Vec<Range<usize>> {
        let mut found = self.plain_places(line);
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        for word in line.split(|byte| !is_digit(byte)).filter(|word| word.len() >= SHORTEST_ENCODED) {
            let mut decoded = SecretBuffer::default();
            if append_decoded(word, &mut decoded) {
                blank_controls(&mut decoded);
                let start = word.as_ptr().addr() - line.as_ptr().addr();
                found.extend((!self.plain_places(&decoded).is_empty()).then_some(start..start + word.len()));
            }
        }
        found
    }

    fn plain_places(&self, line: &[u8]) -> Vec<Range<usize>> {
        let words =
            self.bytes.split(u8::is_ascii_whitespace).flat_map(|word| std::iter::once(word).chain(fields(word)));
        let alone = |range: &Range<usize>| {
            let joins = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
            !joins(range.start.checked_sub(1).and_then(|at| line.get(at))) && !joins(line.get(range.end))
        };
        words
            .filter(|word| word.len() >= SHORTEST_ALONE)
            .flat_map(|word| places(line, word).into_iter().filter(move |range| word.len() >= SHORTEST || alone(range)))
            .collect()
    }
}

/// Appends a blank and the base64 decoding of a word. Returns whether the word is valid base64.
fn append_decoded(word: &[u8], bytes: &mut SecretBuffer) -> bool {
    // Decodes in place: a decoder with a buffer of its own would leave a partial decoding of an invalid word there.
    let start = bytes.len() + 1;
    bytes.extend_zeros(1 + base64::decoded_len_estimate(word.len()));
    bytes[start - 1] = b' ';
    let length = BASE64.decode_slice(word, &mut bytes[start..]).unwrap_or(0);
    bytes.truncate(if length == 0 { start - 1 } else { start + length });
    length > 0
}

/// Replaces control characters with blanks: NUL and SOH separate the fields of PLAIN and of the token mechanisms.
fn blank_controls(decoded: &mut [u8]) {
    decoded.iter_mut().filter(|byte| byte.is_ascii_control()).for_each(|byte| *byte = b' ');
}

/// Sub-fields of a word: the values of `name=value` fields, separated by commas or quotes (RFC 2831 §2.1.2, RFC 5802
/// §7, RFC 7628 §3.1), and the local part of an address. Each may be a user name.
fn fields(word: &[u8]) -> impl Iterator<Item = &[u8]> {
    word.split(|byte| b",\"".contains(byte)).flat_map(move |part| {
        let value = part.iter().position(|byte| *byte == b'=').map_or(part, |at| &part[at + 1..]);
        let local = value.iter().position(|byte| *byte == b'@').map(|at| &value[..at]);
        Some(value).filter(|value| value.len() < word.len()).into_iter().chain(local)
    })
}

/// Ranges of a word, or of its prefix, in a line: servers truncate their quotations.
fn places(line: &[u8], word: &[u8]) -> Vec<Range<usize>> {
    let start = &word[..word.len().min(BEGINNING)];
    let (mut found, mut done) = (Vec::new(), 0);
    while let Some(at) =
        line[done..].windows(start.len()).position(|window| window.eq_ignore_ascii_case(start)).map(|at| at + done)
    {
        let same = line[at..].iter().zip(word).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        found.push(at..at + same);
        done = at + same;
    }
    found
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn struck(secret: &Secret, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        secret.places(text.as_bytes()).into_iter().for_each(|place| bytes[place].fill(b'*'));
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn an_echo_is_found() {
        let secret = Secret::new(b"PLAIN AHVzZXIAcGFzcw==");
        let echo = "5.5.1 unrecognized: \"auth plain ahvzzxiacgfzcw==\" AHVzZXIAcGFzcw==";
        let struck = struck(&secret, echo);
        assert!(!struck.to_ascii_lowercase().contains("ahvz"), "{struck}");
        assert_eq!(format!("{secret:?}"), "Secret");
    }

    #[test]
    fn an_echo_that_was_cut_is_found_too() {
        let secret = Secret::new(b"AHVzZXIAdGhlLWxvbmctc2VjcmV0");
        assert_eq!(struck(&secret, "500 line too long: AHVzZXIAdGhl..."), "500 line too long: ************...");
    }

    #[test]
    fn the_password_itself_is_found() {
        let secret = Secret::new(b"PLAIN AGFubmEATjB0LWEtczNjcmV0");
        assert_eq!(struck(&secret, "user anna, password N0t-a-s3cret bad"), "user ****, password ************ bad");
        let token = Secret::new(b"dXNlcj1hbm5hAWF1dGg9QmVhcmVyIHRva2VuLTEyMzQ1AQE");
        assert_eq!(struck(&token, "no such token-12345"), "no such ***********");
    }

    #[test]
    fn the_name_of_a_user_is_found_in_every_form() {
        for text in [
            "user=canary\u{1}auth=Bearer t0ken\u{1}\u{1}",
            "username=\"canary\",realm=\"example.org\",nonce=\"x\"",
            "n,,n=canary,r=fyko+d2lbbFgONRv9qkxdawL",
            "\0canary\0secret",
            "canary@example.org",
            "canary b913a602c7eda7a495b4e6e7334d3890",
        ] {
            let encoded = base64::engine::general_purpose::STANDARD.encode(text);
            let struck = struck(&Secret::new(encoded.as_bytes()), "535 no such user canary");
            assert!(!struck.contains("canary"), "{text:?}: {struck}");
        }
        let short = Secret::new(b"Ym9i");
        assert_eq!(struck(&short, "535 bob is no bobbin"), "535 *** is no bobbin");
    }
}
