//! Builds dialogues for tests: turns lines into segments with sequence and acknowledgment numbers, and plays them to an
//! engine.

use std::net::SocketAddr;

use smtpwatch_core::{
    Engine, Finding, FlowKey, Output, Role, Segment, Settings, Side, TcpFlags, Timestamp,
    engine::{Delivery, GateAction, LossCause, SessionSummary},
    finding::Kind,
    judge::RuleId,
    policy::{history::History, published::LookupRequest, rule::Rule},
    segment::Direction,
};

/// One segment that owns its bytes.
#[derive(Clone, Debug)]
pub struct OwnedSegment {
    pub at: i64,
    pub from: Side,
    pub seq: u32,
    pub ack: u32,
    pub flags: TcpFlags,
    pub payload: Vec<u8>,
    pub ttl: u8,
    pub options: Vec<u8>,
    pub checksum_right: Option<bool>,
    /// Urgent pointer.
    pub urgent: u16,
    /// The packet arrives from outside, whatever its source address.
    pub arrives: bool,
}

/// A connection under construction; each method appends packets.
#[derive(Clone)]
pub struct Dialogue {
    pub flow: FlowKey,
    pub role: Role,
    /// Whether each packet's direction is known, as in a live capture.
    pub directions: bool,
    pub packets: Vec<OwnedSegment>,
    next: [u32; 2],
    at: i64,
}

impl Dialogue {
    /// A connection to `port` after its handshake.
    pub fn new(port: u16) -> Self {
        let mut dialogue = Self::midstream(port);
        let (client, server) = (dialogue.next[0], dialogue.next[1]);
        dialogue.packet(Side::Client, client, 0, TcpFlags::SYN, b"");
        dialogue.packet(Side::Server, server, client.wrapping_add(1), TcpFlags::SYN | TcpFlags::ACK, b"");
        dialogue.next = [client.wrapping_add(1), server.wrapping_add(1)];
        dialogue.pure_ack(Side::Client);
        dialogue
    }

    /// A connection whose start is not captured.
    pub fn midstream(port: u16) -> Self {
        let address = |text: &str| text.parse::<SocketAddr>().expect("address");
        let mut server = address("198.51.100.25:0");
        server.set_port(port);
        let flow = FlowKey { client: address("192.0.2.10:41234"), server };
        // Close to the wrap, so that every dialogue crosses it.
        Self {
            flow,
            role: Role::Client,
            directions: true,
            packets: Vec::new(),
            next: [u32::MAX - 20, u32::MAX - 60],
            at: START,
        }
    }

    pub fn seen_by_server(mut self) -> Self {
        self.role = Role::Server;
        self
    }

    /// Makes it a capture without packet directions.
    pub fn without_directions(mut self) -> Self {
        self.directions = false;
        self
    }

    pub fn at(mut self, secs: i64) -> Self {
        for packet in &mut self.packets {
            packet.at += secs * 1_000_000_000;
        }
        self.at += secs * 1_000_000_000;
        self
    }

    /// Adds a delay to the server: everything after the SYN is this many milliseconds later.
    pub fn far(mut self, milliseconds: i64) -> Self {
        for packet in self.packets.iter_mut().skip(1) {
            packet.at += milliseconds * 1_000_000;
        }
        self
    }

    /// Gives every segment so far a correct checksum and a timestamp option, as most stacks do.
    pub fn stamped(mut self) -> Self {
        for packet in &mut self.packets {
            let clock = u32::try_from((packet.at - START) / 1_000_000 + 1_000_000).expect("a short dialogue");
            packet.options = [&[1, 1, 8, 10][..], &clock.to_be_bytes(), &[0; 4]].concat();
            packet.checksum_right = Some(true);
        }
        self
    }

    /// Adds a silence of this many seconds.
    pub fn pause(mut self, secs: i64) -> Self {
        self.at += secs * 1_000_000_000;
        self
    }

    /// The server sends `text`; the client acknowledges it with its next segment.
    pub fn s(mut self, text: impl AsRef<[u8]>) -> Self {
        self.say(Side::Server, text.as_ref());
        self
    }

