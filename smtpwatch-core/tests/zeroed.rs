//! No password remains in memory: this test searches the blocks that the engine frees, and those that it keeps after a
//! session.
//!
//! The allocator of this program searches each block before it is freed, and lists the blocks in use. It looks for
//! six consecutive bytes of a password, in any case, and of its base64 forms.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::{Cell, RefCell},
    sync::atomic::{AtomicUsize, Ordering},
};

use smtpwatch_core::{
    Engine, Output, Settings, Side, TcpFlags, Timestamp, engine::LossCause, finding::Kind, policy::history::History,
};
use smtpwatch_testkit::scenario::{self, Dialogue, GREETING, OwnedSegment, client_hello, tls};

/// The password, and its replacement in an altered copy of the segment.
const PASSWORD: &str = "Vq7-kanarienvogel-Zx9";
const OTHER: &str = "Vq7-kanarienvogex-Zx9";
/// In base64 (RFC 4648): alone as LOGIN sends it, and after `\0anna\0` as PLAIN does.
const LOGIN: &str = "VnE3LWthbmFyaWVudm9nZWwtWng5";
const PLAIN: &str = "AGFubmEAVnE3LWthbmFyaWVudm9nZWwtWng5";
/// The same with an end that is invalid base64: a decoder fails after it has read the password.
const TORN: &str = "AGFubmEAVnE3LWthbmFyaWVudm9nZWwtWng5A";
const PATTERNS: [&str; 3] = [PASSWORD, LOGIN, PLAIN];
/// Number of consecutive bytes of a pattern that count as the password.
const WINDOW: usize = 6;
/// Length of the user's name at the start of [`PLAIN`], bytes.
const NAME: usize = 8;

/// Number of slots for blocks in use.
const BLOCKS: usize = 1 << 11;
const GONE: (usize, usize) = (1, 0);

/// Number of hits whose origin was printed; printing takes seconds each.
static REPORTED: AtomicUsize = AtomicUsize::new(0);

struct Searching;

#[global_allocator]
static ALLOCATOR: Searching = Searching;

thread_local! {
    /// Whether this thread's blocks are searched.
    static ARMED: Cell<bool> = const { Cell::new(false) };
    /// Number of freed blocks that held a password.
    static FREED: Cell<usize> = const { Cell::new(0) };
    /// Address and length of the blocks in use that were allocated while armed, by hash of the address.
    static IN_USE: RefCell<[(usize, usize); BLOCKS]> = const { RefCell::new([(0, 0); BLOCKS]) };
}

/// Where the search for a block's slot starts.
const fn slot(address: usize) -> usize {
    (address >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53
}

fn slots(address: usize) -> impl Iterator<Item = usize> {
    (0..BLOCKS).map(move |step| (slot(address) + step) % BLOCKS)
}

/// The bytes of a pattern that are searched for.
const fn searched(pattern: &str) -> &[u8] {
    // The user's name is not secret.
    pattern.as_bytes().split_at(if pattern.len() == PLAIN.len() { NAME } else { 0 }).1
}

/// Indexed by two bytes in lower case: whether a searched part of a pattern starts with them.
static STARTS: [bool; 1 << 16] = {
    let (mut starts, mut pattern) = ([false; 1 << 16], 0);
    while pattern < PATTERNS.len() {
        let (bytes, mut at) = (searched(PATTERNS[pattern]), 0);
        while at + WINDOW <= bytes.len() {
            starts[pair(bytes[at], bytes[at + 1])] = true;
            at += 1;
        }
        pattern += 1;
    }
    starts
};

const fn pair(first: u8, second: u8) -> usize {
    (first.to_ascii_lowercase() as usize) << 8 | second.to_ascii_lowercase() as usize
}

fn find_password(bytes: &[u8]) -> bool {
    let mut at = 0;
    while at + WINDOW <= bytes.len() {
        if STARTS[pair(bytes[at], bytes[at + 1])] {
            let here = &bytes[at..at + WINDOW];
            let is = |pattern: &&str| searched(pattern).windows(WINDOW).any(|part| part.eq_ignore_ascii_case(here));
            if PATTERNS.iter().any(is) {
                return true;
            }
        }
        at += 1;
    }
    false
}

// SAFETY: blocks come from `System` and return to it with their original layout; nothing here allocates while a block
// is searched, except for the report of a hit, during which the search is off.
unsafe impl GlobalAlloc for Searching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Zeroed, so that each byte of a block is readable, also those that its owner never wrote. SAFETY: the caller
        // keeps the contract of this function, which is that of the function called.
        let block = unsafe { System.alloc_zeroed(layout) };
        if ARMED.get() {
            IN_USE.with_borrow_mut(|blocks| {
                let free = slots(block.addr()).find(|slot| blocks[*slot].1 == 0).expect("room for blocks");
                blocks[free] = (block.expose_provenance(), layout.size());
            });
        }
        block
    }

    // `realloc` is the provided one: it allocates, copies, and frees the old block here.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if ARMED.get() {
            IN_USE.with_borrow_mut(|blocks| {
                let known = slots(block.addr()).take_while(|slot| blocks[*slot].0 != 0);
                if let Some(known) = known.into_iter().find(|slot| blocks[*slot].0 == block.addr()) {
                    blocks[known] = GONE;
                }
            });
            // SAFETY: the block is not freed yet, has this many bytes, and all were written when it was allocated.
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            if find_password(bytes) {
                ARMED.set(false);
                FREED.set(FREED.get() + 1);
                if REPORTED.fetch_add(1, Ordering::Relaxed) < 2 {
                    println!("freed with a password, {} bytes:\n{}", layout.size(), Backtrace::force_capture());
                }
                ARMED.set(true);
            }
        }
        // SAFETY: the caller keeps the contract of this function; the block came from `System` with this layout.
        unsafe { System.dealloc(block, layout) };
    }
}

