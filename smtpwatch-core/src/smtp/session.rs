//! One SMTP session in clear, driven by (command, reply) pairs.
//!
//! What a line of the client means depends on the reply to the line before it: a body follows DATA only on 354
//! (THREATS FP-10), a SASL response follows AUTH only on 334, TLS follows STARTTLS only on a go-ahead. So whatever the client
//! sends after such a command is held until its reply is known; everything else is a queue of commands that wait for
//! their replies (FP-11).

use std::collections::{BTreeSet, VecDeque};

use super::{
    auth::AuthExchange,
    command::{Command, split_word},
    ehlo::{self, Capabilities, Offer},
    line::{Line, Lines},
    reply::{Replies, Reply},
    secret::Secret,
    tls::{TlsPhase, is_record_type},
    transcript::{Transcript, printable},
};
use crate::{
    Side,
    finding::{Outcome, StarttlsState, TranscriptLine},
    limits,
};

/// Exchanges kept per session; what a client tries beyond them has the outcome of those.
const AUTH_EXCHANGES: usize = 16;

/// Why nothing may be concluded from what is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// The flow was joined after its start (THREATS FP-7).
    Midstream,
    /// Octets are missing that the dialogue needed.
    Gap,
    /// Only one direction was seen (EV-26).
    OneSided,
    /// The streams cannot be told apart into commands and bodies.
    Ambiguous,
}

/// What became of STARTTLS. The code is the server's, zero where a line had none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Starttls {
    /// Not asked for.
    #[default]
    NotSent,
    /// Asked for, no reply yet.
    Sent,
    /// Any 2xx: Postfix and Exim go ahead on each of them (THREATS §1, RFC 3207 §4).
    Granted(u16),
    /// Any other reply.
    Refused(u16),
}

/// What the engine is to do. Drain [`Session::poll`] after every call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// Something happened that a verdict depends on.
    Judge,
    /// A message body follows from the client.
    BodyFollows,
    /// The client's stream is not needed before this offset.
    SkipClientUntil(u64),
    /// Nothing more of this flow is needed.
    Mute,
}

/// The machine and what it has observed.
#[derive(Debug, Default)]
pub struct Session {
    /// First line of the greeting, printable, with its code.
    pub greeting: Option<String>,
    /// Host name at the start of the greeting.
    pub greeting_name: Option<String>,
    /// Name that the client gave with EHLO or HELO.
    pub client_name: Option<String>,
    /// The last complete EHLO reply in clear (THREATS FP-6).
    pub capabilities: Option<Capabilities>,
    /// What became of STARTTLS.
    pub starttls: Starttls,
    /// STARTTLS was offered when it was asked for.
    pub starttls_was_offered: bool,
    /// What came after the go-ahead, or instead of SMTP.
    pub tls: Option<TlsPhase>,
    /// SASL exchanges in clear, in order.
    pub auth: Vec<AuthExchange>,
    /// MAIL was sent in clear.
    pub mail_sent: bool,
    /// MAIL asked for REQUIRETLS in clear (THREATS G7).
    pub requiretls: bool,
    /// Messages accepted in clear.
    pub messages: u32,
    /// Domains of recipients, lower case, bounded.
    pub recipient_domains: BTreeSet<String>,
    /// A command or a reply was understood.
    pub smtp: bool,
    /// Why nothing may be concluded from what is missing.
    pub doubt: Option<Doubt>,
    /// Holes that hurt.
    pub gaps: u32,
    /// Who ended the connection, and whether by reset.
    pub ended: Option<(Side, bool)>,

    phase: Phase,
    queue: VecDeque<Pending>,
    client_lines: Lines,
    server_lines: Lines,
    replies: Replies,
    /// Client octets that wait for the reply that says what they are.
    held: Vec<u8>,
    /// Stream offset behind them.
    held_end: u64,
    client_spoke: bool,
    /// The newest reply answered EHLO, and the client has not spoken since (THREATS EV-17).
    ehlo_may_go_on: bool,
    secret: Option<Secret>,
    transcript: Transcript,
    events: VecDeque<SessionEvent>,
}

/// How octets of the client are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    #[default]
    Commands,
    /// A command was sent whose reply decides what follows.
    Hold,
    /// The next line is a SASL response.
    AuthResponse,
    /// After 354: a message up to the dot, of which nothing needs to be seen.
    Body(Body),
    /// So many octets of a BDAT chunk.
    Chunk(u64),
    /// After the go-ahead, or TLS from the first octet.
    Tls,
    /// A SASL security layer (THREATS FP-19), or nothing that can be followed.
    Stopped,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Body {
    /// Octets of CRLF.CRLF matched so far.
    matched: u8,
    /// A reply came that did not accept the message, and its end was not seen: the client may still be sending it.
    refused: bool,
}

