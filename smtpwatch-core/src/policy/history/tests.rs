use std::net::IpAddr;

use super::*;
use crate::Timestamp;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn key(last: u8) -> HistoryKey {
    of(Role::Client, [198, 51, 100, last].into())
}

fn of(role: Role, peer: IpAddr) -> HistoryKey {
    HistoryKey { role, own: [192, 0, 2, 1].into(), peer: HistoryPeer::Address(peer), port: 25 }
}

fn session(at: i64, so: bool) -> SessionNote {
    SessionNote {
        at: Timestamp::from_secs(at),
        answered: true,
        offered: so,
        used: so,
        profile: None,
        names: Vec::new(),
        alike: true,
    }
}

/// A record after sessions with (`O`) and without (`.`) an offer, or (`x`) from a host with another profile, at this
/// interval in seconds.
fn spaced(parts: &[(&str, i64)]) -> HistoryRecord {
    let mut history = History::new(10);
    let mut at = 0;
    for (pattern, step) in parts {
        for offer in pattern.chars() {
            let note = SessionNote { alike: offer != 'x', ..session(at, offer == 'O') };
            history.note(key(1), note, Strength::default());
            at += step;
        }
    }
    history.get(&key(1)).expect("noted").clone()
}

fn record(pattern: &str) -> HistoryRecord {
    spaced(&[(pattern, 1)])
}

fn is_strong(record: &HistoryRecord) -> bool {
    record.offered.is_strong(Strength::default())
}

#[test]
fn a_lasting_strip_does_not_become_the_norm() {
    let stripped = record("OOOOO.........................");
    assert!(is_strong(&stripped));
    let spread = stripped.offered.spread;
    assert_eq!(stripped.offered, Rate { yes: 5, run: 25, spread, ..Rate::default() });
    assert_eq!((spread.with.days, spread.with.on_newest, spread.run.days, spread.run.on_newest), (1, 5, 1, 25));
    assert_eq!(stripped.offers(), "offered in 5 of 5 sessions on 1 day since 1970-01-01");
}

#[test]
fn one_interruption_that_ended_is_forgiven() {
    assert!(is_strong(&record("OOOOOO...OOO")));
}

#[test]
fn a_farm_is_a_rate_and_is_not_accused() {
    assert!(!is_strong(&record("O.O.O.O.O.")), "FP-1: mixed from the start");
    assert!(!is_strong(&record("OOOOO.O.O.O.O.O")), "FP-1: mixed after a lucky start");
    assert!(!is_strong(&record("OOOOO.OO.OO.OO.OO")), "FP-1: two of three members offer it");
}

#[test]
fn too_few_sessions_are_not_strong() {
    assert!(!is_strong(&record("OOOO")));
    assert!(is_strong(&record("OOOOO")));
}

/// Each row: the sessions of the peer, and whether a missing offer is still a regression after them.
#[test]
fn what_erodes_a_rate() {
    let nine = "O".repeat(9);
    let month = "O".repeat(30);
    let turns = ".O".repeat(8);
    let others = "xO".repeat(8);
    for (what, parts, strong) in [
        ("sixteen sessions in turns within minutes of a day's history", vec![(&*nine, 3 * HOUR), (&*turns, 60)], true),
        ("the same, over as many days as it is known", vec![(&*nine, 3 * HOUR), (&*turns, 6 * HOUR)], false),
        ("turns within minutes of a month's history", vec![(&*month, DAY), (&*turns, 60), (&*turns, 60)], true),
        ("turns for months, by a host that looks as ever", vec![(&*month, DAY), (&*turns, 10 * DAY)], true),
        ("turns for months, by hosts that look different", vec![(&*month, DAY), (&*others, 30 * DAY)], false),
        ("such hosts for a day", vec![(&*month, DAY), (&*others, HOUR)], true),
        ("one outage of days", vec![(&*nine, HOUR), ("........", DAY), (&*nine, HOUR)], true),
    ] {
        assert_eq!(is_strong(&spaced(&parts)), strong, "{what}");
    }
}

#[test]
fn a_rate_is_established_by_sessions_over_days() {
    assert!(!spaced(&[("OOOOOOOOOOOOOOOOOOOOOOOOO", HOUR)]).offered.wear.established, "a day");
    assert!(!spaced(&[("OOOOOOOOOO", DAY)]).offered.wear.established, "ten sessions");
    assert!(spaced(&[("OOOOOOOOOOOOOOOOOOOOOOOOO", DAY)]).offered.wear.established);
    let farm = spaced(&[("OOOOOO.O.O.O.O", HOUR), ("OOOOOOOOOOOOOOOOOOOOOOOOOOOOOOOO", DAY)]);
    assert!(!farm.offered.wear.established, "it came and went while it was young");
}

