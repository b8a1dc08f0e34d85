//! The boundary between SMTP and TLS: the reply to STARTTLS, cleartext where TLS should begin, and sessions that
//! leave the TLS phase because the bytes are not TLS.

use super::{Phase, Session, SessionEvent};
use crate::{
    Side, limits,
    secret_buffer::SecretBuffer,
    smtp::{
        auth::AuthExchange,
        command::{Command, is_blank, is_response},
        observation::{Injection, Starttls},
        redaction::Redacted,
        reply::Reply,
        tls::{CONTENT_TYPES, is_record_type},
    },
};

/// State of the TLS phase beside what [`crate::smtp::TlsPhase`] reads.
#[derive(Debug)]
pub(super) struct TlsBoundary {
    /// Without STARTTLS: the client's bytes until the server's first TLS record, at most
    /// [`limits::REASSEMBLY_BYTES`]. The session may be a dialogue whose first bytes look like TLS.
    pub(super) unrequested: Option<SecretBuffer>,
    /// Number of cleartext bytes of the server after the go-ahead that are already in the transcript.
    transcribed: usize,
}

impl Session {
    pub(super) fn starttls_reply(&mut self, reply: &Reply<'_>) {
        self.seen.starttls_reply = Some(self.quotable.quoted(reply.first()));
        // The offer may arrive after the command, if the client does not wait (FP-12).
        self.seen.starttls_was_offered |= self.seen.offers_starttls();
        // The buffered bytes were sent before the client can have seen the reply. An early ClientHello is not an
        // injection. Bytes after an unparsed line are excluded: the client may have read that line as the reply.
        let buffered = self.phase.take_buffered();
        let early = &buffered[..self.pairing.sent_before_tentative(buffered.len())];
        if early.first().is_some_and(|byte| !is_record_type(*byte)) {
            self.injected(early, true, reply.is_positive());
        }
        if reply.is_positive() {
            self.seen.starttls = Starttls::Granted(reply.code);
            self.granted_at = Some(self.now);
            self.enter_tls();
            self.client(&buffered, self.client_end);
        } else {
            self.seen.starttls = Starttls::Refused(reply.code);
            self.read_as_commands(&buffered);
        }
        self.events.push_back(SessionEvent::Judge);
    }

    pub(super) fn enter_tls(&mut self) {
        let unrequested = (self.seen.starttls == Starttls::NotSent).then(SecretBuffer::default);
        self.phase = Phase::Tls(TlsBoundary { unrequested, transcribed: 0 });
        self.seen.tls = Some(Box::default());
    }

    /// The server continues in cleartext, either in response to client bytes that are not TLS, or after TLS that was
    /// not requested.
    pub(super) fn server_continues_in_cleartext(&self, first: u8) -> bool {
        let Some(tls) = self.seen.tls.as_deref().filter(|tls| !tls.has_hole(Side::Server)) else { return false };
        let refused = self.seen.starttls == Starttls::NotSent || !tls.before(Side::Client).is_empty();
        refused
            && !CONTENT_TYPES.contains(&first)
            && !tls.is_tls(Side::Server)
            && (self.seen.starttls == Starttls::NotSent || !tls.is_tls(Side::Client))
    }

    /// Ends the TLS phase; returns the client's bytes that were not TLS.
    pub(super) fn take_before_tls(&mut self) -> SecretBuffer {
        self.seen.tls.take().map(|mut tls| tls.take_before(Side::Client)).unwrap_or_default()
    }

    /// Leaves the TLS phase: the client's bytes are read as commands instead.
    pub(super) fn leave_tls(&mut self) {
        let before = self.take_before_tls();
        let before = if self.seen.starttls == Starttls::NotSent { self.phase.take_buffered() } else { before };
        self.seen.clear_after_go_ahead = self.seen.starttls != Starttls::NotSent;
        self.read_as_commands(&before);
    }