/// A command that waits for its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    Ehlo,
    Starttls,
    Auth,
    Data,
    EndOfData,
    Bdat { last: bool },
    Other,
}

impl Session {
    /// A session from its start, or one that was joined in the middle.
    #[must_use]
    pub fn new(midstream: bool) -> Self {
        Self { doubt: midstream.then_some(Doubt::Midstream), ..Self::default() }
    }

    /// Takes octets of one side; `offset` is their place in its stream.
    pub fn data(&mut self, from: Side, offset: u64, bytes: &[u8]) {
        match from {
            Side::Client => self.client(bytes, offset.saturating_add(bytes.len() as u64)),
            Side::Server => self.server(bytes),
        }
    }

    /// Takes a hole in one side's stream. Returns whether it hurts: bodies and TLS are left out on purpose.
    pub fn gap(&mut self, from: Side, length: u64) -> bool {
        let began_tls = || self.tls.as_ref().is_some_and(|tls| tls.is_tls(Side::Client));
        let harmless = match (&mut self.phase, from) {
            (Phase::Stopped, _) => true,
            (Phase::Tls, _) => began_tls(),
            (Phase::Body(body), Side::Client) => {
                body.matched = 0;
                true
            }
            (Phase::Chunk(left), Side::Client) if length <= *left => {
                *left -= length;
                if *left == 0 {
                    self.phase = Phase::Commands;
                }
                true
            }
            _ => false,
        };
        if !harmless {
            self.gaps += 1;
            self.doubt(Doubt::Gap);
        }
        !harmless
    }

    /// Only one direction was seen.
    pub fn one_sided(&mut self) {
        self.doubt.get_or_insert(Doubt::OneSided);
    }

    /// The connection ended: what was begun is all there will be.
    pub fn finish(&mut self, ended: Option<(Side, bool)>) {
        self.ended = self.ended.or(ended);
        // A line without its end has crossed the wire all the same.
        if matches!(self.phase, Phase::Commands | Phase::AuthResponse) && !self.client_lines.partial().is_empty() {
            let mut end = &b"\r\n"[..];
            if let Some(line) = self.client_lines.take(&mut end) {
                self.client_line(&line, &[], 0);
            }
        }
        self.events.push_back(SessionEvent::Judge);
    }

