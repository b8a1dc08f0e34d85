//! Faults of the store while the daemon runs: removed, replaced, overwritten, truncated, on a full or read-only disk.
//! Each fault is detected, logged and repaired; each finding reaches the journal once, and the history in memory is on
//! disk afterwards. Findings that the journal missed before a crash follow at the next start.

use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rusqlite::Connection;
use smtpwatch::output::{journal::Journal, metrics::Metrics};
use smtpwatch_config::JournalSettings;
use smtpwatch_core::{
    Finding, Role, Timestamp,
    policy::history::{History, HistoryKey, HistoryPeer, SessionNote, Strength},
};
use smtpwatch_store::{
    Condition, HISTORY_BATCH, JournalLink, JournalOutcome, Status, Store, StoreHandle, Writer, WriterSettings,
};

use crate::incidents::{credential, later};

/// Number of peers in memory: more than two batches.
const PEERS: u16 = 1_200;
/// Time limit of a wait; it ends a failing test and measures nothing.
const LIMIT: Duration = Duration::from_secs(120);

/// A writer with a journal in a file, and the history of a pipeline.
struct Rig {
    path: PathBuf,
    log: PathBuf,
    metrics: Arc<Metrics>,
    _journal: Arc<Journal>,
    history: History,
    handle: StoreHandle,
    writer: Writer,
    made: Vec<Finding>,
    one: Finding,
}

fn journal_at(log: &Path, metrics: &Arc<Metrics>) -> (Arc<Journal>, JournalLink) {
    let settings: JournalSettings = toml::from_str(&format!("path = {log:?}")).unwrap();
    let (journal, outcomes) = Journal::start(&settings, metrics.clone()).unwrap();
    let journal = Arc::new(journal);
    let lines = journal.clone();
    let write = Box::new(move |finding: &Finding, again: bool| lines.write(Box::new(finding.clone()), again));
    (journal, JournalLink { write, outcomes })
}

fn key(peer: u16) -> HistoryKey {
    let [high, low] = peer.to_be_bytes();
    let peer = HistoryPeer::Address([198, 51, high, low].into());
    HistoryKey { role: Role::Client, own: [192, 0, 2, 10].into(), peer, port: 25 }
}

impl Rig {
    /// The journal is in another directory, so that faults of the store's directory do not affect it.
    fn new(store: &Path, log: &Path) -> Self {
        let (path, log) = (store.join("smtpwatch.db"), log.join("findings.json"));
        let metrics = Arc::new(Metrics::new(&[25]).unwrap());
        let (journal, reporter) = journal_at(&log, &metrics);
        let (writer, _) =
            Writer::start(&path, WriterSettings { journal: Some(reporter), ..WriterSettings::default() }).unwrap();
        let handle = writer.handle().unwrap();
        let (history, made, one) = (History::new(10_000), Vec::new(), credential());
        let mut rig = Self { path, log, metrics, _journal: journal, history, handle, writer, made, one };
        (0..PEERS).for_each(|peer| rig.session(peer));
        rig.find();
        rig.settle();
        rig
    }

    /// A session with a peer, as the pipeline records it.
    fn session(&mut self, peer: u16) {
        let at = Timestamp::from_secs(1_000_000 + i64::from(peer));
        let note = SessionNote {
            at,
            answered: true,
            offered: true,
            used: true,
            profile: None,
            names: Vec::new(),
            alike: true,
        };
        let (record, _) = self.history.note(key(peer), note, Strength::default());
        self.handle.keep(key(peer), record);
    }

    fn find(&mut self) {
        let number = i64::try_from(self.made.len()).unwrap();
        let finding = later(&self.one, &format!("198.51.100.{}:587", number % 200), number);
        self.made.push(finding.clone());
        assert!(self.handle.finding(Box::new(finding)).is_ok());
    }

