//! The store: foreign files are rejected, data survives a kill, size is bounded, and other processes can correct it.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use smtpwatch_core::{
    Role, Timestamp,
    policy::{
        history::{History, HistoryKey, HistoryPeer, HistoryRecord, KnownName, Rate, Tally, Wear, is_peer},
        profile::Profile,
    },
};
use smtpwatch_store::{APPLICATION_ID, SCHEMA, Store, StoreError, Writer, WriterSettings};

fn key(peer: &str) -> HistoryKey {
    let peer = match peer.parse() {
        Ok(address) => HistoryPeer::Address(address),
        Err(_) => HistoryPeer::Name(peer.to_owned()),
    };
    HistoryKey { role: Role::Client, own: "192.0.2.10".parse().unwrap(), peer, port: 25 }
}

fn record(sessions: u64) -> HistoryRecord {
    HistoryRecord {
        sessions,
        offered: Rate { yes: sessions - 1, no: 1, returns: 2, run: 3, wear: WEAR, ..Rate::default() },
        used: Rate { yes: 4, no: 5, returns: 6, run: 7, wear: Wear { established: true, ..WEAR }, ..Rate::default() },
        first_seen: Timestamp(1),
        last_seen: Timestamp(i64::try_from(sessions).unwrap()),
        last_offered: Timestamp(3),
        profile: Some(Profile { keywords: vec!["STARTTLS".to_owned()], ttl: 64, ..Profile::default() }.into()),
        names: vec![KnownName {
            name: "mx1.example.net".to_owned(),
            first_seen: Timestamp(4000),
            last_seen: Timestamp(5000),
        }],
    }
    .with_days()
}

const WEAR: Wear = Wear { established: false, counted: 1, at: Timestamp(4000), unlike: true };

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "not within ten seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn rows_survive_and_files_are_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/smtpwatch.db");
    let (writer, entries) = Writer::start(&path, WriterSettings::default()).unwrap();
    assert!(entries.is_empty());
    let handle = writer.handle().unwrap();
    for sessions in 2..10 {
        handle.keep(key("198.51.100.25"), record(sessions));
    }
    handle.keep(key("mx1.example.net"), record(5));
    handle.keep(key("mx2.example.net"), record(6));
    handle.forget(key("mx2.example.net"));
    drop(handle);
    assert_eq!(writer.finish(), 0);
    let (_writer, entries) = Writer::start(&path, WriterSettings::default()).unwrap();
    assert_eq!(entries, [(key("198.51.100.25"), record(9)), (key("mx1.example.net"), record(5))]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path) & !0o640, 0);
    assert_eq!(mode(path.parent().unwrap()) & !0o750, 0);
}

#[test]
fn the_days_of_a_row_survive() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    let mut spread = record(9);
    spread.offered.spread.with = Tally { days: 5, weight: 4_200, newest: 20_000, on_newest: 2 };
    spread.used.spread.run = Tally { days: 3, weight: 3_000, newest: 20_001, on_newest: 1 };
    assert_ne!(spread, record(9), "not what an estimate gives");
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    writer.handle().unwrap().keep(key("198.51.100.25"), spread.clone());
    assert_eq!(writer.finish(), 0);
    assert_eq!(Store::open_existing(&path).unwrap().entries().unwrap(), [(key("198.51.100.25"), spread)]);
    // A row of an earlier schema has none.
    Connection::open(&path).unwrap().execute("UPDATE baseline SET days = NULL", []).unwrap();
    assert_eq!(Store::open_existing(&path).unwrap().entries().unwrap(), [(key("198.51.100.25"), record(9))]);
}

/// A killed process loses at most what was not yet written: half a second.
#[test]
fn what_was_written_is_there_for_another_process_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    writer.handle().unwrap().keep(key("198.51.100.25"), record(7));
    until(|| writer.counts() == (1, 0));
    // The writer is still running: nothing was closed or checkpointed.
    let entries = Store::open_existing(&path).unwrap().entries().unwrap();
    assert_eq!(entries, [(key("198.51.100.25"), record(7))]);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("notes.txt");
    std::fs::write(&text, "these are my notes, and they are longer than a database header would be. ".repeat(20))
        .unwrap();
    let other = directory.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE mine (x); INSERT INTO mine VALUES (1);").unwrap();
    for path in [&text, &other] {
        let before = std::fs::read(path).unwrap();
        for result in [
            Store::open(path).map(drop),
            Store::open_existing(path).map(drop),
            Writer::start(path, WriterSettings::default()).map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, StoreError::Foreign(_)), "{error}");
            assert!(error.to_string().contains("name another file in [store] path"), "{error}");
        }
        assert_eq!(std::fs::read(path).unwrap(), before, "untouched");
    }
}

#[test]
fn a_newer_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    drop(Store::open(&path).unwrap());
    let connection = Connection::open(&path).unwrap();
    assert_eq!(
        connection.pragma_query_value(None, "application_id", |row| row.get::<_, i32>(0)).unwrap(),
        APPLICATION_ID
    );
    connection.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
    drop(connection);
    let error = Store::open(&path).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found, .. } if found == SCHEMA + 1));
    assert!(error.to_string().contains("upgrade smtpwatch"), "{error}");
}

