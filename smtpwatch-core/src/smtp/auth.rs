//! AUTH (RFC 4954): mechanism and shape of a SASL exchange, without its content. The session records one
//! [`AuthExchange`] for each AUTH command.

use serde::Serialize;

/// Longest mechanism name (RFC 4422 §3.1).
const MECHANISM_BYTES: usize = 20;

/// Registered mechanisms whose exchanged content is not classified here (IANA registry of SASL mechanisms).
const OTHERS: [&str; 12] = [
    "9798-M-DSA-SHA1",
    "9798-M-ECDSA-SHA1",
    "9798-M-RSA-SHA1-ENC",
    "9798-U-DSA-SHA1",
    "9798-U-ECDSA-SHA1",
    "9798-U-RSA-SHA1-ENC",
    "EAP-AES128",
    "EAP-AES128-PLUS",
    "KERBEROS_V5",
    "OPENID20",
    "SAML20",
    "SECURID",
];

/// A SASL mechanism as named by the client, in upper case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mechanism(String);

impl Mechanism {
    /// Reads the word after AUTH. A word that does not have the form of a mechanism name may be a user name or a
    /// secret in the wrong place: it is not retained.
    pub(super) fn parse(word: &[u8]) -> Self {
        let unknown = || Self("UNKNOWN".to_owned());
        let formed = (1..=MECHANISM_BYTES).contains(&word.len())
            && word.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'));
        let Some(word) = str::from_utf8(word).ok().filter(|_| formed) else { return unknown() };
        // On the stack: a heap copy of a word that may be a secret would be freed without being overwritten.
        let mut upper = [0; MECHANISM_BYTES];
        let upper = &mut upper[..word.len()];
        upper.copy_from_slice(word.as_bytes());
        upper.make_ascii_uppercase();
        let name = str::from_utf8(upper).unwrap_or_default();
        let known = MechanismClass::of(name) != MechanismClass::Unknown || OTHERS.contains(&name);
        if known { Self(name.to_owned()) } else { unknown() }
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }
}

/// What an exchange of a mechanism transmits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MechanismClass {
    /// The secret itself, or a token that can be used again (docs/threats.md F1–F4).
    Plaintext,
    /// Material for guessing offline or for relaying (docs/threats.md F5).
    Challenge,
    /// No secret: EXTERNAL, ANONYMOUS.
    NoSecret,
    /// Not classified: the exchange transmits some proof of identity.
    Unknown,
}

impl MechanismClass {
    /// The class of a mechanism, given in upper case (IANA registry of SASL mechanisms, and common additions of
    /// servers).
    #[must_use]
    pub fn of(mechanism: &str) -> Self {
        match mechanism {
            "PLAIN" | "LOGIN" | "XOAUTH" | "XOAUTH2" | "OAUTHBEARER" | "OAUTH10A" | "PLAIN-CLIENTTOKEN" => {
                Self::Plaintext
            }
            "EXTERNAL" | "ANONYMOUS" => Self::NoSecret,
            "CRAM-MD5" | "DIGEST-MD5" | "NTLM" | "MSN" | "GSSAPI" | "GSS-SPNEGO" | "KERBEROS_V4" | "SRP" | "OTP"
            | "SKEY" => Self::Challenge,
            scram if scram.starts_with("SCRAM-") || scram.starts_with("GS2-") || scram.starts_with("ECDH-") => {
                Self::Challenge
            }
            _ => Self::Unknown,
        }
    }

    /// Number of the client line, counted from 1, that carries the secret: LOGIN sends the user name first.
    const fn secret_step(mechanism: &str) -> u32 {
        match mechanism.as_bytes() {
            b"LOGIN" => 2,
            _ => 1,
        }
    }
}

/// One AUTH command and its exchange, in cleartext.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct AuthExchange {
    /// Index among all exchanges of the session, including those that were evicted.
    #[serde(skip)]
    pub number: usize,
    /// Mechanism, upper-case; `UNKNOWN` if the word did not have the form of one.
    pub mechanism: String,
    /// What the exchange transmits.
    pub class: MechanismClass,
    /// Requested with Exchange's verb X-EXPS (docs/threats.md F9).
    pub exchange_verb: bool,
    /// The AUTH command itself carried the first response (RFC 4954 §4).
    pub initial_response: bool,
    /// Responses of the client so far, without a cancellation, including the initial one.
    pub steps: u32,
    /// The client sent a response that carries the secret (or the proof).
    pub secret_sent: bool,
    /// The client cancelled the exchange with `*`.
    pub cancelled: bool,
    /// Code of the reply that ended the exchange; zero before that reply.
    pub reply: u16,
}

impl AuthExchange {
    pub(super) fn new(mechanism: &Mechanism, initial: Option<usize>, exchange_verb: bool) -> Self {
        let class = MechanismClass::of(mechanism.name());
        let mut exchange = Self {
            number: 0,
            mechanism: mechanism.name().to_owned(),
            class,
            exchange_verb,
            initial_response: initial.is_some_and(|bytes| bytes > 0),
            steps: 0,
            secret_sent: false,
            cancelled: false,
            reply: 0,
        };
        if let Some(bytes) = initial {
            exchange.respond(bytes);
        }
        exchange
    }

    /// Whether the credential itself was sent in cleartext.
    #[must_use]
    pub fn is_credential(&self) -> bool {
        self.class == MechanismClass::Plaintext && self.secret_sent
    }

    /// The secret was not sent yet, and the client may still send it after the refusal.
    pub(super) fn may_continue(&self) -> bool {
        self.class == MechanismClass::Plaintext && !self.secret_sent && !self.cancelled
    }

    /// Counts one response of `bytes` bytes.
    pub(super) fn respond(&mut self, bytes: usize) {
        self.steps += 1;
        self.secret_sent |= bytes > 0 && self.steps >= MechanismClass::secret_step(&self.mechanism);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_may_be_a_secret_is_not_kept() {
        for (word, name) in [
            ("PLAIN", "PLAIN"),
            ("Login", "LOGIN"),
            ("scram-sha-256", "SCRAM-SHA-256"),
            ("SAML20", "SAML20"),
            ("X-VENDOR", "UNKNOWN"),
            ("anna", "UNKNOWN"),
            ("AHVzZXIAcGFzcw==", "UNKNOWN"),
            ("hunter2Hunter2", "UNKNOWN"),
            ("", "UNKNOWN"),
            ("AAAAAAAAAAAAAAAAAAAAA", "UNKNOWN"),
        ] {
            assert_eq!(Mechanism::parse(word.as_bytes()).name(), name);
        }
    }

    #[test]
    fn the_secret_is_in_the_step_that_carries_it() {
        for (mechanism, initial, responses, sent) in [
            ("PLAIN", Some(16), &[][..], true),
            ("PLAIN", Some(0), &[], false),
            ("PLAIN", None, &[], false),
            ("PLAIN", None, &[16], true),
            ("LOGIN", Some(8), &[], false),
            ("LOGIN", Some(8), &[8], true),
            ("LOGIN", None, &[8], false),
            ("LOGIN", None, &[8, 8], true),
            ("XOAUTH2", Some(99), &[], true),
            ("CRAM-MD5", None, &[40], true),
        ] {
            let mut exchange = AuthExchange::new(&Mechanism::parse(mechanism.as_bytes()), initial, false);
            responses.iter().for_each(|&bytes| exchange.respond(bytes));
            assert_eq!(exchange.secret_sent, sent, "{mechanism} {initial:?} {responses:?}");
        }
    }
}
