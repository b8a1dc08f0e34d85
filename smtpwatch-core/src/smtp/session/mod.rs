//! The state machine of one SMTP session in cleartext, driven by pairs of command and reply. The engine owns one
//! [`Session`] per flow.
//!
//! The meaning of a client line depends on the reply to the line before it: a body follows DATA only on 354
//! (docs/threats.md FP-10), a SASL response follows AUTH only on 334, TLS follows STARTTLS only on a go-ahead. Client
//! bytes after such a command are therefore buffered until its reply is known; all other commands queue for their
//! replies (FP-11).
//!
//! The states are in [`Phase`]. Files: `client` reads the client's bytes and `server` the server's, `pairing` matches
//! replies to commands, `boundary` is the change from SMTP to TLS, `quotable` decides what a server line may show, and
//! `oddity` counts what is dropped without effect.

mod boundary;
mod client;
mod oddity;
mod pairing;
mod quotable;
mod server;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use self::oddity::{Oddities, Oddity};
use self::{
    boundary::TlsBoundary,
    client::RefusedChunk,
    pairing::{Pairing, Pending},
    quotable::Quotable,
};
use super::{
    auth::AuthExchange,
    body::Body,
    ehlo::plain_keyword,
    line::{Line, Lines},
    observation::{Doubt, Observation, Starttls},
    redaction::Redacted,
    reply::Replies,
    retained::Retained,
    tls::TlsPhase,
    verb::Verb,
};
use crate::{Side, Timestamp, evidence::BLANK, flow::Conflict, secret_buffer::SecretBuffer};

/// State of a session: how the next bytes of the client are read. A variant holds the data that only its state needs.
///
/// | from | to | on |
/// |---|---|---|
/// | `Opening` | `ProxyHeader` | the signature of a PROXY header, version 2 (docs/threats.md FP-13) |
/// | | `Tls` | a TLS record (D6) |
/// | | `Commands` | any other byte |
/// | `ProxyHeader` | `Opening` | the end of the header |
/// | `Commands` | `AwaitingReply` | STARTTLS, AUTH, DATA, or a BDAT that the server did not offer |
/// | | `Chunk` | BDAT that the server offered |
/// | | `Tls` | a TLS record after a go-ahead, when cleartext commands followed the go-ahead |
/// | `AwaitingReply` | `Tls` | 2yz to STARTTLS |
/// | | `AuthResponse` | 3yz to AUTH |
/// | | `Body` | 3yz to DATA |
/// | | `Chunk` | a reply to BDAT other than 500 to 504 |
/// | | `Commands` | any other reply |
/// | `AuthResponse` | `AwaitingReply` | the response |
/// | `Body` | `Commands` | CRLF.CRLF, or the reply to the message |
/// | `Chunk` | `Commands` | the last byte of the chunk |
/// | `Tls` | `Commands` | cleartext of the client where a record should begin |
/// | any | `Stopped` | a gap outside bodies and TLS, lost pairing, a SASL security layer |
///
/// If the server's bytes are not trusted ([`Session::distrust`]), the reply that most clients get is assumed in
/// `AwaitingReply`.
#[derive(Debug)]
enum Phase {
    /// Before the first line of the client: the start of a possible PROXY header.
    Opening { header: SecretBuffer },
    /// `left` bytes of a PROXY header follow.
    ProxyHeader { left: u64 },
    /// The next line is a command.
    Commands,
    /// The reply to the newest command decides how the buffered bytes are read.
    AwaitingReply { buffered: SecretBuffer },
    /// The next line is a SASL response.
    AuthResponse,
    /// After 354: a message up to its final dot; its content is not needed.
    Body(Body),
    /// `left` bytes of a BDAT chunk follow.
    Chunk { left: u64 },
    /// After the go-ahead, or TLS from the first byte.
    Tls(TlsBoundary),
    /// A SASL security layer (docs/threats.md FP-19), or a stream that cannot be parsed.
    Stopped,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Opening { header: SecretBuffer::default() }
    }
}

impl Phase {
    /// The state after a command whose reply decides.
    fn awaiting_reply() -> Self {
        Self::AwaitingReply { buffered: SecretBuffer::default() }
    }

    /// The state after a command if its reply is not known.
    fn after_unknown_reply(command: Pending) -> Self {
        match command {
            Pending::Auth => Self::AuthResponse,
            Pending::Data => Self::Body(Body::START),
            Pending::UnofferedBdat { size, .. } if size > 0 => Self::Chunk { left: size },
            Pending::UnofferedBdat { .. }
            | Pending::Ehlo
            | Pending::Helo
            | Pending::Starttls
            | Pending::EndOfData
            | Pending::Bdat { .. }
            | Pending::Turn
            | Pending::Xclient
            | Pending::Uncertain(_)
            | Pending::Other => Self::Commands,
        }
    }

