//! One SMTP session in cleartext, driven by (command, reply) pairs.
//!
//! What a line of the client means depends on the reply to the line before it: a body follows DATA only on 354
//! (docs/threats.md FP-10), a SASL response follows AUTH only on 334, TLS follows STARTTLS only on a go-ahead. So whatever the client
//! sends after such a command is held until its reply is known; everything else is a queue of commands that wait for
//! their replies (FP-11).

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

/// Exchanges kept per session. One in which no secret was sent is evicted; where there is none, the newest takes the place
/// of the one before: what a client tries then has the outcome of those.
const AUTH_EXCHANGES: usize = 16;

/// Secrets of one session that are looked for in what the server says.
const SECRETS: usize = 8;

/// What the engine is to do. Drain [`Session::poll`] after every call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// Something happened that a verdict depends on.
    Judge,
    /// Which reply belongs to which command is lost, or how far a body reaches: nothing more can be read.
    OutOfStep,
    /// The dialogue goes on after its verdict, and what waited to be read was given up with it.
    InputForgotten,
    /// The domain of a recipient was named.
    Recipient,
    /// A message body follows from the client.
    BodyFollows,
    /// The client's stream is not needed before this offset.
    SkipClientUntil(u64),
    /// Nothing more of this flow is needed.
    Mute,
}

/// How many bytes differ between two copies of one range, where one of them has only NULs there.
pub(crate) fn nul_bytes(first: &[u8], other: &[u8]) -> Option<usize> {
    let differ = || first.iter().zip(other).filter(|(one, two)| one != two);
    let nul = differ().all(|(one, _)| *one == 0) || differ().all(|(_, two)| *two == 0);
    Some(differ().count()).filter(|count| nul && *count > 0)
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
    /// Client bytes that wait for the reply that says what they are.
    held: SecretBuffer,
    /// Stream offset behind the newest bytes of the client.
    client_end: u64,
    /// Where in that stream the newest message has ended.
    body_end: Option<u64>,
    client_spoke: bool,
    /// A message ended unseen: replies may follow to commands that stood after it.
    unseen_commands: bool,
    /// A line came while a command waited that is the reply to it, or noise before the reply: what the client does next tells.
    stray: Option<Stray>,
    /// Lines without a code came.
    strayed: bool,
    /// Commands that a line without a code answered, as the client saw it: their replies may come late.
    answered_by_stray: u32,
    /// Bytes of a refused BDAT chunk that the client may still send.
    refused_chunk: u64,
    /// Text of such a chunk was sent, and the server reads it as commands.
    chunk_text: bool,
    /// The newest AUTH was refused before its secret was sent: some clients send it anyway, as a command.
    auth_goes_on: bool,
    /// When the go-ahead came.
    granted_at: Timestamp,
    /// Bytes in cleartext of the server, after the go-ahead, that the transcript has.
    clear_shown: usize,
    /// The newest reply answered EHLO, and the client has not spoken since (docs/threats.md EV-17).
    ehlo_may_go_on: bool,
    /// What may not be shown, should the server quote it: the newest [`SECRETS`].
    secrets: VecDeque<Secret>,
    /// A line without a code that came in the place of the greeting.
    nonstandard_greeting: Option<String>,
    /// DATA had another reply than 354, and no message was begun since.
    data_refused: bool,
    /// The server may quote what is not among them: what it says is not shown any more, beside its codes.
    quotes_unknown: bool,
    /// What the server says is not believed: the client's own bytes say what it did.
    presuming: bool,
    /// The list of secrets was not empty when it was given up.
    secrets_forgotten: bool,
    /// What waited to be read was given up: there is a gap, should the dialogue go on.
    input_forgotten: bool,
    /// Bytes in cleartext where TLS should begin, as they may be shown; taken when the bytes themselves were given up.
    injections_shown: Vec<(Side, u64, Vec<u8>)>,
    /// SASL exchanges begun.
    auth_begun: usize,
    /// When the newest bytes were sent.
    now: Timestamp,
    /// Bytes of the reply that is being read, line ends included.
    reply_octets: usize,
    events: VecDeque<SessionEvent>,
    /// What is kept as evidence: the client's bytes, and the server's.
    kept: [Retained; 2],
}

/// How bytes of the client are read.
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
    /// So many bytes of a BDAT chunk.
    Chunk(u64),
    /// After the go-ahead, or TLS from the first byte.
    Tls,
    /// A SASL security layer (docs/threats.md FP-19), or nothing that can be followed.
    Stopped,
}