fn arm() {
    FREED.set(0);
    IN_USE.with_borrow_mut(|blocks| blocks.fill((0, 0)));
    ARMED.set(true);
}

/// Number of freed blocks that held a password since [`arm`].
fn disarm() -> usize {
    ARMED.set(false);
    FREED.get()
}

/// Number of blocks in use of at most this many bytes that hold a password.
fn held(most: usize) -> usize {
    let armed = ARMED.replace(false);
    let held = IN_USE.with_borrow(|blocks| {
        let live = blocks.iter().filter(|(_, length)| (1..=most).contains(length));
        live.filter(|(address, length)| {
            // SAFETY: the block is in use, belongs to this thread, which does nothing else, and all of it was written
            // once.
            find_password(unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(*address), *length) })
        })
        .count()
    });
    ARMED.set(armed);
    held
}

/// The counts while the session is open, after its end, and of freed blocks; and the findings.
struct Searched {
    open: usize,
    closed: usize,
    freed: usize,
    kinds: Vec<Kind>,
}

/// Plays a dialogue; `after` runs once its last packet is processed.
fn search(talk: &Dialogue, settings: Settings, after: impl FnOnce(&mut Engine, Timestamp)) -> Searched {
    let mut engine = Engine::new(settings, Vec::new(), History::new(1000));
    // Neither grown nor freed while blocks are searched for the password.
    let mut outputs = Vec::with_capacity(1000);
    let (mut open, last) = (0, talk.packets.last().map_or(Timestamp::default(), |packet| Timestamp(packet.at)));
    arm();
    for packet in &talk.packets {
        engine.handle(&talk.segment(packet));
        outputs.extend(std::iter::from_fn(|| engine.poll()));
        if open == 0 {
            // Without the large tables, which hold no bytes of a dialogue: searching them takes long.
            open = held(16 * 1024);
        }
    }
    after(&mut engine, last);
    outputs.extend(std::iter::from_fn(|| engine.poll()));
    let closed = held(usize::MAX);
    drop(engine);
    let freed = disarm();
    let kinds = outputs.iter().filter_map(|output| match output {
        Output::Finding(finding) => Some(finding.kind),
        _ => None,
    });
    Searched { open, closed, freed, kinds: kinds.collect() }
}

const OFFER: &str = "250-mx1.example.net\r\n250 AUTH PLAIN LOGIN\r\n";
const WITH_STARTTLS: &str = "250-mx1.example.net\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN\r\n";

fn submission() -> Dialogue {
    Dialogue::new(587).s(GREETING).c("EHLO gw.example.org\r\n").s(OFFER)
}

fn with_starttls() -> Dialogue {
    Dialogue::new(25).s(GREETING).c("EHLO gw.example.org\r\n").s(WITH_STARTTLS)
}

fn quit(talk: Dialogue) -> Dialogue {
    talk.c("QUIT\r\n").s("221 2.0.0 Bye\r\n").close()
}