    /// The buffer of client bytes whose meaning is not known, in the states that have one.
    const fn buffer(&mut self) -> Option<&mut SecretBuffer> {
        match self {
            Self::Opening { header: buffered }
            | Self::AwaitingReply { buffered }
            | Self::Tls(TlsBoundary { unrequested: Some(buffered), .. }) => Some(buffered),
            Self::Tls(TlsBoundary { unrequested: None, .. })
            | Self::ProxyHeader { .. }
            | Self::Commands
            | Self::AuthResponse
            | Self::Body(_)
            | Self::Chunk { .. }
            | Self::Stopped => None,
        }
    }

    /// Client bytes whose meaning is not known.
    fn buffered(&self) -> &[u8] {
        match self {
            Self::Opening { header: buffered }
            | Self::AwaitingReply { buffered }
            | Self::Tls(TlsBoundary { unrequested: Some(buffered), .. }) => buffered,
            Self::Tls(TlsBoundary { unrequested: None, .. })
            | Self::ProxyHeader { .. }
            | Self::Commands
            | Self::AuthResponse
            | Self::Body(_)
            | Self::Chunk { .. }
            | Self::Stopped => &[],
        }
    }

    fn take_buffered(&mut self) -> SecretBuffer {
        self.buffer().map(std::mem::take).unwrap_or_default()
    }
}

/// Maximum number of exchanges retained per session. The oldest exchange in which no secret was sent is evicted
/// first; if there is none, the newest exchange replaces the one before it.
const AUTH_EXCHANGES: usize = 16;

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
///
/// Feed it with [`Session::data`] and [`Session::gap`] in the order of the streams, drain [`Session::poll`] after each
/// call, and call [`Session::finish`] when the connection ends.
#[derive(Debug, Default)]
pub struct Session {
    /// The facts so far.
    pub seen: Observation,

    // State.
    phase: Phase,
    pairing: Pairing,
    /// The server's bytes are not trusted: its actions are inferred from the client's bytes.
    infers_replies: bool,
    /// Time of the newest bytes.
    now: Timestamp,
    events: VecDeque<SessionEvent>,
    oddities: Oddities,

    // The two streams.
    client_lines: Lines,
    /// Stream offset after the newest bytes of the client.
    client_end: u64,
    server_lines: Lines,
    replies: Replies,
    /// Bytes of the reply in progress, including line endings.
    reply_bytes: usize,
    /// A line without a code in place of the greeting.
    nonstandard_greeting: Option<String>,

    // Messages.
    /// Stream offset of the end of the newest message.
    body_end: Option<u64>,
    /// DATA had a reply other than 354, and no message has begun since.
    data_refused: bool,
    refused_chunk: RefusedChunk,

    // Authentication.
    /// Number of SASL exchanges begun.
    auth_begun: usize,
    /// The newest AUTH was refused before its secret was sent: some clients send the secret anyway, as a command.
    unprompted_response: bool,
    quotable: Quotable,

    // TLS.
    /// Time of the go-ahead.
    granted_at: Option<Timestamp>,