/// A command that waits for its reply, with its verb in upper case; empty where the word had not the form of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Waiting {
    what: Pending,
    verb: Verb,
    asked: Timestamp,
    /// So many in a row, of which `asked` tells when the first was sent.
    count: u32,
}

/// A line that may have been a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stray {
    /// Its code; zero where it has none.
    code: u16,
    /// How many such lines came.
    lines: u32,
    /// Bytes of the client that were held when the newest one came: what stands after them was sent later.
    held: usize,
}

/// The replies that a line may have which many servers skip.
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

/// What the reply decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    /// A line that is not a command: a server may skip it, and reads it as a command otherwise. A blank line, a PROXY header that
    /// the server does not know, a SASL response that it did not ask for, text of a chunk that it refused.
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
    /// XCLIENT (Postfix): the client asks to speak for another one.
    Xclient,
    Other,
}

impl Pending {
    /// What a client sends next after a command whose reply is not known.
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
    /// A session from its start, or one that was joined in the middle.
    #[must_use]
    pub fn new(midstream: bool) -> Self {
        Self {
            seen: Observation { doubt: midstream.then_some(Doubt::Midstream), ..Observation::default() },
            ..Self::default()
        }
    }

    /// Takes bytes of one side, sent at `at`; `offset` is their place in its stream.
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

    /// Takes a gap in one side's stream. Returns whether it hurts: bodies and TLS are left out on purpose.
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

    /// The gate, which leaves bodies out, has seen a message end; `offset` is the place after it in the client's stream, or one
    /// of a command behind that.
    pub fn body_ended(&mut self, offset: u64) {
        self.body_end = Some(self.body_end.filter(|end| *end > self.client_end).map_or(offset, |end| end.min(offset)));
    }

    /// One side ended the connection, at `at`: by a reset, or in order.
    pub fn ended(&mut self, from: Side, reset: bool, at: Timestamp) {
        if self.seen.ended.is_none() {
            self.seen.ended = Some((from, reset));
            self.seen.silence = Some(at.since(self.now));
        }
    }

    /// The end was none: its host goes on.
    pub const fn resume_after_reset(&mut self) {
        (self.seen.ended, self.seen.silence) = (None, None);
    }

    /// Nothing more is expected in cleartext: overwrites and frees everything that may hold a secret. What is kept as evidence stays,
    /// as it may be shown.
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

    /// Two copies of one range of bytes differ: what the server took in, and may quote, is not certain. NULs quote nothing: some
    /// stacks send them with an acknowledgment to keep a connection open.
    pub fn conflicting_retransmission(&mut self, conflicts: &[Conflict]) {
        self.quotes_unknown |= conflicts.iter().any(|conflict| nul_bytes(&conflict.first, &conflict.other).is_none());
    }

