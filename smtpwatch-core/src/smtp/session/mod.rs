//! The state machine of one SMTP session in cleartext, driven by pairs of command and reply. The engine owns one
//! [`Session`] per flow.
//!
//! The meaning of a client line depends on the reply to the line before it: a body follows DATA only on 354
//! (docs/threats.md FP-10), a SASL response follows AUTH only on 334, TLS follows STARTTLS only on a go-ahead. Client
//! bytes after such a command are therefore buffered until its reply is known; all other commands queue for their
//! replies (FP-11).

mod boundary;
mod client;
mod server;

use std::collections::VecDeque;

use super::{
    auth::AuthExchange,
    body::Body,
    ehlo::plain_keyword,
    line::{Line, Lines},
    observation::{Doubt, Observation, Starttls},
    redaction::Redacted,
    reply::Replies,
    retained::Retained,
    secret::Secret,
    tls::TlsPhase,
    transcript::printable,
    verb::Verb,
};
use crate::{Side, Timestamp, evidence::BLANK, flow::Conflict, limits, secret_buffer::SecretBuffer};

/// Maximum number of exchanges retained per session. The oldest exchange in which no secret was sent is evicted
/// first; if there is none, the newest exchange replaces the one before it.
const AUTH_EXCHANGES: usize = 16;

/// Maximum number of secrets per session that are searched for in the server's lines.
const SECRETS: usize = 8;

/// Request of the session to the engine. Drain [`Session::poll`] after every call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// A fact changed that the verdict depends on.
    Judge,
    /// Replies can no longer be matched to commands, or the end of a body is unknown: parsing stops.
    OutOfStep,
    /// The dialogue continues after its verdict, but buffered input was already discarded.
    InputForgotten,
    /// The client named the domain of a recipient.
    Recipient,
    /// A message body follows from the client.
    BodyFollows,
    /// The engine may skip the client's stream up to this offset.
    SkipClientUntil(u64),
    /// The session needs no more data of this flow.
    Mute,
}

/// Number of bytes that differ between two copies of one range; `None` unless one of the copies has NUL at each of
/// them.
pub(crate) fn nul_bytes(first: &[u8], other: &[u8]) -> Option<usize> {
    let differ = || first.iter().zip(other).filter(|(one, two)| one != two);
    let nul = differ().all(|(one, _)| *one == 0) || differ().all(|(_, two)| *two == 0);
    Some(differ().count()).filter(|count| nul && *count > 0)
}

/// One SMTP session. The facts gathered so far are in [`Session::seen`].
#[derive(Debug, Default)]
pub struct Session {
    /// The facts so far.
    pub seen: Observation,

    phase: Phase,
    queue: VecDeque<Waiting>,
    client_lines: Lines,
    server_lines: Lines,
    replies: Replies,
    /// Client bytes whose meaning depends on a pending reply.
    held: SecretBuffer,
    /// Stream offset after the newest bytes of the client.
    client_end: u64,
    /// Stream offset of the end of the newest message.
    body_end: Option<u64>,
    client_spoke: bool,
    /// The end of a message was not seen: replies may follow to commands that were left out after it.
    unseen_commands: bool,
    /// A line that arrived while a command was pending: either its reply, or noise before the reply. The client's
    /// next line decides.
    stray: Option<Stray>,
    /// Lines without a code have arrived.
    strayed: bool,
    /// Number of commands that the client regards as answered by a line without a code: their replies may still
    /// arrive.
    answered_by_stray: u32,
    /// Bytes of a refused BDAT chunk that the client may still send.
    refused_chunk: u64,
    /// The client sent text of such a chunk, which the server reads as commands.
    chunk_text: bool,
    /// The newest AUTH was refused before its secret was sent: some clients send the secret anyway, as a command.
    auth_goes_on: bool,
    /// Time of the go-ahead.
    granted_at: Timestamp,
    /// Number of cleartext bytes of the server after the go-ahead that are already in the transcript.
    clear_shown: usize,
    /// The newest reply answered EHLO, and the client has not sent anything since (docs/threats.md EV-17).
    ehlo_may_go_on: bool,
    /// Words to redact in the server's lines: the newest [`SECRETS`].
    secrets: VecDeque<Secret>,
    /// A line without a code in place of the greeting.
    nonstandard_greeting: Option<String>,
    /// DATA had a reply other than 354, and no message has begun since.
    data_refused: bool,
    /// The server may quote bytes that are not among the secrets: only the codes of its replies are shown.
    quotes_unknown: bool,
    /// The server's bytes are not trusted: its actions are inferred from the client's bytes.
    presuming: bool,
    /// The list of secrets was not empty when it was discarded.
    secrets_forgotten: bool,
    /// Buffered input was discarded: if the dialogue continues, there is a gap.
    input_forgotten: bool,
    /// Redacted cleartext where TLS should begin; computed when the original bytes were discarded.
    injections_shown: Vec<(Side, u64, Vec<u8>)>,
    /// Number of SASL exchanges begun.
    auth_begun: usize,
    /// Time of the newest bytes.
    now: Timestamp,
    /// Bytes of the reply in progress, including line endings.
    reply_octets: usize,
    events: VecDeque<SessionEvent>,
    /// Evidence: the client's bytes, and the server's.
    kept: [Retained; 2],
}

