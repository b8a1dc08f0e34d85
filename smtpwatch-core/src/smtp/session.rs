//! One SMTP session in clear, driven by (command, reply) pairs.
//!
//! What a line of the client means depends on the reply to the line before it: a body follows DATA only on 354
//! (THREATS FP-10), a SASL response follows AUTH only on 334, TLS follows STARTTLS only on a go-ahead. So whatever the client
//! sends after such a command is held until its reply is known; everything else is a queue of commands that wait for
//! their replies (FP-11).

use std::collections::VecDeque;

use super::{
    auth::{AuthExchange, Mechanism, MechanismClass},
    body::Body,
    command::{Command, split_word},
    echo,
    ehlo::{self, Capabilities},
    line::{Line, Lines},
    observation::{Doubt, Injection, Observation, Rewritten, Starttls},
    reply::{Replies, Reply},
    secret::Secret,
    shown::{blank_local_parts, shown},
    tls::{TlsPhase, is_record_type},
    transcript::{is_verb, printable},
};
use crate::{Side, Timestamp, limits};

/// Exchanges kept per session; what a client tries beyond them has the outcome of those.
const AUTH_EXCHANGES: usize = 16;

/// Secrets of one session that are looked for in what the server says.
const SECRETS: usize = 8;
/// First octets of a PROXY header, version 2.
const PROXY_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What the engine is to do. Drain [`Session::poll`] after every call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// Something happened that a verdict depends on.
    Judge,
    /// Which reply belongs to which command is lost, or how far a body reaches: nothing more can be read.
    OutOfStep,
    /// A message body follows from the client.
    BodyFollows,
    /// The client's stream is not needed before this offset.
    SkipClientUntil(u64),
    /// Nothing more of this flow is needed.
    Mute,
}

/// The machine. What it has learnt so far is [`Session::seen`].
#[derive(Debug, Default)]
pub struct Session {
    /// The facts so far.
    pub seen: Observation,

    phase: Phase,
    queue: VecDeque<Waiting>,
    client_lines: Lines,
    server_lines: Lines,
    replies: Replies,
    /// Client octets that wait for the reply that says what they are.
    held: Vec<u8>,
    /// Stream offset behind the newest octets of the client.
    client_end: u64,
    client_spoke: bool,
    /// A message ended unseen: replies may follow to commands that stood behind it.
    unseen_commands: bool,
    /// A line without a code came while a command waited: the reply to it, or noise before the reply.
    stray: bool,
    /// The newest reply answered EHLO, and the client has not spoken since (THREATS EV-17).
    ehlo_may_go_on: bool,
    /// What may not be shown, should the server quote it: the newest [`SECRETS`].
    secrets: VecDeque<Secret>,
    /// When the newest octets were sent.
    now: Timestamp,
    /// Octets of the reply that is being read, line ends included.
    reply_octets: usize,
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

/// A command that waits for its reply, with its verb in upper case; empty where the word had not the form of one.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Waiting {
    what: Pending,
    verb: String,
    asked: Timestamp,
    /// So many in a row, of which `asked` tells when the first was sent.
    count: u32,
}

/// What the reply decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    Ehlo,
    Helo,
    Starttls,
    Auth,
    Data,
    EndOfData,
    Bdat { last: bool },
    UnofferedBdat { size: u64, last: bool },
    Turn,
    Other,
}

impl Session {
    /// A session from its start, or one that was joined in the middle.
    #[must_use]
    pub fn new(midstream: bool) -> Self {
        Self {
            seen: Observation { doubt: midstream.then_some(Doubt::Midstream), ..Observation::default() },
            ..Self::default()
        }
    }

    /// Takes octets of one side, sent at `at`; `offset` is their place in its stream.
    pub fn data(&mut self, from: Side, at: Timestamp, offset: u64, bytes: &[u8]) {
        self.now = at;
        match from {
            Side::Client => self.client(bytes, offset.saturating_add(bytes.len() as u64)),
            Side::Server => self.server(bytes),
        }
    }

