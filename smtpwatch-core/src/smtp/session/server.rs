//! The server's direction of a session: matches each reply to the oldest pending command, and applies its effect.

use super::{Fits, Pending, Phase, Session, SessionEvent, Stray, Waiting};
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
        if self.presuming && self.phase != Phase::Tls {
            return;
        }
        while !input.is_empty() {
            match self.phase {
                Phase::Stopped => return,
                Phase::Tls if self.answers_in_clear(input[0]) => self.leave_tls(),
                Phase::Tls => {
                    self.tls_bytes(Side::Server, input, end);
                    return;
                }
                Phase::Commands | Phase::Hold | Phase::AuthResponse | Phase::Body(_) | Phase::Chunk(_) => {}
            }
            let Some(line) = self.server_lines.take(&mut input) else { return };
            if !self.client_spoke && !self.held.is_empty() && self.seen.greeting.is_some() {
                // The server answers bytes that were buffered as the start of a PROXY header: they were a line.
                self.client_spoke = true;
                self.release(Phase::Commands);
            }
            let reply = self.replies.push(&line);
            self.reply_bytes += line.bytes.len() + if line.bare_lf { 1 } else { 2 };
            // Redacts before cutting, because the cut could split a secret.
            let shown = self.shown(&line.bytes);
            self.seen.transcript.push_with(Side::Server, shown.length(), |text| shown.write(text));
            self.keep(Side::Server, &line, &shown, end.saturating_sub(input.len() as u64));
            if let Some(reply) = reply {
                self.seen.smtp |= (200..600).contains(&reply.code);
                self.reply(&reply);
            }
        }
    }

    /// Redacts a server line, which may quote anything that the client sent.
    fn shown<'a>(&self, line: &'a [u8]) -> Redacted<'a> {
        let code = || line.get(..3).and_then(|code| str::from_utf8(code).ok()?.parse().ok());
        let passed_over =
            |waiting: &&Waiting| matches!(waiting.what, Pending::Uncertain(fits) if !fits.is(code().unwrap_or(0)));
        let waits = self.queue.iter().find(|waiting| !passed_over(waiting));
        let waits = waits.map(|waiting| (waiting.what, waiting.verb.as_str()));
        // Lines after a refused message may quote the message itself.
        if self.quotes_unknown
            || self.unseen_commands
            || matches!(waits, Some((Pending::Other | Pending::Uncertain(_), "")))
        {
            return Redacted::code_alone(line);
        }
        let unknown = matches!(waits, Some((Pending::Other | Pending::Xclient, _)));
        Redacted::reply(line, self.secrets.iter(), unknown)
    }

    fn reply(&mut self, reply: &Reply<'_>) {
        let went_on = std::mem::take(&mut self.ehlo_may_go_on);
        let ehlo_octets = std::mem::take(&mut self.reply_bytes);
        if self.seen.greeting.is_none() && self.seen.doubt.is_none() {
            if reply.code == 0 {
                self.nonstandard_greeting = Some(printable(reply.first()));
                return;
            }
            // The first reply is the greeting, even if the client spoke first (PIPECONNECT, docs/threats.md FP-12).
            let first = reply.first();
            self.seen.greeting = Some(printable(&[format!("{} ", reply.code).as_bytes(), first].concat()));
            self.seen.greeting_name = ehlo::host_name(first);
            // Client bytes before it that are not SMTP were answered elsewhere: a web proxy's CONNECT.
            while self.queue.front().is_some_and(|waiting| waiting.what == Pending::Other) {
                self.queue.pop_front();
            }
            return;
        }
        if let Phase::Body(body) = self.phase {
            self.reply_in_body(body, reply);
            return;
        }
        self.skip_uncertain(reply.code);
        if reply.code == 0 && !self.queue.is_empty() {
            // Some clients skip such a line and wait (Postfix does), others accept it as the reply: the client's next
            // line shows which.
            let lines = self.stray.map_or(0, |stray| stray.lines);
            self.stray = Some(Stray { code: 0, lines: lines.saturating_add(1), held: self.held.len() });
            self.strayed = true;
            return;
        }
        if self.is_late(reply) {
            return;
        }
        if self.is_out_of_step(reply.code) && !self.back_in_step() {
            self.doubt(Doubt::Ambiguous);
            return;
        }
        let Some(Waiting { what, verb, asked, count: _ }) = self.answered() else {
            self.unasked(reply, went_on);
            return;
        };
        if self.queue.is_empty() {
            self.stray = None;
        }
        self.compare_echo(verb.as_str(), reply);
        self.note_refusal(what, reply);
        self.answer(what, asked, reply, ehlo_octets);
    }

    /// Drops pending lines that servers may skip without a reply: each accepts one kind of reply only, and any other
    /// reply answers a later command.
    fn skip_uncertain(&mut self, code: u16) {
        while let Some(Waiting { what: Pending::Uncertain(fits), .. }) = self.queue.front()
            && !fits.is(code)
            && code != 0
        {
            self.queue.pop_front();
        }
    }

    /// Whether a positive reply belongs to a command that a line without a code seemed to answer: the newest command
    /// cannot have it.
    fn is_late(&mut self, reply: &Reply<'_>) -> bool {
        if self.answered_by_stray == 0 || !reply.is_positive() {
            return false;
        }
        let late = match self.queue.front().map(|waiting| waiting.what) {
            Some(Pending::Data) => true,
            Some(Pending::Starttls | Pending::Auth) => reply.code == 250,
            // Either one line of a reply to EHLO, or the reply to an earlier command: the server's offer is unknown.
            Some(Pending::Ehlo) if reply.lines.len() == 1 => {
                self.doubt(Doubt::Ambiguous);
                return true;
            }
            _ => return false,
        };
        self.answered_by_stray -= u32::from(late);
        late
    }

    /// Restores the order of the queue: lines without a code were the replies to all commands before the newest one,
    /// if there are enough such lines.
    fn back_in_step(&mut self) -> bool {
        let before: u32 = self.queue.iter().rev().skip(1).map(|waiting| waiting.count).sum();
        let stray = self.stray.is_some_and(|stray| stray.code == 0 && stray.lines >= before);
        if stray && let Some(newest) = self.queue.pop_back() {
            self.queue.clear();
            self.queue.push_back(newest);
        }
        stray
    }

    /// The client sends a line while the reply to its newest command is pending, and has seen a line that may be that
    /// reply: the client accepted it as the reply. Bytes sent before that line prove nothing.
    pub(super) fn settle_stray(&mut self) {
        let Some(stray) = self.stray.filter(|_| self.phase == Phase::Hold) else { return };
        let fresh = self.held.get(stray.held..).unwrap_or_default();
        let Some(end) = fresh.iter().position(|byte| *byte == b'\n') else { return };
        let is_command = Command::parse(fresh[..end].trim_ascii_end()) != Command::Other;
        let begins_tls = fresh.first().is_some_and(|byte| is_record_type(*byte));
        let waiting: u32 = self.queue.iter().map(|waiting| waiting.count).sum();
        let Some(Waiting { what, asked, .. }) = self.queue.back().copied().filter(|_| waiting <= stray.lines) else {
            return;
        };
        match what {
            // The hello of a client that does not wait, or that accepted the line as the go-ahead: the server's next
            // bytes decide.
            Pending::Starttls if begins_tls => {}
            // The message, or text of a confused client: none of it may be read as a command.
            Pending::Data if !is_command => self.doubt(Doubt::Ambiguous),
            _ => {
                self.answered_by_stray += if stray.code == 0 { waiting } else { 0 };
                self.queue.clear();
                self.answer(what, asked, &Reply { code: stray.code, lines: Vec::new() }, 0);
                self.stray = None;
            }
        }
    }

    /// Applies the effect of a reply.
    fn answer(&mut self, what: Pending, asked: Timestamp, reply: &Reply<'_>, ehlo_octets: usize) {
        let after = self.now.since(asked);
        match what {
            // The reply fits (see `skip_uncertain`). The server may still have skipped the line, and this is the
            // reply to the next command.
            Pending::Uncertain(_) if !self.queue.is_empty() => {
                let lines = self.stray.map_or(0, |stray| stray.lines);
                self.stray = Some(Stray { code: reply.code, lines: lines.saturating_add(1), held: self.held.len() });
            }
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
                self.seen.ehlo_refusal = Some(self.quoted(reply.first()));
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
                self.release(Phase::Commands);
            }
            Pending::UnofferedBdat { size, .. } if matches!(reply.code, 500..=504) => self.chunk_refused(size),
            Pending::UnofferedBdat { size, last } => {
                if last && reply.is_positive() {
                    self.accepted();
                }
                self.release(if size > 0 { Phase::Chunk(size) } else { Phase::Commands });
            }
            Pending::EndOfData | Pending::Bdat { last: true } if reply.is_positive() => self.accepted(),
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

    /// Whether a reply fits only the newest command while others are pending: then replies cannot be matched to
    /// commands, and continuing would read a message as commands.
    fn is_out_of_step(&self, code: u16) -> bool {
        let newest = self.queue.back().filter(|_| self.queue.len() > 1).map(|waiting| waiting.what);
        code / 100 == 3 && matches!(newest, Some(Pending::Data | Pending::Auth))
    }

    /// Handles a reply that answers no command.
    fn unasked(&mut self, reply: &Reply<'_>, went_on: bool) {
        if went_on && reply.code == 250 && (reply.lines.len() > 1 || ehlo::may_be_keyword(reply.first())) {
            if let Some(capabilities) = &mut self.seen.capabilities {
                self.seen.ehlo_went_on.get_or_insert(capabilities.len());
                capabilities.extend(reply);
            }
            self.ehlo_may_go_on = true;
        } else if self.unseen_commands {
            self.unseen_command(reply);
        } else if matches!(self.phase, Phase::Chunk(_)) || self.chunk_text && matches!(reply.class(), 2 | 3) {
            // The server reads as commands what the client declared as a chunk.
            self.doubt(Doubt::Ambiguous);
        } else if matches!(reply.class(), 2 | 3) && self.seen.doubt.is_none() {
            // After a line without a code, a surplus reply is the actual reply to the command that the line seemed to
            // answer.
            if !self.strayed {
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
                self.release(Phase::AuthResponse);
            }
            235 | 535 => {
                self.unseen_auth(Some(1));
                self.auth_reply(reply);
            }
            300..=399 => self.body_follows(),
            // Possibly the reply to STARTTLS.
            220 => self.doubt(Doubt::Ambiguous),
            _ => {}
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
        self.release(Phase::Body(Body::START));
    }

    /// BDAT was not offered and is refused. Bytes that the client sent before it saw the refusal are the chunk, and
    /// the server reads them as commands: they are message text, and no finding is based on them. If the server
    /// recognises a command in them, its reply is not an error, and replies can no longer be matched to commands.
    fn chunk_refused(&mut self, size: u64) {
        let known = self.stray.map_or(self.held.len(), |stray| stray.held).min(self.held.len());
        let chunk = usize::try_from(size).unwrap_or(usize::MAX).min(known);
        if chunk > 0 {
            self.chunk_text = true;
            // Message text, which the server may quote at any time.
            self.quotes_unknown = true;
            let start = self.client_end.saturating_sub(self.held.len() as u64);
            let lines = self.held[..chunk].iter().filter(|byte| **byte == b'\n').count();
            self.kept[Side::Client as usize].push(start, &vec![BLANK; chunk]);
            self.seen.transcript.push(Side::Client, &format!("[{chunk} bytes]"));
            self.held.remove_front(chunk);
            for _ in 0..lines {
                self.expect(Pending::Uncertain(Fits::Error), Verb::default());
            }
        }
        self.refused_chunk = size - chunk as u64;
        self.release(Phase::Commands);
    }

    /// Compares a quoted verb in a refusal with the verb that was sent: a difference shows an overwritten command
    /// (docs/threats.md FO-12).
    fn compare_echo(&mut self, verb: &str, reply: &Reply<'_>) {
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
        named || self.secrets.iter().any(|secret| !secret.places(word.as_bytes()).is_empty())
    }

    /// Records the text of a refusal, and whether it demands STARTTLS (RFC 3207 §4).
    fn note_refusal(&mut self, what: Pending, reply: &Reply<'_>) {
        if !matches!(reply.class(), 4 | 5) || matches!(what, Pending::Uncertain(_)) {
            return;
        }
        let text = self.quoted(reply.first());
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
        self.unseen_commands |= self.body_end.is_none_or(|end| end < self.client_end);
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

    fn auth_reply(&mut self, reply: &Reply<'_>) {
        // Any 3xx: the response of a client that decides by the first digit must not be read as a command.
        let cancelled = self.seen.auth.last().is_some_and(|exchange| exchange.cancelled);
        if reply.class() == 3 && !cancelled {
            self.release(Phase::AuthResponse);
            return;
        }
        self.eager_response(true);
        let mut layer = false;
        if let Some(exchange) = self.seen.auth.last_mut() {
            exchange.reply = reply.code;
            self.auth_goes_on = !reply.is_positive() && exchange.may_go_on();
            layer =
                reply.is_positive() && matches!(exchange.mechanism.as_str(), "GSSAPI" | "DIGEST-MD5" | "GSS-SPNEGO");
        }
        self.events.push_back(SessionEvent::Judge);
        if layer {
            // A security layer may begin here (RFC 4954 §4); bytes inside it are not commands.
            self.stop();
        } else {
            self.release(Phase::Commands);
        }
    }

    /// An eager client sent its SASL response after an AUTH that is then refused: the response has crossed the wire
    /// anyway. A server that `answered` AUTH reads it as a command.
    pub(super) fn eager_response(&mut self, answered: bool) {
        // User name and password, for the mechanism with the most responses.
        for _ in 0..2 {
            let Some(end) = self.held.iter().position(|&byte| byte == b'\n') else { return };
            let start = self.client_end.saturating_sub(self.held.len() as u64);
            let blank = |byte: &u8| if byte.is_ascii_whitespace() { *byte } else { BLANK };
            let blanked: Vec<u8> = self.held[..=end].iter().map(blank).collect();
            let line = self.held[..end].trim_ascii();
            let (true, Some(exchange)) = (is_response(line), self.seen.auth.last_mut()) else { return };
            exchange.respond(line.len());
            let secret = Secret::new(line);
            let shown = format!("[{} bytes]", line.len());
            self.seen.transcript.push(Side::Client, &shown);
            self.held.remove_front(end + 1);
            if let Some(stray) = &mut self.stray {
                stray.held = stray.held.saturating_sub(end + 1);
            }
            self.kept[Side::Client as usize].push(start, &blanked);
            self.keep_secret(secret);
            if answered {
                self.expect(Pending::Uncertain(Fits::Error), Verb::default());
            }
        }
    }
}
