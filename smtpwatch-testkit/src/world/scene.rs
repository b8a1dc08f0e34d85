//! One session of a world: who takes part, when, and the dialogues of which habits and attacks are made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smtpwatch_core::{FlowKey, Role, Side};

use crate::{
    packet::Dice,
    scenario::{Dialogue, certificate, client_hello, finished, sealed, server_hello},
};

/// 2026-11-01, in nanoseconds: the first day of every world.
pub const START: i64 = 1_793_491_200_000_000_000;
pub const SECOND: i64 = 1_000_000_000;
pub const HOUR: i64 = 3600 * SECOND;
pub const DAY: i64 = 24 * HOUR;
/// Days of a world.
pub const DAYS: i64 = 30;

/// A remote mail host.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Determines address and name.
    pub number: u32,
    /// Role of this host towards it.
    pub role: Role,
    /// Index in [`super::habits::HABITS`].
    pub habit: usize,
    /// Random number by which peers of one habit differ.
    pub seed: u64,
    /// Time before which it has no session.
    pub born: i64,
    /// Sessions so far.
    pub sessions: u64,
}

impl Peer {
    /// The address of one of its machines. Each peer has a network of its own; machines from [`IPV6`] on have IPv6.
    pub fn address(&self, machine: u8) -> IpAddr {
        let [_, a, b, c] = self.number.to_be_bytes();
        let first = if self.role == Role::Client { 20 } else { 30 };
        if machine >= IPV6 {
            let network = u16::from_be_bytes([b, c]);
            let second = u16::from(first) << 8 | u16::from(a);
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8 + second, network, 0, 0, 0, 0, u16::from(machine)))
        } else {
            IpAddr::V4(Ipv4Addr::new(first + a, b, c, 10 + machine))
        }
    }

    pub fn name(&self) -> String {
        format!("mx{}.example.net", self.number)
    }

    /// A number below `bound` that is the same in every session of the peer.
    pub fn constant(&self, salt: u64, bound: u64) -> u64 {
        mixed(self.seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % bound
    }
}

/// The first machine of a peer with an IPv6 address.
pub const IPV6: u8 = 128;

/// A mail server product: the rest of its greeting, and its EHLO keywords in order.
struct Product {
    greeting: &'static str,
    keywords: &'static [&'static str],
}

const PRODUCTS: [Product; 5] = [
    Product {
        greeting: "ESMTP Postfix",
        keywords: &[
            "PIPELINING",
            "SIZE 10240000",
            "ETRN",
            "STARTTLS",
            "ENHANCEDSTATUSCODES",
            "8BITMIME",
            "DSN",
            "SMTPUTF8",
            "CHUNKING",
        ],
    },
    Product {
        greeting: "ESMTP Exim 4.98 Sun, 01 Nov 2026 10:00:00 +0000",
        keywords: &["SIZE 52428800", "8BITMIME", "PIPELINING", "PIPECONNECT", "CHUNKING", "STARTTLS", "HELP"],
    },
    Product {
        greeting: "Microsoft ESMTP MAIL Service ready at Sun, 1 Nov 2026 10:00:00 +0000",
        keywords: &[
            "SIZE 37748736",
            "PIPELINING",
            "DSN",
            "ENHANCEDSTATUSCODES",
            "STARTTLS",
            "8BITMIME",
            "BINARYMIME",
            "CHUNKING",
            "SMTPUTF8",
        ],
    },
    Product {
        greeting: "ESMTP x12si345678.123 - gsmtp",
        keywords: &[
            "SIZE 157286400",
            "8BITMIME",
            "STARTTLS",
            "ENHANCEDSTATUSCODES",
            "PIPELINING",
            "CHUNKING",
            "SMTPUTF8",
        ],
    },
    Product {
        greeting: "ESMTP Sendmail 8.18.1/8.18.1",
        keywords: &["ENHANCEDSTATUSCODES", "8BITMIME", "SIZE", "STARTTLS"],
    },
];

/// What this host says as a server.
pub const OWN_GREETING: &str = "220 mx.example.org ESMTP Postfix\r\n";
pub const OWN_OFFER: &str = "250-mx.example.org\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n";
/// The reply of the listener that offers AUTH before TLS.
pub const OWN_OFFER_AUTH: &str = "250-mx.example.org\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n";
/// What this host says as a client.
pub const OWN_EHLO: &str = "EHLO gw.example.org\r\n";

/// One session that is about to happen.
pub struct Scene<'a> {
    pub peer: &'a Peer,
    pub dice: &'a mut Dice,
    /// When it begins.
    pub at: i64,
    /// Sessions of the peer before this one.
    pub nth: u64,
}