    /// The client sends `text`.
    pub fn c(mut self, text: impl AsRef<[u8]>) -> Self {
        self.say(Side::Client, text.as_ref());
        self
    }

    pub fn ack(mut self, from: Side) -> Self {
        self.pure_ack(from);
        self
    }

    /// Both sides close.
    pub fn close(mut self) -> Self {
        for from in [Side::Server, Side::Client] {
            let (seq, ack) = (self.seq(from), self.seq(from.peer()));
            self.packet(from, seq, ack, TcpFlags::FIN | TcpFlags::ACK, b"");
            self.next[index(from)] = seq.wrapping_add(1);
        }
        self.pure_ack(Side::Server);
        self
    }

    /// The client closes, then the server.
    pub fn leave(mut self) -> Self {
        for from in [Side::Client, Side::Server] {
            let (seq, ack) = (self.seq(from), self.seq(from.peer()));
            self.packet(from, seq, ack, TcpFlags::FIN | TcpFlags::ACK, b"");
            self.next[index(from)] = seq.wrapping_add(1);
        }
        self.pure_ack(Side::Client);
        self
    }

    pub fn reset(mut self, from: Side) -> Self {
        let (seq, ack) = (self.seq(from), self.seq(from.peer()));
        self.packet(from, seq, ack, TcpFlags::RST | TcpFlags::ACK, b"");
        self
    }

    /// Splits every payload into pieces of `size` bytes, each acknowledged by the other side.
    pub fn cut(&self, size: usize) -> Self {
        let mut cut = Self { packets: Vec::new(), ..self.clone() };
        for packet in &self.packets {
            if packet.payload.is_empty() {
                cut.packets.push(packet.clone());
            }
            for (place, piece) in packet.payload.chunks(size).enumerate() {
                let seq = packet.seq.wrapping_add(u32::try_from(place * size).expect("small"));
                cut.packets.push(OwnedSegment { seq, payload: piece.to_vec(), ..packet.clone() });
                let next = seq.wrapping_add(u32::try_from(piece.len()).expect("small"));
                let (from, seq) = (packet.from.peer(), packet.ack);
                cut.packets.push(OwnedSegment {
                    from,
                    seq,
                    ack: next,
                    flags: TcpFlags::ACK,
                    payload: Vec::new(),
                    ..packet.clone()
                });
            }
        }
        cut
    }

    fn say(&mut self, from: Side, text: &[u8]) {
        let (seq, ack) = (self.seq(from), self.seq(from.peer()));
        self.packet(from, seq, ack, TcpFlags::PSH | TcpFlags::ACK, text);
        self.next[index(from)] = seq.wrapping_add(u32::try_from(text.len()).expect("small"));
    }

    fn pure_ack(&mut self, from: Side) {
        let (seq, ack) = (self.seq(from), self.seq(from.peer()));
        self.packet(from, seq, ack, TcpFlags::ACK, b"");
    }

    fn packet(&mut self, from: Side, seq: u32, ack: u32, flags: TcpFlags, payload: &[u8]) {
        self.at += 1_000_000;
        self.packets.push(OwnedSegment {
            at: self.at,
            from,
            seq,
            ack,
            flags,
            payload: payload.to_vec(),
            ttl: 64,
            options: Vec::new(),
            checksum_right: None,
            urgent: 0,
            arrives: false,
        });
    }

    fn seq(&self, from: Side) -> u32 {
        self.next[index(from)]
    }

    pub fn play(&self, engine: &mut Engine, recorded: &mut Recorded) {
        for packet in &self.packets {
            engine.handle(&self.segment(packet));
            recorded.drain(engine);
        }
    }

