//! Stored findings: grouping, retrieval, the hash chain, retention; and a damaged store.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use smtpwatch_config::{Config, Retention};
use smtpwatch_core::{
    Finding, Role, Timestamp,
    cause::{About, Cause},
    evidence::EvidenceBundle,
    finding::{Evidence, Kind, Severity},
    policy::history::History,
};
use smtpwatch_pipeline::{
    incident,
    replay::{Event, Replay},
};
use smtpwatch_store::{
    EXHIBITS_PER_INCIDENT, Store, StoreError, Writer, WriterSettings,
    incidents::{Filter, LookupError, Sort},
    retention::Removals,
};

use crate::traffic::{self, CLIENT, START_NS};

/// A finding about a credential in cleartext, as the engine raises it.
pub fn credential() -> Finding {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    std::fs::write(&path, traffic::pcap(&traffic::password(), 1, false, false)).unwrap();
    let mut replay = Replay::new(&Config::default(), History::new(100));
    let mut found = Vec::new();
    let mut take = |event| {
        if let Event::Finding(finding) = event {
            found.push(*finding);
        }
    };
    replay.file(&path, &mut take).unwrap();
    replay.finish(&mut take);
    found.into_iter().find(|finding| finding.kind == Kind::AuthPlaintext).unwrap()
}

/// The same finding about another peer, this many seconds later.
pub fn later(finding: &Finding, server: &str, seconds: i64) -> Finding {
    let mut finding = finding.clone();
    finding.time = Timestamp(finding.time.0 + seconds * 1_000_000_000);
    finding.flow.server = server.to_owned();
    finding.exhibit.get_or_insert_default();
    incident::name(&mut finding, "none");
    finding
}

/// Stores findings through the writer's thread.
pub fn keep(path: &Path, retention: Retention, findings: &[Finding]) -> Vec<(String, u64)> {
    let stored_as = Arc::new(Mutex::new(Vec::new()));
    let on_record = {
        let stored_as = stored_as.clone();
        Box::new(move |finding: &Finding, stored: &smtpwatch_store::StoredAs| {
            assert!(!finding.id.is_empty());
            stored_as.lock().unwrap().push((stored.incident.clone(), stored.findings));
        })
    };
    let (writer, _) =
        Writer::start(path, WriterSettings { retention, on_record, ..WriterSettings::default() }).unwrap();
    let handle = writer.handle().unwrap().blocking();
    for finding in findings {
        assert!(handle.finding(Box::new(finding.clone())).is_ok());
    }
    drop(handle);
    assert_eq!(writer.finish(), 0);
    std::mem::take(&mut stored_as.lock().unwrap())
}

pub fn store() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    (directory, path)
}

