//! The client's direction of a session: commands, SASL responses, headers before the dialogue, and message bodies,
//! which are skipped.

use super::{Fits, Pending, Phase, Session, SessionEvent};
use crate::{
    Side, limits,
    secret_buffer::SecretBuffer,
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

impl Session {
    /// Processes client bytes; `end` is the stream offset after `input`.
    pub(super) fn client(&mut self, mut input: &[u8], end: u64) {
        self.client_end = end;
        while !input.is_empty() {
            match self.phase {
                Phase::Stopped => return,
                Phase::Tls if self.answered_in_clear() && self.goes_on_in_clear(input) => {
                    self.abandon_tls(input);
                    return;
                }
                Phase::Tls => {
                    self.tls_bytes(Side::Client, input, end);
                    return;
                }
                Phase::Hold => {
                    if self.held.len() + input.len() > limits::REASSEMBLY_BYTES {
                        if self.seen.starttls == Starttls::Sent {
                            let held = std::mem::take(&mut self.held);
                            self.injected(&held, true, true);
                        }
                        self.doubt(Doubt::Ambiguous);
                    } else {
                        self.held.extend_from_slice(input);
                        self.settle_stray();
                    }
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

    /// Processes one line; `input` follows the line, `end` is the stream offset after `input`.
    pub(super) fn client_line(&mut self, line: &Line<'_>, input: &[u8], end: u64) {
        self.ehlo_may_go_on = false;
        // If the client speaks after a line without a code, it accepted that line as the greeting (EV-18).
        if self.seen.greeting.is_none() {
            self.seen.greeting = self.nonstandard_greeting.take();
        }
        let behind = end.saturating_sub(input.len() as u64);
        if self.presuming && self.phase == Phase::AuthResponse && Command::parse(&line.bytes) != Command::Other {
            // The server's reply ended the exchange.
            self.phase = Phase::Commands;
        }
        if self.phase == Phase::AuthResponse {
            self.keep(Side::Client, line, &Redacted::nothing(&line.bytes), behind);
            self.auth_response(&line.bytes);
            return;
        }
        let command = match without_nuls(&line.bytes) {
            Some(restored) => Command::parse(&restored),
            None => Command::parse(&line.bytes),
        };
        self.conclude_stray(&command);
        let first = split_word(&line.bytes).0;
        let unknown = command == Command::Other && !is_known(first);
        if self.is_chunk_text(line, unknown) {
            self.pass_over(line, behind);
            return;
        }
        // In a session with AUTH any unknown word may be the secret, even one that looks like an overwritten verb.
        let is_secret = unknown && (self.auth_begun > 0 || !is_verb(first));
        let verb = if is_secret { Verb::default() } else { Verb::of(first) };
        self.seen.smtp |= command != Command::Other;
        self.note_went_on(&command);
        self.data_refused &= !matches!(command, Command::Ehlo(_) | Command::Mail { .. } | Command::Rset);
        // A line after a refused DATA may be message text: not even its first word is a verb.
        let message = self.data_refused && command == Command::Other;
        let hidden = message || is_secret;
        let shown = if hidden { Redacted::nothing(&line.bytes) } else { Redacted::command(&command, &line.bytes) };
        self.seen.transcript.push_with(Side::Client, shown.length(), |text| shown.write(text));
        self.keep(Side::Client, line, &shown, behind);
        // Records words in positions where no secret belongs, so that quotations of them are redacted.
        if !matches!(command, Command::Auth { .. })
            && let Some(secret) = shown.unexpected()
        {
            self.keep_secret(secret);
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
                self.phase = Phase::Hold;
                Pending::Starttls
            }
            Command::Auth { ref mechanism, initial } => {
                // The line was cut after blanks: the remainder crossed the wire too (EV-16).
                let initial = initial.or(line.truncated.then_some(1));
                self.begin_auth(AuthExchange::new(mechanism, initial, verb.as_str() == "X-EXPS"));
                let (_, rest) = split_word(&line.bytes);
                // A word that is not a mechanism may be the secret itself.
                let known = MechanismClass::of(mechanism.name()) != MechanismClass::Unknown;
                self.keep_secret(Secret::new(if known { split_word(rest).1 } else { rest }));
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
                    && self.seen.recipient_domains.insert(domain.clone())
                {
                    self.events.push_back(SessionEvent::Recipient);
                }
                Pending::Other
            }
            Command::Data => {
                self.phase = Phase::Hold;
                Pending::Data
            }
            // The chunk size is unknown: the server refuses the command and continues with the next line.
            Command::Bdat { size: None, .. } => Pending::Other,
            // A server that did not offer CHUNKING may not know BDAT and then reads the chunk as commands: its reply
            // decides.
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
            // The PROXY header of a load balancer precedes the dialogue and has no reply (docs/threats.md FP-13).
            Command::Other if self.seen.greeting.is_none() && line.bytes.starts_with(b"PROXY ") => {
                self.seen.proxy_header = true;
                Pending::Uncertain(Fits::Error)
            }
            Command::Other if is_blank(&line.bytes) => Pending::Uncertain(Fits::Error),
            Command::Other => {
                self.go_on_with_auth(&line.bytes, unknown);
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
    fn conclude_stray(&mut self, command: &Command) {
        let Some(stray) = self.stray else { return };
        let waits_for_ehlo = self.queue.front().is_some_and(|waiting| waiting.what == Pending::Ehlo);
        if stray.code != 0 && !(waits_for_ehlo && matches!(command, Command::Helo(_))) {
            return;
        }
        self.stray = None;
        for _ in 0..stray.lines {
            let Some(answered) = self.answered() else { return };
            self.answered_by_stray += u32::from(stray.code == 0);
            if answered.what == Pending::Ehlo {
                self.seen.ehlo_rejected = Some(stray.code);
            }
        }
    }

    /// Whether a line belongs to a BDAT chunk that the server refused. A client that waited for the refusal continues
    /// with a command; a client that did not wait sends the chunk to its end.
    fn is_chunk_text(&mut self, line: &Line<'_>, unknown: bool) -> bool {
        if self.refused_chunk == 0 {
            return false;
        }
        self.chunk_text |= unknown;
        self.quotes_unknown |= self.chunk_text;
        self.refused_chunk =
            if self.chunk_text { self.refused_chunk.saturating_sub(line.stream_len as u64) } else { 0 };
        self.chunk_text
    }

    /// Skips a line without meaning in the dialogue; the server may still answer it.
    fn pass_over(&mut self, line: &Line<'_>, behind: u64) {
        let shown = Redacted::nothing(&line.bytes);
        self.seen.transcript.push_with(Side::Client, shown.length(), |text| shown.write(text));
        self.keep(Side::Client, line, &shown, behind);
        self.expect(Pending::Uncertain(Fits::Error), Verb::default());
    }

    /// A client that sends MAIL or STARTTLS after the reply to EHLO regards only EHLO as refused. A command sent
    /// before that reply proves nothing.
    fn note_went_on(&mut self, command: &Command) {
        let asked = matches!(command, Command::Mail { .. } | Command::Starttls);
        self.seen.went_on |= asked && !self.queue.iter().any(|waiting| waiting.what == Pending::Ehlo);
    }

    /// After a refused AUTH, a line that is not a command is a SASL response without a prompt.
    fn go_on_with_auth(&mut self, line: &[u8], unknown: bool) {
        if !self.auth_goes_on || !unknown {
            return;
        }
        if let Some(exchange) = self.seen.auth.last_mut() {
            exchange.respond(line.trim_ascii().len());
            self.auth_goes_on = exchange.may_go_on();
            self.events.push_back(SessionEvent::Judge);
        }
    }

    /// CHUNKING was offered (RFC 3030), or the offer is unknown. A server that accepted only HELO has offered
    /// nothing.
    fn chunking_offered(&self) -> bool {
        self.seen.capabilities.as_ref().map_or(!self.seen.helo, |capabilities| capabilities.has("CHUNKING"))
    }

    fn may_be_proxy(&self, byte: u8) -> bool {
        !self.held.is_empty() || byte == PROXY_SIGNATURE[0]
    }

    /// The binary PROXY header of a load balancer (version 2): the signature, four bytes whose last two are the
    /// length of the rest, and the rest. It precedes the dialogue and has no reply (docs/threats.md FP-13).
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
            self.held = SecretBuffer::default();
            self.seen.proxy_header = true;
            // A server that does not support the header reads its signature as lines.
            for _ in 0..3 {
                self.expect(Pending::Uncertain(Fits::Error), Verb::default());
            }
            self.expect(Pending::Uncertain(Fits::Quit), Verb::default());
            match u16::from_be_bytes([high, low]) {
                0 => self.phase = Phase::Commands,
                length => self.phase = Phase::Chunk(u64::from(length)),
            }
        }
    }

    /// Whether TLS without STARTTLS may begin here (docs/threats.md D6): as the first byte of the session, and after
    /// a go-ahead also after cleartext commands. Accepting it elsewhere would let an attacker blind the monitor.
    fn may_begin_tls(&self) -> bool {
        !self.client_spoke
            || ((matches!(self.seen.starttls, Starttls::Granted(_))
                || self.presuming && self.seen.starttls == Starttls::Sent)
                && self.client_lines.partial().is_empty())
    }

    fn auth_response(&mut self, line: &[u8]) {
        let bytes = line.trim_ascii().len();
        self.seen.transcript.push(Side::Client, &format!("[{bytes} bytes]"));
        if let Some(exchange) = self.seen.auth.last_mut() {
            if line.trim_ascii() == b"*" {
                exchange.cancelled = true;
            } else {
                exchange.respond(bytes);
            }
        }
        self.keep_secret(Secret::new(line));
        self.phase = Phase::Hold;
        self.stray = None;
        self.expect(Pending::Auth, Verb::default());
    }
}
