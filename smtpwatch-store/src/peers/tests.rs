use std::collections::{BTreeSet, HashMap};

use smtpwatch_core::{
    FlowKey,
    engine::{SessionResult, SessionSummary},
    finding::StarttlsState,
    policy::history::{HistoryKey, HistoryPeer, HistoryRecord},
    smtp::TlsVersion,
};

use super::*;
use crate::deliveries;

/// Noon of a day.
const TODAY: i64 = 1_795_392_000 + 43_200;

fn session(role: Role, peer: &str, port: u16) -> SessionSummary {
    let (client, server) = match role {
        Role::Client => ("192.0.2.25:40000".to_owned(), format!("{peer}:{port}")),
        Role::Server => (format!("{peer}:40000"), format!("192.0.2.25:{port}")),
    };
    SessionSummary {
        flow: FlowKey { client: client.parse().expect("an end point"), server: server.parse().expect("an end point") },
        role,
        result: SessionResult::Plaintext,
        starttls: StarttlsState::Absent,
        starttls_sent: false,
        messages: 2,
        auth: Vec::new(),
        smtp: true,
        gaps: 0,
        certificate: None,
        exempted: Vec::new(),
        tls_version: None,
    }
}

fn encrypted(version: TlsVersion, session: SessionSummary) -> SessionSummary {
    SessionSummary {
        result: SessionResult::Tls,
        starttls: StarttlsState::Offered,
        starttls_sent: true,
        messages: 0,
        tls_version: Some(version),
        ..session
    }
}

fn days_ago(days: i64) -> Timestamp {
    Timestamp::from_secs(TODAY - days * 86_400)
}

/// Writes sessions, the oldest first: an older one than the retention would go at once.
fn write(store: &mut Store, sessions: &[(i64, SessionSummary)]) {
    let mut pending = offers::Pending::default();
    for (days, session) in sessions {
        pending.add(session, days_ago(*days));
    }
    let none = deliveries::Pending::default();
    assert_eq!(store.write(&HashMap::new(), &[], &none, &pending, &[]).expect("written"), 0);
}

fn query(sort: PeerSort) -> PeerQuery {
    PeerQuery { role: None, port: None, sort, after: None, limit: 0, today: Day::of(days_ago(0)) }
}

/// A month: a client that never uses TLS, one that stopped, and a server that offers TLS, with older versions at first.
fn month() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(&directory.path().join("smtpwatch.db")).expect("a store");
    let mut sessions = Vec::new();
    for days in (0..=30).rev() {
        sessions.push((days, session(Role::Server, "198.51.100.7", 25)));
        let version = if days > 9 { TlsVersion::V1_2 } else { TlsVersion::V1_3 };
        sessions.push((days, encrypted(version, session(Role::Client, "203.0.113.9", 25))));
        if days > 20 {
            sessions.push((days, session(Role::Client, "203.0.113.9", 587)));
        }
    }
    sessions.push((3, SessionSummary { gaps: 1, ..session(Role::Client, "203.0.113.9", 25) }));
    sessions.push((2, encrypted(TlsVersion::Unknown, session(Role::Client, "203.0.113.9", 25))));
    let refused =
        SessionSummary { result: SessionResult::Rejected, messages: 0, ..session(Role::Server, "[2001:db8::1]", 25) };
    sessions.push((1, refused));
    // In two batches, so that rows are inserted and updated.
    let (first, second) = sessions.split_at(40);
    write(&mut store, first);
    write(&mut store, second);
    (directory, store)
}

