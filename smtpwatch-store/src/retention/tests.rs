use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use proptest::prelude::*;
use rusqlite::Connection;
use smtpwatch_core::{
    Role,
    evidence::EvidenceBundle,
    finding::{
        Evidence, Expected, ExpectedSource, FlowInfo, Kind, Observed, Outcome, PeerInfo, Provenance, StarttlsState,
    },
};

use super::*;
use crate::{
    APPLICATION_ID, STEPS, StoredAs,
    findings::{ADDRESSES_PER_INCIDENT, EXHIBITS_OF_GUESSING},
    incidents::{Filter, Incident, Sort},
};

const HOUR: i64 = 3_600_000_000_000;
const WINDOW: Duration = Duration::from_secs(3_600);
/// When the tests begin: 2026-11-30.
const START: i64 = 1_796_000_000_000_000_000;
const WIDE: Retention = Retention { age_days: 90, findings: 1_000, bytes: 1 << 30 };

/// What a test varies.
#[derive(Clone, Copy, Debug)]
struct Draft {
    kind: Kind,
    role: Role,
    severity: Severity,
    /// Last part of the peer's address.
    peer: u16,
    reply: Option<u16>,
    stranger: bool,
    has_evidence: bool,
}

/// A strip that a policy proves.
const STRIP: Draft = Draft {
    kind: Kind::StarttlsStripped,
    role: Role::Client,
    severity: Severity::Critical,
    peer: 25,
    reply: None,
    stranger: false,
    has_evidence: true,
};
/// A password that this host refused, as every mail server on the Internet sees it.
const GUESS: Draft = Draft {
    kind: Kind::AuthPlaintext,
    role: Role::Server,
    severity: Severity::Critical,
    peer: 0,
    reply: Some(535),
    stranger: true,
    has_evidence: true,
};

