//! What one session showed: facts, no opinion.

use std::{collections::BTreeSet, time::Duration};

use super::{
    auth::AuthExchange,
    command::{Command, is_blank, split_word},
    ehlo::{Capabilities, Offer},
    tls::TlsPhase,
    transcript::{Transcript, is_verb, printable},
};
use crate::{
    Side,
    finding::{Outcome, StarttlsState, TranscriptLine},
};

/// Lines of an injection whose verbs are kept.
const INJECTED_LINES: usize = 16;
/// Refusals whose texts are kept.
pub(super) const REFUSALS: usize = 4;
/// Characters of a line of the server that are kept of one.
const INJECTED_TEXT: usize = 120;

/// Why nothing may be concluded from what is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// The flow was joined after its start (docs/threats.md FP-7).
    Midstream,
    /// Bytes are missing that the dialogue needed.
    Gap,
    /// Only one direction was seen (EV-26).
    OneSided,
    /// The streams cannot be distinguished into commands and bodies.
    Ambiguous,
    /// Both ends speak Multipath TCP: other subflows may carry parts of the dialogue (EV-28).
    Multipath,
    /// Copies of what the server said differ, or it said more than is followed: which of it this host took in cannot be told (EV-2).
    Server,
}

/// What became of STARTTLS. The code is the server's, zero where a line had none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Starttls {
    /// Not asked for.
    #[default]
    NotSent,
    /// Asked for, no reply yet.
    Sent,
    /// Any 2xx: Postfix and Exim go ahead on each of them (RFC 3207 §4 names 220 only).
    Granted(u16),
    /// Any other reply.
    Refused(u16),
}

/// How TLS failed to come about after the go-ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandshakeEnd {
    /// This side continued in cleartext.
    Clear(Side),
    /// This side sent an alert in cleartext, with its description (RFC 8446 §6).
    Alert(Side, u8),
    /// This side reset the connection.
    Reset(Side),
    /// This side closed the connection.
    Closed(Side),
    /// No one said anything more.
    Silence,
}

/// Bytes in cleartext that stand where TLS should begin (docs/threats.md E1–E3). Verbs only: their arguments may be secrets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Injection {
    /// How many.
    pub octets: usize,
    /// Of commands the first word of each line, of replies the line as it may be shown; printable, at most sixteen.
    pub verbs: Vec<String>,
    /// A SASL exchange is among them.
    pub auth: bool,
    /// MAIL, RCPT or DATA is among them.
    pub mail: bool,
    /// Each line has the form of a reply that accepts or asks for something (2yz, 3yz), and is more than a second go-ahead.
    pub replies: bool,
    /// They were sent before the sender can have known the reply to STARTTLS.
    pub before_reply: bool,
}

impl Injection {
    pub(super) fn of(octets: &[u8], before_reply: bool) -> Self {
        let mut injection = Self { octets: octets.len(), before_reply, ..Self::default() };
        for line in octets.split(|&octet| octet == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            let command = Command::parse(line.trim_ascii_end());
            injection.auth |= matches!(command, Command::Auth { .. });
            injection.mail |= matches!(command, Command::Mail { .. } | Command::Rcpt(_) | Command::Data);
            if injection.verbs.len() < INJECTED_LINES {
                let verb = split_word(line).0;
                injection.verbs.push(if is_verb(verb) { printable(verb) } else { format!("[{} octets]", verb.len()) });
            }
        }
        injection
    }

    /// Lines of the server, with their texts as they may be shown.
    pub(super) fn of_replies(octets: &[u8], shown: impl Iterator<Item = String>) -> Self {
        let lines = || octets.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let code = |line: &[u8]| line.get(..3).filter(|code| code.iter().all(u8::is_ascii_digit)).map(<[u8]>::to_vec);
        let accepts = |line: &[u8]| code(line).is_some_and(|code| matches!(code[0], b'2' | b'3'));
        Self {
            octets: octets.len(),
            replies: lines().all(accepts) && lines().any(|line| code(line).as_deref() != Some(b"220")),
            verbs: shown.take(INJECTED_LINES).map(|text| text.chars().take(INJECTED_TEXT).collect()).collect(),
            ..Self::default()
        }
    }
}