    // Evidence.
    /// The client's redacted bytes, and the server's.
    retained: [Retained; 2],
    /// Redacted cleartext where TLS should begin; computed when the original bytes were discarded.
    retained_injections: Vec<(Side, u64, Vec<u8>)>,
    /// Buffered input was discarded: if the dialogue continues, there is a gap.
    input_forgotten: bool,
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
        if std::mem::take(&mut self.input_forgotten) && !matches!(self.phase, Phase::Stopped) {
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
            (Phase::Tls(_), _) => {
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
            (Phase::Chunk { left }, Side::Client) if length <= *left => {
                *left -= length;
                if *left == 0 {
                    self.phase = Phase::Commands;
                }
                true
            }
            (Phase::ProxyHeader { left }, Side::Client) if length <= *left => {
                *left -= length;
                if *left == 0 {
                    self.phase = Phase::default();
                }
                true
            }
            (
                Phase::Opening { .. }
                | Phase::ProxyHeader { .. }
                | Phase::Commands
                | Phase::AwaitingReply { .. }
                | Phase::AuthResponse
                | Phase::Body(_)
                | Phase::Chunk { .. },
                _,
            ) => false,
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
        self.retain_injections();
        let reads_tls = self.seen.tls.as_deref().is_some_and(TlsPhase::is_established);
        let before = self.seen.tls.as_deref().map_or(&[][..], |tls| tls.before(Side::Client));
        let waits = [before, self.phase.buffered(), self.client_lines.partial(), self.server_lines.partial()];
        self.input_forgotten |= !reads_tls && waits.iter().any(|bytes| !bytes.is_empty());
        if let Some(tls) = &mut self.seen.tls {
            tls.forget_before();
        }
        self.phase.take_buffered();
        self.client_lines.clear();
        self.server_lines.clear();
        self.replies.clear();
        self.quotable.forget();
    }

    /// Two copies of one range of bytes differ: it is uncertain which of them the server accepted and may quote.
    /// Copies of NULs are harmless: some stacks send them with an acknowledgment to keep a connection open.
    pub fn conflicting_retransmission(&mut self, conflicts: &[Conflict]) {
        if conflicts.iter().any(|conflict| nul_bytes(&conflict.first, &conflict.other).is_none()) {
            self.quotable.set_incomplete();
        }
    }

    /// Marks the bytes of `from` as untrustworthy from here on. The other side is this host, and its own bytes are
    /// parsed without the replies to them. The bytes of a client suffice: a message follows DATA, a response follows
    /// AUTH, and TLS follows STARTTLS or does not. Has no effect if `from` is the client: this host's replies are
    /// parsed as before. Returns whether the mode of the session changes.
    pub fn distrust(&mut self, from: Side) -> bool {
        if from == Side::Client || self.infers_replies || self.seen.doubt.is_some() || self.seen.tls_began() {
            return false;
        }
        self.infers_replies = true;
        self.seen.doubt = Some(Doubt::Server);
        let newest = self.pairing.newest().map(|waiting| waiting.what);
        self.pairing.release();
        self.server_lines.clear();
        match (&self.phase, newest) {
            (Phase::AwaitingReply { .. } | Phase::Tls(_), Some(newest)) => {
                self.enter(Phase::after_unknown_reply(newest));
            }
            // The go-ahead may have been forged.
            (Phase::Tls(_), None) => {
                let before = self.take_before_tls();
                self.read_as_commands(&before);
            }
            (
                Phase::Opening { .. }
                | Phase::ProxyHeader { .. }
                | Phase::Commands
                | Phase::AwaitingReply { .. }
                | Phase::AuthResponse
                | Phase::Body(_)
                | Phase::Chunk { .. }
                | Phase::Stopped,
                _,
            ) => {}
        }
        true
    }

    /// Records that only one direction was seen.
    pub fn one_sided(&mut self) {
        self.seen.doubt.get_or_insert(Doubt::OneSided);
    }

    /// The connection ended: evaluates unfinished lines and pending commands.
    pub fn finish(&mut self) {
        self.resolve_at_end();
        if self.seen.starttls == Starttls::Sent {
            self.seen.starttls_was_offered |= self.seen.offers_starttls();
        }
        self.seen.ehlo_unfinished = self.pairing.oldest() == Some(Pending::Ehlo) && self.replies.has_begun();
        // An unfinished line has crossed the wire anyway.
        if matches!(self.phase, Phase::Commands | Phase::AuthResponse) && !self.client_lines.partial().is_empty() {
            let mut end = &b"\r\n"[..];
            if let Some(line) = self.client_lines.take(&mut end) {
                let line = Line { stream_len: line.stream_len - 2, ..line };
                self.client_line(&line, &[], self.client_end);
            }
        }
        self.events.push_back(SessionEvent::Judge);
    }

    /// Resolves a reply that is pending at the end of the connection.
    fn resolve_at_end(&mut self) {
        let Phase::AwaitingReply { buffered } = &self.phase else { return };
        let Some(newest) = self.pairing.newest() else { return };
        match (newest.what, self.pairing.tentative) {
            (Pending::Starttls, Some(tentative))
                if buffered.get(tentative.buffered..).is_some_and(|later| !later.is_empty()) =>
            {
                self.doubt(Doubt::Ambiguous);
            }
            // The last server line did not parse as a reply, but the client left after it: the client accepted it as
            // one.
            (Pending::Starttls, Some(tentative)) => self.seen.starttls = Starttls::Refused(tentative.code),
            // A response that an eager client sent after AUTH has crossed the wire.
            (Pending::Auth, _) => self.early_auth_response(false),
            (
                Pending::Starttls
                | Pending::Uncertain(_)
                | Pending::Ehlo
                | Pending::Helo
                | Pending::Data
                | Pending::EndOfData
                | Pending::Bdat { .. }
                | Pending::UnofferedBdat { .. }
                | Pending::Turn
                | Pending::Xclient
                | Pending::Other,
                _,
            ) => {}
        }
    }

    /// The next request to the engine.
    pub fn poll(&mut self) -> Option<SessionEvent> {
        let event = self.events.pop_front();
        if event.is_none() {
            self.pairing.shrink_idle();
        }
        event
    }

    /// Irregularities of the server's side that changed nothing in the dialogue.
    #[must_use]
    pub const fn oddities(&self) -> &Oddities {
        &self.oddities
    }

    /// The evidence: cleartext bytes in contiguous runs, with the sender, the offset of the run in the sender's
    /// stream, and the bytes with secrets overwritten. Ordered by offset within each stream.
    #[must_use]
    pub fn kept(&self) -> Vec<(Side, u64, Vec<u8>)> {
        let sides = [Side::Client, Side::Server].into_iter().zip(&self.retained);
        let runs = sides
            .flat_map(|(side, retained)| retained.runs().map(move |(offset, bytes)| (side, offset, bytes.to_vec())));
        let mut all: Vec<_> = runs.chain(self.injections()).collect();
        all.sort_by_key(|(side, offset, _)| (*side as usize, *offset));
        all
    }

    /// Number of cleartext bytes that exceeded the bound of the evidence.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.retained.iter().map(Retained::left_out).sum()
    }