fn finding(draft: Draft, number: i64, time: i64) -> Finding {
    let (here, peer) = ("192.0.2.10".to_owned(), format!("198.51.{}.{}", draft.peer / 250, draft.peer % 250));
    let (client, server) = match draft.role {
        Role::Client => (format!("{here}:40000"), format!("{peer}:25")),
        Role::Server => (format!("{peer}:40000"), format!("{here}:25")),
    };
    let exhibit = EvidenceBundle { losses: BTreeMap::from([("ring_full".to_owned(), 3)]), ..EvidenceBundle::default() };
    Finding {
        schema_version: 1,
        id: format!("{number:08x}-0000-7000-8000-000000000000"),
        time: Timestamp(time),
        kind: draft.kind,
        rule: "A1".into(),
        severity: draft.severity,
        evidence: Evidence::Policy,
        outcome: Outcome::Content,
        role: draft.role,
        flow: FlowInfo { client, server, interface: String::new(), community_id: String::new() },
        peer: PeerInfo { stranger: draft.stranger && draft.role == Role::Server, ..PeerInfo::default() },
        expected: Expected::starttls(ExpectedSource::Standard, String::new()),
        observed: Observed {
            capabilities: Vec::new(),
            starttls: StarttlsState::Absent,
            mechanism: None,
            reply: draft.reply,
        },
        transcript: Vec::new(),
        gaps: 0,
        indicators: Vec::new(),
        sender: None,
        provenance: Provenance::default(),
        exhibit: draft.has_evidence.then(|| Box::new(exhibit)),
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("smtpwatch.db");
    (directory, path)
}

fn open(path: &Path) -> Store {
    let mut store = Store::open(path).expect("a store");
    store.count_held().expect("a count");
    store
}

/// Stores findings, and applies retention until nothing is left to remove.
fn keep(store: &mut Store, findings: &[Finding], retention: &Retention, now: i64) -> Removals {
    store
        .keep_findings(findings.iter().map(|finding| (finding, false)), WINDOW, Timestamp(now))
        .expect("they are stored");
    let mut removals = Removals::default();
    loop {
        let more = store.expire(retention, Timestamp(now)).expect("retention");
        if more.total() == 0 {
            return removals;
        }
        removals.add(&more);
    }
}

fn count(path: &Path, query: &str) -> i64 {
    Connection::open(path).expect("a database").query_row(query, [], |row| row.get(0)).expect("a count")
}

/// One critical incident, then this much noise: guesses, each from another address, and findings of other severities.
fn is_there_after(noise: i64) {
    const BATCH: i64 = 512;
    let (_directory, path) = place();
    let retention = Retention { findings: 500, ..WIDE };
    let mut store = open(&path);
    let strip = finding(STRIP, 0, START);
    let mut removals = keep(&mut store, std::slice::from_ref(&strip), &retention, START);
    let mut number = 1;
    while number <= noise {
        let batch: Vec<_> = (number..(number + BATCH).min(noise + 1))
            .map(|number| {
                let peer = u16::try_from(number % 50_000).expect("below");
                let draft = match number % 4 {
                    0 => Draft { severity: Severity::Medium, peer, ..STRIP },
                    1 => Draft { severity: Severity::Info, peer: 7, ..STRIP },
                    _ => Draft { peer, ..GUESS },
                };
                finding(draft, number, START + number * 1_000_000)
            })
            .collect();
        removals.add(&keep(&mut store, &batch, &retention, START + number * 1_000_000));
        number += BATCH;
        if number / BATCH % 4 == 0 {
            store = open(&path);
        }
    }
    let incident = store.incident(&strip.id).expect("the incident is there");
    assert_eq!((incident.severity, incident.findings, incident.kept), (Severity::Critical, 1, 1));
    let best = store.best_finding(&incident).expect("it can be read").expect("it is there");
    assert_eq!(best.finding, strip, "with its evidence");
    let verified = store.verify().expect("a check");
    assert_eq!(verified.broken, Vec::<String>::new());
    assert_eq!(verified.findings, 500);
    assert_eq!(verified.findings + verified.removed, unsigned(noise) + 1, "none is forgotten");
    assert_eq!(verified.removed, removals.total());
    let by_reason = verified.removed_for;
    assert_eq!([by_reason.age, by_reason.count, by_reason.bytes, by_reason.quota], removals.reasons);
    assert!(by_reason.quota > 0 && by_reason.count > 0, "{by_reason:?}");
    assert_eq!(removals.evidence, [0, 0]);
    assert!(verified.missing.len() == 100 && verified.missing[0].severity.critical > 0, "{:?}", verified.missing[0]);
    drop(store);
    assert_eq!(count(&path, "SELECT count(*) FROM finding JOIN worth USING (number) WHERE worth < 4"), 0);
    assert!(count(&path, "SELECT count(*) FROM tombstone WHERE removal IS NOT NULL") <= 500);
    assert!(count(&path, "SELECT count(*) FROM tombstone") <= 2 * 500 + 501, "merged");
}

#[test]
fn a_critical_incident_outlives_noise() {
    is_there_after(3_000);
}

/// `cargo test --release -p smtpwatch-store -- --ignored a_critical_incident_outlives_a_million`
#[test]
#[ignore = "takes minutes"]
fn a_critical_incident_outlives_a_million() {
    is_there_after(1_000_000);
}

#[test]
fn a_quota_limits_one_cause_in_a_store_that_is_not_full() {
    let (_directory, path) = place();
    let mut store = open(&path);
    let repeated = Draft { severity: Severity::Medium, ..STRIP };
    let made: Vec<_> = (0..50).map(|number| finding(repeated, number, START + number)).collect();
    let removals = keep(&mut store, &made, &WIDE, START);
    assert_eq!(removals, Removals { reasons: [0, 0, 0, 30], evidence: [0, 0] });
    let incident = store.incident(&made[0].id).expect("by its own identifier, although that finding may be gone");
    assert_eq!((incident.findings, incident.kept), (50, 20));
    for finding in &made {
        assert_eq!(store.incident(&finding.id).expect("by a removed finding").id, incident.id);
    }
    // Findings without evidence go before those with evidence, and the oldest first.
    let left = store.findings(&incident, None, 100).expect("findings");
    assert_eq!(left.iter().map(|kept| kept.number).collect::<Vec<_>>(), (13..=32).rev().collect::<Vec<_>>());
    assert_eq!(store.incidents(&Filter::default()).expect("a list"), [incident]);

    // Other peers and kinds have a quota of their own.
    let others = [Draft { peer: 26, ..repeated }, Draft { kind: Kind::StarttlsMasked, ..repeated }];
    let made: Vec<_> = (0..40).map(|at| finding(others[at % 2], 100 + at as i64, START)).collect();
    assert_eq!(keep(&mut store, &made, &WIDE, START).total(), 0);
    // Evidence of high and critical severity is not subject to it: 32 of an incident.
    let made: Vec<_> = (0..50).map(|number| finding(Draft { peer: 27, ..STRIP }, 200 + number, START)).collect();
    assert_eq!(keep(&mut store, &made, &WIDE, START).total(), 0);
    let made: Vec<_> = (0..5).map(|number| finding(Draft { peer: 27, ..STRIP }, 300 + number, START)).collect();
    assert_eq!(keep(&mut store, &made, &WIDE, START).reasons, [0, 0, 0, 3]);
    let incident = store.incident(&made[0].id).expect("an incident");
    assert_eq!((incident.findings, incident.kept), (55, 52));
    assert_eq!(store.verify().expect("a check").broken, Vec::<String>::new());
}

#[test]
fn evidence_goes_only_when_the_store_is_full_of_it_and_that_is_counted() {
    let strips = |peer, numbers: std::ops::Range<i64>| -> Vec<Finding> {
        // Each is an incident of its own.
        numbers.map(|number| finding(Draft { peer, ..STRIP }, number, START + number * 2 * HOUR)).collect()
    };
    let (_directory, path) = place();
    let mut store = open(&path);
    let first = strips(1, 0..1);
    keep(&mut store, &first, &WIDE, START);
    keep(&mut store, &strips(2, 1..40), &WIDE, START);
    let few = Retention { findings: 30, ..WIDE };
    let removals = keep(&mut store, &[], &few, START);
    assert_eq!(removals, Removals { reasons: [0, 10, 0, 0], evidence: [0, 10] });
    assert!(store.incident(&first[0].id).is_ok(), "those of the cause that exceeds its quota go first, not the oldest");
    let quieter = finding(Draft { severity: Severity::High, peer: 3, ..STRIP }, 100, START);
    let removals = keep(&mut store, &[quieter], &few, START);
    assert_eq!(removals, Removals { reasons: [0, 1, 0, 0], evidence: [1, 0] });

    let small = Retention { bytes: store.totals.bytes / 2, ..WIDE };
    let removals = keep(&mut store, &[], &small, START);
    assert_eq!(removals.reasons, [0, 0, removals.evidence[1], 0]);
    assert!(store.totals.bytes <= small.bytes && store.totals.findings > 10, "{:?}", store.totals);
    let left = store.totals.findings;
    let removals = keep(&mut store, &[], &WIDE, START + 91 * 24 * HOUR);
    assert_eq!(removals, Removals { reasons: [left, 0, 0, 0], evidence: [0, 0] }, "by age, as configured");
    let verified = store.verify().expect("a check");
    assert_eq!((verified.findings, verified.removed, verified.broken.len()), (0, 41, 0));
    assert_eq!(verified.removed_severity.critical, 40);
    assert_eq!(count(&path, "SELECT count(*) FROM cause") + count(&path, "SELECT count(*) FROM worth"), 0);
    assert!(store.incident(&first[0].id).is_err(), "an incident without findings is gone");
}

#[test]
fn an_edited_tombstone_shows() {
    let (_directory, path) = place();
    let mut store = open(&path);
    let made: Vec<_> =
        (0..60).map(|number| finding(Draft { severity: Severity::Low, ..STRIP }, number, START + number)).collect();
    keep(&mut store, &made, &Retention { findings: 15, ..WIDE }, START);
    let whole = store.verify().expect("a check");
    assert_eq!((whole.findings, whole.removed, whole.broken.len()), (15, 45, 0), "{whole:?}");
    assert!(whole.missing.iter().any(|missing| missing.first < missing.last && missing.id.is_none()), "merged");
    assert!(whole.missing.iter().any(|missing| missing.id.is_some()), "and some are not");
    let head: Vec<u8> = Connection::open(&path)
        .expect("a database")
        .query_row("SELECT chain FROM tombstone WHERE id IS NOT NULL LIMIT 1", [], |row| row.get(0))
        .expect("a hash");
    assert!(store.has_chain(&head).expect("a look-up"), "a head that was written down before its finding was removed");
    assert!(!store.has_chain(&[1; 32]).expect("a look-up"));
    drop(store);
    Connection::open(&path)
        .expect("a database")
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .expect("a checkpoint");
    let bytes = std::fs::read(&path).expect("the file");
    for (edit, expected) in [
        ("UPDATE tombstone SET low = low - 1, critical = critical + 1 WHERE first = 1", "removed numbers 1 to"),
        ("UPDATE tombstone SET by_quota = by_quota - 1, by_age = by_age + 1 WHERE first = 1", "removed numbers 1 to"),
        ("UPDATE tombstone SET ends = ends + 1 WHERE first = 1", "removed numbers 1 to"),
        ("UPDATE tombstone SET kind = 'x' WHERE id IS NOT NULL", "removed numbers"),
        ("UPDATE tombstone SET chain = zeroblob(32) WHERE last = (SELECT min(number) - 1 FROM finding)", "was changed"),
        ("DELETE FROM tombstone WHERE first = 1", "findings are missing before number"),
        ("UPDATE tombstone SET last = last + 1 WHERE first = 1", "is in the chain twice"),
        ("DELETE FROM tombstone WHERE last = 60", "findings after number 32 were removed"),
        ("DELETE FROM finding WHERE number = (SELECT max(number) FROM finding)", "findings are missing before number"),
    ] {
        std::fs::write(&path, &bytes).expect("the file");
        Connection::open(&path).expect("a database").execute_batch(edit).expect(edit);
        let found = Store::open_existing(&path).expect("a store").verify().expect("a check");
        assert!(found.broken.iter().any(|line| line.contains(expected)), "{edit}: {found:?}");
    }
    // What another program deleted is not hidden by a tombstone.
    std::fs::write(&path, &bytes).expect("the file");
    Connection::open(&path)
        .expect("a database")
        .execute_batch("DELETE FROM finding WHERE number = 30")
        .expect("an edit");
    let mut store = open(&path);
    keep(&mut store, &[], &Retention { findings: 1, ..WIDE }, START);
    let found = store.verify().expect("a check");
    assert!(found.broken.iter().any(|line| line.contains("1 findings are missing before number 31")), "{found:?}");
}

/// A store as schema 4 wrote it.
fn of_schema_4(path: &Path, findings: &[Finding]) {
    let connection = Connection::open(path).expect("a database");
    for step in STEPS.iter().take(4).copied().flatten() {
        connection.execute_batch(step).expect("a step");
    }
    connection.pragma_update(None, "application_id", APPLICATION_ID).expect("a mark");
    connection.pragma_update(None, "user_version", 4).expect("a mark");
    connection.execute("UPDATE chain_start SET number = 3, chain = ?1", [[7_u8; 32]]).expect("a start");
    let mut chain = [7; 32];
    for (number, finding) in (4..).zip(findings) {
        // Schema 4 groups every finding by its peer.
        let (own, other) = match finding.role {
            Role::Client => (&finding.flow.client, &finding.flow.server),
            Role::Server => (&finding.flow.server, &finding.flow.client),
        };
        assert!(own.starts_with("192.0.2.10:"));
        let (peer, port) = (other.split(':').next().expect("an address"), 25);
        let document = serde_json::to_string(finding).expect("a document");
        let exhibit = finding.exhibit.as_ref().map(|exhibit| serde_json::to_string(exhibit).expect("evidence"));
        chain = crate::findings::link(&chain, number, &document, exhibit.as_deref());
        connection
            .execute(
                "INSERT INTO incident (id, kind, role, peer, port, name, severity, evidence, outcome, findings, exhibits,
                    first_seen, last_seen) VALUES (?1, ?2, ?3, ?4, ?5, '', ?6, 1, 1, 2, 1, ?7, ?7)",
                params![
                    finding.id,
                    finding.kind.as_str(),
                    finding.role.as_str(),
                    peer,
                    port,
                    finding.severity as i64,
                    finding.time.0
                ],
            )
            .expect("an incident");
        let incident = connection.last_insert_rowid();
        connection
            .execute(
                "INSERT INTO finding VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6, ?7)",
                params![number, finding.id, incident, finding.time.0, document, exhibit, chain],
            )
            .expect("a finding");
    }
}

