//! The reading of the crate smtp-proto, which parses both the server's and the client's role. This module only decides
//! which of its parsers comes next.

use std::collections::VecDeque;

use smtp_proto::{
    EhloResponse, Error, Request,
    request::receiver::{BdatReceiver, DataReceiver},
    response::parser::ResponseReceiver,
};
use smtpwatch_core::Side;

use crate::{Reading, UNKNOWN};

#[derive(Default)]
struct Reader {
    reading: Reading,
    client: Vec<u8>,
    server: Vec<u8>,
    state: State,
    greeted: bool,
    waiting: VecDeque<Waiting>,
}

#[derive(Default)]
enum State {
    #[default]
    Commands,
    /// The next step depends on the next reply.
    Reply,
    SaslResponse,
    Body(DataReceiver),
    Chunk(BdatReceiver),
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Ehlo,
    Data,
    Auth,
    StartTls,
    Other,
}

/// Reads the bytes of both sides.
pub fn read(stream: &[(Side, Vec<u8>)]) -> Reading {
    let mut reader = Reader::default();
    for (from, bytes) in stream {
        match from {
            Side::Client => reader.client.extend(bytes),
            Side::Server => reader.server.extend(bytes),
        }
        while reader.commands() || reader.reply() {}
    }
    reader.reading
}

/// Reduces a reading to the verbs that the crate knows; it stores known keywords as a set.
pub fn as_far_as_it_tells(reading: &Reading) -> Reading {
    let has = |name: &str| reading.keywords.iter().any(|keyword| keyword == name);
    let known = KEYWORDS.iter().filter(|(_, name)| has(name)).map(|(_, name)| (*name).to_owned());
    let verbs = reading.verbs.iter().map(|verb| if VERBS.contains(&verb.as_str()) { verb.as_str() } else { UNKNOWN });
    Reading { verbs: verbs.map(str::to_owned).collect(), keywords: known.collect(), codes: reading.codes.clone() }
}

impl Reader {
    /// Processes one step of the client's bytes; false if it has to wait for a reply.
    fn commands(&mut self) -> bool {
        if self.client.is_empty() {
            return false;
        }
        let client = std::mem::take(&mut self.client);
        let mut bytes = client.iter();
        if self.reading.verbs.is_empty() && client[0] == 0x16 {
            self.state = State::Reply; // TLS from the first byte: nothing for a parser of SMTP
        }
        let went_on = match &mut self.state {
            State::Reply | State::End => false,
            State::SaslResponse => match line(&client) {
                Some(length) => {
                    bytes = client[length..].iter();
                    self.state = State::Reply;
                    self.waiting.push_back(Waiting::Auth);
                    true
                }
                None => false,
            },
            State::Body(body) => {
                if body.ingest(&mut bytes, &mut Vec::new()) {
                    self.state = State::Commands;
                    self.waiting.push_back(Waiting::Other);
                }
                true
            }
            State::Chunk(chunk) => {
                if chunk.ingest(&mut bytes, &mut Vec::new()) {
                    self.state = State::Commands;
                }
                true
            }
            State::Commands => match line(&client) {
                Some(length) => {
                    bytes = client[length..].iter();
                    self.command(&client[..length]);
                    true
                }
                None => false,
            },
        };
        self.client = bytes.as_slice().to_vec();
        went_on
    }

    fn command(&mut self, line: &[u8]) {
        let request = Request::parse(&mut line.iter());
        let verb = match &request {
            Ok(request) => request.name(),
            // The crate knew the verb and rejects the arguments: a server refuses such a line, a monitor does not.
            Err(Error::SyntaxError { syntax }) => syntax.split(' ').next().unwrap_or_default(),
            Err(_) => UNKNOWN,
        };
        self.reading.verbs.push(verb.to_owned());
        let waiting = match request {
            Err(_) if verb == "EHLO" => Waiting::Ehlo,
            Ok(Request::Ehlo { .. } | Request::Lhlo { .. }) => Waiting::Ehlo,
            Ok(Request::Data) => Waiting::Data,
            Ok(Request::Auth { .. }) => Waiting::Auth,
            Ok(Request::StartTls) => Waiting::StartTls,
            Ok(Request::Bdat { chunk_size, is_last }) => {
                if chunk_size > 0 {
                    self.state = State::Chunk(BdatReceiver::new(chunk_size, is_last));
                }
                Waiting::Other
            }
            Ok(_) | Err(_) => Waiting::Other,
        };
        if matches!(waiting, Waiting::Data | Waiting::Auth | Waiting::StartTls) {
            self.state = State::Reply;
        }
        self.waiting.push_back(waiting);
    }