/// How client bytes are interpreted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    #[default]
    Commands,
    /// The reply to a command in flight decides the next phase.
    Hold,
    /// The next line is a SASL response.
    AuthResponse,
    /// After 354: a message up to its final dot; its content is not needed.
    Body(Body),
    /// Remaining bytes of a BDAT chunk.
    Chunk(u64),
    /// After the go-ahead, or TLS from the first byte.
    Tls,
    /// A SASL security layer (docs/threats.md FP-19), or a stream that cannot be parsed.
    Stopped,
}

/// A command that waits for its reply, with its verb in upper case; empty if the word does not have the form of a
/// verb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiting {
    what: Pending,
    verb: Verb,
    asked: Timestamp,
    /// Number of consecutive equal commands; `asked` is the time of the first.
    count: u32,
}

/// A line that may have been a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stray {
    /// Its code; zero if it has none.
    code: u16,
    /// Number of such lines.
    lines: u32,
    /// Number of client bytes buffered when the newest line arrived: later bytes were sent after it.
    held: usize,
}

/// Replies that a server may give to a line that many servers skip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fits {
    /// Any 5yz.
    Error,
    /// The reply to QUIT.
    Quit,
}

impl Fits {
    const fn is(self, code: u16) -> bool {
        match self {
            Self::Error => code / 100 == 5,
            Self::Quit => code == 221,
        }
    }
}

/// The effect of the pending reply, by kind of command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    /// A line that is not a command: some servers skip it, others answer it as a command. A blank line, a PROXY
    /// header that the server does not support, a SASL response without a prompt, text of a refused chunk.
    Uncertain(Fits),
    Ehlo,
    Helo,
    Starttls,
    Auth,
    Data,
    EndOfData,
    Bdat {
        last: bool,
    },
    UnofferedBdat {
        size: u64,
        last: bool,
    },
    Turn,
    /// XCLIENT (Postfix): the client asks to act on behalf of another client.
    Xclient,
    Other,
}

impl Pending {
    /// The phase that follows a command if its reply is unknown.
    const fn presumed(self) -> Phase {
        match self {
            Self::Auth => Phase::AuthResponse,
            Self::Data => Phase::Body(Body::START),
            Self::UnofferedBdat { size, .. } if size > 0 => Phase::Chunk(size),
            Self::UnofferedBdat { .. }
            | Self::Ehlo
            | Self::Helo
            | Self::Starttls
            | Self::EndOfData
            | Self::Bdat { .. }
            | Self::Turn
            | Self::Xclient
            | Self::Uncertain(_)
            | Self::Other => Phase::Commands,
        }
    }
}

impl Session {
    /// Creates a session that is observed from its start, or one that was joined in the middle.
    #[must_use]
    pub fn new(midstream: bool) -> Self {
        Self {
            seen: Observation { doubt: midstream.then_some(Doubt::Midstream), ..Observation::default() },
            ..Self::default()
        }
    }

    /// Processes bytes of one side, sent at `at`; `offset` is their offset in that side's stream.
    pub fn data(&mut self, from: Side, at: Timestamp, offset: u64, bytes: &[u8]) {
        self.now = at;
        if std::mem::take(&mut self.input_forgotten) && self.phase != Phase::Stopped {
            self.seen.gaps += 1;
            self.events.push_back(SessionEvent::InputForgotten);
            self.doubt(Doubt::Gap);
        }
        match from {
            Side::Client => self.client(bytes, offset.saturating_add(bytes.len() as u64)),
            Side::Server => self.server(bytes, offset.saturating_add(bytes.len() as u64)),
        }
    }