#[test]
fn a_month_is_summed_by_peer() {
    let (_directory, mut store) = month();
    let page = store.peers(&query(PeerSort::Affected)).expect("read");
    let (peers, none) = (&page.peers, page.next);
    assert_eq!(none, None);
    // 30 days with two messages each, and 9 days (21 to 29 days ago) with two each: the day before is not counted.
    assert_eq!(page.total, PeerTotals { peers: 4, affected_peers: 2, affected_messages: 60 + 18 });
    let keys: Vec<_> = peers.iter().map(|peer| (peer.peer.to_string(), peer.role, peer.port)).collect();
    let key = |peer: &str, role, port| (peer.to_owned(), role, port);
    assert_eq!(
        keys,
        [
            key("198.51.100.7", Role::Server, 25),
            key("203.0.113.9", Role::Client, 587),
            key("203.0.113.9", Role::Client, 25),
            key("2001:db8::1", Role::Server, 25),
        ]
    );
    let [never, stopped, tls, refused] = &peers[..] else { panic!("{peers:?}") };
    assert_eq!((never.sessions, never.withheld, never.used, never.cleartext_sessions), (30, 30, 0, 30));
    assert_eq!((never.cleartext_messages, never.last_cleartext), (60, Some(days_ago(0))));
    assert_eq!(never.trend, Trend::Steady);
    let period = |sessions| Period { sessions, cleartext_sessions: sessions, cleartext_messages: 2 * sessions };
    assert_eq!((never.last_7_days, never.before_23_days), (period(7), period(23)));
    assert_eq!(never.cleartext_messages_by_day, [2; DAYS]);

    assert_eq!((stopped.trend, stopped.last_cleartext), (Trend::Stopped, Some(days_ago(21))));
    assert_eq!((stopped.last_7_days, stopped.before_23_days), (Period::default(), period(9)));
    assert_eq!(stopped.cleartext_messages_by_day[8..10], [2, 0], "the oldest first");

    let versions = Versions { v1_2: 20, v1_3: 10, unknown: 1, ..Versions::default() };
    assert_eq!((tls.sessions, tls.offered, tls.used, tls.unknown, tls.versions), (32, 31, 31, 1, versions));
    assert_eq!((tls.trend, tls.last_cleartext, tls.cleartext_messages), (Trend::None, None, 0));
    assert_eq!((refused.sessions, refused.cleartext_sessions, refused.withheld), (1, 0, 1));
}

#[test]
fn the_list_is_sorted_filtered_and_paged() {
    let (_directory, mut store) = month();
    let mut addresses = |query: PeerQuery| -> Vec<(IpAddr, u16)> {
        store.peers(&query).expect("read").peers.iter().map(|peer| (peer.peer, peer.port)).collect()
    };
    let v6 = ("2001:db8::1".parse().expect("an address"), 25);
    let (never, server) = ("198.51.100.7".parse().expect("an address"), "203.0.113.9".parse().expect("an address"));
    assert_eq!(addresses(query(PeerSort::Sessions)), [(server, 25), (never, 25), (server, 587), v6]);
    assert_eq!(addresses(query(PeerSort::Last)), [(never, 25), (server, 587), (server, 25), v6]);
    let only = PeerQuery { role: Some(Role::Server), ..query(PeerSort::Affected) };
    assert_eq!(addresses(only), [(never, 25), v6]);
    assert_eq!(addresses(PeerQuery { port: Some(587), ..query(PeerSort::Affected) }), [(server, 587)]);
    assert!(addresses(PeerQuery { role: Some(Role::Server), port: Some(587), ..query(PeerSort::Last) }).is_empty());
    let earlier = PeerQuery { today: Day::of(days_ago(25)), ..query(PeerSort::Sessions) };
    assert_eq!(addresses(earlier), [(server, 25), (server, 587), (never, 25)], "later days are not counted");
    for sort in PeerSort::ALL {
        let whole = store.peers(&query(sort)).expect("read");
        for limit in 1..=4 {
            let (mut paged, mut after) = (Vec::new(), None);
            loop {
                let page = store.peers(&PeerQuery { limit, after, ..query(sort) }).expect("read");
                assert!(page.peers.len() <= limit);
                assert_eq!(page.total, whole.total, "the sums are of all pages");
                paged.extend(page.peers);
                after = match page.next {
                    Some(next) => Some(next.to_string().parse().expect("a cursor")),
                    None => break,
                };
            }
            assert_eq!(paged, whole.peers, "{} by {limit}", sort.as_str());
        }
    }
}