#[test]
fn findings_of_one_peer_within_the_window_are_one_incident() {
    let (_directory, path) = store();
    let one = credential();
    let made: Vec<_> = [("198.51.100.25:587", 0), ("198.51.100.25:587", 3_000), ("198.51.100.26:587", 3_001)]
        .into_iter()
        .chain([("198.51.100.25:587", 6_500), ("198.51.100.25:587", 10_200), ("198.51.100.25:587", 1)])
        .map(|(server, seconds)| later(&one, server, seconds))
        .collect();
    let stored_as = keep(&path, Retention::default(), &made);
    let first = &made[0].id;
    assert_eq!(
        stored_as.iter().map(|(_, findings)| *findings).collect::<Vec<_>>(),
        [1, 2, 1, 3, 1, 4],
        "{stored_as:?}"
    );
    assert_eq!((&stored_as[0].0, &stored_as[5].0), (first, first), "a late one belongs to the incident of its time");

    let mut store = Store::open_existing(&path).unwrap();
    let all = store.incidents(&Filter::default()).unwrap();
    assert_eq!(all.iter().map(|incident| incident.findings).collect::<Vec<_>>(), [1, 4, 1], "newest first: {all:?}");
    let incident = store.incident(first).unwrap();
    assert_eq!((incident.kind, incident.severity), (Kind::AuthPlaintext, Severity::Critical));
    assert_eq!((incident.peer.as_str(), incident.port), ("198.51.100.25", 587));
    assert_eq!((incident.first_seen, incident.last_seen), (made[0].time, made[3].time));
    assert_eq!(store.incident(&made[3].id).unwrap().id, *first, "by any of its findings");
    assert_eq!(store.incident(&first[..first.len() - 2]).map(|found| found.id).ok(), Some(first.clone()));
    assert!(matches!(store.incident("0000"), Err(LookupError::Unknown(_))));
    assert!(matches!(store.incident(&first[..5]), Err(LookupError::Ambiguous(_, list)) if list.len() > 1));
    let reach = store.reach(&incident).unwrap();
    assert_eq!((reach.peers, reach.network), (2, 2));

    let mut first_page = store.incidents(&Filter { limit: 2, ..Filter::default() }).unwrap();
    let cursor = first_page.last().unwrap().cursor(Sort::Time).to_string().parse().unwrap();
    first_page.extend(store.incidents(&Filter { after: Some(cursor), limit: 2, ..Filter::default() }).unwrap());
    assert_eq!(first_page, all, "page by page it is the same list");

    let count = |filter: Filter| Store::open_existing(&path).unwrap().incidents(&filter).unwrap().len();
    assert_eq!(count(Filter { peer: Some("198.51.100.26".parse().unwrap()), ..Filter::default() }), 1);
    assert_eq!(count(Filter { peer: Some("198.51.100.0/24".parse().unwrap()), ..Filter::default() }), 3);
    assert_eq!(count(Filter { peer: Some("*.example.net".parse().unwrap()), ..Filter::default() }), 3);
    assert_eq!(count(Filter { peer: Some("example.net".parse().unwrap()), ..Filter::default() }), 0);
    assert_eq!(count(Filter { kinds: vec![Kind::StarttlsStripped], ..Filter::default() }), 0);
    assert_eq!(count(Filter { kinds: vec![Kind::StarttlsStripped, Kind::AuthPlaintext], ..Filter::default() }), 3);
    assert_eq!(count(Filter { severity: Some(Severity::Critical), ..Filter::default() }), 3);
    assert_eq!(count(Filter { evidence: Some(Evidence::Tamper), ..Filter::default() }), 0);
    assert_eq!(count(Filter { since: Some(made[4].time), ..Filter::default() }), 1);
    assert_eq!(count(Filter { until: Some(made[2].time), ..Filter::default() }), 1);

    let stored = store.findings(&incident, None, 10).unwrap();
    assert_eq!(stored.iter().map(|stored| stored.number).collect::<Vec<_>>(), [6, 4, 2, 1]);
    assert_eq!(
        serde_json::from_str::<Finding>(&stored[3].document).unwrap(),
        Finding { exhibit: None, ..made[0].clone() }
    );
    assert_eq!(stored[3].finding, made[0], "with its evidence");
    assert_eq!(store.findings(&incident, Some(4), 1).unwrap()[0].number, 2);
    assert_eq!(store.best_finding(&incident).unwrap().unwrap().finding.id, *first);
}

#[test]
fn every_later_edit_shows() {
    let one = credential();
    let made: Vec<_> = (0..5).map(|second| later(&one, "198.51.100.25:587", second)).collect();
    let (_directory, path) = store();
    keep(&path, Retention::default(), &made[..4]);
    let noted = Store::open_existing(&path).unwrap().verify().unwrap();
    assert_eq!((noted.findings, noted.removed, noted.broken.len()), (4, 0, 0), "{noted:?}");
    keep(&path, Retention::default(), &made[4..]);
    let whole = Store::open_existing(&path).unwrap().verify().unwrap();
    assert!(whole.broken.is_empty() && whole.head != noted.head, "{whole:?}");

    let bytes = std::fs::read(&path).unwrap();
    for (edit, expected) in [
        ("UPDATE finding SET document = replace(document, 'critical', 'info') WHERE number = 2", "number 2"),
        ("UPDATE finding SET exhibit = NULL WHERE number = 5", "number 5"),
        ("DELETE FROM finding WHERE number = 3", "1 findings are missing before number 4"),
        ("DELETE FROM finding WHERE number = 1", "1 findings are missing before number 2"),
        ("DELETE FROM finding WHERE number = 5", "findings after number 4 were removed"),
        ("UPDATE finding SET chain = zeroblob(32) WHERE number = 3", "number 3"),
        ("UPDATE finding SET number = 9 WHERE number = 5", "number 9"),
        ("UPDATE chain_start SET chain = randomblob(32)", "the start of the chain was changed"),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        Connection::open(&path).unwrap().execute_batch(edit).unwrap();
        let found = Store::open_existing(&path).unwrap().verify().unwrap();
        assert!(found.broken.iter().any(|line| line.contains(expected)), "{edit}: {found:?}");
    }
    // An attacker who knows the program can forge a chain; a copy of its head made earlier reveals that.
    std::fs::write(&path, &bytes).unwrap();
    let mut store = Store::open_existing(&path).unwrap();
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    assert!(store.has_chain(&bytes(&noted.head)).unwrap());
    assert!(!store.has_chain(&[1; 32]).unwrap());
}

