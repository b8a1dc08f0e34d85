//! A value that cannot be shown.

/// Octets of a SASL exchange. They live from the client's line to the server's reply to it, only to be struck from that
/// reply should the server echo them (THREATS FO-12), and are overwritten after that. There is no way to print, compare
/// or serialise them.
pub(super) struct Secret(Vec<u8>);

/// Shorter pieces than this are not looked for in replies: they would strike out ordinary words.
const SHORTEST: usize = 4;
/// What stands for a secret.
pub(super) const BLANK: &str = "[secret]";

impl Secret {
    /// Takes the line as it came. Each word of it is a secret of its own.
    pub(super) fn new(line: Vec<u8>) -> Self {
        Self(line)
    }

    /// `text` with every word of the secret struck out, in any case.
    pub(super) fn strike(&self, text: &str) -> String {
        let mut struck = text.to_owned();
        for word in self.0.split(u8::is_ascii_whitespace).filter(|word| word.len() >= SHORTEST) {
            let Ok(word) = std::str::from_utf8(word) else { continue };
            let word = word.to_ascii_lowercase();
            // ASCII case folding keeps every length, so positions in the folded text are positions in the text.
            while let Some(at) = struck.to_ascii_lowercase().find(&word) {
                struck.replace_range(at..at + word.len(), BLANK);
                if BLANK.contains(&word) {
                    break;
                }
            }
        }
        struck
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_struck_out() {
        let secret = Secret::new(b"PLAIN AHVzZXIAcGFzcw==".to_vec());
        let echo = "5.5.1 unrecognized: \"auth plain ahvzzxiacgfzcw==\" AHVzZXIAcGFzcw==";
        let struck = secret.strike(echo);
        assert!(!struck.to_ascii_lowercase().contains("ahvz"), "{struck}");
        assert_eq!(format!("{secret:?}"), "Secret");
    }

    #[test]
    fn a_secret_that_is_part_of_the_blank_ends() {
        assert_eq!(Secret::new(b"secret".to_vec()).strike("my secret"), "my [secret]");
    }
}