#[test]
fn names_come_from_the_history() {
    let (_directory, mut store) = month();
    let name = |name: &str, day| KnownName {
        name: name.to_owned(),
        first_seen: Timestamp(1),
        last_seen: Timestamp::from_secs(day),
    };
    let record = |names| HistoryRecord { names, ..HistoryRecord::default() };
    let key = |own: &str, port| HistoryKey {
        role: Role::Client,
        own: own.parse().expect("an address"),
        peer: HistoryPeer::Address("203.0.113.9".parse().expect("an address")),
        port,
    };
    let rows = HashMap::from([
        (key("192.0.2.25", 25), Some(record(vec![name("mx1.example.net", 5), name("mx2.example.net", 7)]))),
        (key("192.0.2.26", 25), Some(record(vec![name("mx1.example.net", 6), name("mx3.example.net", 6)]))),
        (key("192.0.2.26", 465), Some(record(vec![name("other.example.net", 9)]))),
    ]);
    let none = deliveries::Pending::default();
    store.write(&rows, &[], &none, &offers::Pending::default(), &[]).expect("written");
    let page = store.peers(&PeerQuery { role: Some(Role::Client), ..query(PeerSort::Sessions) }).expect("read");
    let names = &page.peers[0].names;
    assert_eq!(names[0], "mx2.example.net", "the most recent first");
    let names: BTreeSet<_> = names.iter().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["mx1.example.net", "mx2.example.net", "mx3.example.net"]));
    assert!(page.peers[1].names.is_empty(), "of another port");
}

#[test]
fn rows_that_another_program_made_invalid_are_skipped() {
    let (_directory, mut store) = month();
    store
        .sqlite(|connection| {
            connection.execute("UPDATE offer SET peer = 'nobody' WHERE role = 'server' AND peer LIKE '198%'", [])
        })
        .expect("edited");
    let page = store.peers(&query(PeerSort::Affected)).expect("read");
    assert_eq!((page.total.peers, page.total.affected_messages), (3, 18));
}

#[test]
fn trends_compare_sessions_per_day() {
    for (recent, before, expected) in [
        (0, 0, Trend::None),
        (1, 0, Trend::Began),
        (0, 1, Trend::Stopped),
        (7, 23, Trend::Steady),
        (8, 23, Trend::Steady),
        (9, 23, Trend::Rising),
        (6, 23, Trend::Steady),
        (5, 23, Trend::Falling),
        (u64::MAX, 1, Trend::Rising),
    ] {
        assert_eq!(Trend::of(recent, before), expected, "{recent} {before}");
    }
}

#[test]
fn cursors_are_read_as_they_are_written() {
    for peer in ["192.0.2.1", "2001:db8::1", "::1"] {
        for (value, role, port) in [(0, Role::Client, 0), (u64::MAX, Role::Server, u16::MAX), (17, Role::Server, 25)] {
            let cursor = PeerCursor { value: Reverse(value), role, peer: peer.parse().expect("an address"), port };
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }
    let good = "0".repeat(53);
    for bad in [
        "",
        "0",
        &"0".repeat(52),
        &"0".repeat(54),
        &good.replace("00000", "0000G"),
        &"f".repeat(53),
        &"\u{e4}".repeat(53),
    ] {
        assert!(bad.parse::<PeerCursor>().is_err(), "{bad}");
    }
    assert!(good.parse::<PeerCursor>().is_ok());
}

#[test]
fn the_columns_are_those_of_the_values() {
    let (_directory, mut store) = month();
    let page = store.peers(&query(PeerSort::Affected)).expect("read");
    let cells = page.peers[0].cells();
    let of = |name: &str| {
        let at = PeerUse::COLUMNS.iter().position(|column| *column == name).expect("a column");
        cells[at].as_str()
    };
    assert_eq!((of("peer"), of("role"), of("cleartext_messages")), ("198.51.100.7", "server", "60"));
    assert_eq!((of("trend"), of("cleartext_messages_last_7_days"), of("tls_1_2")), ("steady", "14", "0"));
    assert_eq!(of("last_cleartext"), days_ago(0).to_string());
}