#[test]
fn retention_removes_the_oldest_and_the_chain_continues() {
    let one = credential();
    let made: Vec<_> = (0..300).map(|number| later(&one, "198.51.100.25:587", number * 4_000)).collect();
    let (_directory, path) = store();
    keep(&path, Retention { findings: 100, ..Retention::default() }, &made);
    let mut store = Store::open_existing(&path).unwrap();
    let verified = store.verify().unwrap();
    assert!(verified.broken.is_empty(), "{verified:?}");
    assert_eq!((verified.findings, verified.removed), (100, 200));
    let left = store.incidents(&Filter::default()).unwrap();
    assert_eq!((left.len(), &left[0].id, &left[99].id), (100, &made[299].id, &made[200].id));
    drop(store);

    // With a lower byte limit, the excess is removed at the next start.
    keep(&path, Retention { bytes: 20_000, ..Retention::default() }, &[]);
    let mut store = Store::open_existing(&path).unwrap();
    let fewer = store.verify().unwrap();
    assert!(fewer.broken.is_empty() && (1..60).contains(&fewer.findings), "{fewer:?}");
    drop(store);
    // By age: findings stored longer ago than the limit.
    Connection::open(&path).unwrap().execute("UPDATE finding SET kept = kept - 2 * 86400 * 1000000000", []).unwrap();
    keep(&path, Retention { age_days: 1, ..Retention::default() }, &[]);
    let mut store = Store::open_existing(&path).unwrap();
    let empty = store.verify().unwrap();
    assert_eq!((empty.findings, empty.removed, empty.broken.len()), (0, 300, 0));
    assert_eq!(store.incidents(&Filter::default()).unwrap(), []);
    drop(store);
    keep(&path, Retention::default(), &made[..1]);
    let again = Store::open_existing(&path).unwrap().verify().unwrap();
    assert_eq!((again.findings, again.removed, again.broken.len()), (1, 300, 0));
}