#[test]
fn a_store_that_cannot_be_made_says_why() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "").unwrap();
    let error = Store::open(&directory.path().join("file/smtpwatch.db")).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("cannot create the store ") && error.contains("set [store] path"), "{error}");
    let missing = Store::open_existing(&directory.path().join("none.db")).map(drop).unwrap_err();
    assert!(matches!(missing, StoreError::Missing(_)), "{missing}");
    assert!(!directory.path().join("none.db").exists());
}

#[test]
fn there_is_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    let second = Writer::start(&path, WriterSettings::default()).map(drop).unwrap_err();
    assert!(matches!(second, StoreError::InUse(_)), "{second}");
    assert_eq!(writer.finish(), 0);
    assert!(Writer::start(&path, WriterSettings::default()).is_ok());
}

#[test]
fn forgetting_reaches_the_running_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    let handle = writer.handle().unwrap();
    handle.keep(key("198.51.100.25"), record(9));
    handle.keep(key("mx1.example.net"), record(9));
    until(|| writer.counts().0 == 2);
    // Another process.
    let mut store = Store::open_existing(&path).unwrap();
    assert_eq!(store.forget("MX1.example.net.").unwrap(), 1);
    // The daemon does not know of the change yet and writes the row once more.
    handle.keep(key("mx1.example.net"), record(10));
    let mut request = None;
    until(|| {
        request = writer.request();
        request.is_some()
    });
    let request = request.unwrap();
    assert!(is_peer(&key("mx1.example.net"), &request.peer) && !is_peer(&key("198.51.100.25"), &request.peer));
    handle.keep(key("198.51.100.25"), record(11));
    handle.done(request);
    until(|| store.entries().unwrap() == [(key("198.51.100.25"), record(11))]);
    // The correction stays.
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(writer.request(), None);
    assert_eq!(store.forget("nobody.example.net").unwrap(), 0);
}

#[test]
fn rows_beyond_the_bound_go_the_least_known_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    drop(Store::open(&path).unwrap());
    let connection = Connection::open(&path).unwrap();
    connection
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO baseline
             SELECT 'client', '192.0.2.1', 'name', 'mx' || i, 25, 1, 1, 0, 0, 0, 1, 0, 0, 0, i, i, i, NULL, NULL, NULL, NULL FROM n",
            [1003],
        )
        .unwrap();
    // Known, and not seen for longer than all the others.
    connection
        .execute(
            "INSERT INTO baseline VALUES ('client', '192.0.2.1', 'address', '198.51.100.25', 25, 50, 50, 0, 0, 0, 50, 0, 0, 0, 0, 0, 0,
             NULL, NULL, NULL, NULL)",
            [],
        )
        .unwrap();
    drop(connection);
    let (_writer, entries) = Writer::start(&path, WriterSettings { peers: 1000, ..WriterSettings::default() }).unwrap();
    assert_eq!(entries.len(), History::most(1000));
    let [.., oldest, known] = &entries[..] else { panic!("{} rows", entries.len()) };
    assert_eq!(known.0, HistoryKey { own: "192.0.2.1".parse().unwrap(), ..key("198.51.100.25") });
    assert_eq!(oldest.1.last_seen, Timestamp(130), "the newest of those of which little is known are kept");
    let left = Store::open_existing(&path).unwrap().entries().unwrap();
    assert_eq!(left, entries, "in the file, too");
}

/// A disk that fails temporarily loses no data; the shutdown does not wait for it.
#[test]
fn a_store_that_fails_for_a_while_is_written_later() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    // Another process locks the file for writing, longer than the writer waits.
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    writer.handle().unwrap().keep(key("198.51.100.25"), record(7));
    until(|| writer.counts().1 >= 1);
    other.execute_batch("COMMIT").unwrap();
    until(|| writer.counts().0 == 1);
    assert_eq!(writer.finish(), 0, "nothing was lost");

    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    writer.handle().unwrap().keep(key("198.51.100.25"), record(8));
    let end = Instant::now();
    assert_eq!(writer.finish(), 1, "lost, and told");
    assert!(end.elapsed() < Duration::from_secs(4));
}

/// A store of the first schema keeps its history and gets the missing tables, also when it is opened for reading.
#[test]
fn an_older_store_is_brought_up_to_date() {
    for open in [Store::open, Store::open_existing] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("smtpwatch.db");
        let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
        writer.handle().unwrap().keep(key("198.51.100.25"), record(7));
        assert_eq!(writer.finish(), 0);
        let connection = Connection::open(&path).unwrap();
        let mut query = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
        let tables: Vec<String> = query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        drop(query);
        for table in tables.iter().filter(|table| !["baseline", "request", "sqlite_sequence"].contains(&&***table)) {
            connection.execute_batch(&format!("DROP TABLE {table}")).unwrap();
        }
        for column in ["wear", "names", "days"] {
            connection.execute_batch(&format!("ALTER TABLE baseline DROP COLUMN {column}")).unwrap();
        }
        connection.pragma_update(None, "user_version", 1).unwrap();
        drop(connection);
        let mut store = open(&path).unwrap();
        // In that version each return was counted, and names were not stored.
        let mut before = HistoryRecord { names: Vec::new(), ..record(7) };
        before.offered.wear = Wear { counted: 2, ..Wear::default() };
        before.used.wear = Wear { counted: 6, ..Wear::default() };
        assert_eq!(store.entries().unwrap(), [(key("198.51.100.25"), before)]);
        assert!(store.delivery_domains("2026-11-23".parse().unwrap()).unwrap().is_empty());
    }
}