#[test]
fn the_loss_of_strength_is_foreseen_once() {
    let mut history = History::new(10);
    let mut foreseen = Vec::new();
    for (at, offer) in (0..).zip("OOOOO.O.O.O.O.O".chars()) {
        let loses = |row: &HistoryRecord| row.loses_strength(Timestamp::from_secs(at), Strength::default());
        if offer == 'O' && history.get(&key(1)).is_some_and(loses) {
            foreseen.push(at);
        }
        history.note(key(1), session(at, offer == 'O'), Strength::default());
    }
    assert_eq!(foreseen, [12]);
}

#[test]
fn names_of_an_address_are_bounded_and_those_that_were_there_first_stay() {
    let mut history = History::new(10);
    let mut named = |at: i64, name: String| {
        let note = SessionNote { names: vec![name], ..session(at, true) };
        history.note(key(1), note, Strength::default()).0
    };
    named(0, "MX1.example.net.".to_owned());
    let flooded = (0..100).map(|number| named(DAY, format!("x{number}.example.org"))).last().expect("a row");
    assert!(flooded.is_named("mx1.example.net") && flooded.names.len() < 10, "{:?}", flooded.names);
    named(29 * DAY, "mx1.example.net".to_owned());
    let later = named(40 * DAY, "mx2.example.net".to_owned());
    assert_eq!(
        later.names.iter().map(|known| &*known.name).collect::<Vec<_>>(),
        ["mx1.example.net", "mx2.example.net"]
    );
    assert!(named(40 * DAY, "x".repeat(300)).names.len() == 2, "no host name is so long");
}

#[test]
fn the_least_recently_seen_makes_room() {
    let mut history = History::new(4);
    let mut gone = Vec::new();
    for last in 0..9 {
        gone.extend(history.note(key(last), session(i64::from(last), true), Strength::default()).1);
    }
    assert_eq!(history.len(), 4);
    assert_eq!(gone, (0..5).map(|last| Forgotten { key: key(last), known: false }).collect::<Vec<_>>());
}

/// Adds `count` peers of a role, each in its own network, each seen this often.
fn fill(history: &mut History, role: Role, count: u32, sessions: i64) -> Vec<Forgotten> {
    let mut gone = Vec::new();
    for number in 0..count {
        let address = (u128::from(number) + 0x2001_0db8_0000) << 80;
        for at in 0..sessions {
            gone.extend(history.note(of(role, IpAddr::V6(address.into())), session(at, true), Strength::default()).1);
        }
    }
    gone
}

#[test]
fn inbound_peers_push_out_no_mail_exchanger() {
    let mut history = History::new(1000);
    // The role has more than its half: lent rows are given back, known rows stay within the role's own part.
    fill(&mut history, Role::Client, 400, 5);
    fill(&mut history, Role::Client, 800, 1);
    assert_eq!(history.roles, [800, 0]);
    let gone = fill(&mut history, Role::Server, 5000, 1);
    assert_eq!(history.roles, [500, 500]);
    let lost: Vec<_> = gone.iter().filter(|row| row.key.role == Role::Client).collect();
    assert!(lost.len() == 300 && lost.iter().all(|row| !row.known), "{} rows", lost.len());
    // A role that is alone leaves an eighth free.
    let mut history = History::new(1000);
    fill(&mut history, Role::Server, 5000, 1);
    assert_eq!(history.roles, [0, 875]);
}

#[test]
fn an_established_row_is_not_lent() {
    let mut history = History::new(1000);
    for number in 0..800 {
        let key = of(Role::Client, IpAddr::V6(((0x2001_0db8_0000 + number) << 80).into()));
        for day in 0..30 {
            history.note(key.clone(), session(day * DAY, true), Strength::default());
        }
    }
    let gone = fill(&mut history, Role::Server, 2000, 6);
    assert_eq!(history.roles, [800, 200]);
    assert!(gone.iter().all(|row| row.key.role == Role::Server));
    assert!(gone.iter().any(|row| row.known), "of the role itself, and counted");
}

#[test]
fn peers_of_one_network_push_out_none_of_another() {
    for stranger in [
        |number: u32| IpAddr::from([203, 0, 113, number.to_le_bytes()[0]]),
        |number| IpAddr::V6(((0x2001_0db8_0001 << 80) | u128::from(number)).into()),
    ] {
        let mut history = History::new(1000);
        // One session each: the weakest class of rows.
        fill(&mut history, Role::Server, 800, 1);
        let mut gone = Vec::new();
        for at in 0..20_000 {
            let note = session(i64::from(at), true);
            gone.extend(history.note(of(Role::Server, stranger(at)), note, Strength::default()).1);
        }
        let others = gone.iter().filter(|row| network(&row.key) != network(&of(Role::Server, stranger(0)))).count();
        assert!(others <= history.quota as usize, "{others} rows of other networks");
    }
}

