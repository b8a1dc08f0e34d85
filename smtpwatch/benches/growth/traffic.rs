//! Sessions as packets, generated one by one: a million of them would not fit into memory.

use std::{net::Ipv4Addr, ops::Range};

/// Address of this host.
pub const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Number of peers that connections are spread over, in each direction.
const PEERS: usize = 1_000;
/// Length of a packet's IP and TCP headers, bytes.
const HEADERS: usize = 40;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PUSH: u8 = 0x18;
const FIN: u8 = 0x11;

const GREETING: &str = "220 mx0000.example.net ESMTP Postfix\r\n";
const OFFER: &str = "250-mx0000.example.net\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-ETRN\r\n250-STARTTLS\r\n\
                     250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n";
const NO_OFFER: &str = "250-mx0000.example.net\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-ETRN\r\n\
                        250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-DSN\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n";

/// A part of a session; all sessions complete one part before the next begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// From the SYN to the EHLO reply.
    Dialogue,
    /// STARTTLS and the handshake, after which the flow is muted; in cleartext, a message and its acceptance.
    Rest,
    /// Up to the last FIN.
    End,
}

/// A packet of a session with its offsets in both streams.
struct Step {
    from_client: bool,
    flags: u8,
    payload: Vec<u8>,
    /// Offset of the peer's four digits in the payload.
    digits: Option<usize>,
    seq: u32,
    ack: u32,
}

/// The packets of one kind of session.
struct Script {
    steps: Vec<Step>,
    /// The range of steps of each [`Part`].
    parts: [Range<usize>; 3],
}

/// The sessions: three of four continue under TLS, one delivers its message in cleartext.
pub struct Traffic {
    tls: Script,
    clear: Script,
}

impl Traffic {
    pub fn new() -> Self {
        let dialogue = |script: &mut Script, reply: &str| {
            script.step(true, SYN, b"").step(false, SYN | ACK, b"").step(true, ACK, b"");
            script.step(false, PUSH, GREETING.as_bytes()).step(true, ACK, b"");
            script.step(true, PUSH, b"EHLO mx0000.example.net\r\n").step(false, PUSH, reply.as_bytes());
            // The client acknowledges the data and waits.
            script.step(true, ACK, b"");
        };
        let end = |script: &mut Script| {
            script.step(true, FIN, b"").step(false, FIN, b"").step(true, ACK, b"");
        };
        let mut tls = Script::new();
        dialogue(&mut tls, OFFER);
        tls.next_part(1).step(true, PUSH, b"STARTTLS\r\n").step(false, PUSH, b"220 2.0.0 Ready to start TLS\r\n");
        tls.step(true, PUSH, &client_hello()).step(false, PUSH, &server_hello()).step(true, ACK, b"");
        tls.step(true, PUSH, &[&[20, 3, 3, 0, 1, 1][..], &sealed(53)].concat()).step(false, PUSH, &sealed(250));
        for _ in 0..4 {
            tls.step(true, PUSH, &sealed(300)).step(false, PUSH, &sealed(60));
        }
        end(tls.next_part(2));
        let mut clear = Script::new();
        dialogue(&mut clear, NO_OFFER);
        clear.next_part(1);
        for (command, reply) in [
            ("MAIL FROM:<alice@example.org>\r\n", "250 2.1.0 Ok\r\n"),
            ("RCPT TO:<bob@example.net>\r\n", "250 2.1.5 Ok\r\n"),
            ("DATA\r\n", "354 End data with <CR><LF>.<CR><LF>\r\n"),
        ] {
            clear.step(true, PUSH, command.as_bytes()).step(false, PUSH, reply.as_bytes());
        }
        clear.step(true, ACK, &[b'x'; 1000]).step(true, PUSH, b"\r\n.\r\n").step(
            false,
            PUSH,
            b"250 2.0.0 Ok: queued\r\n",
        );
        end(clear.next_part(2).step(true, PUSH, b"QUIT\r\n").step(false, PUSH, b"221 2.0.0 Bye\r\n"));
        Self { tls, clear }
    }

    /// Passes every packet of one part of the sessions `numbers` to `on`, from the IP header on: the first packet of
    /// each session, then the second of each, so that all of them are open at the same time.
    pub fn play(&self, numbers: Range<usize>, part: Part, mut on: impl FnMut(&[u8])) {
        let mut packet = Vec::with_capacity(2048);
        let length = |script: &Script| script.parts[part as usize].len();
        for index in 0..length(&self.tls).max(length(&self.clear)) {
            for number in numbers.clone() {
                let script = if number % 8 < 2 { &self.clear } else { &self.tls };
                if let Some(step) = script.steps[script.parts[part as usize].clone()].get(index) {
                    step.write(number, &mut packet);
                    on(&packet);
                }
            }
        }
    }
}