    /// The daemon's periodic housekeeping.
    fn keep_house(&self) -> Status {
        if self.writer.history_wanted() {
            let mut next = Some(0);
            while let Some(from) = next {
                let (rows, after) = self.history.piece(from, HISTORY_BATCH);
                while !self.handle.takes_history() || !self.handle.restore(rows.clone()) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                next = after;
            }
        }
        let status = self.writer.status();
        self.metrics.store(status.condition, &status.recoveries);
        status
    }

    fn until(&self, what: &str, mut done: impl FnMut(&Status) -> bool) {
        let end = Instant::now() + LIMIT;
        loop {
            let status = self.keep_house();
            if done(&status) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {status:?}; {:?}", self.writer.counts());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the store works and holds what memory holds.
    fn settle(&self) {
        self.until("a whole store", |status| {
            status.condition == Condition::Ok && self.rows().is_ok_and(|rows| rows == self.history.len())
        });
    }

    fn rows(&self) -> Result<usize, String> {
        Store::open_existing(&self.path)
            .and_then(|mut store| store.entries())
            .map(|rows| rows.len())
            .map_err(|error| error.to_string())
    }

    /// Identifiers in the journal, each with the number of its occurrences.
    fn reported(&self) -> BTreeMap<String, usize> {
        reported(&self.log)
    }

    fn until_told(&self) {
        self.until("every finding in the journal", |_| self.reported().len() == self.made.len());
    }

    fn state(&self) -> String {
        self.keep_house();
        let text = self.metrics.render();
        let line = text.lines().find(|line| line.starts_with("smtpwatch_store_state{") && line.ends_with(" 1"));
        line.unwrap().split('"').nth(1).unwrap().to_owned()
    }

    /// After a loss: it is detected once as `cause`; the findings from here on are stored, and each is in the journal
    /// once.
    fn is_mended(&mut self, cause: Condition, whole: bool) {
        self.until("it is noticed and mended", |status| status.recoveries.iter().sum::<u64>() == 1);
        let status = self.keep_house();
        let which = Condition::LOSSES.iter().position(|loss| *loss == cause).unwrap();
        assert_eq!(status.recoveries[which], 1, "{status:?}");
        assert!(status.recovered.contains(&*self.path.to_string_lossy()), "{status:?}");
        let count = format!("smtpwatch_store_recoveries_total{{cause=\"{}\"}} 1\n", cause.as_str());
        assert!(self.metrics.render().contains(&count), "{count}");
        self.session(7);
        self.find();
        self.settle();
        self.until_told();
        assert_eq!(self.state(), "ok");
        self.until("memory on the disk", |_| {
            let rows = Store::open_existing(&self.path).and_then(|mut store| store.entries());
            let rows: BTreeMap<_, _> = rows.unwrap_or_default().into_iter().collect();
            self.history.iter().all(|(key, record)| rows.get(key) == Some(record))
        });
        let mut store = Store::open_existing(&self.path).unwrap();
        let stored = store.counts().unwrap().findings;
        if whole {
            assert_eq!(stored, self.made.len() as u64, "nothing is lost");
        }
        assert!(stored >= 1);
        assert_eq!(store.verify().unwrap().broken, Vec::<String>::new());
        let reported = self.reported();
        assert!(!reported.is_empty() && reported.values().all(|times| *times == 1), "{reported:?}");
        drop(store);
        self.end_and_start_again(0);
    }

    /// The next start finds the store intact, and nothing to report.
    fn end_and_start_again(&mut self, lost: u64) {
        let before = self.reported();
        let (path, metrics) = (self.path.clone(), self.metrics.clone());
        let (_, reporter) = journal_at(&self.log, &metrics);
        let (idle, _) = Writer::start(&path.with_extension("idle"), WriterSettings::default()).unwrap();
        self.handle = idle.handle().unwrap();
        let writer = std::mem::replace(&mut self.writer, idle);
        assert_eq!(writer.finish(), lost);
        let (writer, rows) =
            Writer::start(&path, WriterSettings { journal: Some(reporter), ..WriterSettings::default() }).unwrap();
        assert_eq!(rows.len(), self.history.len());
        assert_eq!(writer.finish(), 0);
        assert_eq!(self.reported(), before, "reported once is enough");
    }
}

fn reported(log: &Path) -> BTreeMap<String, usize> {
    let mut reported = BTreeMap::new();
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // The last line may be incomplete: a write is not atomic for another reader of the file.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        let finding: serde_json::Value = serde_json::from_str(line).unwrap();
        *reported.entry(finding["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    reported
}

fn rig() -> (tempfile::TempDir, tempfile::TempDir, Rig) {
    let (store, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let rig = Rig::new(store.path(), log.path());
    (store, log, rig)
}

/// Files in the directory whose names contain `part`.
fn beside(path: &Path, part: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|entry| entry.to_string_lossy().contains(part)).collect()
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

#[test]
fn a_store_that_is_unlinked_is_written_again_whole() {
    let (_store, _log, mut rig) = rig();
    let before = std::fs::metadata(&rig.path).unwrap().ino();
    std::fs::remove_file(&rig.path).unwrap();
    rig.find();
    rig.is_mended(Condition::Missing, true);
    let after = std::fs::metadata(&rig.path).unwrap();
    assert!(after.ino() != before && after.mode() & 0o777 & !0o640 == 0);
    assert_eq!(beside(&rig.path, ".fresh"), Vec::<PathBuf>::new());
}

#[test]
fn unlinked_side_files_of_the_store_cost_nothing() {
    for sides in [&["-wal"][..], &["-shm"], &["-wal", "-shm", ""]] {
        let (_store, _log, mut rig) = rig();
        for side in sides {
            std::fs::remove_file(with(&rig.path, side)).unwrap();
        }
        rig.is_mended(Condition::Missing, true);
    }
}

/// A file that an operator put there, such as a restored copy, is not destroyed.
#[test]
fn what_takes_the_place_of_the_store_is_set_aside() {
    let place: [fn(&Path); 5] = [
        |path| {
            drop(Store::open(path).unwrap());
        },
        |path| std::fs::write(path, "a text").unwrap(),
        |path| std::fs::create_dir(path).unwrap(),
        |path| symlink("/dev/null", path).unwrap(),
        |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
    ];
    for put in place {
        let (_store, _log, mut rig) = rig();
        let other = rig.path.with_extension("other");
        put(&other);
        let (kind, inode) = other.symlink_metadata().map(|file| (file.file_type(), file.ino())).unwrap();
        if kind.is_dir() {
            std::fs::remove_file(&rig.path).unwrap();
        }
        std::fs::rename(&other, &rig.path).unwrap();
        rig.find();
        rig.is_mended(Condition::Replaced, true);
        let aside = beside(&rig.path, ".replaced-");
        let aside: Vec<_> = aside.iter().filter(|path| !path.to_string_lossy().ends_with("-wal")).collect();
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert_eq!(aside[0].symlink_metadata().unwrap().ino(), inode, "{kind:?}");
    }
}

#[test]
fn a_store_that_is_overwritten_or_cut_off_is_set_aside_and_history_is_written_again() {
    let damage: [fn(&Path); 4] = [
        |path| {
            let length = std::fs::metadata(path).unwrap().len();
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xA5; usize::try_from(length).unwrap()], 0).unwrap();
        },
        |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap(),
        |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(5_000).unwrap(),
        |path| std::fs::write(path, "mine").unwrap(),
    ];
    for damage in damage {
        let (_store, _log, mut rig) = rig();
        // Data that is still in the log would repair the file.
        let other = Connection::open(&rig.path).unwrap();
        other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(other);
        damage(&rig.path);
        rig.find();
        rig.is_mended(Condition::Damaged, false);
        assert!(!beside(&rig.path, ".damaged-").is_empty());
    }
}

/// An overwritten log would be ignored at the next start, and everything since the last checkpoint lost.
#[test]
fn a_log_that_is_overwritten_is_noticed() {
    let (_store, _log, mut rig) = rig();
    let log = std::fs::OpenOptions::new().write(true).open(with(&rig.path, "-wal")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&log, &[0xA5; 10_000], 0).unwrap();
    rig.find();
    rig.is_mended(Condition::Damaged, false);
}

/// Damage that the header does not show is detected when the page is read.
#[test]
fn damage_within_the_file_is_met_when_it_is_read() {
    let (_store, _log, mut rig) = rig();
    let other = Connection::open(&rig.path).unwrap();
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let root: u32 =
        other.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'finding'", [], |row| row.get(0)).unwrap();
    drop(other);
    let file = std::fs::OpenOptions::new().write(true).open(&rig.path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xFF; 4096], u64::from(root - 1) * 4096).unwrap();
    // The writer has the page in its cache: another process changes the file, so that the page is read again.
    Store::open_existing(&rig.path).unwrap().forget("198.51.0.9").unwrap();
    rig.history.forget(|found| *found == key(9));
    rig.until("the peer is forgotten", |_| {
        rig.writer.request().is_none_or(|request| {
            rig.handle.done(request);
            true
        })
    });
    rig.find();
    rig.is_mended(Condition::Damaged, false);
}

/// A directory that is moved away or deleted is recreated with all its contents.
#[test]
fn a_directory_that_is_gone_is_made_again() {
    let (store, _log, mut rig) = rig();
    std::fs::rename(store.path(), store.path().with_extension("moved")).unwrap();
    rig.find();
    rig.is_mended(Condition::Missing, true);
    std::fs::remove_dir_all(store.path().with_extension("moved")).unwrap();
}

/// Makes mounts that no other thread of this process sees.
fn private_mounts() -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: needs root for a mount");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    true
}

#[test]
fn a_full_disk_costs_no_finding() {
    if !private_mounts() {
        return;
    }
    let (disk, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    mount(Some("smtpwatch"), disk.path(), Some("tmpfs"), MsFlags::empty(), Some("size=6m")).unwrap();
    let mut rig = Rig::new(disk.path(), log.path());
    let rig_path = rig.path.clone();
    let ballast = disk.path().join("ballast");
    let fill = || {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&ballast).unwrap();
        while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    };
    fill();
    // A write that needs less room than the previous one may succeed, and after a checkpoint the log is used from its
    // start again: "full" refers to the latest write. The findings of each round are in the journal before the next
    // round, so that few findings wait for room. At the end some of them wait, and the journal has them.
    let on_record = || -> i64 {
        let reader = Connection::open_with_flags(&rig_path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        reader.query_row("SELECT count(*) FROM finding", [], |row| row.get(0)).unwrap()
    };
    for round in 0.. {
        (0..PEERS).for_each(|peer| rig.session(peer));
        (0..100).for_each(|_| rig.find());
        fill();
        rig.until_told();
        if rig.state() == "full" && on_record() < i64::try_from(rig.made.len()).unwrap() {
            break;
        }
        assert!(round < 100, "{:?}", rig.keep_house());
    }
    std::fs::remove_file(&ballast).unwrap();
    rig.settle();
    rig.until("everything is on record", |_| {
        let mut store = Store::open_existing(&rig.path).unwrap();
        let rows: BTreeMap<_, _> = store.entries().unwrap().into_iter().collect();
        store.counts().unwrap().findings == rig.made.len() as u64
            && rig.history.iter().all(|(key, record)| rows.get(key) == Some(record))
    });
    assert_eq!(rig.keep_house().recoveries, [0; 3]);
    let reported = rig.reported();
    assert!(!reported.is_empty() && reported.values().all(|times| *times == 1), "{reported:?}");
    rig.end_and_start_again(0);
}

#[test]
fn a_read_only_disk_and_its_end_are_reported() {
    if !private_mounts() {
        return;
    }
    let (disk, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut rig = Rig::new(disk.path(), log.path());
    let none = None::<&str>;
    mount(Some(disk.path()), disk.path(), none, MsFlags::MS_BIND, none).unwrap();
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, disk.path(), none, read_only, none).unwrap();
    // The writer's thread is in the same mount namespace: it was started from here.
    rig.until("it is noticed", |status| status.condition == Condition::ReadOnly);
    assert_eq!(rig.state(), "read_only");
    // Here the store cannot be recreated either.
    umount2(disk.path(), MntFlags::MNT_DETACH).unwrap();
    mount(Some("smtpwatch"), disk.path(), Some("tmpfs"), MsFlags::MS_RDONLY, none).unwrap();
    rig.until("it is noticed", |status| status.condition == Condition::Missing && status.cause.contains("Read-only"));
    rig.find();
    rig.until_told();
    umount2(disk.path(), MntFlags::MNT_DETACH).unwrap();
    rig.until("it is noticed", |status| status.condition == Condition::Ok);
    rig.find();
    rig.until_told();
    rig.settle();
    assert_eq!(rig.keep_house().recoveries, [0; 3]);
    rig.end_and_start_again(0);
}

/// A reporter whose journal never answers: as when the process is killed before a line was written.
fn deaf() -> (std::sync::mpsc::SyncSender<JournalOutcome>, JournalLink) {
    let (sender, outcomes) = std::sync::mpsc::sync_channel(1);
    (sender, JournalLink { write: Box::new(|_, _| true), outcomes })
}

fn put(path: &Path, journal: Option<JournalLink>, findings: &[Finding]) {
    let (writer, _) = Writer::start(path, WriterSettings { journal, ..WriterSettings::default() }).unwrap();
    let handle = writer.handle().unwrap().blocking();
    for finding in findings {
        assert!(handle.finding(Box::new(finding.clone())).is_ok());
    }
    drop(handle);
    assert_eq!(writer.finish(), 0);
}

#[test]
fn what_the_journal_did_not_get_it_gets_at_the_next_start() {
    let (directory, one) = (tempfile::tempdir().unwrap(), credential());
    let (path, log) = (directory.path().join("smtpwatch.db"), directory.path().join("findings.json"));
    let made: Vec<_> = (0..300).map(|number| later(&one, "198.51.100.25:587", number)).collect();
    // Findings of a process without a journal are not reported later.
    put(&path, None, &made[..10]);
    put(&path, Some(deaf().1), &made[10..290]);
    let metrics = Arc::new(Metrics::new(&[25]).unwrap());
    // Two of them had been written, and the process ended before that was recorded; a third line was truncated.
    let (journal, reporter) = journal_at(&log, &metrics);
    for finding in &made[10..12] {
        assert!(journal.write(Box::new(finding.clone()), false));
    }
    drop((journal, reporter));
    let cut = serde_json::to_string(&made[12]).unwrap();
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, [&whole[..], &cut.as_bytes()[..cut.len() / 2]].concat()).unwrap();

    let pushed = Arc::new(std::sync::Mutex::new(Vec::new()));
    let on_record = {
        let pushed = pushed.clone();
        Box::new(move |finding: &Finding, _: &smtpwatch_store::StoredAs| {
            pushed.lock().unwrap().push(finding.id.clone())
        })
    };
    let (journal, reporter) = journal_at(&log, &metrics);
    let (writer, _) =
        Writer::start(&path, WriterSettings { journal: Some(reporter), on_record, ..WriterSettings::default() })
            .unwrap();
    for finding in &made[290..] {
        assert!(writer.handle().unwrap().finding(Box::new(finding.clone())).is_ok());
    }
    let expected: Vec<_> = made[10..].iter().map(|finding| finding.id.clone()).collect();
    let ids = || -> Vec<String> {
        let text = std::fs::read_to_string(&log).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.map(|finding| finding["id"].as_str().unwrap().to_owned()).collect()
    };
    let end = Instant::now() + LIMIT;
    while ids().len() < expected.len() {
        assert!(Instant::now() < end, "{} of {}", ids().len(), expected.len());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(writer.finish(), 0);
    drop(journal);
    let mut found = ids();
    found.sort();
    let mut sorted = expected.clone();
    sorted.sort();
    assert_eq!(found, sorted, "each once");
    let mut alerted = pushed.lock().unwrap().clone();
    alerted.sort();
    assert_eq!(alerted, sorted, "and alerts are pushed");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains(&format!("\"time\":\"{}\"", made[200].time)), "as it was made");

    // Reported findings are not reported again.
    let (_journal, reporter) = journal_at(&log, &metrics);
    put(&path, Some(reporter), &[]);
    assert_eq!(ids().len(), expected.len());
}

/// In a store of an earlier version every finding counts as reported.
#[test]
fn an_upgrade_reports_nothing_again() {
    let (directory, one) = (tempfile::tempdir().unwrap(), credential());
    let (path, log) = (directory.path().join("smtpwatch.db"), directory.path().join("findings.json"));
    put(&path, Some(deaf().1), &[later(&one, "198.51.100.25:587", 0)]);
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "DROP TABLE unreported; DROP TABLE worth; DROP TABLE cause; DROP TABLE tombstone;
             DROP TABLE incident_client; DROP TABLE incident_mechanism; DROP INDEX incident_worth;
             ALTER TABLE incident DROP COLUMN about; ALTER TABLE incident DROP COLUMN addresses;
             ALTER TABLE incident DROP COLUMN unlisted; ALTER TABLE incident DROP COLUMN announced;
             ALTER TABLE baseline DROP COLUMN wear; ALTER TABLE baseline DROP COLUMN names;
             ALTER TABLE baseline DROP COLUMN days; ALTER TABLE incident DROP COLUMN kept;
             ALTER TABLE offer DROP COLUMN cleartext; ALTER TABLE offer DROP COLUMN messages;
             ALTER TABLE offer DROP COLUMN last_cleartext; ALTER TABLE offer DROP COLUMN tls_1_0;
             ALTER TABLE offer DROP COLUMN tls_1_1; ALTER TABLE offer DROP COLUMN tls_1_2;
             ALTER TABLE offer DROP COLUMN tls_1_3",
        )
        .unwrap();
    connection.pragma_update(None, "user_version", 3).unwrap();
    drop(connection);
    let metrics = Arc::new(Metrics::new(&[25]).unwrap());
    let (journal, reporter) = journal_at(&log, &metrics);
    put(&path, Some(reporter), &[later(&one, "198.51.100.25:587", 1)]);
    drop(journal);
    assert_eq!(reported(&log).len(), 1);
}