    /// What the engine is to do.
    pub fn poll(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// The worst that has happened so far.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.auth.iter().any(AuthExchange::is_credential) {
            Outcome::Credential
        } else if self.messages > 0 {
            Outcome::Content
        } else if self.mail_sent {
            Outcome::Envelope
        } else {
            Outcome::Attempt
        }
    }

    /// State of the offer in the last EHLO reply in clear.
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

    /// TLS began: the client sent a TLS record after the go-ahead, or instead of SMTP.
    #[must_use]
    pub fn tls_began(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_tls(Side::Client))
    }

    /// The names that the server gave: EHLO reply, greeting, SNI; each once.
    #[must_use]
    pub fn server_names(&self) -> Vec<&str> {
        let ehlo = self.capabilities.as_ref().and_then(|capabilities| capabilities.name.as_deref());
        let hello = self.tls.as_ref().and_then(|tls| tls.client_hello.as_ref());
        let sni = hello.and_then(|hello| hello.sni.as_deref());
        let mut names = Vec::new();
        for name in [ehlo, self.greeting_name.as_deref(), sni].into_iter().flatten() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The dialogue, secrets blanked.
    #[must_use]
    pub fn transcript(&self) -> Vec<TranscriptLine> {
        self.transcript.lines()
    }

    fn doubt(&mut self, doubt: Doubt) {
        self.doubt.get_or_insert(doubt);
        self.stop();
    }

    fn stop(&mut self) {
        self.phase = Phase::Stopped;
        self.queue = VecDeque::new();
        self.held = Vec::new();
        self.client_lines.clear();
        self.server_lines.clear();
        self.secret = None;
        self.events.push_back(SessionEvent::Mute);
    }

    // ---- the client's side ----

    /// `end` is the stream offset behind `input`.
    fn client(&mut self, mut input: &[u8], end: u64) {
        while !input.is_empty() {
            match &mut self.phase {
                Phase::Stopped => return,
                Phase::Tls => {
                    self.tls_octets(Side::Client, input);
                    return;
                }
                Phase::Hold => {
                    if self.held.len() + input.len() > limits::REASSEMBLY_BYTES {
                        self.doubt(Doubt::Ambiguous);
                    } else {
                        self.held.extend_from_slice(input);
                        self.held_end = end;
                    }
                    return;
                }
                Phase::Body(body) => {
                    if body.scan(&mut input) {
                        let refused = body.refused;
                        self.phase = Phase::Commands;
                        if !refused {
                            self.expect(Pending::EndOfData);
                        }
                    }
                }
                Phase::Chunk(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    input = &input[taken..];
                    *left -= taken as u64;
                    if *left == 0 {
                        self.phase = Phase::Commands;
                    }
                }
                Phase::Commands if !self.client_spoke && is_record_type(input[0]) => {
                    // TLS without STARTTLS on a mail port (THREATS D6). Only as the first octet: later it would be a way
                    // to make the watcher look away.
                    self.enter_tls();
                }
                Phase::Commands | Phase::AuthResponse => {
                    self.client_spoke = true;
                    let Some(line) = self.client_lines.take(&mut input) else { return };
                    self.client_line(&line, input, end);
                }
            }
        }
    }

    /// `input` is what follows the line, `end` the stream offset behind that.
    fn client_line(&mut self, line: &Line, input: &[u8], end: u64) {
        self.ehlo_may_go_on = false;
        if self.phase == Phase::AuthResponse {
            self.auth_response(&line.bytes);
            return;
        }
        let command = Command::parse(&line.bytes);
        self.smtp |= command != Command::Other;
        self.transcript.push(Side::Client, shown(&command, &line.bytes));
        let pending = match command {
            Command::Ehlo(name) => {
                self.client_name = Some(name);
                Pending::Ehlo
            }
            Command::Helo(name) => {
                self.client_name = Some(name);
                Pending::Other
            }
            Command::Starttls => {
                self.starttls = Starttls::Sent;
                self.starttls_was_offered =
                    self.capabilities.as_ref().is_some_and(|capabilities| capabilities.offer() != Offer::Absent);
                self.phase = Phase::Hold;
                Pending::Starttls
            }
            Command::Auth { mechanism, initial } => {
                if self.auth.len() < AUTH_EXCHANGES {
                    self.auth.push(AuthExchange::new(&mechanism, initial));
                }
                let (_, rest) = split_word(&line.bytes);
                self.secret = initial.map(|_| Secret::new(split_word(rest).1.to_vec()));
                self.phase = Phase::Hold;
                Pending::Auth
            }
            Command::Mail { requiretls } => {
                self.mail_sent = true;
                self.requiretls |= requiretls;
                self.events.push_back(SessionEvent::Judge);
                Pending::Other
            }
            Command::Rcpt(domain) => {
                if let Some(domain) = domain
                    && self.recipient_domains.len() < limits::RECIPIENT_DOMAINS
                {
                    self.recipient_domains.insert(domain);
                }
                Pending::Other
            }
            Command::Data => {
                self.phase = Phase::Hold;
                Pending::Data
            }
            Command::Bdat { size: Some(size), last } => {
                if size > 0 {
                    self.phase = Phase::Chunk(size);
                    let start = end.saturating_sub(input.len() as u64);
                    self.events.push_back(SessionEvent::SkipClientUntil(start.saturating_add(size)));
                }
                Pending::Bdat { last }
            }
            Command::Bdat { size: None, .. } => {
                // Nobody can say whether a body follows, or of what length.
                self.doubt(Doubt::Ambiguous);
                return;
            }
            // The PROXY header of a load balancer comes before the dialogue and has no reply (THREATS FP-13).
            Command::Other if self.greeting.is_none() && line.bytes.starts_with(b"PROXY ") => return,
            Command::Rset | Command::Quit | Command::Other => Pending::Other,
        };
        self.expect(pending);
    }

    fn auth_response(&mut self, line: &[u8]) {
        let octets = line.trim_ascii().len();
        self.transcript.push(Side::Client, format!("[{octets} octets]"));
        if let Some(exchange) = self.auth.last_mut() {
            if line.trim_ascii() == b"*" {
                exchange.cancelled = true;
            } else {
                exchange.respond(octets);
            }
        }
        self.secret = Some(Secret::new(line.to_vec()));
        self.phase = Phase::Hold;
        self.expect(Pending::Auth);
    }

    fn expect(&mut self, pending: Pending) {
        if self.queue.len() >= limits::PIPELINE {
            self.doubt(Doubt::Ambiguous);
        } else {
            self.queue.push_back(pending);
        }
    }

    // ---- the server's side ----

    fn server(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            match self.phase {
                Phase::Stopped => return,
                Phase::Tls if self.starttls == Starttls::NotSent && !is_record_type(input[0]) && !self.server_tls() => {
                    // The server speaks SMTP: what the client sent first was not TLS that anybody answered.
                    self.tls = None;
                    self.client_spoke = true;
                    self.phase = Phase::Commands;
                }
                Phase::Tls => {
                    self.tls_octets(Side::Server, input);
                    return;
                }
                Phase::Commands | Phase::Hold | Phase::AuthResponse | Phase::Body(_) | Phase::Chunk(_) => {}
            }
            let Some(line) = self.server_lines.take(&mut input) else { return };
            let reply = self.replies.push(&line);
            let mut shown = printable(&line.bytes);
            if let Some(secret) = &self.secret {
                shown = secret.strike(&shown);
            }
            self.transcript.push(Side::Server, blank_local_parts(&shown));
            if let Some(reply) = reply {
                self.smtp |= (200..600).contains(&reply.code);
                self.reply(&reply);
            }
        }
    }

    fn reply(&mut self, reply: &Reply) {
        let went_on = std::mem::take(&mut self.ehlo_may_go_on);
        if self.greeting.is_none() && self.doubt.is_none() {
            // The first reply is the greeting, also when the client spoke first (PIPECONNECT, THREATS FP-12).
            let first = reply.lines.first().map(Vec::as_slice).unwrap_or_default();
            self.greeting = Some(printable(&[format!("{} ", reply.code).as_bytes(), first].concat()));
            self.greeting_name = ehlo::host_name(first);
            return;
        }
        if let Phase::Body(body) = self.phase {
            self.reply_in_body(body, reply);
            return;
        }
        match self.queue.pop_front() {
            Some(Pending::Ehlo) if reply.is_positive() => {
                self.capabilities = Some(Capabilities::parse(&reply.lines));
                self.ehlo_may_go_on = true;
            }
            Some(Pending::Starttls) => self.starttls_reply(reply.code),
            Some(Pending::Auth) => self.auth_reply(reply),
            Some(Pending::Data) if reply.code == 354 => {
                self.transcript.push(Side::Client, "[message]".to_owned());
                self.events.push_back(SessionEvent::BodyFollows);
                self.release(Phase::Body(Body::START));
            }
            Some(Pending::Data) => self.release(Phase::Commands),
            Some(Pending::EndOfData | Pending::Bdat { last: true }) if reply.is_positive() => self.accepted(),
            Some(Pending::Ehlo | Pending::EndOfData | Pending::Bdat { .. } | Pending::Other) => {}
            None if went_on && reply.code == 250 => {
                if let Some(capabilities) = &mut self.capabilities {
                    capabilities.extend(&reply.lines);
                }
                self.ehlo_may_go_on = true;
            }
            // More replies than commands: what was pipelined behind a body that was not seen.
            None => {}
        }
    }

    /// A reply while the end of the body has not been seen: the gate leaves bodies out, so it is the reply to the message. Only
    /// a refusal may also have come in the middle of it; then the client goes on with the body until the next reply.
    fn reply_in_body(&mut self, body: Body, reply: &Reply) {
        if reply.is_positive() && !body.refused {
            self.phase = Phase::Commands;
            self.accepted();
        } else if body.refused {
            self.phase = Phase::Commands;
        } else {
            self.phase = Phase::Body(Body { refused: true, ..body });
        }
    }

    fn accepted(&mut self) {
        self.messages = self.messages.saturating_add(1);
        self.events.push_back(SessionEvent::Judge);
    }

    fn starttls_reply(&mut self, code: u16) {
        if code / 100 == 2 {
            self.starttls = Starttls::Granted(code);
            self.enter_tls();
            self.release(Phase::Tls);
        } else {
            self.starttls = Starttls::Refused(code);
            self.release(Phase::Commands);
            self.events.push_back(SessionEvent::Judge);
        }
    }

    fn auth_reply(&mut self, reply: &Reply) {
        // Any 3xx: a client that goes on by the first digit must not have its response read as a command.
        let cancelled = self.auth.last().is_some_and(|exchange| exchange.cancelled);
        if reply.class() == 3 && !cancelled {
            self.release(Phase::AuthResponse);
            return;
        }
        self.secret = None;
        let mut layer = false;
        if let Some(exchange) = self.auth.last_mut() {
            exchange.reply = reply.code;
            layer =
                reply.is_positive() && matches!(exchange.mechanism.as_str(), "GSSAPI" | "DIGEST-MD5" | "GSS-SPNEGO");
        }
        self.events.push_back(SessionEvent::Judge);
        if layer {
            // A security layer may begin here (RFC 4954 §4); commands inside it would not be commands.
            self.stop();
        } else {
            self.release(Phase::Commands);
        }
    }

    /// The reply has come: reads what was held as what it is.
    fn release(&mut self, phase: Phase) {
        self.phase = phase;
        let held = std::mem::take(&mut self.held);
        self.client(&held, self.held_end);
    }

    fn enter_tls(&mut self) {
        self.phase = Phase::Tls;
        self.tls = Some(TlsPhase::default());
    }

    fn server_tls(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_tls(Side::Server))
    }

    fn tls_octets(&mut self, from: Side, octets: &[u8]) {
        let Some(tls) = &mut self.tls else { return };
        let began = tls.is_tls(Side::Client);
        tls.push(from, octets);
        if !began && tls.is_tls(Side::Client) {
            self.transcript.push(Side::Client, "[TLS]".to_owned());
            self.events.push_back(SessionEvent::Judge);
        }
    }
}