/// A login with its password, then bots that guess: the guesses go, although each is as severe, and are one incident.
#[test]
fn guesses_displace_no_evidence() {
    let one = credential();
    let (_directory, path) = store();
    let stolen = later(&one, "198.51.100.25:587", 0);
    let guess = |number: i64| {
        let mut guess = later(&one, "192.0.2.10:587", number);
        guess.role = Role::Server;
        guess.flow.client = format!("203.0.113.{}:40000", number % 5);
        guess.observed.reply = Some(535);
        guess.peer.stranger = true;
        guess
    };
    let guesses = (1..=750).map(guess);
    let retention = Retention { findings: 500, ..Retention::default() };
    let (writer, _) = Writer::start(&path, WriterSettings { retention, ..WriterSettings::default() }).unwrap();
    let handle = writer.handle().unwrap().blocking();
    for finding in std::iter::once(stolen.clone()).chain(guesses) {
        assert!(handle.finding(Box::new(finding)).is_ok());
    }
    let end = Instant::now() + Duration::from_secs(20);
    while writer.status().removals.total() < 730 {
        assert!(Instant::now() < end, "{:?}", writer.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    let Removals { reasons, evidence } = writer.status().removals;
    assert_eq!((reasons, evidence), ([0, 0, 0, 730], [0, 0]), "five peers, twenty of all of them");
    drop(handle);
    assert_eq!(writer.finish(), 0);

    let mut store = Store::open_existing(&path).unwrap();
    let incident = store.incident(&stolen.id).unwrap();
    assert_eq!(store.best_finding(&incident).unwrap().unwrap().finding, stolen, "with its evidence");
    let bots = store.incidents(&Filter { role: Some(Role::Server), ..Filter::default() }).unwrap();
    assert_eq!(
        bots.iter().map(|bot| (bot.findings, bot.kept, bot.addresses, bot.about)).collect::<Vec<_>>(),
        [(750, 20, 5, About::Guessing)]
    );
    let cause = Cause::of(&guess(1)).unwrap();
    assert_eq!((&bots[0].peer[..], bots[0].port, &bots[0].cause), ("192.0.2.10", 587, &cause.id()), "this host");
    let found = |peer: &str| {
        let filter = Filter { peer: Some(peer.parse().unwrap()), ..Filter::default() };
        Store::open_existing(&path).unwrap().incidents(&filter).unwrap().len()
    };
    assert_eq!([found("203.0.113.4"), found("203.0.113.5"), found("192.0.2.10")], [1, 0, 1], "by a client too");
    let text = |arguments: &[&str]| {
        let (code, text, _) =
            smtpwatch(&[arguments, &["--format", "text", "--store", path.to_str().unwrap()]].concat());
        assert_eq!(code, 0);
        text
    };
    let verified = text(&["incidents", "verify"]);
    assert!(verified.starts_with("the chain is whole: 21 findings checked, 730 removed by retention\n"), "{verified}");
    assert!(verified.contains("  severity: critical 730\n  reason: quota 730\n"), "{verified}");
    let list = text(&["incidents", "list"]);
    assert_eq!(list.matches("20 of 750").count(), 1, "{list}");
    assert!(list.contains("password guessing in cleartext: 750 attempts from 5 addresses"), "{list}");
    let shown = text(&["incidents", "show", &bots[0].id]);
    assert!(shown.contains("\n750 findings (20 kept) from "), "{shown}");
    assert!(shown.contains(": password guessing in cleartext: 750 attempts from 5 addresses.\n"), "{shown}");
    assert!(shown.contains("; clients: 5 addresses.\nmechanisms: PLAIN 750\n"), "{shown}");
    assert!(!shown.contains("change it now") && shown.contains("None of these logins was accepted"), "{shown}");
    let letter = text(&["incidents", "export", &bots[0].id]);
    assert!(letter.contains("tries passwords at our mail server") && !letter.contains("carrier"), "{letter}");
    assert!(!letter.contains("changes these"), "it blames no device on the way: {letter}");
}

#[test]
fn one_incident_keeps_the_evidence_of_its_first_findings() {
    let one = credential();
    let most = usize::try_from(EXHIBITS_PER_INCIDENT).unwrap();
    let made: Vec<_> = (0..).take(most + 3).map(|second| later(&one, "198.51.100.25:587", second)).collect();
    let (_directory, path) = store();
    keep(&path, Retention::default(), &made);
    let mut store = Store::open_existing(&path).unwrap();
    let incident = store.incident(&made[0].id).unwrap();
    let stored = store.findings(&incident, None, 1_000).unwrap();
    assert_eq!(stored.len(), most + 3);
    assert_eq!(stored.iter().filter(|stored| stored.finding.exhibit.is_some()).count(), most);
    assert!(stored.iter().all(|stored| !stored.finding.transcript.is_empty()), "the documents are all there");
    let _: &EvidenceBundle = store.best_finding(&incident).unwrap().unwrap().finding.exhibit.as_deref().unwrap();
    assert!(store.verify().unwrap().broken.is_empty());
}

#[test]
fn a_damaged_store_is_set_aside_and_the_daemon_continues() {
    let one = credential();
    let made: Vec<_> = (0..200).map(|second| later(&one, "198.51.100.25:587", second)).collect();
    // In the middle, in the first page (so that it is not a database), and truncated.
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle / 4096 * 4096..][..40_960].fill(0xa5);
        },
        |bytes| bytes[..100].fill(0x5a),
        |bytes| bytes.truncate(bytes.len() / 2),
    ];
    for (case, damage) in damages.into_iter().enumerate() {
        let (directory, path) = store();
        keep(&path, Retention::default(), &made);
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let error = Store::open(&path).map(drop).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{case}: {error}");
        keep(&path, Retention::default(), &made[..2]);
        let fresh = Store::open_existing(&path).unwrap().verify().unwrap();
        assert_eq!((fresh.findings, fresh.broken.len()), (2, 0), "{case}");
        let aside = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let aside: Vec<_> = aside.filter(|path| path.to_string_lossy().contains(".db.damaged-")).collect();
        let [aside] = &aside[..] else { panic!("{case}: {aside:?}") };
        assert_eq!(std::fs::read(aside).unwrap(), bytes, "{case}: nothing is deleted");
    }
}