/// Findings that a journal could not write follow when it is writable again.
#[test]
fn a_journal_that_failed_gets_what_it_missed() {
    let (directory, one) = (tempfile::tempdir().unwrap(), credential());
    let path = directory.path().join("smtpwatch.db");
    let written = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (sender, outcomes) = std::sync::mpsc::sync_channel(64);
    let write = {
        let written = written.clone();
        // The first three fail.
        let mut failures = 3;
        Box::new(move |finding: &Finding, _: bool| {
            let fails = failures > 0;
            failures -= i32::from(fails);
            if !fails {
                written.lock().unwrap().push(finding.id.clone());
            }
            sender.send(JournalOutcome { id: finding.id.clone(), written: !fails }).unwrap();
            true
        })
    };
    let made: Vec<_> = (0..4).map(|number| later(&one, "198.51.100.25:587", number)).collect();
    let journal = Some(JournalLink { write, outcomes });
    let (writer, _) = Writer::start(&path, WriterSettings { journal, ..WriterSettings::default() }).unwrap();
    for finding in &made {
        assert!(writer.handle().unwrap().finding(Box::new(finding.clone())).is_ok());
    }
    let end = Instant::now() + LIMIT;
    while written.lock().unwrap().len() < made.len() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    let order: Vec<_> = [3, 0, 1, 2].iter().map(|at: &usize| made[*at].id.clone()).collect();
    assert_eq!(*written.lock().unwrap(), order);
    assert_eq!(writer.finish(), 0);
}
