//! One kind of work, repeated: `cargo xtask bench --check` counts its instructions.
//!
//! `work CASE COUNT` replays a capture generated here: `COUNT` short sessions, or a session with `COUNT` muted
//! segments. The instructions counted are those of [`replayed`].
#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark ends by panicking")]

use std::path::Path;

use smtpwatch_config::Config;
use smtpwatch_core::policy::history::History;
use smtpwatch_pipeline::replay::{Event, Replay, Summary};
use smtpwatch_testkit::traffic::{self, CLIENT, Packet, SERVER, START_NS, Turn};

/// Time from one session to the next, ns.
const APART: u64 = 1_000_000_000;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(case), Some(count)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: work short|starttls|body|tls COUNT");
        return;
    };
    let count = count.parse().unwrap();
    let packets = match case.as_str() {
        "short" => sessions(count, &MAIL),
        "starttls" => sessions(count, &handshake().each_ref().map(|turn| turn.turn())),
        "body" => long(count, &MAIL[..MAIL_DATA], &Turn::Client(&format!("{}\r\n", "x".repeat(1_400)))),
        "tls" => {
            let record = format!("\u{17}\u{3}\u{3}\u{5}\u{78}{}", "z".repeat(0x578));
            let mut begin: Vec<_> = handshake().iter().map(Owned::leak).collect();
            begin.extend(std::iter::repeat_n([Turn::Client(leak(&record)), Turn::Server(leak(&record))], 16).flatten());
            long(count, &begin, &Turn::Client(&record))
        }
        other => panic!("no case {other}"),
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    std::fs::write(&path, traffic::pcap(&packets, 1, false, false)).unwrap();
    let replay = Replay::new(&Config::default(), History::new(100_000));
    let summary = replayed(replay, &path);
    assert_eq!((summary.gaps, summary.unread, summary.evicted), (0, 0, 0));
    println!("{case}: {} packets, sessions {:?}", summary.packets, summary.sessions);
}

/// Not inlined: callgrind identifies it by its name.
#[inline(never)]
fn replayed(mut replay: Replay, path: &Path) -> Summary {
    replay.file(path, honest).unwrap();
    replay.finish(honest)
}

/// The benchmark measures the cost of legitimate traffic: a finding is an error.
fn honest(event: Event) {
    if let Event::Finding(finding) = event {
        panic!("an honest session is accused: {finding:?}");
    }
}

/// Number of turns of [`MAIL`] before the message.
const MAIL_DATA: usize = 9;
const MAIL: [Turn<'static>; 13] = traffic::dialogue(
    "250-mx1.example.net\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-ETRN\r\n250-STARTTLS\r\n\
     250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-DSN\r\n250 SMTPUTF8\r\n",
);

/// A turn that owns its text.
enum Owned {
    Client(String),
    Server(String),
}

impl Owned {
    fn turn(&self) -> Turn<'_> {
        match self {
            Self::Client(text) => Turn::Client(text),
            Self::Server(text) => Turn::Server(text),
        }
    }

    fn leak(&self) -> Turn<'static> {
        match self {
            Self::Client(text) => Turn::Client(leak(text)),
            Self::Server(text) => Turn::Server(leak(text)),
        }
    }
}

fn leak(text: &str) -> &'static str {
    String::leak(text.to_owned())
}

/// EHLO, STARTTLS, and the visible part of a TLS 1.2 handshake.
fn handshake() -> [Owned; 9] {
    let random = "\u{7}".repeat(32);
    let [greeting, ehlo, reply] = [MAIL[0], MAIL[1], MAIL[2]].map(|turn| match turn {
        Turn::Client(text) => Owned::Client(text.to_owned()),
        Turn::Server(text) => Owned::Server(text.to_owned()),
    });
    [
        greeting,
        ehlo,
        reply,
        Owned::Client("STARTTLS\r\n".to_owned()),
        Owned::Server("220 2.0.0 Ready to start TLS\r\n".to_owned()),
        Owned::Client(format!("\u{16}\u{3}\u{1}\0\u{2d}\u{1}\0\0\u{29}\u{3}\u{3}{random}\0\0\u{2}\u{13}\u{1}\u{1}\0")),
        Owned::Server(format!("\u{16}\u{3}\u{3}\0\u{2a}\u{2}\0\0\u{26}\u{3}\u{3}{random}\0\u{13}\u{1}\0")),
        Owned::Server(format!("\u{14}\u{3}\u{3}\0\u{1}\u{1}\u{17}\u{3}\u{3}\0\u{20}{random}")),
        Owned::Client(format!("\u{16}\u{3}\u{3}\0\u{20}{random}")),
    ]
}

/// Sessions of one client with one server, one after the other.
fn sessions(count: u16, turns: &[Turn<'_>]) -> Vec<Packet> {
    let session = |port: u16| {
        let client = format!("192.0.2.10:{}", 1_024 + port);
        traffic::session(&client, SERVER, START_NS + u64::from(port) * APART, turns)
    };
    (0..count).flat_map(session).collect()
}

/// One session that repeats `turn` `count` times.
fn long(count: u16, begin: &[Turn<'_>], turn: &Turn<'_>) -> Vec<Packet> {
    let turns: Vec<_> = begin.iter().copied().chain((0..count).map(|_| *turn)).collect();
    traffic::session(CLIENT, SERVER, START_NS, &turns)
}