#[test]
fn a_store_of_schema_4_is_upgraded_in_place() {
    let drafts = [
        STRIP,
        GUESS,
        Draft { role: Role::Client, ..GUESS },
        Draft { reply: Some(235), ..GUESS },
        Draft { severity: Severity::High, has_evidence: false, ..STRIP },
        Draft { severity: Severity::Low, ..STRIP },
    ];
    let worths = [9, 1, 9, 9, 6, 3];
    let made: Vec<_> =
        (0..).zip(drafts).map(|(number, draft)| finding(draft, number, START + number * 2 * HOUR)).collect();
    for open_it in [Store::open, Store::open_existing] {
        let (_directory, path) = place();
        of_schema_4(&path, &made);
        let mut store = open_it(&path).expect("it is upgraded");
        let verified = store.verify().expect("a check");
        assert_eq!((verified.findings, verified.removed, verified.broken.len()), (6, 3, 0), "{verified:?}");
        assert_eq!((verified.removed_for.unknown, verified.removed_severity.unknown), (3, 3));
        let incident = store.incident(&made[0].id).expect("an incident");
        assert_eq!((incident.findings, incident.kept), (2, 1), "one finding of the incident was removed before");
        let worth = |number: usize| count(&path, &format!("SELECT worth FROM worth WHERE number = {}", number + 4));
        for (at, (draft, expected)) in drafts.iter().zip(worths).enumerate() {
            assert_eq!(worth(at), expected, "{draft:?}");
            assert_eq!(
                Worth::of(&made[at], draft.has_evidence).0,
                expected,
                "the same as for a finding that is stored"
            );
        }
        let causes = "SELECT group_concat(kind || ' ' || plain || high || critical, ', ' ORDER BY kind) FROM cause";
        let causes: String =
            Connection::open(&path).expect("a database").query_row(causes, [], |row| row.get(0)).expect("causes");
        assert_eq!(causes, "auth-plaintext 102, starttls-stripped 201");

        // The store continues like any other.
        store.count_held().expect("a count");
        let next = finding(Draft { severity: Severity::Info, ..STRIP }, 100, START);
        keep(&mut store, &[next], &Retention { findings: 4, ..WIDE }, START);
        let left = store.incidents(&Filter::default()).expect("a list");
        assert_eq!(left.iter().map(|incident| incident.severity as i64).collect::<Vec<_>>(), [3, 4, 4, 4]);
        let verified = store.verify().expect("a check");
        assert_eq!((verified.findings, verified.removed, verified.broken.len()), (4, 6, 0), "{verified:?}");
    }
}