impl Scene<'_> {
    /// True in `count` of `of` sessions, at random.
    pub fn in_some(&mut self, count: usize, of: usize) -> bool {
        self.dice.below(of) < count
    }

    /// Days since the start of the world.
    pub fn day(&self) -> i64 {
        (self.at - START) / DAY
    }

    /// Whether a day of the peer has passed, on which it changes: from the second third of the month on.
    pub fn has_changed(&self) -> bool {
        self.day() >= 10 + i64::try_from(self.peer.constant(1, 10)).expect("small")
    }

    /// Whether the peer is short of resources: some hours of the month, several minutes at a time.
    pub fn is_busy(&self) -> bool {
        let hour = u64::try_from((self.at - START) / HOUR).unwrap_or(0);
        let quarter = u64::try_from((self.at - START) / (HOUR / 4)).unwrap_or(0);
        self.peer.constant(hour + 1000, 20) == 0 && self.peer.constant(quarter + 10_000, 2) == 0
    }

    /// The product that the peer runs.
    pub fn product(&self) -> usize {
        usize::try_from(self.peer.constant(2, 5)).expect("small")
    }

    /// The TLS version that the peer chooses.
    pub fn version(&self) -> u16 {
        if self.peer.constant(3, 4) == 0 { 0x0303 } else { 0x0304 }
    }

    /// A connection with one of the peer's machines, from or to one of this host's addresses.
    pub fn connect_as(&mut self, own: usize, machine: u8, port: u16) -> Dialogue {
        let address = self.peer.address(machine);
        let own = match (own, address) {
            (0, IpAddr::V4(_)) => Ipv4Addr::new(192, 0, 2, 10).into(),
            (_, IpAddr::V4(_)) => Ipv4Addr::new(192, 0, 2, 11).into(),
            (_, IpAddr::V6(_)) => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 10).into(),
        };
        let mut talk = Dialogue::new(port);
        let (client, server) = if self.peer.role == Role::Client { (own, address) } else { (address, own) };
        // The replay chooses the client's port.
        talk.flow = FlowKey { client: SocketAddr::new(client, 0), server: SocketAddr::new(server, port) };
        talk.role = self.peer.role;
        talk.far(5 + i64::try_from(self.peer.constant(4, 40)).expect("small"))
    }

    pub fn connect(&mut self, machine: u8) -> Dialogue {
        self.connect_as(0, machine, 25)
    }

    pub fn greeting(&self, product: usize) -> String {
        format!("220 {} {}\r\n", self.peer.name(), PRODUCTS[product].greeting)
    }

    /// The EHLO reply of a product.
    pub fn reply(&self, product: usize, offers: bool) -> String {
        let kept = |keyword: &&&str| offers || **keyword != "STARTTLS";
        listed(&self.peer.name(), PRODUCTS[product].keywords.iter().filter(kept).copied())
    }

    /// This host, as a client, has sent EHLO and has this reply.
    pub fn hello(&mut self, reply: &str) -> Dialogue {
        let greeting = self.greeting(self.product());
        self.connect(0).s(greeting).c(OWN_EHLO).s(reply)
    }

    /// The usual start of an outbound session, with or without an offer.
    pub fn offered(&mut self, offers: bool) -> Dialogue {
        let reply = self.reply(self.product(), offers);
        self.hello(&reply)
    }

    /// A whole outbound session: under TLS if it is offered, else in cleartext.
    pub fn opportunistic(&mut self, offers: bool) -> Dialogue {
        let talk = self.offered(offers);
        if offers { secure(talk, self.version(), 1) } else { delivered(talk) }
    }

    /// The client `name` has sent EHLO to this host and has its reply.
    pub fn hello_from(&mut self, name: &str) -> Dialogue {
        self.connect(0).s(OWN_GREETING).c(format!("EHLO {name}\r\n")).s(OWN_OFFER)
    }

    /// A whole inbound session, under TLS or in cleartext.
    pub fn inbound(&mut self, name: &str, uses_tls: bool) -> Dialogue {
        let talk = self.hello_from(name);
        if uses_tls { secure(talk, self.version(), 1) } else { delivered(talk) }
    }
}

/// An EHLO reply with these keywords.
pub fn listed<'a>(name: &'a str, keywords: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<&str> = std::iter::once(name).chain(keywords).collect();
    let (last, others) = lines.split_last().expect("the name");
    let others: String = others.iter().map(|line| format!("250-{line}\r\n")).collect();
    format!("{others}250 {last}\r\n")
}

/// STARTTLS is granted, and TLS begins.
pub fn secure(talk: Dialogue, version: u16, identity: u8) -> Dialogue {
    handshake(talk.c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n"), version, identity).close()
}

/// A handshake of this version; before TLS 1.3 with a certificate.
pub fn handshake(talk: Dialogue, version: u16, identity: u8) -> Dialogue {
    let talk = talk.c(client_hello(0x0304));
    if version >= 0x0304 {
        talk.s(server_hello(version, 0x1301, b"")).c(sealed(53)).s(sealed(80)).c(sealed(40))
    } else {
        let hello = [server_hello(version, 0xc02f, b""), certificate(&[identity; 36])].concat();
        talk.s(hello).c(finished()).s(finished()).c(sealed(40)).s(sealed(40))
    }
}

/// One message in cleartext, shorter than that of [`crate::scenario::deliver`].
pub fn delivered(talk: Dialogue) -> Dialogue {
    bye(envelope(talk)
        .c("DATA\r\n")
        .s("354 End data with <CR><LF>.<CR><LF>\r\n")
        .c("Subject: report\r\n\r\nSee the attached file.\r\n.\r\n")
        .s("250 2.0.0 Ok: queued\r\n"))
}

pub fn envelope(talk: Dialogue) -> Dialogue {
    talk.c("MAIL FROM:<alice@example.org>\r\n")
        .s("250 2.1.0 Ok\r\n")
        .c("RCPT TO:<bob@example.net>\r\n")
        .s("250 2.1.5 Ok\r\n")
}

pub fn bye(talk: Dialogue) -> Dialogue {
    talk.c("QUIT\r\n").s("221 2.0.0 Bye\r\n").close()
}

/// The client's bytes arrive one by one, at the pace of a keyboard.
pub fn typed(talk: &Dialogue) -> Dialogue {
    let mut talk = talk.cut(1);
    let mut late = 0;
    for packet in &mut talk.packets {
        if packet.from == Side::Client && !packet.payload.is_empty() {
            late += 90_000_000;
        }
        packet.at += late;
    }
    talk
}

/// A number spread over all values (the finalizer of SplitMix64).
pub fn mixed(mut number: u64) -> u64 {
    number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