/// The replay of a capture fills a store, and the next replay uses its history.
#[test]
fn a_replay_fills_a_store() {
    let (directory, path) = store();
    let capture = directory.path().join("capture");
    std::fs::write(&capture, traffic::pcap(&traffic::password(), 1, false, false)).unwrap();
    let replay = Command::new(env!("CARGO_BIN_EXE_smtpwatch"))
        .env_clear()
        .args(["replay", "--format", "json", "--store"])
        .args([&path, &capture])
        .output()
        .unwrap();
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    let printed: Vec<Finding> =
        String::from_utf8(replay.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut store = Store::open_existing(&path).unwrap();
    for finding in &printed {
        let stored = store.finding(&finding.id).unwrap();
        assert_eq!(Finding { exhibit: None, ..stored.finding }, *finding);
        assert!(
            stored.finding.time.since(Timestamp(i64::try_from(START_NS).unwrap())) < Duration::from_secs(60),
            "the time of the packets"
        );
    }
    assert!(!printed.is_empty() && printed.iter().all(|finding| finding.flow.client == CLIENT));
    let days = store.offer_days(Role::Client, "198.51.100.25", 587).unwrap();
    let [(day, offers)] = &days[..] else { panic!("{days:?}") };
    assert_eq!((day.to_string().as_str(), offers.sessions, offers.offered), ("2026-11-23", 1, 1));
}

const STRIPPED: &str = "250-SIZE 1000\r\n250-XXXXXXXA\r\n250 8BITMIME\r\n";
const RULE: &str = "[[rule]]\nstarttls = \"required\"\nauth_plaintext = \"forbid\"\n";

fn smtpwatch(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_smtpwatch")).env_clear().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A store filled from captures: a masked reply with mail in cleartext, and a password.
struct Filled {
    directory: tempfile::TempDir,
}

impl Filled {
    fn new() -> Self {
        let filled = Self { directory: tempfile::tempdir().unwrap() };
        let mail = traffic::mail(CLIENT, START_NS, STRIPPED);
        std::fs::write(filled.path("mail"), traffic::pcap(&mail, 1, false, false)).unwrap();
        std::fs::write(filled.path("password"), traffic::pcap(&traffic::password(), 1, false, false)).unwrap();
        std::fs::write(filled.path("rule.toml"), RULE).unwrap();
        let found = filled.replay(&filled.path("db"), &[&filled.path("mail"), &filled.path("password")]);
        assert!(found.iter().any(|finding| finding.kind == Kind::AuthPlaintext), "{found:?}");
        filled
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn replay(&self, store: &str, files: &[&str]) -> Vec<Finding> {
        let rule = self.path("rule.toml");
        let arguments = [&["replay", "--config", &rule, "--format", "json", "--store", store], files].concat();
        let (code, stdout, stderr) = smtpwatch(&arguments);
        assert_eq!(code, 0, "{stderr}");
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn incidents(&self, arguments: &[&str]) -> (i32, String, String) {
        smtpwatch(&[&["incidents"], arguments, &["--store", &self.path("db")]].concat())
    }

    /// The identifier of the first incident of a kind.
    fn id(&self, kind: &str) -> String {
        let (code, stdout, stderr) = self.incidents(&["list", "--kind", kind, "--format", "json"]);
        assert_eq!(code, 0, "{stderr}");
        let first: serde_json::Value = serde_json::from_str(stdout.lines().next().unwrap()).unwrap();
        first["id"].as_str().unwrap().to_owned()
    }
}

#[test]
fn incidents_are_listed_and_shown_with_the_difference() {
    let filled = Filled::new();
    let (code, all, _) = filled.incidents(&["list", "--format", "json"]);
    assert_eq!(code, 0);
    let (_, loud, _) = filled.incidents(&["list", "--format", "json", "--severity", "critical"]);
    assert!(loud.lines().count() >= 1 && loud.lines().count() <= all.lines().count());
    let (_, none, _) = filled.incidents(&["list", "--format", "json", "--peer", "203.0.113.0/24"]);
    assert_eq!(none, "");
    let (_, table, _) = filled.incidents(&["list", "--format", "text", "--since", "2026-11-01T00:00:00Z"]);
    assert!(table.contains("SEVERITY") && table.contains("auth-plaintext"), "{table}");
    let severities = |arguments: &[&str]| {
        let (_, list, _) = filled.incidents(&[&["list", "--format", "json"], arguments].concat());
        let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let severity = |line| read(line)["severity"].as_str().unwrap().parse::<Severity>().unwrap();
        list.lines().map(severity).collect::<Vec<_>>()
    };
    let by_worth = severities(&["--sort", "worth"]);
    assert!(by_worth.is_sorted_by(|one, next| one >= next), "{by_worth:?}");
    assert_eq!(severities(&[]), severities(&["--sort", "time"]));
    assert!(by_worth.first() != by_worth.last(), "it shows an order: {by_worth:?}");
    for bad in
        [["--sort", "severity"], ["--since", "yesterday"], ["--kind", "nothing"], ["--peer", "a b"], ["--limit", "0"]]
    {
        assert_eq!(filled.incidents(&[&["list"], &bad[..]].concat()).0, 2, "{bad:?}");
    }

    let id = filled.id("starttls-masked");
    let (code, shown, _) = filled.incidents(&["show", &id, "--format", "text"]);
    assert_eq!(code, 0);
    assert!(shown.contains("!  STARTTLS                 XXXXXXXA   <- overwritten"), "{shown}");
    assert!(shown.contains("S: 250-XXXXXXXA") && shown.contains("next: "), "{shown}");
    let (_, shown, _) = filled.incidents(&["show", &id[..id.len() - 1], "--format", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["incident"]["id"], *id);
    assert!(shown["findings"][0]["exhibit"]["packets"].as_array().unwrap().len() > 10);
    let (code, _, stderr) = filled.incidents(&["show", "ffff"]);
    assert!(code == 1 && stderr.contains("no such incident or finding"), "{stderr}");
}

#[test]
fn the_chain_is_checked_by_command() {
    let filled = Filled::new();
    let (code, answer, _) = filled.incidents(&["verify", "--format", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, answer["broken"].as_array().unwrap().len()), (0, 0), "{answer}");
    let head = answer["head"].as_str().unwrap();
    assert_eq!(filled.incidents(&["verify", "--head", head]).0, 0);
    let (code, answer, _) = filled.incidents(&["verify", "--format", "text", "--head", &"1".repeat(64)]);
    assert!(code == 1 && answer.contains("BROKEN"), "{answer}");
    assert_eq!(filled.incidents(&["verify", "--head", "12"]).0, 2);
    Connection::open(filled.path("db"))
        .unwrap()
        .execute("UPDATE finding SET document = replace(document, '198.51.100.25', '198.51.100.26')", [])
        .unwrap();
    let (code, answer, _) = filled.incidents(&["verify", "--format", "text"]);
    assert!(code == 1 && answer.contains("number 1"), "{answer}");
}

#[test]
fn an_incident_is_handed_over_in_every_form() {
    let filled = Filled::new();
    let id = filled.id("auth-plaintext");
    let (code, json, _) = filled.incidents(&["export", &id]);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let findings = json["findings"].as_array().unwrap().len();
    assert!(findings > 0);
    let (_, text, _) = filled.incidents(&["export", &id, "--format", "text"]);
    assert!(text.lines().count() > 10 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in
        ["a password or token crossed the network in cleartext", "PLAIN", "198.51.100.25:587", &id, "C: AUTH PLAIN"]
    {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    let (_, ecs, _) = filled.incidents(&["export", &id, "--format", "ecs"]);
    let ecs: serde_json::Value = serde_json::from_str(ecs.lines().next().unwrap()).unwrap();
    assert_eq!((&ecs["event"]["kind"], &ecs["source"]["ip"]), (&"alert".into(), &"192.0.2.10".into()), "{ecs}");
    assert_eq!((&ecs["destination"]["port"], &ecs["rule"]["id"]), (&587.into(), &"F1".into()));
    let (_, eve, _) = filled.incidents(&["export", &id, "--format", "eve"]);
    let eve: serde_json::Value = serde_json::from_str(eve.lines().next().unwrap()).unwrap();
    assert_eq!((&eve["event_type"], &eve["alert"]["severity"]), (&"alert".into(), &1.into()), "{eve}");
    assert!(eve["timestamp"].as_str().unwrap().ends_with("+0000"));
    assert_eq!(eve["community_id"], ecs["network"]["community_id"]);
    for kind in ["auth-plaintext", "starttls-masked"] {
        for form in ["json", "text", "ecs", "eve"] {
            let (_, answer, _) = filled.incidents(&["export", &filled.id(kind), "--format", form]);
            assert!(!answer.contains("AGFsaWNlAGh1bnRlcjI") && !answer.contains("hunter2"), "{form}");
        }
    }
}

/// The capture file made from evidence is evidence itself: the program finds the same in it.
#[test]
fn the_capture_file_of_an_incident_shows_the_same_finding() {
    let filled = Filled::new();
    for (kind, number) in [("starttls-masked", 1), ("auth-plaintext", 2)] {
        let file = filled.path(&format!("{kind}.pcapng"));
        let (code, stdout, stderr) = filled.incidents(&["export", &filled.id(kind), "--pcapng", &file]);
        assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(8).any(|window| window == b"AGFsaWNl"), "no secret");
        let mut store = Store::open_existing(Path::new(&filled.path("db"))).unwrap();
        let incident = store.incident(&filled.id(kind)).unwrap();
        let first = store.first_findings(&incident, 1).unwrap().remove(0).finding;
        let again = filled.replay(&filled.path(&format!("again-{number}")), &[&file]);
        let again =
            again.iter().find(|finding| finding.kind == first.kind).unwrap_or_else(|| panic!("{kind}: {again:?}"));
        assert_eq!((&again.rule, again.evidence, again.outcome), (&first.rule, first.evidence, first.outcome));
        assert_eq!((&again.observed, &again.expected, &again.peer), (&first.observed, &first.expected, &first.peer));
        assert_eq!((again.time, &again.flow.community_id), (first.time, &first.flow.community_id));
        assert_eq!(again.transcript, first.transcript);
    }
}

#[test]
fn wireshark_reads_the_capture_file() {
    let filled = Filled::new();
    let tshark = |arguments: &[&str]| Command::new("tshark").args(arguments).output();
    if tshark(&["--version"]).is_err() {
        println!("SKIPPED wireshark_reads_the_capture_file: tshark is not installed");
        return;
    }
    let file = filled.path("strip.pcapng");
    assert_eq!(filled.incidents(&["export", &filled.id("starttls-masked"), "--pcapng", &file]).0, 0);
    let read = |arguments: &[&str]| {
        let output = tshark(&[&["-r", &file], arguments].concat()).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let all = read(&["-T", "fields", "-e", "frame.number"]).lines().count();
    let mut store = Store::open_existing(Path::new(&filled.path("db"))).unwrap();
    let incident = store.incident(&filled.id("starttls-masked")).unwrap();
    let exhibit = store.first_findings(&incident, 1).unwrap().remove(0).finding.exhibit.unwrap();
    assert_eq!(all, exhibit.packets.len());
    let parameters = read(&["-Y", "smtp.response", "-T", "fields", "-e", "smtp.rsp.parameter"]);
    assert!(parameters.contains("XXXXXXXA"), "{parameters}");
    let commands = read(&["-Y", "smtp.req.command", "-T", "fields", "-e", "smtp.req.command"]);
    assert!(commands.lines().any(|line| line == "EHLO") && commands.contains("MAIL"), "{commands}");
    let comments = read(&["-Y", "frame.comment", "-T", "fields", "-e", "frame.number", "-e", "frame.comment"]);
    assert!(comments.contains("starttls-masked") && comments.contains("Put together from the evidence"), "{comments}");
    let wrong = read(&[
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-Y",
        "_ws.malformed || tcp.checksum.status == 0 && !tcp.analysis.ack_lost_segment || ip.checksum.status == 0",
    ]);
    assert_eq!(wrong, "", "malformed, or a wrong checksum");
}