#[test]
fn an_upgrade_takes_a_document_that_is_no_json() {
    let (_directory, path) = place();
    of_schema_4(&path, &[finding(STRIP, 0, START)]);
    Connection::open(&path).expect("a database").execute("UPDATE finding SET document = '{'", []).expect("an edit");
    drop(Store::open(&path).expect("it is upgraded"));
    assert_eq!(count(&path, "SELECT worth FROM worth"), 9, "its incident says how severe it was");
}

/// Stores findings without retention.
fn put(store: &mut Store, findings: &[Finding]) -> Vec<StoredAs> {
    let stored = store.keep_findings(findings.iter().map(|finding| (finding, false)), WINDOW, Timestamp(START));
    stored.expect("they are stored").into_iter().map(|(_, stored)| stored).collect()
}

/// First moment of a day in UTC.
const MIDNIGHT: i64 = START - START % (24 * HOUR);

/// Guesses on one day, from addresses in turn, with one of two mechanisms.
fn guesses(first: i64, count: i64, addresses: i64, day: i64) -> Vec<Finding> {
    let guess = |at: i64| {
        let peer = u16::try_from(at % addresses).expect("few");
        let draft = Draft { severity: Severity::Low, peer, ..GUESS };
        let mut guess = finding(draft, first + at, MIDNIGHT + (24 * day + 24 * at / count) * HOUR + at);
        guess.observed.mechanism = Some(if at % 3 == 0 { "LOGIN" } else { "PLAIN" }.to_owned());
        guess
    };
    (0..count).map(guess).collect()
}