    pub fn segment<'a>(&self, packet: &'a OwnedSegment) -> Segment<'a> {
        let length = u32::try_from(packet.payload.len()).expect("small");
        Segment {
            at: Timestamp(packet.at),
            flow: self.flow,
            from: packet.from,
            // As the pipeline derives it from direction and side.
            role: match (packet.arrives && self.directions, packet.from) {
                (true, Side::Client) => Role::Server,
                (true, Side::Server) => Role::Client,
                (false, _) => self.role,
            },
            direction: match self.directions {
                true if packet.from == self.role.side() && !packet.arrives => Some(Direction::Egress),
                true => Some(Direction::Ingress),
                false => None,
            },
            interface: "eth0",
            interface_index: 2,
            seq: packet.seq,
            ack: packet.ack,
            flags: packet.flags,
            urgent: packet.urgent,
            window: 64240,
            ttl: packet.ttl,
            ip_id: 0,
            options: &packet.options,
            checksum_right: packet.checksum_right,
            length,
            unusual: false,
            offset: 0,
            payload: &packet.payload,
            body_ended: false,
            budget_spent: false,
            sender: None,
        }
    }
}

/// 2026-11-23, in nanoseconds.
const START: i64 = 1_795_400_000_000_000_000;

const fn index(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Server => 1,
    }
}

/// What the engine reported for a dialogue.
#[derive(Default, Debug)]
pub struct Recorded {
    pub findings: Vec<Finding>,
    pub sessions: Vec<SessionSummary>,
    pub gate: Vec<GateAction>,
    pub gaps: usize,
    pub lost: Vec<LossCause>,
    pub wanted: Vec<LookupRequest>,
    pub deliveries: Vec<Delivery>,
}

impl Recorded {
    pub fn drain(&mut self, engine: &mut Engine) {
        while let Some(output) = engine.poll() {
            match output {
                Output::Finding(finding) => {
                    assert_allowed(&finding);
                    self.findings.push(*finding);
                }
                Output::Session(session) => self.sessions.push(session),
                Output::Gate(order) => self.gate.push(order.action),
                Output::Lost(cause) => {
                    self.gaps += 1;
                    self.lost.push(cause);
                }
                Output::LookupRequest(wanted) => self.wanted.push(wanted),
                Output::Delivery(delivery) => self.deliveries.push(*delivery),
                Output::Evicted(_) | Output::History(..) | Output::HistoryForgotten(_) => {}
            }
        }
    }

    pub fn kinds(&self) -> Vec<Kind> {
        self.findings.iter().map(|finding| finding.kind).collect()
    }
}

/// The indicators of a finding that cite this identifier of docs/threats.md, such as `FO-8`.
pub fn citing<'a>(finding: &'a Finding, id: &str) -> Vec<&'a str> {
    let cites = |line: &&str| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == id);
    finding.indicators.iter().map(String::as_str).filter(cites).collect()
}

/// Whatever a test plays, the catalogue describes what the rules raise.
fn assert_allowed(finding: &Finding) {
    let rule: RuleId = finding.rule.parse().expect("a row of the catalogue");
    let Finding { kind, role, evidence, expected, .. } = finding;
    assert!(
        rule.row().allows(finding),
        "the row {rule} allows no {kind} as the {} with evidence {evidence} by {}",
        role.as_str(),
        expected.source
    );
}

pub fn engine(rules: Vec<Rule>) -> Engine {
    Engine::new(Settings::default(), rules, History::new(1000))
}

/// Plays one dialogue to an engine with these rules, and ends the input.
pub fn hear(dialogue: &Dialogue, rules: Vec<Rule>) -> Recorded {
    hear_after(&[], dialogue, rules)
}

/// As [`hear`], after other dialogues that contribute only their history.
pub fn hear_after(before: &[Dialogue], dialogue: &Dialogue, rules: Vec<Rule>) -> Recorded {
    hear_by(engine(rules), before, dialogue)
}

/// As [`hear_after`], with the caller's engine.
pub fn hear_by(mut engine: Engine, before: &[Dialogue], dialogue: &Dialogue) -> Recorded {
    let mut recorded = Recorded::default();
    for dialogue in before {
        dialogue.play(&mut engine, &mut Recorded::default());
    }
    dialogue.play(&mut engine, &mut recorded);
    engine.finish(Timestamp(dialogue.packets.last().map_or(0, |packet| packet.at)));
    recorded.drain(&mut engine);
    recorded
}

/// `count` legitimate sessions, an hour apart, all of them before the start of any other dialogue.
pub fn honest_history(count: i64) -> Vec<Dialogue> {
    (0..count).map(|hour| honest().at((hour - 1000) * 3600)).collect()
}

