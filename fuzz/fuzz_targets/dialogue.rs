//! Words of SMTP, sent by both sides in any order and split anywhere, to one session.
//!
//! Asserted: what a session retains is bounded; a planted secret, sent where clients send secrets, is in nothing that
//! can be displayed; nor is a secret of an AUTH exchange when the server quotes it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtpwatch_core::{Side, Timestamp, limits, smtp::Session};
use smtpwatch_fuzz::{
    allocation::{Counting, Watch},
    alphabet::{PASSWORD, SECRET, SECRET_CORE, Word, word},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a session and its driver may have allocated at any time: a reply of [`limits::REPLY_LINES`] lines of
/// [`limits::LINE`] bytes, twice while it is parsed, and smaller data.
const ALLOCATED: usize = 2 * limits::REPLY_LINES * limits::LINE + 2 * 1024 * 1024;
/// Longest transcript line, bytes: a byte that is not printable takes five (`\u{1}`), a quoted secret is replaced by a
/// word less than twice as long, and the number of cut bytes is appended.
const TRANSCRIPT_OCTETS: usize = 6 * limits::TRANSCRIPT_LINE + 64;
/// Longest dialogue that one input may expand to, bytes.
const SPOKEN: usize = 64 * 1024;
/// Number of segments into which data is split in drip mode.
const PIECES: usize = 64;

fuzz_target!(|input: &[u8]| {
    let Some((&opening, words)) = input.split_first() else { return };
    let watch = Watch::start();
    let mut dialogue = Dialogue::new(opening & 0x80 != 0);
    dialogue.open(opening & 0x7f);
    dialogue.say(words);
    dialogue.session.finish();
    dialogue.poll();
    assert!(watch.peak() <= ALLOCATED, "{} octets allocated", watch.peak());
    judge(&dialogue.session);
});

struct Dialogue {
    session: Session,
    from: Side,
    /// Bytes that are sent and not yet delivered.
    said: Vec<u8>,
    sent: [u64; 2],
    drip: bool,
    /// Whether the client's last byte ended a line.
    line_start: bool,
    spoken: usize,
}

impl Dialogue {
    fn new(midstream: bool) -> Self {
        Self {
            session: Session::new(midstream),
            from: Side::Client,
            said: Vec::new(),
            sent: [0; 2],
            drip: false,
            line_start: true,
            spoken: 0,
        }
    }

    /// Begins with an AUTH exchange of this form, in which the server quotes what it received.
    fn open(&mut self, shape: u8) {
        let upper = SECRET.to_ascii_uppercase();
        let echo = if shape & 8 == 0 { SECRET } else { &upper };
        let (command, secret) = match shape & 7 {
            0 => return,
            1 => (String::new(), format!("AUTH PLAIN {SECRET}\r\n")),
            2 => (String::new(), format!("auth XOAUTH2 {SECRET}\r\n")),
            3 => (String::new(), format!(" \tAUTH\tLOGIN  {SECRET} \n")),
            4 => ("AUTH PLAIN\r\n".to_owned(), format!("{SECRET}\r\n")),
            5 => ("X-EXPS LOGIN\r\n".to_owned(), format!("{SECRET} {SECRET}\r\n")),
            6 => ("AUTH CRAM-MD5\r\n".to_owned(), format!("{SECRET}\r\n")),
            _ => (String::new(), format!("AUTH X {SECRET} {SECRET}\r\n")),
        };
        // The secret where no grammar expects it: no mechanism, a masked verb, no verb.
        let misplaced =
            [format!("AUTH {SECRET}"), format!("X-EXPS {SECRET}"), format!("XXXX PLAIN {SECRET}"), SECRET.to_owned()];
        let (command, secret) = match shape & 64 {
            0 => (command, secret),
            _ => (String::new(), format!("{}\r\n", misplaced[usize::from(shape & 3)])),
        };
        self.drip = shape & 16 != 0;
        self.tell(Side::Server, b"220 mx.example.net\r\n");
        self.tell(Side::Client, b"EHLO x\r\n");
        self.tell(Side::Server, b"250-mx.example.net\r\n250 AUTH PLAIN LOGIN\r\n");
        if !command.is_empty() {
            self.tell(Side::Client, command.as_bytes());
            self.tell(Side::Server, b"334 \r\n");
        }
        self.tell(Side::Client, secret.as_bytes());
        let more = if shape & 32 == 0 { "" } else { "535-5.7.8 no\r\n" };
        self.tell(Side::Server, format!("{more}535 5.7.8 \"AUTH PLAIN {echo}\" refused\r\n").as_bytes());
        self.drip = false;
    }

    fn tell(&mut self, from: Side, octets: &[u8]) {
        self.from = from;
        self.said.extend(octets);
        self.arrive();
    }

    fn say(&mut self, words: &[u8]) {
        let mut octets = words.iter();
        while let Some(&octet) = octets.next() {
            match word(octet) {
                Word::Text(text) => self.said.extend(text),
                Word::Secret(line) => {
                    self.turn(Side::Client);
                    self.arrive();
                    if !self.line_start {
                        self.said.extend(b"\r\n");
                    }
                    self.said.extend(line);
                }
                Word::Client => self.turn(Side::Client),
                Word::Server => self.turn(Side::Server),
                Word::Cut => self.arrive(),
                Word::Drip => {
                    self.arrive();
                    self.drip = !self.drip;
                }
                Word::Literal => self.said.extend(octets.next()),
                Word::Gap => {
                    self.arrive();
                    let length = u64::from(octets.next().copied().unwrap_or(0));
                    self.sent[self.from as usize] += length;
                    self.session.gap(self.from, length);
                    self.poll();
                }
                Word::Distrust => {
                    self.arrive();
                    self.session.distrust(Side::Server);
                    self.poll();
                }
                Word::Long => self.said.extend([b'a'; 600]),
                Word::Huge => self.said.extend([b'b'; 13_000]),
            }
            if self.spoken + self.said.len() > SPOKEN {
                break;
            }
        }
        self.arrive();
    }

    fn turn(&mut self, to: Side) {
        if to != self.from {
            self.arrive();
            self.from = to;
        }
    }

    fn arrive(&mut self) {
        let said = std::mem::take(&mut self.said);
        if let Some(last) = said.last().filter(|_| self.from == Side::Client) {
            self.line_start = *last == b'\n';
        }
        self.spoken += said.len();
        for piece in said.chunks(if self.drip { said.len().div_ceil(PIECES).max(1) } else { usize::MAX }) {
            let at = Timestamp(i64::try_from(self.spoken).expect("a short dialogue"));
            self.session.data(self.from, at, self.sent[self.from as usize], piece);
            self.sent[self.from as usize] += piece.len() as u64;
            self.poll();
        }
    }

    fn poll(&mut self) {
        while self.session.poll().is_some() {}
    }
}

fn judge(session: &Session) {
    let seen = &session.seen;
    let transcript = seen.transcript();
    assert!(transcript.len() <= limits::TRANSCRIPT_LINES + 1, "{} lines", transcript.len());
    for line in &transcript {
        assert!(line.text.len() <= TRANSCRIPT_OCTETS, "a line of {} octets", line.text.len());
        assert!(!line.text.contains(|c: char| c.is_control()), "{:?}", line.text);
    }
    assert!(seen.recipient_domains.len() <= limits::RECIPIENT_DOMAINS);
    let lines = seen.capabilities.as_ref().map_or(0, |capabilities| capabilities.len());
    assert!(lines <= CAPABILITY_LINES, "{lines} capability lines");
    // Everything from which a finding, a page or a log is made.
    let all = format!("{seen:?}").to_ascii_lowercase();
    for secret in [PASSWORD, SECRET_CORE] {
        assert!(!all.contains(&secret.to_ascii_lowercase()), "the planted secret {secret} is shown: {all}");
    }
}

/// Lines of one reply, and as many after its end.
const CAPABILITY_LINES: usize = 2 * limits::REPLY_LINES;