    /// Takes a hole in one side's stream. Returns whether it hurts: bodies and TLS are left out on purpose.
    pub fn gap(&mut self, from: Side, length: u64) -> bool {
        let harmless = match (&mut self.phase, from) {
            (Phase::Stopped, _) => true,
            (Phase::Tls, _) => {
                self.seen.handshake_unseen = true;
                self.seen.tls_began()
            }
            (Phase::Body(body), Side::Client) => {
                body.matched = 0;
                body.hole = true;
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
            self.seen.gaps += 1;
            self.doubt(Doubt::Gap);
        }
        !harmless
    }

    /// One side ended the connection, at `at`: by a reset, or in order.
    pub fn ended(&mut self, from: Side, reset: bool, at: Timestamp) {
        if self.seen.ended.is_none() {
            self.seen.ended = Some((from, reset));
            self.seen.silence = Some(at.since(self.now));
        }
    }

    /// Only one direction was seen.
    pub fn one_sided(&mut self) {
        self.seen.doubt.get_or_insert(Doubt::OneSided);
    }

    /// The connection ended: what was begun is all there will be.
    pub fn finish(&mut self) {
        if self.seen.starttls == Starttls::Sent {
            self.seen.starttls_was_offered |= self.seen.offers_starttls();
        }
        let waits_for_ehlo = self.queue.front().is_some_and(|waiting| waiting.what == Pending::Ehlo);
        self.seen.ehlo_unfinished = waits_for_ehlo && self.replies.has_begun();
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

    fn doubt(&mut self, doubt: Doubt) {
        if doubt == Doubt::Ambiguous && self.seen.doubt.is_none() {
            self.events.push_back(SessionEvent::OutOfStep);
        }
        self.seen.doubt.get_or_insert(doubt);
        self.stop();
    }

    fn stop(&mut self) {
        self.phase = Phase::Stopped;
        self.queue = VecDeque::new();
        self.held = Vec::new();
        self.client_lines.clear();
        self.server_lines.clear();
        self.secrets = VecDeque::new();
        self.events.push_back(SessionEvent::Mute);
    }

    // ---- the client's side ----

    /// `end` is the stream offset behind `input`.
    fn client(&mut self, mut input: &[u8], end: u64) {
        self.client_end = end;
        while !input.is_empty() {
            match self.phase {
                Phase::Stopped => return,
                Phase::Tls => {
                    self.tls_octets(Side::Client, input);
                    return;
                }
                Phase::Hold => {
                    if self.held.len() + input.len() > limits::REASSEMBLY_BYTES {
                        if self.seen.starttls == Starttls::Sent {
                            self.injected(&self.held.clone(), true, true);
                        }
                        self.doubt(Doubt::Ambiguous);
                    } else {
                        self.held.extend_from_slice(input);
                    }
                    return;
                }
                Phase::Body(mut body) => {
                    let ended = body.scan(&mut input);
                    self.phase = if ended { Phase::Commands } else { Phase::Body(body) };
                    if ended && !body.refused {
                        self.expect(Pending::EndOfData, String::new());
                    }
                }
                Phase::Chunk(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    input = &input[taken..];
                    let left = left - taken as u64;
                    self.phase = if left == 0 { Phase::Commands } else { Phase::Chunk(left) };
                }
                Phase::Commands if !self.client_spoke && self.may_be_proxy(input[0]) => {
                    self.proxy_header(&mut input, end)
                }
                Phase::Commands if self.may_begin_tls() && is_record_type(input[0]) => self.enter_tls(),
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
        if std::mem::take(&mut self.stray) {
            self.answered();
        }
        if self.phase == Phase::AuthResponse {
            self.auth_response(&line.bytes);
            return;
        }
        let command = Command::parse(&line.bytes);
        let verb = split_word(&line.bytes).0.to_ascii_uppercase();
        let verb = if is_verb(&verb) { String::from_utf8(verb).unwrap_or_default() } else { String::new() };
        self.seen.smtp |= command != Command::Other;
        self.seen.transcript.push(Side::Client, shown(&command, &line.bytes));
        let pending = match command {
            Command::Ehlo(ref name) => {
                self.seen.client_name = Some(printable(name.as_bytes()));
                Pending::Ehlo
            }
            Command::Helo(ref name) => {
                self.seen.client_name = Some(printable(name.as_bytes()));
                Pending::Helo
            }
            Command::Starttls => {
                self.seen.starttls = Starttls::Sent;
                self.seen.starttls_was_offered = self.seen.offers_starttls();
                self.phase = Phase::Hold;
                Pending::Starttls
            }
            Command::Auth { ref mechanism, initial } => {
                if self.seen.auth.len() < AUTH_EXCHANGES {
                    self.seen.auth.push(AuthExchange::new(mechanism, initial, verb == "X-EXPS"));
                }
                let (_, rest) = split_word(&line.bytes);
                // A word that is no mechanism may be the secret itself.
                let known = MechanismClass::of(mechanism.name()) != MechanismClass::Unknown;
                self.keep_secret(Secret::new(if known { split_word(rest).1 } else { rest }.to_vec()));
                self.phase = Phase::Hold;
                Pending::Auth
            }
            Command::Mail { requiretls, ref acted_on } => {
                self.seen.mail_sent = true;
                self.seen.requiretls |= requiretls;
                self.seen.acted_on.extend(acted_on);
                self.events.push_back(SessionEvent::Judge);
                Pending::Other
            }
            Command::Rcpt(ref domain) => {
                if let Some(domain) = domain
                    && self.seen.recipient_domains.len() < limits::RECIPIENT_DOMAINS
                {
                    self.seen.recipient_domains.insert(domain.clone());
                }
                Pending::Other
            }
            Command::Data => {
                self.phase = Phase::Hold;
                Pending::Data
            }
            // Nobody can say how much follows: the server refuses it and reads on.
            Command::Bdat { size: None, .. } => Pending::Other,
            // A server that did not offer it may not know it, and then reads what follows as commands: its reply tells.
            Command::Bdat { size: Some(size), last } if !self.chunking_offered() => {
                self.phase = Phase::Hold;
                Pending::UnofferedBdat { size, last }
            }
            Command::Bdat { size: Some(size), last } => {
                self.seen.acted_on.insert("CHUNKING");
                if size > 0 {
                    self.phase = Phase::Chunk(size);
                    let start = end.saturating_sub(input.len() as u64);
                    self.events.push_back(SessionEvent::SkipClientUntil(start.saturating_add(size)));
                }
                Pending::Bdat { last }
            }
            // The PROXY header of a load balancer comes before the dialogue and has no reply (THREATS FP-13).
            Command::Other if self.seen.greeting.is_none() && line.bytes.starts_with(b"PROXY ") => return,
            Command::Other => {
                // Words that a confused client, or a masked verb, left where nobody expects a secret.
                let words = if verb.is_empty() { &line.bytes[..] } else { split_word(&line.bytes).1 };
                self.keep_secret(Secret::unexpected(words.to_vec()));
                if verb.len() >= 4 && verb.bytes().all(|c| c == b'X') {
                    let arrived = Rewritten { sent: String::new(), arrived: verb.clone() };
                    self.seen.rewritten.get_or_insert(arrived);
                }
                Pending::Other
            }
            Command::Turn => Pending::Turn,
            Command::Rset | Command::Quit => Pending::Other,
        };
        self.expect(pending, verb);
    }

    /// CHUNKING was offered (RFC 3030), or what was offered is not known.
    fn chunking_offered(&self) -> bool {
        self.seen.capabilities.as_ref().is_none_or(|capabilities| capabilities.has("CHUNKING"))
    }

    fn may_be_proxy(&self, octet: u8) -> bool {
        !self.held.is_empty() || octet == PROXY_SIGNATURE[0]
    }

    /// The binary PROXY header of a load balancer (version 2): signature, four octets of which the last two are the length
    /// of what follows, and that. It comes before the dialogue and has no reply (THREATS FP-13).
    fn proxy_header(&mut self, input: &mut &[u8], end: u64) {
        let wanted = (PROXY_SIGNATURE.len() + 4 - self.held.len()).min(input.len());
        self.held.extend_from_slice(&input[..wanted]);
        *input = &input[wanted..];
        let compared = self.held.len().min(PROXY_SIGNATURE.len());
        if self.held[..compared] != PROXY_SIGNATURE[..compared] {
            self.client_spoke = true;
            let held = std::mem::take(&mut self.held);
            self.client(&held, end.saturating_sub(input.len() as u64));
        } else if let Some(&[high, low]) = self.held.get(PROXY_SIGNATURE.len() + 2..) {
            self.held = Vec::new();
            match u16::from_be_bytes([high, low]) {
                0 => self.phase = Phase::Commands,
                length => self.phase = Phase::Chunk(u64::from(length)),
            }
        }
    }

    /// TLS without STARTTLS on a mail port (THREATS D6), as the first octet, and after the go-ahead also behind commands in
    /// clear. Anywhere else it would be a way to make the watcher look away.
    fn may_begin_tls(&self) -> bool {
        !self.client_spoke
            || (matches!(self.seen.starttls, Starttls::Granted(_)) && self.client_lines.partial().is_empty())
    }

    fn auth_response(&mut self, line: &[u8]) {
        let octets = line.trim_ascii().len();
        self.seen.transcript.push(Side::Client, format!("[{octets} octets]"));
        if let Some(exchange) = self.seen.auth.last_mut() {
            if line.trim_ascii() == b"*" {
                exchange.cancelled = true;
            } else {
                exchange.respond(octets);
            }
        }
        self.keep_secret(Secret::new(line.to_vec()));
        self.phase = Phase::Hold;
        self.expect(Pending::Auth, String::new());
    }

    fn expect(&mut self, what: Pending, verb: String) {
        let crowded = self.queue.len() >= limits::PIPELINE / 2;
        if let Some(newest) = self.queue.back_mut()
            && newest.what == what
            && (newest.verb == verb || crowded)
        {
            newest.count = newest.count.saturating_add(1);
            if newest.verb != verb {
                newest.verb.clear();
            }
        } else if self.queue.len() >= limits::PIPELINE {
            self.doubt(Doubt::Ambiguous);
        } else {
            self.queue.push_back(Waiting { what, verb, asked: self.now, count: 1 });
        }
    }

    /// The command that has waited longest; it waits no longer.
    fn answered(&mut self) -> Option<Waiting> {
        let oldest = self.queue.front_mut()?;
        if oldest.count == 1 {
            return self.queue.pop_front();
        }
        oldest.count -= 1;
        Some(oldest.clone())
    }

    // ---- the server's side ----

    fn server(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            match self.phase {
                Phase::Stopped => return,
                Phase::Tls if self.answers_in_clear(input[0]) => self.leave_tls(),
                Phase::Tls => {
                    self.tls_octets(Side::Server, input);
                    return;
                }
                Phase::Commands | Phase::Hold | Phase::AuthResponse | Phase::Body(_) | Phase::Chunk(_) => {}
            }
            let Some(line) = self.server_lines.take(&mut input) else { return };
            if !self.client_spoke && !self.held.is_empty() && self.seen.greeting.is_some() {
                // The server answers what was held for the start of a PROXY header: it was a line.
                self.client_spoke = true;
                self.release(Phase::Commands);
            }
            let reply = self.replies.push(&line);
            self.reply_octets += line.bytes.len() + if line.bare_lf { 1 } else { 2 };
            // Struck before it is cut, lest the cut hide half of it.
            let struck = self
                .secrets
                .iter()
                .fold(String::from_utf8_lossy(&line.bytes), |text, secret| secret.strike(&text).into());
            let shown = if self.secrets.is_empty() { printable(&line.bytes) } else { printable(struck.as_bytes()) };
            self.seen.transcript.push(Side::Server, blank_local_parts(&shown));
            if let Some(reply) = reply {
                self.seen.smtp |= (200..600).contains(&reply.code);
                self.reply(&reply);
            }
        }
    }

    fn reply(&mut self, reply: &Reply) {
        let went_on = std::mem::take(&mut self.ehlo_may_go_on);
        let ehlo_octets = std::mem::take(&mut self.reply_octets);
        if self.seen.greeting.is_none() && self.seen.doubt.is_none() {
            if reply.code == 0 {
                return;
            }
            // The first reply is the greeting, also when the client spoke first (PIPECONNECT, THREATS FP-12).
            let first = reply.first();
            self.seen.greeting = Some(printable(&[format!("{} ", reply.code).as_bytes(), first].concat()));
            self.seen.greeting_name = ehlo::host_name(first);
            // What came before it and is no SMTP had its answer elsewhere: a web proxy's CONNECT.
            while self.queue.front().is_some_and(|waiting| waiting.what == Pending::Other) {
                self.queue.pop_front();
            }
            return;
        }
        if let Phase::Body(body) = self.phase {
            self.reply_in_body(body, reply);
            return;
        }
        if reply.code == 0 && !self.queue.is_empty() {
            // Some clients pass over such a line and wait (Postfix does), others take it for the reply: what the client does
            // next tells which.
            self.stray = true;
            return;
        }
        self.stray = false;
        if self.is_out_of_step(reply.code) {
            self.doubt(Doubt::Ambiguous);
            return;
        }
        let Some(Waiting { what, verb, asked, count: _ }) = self.answered() else {
            self.unasked(reply, went_on);
            return;
        };
        self.compare_echo(&verb, reply);
        let after = self.now.since(asked);
        match what {
            Pending::Ehlo if reply.is_positive() => {
                self.seen.ehlo_after = Some(after);
                self.seen.capabilities = Some(Capabilities::parse(reply));
                self.seen.ehlo_octets = ehlo_octets;
                self.seen.ehlo_rejected = None;
                self.seen.ehlo_went_on = None;
                self.ehlo_may_go_on = true;
            }
            Pending::Ehlo => {
                self.seen.ehlo_rejected = Some(reply.code);
                self.seen.ehlo_refusal = Some(printable(reply.first()));
            }
            Pending::Helo => self.seen.helo |= reply.is_positive(),
            Pending::Starttls => {
                self.seen.starttls_after = Some(after);
                self.starttls_reply(reply);
            }
            Pending::Auth => self.auth_reply(reply),
            Pending::Data if reply.code == 354 => self.body_follows(),
            Pending::Data => self.release(Phase::Commands),
            Pending::UnofferedBdat { .. } if matches!(reply.code, 500..=504) => self.release(Phase::Commands),
            Pending::UnofferedBdat { size, last } => {
                if last && reply.is_positive() {
                    self.accepted();
                }
                self.release(if size > 0 { Phase::Chunk(size) } else { Phase::Commands });
            }
            Pending::EndOfData | Pending::Bdat { last: true } if reply.is_positive() => self.accepted(),
            // From here on the server sends commands, and the client replies (THREATS FP-13).
            Pending::Turn if reply.is_positive() => self.doubt(Doubt::Ambiguous),
            Pending::EndOfData | Pending::Bdat { .. } | Pending::Turn | Pending::Other => {}
        }
    }

    /// A reply that only the newest command can have, while others wait: which reply belongs to which is lost. To go on would
    /// be to read a message as commands.
    fn is_out_of_step(&self, code: u16) -> bool {
        let newest = self.queue.back().filter(|_| self.queue.len() > 1).map(|waiting| waiting.what);
        matches!((code, newest), (354, Some(Pending::Data)) | (334, Some(Pending::Auth)))
    }

    /// A reply that answers no command.
    fn unasked(&mut self, reply: &Reply, went_on: bool) {
        if went_on && reply.code == 250 && (reply.lines.len() > 1 || ehlo::may_be_keyword(reply.first())) {
            if let Some(capabilities) = &mut self.seen.capabilities {
                self.seen.ehlo_went_on.get_or_insert(capabilities.lines.len());
                capabilities.extend(reply);
            }
            self.ehlo_may_go_on = true;
        } else if self.unseen_commands {
            self.unseen_command(reply);
        } else if matches!(reply.class(), 2 | 3) && self.seen.doubt.is_none() {
            self.seen.unsolicited.get_or_insert(reply.code);
            if reply.code == 354 {
                // To go on might be to read a message as commands.
                self.events.push_back(SessionEvent::Judge);
                self.doubt(Doubt::Ambiguous);
            }
        }
    }

    /// A reply to a command that stood behind a message in the same segment, and was left out with it. Some replies say what
    /// the command was (RFC 5321 §4.3.2, RFC 4954 §6).
    fn unseen_command(&mut self, reply: &Reply) {
        match reply.code {
            354 => self.body_follows(),
            334 => {
                self.unseen_auth(None);
                self.release(Phase::AuthResponse);
            }
            235 | 535 => {
                self.unseen_auth(Some(1));
                self.auth_reply(reply);
            }
            // Of STARTTLS, perhaps.
            220 => self.doubt(Doubt::Ambiguous),
            _ => {}
        }
    }

    fn unseen_auth(&mut self, initial: Option<usize>) {
        if self.seen.auth.len() < AUTH_EXCHANGES {
            self.seen.auth.push(AuthExchange::new(&Mechanism::parse(b""), initial, false));
        }
    }

    fn body_follows(&mut self) {
        self.seen.transcript.push(Side::Client, "[message]".to_owned());
        self.events.push_back(SessionEvent::BodyFollows);
        self.release(Phase::Body(Body::START));
    }

    /// A refusal that quotes a verb which was not sent: it was overwritten on the way (THREATS FO-12).
    fn compare_echo(&mut self, verb: &str, reply: &Reply) {
        if reply.class() == 5
            && let Some(arrived) = reply.lines.iter().find_map(|line| echo::rewritten(verb, line))
        {
            self.seen.rewritten.get_or_insert(Rewritten { sent: verb.to_owned(), arrived });
        }
    }

    /// A reply while the end of the body has not been seen: the gate leaves bodies out, so it is the reply to the message. Only
    /// a refusal may also have come in the middle of it; then the client goes on with the body until the next reply.
    fn reply_in_body(&mut self, body: Body, reply: &Reply) {
        self.unseen_commands = true;
        if reply.is_positive() && !body.refused {
            self.phase = Phase::Commands;
            self.accepted();
        } else if body.refused || body.hole {
            self.phase = Phase::Commands;
        } else {
            self.phase = Phase::Body(Body { refused: true, ..body });
        }
    }

    fn accepted(&mut self) {
        self.seen.messages = self.seen.messages.saturating_add(1);
        self.events.push_back(SessionEvent::Judge);
    }

    fn starttls_reply(&mut self, reply: &Reply) {
        self.seen.starttls_reply = Some(printable(reply.first()));
        // The offer may have come after the command, to a client that does not wait (FP-12).
        self.seen.starttls_was_offered |= self.seen.offers_starttls();
        // What was held was sent before the client can have known the reply. An early ClientHello is no injection.
        if self.held.first().is_some_and(|octet| !is_record_type(*octet)) {
            self.injected(&self.held.clone(), true, reply.is_positive());
        }
        if reply.is_positive() {
            self.seen.starttls = Starttls::Granted(reply.code);
            self.enter_tls();
            self.release(Phase::Tls);
        } else {
            self.seen.starttls = Starttls::Refused(reply.code);
            self.release(Phase::Commands);
        }
        self.events.push_back(SessionEvent::Judge);
    }

    fn auth_reply(&mut self, reply: &Reply) {
        // Any 3xx: a client that goes on by the first digit must not have its response read as a command.
        let cancelled = self.seen.auth.last().is_some_and(|exchange| exchange.cancelled);
        if reply.class() == 3 && !cancelled {
            self.release(Phase::AuthResponse);
            return;
        }
        self.eager_response();
        let mut layer = false;
        if let Some(exchange) = self.seen.auth.last_mut() {
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

    /// A client that does not wait has sent its response behind an AUTH that is then refused: it crossed the wire all the same.
    fn eager_response(&mut self) {
        // The user name and the password, of the mechanism that sends most.
        for _ in 0..2 {
            let Some(end) = self.held.iter().position(|&octet| octet == b'\n') else { return };
            let line = self.held[..end].trim_ascii();
            let (true, Some(exchange)) = (is_response(line), self.seen.auth.last_mut()) else { return };
            exchange.respond(line.len());
            let secret = Secret::new(line.to_vec());
            let shown = format!("[{} octets]", line.len());
            self.seen.transcript.push(Side::Client, shown);
            self.held.drain(..=end);
            self.keep_secret(secret);
        }
    }

    fn keep_secret(&mut self, secret: Secret) {
        if self.secrets.len() >= SECRETS {
            self.secrets.pop_front();
        }
        self.secrets.push_back(secret);
    }

    /// The reply has come: reads what was held as what it is.
    fn release(&mut self, phase: Phase) {
        self.phase = phase;
        let held = std::mem::take(&mut self.held);
        self.client(&held, self.client_end);
    }

    fn enter_tls(&mut self) {
        self.phase = Phase::Tls;
        self.seen.tls = Some(TlsPhase::default());
    }

    /// The server goes on in clear, and in answer to octets of the client that are not TLS, or to TLS that nobody asked for.
    fn answers_in_clear(&self, octet: u8) -> bool {
        let Some(tls) = &self.seen.tls else { return false };
        let refused = self.seen.starttls == Starttls::NotSent || !tls.before(Side::Client).is_empty();
        // Content types of TLS (RFC 8446 §5.1): no text begins with one.
        refused
            && !matches!(octet, 0x14..=0x17)
            && !tls.is_tls(Side::Server)
            && (self.seen.starttls == Starttls::NotSent || !tls.is_tls(Side::Client))
    }

    /// What the client sent is read as commands after all.
    fn leave_tls(&mut self) {
        let before = self.seen.tls.take().map(|mut tls| tls.take_before(Side::Client)).unwrap_or_default();
        let before = if self.seen.starttls == Starttls::NotSent { std::mem::take(&mut self.held) } else { before };
        self.seen.clear_after_go_ahead = self.seen.starttls != Starttls::NotSent;
        self.client_spoke = true;
        self.phase = Phase::Commands;
        self.client(&before, self.client_end);
    }

    fn tls_octets(&mut self, from: Side, octets: &[u8]) {
        let Some(tls) = &mut self.seen.tls else { return };
        let began = tls.is_tls(Side::Client);
        tls.push(from, octets);
        if self.seen.starttls == Starttls::NotSent {
            // Until the server takes part in TLS nobody has asked for, it may be a dialogue that only begins like it.
            if tls.is_tls(Side::Server) {
                self.held = Vec::new();
            } else if from == Side::Client {
                let room = limits::REASSEMBLY_BYTES.saturating_sub(self.held.len());
                self.held.extend_from_slice(&octets[..octets.len().min(room)]);
            }
        }
        // Also behind the client's hello, if TLS follows: without it that is a server that does not speak TLS (C6).
        let late = began && self.seen.injected_replies.is_none() && tls.is_tls(Side::Server);
        if from == Side::Server && (!began || late) && !tls.before(Side::Server).is_empty() {
            let known = self.seen.injected_replies.as_ref().map_or(0, |injection| injection.octets);
            if known == tls.before(Side::Server).len() {
                return;
            }
            let injection = Injection::of(tls.before(Side::Server), false);
            if self.seen.injected_replies.is_none() {
                self.seen.transcript.push(Side::Server, format!("[{} octets in clear]", injection.octets));
                self.events.push_back(SessionEvent::Judge);
            }
            self.seen.injected_replies = Some(injection);
        } else if !began && tls.is_tls(Side::Client) {
            let before = tls.before(Side::Client).to_vec();
            if !before.is_empty() && self.seen.injected_commands.is_none() {
                self.injected(&before, false, true);
            }
            self.seen.transcript.push(Side::Client, "[TLS]".to_owned());
            self.events.push_back(SessionEvent::Judge);
        }
    }

    /// SASL exchanges in an injection. Nobody asks for a response there: what follows AUTH and is no command is one.
    fn injected_auth(&mut self, octets: &[u8]) {
        let mut open = false;
        for line in octets.split(|&octet| octet == b'\n').map(<[u8]>::trim_ascii) {
            match Command::parse(line) {
                Command::Auth { mechanism, initial } if self.seen.auth.len() < AUTH_EXCHANGES => {
                    self.seen.auth.push(AuthExchange::new(&mechanism, initial, false));
                    open = true;
                }
                Command::Other if open && is_response(line) => {
                    if let Some(exchange) = self.seen.auth.last_mut() {
                        exchange.respond(line.len());
                    }
                }
                _ => open = false,
            }
        }
    }

    /// Notes client octets that stand where TLS should begin. Once TLS is `granted` they may run under it as if it had
    /// protected them, so a credential among them is noted as such (THREATS E3); else they are read as commands anyway.
    fn injected(&mut self, octets: &[u8], before_reply: bool, granted: bool) {
        if octets.trim_ascii().is_empty() {
            return;
        }
        let injection = Injection::of(octets, before_reply);
        self.seen
            .transcript
            .push(Side::Client, format!("[{} octets in clear: {}]", injection.octets, injection.verbs.join(", ")));
        if granted {
            self.injected_auth(octets);
        }
        self.seen.injected_commands = Some(injection);
        self.events.push_back(SessionEvent::Judge);
    }
}

/// Commands that this machine does not follow, in upper case: as letters they are base64 too.
const NO_RESPONSE: [&[u8]; 4] = [b"NOOP", b"HELP", b"VRFY", b"EXPN"];

/// Whether a line where a SASL response may stand is one: a word that is no command.
fn is_response(line: &[u8]) -> bool {
    !line.is_empty()
        && !line.contains(&b' ')
        && Command::parse(line) == Command::Other
        && !NO_RESPONSE.iter().any(|verb| line.eq_ignore_ascii_case(verb))
}