    /// What `from` says from here on cannot be believed, and the other side is this host: its own bytes are read without the replies to them.
    /// A client's say enough: a message follows DATA, a response follows AUTH, and TLS follows STARTTLS or does not. Returns whether that
    /// changes anything. Of a client whose bytes are in doubt nothing is presumed: this host's replies are read as before.
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
            // The go-ahead may have been none.
            let before = self.seen.tls.take().map(|mut tls| tls.take_before(Side::Client)).unwrap_or_default();
            self.phase = Phase::Commands;
            self.client(&before, self.client_end);
        }
        true
    }

    /// Only one direction was seen.
    pub fn one_sided(&mut self) {
        self.seen.doubt.get_or_insert(Doubt::OneSided);
    }

    /// The connection ended: what was begun is all there will be.
    pub fn finish(&mut self) {
        self.settle_end();
        if self.seen.starttls == Starttls::Sent {
            self.seen.starttls_was_offered |= self.seen.offers_starttls();
        }
        let waits_for_ehlo = self.queue.front().is_some_and(|waiting| waiting.what == Pending::Ehlo);
        self.seen.ehlo_unfinished = waits_for_ehlo && self.replies.has_begun();
        // A line without its end has crossed the wire anyway.
        if matches!(self.phase, Phase::Commands | Phase::AuthResponse) && !self.client_lines.partial().is_empty() {
            let mut end = &b"\r\n"[..];
            if let Some(line) = self.client_lines.take(&mut end) {
                let line = Line { octets: line.octets - 2, ..line };
                self.client_line(&line, &[], self.client_end);
            }
        }
        self.events.push_back(SessionEvent::Judge);
    }

    /// The connection ended while a reply was awaited.
    fn settle_end(&mut self) {
        let Some(Waiting { what, .. }) = self.queue.back().copied().filter(|_| self.phase == Phase::Hold) else {
            return;
        };
        match (what, self.stray) {
            (Pending::Starttls, Some(stray)) if self.held.get(stray.held..).is_some_and(|fresh| !fresh.is_empty()) => {
                self.doubt(Doubt::Ambiguous);
            }
            // The last word was a line that is not a reply: to the client, which left, it was one.
            (Pending::Starttls, Some(stray)) => self.seen.starttls = Starttls::Refused(stray.code),
            // What a client that does not wait sent after AUTH has crossed the wire.
            (Pending::Auth, _) => self.eager_response(false),
            _ => {}
        }
    }

    /// What the engine is to do.
    pub fn poll(&mut self) -> Option<SessionEvent> {
        let event = self.events.pop_front();
        if event.is_none() {
            // A session that waits keeps little room for what may come: mostly that is one command.
            if self.queue.is_empty() && self.queue.capacity() > 1 {
                self.queue = VecDeque::new();
            }
        }
        event
    }

    /// Bytes in cleartext that are kept as evidence, in rows of neighbours: who sent them, where the row begins in the sender's
    /// stream, and the bytes, what is secret overwritten. In the order of each stream.
    #[must_use]
    pub fn kept(&self) -> Vec<(Side, u64, Vec<u8>)> {
        let sides = [Side::Client, Side::Server].into_iter().zip(&self.kept);
        let rows =
            sides.flat_map(|(side, kept)| kept.rows().map(move |(offset, octets)| (side, offset, octets.to_vec())));
        let mut kept: Vec<_> = rows.chain(self.injections()).collect();
        kept.sort_by_key(|(side, offset, _)| (*side as usize, *offset));
        kept
    }

    /// Bytes in cleartext that did not fit among them.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.kept.iter().map(Retained::left_out).sum()
    }

    /// Two copies of one range, as they may be shown. What the server says before anyone has proved who he is may be shown;
    /// in any other place either copy may hold a secret, and nothing says where.
    #[must_use]
    pub fn copies(&self, conflict: &Conflict) -> [Vec<u8>; 2] {
        [&conflict.first, &conflict.other].map(|copy| match self.is_shown(conflict) {
            true => Redacted::reply(copy, std::iter::empty(), false).octets().into_owned(),
            false => vec![BLANK; copy.len()],
        })
    }

    /// What is kept of two copies beyond the verdict: what may be shown of them, and keywords of EHLO replies, which are compared.
    #[must_use]
    pub fn retained_copies(&self, conflict: &Conflict) -> [Vec<u8>; 2] {
        let mut shown = self.copies(conflict);
        if !self.is_shown(conflict) {
            for (copy, shown) in [&conflict.first, &conflict.other].into_iter().zip(&mut shown) {
                for line in copy.split(|octet| *octet == b'\n') {
                    let start = line.as_ptr().addr() - copy.as_ptr().addr();
                    let end = start + plain_keyword(line).map_or(0, |keyword| "250-".len() + keyword.len());
                    shown[start..end].copy_from_slice(&copy[start..end]);
                    // The end of the line as well: without it the next keyword would not be found.
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

    /// A line of the server as it is kept for comparison: printable, and without a secret that it quotes.
    fn quoted(&self, line: &[u8]) -> String {
        if self.secrets.is_empty() { printable(line) } else { Redacted::reply(line, self.secrets.iter(), false).text() }
    }

    /// Keeps a line as evidence, as it may be shown; `end` is the stream offset after it.
    fn keep(&mut self, from: Side, line: &Line<'_>, shown: &Redacted<'_>, end: u64) {
        let kept = &mut self.kept[from as usize];
        let start = end.saturating_sub(line.octets as u64);
        let octets = shown.octets();
        kept.push(start, &octets);
        let rest: &[u8] = match line.octets - octets.len().min(line.octets) {
            // Cut short: the end of the connection was the end of the line, or it was too long to be kept.
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

    /// The command that has waited longest; it waits no longer.
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

    /// The reply has come: reads what was held as what it is.
    fn release(&mut self, phase: Phase) {
        self.phase = phase;
        let held = std::mem::take(&mut self.held);
        self.client(&held, self.client_end);
    }
}