    /// The client received the go-ahead and began like TLS, but continues with commands: either where a record should
    /// begin, or after the server replied in cleartext (C6).
    pub(super) fn client_continues_in_cleartext(&self, bytes: &[u8]) -> bool {
        let line = bytes.iter().position(|&byte| byte == b'\n').map_or(&[][..], |end| &bytes[..end]);
        self.seen.tls.as_ref().is_some_and(|tls| tls.is_tls(Side::Client) && !tls.is_established())
            && matches!(self.seen.starttls, Starttls::Granted(_))
            && Command::parse(line.trim_ascii_end()) != Command::Other
    }

    /// Since the client began with TLS, the server has sent cleartext and nothing else.
    pub(super) fn server_answered_in_cleartext(&self) -> bool {
        self.seen.tls.as_ref().is_some_and(|tls| !tls.is_tls(Side::Server) && !is_blank(tls.before(Side::Server)))
    }

    /// The TLS phase ended without TLS: `bytes` are commands, and the dialogue continues in cleartext.
    pub(super) fn abandon_tls(&mut self, bytes: &[u8]) {
        self.seen.tls = None;
        self.seen.clear_after_go_ahead = true;
        self.read_as_commands(bytes);
    }

    /// Processes bytes of the TLS phase; `end` is the stream offset after `bytes`.
    pub(super) fn tls_bytes(&mut self, from: Side, bytes: &[u8], end: u64) {
        let Some(tls) = &mut self.seen.tls else { return };
        let began = tls.is_tls(Side::Client);
        let rest = tls.push(from, end.saturating_sub(bytes.len() as u64), bytes);
        for (place, shown) in tls.take_shown() {
            self.retained[from as usize].push(place, &shown);
        }
        if from == Side::Client && self.client_continues_in_cleartext(rest) {
            self.abandon_tls(rest);
            return;
        }
        let Some(tls) = &mut self.seen.tls else { return };
        if let Phase::Tls(TlsBoundary { unrequested: Some(unrequested), .. }) = &mut self.phase {
            // Until the server responds with TLS of its own, unrequested TLS may be a dialogue whose first bytes look
            // like TLS.
            if tls.is_tls(Side::Server) {
                *unrequested = SecretBuffer::default();
            } else if from == Side::Client {
                let room = limits::REASSEMBLY_BYTES.saturating_sub(unrequested.len());
                unrequested.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        }
        // Also after the client's hello, if TLS follows. Without TLS from the server, the server does not support TLS
        // (C6).
        let late = began && self.seen.injected_replies.is_none() && tls.is_tls(Side::Server);
        let is_tls = tls.is_tls(Side::Server);
        if from == Side::Server && !is_blank(tls.before(Side::Server)) {
            self.transcribe_cleartext(is_tls);
        }
        let Some(tls) = &self.seen.tls else { return };
        // Blank lines have no meaning, as in the client's direction.
        if from == Side::Server && (!began || late) && !is_blank(tls.before(Side::Server)) {
            let known = self.seen.injected_replies.as_ref().map_or(0, |injection| injection.octets);
            // A line is evaluated once it is complete.
            if known == tls.before(Side::Server).len() || !is_tls && !bytes.contains(&b'\n') {
                return;
            }
            let lines = tls.before(Side::Server).split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
            let shown = lines.filter(|line| !is_blank(line)).map(|line| self.quotable.redact_unpaired(line).text());
            let injection = Injection::of_replies(tls.before(Side::Server), shown);
            if self.seen.injected_replies.is_none() {
                self.events.push_back(SessionEvent::Judge);
            }
            self.seen.injected_replies = Some(Box::new(injection));
        } else if !began && tls.is_tls(Side::Client) {
            let before = SecretBuffer::from(tls.before(Side::Client));
            if !before.is_empty() && self.seen.injected_commands.is_none() {
                self.injected(&before, false, true);
            }
            self.seen.transcript.push(Side::Client, "[TLS]");
            self.events.push_back(SessionEvent::Judge);
        }
    }

    /// Adds the server's cleartext after the go-ahead to the transcript, line by line; if `ended`, the last line
    /// counts as complete.
    fn transcribe_cleartext(&mut self, ended: bool) {
        if let Some(granted_at) = self.granted_at {
            self.seen.clear_after.get_or_insert(self.now.since(granted_at));
        }
        let (Phase::Tls(boundary), Some(tls)) = (&mut self.phase, self.seen.tls.as_deref()) else { return };
        let Some(fresh) = tls.before(Side::Server).get(boundary.transcribed..) else { return };
        let lines = fresh.split_inclusive(|byte| *byte == b'\n').filter(|line| ended || line.ends_with(b"\n"));
        for line in lines {
            boundary.transcribed += line.len();
            if !is_blank(line) {
                let shown = self.quotable.redact_unpaired(line.trim_ascii_end()).text();
                self.seen.transcript.push(Side::Server, &shown);
            }
        }
    }

    /// Redacted cleartext where TLS should begin: evidence of an injection (docs/threats.md E1, E2). A line after
    /// AUTH that is not a command may be a SASL response, and any line after DATA may be message text.
    pub(super) fn injections(&self) -> impl Iterator<Item = (Side, u64, Vec<u8>)> {
        let known = |from: Side| self.retained_injections.iter().any(|(known, ..)| *known == from);
        let noted = [(Side::Client, &self.seen.injected_commands), (Side::Server, &self.seen.injected_replies)];
        let noted = noted.into_iter().filter(move |(from, injection)| injection.is_some() && !known(*from));
        let tls = self.seen.tls.as_deref();
        let fresh = noted.filter_map(move |(from, _)| {
            let before = tls.map(|tls| (tls.start(from), tls.before(from)));
            // Excludes bytes that wait for the reply to STARTTLS: they may still be read as commands.
            let (start, bytes) = before.filter(|(_, bytes)| !bytes.is_empty())?;
            let (mut response, mut message) = (false, false);
            let lines = bytes.split_inclusive(|&byte| byte == b'\n').flat_map(|whole| {
                let line = whole.trim_ascii_end();
                let command = Command::parse(line);
                let shown = match (from, &command) {
                    (Side::Server, _) => self.quotable.redact_unpaired(line),
                    (Side::Client, Command::Other) if response => Redacted::nothing(line),
                    (Side::Client, _) if message => Redacted::nothing(line),
                    (Side::Client, command) => Redacted::command(command, line),
                };
                response |= matches!(command, Command::Auth { .. });
                message |= matches!(command, Command::Data | Command::Bdat { .. });
                [shown.bytes().into_owned(), whole[line.len()..].to_vec()].concat()
            });
            Some((from, start, lines.collect()))
        });
        self.retained_injections.iter().cloned().chain(fresh)
    }

    /// Records SASL exchanges in an injection. No server prompts for a response there: a line after AUTH that is not
    /// a command is the response.
    fn injected_auth(&mut self, bytes: &[u8]) {
        let mut open = false;
        for line in bytes.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
            match Command::parse(line) {
                Command::Auth { mechanism, initial } => {
                    self.begin_auth(AuthExchange::new(&mechanism, initial, false));
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

    /// Records client bytes where TLS should begin. After the go-ahead (`granted`) the server may process them as if
    /// TLS had protected them, so a credential among them is recorded (docs/threats.md E3); before it they are read
    /// as commands anyway.
    pub(super) fn injected(&mut self, bytes: &[u8], before_reply: bool, granted: bool) {
        if bytes.trim_ascii().is_empty() {
            return;
        }
        let injection = Injection::of(bytes, before_reply);
        self.seen
            .transcript
            .push(Side::Client, &format!("[{} bytes in cleartext: {}]", injection.octets, injection.verbs.join(", ")));
        if granted {
            self.injected_auth(bytes);
        }
        self.seen.injected_commands = Some(Box::new(injection));
        self.events.push_back(SessionEvent::Judge);
    }
}