    /// Processes one reply; false if none is complete.
    fn reply(&mut self) -> bool {
        if self.server.is_empty() || matches!(self.state, State::End) {
            return false;
        }
        let server = std::mem::take(&mut self.server);
        let mut bytes = server.iter();
        let reply = match ResponseReceiver::default().parse(&mut bytes) {
            Ok(reply) => reply,
            Err(Error::NeedsMoreData { .. }) => {
                self.server = server;
                return false;
            }
            Err(_) => {
                self.reading.codes.push(0);
                self.state = State::End;
                return false;
            }
        };
        self.reading.codes.push(reply.code());
        let command = if self.greeted { self.waiting.pop_front() } else { None };
        self.greeted = true;
        match command {
            Some(Waiting::Ehlo) if reply.code() == 250 => {
                self.reading.keywords = match EhloResponse::parse(&mut server.iter()) {
                    Ok(response) => names(response.capabilities),
                    Err(error) => vec![format!("{error}")],
                };
            }
            Some(Waiting::Data) if reply.code() == 354 => self.state = State::Body(DataReceiver::new()),
            Some(Waiting::Auth) if reply.code() == 334 => self.state = State::SaslResponse,
            Some(Waiting::StartTls) if reply.code() == 220 => self.state = State::End,
            Some(Waiting::Data | Waiting::Auth | Waiting::StartTls) => self.state = State::Commands,
            Some(Waiting::Ehlo | Waiting::Other) | None => {}
        }
        self.server = bytes.as_slice().to_vec();
        true
    }
}

/// Length of the first line, its LF included.
fn line(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1)
}

/// The crate's set of keywords, in the order of [`KEYWORDS`].
fn names(capabilities: u32) -> Vec<String> {
    KEYWORDS.iter().filter(|(bit, _)| capabilities & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

/// The verbs that the crate knows.
const VERBS: [&str; 18] = [
    "EHLO", "HELO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "AUTH", "NOOP", "VRFY", "EXPN", "HELP", "ETRN", "ATRN",
    "BURL", "STARTTLS", "RSET", "QUIT",
];

/// The keywords that the crate knows.
const KEYWORDS: [(u32, &str); 28] = [
    (smtp_proto::EXT_8BIT_MIME, "8BITMIME"),
    (smtp_proto::EXT_ATRN, "ATRN"),
    (smtp_proto::EXT_AUTH, "AUTH"),
    (smtp_proto::EXT_BINARY_MIME, "BINARYMIME"),
    (smtp_proto::EXT_BURL, "BURL"),
    (smtp_proto::EXT_CHECKPOINT, "CHECKPOINT"),
    (smtp_proto::EXT_CHUNKING, "CHUNKING"),
    (smtp_proto::EXT_CONNEG, "CONNEG"),
    (smtp_proto::EXT_CONPERM, "CONPERM"),
    (smtp_proto::EXT_DELIVER_BY, "DELIVERBY"),
    (smtp_proto::EXT_DSN, "DSN"),
    (smtp_proto::EXT_ENHANCED_STATUS_CODES, "ENHANCEDSTATUSCODES"),
    (smtp_proto::EXT_ETRN, "ETRN"),
    (smtp_proto::EXT_EXPN, "EXPN"),
    (smtp_proto::EXT_FUTURE_RELEASE, "FUTURERELEASE"),
    (smtp_proto::EXT_HELP, "HELP"),
    (smtp_proto::EXT_MT_PRIORITY, "MT-PRIORITY"),
    (smtp_proto::EXT_MTRK, "MTRK"),
    (smtp_proto::EXT_NO_SOLICITING, "NO-SOLICITING"),
    (smtp_proto::EXT_ONEX, "ONEX"),
    (smtp_proto::EXT_PIPELINING, "PIPELINING"),
    (smtp_proto::EXT_REQUIRE_TLS, "REQUIRETLS"),
    (smtp_proto::EXT_RRVS, "RRVS"),
    (smtp_proto::EXT_SIZE, "SIZE"),
    (smtp_proto::EXT_SMTP_UTF8, "SMTPUTF8"),
    (smtp_proto::EXT_START_TLS, "STARTTLS"),
    (smtp_proto::EXT_VERB, "VERB"),
    (smtp_proto::EXT_VRFY, "VRFY"),
];