fn dialogues() -> Vec<(&'static str, Dialogue)> {
    let plain = || submission().c(format!("AUTH PLAIN {PLAIN}\r\n"));
    let login =
        || submission().c("AUTH LOGIN\r\n").s("334 VXNlcm5hbWU6\r\n").c("YW5uYQ==\r\n").s("334 UGFzc3dvcmQ6\r\n");
    let go = || with_starttls().c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    let long = "x".repeat(9000);
    vec![
        ("PLAIN", quit(plain().s("235 2.7.0 ok\r\n"))),
        (
            "PLAIN, response apart",
            quit(submission().c("AUTH PLAIN\r\n").s("334 \r\n").c(format!("{PLAIN}\r\n")).s("235 ok\r\n")),
        ),
        ("LOGIN", quit(login().c(format!("{LOGIN}\r\n")).s("235 2.7.0 ok\r\n"))),
        ("refused, quoted in both forms", quit(plain().s(format!("535 5.7.8 no: {PLAIN}, {PASSWORD}\r\n")))),
        (
            "refused, quoted in the next reply",
            quit(plain().s("535 no\r\n").c("EHLO x\r\n").s(format!("550 not {PASSWORD}\r\n"))),
        ),
        ("quoted over several lines", quit(plain().s(format!("535-no\r\n535-{PASSWORD}\r\n535 {PLAIN}\r\n")))),
        ("not waited for", quit(submission().c(format!("AUTH LOGIN\r\nYW5uYQ==\r\n{LOGIN}\r\n")).s("504 no\r\n"))),
        ("in the place of the mechanism", quit(submission().c(format!("AUTH {PASSWORD}\r\n")).s("504 no\r\n"))),
        ("no base64", quit(submission().c(format!("AUTH PLAIN {TORN}\r\n")).s("535 no\r\n"))),
        ("a long line", quit(submission().c(format!("AUTH PLAIN {PLAIN} {long}{PASSWORD}\r\n")).s("535 no\r\n"))),
        (
            "many times",
            (0..12).fold(submission(), |talk, _| talk.c(format!("AUTH PLAIN {PLAIN}\r\n")).s("535 no\r\n")).close(),
        ),
        ("behind a reply without code", quit(plain().s(format!("what is {PASSWORD}\r\n")).s("535 no\r\n"))),
        ("no end of the line", submission().c(format!("AUTH PLAIN {PLAIN}")).close()),
        (
            "an injection",
            tls(with_starttls().c(format!("STARTTLS\r\nAUTH PLAIN {PLAIN}\r\n")).s("220 2.0.0 go\r\n")).close(),
        ),
        ("after the go-ahead", quit(go().c(format!("AUTH PLAIN {PLAIN}\r\n")).s("235 ok\r\n"))),
        (
            "within a record",
            go().c([&[22, 3, 1, 0, 60][..], b"AUTH PLAIN ", PLAIN.as_bytes(), b"\r\nQUIT\r\n"].concat()).close(),
        ),
        (
            "after half a handshake",
            quit(go().c(client_hello(0x0304)).s("554 no TLS\r\n").c(format!("AUTH PLAIN {PLAIN}\r\n")).s("235 ok\r\n")),
        ),
    ]
}

/// Copies with another end, before and after the first one was delivered.
fn edited(talk: &Dialogue) -> Dialogue {
    let mut packets = Vec::new();
    let start = 4;
    for (place, packet) in talk.packets.iter().enumerate() {
        packets.push(packet.clone());
        let text = String::from_utf8_lossy(&packet.payload).into_owned();
        if place > start && packet.from == Side::Client && !packet.payload.is_empty() {
            let other = text.replace("WlWng5", "WlWng6").replace("Wng5", "Wng6").replace(PASSWORD, OTHER);
            packets.push(OwnedSegment { payload: other.into(), ttl: 60, ..packet.clone() });
        }
        // Once more after the server has acknowledged it.
        if packet.from == Side::Server
            && let Some(before) = talk.packets[..place].last().filter(|before| before.from == Side::Client)
        {
            let mut late = before.clone();
            late.payload.iter_mut().rev().take(3).for_each(|byte| *byte = b'#');
            packets.push(OwnedSegment { at: packet.at, ..late });
        }
    }
    let mut edited = talk.clone();
    edited.packets = packets;
    edited
}

/// Swaps each two segments of the client.
fn swapped(talk: &Dialogue) -> Dialogue {
    let mut talk = unacknowledged(&talk.cut(5));
    let mut places: Vec<usize> = (0..talk.packets.len()).collect();
    places.retain(|place| talk.packets[*place].from == Side::Client && !talk.packets[*place].payload.is_empty());
    for pair in places.chunks_exact(2) {
        if talk.packets[pair[0]].ack == talk.packets[pair[1]].ack {
            talk.packets.swap(pair[0], pair[1]);
        }
    }
    talk
}

/// Removes the server's acknowledgments: everything is buffered until the end.
fn unacknowledged(talk: &Dialogue) -> Dialogue {
    let mut talk = talk.clone();
    talk.packets
        .retain(|packet| packet.from == Side::Client || !packet.payload.is_empty() || packet.flags != TcpFlags::ACK);
    talk
}

#[test]
fn the_search_finds_what_is_freed_and_what_is_kept() {
    arm();
    drop(PASSWORD.as_bytes()[3..12].to_vec());
    let kept = LOGIN.to_ascii_lowercase();
    let (held, freed) = (held(usize::MAX), disarm());
    assert_eq!((held, freed, kept.len()), (1, 1, LOGIN.len()));
}