impl AuthExchange {
    /// Whether a credential itself crossed in clear.
    #[must_use]
    pub fn is_credential(&self) -> bool {
        self.class == super::MechanismClass::Plaintext && self.secret_sent
    }
}

impl Body {
    /// A dot directly after 354's line is the end of an empty message: CRLF counts as matched.
    const START: Self = Self { matched: 2, refused: false };

    /// Passes over octets up to and including CRLF.CRLF. Nothing else ends a message here (THREATS E5).
    fn scan(&mut self, input: &mut &[u8]) -> bool {
        const END: &[u8] = b"\r\n.\r\n";
        for (at, &octet) in input.iter().enumerate() {
            self.matched = match octet {
                _ if octet == END[usize::from(self.matched)] => self.matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            if usize::from(self.matched) == END.len() {
                *input = &input[at + 1..];
                return true;
            }
        }
        *input = &[];
        false
    }
}

/// A command as the transcript shows it: no secret, no user name, no argument of a verb that nobody knows.
fn shown(command: &Command, line: &[u8]) -> String {
    let (verb, rest) = split_word(line);
    match command {
        Command::Auth { mechanism, initial } => match initial {
            Some(octets) => format!("{} {} [{octets} octets]", printable(verb), mechanism.name()),
            None => format!("{} {}", printable(verb), mechanism.name()),
        },
        Command::Other => {
            let rest = rest.trim_ascii().len();
            let verb = if is_verb(verb) { printable(verb) } else { format!("[{} octets]", verb.len()) };
            if rest == 0 { verb } else { format!("{verb} [{rest} octets]") }
        }
        Command::Ehlo(_)
        | Command::Helo(_)
        | Command::Starttls
        | Command::Mail { .. }
        | Command::Rcpt(_)
        | Command::Data
        | Command::Bdat { .. }
        | Command::Rset
        | Command::Quit => blank_local_parts(&printable(line)),
    }
}

/// A verb is short and in one case; base64, which a confused client may send as a command, seldom is.
fn is_verb(word: &[u8]) -> bool {
    (1..=12).contains(&word.len())
        && word.iter().all(|c| c.is_ascii_alphabetic() || *c == b'-')
        && (word == word.to_ascii_uppercase().as_slice() || word == word.to_ascii_lowercase().as_slice())
}

/// `local@domain` becomes `*@domain`, and the identity of MAIL's AUTH parameter (RFC 4954 §5) becomes `*`: who writes to whom
/// is in the mail server's log, where the operator decided to keep it.
fn blank_local_parts(text: &str) -> String {
    const DELIMITERS: [char; 11] = ['<', '>', ':', ',', ';', '(', ')', '[', ']', ' ', '\t'];
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(DELIMITERS) {
        match word.rsplit_once('@') {
            Some((_, domain)) => {
                shown.push_str("*@");
                shown.push_str(domain);
            }
            None => shown.push_str(word),
        }
    }
    shown
}
