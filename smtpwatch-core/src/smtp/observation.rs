//! The facts of one session, without any judgement. The session fills an [`Observation`]; the judge turns it into
//! findings.

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

/// Maximum number of lines of an injection whose verbs are recorded.
const INJECTED_LINES: usize = 16;
/// Maximum number of refusals whose texts are recorded.
pub(super) const REFUSALS: usize = 4;
/// Maximum length of one recorded line of the server, in characters.
const INJECTED_TEXT: usize = 120;

/// Why missing data must not lead to a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// The flow was joined after its start (docs/threats.md FP-7).
    Midstream,
    /// Bytes that the dialogue needed are missing.
    Gap,
    /// Only one direction was seen (EV-26).
    OneSided,
    /// Commands and message bodies cannot be distinguished.
    Ambiguous,
    /// Both ends speak Multipath TCP: other subflows may carry parts of the dialogue (EV-28).
    Multipath,
    /// Copies of the server's bytes differ, or the server sent more than is tracked: it is unknown which bytes this
    /// host accepted (EV-2).
    Server,
}

/// State of the STARTTLS request. The code is the server's; zero for a line without a code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Starttls {
    /// The client did not request it.
    #[default]
    NotSent,
    /// Requested, no reply yet.
    Sent,
    /// Any 2xx: Postfix and Exim proceed on each of them (RFC 3207 §4 names 220 only).
    Granted(u16),
    /// Any other reply.
    Refused(u16),
}

/// How the TLS handshake after the go-ahead failed.
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
    /// Neither side sent anything more.
    Silence,
}

/// Cleartext bytes where TLS should begin (docs/threats.md E1–E3). Only verbs are recorded: arguments may be secrets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Injection {
    /// Number of bytes.
    pub octets: usize,
    /// For commands, the first word of each line; for replies, the redacted line. Printable, at most sixteen entries.
    pub verbs: Vec<String>,
    /// The bytes include a SASL exchange.
    pub auth: bool,
    /// The bytes include MAIL, RCPT or DATA.
    pub mail: bool,
    /// Each line has the form of a reply that accepts or requests something (2yz, 3yz), and the lines are more than a
    /// repeated go-ahead.
    pub replies: bool,
    /// The bytes were sent before the sender can have seen the reply to STARTTLS.
    pub before_reply: bool,
}

impl Injection {
    pub(super) fn of(bytes: &[u8], before_reply: bool) -> Self {
        let mut injection = Self { octets: bytes.len(), before_reply, ..Self::default() };
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            let command = Command::parse(line.trim_ascii_end());
            injection.auth |= matches!(command, Command::Auth { .. });
            injection.mail |= matches!(command, Command::Mail { .. } | Command::Rcpt(_) | Command::Data);
            if injection.verbs.len() < INJECTED_LINES {
                let verb = split_word(line).0;
                injection.verbs.push(if is_verb(verb) { printable(verb) } else { format!("[{} bytes]", verb.len()) });
            }
        }
        injection
    }

    /// An injection of server lines, with their redacted texts.
    pub(super) fn of_replies(bytes: &[u8], shown: impl Iterator<Item = String>) -> Self {
        let lines = || bytes.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let code = |line: &[u8]| line.get(..3).filter(|code| code.iter().all(u8::is_ascii_digit)).map(<[u8]>::to_vec);
        let accepts = |line: &[u8]| code(line).is_some_and(|code| matches!(code[0], b'2' | b'3'));
        Self {
            octets: bytes.len(),
            replies: lines().all(accepts) && lines().any(|line| code(line).as_deref() != Some(b"220")),
            verbs: shown.take(INJECTED_LINES).map(|text| text.chars().take(INJECTED_TEXT).collect()).collect(),
            ..Self::default()
        }
    }
}

/// A verb that differs from the one that was sent (docs/threats.md B2, C4, FO-12).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rewritten {
    /// The verb as sent; empty if only its length is known.
    pub sent: String,
    /// The verb as received, or as quoted by the server.
    pub arrived: String,
}