#[test]
fn no_password_is_left_in_memory() {
    for (name, talk) in dialogues() {
        let ways = [
            ("as it is", talk.clone()),
            ("in bytes", talk.cut(1)),
            ("in pieces", talk.cut(7)),
            ("in disorder", swapped(&talk)),
            ("unacknowledged", unacknowledged(&talk.cut(11))),
            ("edited", edited(&talk)),
        ];
        for (way, talk) in ways {
            // One role is enough for each: what is retained of a session does not depend on it.
            let talk = if way == "edited" { talk.seen_by_server() } else { talk };
            let found = search(&talk, Settings::default(), |engine, last| engine.finish(last));
            assert_eq!((found.closed, found.freed), (0, 0), "{name}, {way}: kept, freed");
            assert!(found.open > 0, "{name}, {way}: it was there");
            assert!(!found.kinds.is_empty(), "{name}, {way}: and was found");
        }
    }
}

#[test]
fn a_session_that_was_judged_keeps_no_password() {
    let auth = |talk: Dialogue| talk.c(format!("AUTH PLAIN {PLAIN}\r\n")).s(format!("535 no: {PASSWORD}\r\n"));
    let held = |talk: Dialogue| talk.c(format!("AUTH PLAIN {PLAIN}\r\nMAIL FROM:<a@example.org>\r\n{PASSWORD}"));
    for (name, talk) in [
        ("refused", edited(&auth(submission())).reset(Side::Client)),
        ("no reply", edited(&held(submission())).reset(Side::Client)),
        ("a hole", held(submission()).reset(Side::Server)),
        ("before TLS", tls(auth(with_starttls()).c("STARTTLS\r\n").s("220 go\r\n"))),
    ] {
        let mut flows = 0;
        let found = search(&talk, Settings::default(), |engine, last| {
            engine.tick(last + std::time::Duration::from_secs(3));
            flows = engine.flows();
        });
        assert_eq!((flows, found.closed, found.freed), (1, 0, 0), "{name}: the flow is there, without its password");
        assert!(found.open > 0 && !found.kinds.is_empty(), "{name}: {:?}", found.kinds);
    }
}

#[test]
fn a_verdict_that_waits_for_a_policy_keeps_no_password() {
    let settings = || Settings { lookups: true, ..Settings::default() };
    let auth = |talk: Dialogue| talk.c(format!("AUTH PLAIN {PLAIN}\r\n")).s(format!("535 no: {PASSWORD}\r\n"));
    let mail =
        |talk: Dialogue| auth(talk).c("MAIL FROM:<a@example.org>\r\n").s("250 ok\r\n").c("RCPT TO:<b@example.net>\r\n");
    let start = || Dialogue::new(25).s(GREETING).c("EHLO gw.example.org\r\n").s(OFFER);
    for (name, talk, reset) in [
        ("closed", edited(&mail(start()).s("250 ok\r\n").close()), false),
        ("closed within a line", mail(start()).s("250 ok\r\n").c(format!("AUTH PLAIN {PLAIN}")).close(), false),
        ("reset", edited(&mail(start()).s("250 ok\r\n")).reset(Side::Client), true),
    ] {
        let mut waits = false;
        let found = search(&talk, settings(), |engine, last| {
            if reset {
                engine.tick(last + std::time::Duration::from_secs(3));
            }
            let sessions = std::iter::from_fn(|| engine.poll()).filter(|output| matches!(output, Output::Session(_)));
            waits = sessions.count() == 0;
        });
        assert!(waits, "{name}: the verdict waits");
        assert_eq!((found.closed, found.freed), (0, 0), "{name}: kept, freed");
        assert!(found.open > 0, "{name}: it was there");
    }
}

#[test]
fn a_dialogue_that_goes_on_has_a_hole_where_commands_waited() {
    let begun = || submission().c(format!("AUTH PLAIN {PLAIN}\r\nNOOP\r\n")).reset(Side::Server);
    let resume_after_reset = |talk: Dialogue| quit(talk.s("235 ok\r\n250 ok\r\n"));
    let heard = scenario::hear(&resume_after_reset(begun().pause(1)), Vec::new());
    assert_eq!((&heard.lost, heard.sessions.len()), (&vec![], 1), "within the time that a reset is doubted");
    let heard = scenario::hear(&resume_after_reset(begun().pause(5)), Vec::new());
    assert_eq!((&heard.lost, heard.sessions.len()), (&vec![LossCause::Window], 1));
    assert_eq!(heard.kinds(), [Kind::AuthPlaintext, Kind::AuthOfferedPlaintext], "what was found before stands");
}