    /// Processes a gap in one side's stream. Returns whether it affects the dialogue: bodies and TLS are left out on
    /// purpose.
    pub fn gap(&mut self, from: Side, length: u64) -> bool {
        let harmless = match (&mut self.phase, from) {
            (Phase::Stopped, _) => true,
            (Phase::Tls, _) => {
                self.seen.handshake_unseen = true;
                if let Some(tls) = &mut self.seen.tls {
                    tls.gap(from, length);
                }
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

    /// The gate, which leaves bodies out, has seen the end of a message; `offset` is the position after it in the
    /// client's stream, or the position of a later command.
    pub fn body_ended(&mut self, offset: u64) {
        self.body_end = Some(self.body_end.filter(|end| *end > self.client_end).map_or(offset, |end| end.min(offset)));
    }

    /// One side ended the connection at time `at`, by a reset or orderly.
    pub fn ended(&mut self, from: Side, reset: bool, at: Timestamp) {
        if self.seen.ended.is_none() {
            self.seen.ended = Some((from, reset));
            self.seen.silence = Some(at.since(self.now));
        }
    }

    /// Revokes the end of the connection: the host ignored the RST and continues.
    pub const fn resume_after_reset(&mut self) {
        (self.seen.ended, self.seen.silence) = (None, None);
    }

    /// Overwrites and frees everything that may hold a secret, once no more cleartext is expected. The evidence
    /// remains: it is redacted.
    pub fn forget_secrets(&mut self) {
        if self.injections_shown.is_empty() {
            self.injections_shown = self.injections().collect();
        }
        let reads_tls = self.seen.tls.as_deref().is_some_and(TlsPhase::is_established);
        let before = self.seen.tls.as_deref().map_or(&[][..], |tls| tls.before(Side::Client));
        let waits = [before, &self.held, self.client_lines.partial(), self.server_lines.partial()];
        self.input_forgotten |= !reads_tls && waits.iter().any(|octets| !octets.is_empty());
        if let Some(tls) = &mut self.seen.tls {
            tls.forget_before();
        }
        self.secrets_forgotten |= !self.secrets.is_empty();
        self.quotes_unknown |= self.secrets_forgotten;
        self.held = SecretBuffer::default();
        self.client_lines.clear();
        self.server_lines.clear();
        self.replies.clear();
        self.secrets = VecDeque::new();
    }

    /// Two copies of one range of bytes differ: it is uncertain which of them the server accepted and may quote.
    /// Copies of NULs are harmless: some stacks send them with an acknowledgment to keep a connection open.
    pub fn conflicting_retransmission(&mut self, conflicts: &[Conflict]) {
        self.quotes_unknown |= conflicts.iter().any(|conflict| nul_bytes(&conflict.first, &conflict.other).is_none());
    }

    /// Marks the bytes of `from` as untrustworthy from here on. The other side is this host, and its own bytes are
    /// parsed without the replies to them. The bytes of a client suffice: a message follows DATA, a response follows
    /// AUTH, and TLS follows STARTTLS or does not. Has no effect if `from` is the client: this host's replies are
    /// parsed as before. Returns whether the mode of the session changes.
    pub fn distrust(&mut self, from: Side) -> bool {
        if from == Side::Client || self.presuming || self.seen.doubt.is_some() || self.seen.tls_began() {
            return false;
        }
        self.presuming = true;
        self.seen.doubt = Some(Doubt::Server);
        let newest = self.queue.pop_back().map(|waiting| waiting.what);
        self.queue = VecDeque::new();
        self.server_lines.clear();
        if let (Phase::Hold | Phase::Tls, Some(what)) = (self.phase, newest) {
            self.release(what.presumed());
        } else if self.phase == Phase::Tls {
            // The go-ahead may have been forged.
            let before = self.seen.tls.take().map(|mut tls| tls.take_before(Side::Client)).unwrap_or_default();
            self.phase = Phase::Commands;
            self.client(&before, self.client_end);
        }
        true
    }

    /// Records that only one direction was seen.
    pub fn one_sided(&mut self) {
        self.seen.doubt.get_or_insert(Doubt::OneSided);
    }

    /// The connection ended: evaluates unfinished lines and pending commands.
    pub fn finish(&mut self) {
        self.settle_end();
        if self.seen.starttls == Starttls::Sent {
            self.seen.starttls_was_offered |= self.seen.offers_starttls();
        }
        let waits_for_ehlo = self.queue.front().is_some_and(|waiting| waiting.what == Pending::Ehlo);
        self.seen.ehlo_unfinished = waits_for_ehlo && self.replies.has_begun();
        // An unfinished line has crossed the wire anyway.
        if matches!(self.phase, Phase::Commands | Phase::AuthResponse) && !self.client_lines.partial().is_empty() {
            let mut end = &b"\r\n"[..];
            if let Some(line) = self.client_lines.take(&mut end) {
                let line = Line { octets: line.octets - 2, ..line };
                self.client_line(&line, &[], self.client_end);
            }
        }
        self.events.push_back(SessionEvent::Judge);
    }

    /// Settles a reply that is pending at the end of the connection.
    fn settle_end(&mut self) {
        let Some(Waiting { what, .. }) = self.queue.back().copied().filter(|_| self.phase == Phase::Hold) else {
            return;
        };
        match (what, self.stray) {
            (Pending::Starttls, Some(stray)) if self.held.get(stray.held..).is_some_and(|fresh| !fresh.is_empty()) => {
                self.doubt(Doubt::Ambiguous);
            }
            // The last server line did not parse as a reply, but the client left after it: the client accepted it as
            // one.
            (Pending::Starttls, Some(stray)) => self.seen.starttls = Starttls::Refused(stray.code),
            // A response that an eager client sent after AUTH has crossed the wire.
            (Pending::Auth, _) => self.eager_response(false),
            _ => {}
        }
    }

    /// The next request to the engine.
    pub fn poll(&mut self) -> Option<SessionEvent> {
        let event = self.events.pop_front();
        if event.is_none() {
            // Frees the capacity of an idle session's queue: usually one command is pending.
            if self.queue.is_empty() && self.queue.capacity() > 1 {
                self.queue = VecDeque::new();
            }
        }
        event
    }

    /// The evidence: cleartext bytes in contiguous runs, with the sender, the offset of the run in the sender's
    /// stream, and the bytes with secrets overwritten. Ordered by offset within each stream.
    #[must_use]
    pub fn kept(&self) -> Vec<(Side, u64, Vec<u8>)> {
        let sides = [Side::Client, Side::Server].into_iter().zip(&self.kept);
        let rows =
            sides.flat_map(|(side, kept)| kept.rows().map(move |(offset, octets)| (side, offset, octets.to_vec())));
        let mut kept: Vec<_> = rows.chain(self.injections()).collect();
        kept.sort_by_key(|(side, offset, _)| (*side as usize, *offset));
        kept
    }

    /// Number of cleartext bytes that exceeded the bound of the evidence.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.kept.iter().map(Retained::left_out).sum()
    }

    /// The redacted form of two copies of one range. Server bytes before any authentication are shown; elsewhere
    /// either copy may hold a secret at an unknown position.
    #[must_use]
    pub fn copies(&self, conflict: &Conflict) -> [Vec<u8>; 2] {
        [&conflict.first, &conflict.other].map(|copy| match self.is_shown(conflict) {
            true => Redacted::reply(copy, std::iter::empty(), false).octets().into_owned(),
            false => vec![BLANK; copy.len()],
        })
    }

    /// The part of two copies that is retained after the verdict: the redacted form, with the keywords of EHLO
    /// replies, which are compared.
    #[must_use]
    pub fn retained_copies(&self, conflict: &Conflict) -> [Vec<u8>; 2] {
        let mut shown = self.copies(conflict);
        if !self.is_shown(conflict) {
            for (copy, shown) in [&conflict.first, &conflict.other].into_iter().zip(&mut shown) {
                for line in copy.split(|octet| *octet == b'\n') {
                    let start = line.as_ptr().addr() - copy.as_ptr().addr();
                    let end = start + plain_keyword(line).map_or(0, |keyword| "250-".len() + keyword.len());
                    shown[start..end].copy_from_slice(&copy[start..end]);
                    // Keeps the line ending as well: the parser needs it to find the next keyword.
                    if let Some(octet) = shown.get_mut(start + line.len()) {
                        *octet = b'\n';
                    }
                }
            }
        }
        shown
    }

    fn is_shown(&self, conflict: &Conflict) -> bool {
        let no_secrets = self.secrets.is_empty() && !self.secrets_forgotten;
        conflict.from == Side::Server && self.seen.auth.is_empty() && no_secrets
    }

    /// A server line in the form retained for comparison: printable, with quoted secrets redacted.
    fn quoted(&self, line: &[u8]) -> String {
        if self.secrets.is_empty() { printable(line) } else { Redacted::reply(line, self.secrets.iter(), false).text() }
    }

    /// Retains a redacted line as evidence; `end` is the stream offset after it.
    fn keep(&mut self, from: Side, line: &Line<'_>, shown: &Redacted<'_>, end: u64) {
        let kept = &mut self.kept[from as usize];
        let start = end.saturating_sub(line.octets as u64);
        let octets = shown.octets();
        kept.push(start, &octets);
        let rest: &[u8] = match line.octets - octets.len().min(line.octets) {
            // No line ending in the stream: the connection ended, or the line exceeded the bound.
            0 => b"",
            _ if line.truncated => b"",
            1 => b"\n",
            _ => b"\r\n",
        };
        kept.push(start + octets.len() as u64, rest);
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
        self.held = SecretBuffer::default();
        self.client_lines.clear();
        self.server_lines.clear();
        self.secrets = VecDeque::new();
        self.events.push_back(SessionEvent::Mute);
    }

    fn expect(&mut self, what: Pending, verb: Verb) {
        if self.presuming {
            if self.phase == Phase::Hold {
                self.phase = what.presumed();
            }
            return;
        }
        let crowded = self.queue.len() >= limits::PIPELINE / 2;
        if let Some(newest) = self.queue.back_mut()
            && newest.what == what
            && (newest.verb == verb || crowded)
        {
            newest.count = newest.count.saturating_add(1);
            if newest.verb != verb {
                newest.verb = Verb::default();
            }
        } else if self.queue.len() >= limits::PIPELINE {
            self.doubt(Doubt::Ambiguous);
        } else {
            if self.queue.capacity() == 0 {
                self.queue.reserve_exact(1);
            }
            self.queue.push_back(Waiting { what, verb, asked: self.now, count: 1 });
        }
    }

    /// Takes the oldest pending command off the queue.
    fn answered(&mut self) -> Option<Waiting> {
        let oldest = self.queue.front_mut()?;
        if oldest.count == 1 {
            return self.queue.pop_front();
        }
        oldest.count -= 1;
        Some(*oldest)
    }

    fn begin_auth(&mut self, exchange: AuthExchange) {
        let exchanges = &mut self.seen.auth;
        if exchanges.len() >= AUTH_EXCHANGES
            && let Some(idle) = exchanges.iter().position(|exchange| !exchange.secret_sent)
        {
            exchanges.remove(idle);
        }
        if exchanges.len() >= AUTH_EXCHANGES {
            let number = exchanges.pop().map_or(0, |exchange| exchange.number);
            exchanges.push(AuthExchange { number, ..exchange });
        } else {
            exchanges.push(AuthExchange { number: self.auth_begun, ..exchange });
            self.auth_begun += 1;
        }
    }

    fn keep_secret(&mut self, secret: Secret) {
        if self.secrets.len() >= SECRETS {
            self.secrets.pop_front();
            self.quotes_unknown = true;
        }
        self.secrets.push_back(secret);
    }

    /// The reply arrived: processes the buffered bytes in the phase that it selects.
    fn release(&mut self, phase: Phase) {
        self.phase = phase;
        let held = std::mem::take(&mut self.held);
        self.client(&held, self.client_end);
    }
    /// Both ends support multipath TCP: parts of the dialogue may travel where they are not seen.
    pub fn multipath(&mut self) {
        self.seen.doubt.get_or_insert(Doubt::Multipath);
    }

    /// The connection was silent for longer than any time-out of SMTP.
    pub const fn timed_out(&mut self) {
        self.seen.timed_out = true;
    }

    /// No policy needs the server's certificates.
    pub fn forget_certificates(&mut self) {
        if let Some(tls) = &mut self.seen.tls {
            tls.certificates = Vec::new();
        }
    }
}