/// A verb that is not the one that was sent (docs/threats.md B2, C4, FO-12).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rewritten {
    /// The verb as sent; empty where only its length is known.
    pub sent: String,
    /// The verb as it arrived, or as the server quotes it.
    pub arrived: String,
}

/// The facts of one session, as far as it was in cleartext.
#[derive(Debug, Default)]
pub struct Observation {
    /// First line of the greeting, printable, with its code.
    pub greeting: Option<String>,
    /// Host name at the start of the greeting.
    pub greeting_name: Option<String>,
    /// Name that the client gave with EHLO or HELO.
    pub client_name: Option<String>,
    /// The last complete EHLO reply in cleartext (docs/threats.md FP-6).
    pub capabilities: Option<Capabilities>,
    /// Bytes of that reply on the wire, line ends included (FO-2).
    pub ehlo_octets: usize,
    /// Time from the EHLO command to that reply (FO-8).
    pub ehlo_after: Option<Duration>,
    /// The EHLO reply had begun and its last line never came (A6).
    pub ehlo_unfinished: bool,
    /// Capability lines came after the last line of the EHLO reply (A6, EV-17): how many stood before that.
    pub ehlo_went_on: Option<usize>,
    /// EHLO was answered with this code, which is not positive (B1).
    pub ehlo_rejected: Option<u16>,
    /// First line of that reply, printable (FO-11).
    pub ehlo_refusal: Option<String>,
    /// HELO was accepted.
    pub helo: bool,
    /// The client sent MAIL or STARTTLS while no reply to EHLO was awaited.
    pub went_on: bool,
    /// Code of a reply that demands STARTTLS in its text, to a client that did not ask for it.
    pub starttls_demanded: Option<u16>,
    /// Texts of refusals, as they may be shown, at most [`REFUSALS`] (FO-11).
    pub refusals: Vec<String>,
    /// What became of STARTTLS.
    pub starttls: Starttls,
    /// STARTTLS was offered when it was asked for.
    pub starttls_was_offered: bool,
    /// Time from STARTTLS to its reply (FO-8).
    pub starttls_after: Option<Duration>,
    /// Text of the reply to STARTTLS, printable.
    pub starttls_reply: Option<String>,
    /// What came after the go-ahead, or instead of SMTP.
    pub tls: Option<Box<TlsPhase>>,
    /// After the go-ahead the client continued in cleartext, and the server answered (C6).
    pub clear_after_go_ahead: bool,
    /// Bytes are missing after the go-ahead: whether the handshake succeeded cannot be told.
    pub handshake_unseen: bool,
    /// Client bytes between STARTTLS and its first TLS record.
    pub injected_commands: Option<Box<Injection>>,
    /// Server bytes between the go-ahead and the first TLS record.
    pub injected_replies: Option<Box<Injection>>,
    /// Time from the go-ahead to the first of them.
    pub clear_after: Option<Duration>,
    /// A verb that was rewritten on the path, the first one.
    pub rewritten: Option<Box<Rewritten>>,
    /// Code of the first reply of class 2 or 3, before TLS, that answers no command (E4).
    pub unsolicited: Option<u16>,
    /// SASL exchanges in cleartext, in order.
    pub auth: Vec<AuthExchange>,
    /// A PROXY header came before the dialogue (FP-13): a load balancer that speaks for another client writes one, and so can any
    /// client. It counts only from an address that the configuration trusts.
    pub proxy_header: bool,
    /// The server granted XCLIENT: from there on the client speaks for another one (FP-13).
    pub xclient_granted: bool,
    /// MAIL was sent in cleartext.
    pub mail_sent: bool,
    /// MAIL asked for REQUIRETLS in cleartext (G7).
    pub requiretls: bool,
    /// Messages accepted in cleartext.
    pub messages: u32,
    /// Domains of recipients, lower case, bounded.
    pub recipient_domains: BTreeSet<String>,
    /// Keywords of the EHLO reply that the client acted on (FO-14).
    pub acted_on: BTreeSet<&'static str>,
    /// A command or a reply was understood.
    pub smtp: bool,
    /// Why nothing may be concluded from what is missing.
    pub doubt: Option<Doubt>,
    /// Gaps that hurt.
    pub gaps: u32,
    /// Who ended the connection, and whether by reset.
    pub ended: Option<(Side, bool)>,
    /// How long no one had said anything when it ended.
    pub silence: Option<Duration>,
    /// The flow fell silent and was given up.
    pub timed_out: bool,
    pub(super) transcript: Transcript,
}