    /// The redacted form of two copies of one range. Server bytes before any authentication are shown; elsewhere
    /// either copy may hold a secret at an unknown position.
    #[must_use]
    pub fn copies(&self, conflict: &Conflict) -> [Vec<u8>; 2] {
        [&conflict.first, &conflict.other].map(|copy| match self.is_shown(conflict) {
            true => Redacted::reply(copy, std::iter::empty(), false).bytes().into_owned(),
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
                for line in copy.split(|byte| *byte == b'\n') {
                    let start = line.as_ptr().addr() - copy.as_ptr().addr();
                    let end = start + plain_keyword(line).map_or(0, |keyword| "250-".len() + keyword.len());
                    shown[start..end].copy_from_slice(&copy[start..end]);
                    // Keeps the line ending as well: the parser needs it to find the next keyword.
                    if let Some(byte) = shown.get_mut(start + line.len()) {
                        *byte = b'\n';
                    }
                }
            }
        }
        shown
    }

    fn is_shown(&self, conflict: &Conflict) -> bool {
        conflict.from == Side::Server && self.seen.auth.is_empty() && self.quotable.is_unused()
    }

    /// Retains a redacted line as evidence; `end` is the stream offset after it.
    fn retain(&mut self, from: Side, line: &Line<'_>, shown: &Redacted<'_>, end: u64) {
        let retained = &mut self.retained[from as usize];
        let start = end.saturating_sub(line.stream_len as u64);
        let bytes = shown.bytes();
        retained.push(start, &bytes);
        let rest: &[u8] = match line.stream_len - bytes.len().min(line.stream_len) {
            // No line ending in the stream: the connection ended, or the line exceeded the bound.
            0 => b"",
            _ if line.truncated => b"",
            1 => b"\n",
            _ => b"\r\n",
        };
        retained.push(start + bytes.len() as u64, rest);
    }

    /// Redacts the cleartext where TLS should begin while the secrets that it may quote are known.
    fn retain_injections(&mut self) {
        if self.retained_injections.is_empty() {
            self.retained_injections = self.injections().collect();
        }
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
        self.pairing.release();
        self.client_lines.clear();
        self.server_lines.clear();
        self.retain_injections();
        self.quotable.forget();
        self.events.push_back(SessionEvent::Mute);
    }

    /// Queues a command for its reply.
    fn expect(&mut self, what: Pending, verb: Verb) {
        if self.infers_replies {
            if matches!(self.phase, Phase::AwaitingReply { .. }) {
                self.phase = Phase::after_unknown_reply(what);
            }
        } else if self.pairing.push(what, verb, self.now).is_err() {
            self.doubt(Doubt::Ambiguous);
        }
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

    /// Enters a state and reads the buffered bytes in it.
    fn enter(&mut self, phase: Phase) {
        let buffered = self.phase.take_buffered();
        self.phase = phase;
        self.client(&buffered, self.client_end);
    }

    /// Reads these client bytes as commands.
    fn read_as_commands(&mut self, bytes: &[u8]) {
        self.phase = Phase::Commands;
        self.client(bytes, self.client_end);
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
