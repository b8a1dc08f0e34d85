//! The server's direction of a session: matches each reply to the oldest pending command, and applies its effect.

use super::{
    Oddity, Phase, Session, SessionEvent,
    pairing::{ExpectedReply, Pending, Waiting},
};
use crate::{
    Side, Timestamp,
    evidence::BLANK,
    smtp::{
        auth::{AuthExchange, Mechanism},
        body::Body,
        command::{Command, is_response},
        ehlo::{self, Capabilities},
        observation::{Doubt, REFUSALS, Rewritten},
        quoted_command,
        redaction::Redacted,
        reply::Reply,
        secret::Secret,
        tls::is_record_type,
        transcript::printable,
        verb::Verb,
    },
};

impl Session {
    /// Processes server bytes; `end` is the stream offset after `input`.
    pub(super) fn server(&mut self, mut input: &[u8], end: u64) {
        if self.infers_replies && !matches!(self.phase, Phase::Tls(_)) {
            return;
        }
        while let Some(&first) = input.first() {
            match self.phase {
                Phase::Stopped => return,
                Phase::Tls(_) if self.server_continues_in_cleartext(first) => self.leave_tls(),
                Phase::Tls(_) => {
                    self.tls_bytes(Side::Server, input, end);
                    return;
                }
                Phase::Opening { .. }
                | Phase::ProxyHeader { .. }
                | Phase::Commands
                | Phase::AwaitingReply { .. }
                | Phase::AuthResponse
                | Phase::Body(_)
                | Phase::Chunk { .. } => {}
            }
            let Some(line) = self.server_lines.take(&mut input) else { return };
            if let Phase::Opening { header } = &self.phase
                && !header.is_empty()
                && self.seen.greeting.is_some()
            {
                // The server answers bytes that were buffered as the start of a PROXY header: they were a line.
                self.enter(Phase::Commands);
            }
            let reply = self.replies.push(&line);
            self.reply_bytes += line.bytes.len() + if line.bare_lf { 1 } else { 2 };
            // Redacts before cutting, because the cut could split a secret.
            let shown = self.redacted(&line.bytes);
            self.seen.transcript.push_with(Side::Server, shown.length(), |text| shown.write(text));
            self.retain(Side::Server, &line, &shown, end.saturating_sub(input.len() as u64));
            if let Some(reply) = reply {
                self.seen.smtp |= (200..600).contains(&reply.code);
                self.reply(&reply);
            }
        }
    }

