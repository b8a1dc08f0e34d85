//! Growth of the history with the number of known peers: the cost of a look-up, of an update, and of the slowest
//! update.

use std::{hint::black_box, time::Duration};

use nix::time::ClockId;
use smtpwatch_core::{
    FlowKey, Role, Timestamp,
    policy::{
        expectation::{Expectation, Rules, Subject},
        history::{History, HistoryKey, HistoryPeer, HistoryRecord, Rate, SessionNote, Strength},
        profile::Profile,
    },
};

use crate::{clock, cpu, memory, per, traffic::OWN};

/// Number of look-ups and updates that are timed.
const TIMES: u32 = 200_000;
/// New peers added to a full table: enough for one share of the table.
const NEW: usize = 100_000;
const ROUNDS: usize = 3;

/// Results with this many known peers.
#[derive(Clone, Debug)]
pub struct Known {
    pub peers: usize,
    /// Time to look up what is expected of a peer: done at each verdict.
    pub look_up: Duration,
    /// Time to record a session: done once, at its end.
    pub note: Duration,
    /// Longest time of one update for a new peer that evicts another one.
    pub worst: Duration,
    /// Bytes per peer.
    pub memory: f64,
}

pub fn measure(peers: usize) -> Known {
    let before = memory::total();
    let mut history = filled(peers);
    let memory = per(memory::total().wrapping_sub(before), peers);
    let mut known = Known { peers, look_up: Duration::MAX, note: Duration::MAX, worst: Duration::ZERO, memory };
    // The minimum per update over all rounds: an interruption does not hit the same update in every round.
    let mut worst = vec![Duration::MAX; NEW];
    for round in 0..ROUNDS {
        let start_time = cpu();
        let mut found = 0;
        for number in scattered(peers) {
            let key = key(number);
            let name = match &key.peer {
                HistoryPeer::Name(name) => vec![name.as_str()],
                HistoryPeer::Address(_) => Vec::new(),
            };
            let flow = FlowKey { client: (OWN, 40_000).into(), server: (address(number), 25).into() };
            let subject = Subject { flow, role: Role::Client, names: &name };
            let rules = Rules { all: &[], at: Timestamp::default() };
            let expectation = Expectation::of(&subject, rules, &history, Strength::default());
            found += u32::from(black_box(expectation).offers.is_some());
        }
        debug_assert_eq!(found, TIMES);
        known.look_up = known.look_up.min((cpu() - start_time) / TIMES);
        let start_time = cpu();
        for number in scattered(peers) {
            black_box(history.note(key(number), note(number, round + 1), Strength::default()));
        }
        known.note = known.note.min((cpu() - start_time) / TIMES);
        for (number, least) in worst.iter_mut().enumerate() {
            let (key, note) = (key((round + 1) * 10_000_000 + number), note(number, round + 1));
            let start_time = clock(ClockId::CLOCK_THREAD_CPUTIME_ID);
            let noted = history.note(key, note, Strength::default());
            *least = clock(ClockId::CLOCK_THREAD_CPUTIME_ID).saturating_sub(start_time).min(*least);
            drop(black_box(noted));
        }
        // Restore the initial state.
        history = filled(peers);
    }
    known.worst = worst.into_iter().max().unwrap_or_default();
    eprintln!("growth: {known:?}");
    known
}

/// A history without room for one more server.
fn filled(peers: usize) -> History {
    // One role leaves an eighth to the other one.
    let mut history = History::new(peers + peers / 7);
    (0..peers).for_each(|number| _ = history.restore(key(number), record(number)));
    history
}

/// The peers in an order that defeats the cache.
fn scattered(peers: usize) -> impl Iterator<Item = usize> {
    let mut state = 1_usize;
    (0..TIMES).map(move |_| {
        // The linear congruential generator of Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % peers
    })
}

fn address(number: usize) -> std::net::Ipv4Addr {
    let [a, b, c, d, ..] = number.to_le_bytes();
    [10 + (d & 0x7f), c, b, a].into()
}

/// Every other peer is known by its name.
pub fn key(number: usize) -> HistoryKey {
    let peer = if number.is_multiple_of(2) {
        HistoryPeer::Address(address(number).into())
    } else {
        HistoryPeer::Name(format!("mx{number:08}.example.net"))
    };
    HistoryKey { role: Role::Client, own: OWN.into(), peer, port: 25 }
}

fn seconds(number: usize) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + i64::try_from(number).unwrap_or(0))
}

pub fn record(number: usize) -> HistoryRecord {
    let rate = Rate { yes: 412, ..Rate::default() };
    HistoryRecord {
        sessions: 412,
        offered: rate,
        used: rate,
        first_seen: seconds(0),
        last_seen: seconds(number),
        last_offered: seconds(number),
        profile: Some(profile(number).into()),
        names: Vec::new(),
    }
}

fn note(number: usize, round: usize) -> SessionNote {
    SessionNote {
        at: seconds(100_000_000 * round),
        answered: true,
        offered: true,
        used: true,
        profile: Some(profile(number)),
        names: Vec::new(),
        alike: true,
    }
}

/// The profile of Postfix, as most peers have.
fn profile(number: usize) -> Profile {
    let keywords = [
        "PIPELINING",
        "SIZE",
        "ETRN",
        "STARTTLS",
        "AUTH",
        "ENHANCEDSTATUSCODES",
        "8BITMIME",
        "DSN",
        "SMTPUTF8",
        "CHUNKING",
    ];
    Profile {
        keywords: Profile::keep(keywords.into_iter().map(str::to_owned)),
        ehlo_octets: 210,
        plaintext_mechanisms: Vec::new(),
        offer: "STARTTLS".to_owned(),
        readable_greeting: true,
        client: String::new(),
        words: ["# # ESMTP Postfix", "#"].map(str::to_owned),
        quoted: String::new(),
        ttl: 57,
        mss: 1460,
        options: vec![2, 4, 8, 1, 3],
        round_trip: 10_000_000 + u64::try_from(number).unwrap_or(0),
        tls_version: 0x0304,
        weak_suite: false,
    }
}