/// One legitimate session on each of `count` days, all of them before the start of any other dialogue.
pub fn daily_history(count: i64) -> Vec<Dialogue> {
    (0..count).map(|day| honest().at((day - count - 2) * 86_400)).collect()
}

pub const GREETING: &str = "220 mx1.example.net ESMTP Postfix\r\n";
pub const OFFER: &str = "250-mx1.example.net\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-ETRN\r\n250-STARTTLS\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n";
pub const STRIPPED: &str = "250-mx1.example.net\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-ETRN\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n";
pub const MASKED: &str = "250-mx1.example.net\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-ETRN\r\n250-XXXXXXXA\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n";

/// Adds a TLS 1.3 handshake that succeeds, and some data under it.
pub fn tls(dialogue: Dialogue) -> Dialogue {
    dialogue.c(client_hello(0x0304)).s(server_hello(0x0304, 0x1301, b"")).c(sealed(53)).s(sealed(80)).c(sealed(40))
}

/// A ClientHello that offers up to `version` (RFC 8446 §4.1.2).
pub fn client_hello(version: u16) -> Vec<u8> {
    let versions = if version >= 0x0304 { vec![0, 43, 0, 3, 2, 3, 4] } else { vec![] };
    let legacy = version.min(0x0303).to_be_bytes();
    record(&[1], &[&legacy, &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &length(&versions), &versions])
}

/// A ServerHello that selects `version` and `cipher`; its random ends in `sentinel`.
pub fn server_hello(version: u16, cipher: u16, sentinel: &[u8]) -> Vec<u8> {
    let versions = if version >= 0x0304 { vec![0, 43, 0, 2, 3, 4] } else { vec![] };
    let legacy = version.min(0x0303).to_be_bytes();
    let random = [vec![9; 32 - sentinel.len()], sentinel.to_vec()].concat();
    record(&[2], &[&legacy, &random, &[0], &cipher.to_be_bytes(), &[0], &length(&versions), &versions])
}

/// The server's Certificate message before TLS 1.3 (RFC 5246 §7.4.2).
pub fn certificate(der: &[u8]) -> Vec<u8> {
    let one = [&[0][..], &length(der), der].concat();
    record(&[11], &[&[0], &length(&one), &one])
}

/// A ChangeCipherSpec and the encrypted Finished message.
pub fn finished() -> Vec<u8> {
    [&[0x14, 3, 3, 0, 1, 1, 0x16, 3, 3, 0, 40][..], &[0xbb; 40]].concat()
}

/// A record of encrypted data, with `bytes` bytes of content.
pub fn sealed(bytes: usize) -> Vec<u8> {
    [&[0x17, 3, 3][..], &u16::try_from(bytes).expect("small").to_be_bytes(), &vec![0xaa; bytes]].concat()
}

fn record(kind: &[u8], fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    let message = [kind, &[0], &length(&body), &body].concat();
    [&[0x16, 3, 1][..], &length(&message), &message].concat()
}

fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).expect("small").to_be_bytes()
}

pub fn greeted() -> Dialogue {
    Dialogue::new(25).s(GREETING).c("EHLO gw.example.org\r\n")
}

pub fn honest() -> Dialogue {
    tls(greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n")).close()
}

/// Adds the rest of a session that delivers one message in cleartext.
pub fn deliver(dialogue: Dialogue) -> Dialogue {
    dialogue
        .c("MAIL FROM:<alice@example.org> SIZE=100\r\n")
        .s("250 2.1.0 Ok\r\n")
        .c("RCPT TO:<bob@example.net>\r\n")
        .s("250 2.1.5 Ok\r\n")
        .c("DATA\r\n")
        .s("354 End data with <CR><LF>.<CR><LF>\r\n")
        .c("Subject: AUTH PLAIN\r\n\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\nSTARTTLS\r\n250-XXXXXXXA\r\n.\r\n")
        .s("250 2.0.0 Ok: queued\r\n")
        .c("QUIT\r\n")
        .s("221 2.0.0 Bye\r\n")
        .close()
}