    /// Redacts a server line, which may quote anything that the client sent.
    fn redacted<'a>(&self, line: &'a [u8]) -> Redacted<'a> {
        let code = line.get(..3).and_then(|code| str::from_utf8(code).ok()?.parse().ok()).unwrap_or(0);
        let answers = self.pairing.answered_by(code).map(|waiting| (waiting.what, waiting.verb.as_str()));
        // Lines after a refused message may quote the message itself.
        if self.quotable.is_incomplete()
            || self.pairing.unseen_commands
            || matches!(answers, Some((Pending::Other | Pending::Uncertain(_), "")))
        {
            return Redacted::code_alone(line);
        }
        self.quotable.redact(line, matches!(answers, Some((Pending::Other | Pending::Xclient, _))))
    }

    fn reply(&mut self, reply: &Reply<'_>) {
        let continues_ehlo = std::mem::take(&mut self.pairing.ehlo_reply_open);
        let length = std::mem::take(&mut self.reply_bytes);
        if self.seen.greeting.is_none() && self.seen.doubt.is_none() {
            self.greeting(reply);
            return;
        }
        if let Phase::Body(body) = self.phase {
            self.reply_in_body(body, reply);
            return;
        }
        if self.pairing.skip_uncertain(reply.code) {
            self.oddities.note(Oddity::SkippedLine);
        }
        if reply.code == 0 && !self.pairing.is_empty() {
            // Some clients skip such a line and wait (Postfix does), others accept it as the reply: the client's next
            // line shows which.
            self.oddities.note(Oddity::LineWithoutCode);
            self.pairing.note_tentative(0, self.phase.buffered().len());
            self.pairing.unparsed_line_seen = true;
            return;
        }
        if self.is_late(reply) {
            self.oddities.note(Oddity::LateReply);
            return;
        }
        if self.pairing.is_out_of_step(reply.code) {
            if !self.pairing.resynchronise() {
                self.doubt(Doubt::Ambiguous);
                return;
            }
            self.oddities.note(Oddity::Resynchronised);
        }
        let Some(Waiting { what, verb, sent_at, .. }) = self.pairing.answered() else {
            self.unsolicited(reply, continues_ehlo);
            return;
        };
        if self.pairing.is_empty() {
            self.pairing.tentative = None;
        }
        self.compare_quoted_verb(verb.as_str(), reply);
        self.note_refusal(what, reply);
        self.answer(what, sent_at, reply, length);
    }

    /// The first reply is the greeting, even if the client spoke first (PIPECONNECT, docs/threats.md FP-12).
    fn greeting(&mut self, reply: &Reply<'_>) {
        let first = reply.first();
        if reply.code == 0 {
            self.oddities.note(Oddity::GreetingWithoutCode);
            self.nonstandard_greeting = Some(printable(first));
            return;
        }
        self.seen.greeting = Some(printable(&[format!("{} ", reply.code).as_bytes(), first].concat()));
        self.seen.greeting_name = ehlo::host_name(first);
        // Client bytes before it that are not SMTP were answered elsewhere: a web proxy's CONNECT.
        if self.pairing.skip_other() {
            self.oddities.note(Oddity::CommandsBeforeGreeting);
        }
    }

    /// Whether a positive reply belongs to a command that a line without a code seemed to answer: the newest command
    /// cannot have it.
    fn is_late(&mut self, reply: &Reply<'_>) -> bool {
        if self.pairing.answered_by_unparsed_line == 0 || !reply.is_positive() {
            return false;
        }
        let late = match self.pairing.oldest() {
            Some(Pending::Data) => true,
            Some(Pending::Starttls | Pending::Auth) => reply.code == 250,
            // Either one line of a reply to EHLO, or the reply to an earlier command: the server's offer is unknown.
            Some(Pending::Ehlo) if reply.lines.len() == 1 => {
                self.doubt(Doubt::Ambiguous);
                return true;
            }
            Some(
                Pending::Ehlo
                | Pending::Uncertain(_)
                | Pending::Helo
                | Pending::EndOfData
                | Pending::Bdat { .. }
                | Pending::UnofferedBdat { .. }
                | Pending::Turn
                | Pending::Xclient
                | Pending::Other,
            )
            | None => false,
        };
        self.pairing.answered_by_unparsed_line -= u32::from(late);
        late
    }

    /// The client sends a line while the reply to its newest command is pending, and has seen a line that may be that
    /// reply: the client accepted it as the reply. Bytes sent before that line prove nothing.
    pub(super) fn resolve_buffered(&mut self) {
        let (Phase::AwaitingReply { buffered }, Some(tentative)) = (&self.phase, self.pairing.tentative) else {
            return;
        };
        let later = buffered.get(tentative.buffered..).unwrap_or_default();
        let Some(end) = later.iter().position(|byte| *byte == b'\n') else { return };
        let is_command = Command::parse(later[..end].trim_ascii_end()) != Command::Other;
        let begins_tls = later.first().is_some_and(|byte| is_record_type(*byte));
        let pending = self.pairing.pending();
        let Some(Waiting { what, sent_at, .. }) = self.pairing.newest().filter(|_| pending <= tentative.lines) else {
            return;
        };
        match what {
            // The hello of a client that does not wait, or that accepted the line as the go-ahead: the server's next
            // bytes decide.
            Pending::Starttls if begins_tls => {}
            // The message, or text of a confused client: none of it may be read as a command.
            Pending::Data if !is_command => self.doubt(Doubt::Ambiguous),
            Pending::Starttls
            | Pending::Data
            | Pending::Uncertain(_)
            | Pending::Ehlo
            | Pending::Helo
            | Pending::Auth
            | Pending::EndOfData
            | Pending::Bdat { .. }
            | Pending::UnofferedBdat { .. }
            | Pending::Turn
            | Pending::Xclient
            | Pending::Other => {
                self.pairing.answered_by_unparsed_line += if tentative.code == 0 { pending } else { 0 };
                self.pairing.clear();
                self.answer(what, sent_at, &Reply { code: tentative.code, lines: Vec::new() }, 0);
                self.pairing.tentative = None;
            }
        }
    }

    /// Applies the effect of a reply of `length` bytes to a command that was sent at `sent_at`.
    fn answer(&mut self, what: Pending, sent_at: Timestamp, reply: &Reply<'_>, length: usize) {
        let after = self.now.since(sent_at);
        match what {
            // The reply matches (see `skip_uncertain`). The server may still have skipped the line, and this is the
            // reply to the next command.
            Pending::Uncertain(_) if !self.pairing.is_empty() => {
                self.pairing.note_tentative(reply.code, self.phase.buffered().len());
            }
            Pending::Ehlo if reply.is_positive() => {
                self.seen.ehlo_after = Some(after);
                self.seen.capabilities = Some(Capabilities::parse(reply));
                self.seen.ehlo_octets = length;
                self.seen.ehlo_rejected = None;
                self.seen.ehlo_went_on = None;
                self.pairing.ehlo_reply_open = true;
            }
            Pending::Ehlo => {
                self.seen.ehlo_rejected = Some(reply.code);
                self.seen.ehlo_refusal = Some(self.quotable.quoted(reply.first()));
            }
            Pending::Helo => self.seen.helo |= reply.is_positive(),
            Pending::Starttls => {
                self.seen.starttls_after = Some(after);
                self.starttls_reply(reply);
            }
            Pending::Auth => self.auth_reply(reply),
            // Any 3yz: clients decide by the first digit (Postfix does), and the message follows.
            Pending::Data if reply.class() == 3 => self.body_follows(),
            Pending::Data => {
                self.data_refused = true;
                self.enter(Phase::Commands);
            }
            Pending::UnofferedBdat { size, .. } if matches!(reply.code, 500..=504) => self.chunk_refused(size),
            Pending::UnofferedBdat { size, last } => {
                if last && reply.is_positive() {
                    self.message_accepted();
                }
                self.enter(if size > 0 { Phase::Chunk { left: size } } else { Phase::Commands });
            }
            Pending::EndOfData | Pending::Bdat { last: true } if reply.is_positive() => self.message_accepted(),
            // The roles are swapped: the server sends commands, and the client replies (docs/threats.md FP-13).
            Pending::Turn if reply.is_positive() => self.doubt(Doubt::Ambiguous),
            // Only the grant counts: the server grants XCLIENT to clients that it trusts, but any client can request
            // it.
            Pending::Xclient if reply.is_positive() => self.seen.xclient_granted = true,
            Pending::EndOfData
            | Pending::Bdat { .. }
            | Pending::Turn
            | Pending::Xclient
            | Pending::Uncertain(_)
            | Pending::Other => {}
        }
    }

    /// Handles a reply that answers no command. `continues_ehlo`: the reply before it answered EHLO.
    fn unsolicited(&mut self, reply: &Reply<'_>, continues_ehlo: bool) {
        let accepts = matches!(reply.class(), 2 | 3);
        if continues_ehlo && reply.code == 250 && (reply.lines.len() > 1 || ehlo::may_be_keyword(reply.first())) {
            if let Some(capabilities) = &mut self.seen.capabilities {
                self.seen.ehlo_went_on.get_or_insert(capabilities.len());
                capabilities.extend(reply);
            }
            self.pairing.ehlo_reply_open = true;
        } else if self.pairing.unseen_commands {
            self.unseen_command(reply);
        } else if matches!(self.phase, Phase::ProxyHeader { .. } | Phase::Chunk { .. })
            || self.refused_chunk.has_text() && accepts
        {
            // The server reads as commands what the client declared as a chunk.
            self.doubt(Doubt::Ambiguous);
        } else if !accepts {
            let oddity = if reply.code == 0 { Oddity::UnsolicitedLineWithoutCode } else { Oddity::UnsolicitedError };
            self.oddities.note(oddity);
        } else if self.seen.doubt.is_some() {
            self.oddities.note(Oddity::UnsolicitedInDoubt);
        } else {
            if self.pairing.unparsed_line_seen {
                // The actual reply to a command that a line without a code seemed to answer.
                self.oddities.note(Oddity::SurplusReply);
            } else {
                self.seen.unsolicited.get_or_insert(reply.code);
            }
            if reply.class() == 3 && self.data_refused {
                // A late 354 to a DATA that already had another reply: continuing would read a message as commands.
                self.events.push_back(SessionEvent::Judge);
                self.doubt(Doubt::Ambiguous);
            }
        }
    }

    /// Handles the reply to a command that followed a message in the same segment and was left out with it. Some
    /// replies identify the command (RFC 5321 §4.3.2, RFC 4954 §6).
    fn unseen_command(&mut self, reply: &Reply<'_>) {
        match reply.code {
            334 => {
                self.unseen_auth(None);
                self.enter(Phase::AuthResponse);
            }
            235 | 535 => {
                self.unseen_auth(Some(1));
                self.auth_reply(reply);
            }
            300..=399 => self.body_follows(),
            // Possibly the reply to STARTTLS.
            220 => self.doubt(Doubt::Ambiguous),
            _ => self.oddities.note(Oddity::UnseenCommand),
        }
    }

    fn unseen_auth(&mut self, initial: Option<usize>) {
        self.begin_auth(AuthExchange::new(&Mechanism::parse(b""), initial, false));
    }

    fn body_follows(&mut self) {
        self.data_refused = false;
        self.seen.transcript.push(Side::Client, "[message]");
        self.events.push_back(SessionEvent::BodyFollows);
        // The known end may belong to the previous message, or to this one.
        self.body_end = self.body_end.filter(|end| *end > self.client_end);
        self.enter(Phase::Body(Body::START));
    }

    /// BDAT was not offered and is refused. Bytes that the client sent before it saw the refusal are the chunk, and
    /// the server reads them as commands: they are message text, and no finding is based on them. If the server
    /// recognises a command in them, its reply is not an error, and replies can no longer be matched to commands.
    fn chunk_refused(&mut self, size: u64) {
        let buffered = self.phase.buffered();
        let sent_before = self.pairing.sent_before_tentative(buffered.len());
        let chunk = usize::try_from(size).unwrap_or(usize::MAX).min(sent_before);
        if chunk > 0 {
            // Message text, which the server may quote at any time.
            self.quotable.set_incomplete();
            let start = self.client_end.saturating_sub(buffered.len() as u64);
            let lines = buffered[..chunk].iter().filter(|byte| **byte == b'\n').count();
            self.retained[Side::Client as usize].push(start, &vec![BLANK; chunk]);
            self.seen.transcript.push(Side::Client, &format!("[{chunk} bytes]"));
            if let Some(buffered) = self.phase.buffer() {
                buffered.remove_front(chunk);
            }
            for _ in 0..lines {
                self.expect(Pending::Uncertain(ExpectedReply::Error), Verb::default());
            }
        }
        self.refused_chunk.refuse(size - chunk as u64, chunk > 0);
        self.enter(Phase::Commands);
    }

    /// Compares a quoted verb in a refusal with the verb that was sent: a difference shows an overwritten command
    /// (docs/threats.md FO-12).
    fn compare_quoted_verb(&mut self, verb: &str, reply: &Reply<'_>) {
        // Reply codes for an unknown command (RFC 5321 §4.2.4). Any other refusal quotes arguments.
        if matches!(reply.code, 500 | 502)
            && let Some(arrived) = reply.lines.iter().find_map(|line| quoted_command::rewritten(verb, &line.text))
            && !self.is_argument(&arrived)
        {
            self.seen.rewritten.get_or_insert_with(|| Box::new(Rewritten { sent: verb.to_owned(), arrived }));
        }
    }

    /// Whether the client sent this word itself, as an argument.
    fn is_argument(&self, word: &str) -> bool {
        let named = self.seen.client_name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(word));
        named || self.quotable.contains(word.as_bytes())
    }

    /// Records the text of a refusal, and whether it demands STARTTLS (RFC 3207 §4).
    fn note_refusal(&mut self, what: Pending, reply: &Reply<'_>) {
        if !matches!(reply.class(), 4 | 5) || matches!(what, Pending::Uncertain(_)) {
            return;
        }
        let text = self.quotable.quoted(reply.first());
        let lower = text.to_ascii_lowercase();
        let demands = lower.contains("starttls") && ["must", "first", "requir"].iter().any(|word| lower.contains(word));
        if demands && !matches!(what, Pending::Ehlo | Pending::Helo | Pending::Starttls) {
            self.seen.starttls_demanded.get_or_insert(reply.code);
        }
        if self.seen.refusals.len() < REFUSALS {
            self.seen.refusals.push(text);
        }
    }

    /// A reply while the end of the body has not been seen: the gate leaves bodies out, so it is the reply to the
    /// message. Only a refusal may also arrive in the middle of the message; then the client continues the body until
    /// the next reply.
    fn reply_in_body(&mut self, body: Body, reply: &Reply<'_>) {
        // Commands after the end of a message are seen, unless the end itself was not.
        self.pairing.unseen_commands |= self.body_end.is_none_or(|end| end < self.client_end);
        if reply.is_positive() && !body.refused {
            self.phase = Phase::Commands;
            self.message_accepted();
        } else if body.refused || body.hole {
            self.phase = Phase::Commands;
        } else {
            self.oddities.note(Oddity::RefusalWithinMessage);
            self.phase = Phase::Body(Body { refused: true, ..body });
        }
    }

    fn message_accepted(&mut self) {
        self.seen.messages = self.seen.messages.saturating_add(1);
        self.events.push_back(SessionEvent::Judge);
    }

    fn auth_reply(&mut self, reply: &Reply<'_>) {
        // Any 3xx: the response of a client that decides by the first digit must not be read as a command.
        let cancelled = self.seen.auth.last().is_some_and(|exchange| exchange.cancelled);
        if reply.class() == 3 && !cancelled {
            self.enter(Phase::AuthResponse);
            return;
        }
        self.early_auth_response(true);
        let mut layer = false;
        if let Some(exchange) = self.seen.auth.last_mut() {
            exchange.reply = reply.code;
            self.unprompted_response = !reply.is_positive() && exchange.may_continue();
            layer =
                reply.is_positive() && matches!(exchange.mechanism.as_str(), "GSSAPI" | "DIGEST-MD5" | "GSS-SPNEGO");
        }
        self.events.push_back(SessionEvent::Judge);
        if layer {
            // A security layer may begin here (RFC 4954 §4); bytes inside it are not commands.
            self.stop();
        } else {
            self.enter(Phase::Commands);
        }
    }

    /// An eager client sent its SASL response after an AUTH that is then refused: the response has crossed the wire
    /// anyway. A server that `answered` AUTH reads it as a command.
    pub(super) fn early_auth_response(&mut self, answered: bool) {
        // User name and password, for the mechanism with the most responses.
        for _ in 0..2 {
            let buffered = self.phase.buffered();
            let Some(end) = buffered.iter().position(|&byte| byte == b'\n') else { return };
            let start = self.client_end.saturating_sub(buffered.len() as u64);
            let blank = |byte: &u8| if byte.is_ascii_whitespace() { *byte } else { BLANK };
            let blanked: Vec<u8> = buffered[..=end].iter().map(blank).collect();
            let line = buffered[..end].trim_ascii();
            let (true, Some(exchange)) = (is_response(line), self.seen.auth.last_mut()) else { return };
            exchange.respond(line.len());
            self.quotable.push(Secret::new(line));
            self.seen.transcript.push(Side::Client, &format!("[{} bytes]", line.len()));
            if let Some(buffered) = self.phase.buffer() {
                buffered.remove_front(end + 1);
            }
            self.pairing.buffer_shortened(end + 1);
            self.retained[Side::Client as usize].push(start, &blanked);
            if answered {
                self.expect(Pending::Uncertain(ExpectedReply::Error), Verb::default());
            }
        }
    }
}