/// The facts of the cleartext part of one session.
#[derive(Debug, Default)]
pub struct Observation {
    /// First line of the greeting, printable, with its code.
    pub greeting: Option<String>,
    /// Host name at the start of the greeting.
    pub greeting_name: Option<String>,
    /// Host name that the client gave with EHLO or HELO.
    pub client_name: Option<String>,
    /// The last complete EHLO reply in cleartext (docs/threats.md FP-6).
    pub capabilities: Option<Capabilities>,
    /// Length of that reply in bytes, including line endings (FO-2).
    pub ehlo_octets: usize,
    /// Time from the EHLO command to that reply (FO-8).
    pub ehlo_after: Option<Duration>,
    /// The EHLO reply began, but its last line never arrived (A6).
    pub ehlo_unfinished: bool,
    /// Capability lines followed the last line of the EHLO reply (A6, EV-17): the number of lines before them.
    pub ehlo_went_on: Option<usize>,
    /// Code of the reply to EHLO if it was not positive (B1).
    pub ehlo_rejected: Option<u16>,
    /// First line of that reply, printable (FO-11).
    pub ehlo_refusal: Option<String>,
    /// HELO was accepted.
    pub helo: bool,
    /// The client sent MAIL or STARTTLS while no reply to EHLO was pending.
    pub went_on: bool,
    /// Code of a reply whose text demands STARTTLS, sent to a client that did not request it.
    pub starttls_demanded: Option<u16>,
    /// Redacted texts of refusals, at most `REFUSALS` (FO-11).
    pub refusals: Vec<String>,
    /// State of the STARTTLS request.
    pub starttls: Starttls,
    /// STARTTLS was offered when the client requested it.
    pub starttls_was_offered: bool,
    /// Time from STARTTLS to its reply (FO-8).
    pub starttls_after: Option<Duration>,
    /// Text of the reply to STARTTLS, printable.
    pub starttls_reply: Option<String>,
    /// The TLS phase after the go-ahead, or of a session that began with TLS.
    pub tls: Option<Box<TlsPhase>>,
    /// After the go-ahead the client continued in cleartext, and the server replied (C6).
    pub clear_after_go_ahead: bool,
    /// Bytes after the go-ahead are missing: the result of the handshake is unknown.
    pub handshake_unseen: bool,
    /// Client bytes between STARTTLS and its first TLS record.
    pub injected_commands: Option<Box<Injection>>,
    /// Server bytes between the go-ahead and the first TLS record.
    pub injected_replies: Option<Box<Injection>>,
    /// Time from the go-ahead to the first of these bytes.
    pub clear_after: Option<Duration>,
    /// The first verb that was rewritten on the path.
    pub rewritten: Option<Box<Rewritten>>,
    /// Code of the first reply of class 2 or 3, before TLS, that answers no command (E4).
    pub unsolicited: Option<u16>,
    /// SASL exchanges in cleartext, in order.
    pub auth: Vec<AuthExchange>,
    /// A PROXY header preceded the dialogue (FP-13). Load balancers send one on behalf of another client, but any
    /// client can: it counts only from an address that the configuration trusts.
    pub proxy_header: bool,
    /// The server granted XCLIENT: the client then acts on behalf of another client (FP-13).
    pub xclient_granted: bool,
    /// MAIL was sent in cleartext.
    pub mail_sent: bool,
    /// MAIL requested REQUIRETLS in cleartext (G7).
    pub requiretls: bool,
    /// Number of messages accepted in cleartext.
    pub messages: u32,
    /// Domains of recipients, lower case; the number is bounded.
    pub recipient_domains: BTreeSet<String>,
    /// Keywords of the EHLO reply that the client made use of (FO-14).
    pub acted_on: BTreeSet<&'static str>,
    /// At least one command or reply was parsed.
    pub smtp: bool,
    /// Why missing data must not lead to a finding.
    pub doubt: Option<Doubt>,
    /// Number of gaps that affected the dialogue.
    pub gaps: u32,
    /// The side that ended the connection, and whether by reset.
    pub ended: Option<(Side, bool)>,
    /// Time without data from either side before the end.
    pub silence: Option<Duration>,
    /// The flow was idle until its timeout.
    pub timed_out: bool,
    pub(super) transcript: Transcript,
}

impl Observation {
    /// The most severe outcome so far.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.auth.iter().any(AuthExchange::is_credential) { Outcome::Credential } else { self.mail_outcome() }
    }

    /// The outcome without regard to authentication exchanges.
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

    /// The TLS phase began: the client sent a TLS record after the go-ahead, or instead of SMTP.
    #[must_use]
    pub fn tls_began(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_tls(Side::Client))
    }

    /// How the handshake after the go-ahead failed; `None` while it may still succeed, after success, or if the
    /// result is unknown.
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

    /// The host names of the server from the EHLO reply, the greeting and SNI, without duplicates.
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

    /// The greeting is the residue of a device that overwrites everything but the characters 2, 0, `*` and blanks:
    /// the test by which Postfix recognises a PIX (docs/threats.md B3).
    #[must_use]
    pub fn greeting_is_masked(&self) -> bool {
        self.greeting.as_deref().is_some_and(|greeting| {
            greeting.matches('*').count() >= 4 && greeting.bytes().all(|c| matches!(c, b'2' | b'0' | b' ' | b'*'))
        })
    }

    /// The dialogue, with secrets redacted.
    #[must_use]
    pub fn transcript(&self) -> Vec<TranscriptLine> {
        self.transcript.lines()
    }
}