/// All incidents, the most severe first.
fn by_worth(store: &mut Store) -> Vec<Incident> {
    store.incidents(&Filter { sort: Sort::Worth, ..Filter::default() }).expect("a list")
}

#[test]
fn a_day_of_guesses_is_one_incident_with_the_right_numbers() {
    let (_directory, path) = place();
    let mut store = open(&path);
    let mut made = guesses(0, 1_500, 300, 0);
    let strip = finding(STRIP, 9_000, MIDNIGHT + 5 * HOUR);
    made.insert(700, strip.clone());
    // The last moment of the day, and the first of the next one.
    made.push(finding(GUESS, 9_001, MIDNIGHT + 24 * HOUR - 1));
    made.extend(guesses(2_000, 40, 4, 1));
    let stored = put(&mut store, &made);
    let announced = made.iter().zip(&stored).filter(|(_, stored)| stored.is_announced);
    let announced: Vec<_> = announced.map(|(finding, stored)| (&finding.id, stored.findings)).collect();
    assert_eq!(
        announced,
        [(&made[0].id, 1), (&strip.id, 1), (&made[1_501].id, 1_501), (&made[1_502].id, 1)],
        "the first of each incident, and one that is more severe"
    );
    assert_eq!(stored[1_500].addresses, 300);

    let all = by_worth(&mut store);
    let numbers = |one: &Incident| (one.kind, one.about.as_str(), one.findings, one.addresses, one.unlisted);
    assert_eq!(
        all.iter().map(numbers).collect::<Vec<_>>(),
        [
            (Kind::AuthPlaintext, "guessing", 1_501, 300, 0),
            (Kind::StarttlsStripped, "peer", 1, 1, 0),
            (Kind::AuthPlaintext, "guessing", 40, 4, 0),
        ]
    );
    assert_eq!((&*all[0].peer, all[0].port, &*all[0].name), ("192.0.2.10", 25, ""), "this host's address");
    assert_eq!(all[0].cause, all[2].cause, "each day has the same cause");
    assert_ne!(all[0].cause, all[1].cause);
    let mechanisms: Vec<_> = all[0].mechanisms.iter().map(|one| (&*one.name, one.findings)).collect();
    assert_eq!(mechanisms, [("PLAIN", 1_000), ("LOGIN", 500)]);
    let exhibits = |incident: &Incident, store: &mut Store| {
        let first = store.first_findings(incident, 1_000).expect("findings");
        first.iter().filter(|stored| stored.finding.exhibit.is_some()).count() as i64
    };
    assert_eq!([exhibits(&all[0], &mut store), exhibits(&all[1], &mut store)], [EXHIBITS_OF_GUESSING, 1]);

    // Retention keeps a sample; the numbers stay.
    let removals = keep(&mut store, &[], &WIDE, START);
    assert_eq!(removals.reasons[3], 1_541 - MINIMUM_QUOTA, "addresses share one quota");
    let left = by_worth(&mut store);
    let numbers: Vec<_> = left.iter().map(|one| (one.findings, one.addresses, one.mechanisms.len())).collect();
    assert_eq!(numbers, [(1_501, 300, 2), (1, 1, 0), (40, 4, 2)]);
    assert_eq!(exhibits(&left[0], &mut store), EXHIBITS_OF_GUESSING);
    assert_eq!(store.verify().expect("a check").broken, Vec::<String>::new());
    keep(&mut store, &[], &WIDE, START + 91 * 24 * HOUR);
    for table in ["incident", "incident_client", "incident_mechanism", "cause", "worth"] {
        assert_eq!(count(&path, &format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
}

#[test]
fn the_clients_of_an_incident_are_bounded() {
    let (_directory, path) = place();
    let mut store = open(&path);
    put(&mut store, &guesses(0, 2_600, 1_300, 0));
    let [incident] = &by_worth(&mut store)[..] else { panic!("one incident") };
    assert_eq!((incident.findings, incident.addresses, incident.unlisted), (2_600, 1_000, 600));
    assert_eq!(incident.address_count(), "at least 1000 addresses");
    assert_eq!(count(&path, "SELECT count(*) FROM incident_client"), ADDRESSES_PER_INCIDENT);
    assert_eq!(count(&path, "SELECT sum(findings) FROM incident_client"), 2_000);
    let named = |number: i64| {
        let mut guess = finding(GUESS, 10_000 + number, MIDNIGHT);
        guess.observed.mechanism = Some(format!("X-{number}"));
        guess
    };
    put(&mut store, &(0..40).map(named).collect::<Vec<_>>());
    assert_eq!(by_worth(&mut store)[0].mechanisms.len(), 16);
}

#[test]
fn what_this_host_does_is_one_incident_and_announced_daily() {
    let (_directory, path) = place();
    let mut store = open(&path);
    let offer = Draft { kind: Kind::AuthOfferedPlaintext, severity: Severity::Medium, reply: None, ..GUESS };
    // Every two hours for three days, from another client each time; then a pause of more than a day.
    let hours: Vec<i64> = (0..36).map(|number| 2 * number).chain([70 + 26]).collect();
    let at = |(peer, hour): (u16, &i64)| finding(Draft { peer, ..offer }, peer.into(), START + hour * HOUR);
    let stored = put(&mut store, &(0..).zip(&hours).map(at).collect::<Vec<_>>());
    let announced = hours.iter().zip(&stored).filter(|(_, stored)| stored.is_announced).map(|(hour, _)| *hour);
    assert_eq!(announced.collect::<Vec<_>>(), [0, 24, 48, 96]);
    let all = store.incidents(&Filter::default()).expect("a list");
    let numbers: Vec<_> = all.iter().map(|one| (one.about.as_str(), one.findings, one.addresses)).collect();
    assert_eq!(numbers, [("this-host", 1, 1), ("this-host", 36, 36)]);
    assert_eq!(Worth::of(&finding(offer, 99, START), true).0, 5, "noise is only what strangers do");
    // Findings that are stored already, as after a commit that reported an error: the one that was announced last is
    // announced again.
    let again: Vec<_> = (22..26).zip(&hours[22..]).map(at).collect();
    let announced = put(&mut store, &again).into_iter().map(|stored| stored.is_announced);
    assert_eq!(announced.collect::<Vec<_>>(), [false, false, true, false]);
}

#[test]
fn a_list_by_worth_is_the_same_page_by_page() {
    let (_directory, path) = place();
    let mut store = open(&path);
    let drafts = (0..30_u16).map(|peer| Draft { peer, severity: Severity::ALL[usize::from(peer) * 7 % 5], ..STRIP });
    let made: Vec<_> = (0..).zip(drafts).map(|(number, draft)| finding(draft, number, START + number / 2)).collect();
    put(&mut store, &made);
    let all = by_worth(&mut store);
    assert_eq!(all.len(), 30);
    assert!(all.is_sorted_by_key(|one| std::cmp::Reverse((one.severity, one.last_seen))), "{all:?}");
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = store.incidents(&Filter { sort: Sort::Worth, after, limit: 4, ..Filter::default() });
        let page = page.expect("a page");
        let Some(last) = page.last() else { break };
        after = Some(last.cursor(Sort::Worth).to_string().parse().expect("a cursor"));
        pages.extend(page);
    }
    assert_eq!(pages, all);
}

fn draft() -> impl Strategy<Value = Draft> {
    let kinds = prop_oneof![Just(Kind::StarttlsStripped), Just(Kind::AuthPlaintext)];
    let roles = prop_oneof![Just(Role::Client), Just(Role::Server)];
    let replies = prop_oneof![Just(None), Just(Some(235)), Just(Some(535))];
    (kinds, roles, 0..5_usize, 0..3_u16, replies, any::<bool>(), any::<bool>()).prop_map(
        |(kind, role, severity, peer, reply, stranger, has_evidence)| Draft {
            kind,
            role,
            severity: Severity::ALL[severity],
            peer,
            reply,
            stranger,
            has_evidence,
        },
    )
}

/// Number, worth and time of storage of each finding.
fn stored(path: &Path) -> BTreeMap<i64, (i64, i64)> {
    let connection = Connection::open(path).expect("a database");
    let mut query =
        connection.prepare("SELECT number, worth, kept FROM finding JOIN worth USING (number)").expect("a query");
    let rows = query.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).expect("rows");
    rows.collect::<rusqlite::Result<_>>().expect("rows")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever arrives, in batches and with restarts: the bounds hold, the chain verifies, and a bound of the whole store
    /// never removes a finding while one of less worth is left.
    #[test]
    fn bounds_hold_and_the_least_worth_goes(
        batches in prop::collection::vec((prop::collection::vec(draft(), 0..60), 0..30_i64, any::<bool>()), 1..12),
        findings in 5..80_u64,
        bytes in 3_000..60_000_u64,
    ) {
        let retention = Retention { age_days: 1, findings, bytes };
        let (_directory, path) = place();
        let mut store = open(&path);
        let (mut number, mut now, mut made) = (0, START, 0);
        for (drafts, hours, restarts) in batches {
            now += hours * HOUR / 4;
            let batch: Vec<_> = drafts.iter().map(|draft| { number += 1; finding(*draft, number, now) }).collect();
            made += batch.len() as u64;
            store.keep_findings(batch.iter().map(|finding| (finding, false)), WINDOW, Timestamp(now)).expect("stored");
            if restarts {
                store = open(&path);
            }
            let before = stored(&path);
            let removals = keep(&mut store, &[], &retention, now);
            let after = stored(&path);
            prop_assert_eq!((before.len() - after.len()) as u64, removals.total());
            prop_assert!(store.totals.findings <= findings && store.totals.bytes <= bytes, "{:?}", store.totals);
            let totals = store.totals;
            store.count_held().expect("a count");
            prop_assert_eq!((totals.findings, totals.bytes), (store.totals.findings, store.totals.bytes));
            prop_assert!(store.totals.most_of_a_cause <= quota(&retention));
            prop_assert!(after.values().all(|(_, kept)| *kept >= now - 24 * HOUR), "none is too old");

            let least = after.values().map(|(worth, _)| *worth).min();
            let connection = Connection::open(&path).expect("a database");
            let mut query = connection.prepare("SELECT first, by_count + by_bytes FROM tombstone WHERE id IS NOT NULL").expect("a query");
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
            for row in rows {
                let (number, for_room): (i64, i64) = row.expect("a row");
                if let (1, Some((worth, _)), Some(least)) = (for_room, before.get(&number), least) {
                    prop_assert!(*worth <= least, "number {} of worth {} went before one of {}", number, worth, least);
                }
            }

            let verified = store.verify().expect("a check");
            prop_assert_eq!(&verified.broken, &Vec::<String>::new());
            prop_assert_eq!(verified.findings, after.len() as u64);
            prop_assert_eq!(verified.findings + verified.removed, made);
            let incidents = store.incidents(&Filter::default()).expect("a list");
            prop_assert_eq!(incidents.iter().map(|incident| incident.kept).sum::<u64>(), after.len() as u64);
            prop_assert!(incidents.iter().all(|incident| incident.kept > 0 && incident.kept <= incident.findings));
            let tombstones = count(&path, "SELECT count(*) FROM tombstone");
            prop_assert!(unsigned(tombstones) <= 3 * findings + 1, "{} tombstones", tombstones);
        }
    }
}
