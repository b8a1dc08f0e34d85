//! The client's direction of a session: commands, SASL responses, headers before the dialogue, and message bodies,
//! which are skipped.

use super::{
    Phase, Session, SessionEvent,
    pairing::{ExpectedReply, Pending},
};
use crate::{
    Side, limits,
    smtp::{
        auth::{AuthExchange, MechanismClass},
        command::{Command, is_blank, is_known, split_word, without_nuls},
        line::Line,
        observation::{Doubt, Rewritten, Starttls},
        redaction::Redacted,
        secret::Secret,
        tls::is_record_type,
        transcript::{is_verb, printable},
        verb::Verb,
    },
};

/// First bytes of a PROXY header, version 2.
const PROXY_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Length of the fixed part of such a header, in bytes.
const PROXY_HEADER: usize = PROXY_SIGNATURE.len() + 4;

/// Bytes of a BDAT chunk that the server refused and the client may still send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum RefusedChunk {
    /// No chunk was refused, or the client did not send it.
    #[default]
    None,
    /// The client's next line decides whether it sends the `left` bytes of the chunk.
    Undecided { left: u64 },
    /// The client sent text of a chunk, which the server reads as commands. `left` bytes of the newest chunk follow.
    Text { left: u64 },
}

impl RefusedChunk {
    /// Text of a refused chunk was sent in this session.
    pub(super) const fn has_text(self) -> bool {
        matches!(self, Self::Text { .. })
    }

    /// The server refused a chunk. `left` bytes of it have not arrived; `text`: other bytes of it have.
    pub(super) const fn refuse(&mut self, left: u64, text: bool) {
        *self = match left {
            _ if text || self.has_text() => Self::Text { left },
            0 => Self::None,
            _ => Self::Undecided { left },
        };
    }

    /// Whether a line of `length` bytes belongs to the chunk. `unknown`: it is not a command. A client that waited for
    /// the refusal continues with a command; a client that did not wait sends the chunk to its end.
    const fn takes(&mut self, length: u64, unknown: bool) -> bool {
        match *self {
            Self::Undecided { left } if unknown => {
                *self = Self::Text { left: left.saturating_sub(length) };
                true
            }
            Self::Undecided { .. } => {
                *self = Self::None;
                false
            }
            Self::Text { left: 1.. } => {
                if let Self::Text { left } = self {
                    *left = left.saturating_sub(length);
                }
                true
            }
            Self::None | Self::Text { left: 0 } => false,
        }
    }
}

impl Session {
    /// Processes client bytes; `end` is the stream offset after `input`.
    pub(super) fn client(&mut self, mut input: &[u8], end: u64) {
        self.client_end = end;
        while let Some(&first) = input.first() {
            match self.phase {
                Phase::Stopped => return,
                Phase::Tls(_) if self.server_answered_in_cleartext() && self.client_continues_in_cleartext(input) => {
                    self.abandon_tls(input);
                    return;
                }
                Phase::Tls(_) => {
                    self.tls_bytes(Side::Client, input, end);
                    return;
                }
                Phase::AwaitingReply { ref mut buffered } => {
                    if buffered.len() + input.len() <= limits::REASSEMBLY_BYTES {
                        buffered.extend_from_slice(input);
                        self.resolve_buffered();
                        return;
                    }
                    if self.seen.starttls == Starttls::Sent {
                        let buffered = std::mem::take(buffered);
                        self.injected(&buffered, true, true);
                    }
                    self.doubt(Doubt::Ambiguous);
                    return;
                }
                Phase::Body(body) if self.body_end.is_some_and(|at| at <= end.saturating_sub(input.len() as u64)) => {
                    self.phase = Phase::Commands;
                    if !body.refused {
                        self.expect(Pending::EndOfData, Verb::default());
                    }
                }
                Phase::Body(mut body) => {
                    let ended = body.scan(&mut input);
                    self.phase = if ended { Phase::Commands } else { Phase::Body(body) };
                    if ended && !body.refused {
                        self.expect(Pending::EndOfData, Verb::default());
                    }
                }
                Phase::Chunk { left } => {
                    let left = skip(&mut input, left);
                    self.phase = if left == 0 { Phase::Commands } else { Phase::Chunk { left } };
                }
                Phase::ProxyHeader { left } => {
                    let left = skip(&mut input, left);
                    self.phase = if left == 0 { Phase::default() } else { Phase::ProxyHeader { left } };
                }
                Phase::Opening { ref header } if !header.is_empty() || first == PROXY_SIGNATURE[0] => {
                    self.proxy_header(&mut input, end);
                }
                Phase::Opening { .. } | Phase::Commands if self.may_begin_tls() && is_record_type(first) => {
                    self.enter_tls();
                }
                Phase::Opening { .. } => self.phase = Phase::Commands,
                Phase::Commands | Phase::AuthResponse => {
                    let Some(line) = self.client_lines.take(&mut input) else { return };
                    self.client_line(&line, input, end);
                }
            }
        }
    }

