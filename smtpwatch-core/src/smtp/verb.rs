//! A client verb, stored inline: each pending command holds one, so it needs no allocation.

/// Longest verb, in bytes.
const LONGEST: usize = 12;

/// The first word of a command line in upper case; empty if the word does not have the form of a verb.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Verb {
    bytes: [u8; LONGEST],
    length: u8,
}

impl Verb {
    /// The verb in `word`.
    pub(super) fn of(word: &[u8]) -> Self {
        let mut verb = Self::default();
        if word.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b'-')
            && let Some(bytes) = verb.bytes.get_mut(..word.len())
        {
            bytes.copy_from_slice(word);
            bytes.make_ascii_uppercase();
            // Cannot fail: the length is at most `LONGEST`.
            verb.length = u8::try_from(word.len()).unwrap_or(0);
        }
        verb
    }

    pub(super) fn as_str(&self) -> &str {
        // Cannot fail: the bytes are letters and hyphens.
        self.bytes.get(..usize::from(self.length)).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl std::fmt::Debug for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_short_and_of_letters() {
        for (word, verb) in [
            (&b"ehlo"[..], "EHLO"),
            (b"X-EXPS", "X-EXPS"),
            (b"", ""),
            (b"abcdefghijkl", "ABCDEFGHIJKL"),
            (b"abcdefghijklm", ""),
            (b"dXNlcg==", ""),
        ] {
            assert_eq!(Verb::of(word).as_str(), verb);
            assert_eq!(Verb::of(word).is_empty(), verb.is_empty());
        }
    }
}
