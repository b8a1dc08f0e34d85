//! Redaction state of a session: the words that a server may quote, and whether they are all known.

use std::collections::VecDeque;

use crate::smtp::{redaction::Redacted, secret::Secret, transcript::printable};

/// Maximum number of secrets per session that are searched for in the server's lines.
const SECRETS: usize = 8;

/// Words to redact in the server's lines.
#[derive(Debug, Default)]
pub(super) struct Quotable {
    /// The newest [`SECRETS`].
    secrets: VecDeque<Secret>,
    /// There were secrets when the list was discarded.
    forgotten: bool,
    /// The server may quote bytes that are not among the secrets: only the codes of its replies are shown.
    incomplete: bool,
}

impl Quotable {
    pub(super) fn push(&mut self, secret: Secret) {
        if self.secrets.len() >= SECRETS {
            self.secrets.pop_front();
            self.incomplete = true;
        }
        self.secrets.push_back(secret);
    }

    /// The server may quote bytes that are not recorded here.
    pub(super) const fn set_incomplete(&mut self) {
        self.incomplete = true;
    }

    pub(super) const fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The client has sent no word that must be redacted.
    pub(super) fn is_unused(&self) -> bool {
        self.secrets.is_empty() && !self.forgotten
    }

    /// Overwrites and frees the secrets. From here on only codes are shown, if there were any.
    pub(super) fn forget(&mut self) {
        self.forgotten |= !self.secrets.is_empty();
        self.incomplete |= self.forgotten;
        self.secrets = VecDeque::new();
    }

    /// Whether one of the secrets contains this word.
    pub(super) fn contains(&self, word: &[u8]) -> bool {
        self.secrets.iter().any(|secret| !secret.places(word).is_empty())
    }

    /// A server line in the form retained for comparison: printable, with quoted secrets redacted.
    pub(super) fn quoted(&self, line: &[u8]) -> String {
        if self.secrets.is_empty() { printable(line) } else { self.redact(line, false).text() }
    }

    /// Redacts a server line. `answers_other`: the command was not a known one.
    pub(super) fn redact<'a>(&self, line: &'a [u8], answers_other: bool) -> Redacted<'a> {
        Redacted::reply(line, self.secrets.iter(), answers_other)
    }

    /// Redacts a server line that answers no command.
    pub(super) fn redact_unpaired<'a>(&self, line: &'a [u8]) -> Redacted<'a> {
        if self.incomplete { Redacted::code_alone(line) } else { self.redact(line, false) }
    }
}