    /// Processes one line; `input` follows the line, `end` is the stream offset after `input`.
    pub(super) fn client_line(&mut self, line: &Line<'_>, input: &[u8], end: u64) {
        self.pairing.ehlo_reply_open = false;
        // If the client speaks after a line without a code, it accepted that line as the greeting (EV-18).
        if self.seen.greeting.is_none() {
            self.seen.greeting = self.nonstandard_greeting.take();
        }
        let after = end.saturating_sub(input.len() as u64);
        if self.infers_replies
            && matches!(self.phase, Phase::AuthResponse)
            && Command::parse(&line.bytes) != Command::Other
        {
            // The server's reply ended the exchange.
            self.phase = Phase::Commands;
        }
        if matches!(self.phase, Phase::AuthResponse) {
            self.retain(Side::Client, line, &Redacted::nothing(&line.bytes), after);
            self.auth_response(&line.bytes);
            return;
        }
        let command = match without_nuls(&line.bytes) {
            Some(restored) => Command::parse(&restored),
            None => Command::parse(&line.bytes),
        };
        self.resolve_tentative(&command);
        let first = split_word(&line.bytes).0;
        let unknown = command == Command::Other && !is_known(first);
        if self.is_chunk_text(line, unknown) {
            self.skip_chunk_text(line, after);
            return;
        }
        // In a session with AUTH any unknown word may be the secret, even one that looks like an overwritten verb.
        let is_secret = unknown && (self.auth_begun > 0 || !is_verb(first));
        let verb = if is_secret { Verb::default() } else { Verb::of(first) };
        self.seen.smtp |= command != Command::Other;
        self.note_use_after_ehlo(&command);
        self.data_refused &= !matches!(command, Command::Ehlo(_) | Command::Mail { .. } | Command::Rset);
        // A line after a refused DATA may be message text: not even its first word is a verb.
        let message = self.data_refused && command == Command::Other;
        let hidden = message || is_secret;
        let shown = if hidden { Redacted::nothing(&line.bytes) } else { Redacted::command(&command, &line.bytes) };
        self.seen.transcript.push_with(Side::Client, shown.length(), |text| shown.write(text));
        self.retain(Side::Client, line, &shown, after);
        // Records words in positions where no secret belongs, so that quotations of them are redacted.
        if !matches!(command, Command::Auth { .. })
            && let Some(secret) = shown.unexpected()
        {
            self.quotable.push(secret);
        }
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
                self.phase = Phase::awaiting_reply();
                Pending::Starttls
            }
            Command::Auth { ref mechanism, initial } => {
                // The line was cut after blanks: the remainder crossed the wire too (EV-16).
                let initial = initial.or(line.truncated.then_some(1));
                self.begin_auth(AuthExchange::new(mechanism, initial, verb.as_str() == "X-EXPS"));
                let (_, rest) = split_word(&line.bytes);
                // A word that is not a mechanism may be the secret itself.
                let known = MechanismClass::of(mechanism.name()) != MechanismClass::Unknown;
                self.quotable.push(Secret::new(if known { split_word(rest).1 } else { rest }));
                self.phase = Phase::awaiting_reply();
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
                    && self.seen.recipient_domains.insert(domain.clone())
                {
                    self.events.push_back(SessionEvent::Recipient);
                }
                Pending::Other
            }
            Command::Data => {
                self.phase = Phase::awaiting_reply();
                Pending::Data
            }
            // The chunk size is unknown: the server refuses the command and continues with the next line.
            Command::Bdat { size: None, .. } => Pending::Other,
            // A server that did not offer CHUNKING may not know BDAT and then reads the chunk as commands: its reply
            // decides.
            Command::Bdat { size: Some(size), last } if !self.chunking_offered() => {
                self.phase = Phase::awaiting_reply();
                Pending::UnofferedBdat { size, last }
            }
            Command::Bdat { size: Some(size), last } => {
                self.seen.acted_on.insert("CHUNKING");
                if size > 0 {
                    self.phase = Phase::Chunk { left: size };
                    self.events.push_back(SessionEvent::SkipClientUntil(after.saturating_add(size)));
                }
                Pending::Bdat { last }
            }
            // The PROXY header of a load balancer precedes the dialogue and has no reply (docs/threats.md FP-13).
            Command::Other if self.seen.greeting.is_none() && line.bytes.starts_with(b"PROXY ") => {
                self.seen.proxy_header = true;
                Pending::Uncertain(ExpectedReply::Error)
            }
            Command::Other if is_blank(&line.bytes) => Pending::Uncertain(ExpectedReply::Error),
            Command::Other => {
                self.note_unprompted_response(&line.bytes, unknown);
                if verb.as_str().len() >= 4 && verb.as_str().bytes().all(|c| c == b'X') {
                    let arrived = Rewritten { sent: String::new(), arrived: verb.as_str().to_owned() };
                    self.seen.rewritten.get_or_insert(Box::new(arrived));
                }
                if verb.as_str() == "XCLIENT" { Pending::Xclient } else { Pending::Other }
            }
            Command::Turn => Pending::Turn,
            Command::Rset | Command::Quit => Pending::Other,
        };
        self.expect(pending, if message { Verb::default() } else { verb });
    }

    /// The client speaks after a line that may have been the reply to its newest command: the client accepted it as
    /// the reply.
    fn resolve_tentative(&mut self, command: &Command) {
        let Some(tentative) = self.pairing.tentative else { return };
        let helo_after_ehlo = self.pairing.oldest() == Some(Pending::Ehlo) && matches!(command, Command::Helo(_));
        if tentative.code != 0 && !helo_after_ehlo {
            return;
        }
        self.pairing.tentative = None;
        for _ in 0..tentative.lines {
            let Some(answered) = self.pairing.answered() else { return };
            self.pairing.answered_by_unparsed_line += u32::from(tentative.code == 0);
            if answered.what == Pending::Ehlo {
                self.seen.ehlo_rejected = Some(tentative.code);
            }
        }
    }

    /// Whether a line belongs to a BDAT chunk that the server refused.
    fn is_chunk_text(&mut self, line: &Line<'_>, unknown: bool) -> bool {
        let is_text = self.refused_chunk.takes(line.stream_len as u64, unknown);
        if is_text {
            self.quotable.set_incomplete();
        }
        is_text
    }

    /// Skips a line without meaning in the dialogue; the server may still answer it.
    fn skip_chunk_text(&mut self, line: &Line<'_>, after: u64) {
        let shown = Redacted::nothing(&line.bytes);
        self.seen.transcript.push_with(Side::Client, shown.length(), |text| shown.write(text));
        self.retain(Side::Client, line, &shown, after);
        self.expect(Pending::Uncertain(ExpectedReply::Error), Verb::default());
    }

    /// A client that sends MAIL or STARTTLS after the reply to EHLO regards only EHLO as refused. A command sent
    /// before that reply proves nothing.
    fn note_use_after_ehlo(&mut self, command: &Command) {
        let uses = matches!(command, Command::Mail { .. } | Command::Starttls);
        self.seen.went_on |= uses && !self.pairing.awaits_ehlo();
    }

    /// After a refused AUTH, a line that is not a command is a SASL response without a prompt.
    fn note_unprompted_response(&mut self, line: &[u8], unknown: bool) {
        if !self.unprompted_response || !unknown {
            return;
        }
        if let Some(exchange) = self.seen.auth.last_mut() {
            exchange.respond(line.trim_ascii().len());
            self.unprompted_response = exchange.may_continue();
            self.events.push_back(SessionEvent::Judge);
        }
    }

    /// CHUNKING was offered (RFC 3030), or the offer is unknown. A server that accepted only HELO has offered
    /// nothing.
    fn chunking_offered(&self) -> bool {
        self.seen.capabilities.as_ref().map_or(!self.seen.helo, |capabilities| capabilities.has("CHUNKING"))
    }

    /// The binary PROXY header of a load balancer (version 2): the signature, four bytes whose last two are the
    /// length of the rest, and the rest. It precedes the dialogue and has no reply (docs/threats.md FP-13).
    fn proxy_header(&mut self, input: &mut &[u8], end: u64) {
        let Phase::Opening { header } = &mut self.phase else { return };
        let wanted = PROXY_HEADER.saturating_sub(header.len()).min(input.len());
        let (fresh, rest) = input.split_at(wanted);
        header.extend_from_slice(fresh);
        *input = rest;
        let compared = header.len().min(PROXY_SIGNATURE.len());
        if header[..compared] != PROXY_SIGNATURE[..compared] {
            let header = std::mem::take(header);
            self.phase = Phase::Commands;
            self.client(&header, end.saturating_sub(input.len() as u64));
        } else if let Some(&[high, low]) = header.get(PROXY_HEADER - 2..) {
            self.seen.proxy_header = true;
            // A server that does not support the header reads its signature as lines.
            for _ in 0..3 {
                self.expect(Pending::Uncertain(ExpectedReply::Error), Verb::default());
            }
            self.expect(Pending::Uncertain(ExpectedReply::Quit), Verb::default());
            self.phase = match u16::from_be_bytes([high, low]) {
                0 => Phase::default(),
                length => Phase::ProxyHeader { left: u64::from(length) },
            };
        }
    }

    /// Whether TLS without STARTTLS may begin here (docs/threats.md D6): as the first byte of the session, and after
    /// a go-ahead also after cleartext commands. Accepting it elsewhere would let an attacker blind the monitor.
    fn may_begin_tls(&self) -> bool {
        let granted = matches!(self.seen.starttls, Starttls::Granted(_))
            || self.infers_replies && self.seen.starttls == Starttls::Sent;
        matches!(self.phase, Phase::Opening { .. }) || granted && self.client_lines.partial().is_empty()
    }

    fn auth_response(&mut self, line: &[u8]) {
        let length = line.trim_ascii().len();
        self.seen.transcript.push(Side::Client, &format!("[{length} bytes]"));
        if let Some(exchange) = self.seen.auth.last_mut() {
            if line.trim_ascii() == b"*" {
                exchange.cancelled = true;
            } else {
                exchange.respond(length);
            }
        }
        self.quotable.push(Secret::new(line));
        self.phase = Phase::awaiting_reply();
        self.pairing.tentative = None;
        self.expect(Pending::Auth, Verb::default());
    }
}

/// Skips up to `left` bytes of `input`; returns how many of them have not arrived.
fn skip(input: &mut &[u8], left: u64) -> u64 {
    let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
    *input = input.get(skipped..).unwrap_or_default();
    left - skipped as u64
}