impl Observation {
    /// The worst that has happened so far.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.auth.iter().any(AuthExchange::is_credential) { Outcome::Credential } else { self.mail_outcome() }
    }

    /// The same without what was sent to prove who someone is.
    #[must_use]
    pub const fn mail_outcome(&self) -> Outcome {
        if self.messages > 0 {
            Outcome::Content
        } else if self.mail_sent {
            Outcome::Envelope
        } else {
            Outcome::Attempt
        }
    }

    /// State of the offer in the last EHLO reply in cleartext.
    #[must_use]
    pub fn starttls_state(&self) -> StarttlsState {
        let Some(capabilities) = &self.capabilities else { return StarttlsState::Unknown };
        match (self.starttls, capabilities.offer()) {
            (Starttls::Refused(_), _) if self.starttls_was_offered => StarttlsState::Refused,
            (_, Offer::Strict | Offer::Lenient) => StarttlsState::Offered,
            (_, Offer::Absent) if capabilities.masked().next().is_some() => StarttlsState::Masked,
            (_, Offer::Absent) => StarttlsState::Absent,
        }
    }

    /// STARTTLS was offered in the last EHLO reply in cleartext.
    #[must_use]
    pub fn offers_starttls(&self) -> bool {
        self.capabilities.as_ref().is_some_and(|capabilities| capabilities.offer() != Offer::Absent)
    }

    /// TLS began: the client sent a TLS record after the go-ahead, or instead of SMTP.
    #[must_use]
    pub fn tls_began(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_tls(Side::Client))
    }

    /// How TLS failed to come about after the go-ahead; `None` while it may still, once it did, or where it cannot be told.
    #[must_use]
    pub fn handshake_end(&self) -> Option<HandshakeEnd> {
        if !matches!(self.starttls, Starttls::Granted(_)) {
            return None;
        }
        if self.clear_after_go_ahead {
            return Some(HandshakeEnd::Clear(Side::Client));
        }
        let tls = self.tls.as_deref().filter(|tls| !tls.is_established() && !tls.is_opaque())?;
        if let Some((side, description)) = tls.alert {
            return Some(HandshakeEnd::Alert(side, description));
        }
        if self.handshake_unseen {
            return None;
        }
        if !tls.is_tls(Side::Server) && !is_blank(tls.before(Side::Server)) {
            return Some(HandshakeEnd::Clear(Side::Server));
        }
        match self.ended {
            Some((side, true)) => Some(HandshakeEnd::Reset(side)),
            Some((side, false)) => Some(HandshakeEnd::Closed(side)),
            None => self.timed_out.then_some(HandshakeEnd::Silence),
        }
    }

    /// The names that the server gave: EHLO reply, greeting, SNI; each once.
    #[must_use]
    pub fn server_names(&self) -> Vec<&str> {
        let ehlo = self.capabilities.as_ref().and_then(|capabilities| capabilities.name.as_deref());
        let hello = self.tls.as_ref().and_then(|tls| tls.client_hello.as_ref());
        let sni = hello.and_then(|hello| hello.sni.as_deref());
        let mut names = Vec::with_capacity(3);
        for name in [ehlo, self.greeting_name.as_deref(), sni].into_iter().flatten() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The whole text of the greeting is what a device leaves that keeps the characters 2, 0, `*` and blanks alone: the test
    /// by which Postfix knows a PIX (docs/threats.md B3).
    #[must_use]
    pub fn greeting_is_masked(&self) -> bool {
        self.greeting.as_deref().is_some_and(|greeting| {
            greeting.matches('*').count() >= 4 && greeting.bytes().all(|c| matches!(c, b'2' | b'0' | b' ' | b'*'))
        })
    }

    /// The dialogue, secrets blanked.
    #[must_use]
    pub fn transcript(&self) -> Vec<TranscriptLine> {
        self.transcript.lines()
    }
}
