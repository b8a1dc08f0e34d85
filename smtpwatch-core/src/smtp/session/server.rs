//! What the server says: replies, each to the command that has waited longest, and what they decide.

use super::{Pending, Phase, Session, SessionEvent, Waiting};
use crate::{
    Side,
    exhibit::BLANK,
    smtp::{
        auth::{AuthExchange, Mechanism},
        body::Body,
        command::is_response,
        echo,
        ehlo::{self, Capabilities},
        observation::{Doubt, Rewritten},
        reply::Reply,
        secret::Secret,
        shown::Shown,
        transcript::printable,
    },
};

impl Session {
    /// `end` is the stream offset behind `input`.
    pub(super) fn server(&mut self, mut input: &[u8], end: u64) {
        if self.presuming && self.phase != Phase::Tls {
            return;
        }
        while !input.is_empty() {
            match self.phase {
                Phase::Stopped => return,
                Phase::Tls if self.answers_in_clear(input[0]) => self.leave_tls(),
                Phase::Tls => {
                    self.tls_octets(Side::Server, input, end);
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
            let shown = self.shown(&line.bytes);
            self.seen.transcript.push(Side::Server, &shown.text());
            self.keep(Side::Server, &line, &shown, end.saturating_sub(input.len() as u64));
            if let Some(reply) = reply {
                self.seen.smtp |= (200..600).contains(&reply.code);
                self.reply(&reply);
            }
        }
    }

    /// A line of the server as the transcript shows it. It may quote anything that the client sent.
    fn shown<'a>(&self, line: &'a [u8]) -> Shown<'a> {
        let waits = self.queue.front().map(|waiting| (waiting.what, waiting.verb.as_str()));
        // Lines behind a refused message may be the message itself.
        if self.quotes_unknown || self.unseen_commands || waits == Some((Pending::Other, "")) {
            return Shown::code_alone(line);
        }
        let unknown = matches!(waits, Some((Pending::Other | Pending::Xclient, _)));
        Shown::reply(line, self.secrets.iter(), unknown)
    }

    fn reply(&mut self, reply: &Reply) {
        let went_on = std::mem::take(&mut self.ehlo_may_go_on);
        let ehlo_octets = std::mem::take(&mut self.reply_octets);
        if self.seen.greeting.is_none() && self.seen.doubt.is_none() {
            if reply.code == 0 {
                self.odd_greeting = Some(printable(reply.first()));
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
        self.compare_echo(verb.as_str(), reply);
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
                self.seen.ehlo_refusal = Some(self.quoted(reply.first()));
            }
            Pending::Helo => self.seen.helo |= reply.is_positive(),
            Pending::Starttls => {
                self.seen.starttls_after = Some(after);
                self.starttls_reply(reply);
            }
            Pending::Auth => self.auth_reply(reply),
            Pending::Data if reply.code == 354 => self.body_follows(),
            Pending::Data => {
                self.data_refused = true;
                self.release(Phase::Commands);
            }
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
            // Only a client that the server trusts may speak for another one; what any client asks for is nothing.
            Pending::Xclient if reply.is_positive() => self.seen.xclient_granted = true,
            Pending::EndOfData | Pending::Bdat { .. } | Pending::Turn | Pending::Xclient | Pending::Other => {}
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
                self.seen.ehlo_went_on.get_or_insert(capabilities.len());
                capabilities.extend(reply);
            }
            self.ehlo_may_go_on = true;
        } else if self.unseen_commands {
            self.unseen_command(reply);
        } else if matches!(self.phase, Phase::Chunk(_)) {
            // The server reads as commands what it was told to be a chunk.
            self.doubt(Doubt::Ambiguous);
        } else if matches!(reply.class(), 2 | 3) && self.seen.doubt.is_none() {
            self.seen.unsolicited.get_or_insert(reply.code);
            if reply.code == 354 && self.data_refused {
                // The reply to a DATA that had another one's: to go on would be to read a message as commands.
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
        self.begin_auth(AuthExchange::new(&Mechanism::parse(b""), initial, false));
    }

    fn body_follows(&mut self) {
        self.data_refused = false;
        self.seen.transcript.push(Side::Client, "[message]");
        self.events.push_back(SessionEvent::BodyFollows);
        // Of the message before, or already of this one.
        self.body_end = self.body_end.filter(|end| *end > self.client_end);
        self.release(Phase::Body(Body::START));
    }

    /// A refusal that quotes a verb which was not sent: it was overwritten on the way (THREATS FO-12).
    fn compare_echo(&mut self, verb: &str, reply: &Reply) {
        if reply.class() == 5
            && let Some(arrived) = reply.lines.iter().find_map(|line| echo::rewritten(verb, &line.text))
        {
            self.seen.rewritten.get_or_insert_with(|| Box::new(Rewritten { sent: verb.to_owned(), arrived }));
        }
    }

    /// A reply while the end of the body has not been seen: the gate leaves bodies out, so it is the reply to the message. Only
    /// a refusal may also have come in the middle of it; then the client goes on with the body until the next reply.
    fn reply_in_body(&mut self, body: Body, reply: &Reply) {
        // What stands behind the end of a message is seen, unless the end itself was not.
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
            let start = self.client_end.saturating_sub(self.held.len() as u64);
            let blank = |octet: &u8| if octet.is_ascii_whitespace() { *octet } else { BLANK };
            let blanked: Vec<u8> = self.held[..=end].iter().map(blank).collect();
            let line = self.held[..end].trim_ascii();
            let (true, Some(exchange)) = (is_response(line), self.seen.auth.last_mut()) else { return };
            exchange.respond(line.len());
            let secret = Secret::new(line);
            let shown = format!("[{} octets]", line.len());
            self.seen.transcript.push(Side::Client, &shown);
            self.held.remove_front(end + 1);
            self.kept[Side::Client as usize].push(start, &blanked);
            self.keep_secret(secret);
        }
    }
}