#[test]
fn a_row_that_is_known_outlasts_any_number_of_strangers() {
    let mut history = History::new(200);
    let known = of(Role::Server, [198, 51, 100, 25].into());
    for at in 0..5 {
        history.note(known.clone(), session(at, true), Strength::default());
    }
    let gone = fill(&mut history, Role::Server, 100_000, 1);
    assert!(history.get(&known).is_some());
    assert!(gone.len() > 90_000 && gone.iter().all(|row| !row.known), "{} rows", gone.len());
}

#[test]
fn a_name_is_admitted_only_of_an_address_that_bore_it() {
    let mut history = History::new(1000);
    let note = SessionNote { names: vec!["mx1.example.net".to_owned()], ..session(0, true) };
    history.note(key(1), note, Strength::default());
    assert!(history.admits(&key(1), "MX1.example.net"));
    assert!(!history.admits(&key(1), "mx2.example.net") && !history.admits(&key(2), "mx1.example.net"));
}

#[test]
fn what_is_restored_is_kept_by_the_same_rule() {
    let mut before = History::new(400);
    let known = of(Role::Client, [198, 51, 100, 25].into());
    for at in 0..5 {
        before.note(known.clone(), session(at, true), Strength::default());
    }
    fill(&mut before, Role::Client, 300, 1);
    let mut rows: Vec<_> = before.iter().map(|(key, record)| (key.clone(), record.clone())).collect();
    rows.sort_by_key(|(_, record)| std::cmp::Reverse(record.last_seen));
    let mut after = History::new(100);
    let gone: Vec<_> = rows.into_iter().filter_map(|(key, record)| after.restore(key, record)).collect();
    assert_eq!((after.len(), gone.len()), (History::most(100), 301 - History::most(100)));
    assert!(after.get(&known).is_some() && gone.iter().all(|row| !row.known));
}

/// Counts and LRU lists match the rows after any sequence of operations.
#[test]
fn the_books_balance() {
    let mut history = History::new(300);
    let mut state = 1_u64;
    for step in 0..20_000_i64 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [a, b, c, ..] = (state >> 32).to_le_bytes();
        let role = if a.is_multiple_of(2) { Role::Client } else { Role::Server };
        let key = of(role, [198, 51, b % 3, c % 128].into());
        match a % 16 {
            0 => drop(history.forget(|other| *other == key)),
            1 => drop(history.restore(key, HistoryRecord::default())),
            _ => drop(history.note(key, session(step * HOUR, !a.is_multiple_of(7)), Strength::default())),
        }
    }
    assert!(history.len() <= 300 && history.len() == history.places.len());
    let mut counted: HashMap<Network, Count> = HashMap::default();
    let mut roles = [0; 2];
    for (_, row) in &history.rows {
        roles[row.key.role as usize] += 1;
        if let Some(rows) = counted.entry(network(&row.key).expect("an address")).or_default().of(row.class) {
            *rows += 1;
        }
    }
    counted.retain(|_, count| *count != Count::default());
    assert_eq!((history.roles, &history.networks), (roles, &counted));
    let listed = std::iter::from_fn(|| {
        let place = Role::ALL.into_iter().find_map(|role| history.least(role))?;
        Some(history.remove(place))
    });
    assert_eq!(listed.count(), roles.iter().sum::<usize>());
    assert!(history.is_empty() && history.networks.is_empty());
}

#[test]
fn pieces_make_up_the_whole() {
    let mut history = History::new(100);
    for last in 0..50 {
        history.restore(key(last), HistoryRecord { sessions: u64::from(last), ..HistoryRecord::default() });
    }
    assert_eq!(
        history.forget(|key| matches!(key.peer, HistoryPeer::Address(IpAddr::V4(ip)) if ip.octets()[3] % 7 == 3)).len(),
        7
    );
    let (mut rows, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let (piece, after) = history.piece(from, 8);
        assert!(piece.len() <= 8);
        rows.extend(piece);
        next = after;
    }
    let mut all: Vec<_> = history.iter().map(|(key, record)| (key.clone(), record.clone())).collect();
    rows.sort_by_key(|(_, record)| record.sessions);
    all.sort_by_key(|(_, record)| record.sessions);
    assert_eq!((rows.len(), &rows), (43, &all));
}