impl Script {
    const fn new() -> Self {
        Self { steps: Vec::new(), parts: [0..0, 0..0, 0..0] }
    }

    fn step(&mut self, from_client: bool, flags: u8, payload: &[u8]) -> &mut Self {
        // End of the sender's stream and of the receiver's: sequence numbers begin with 1000, a SYN or FIN counts as
        // one.
        let end = |client: bool| {
            let sent = self.steps.iter().filter(|step| step.from_client == client);
            sent.fold(1_000_u32, |seq, step| {
                seq + u32::try_from(step.payload.len()).unwrap_or(0) + (step.flags & (SYN | 1)).count_ones()
            })
        };
        let (seq, ack) = (end(from_client), if flags & ACK == 0 { 0 } else { end(!from_client) });
        let digits = payload.windows(6).position(|window| window == b"mx0000").map(|at| at + 2);
        self.steps.push(Step { from_client, flags, payload: payload.to_vec(), digits, seq, ack });
        let count = self.steps.len();
        // The latest part that has begun.
        let part = self.parts.iter().rposition(|part| part.start > 0).unwrap_or(0);
        self.parts[part].end = count;
        self
    }

    fn next_part(&mut self, part: usize) -> &mut Self {
        self.parts[part] = self.steps.len()..self.steps.len();
        self
    }
}

impl Step {
    /// Writes the packet of session `number`. Even sessions are outgoing, odd ones incoming; checksums are left to the
    /// hardware.
    fn write(&self, number: usize, packet: &mut Vec<u8>) {
        let (outbound, peer) = (number.is_multiple_of(2), number / 2 % PEERS);
        let low = |value: usize| value.to_le_bytes();
        let port = [low(1024 + number / 2 / PEERS)[1], low(1024 + number / 2 / PEERS)[0]];
        let (own, peer_address) = (OWN.octets(), [198, if outbound { 18 } else { 19 }, low(peer)[1], low(peer)[0]]);
        let (client, server) = if outbound { (own, peer_address) } else { (peer_address, own) };
        let smtp = [0, 25];
        let (from, to) =
            if self.from_client { ((client, port), (server, smtp)) } else { ((server, smtp), (client, port)) };
        let length = u16::try_from(HEADERS + self.payload.len()).unwrap_or(u16::MAX).to_be_bytes();
        packet.clear();
        packet.extend([0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0]);
        packet.extend([from.0, to.0].concat());
        packet.extend([from.1, to.1].concat());
        packet.extend([self.seq.to_be_bytes(), self.ack.to_be_bytes()].concat());
        packet.extend([5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(&self.payload);
        if let Some(at) = self.digits {
            for (byte, divisor) in packet[HEADERS + at..].iter_mut().zip([1000, 100, 10, 1]) {
                *byte = b'0' + low(peer / divisor % 10)[0];
            }
        }
    }
}

/// A ClientHello as large as those of browsers and mail servers (RFC 8446 §4.1.2), with a padding extension.
fn client_hello() -> Vec<u8> {
    let versions = [0, 43, 0, 3, 2, 3, 4];
    let padding = [&[0, 21, 0, 200][..], &[0; 200]].concat();
    let extensions = [&versions[..], &padding].concat();
    let fields = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &bytes(extensions.len()), &extensions];
    handshake(1, &fields.concat())
}

/// A ServerHello that selects TLS 1.3 (§4.1.3), and the encrypted records of the same flight.
fn server_hello() -> Vec<u8> {
    let versions = [0, 43, 0, 2, 3, 4];
    let fields = [&[3, 3][..], &[9; 32], &[0], &[0x13, 1], &[0], &bytes(versions.len()), &versions];
    [handshake(2, &fields.concat()), vec![20, 3, 3, 0, 1, 1], sealed(1_200)].concat()
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0][..], &bytes(body.len()), body].concat();
    [&[22, 3, 1][..], &bytes(message.len()), &message].concat()
}

/// A record of encrypted data.
fn sealed(length: usize) -> Vec<u8> {
    [&[23, 3, 3][..], &bytes(length), &vec![0xaa; length]].concat()
}

fn bytes(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}
