//! The store: one SQLite file with findings and their evidence, the history of peers, published policies, and the
//! counts for TLS reports.
//!
//! One thread writes ([`Writer`]), in batches of at most a second, and reads from a bounded channel: a slow disk costs
//! rows, which are counted, and never packets. Other processes read the file while the daemon runs, and leave requests
//! in it: `baseline forget` deletes rows and asks the running daemon to drop them from memory too.
//!
//! [`Store`] is an open file, for one query or one request; [`Writer`] owns the thread, and other threads send changes
//! through a [`StoreHandle`]. Imports `smtpwatch-core` (the stored types) and `smtpwatch-config` (retention, sizes);
//! links no resolver, no HTTP client and no loader of kernel programs.

mod condition;
mod damage;
pub mod deliveries;
mod file_monitor;
mod findings;
pub mod incidents;
pub mod offers;
pub mod peers;
pub mod policies;
pub mod retention;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    fs::TryLockError,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};
use smtpwatch_core::{
    Role, Timestamp,
    policy::{
        history::{History, HistoryKey, HistoryPeer, HistoryRecord, Rate, Spread, Wear, normal_peer, peer_text},
        profile::Profile,
    },
};

pub use condition::{Condition, Recoveries, Status};
pub use findings::{EXHIBITS_PER_INCIDENT, StoredAs};
pub use writer::{HISTORY_BATCH, JournalLink, JournalOutcome, QUEUE, Request, StoreHandle, Writer, WriterSettings};

/// `PRAGMA application_id` of a smtpwatch store: "SMTW".
pub const APPLICATION_ID: i32 = 0x534D_5457;
/// `PRAGMA user_version`: the schema that this version writes.
pub const SCHEMA: i32 = 5;
/// Maximum wait for another process's lock. It may also delay the end of the daemon.
const BUSY: Duration = Duration::from_secs(1);
/// Number of prepared statements that are kept: more than storing and removing a finding take.
const STATEMENTS: usize = 64;

/// The statements that upgrade from each schema to the next.
const STEPS: [&[&str]; SCHEMA as usize] = [
    &[BASELINE],
    &[deliveries::CREATE, offers::CREATE, policies::CREATE],
    &[findings::CREATE, offers::BOTH_ROLES],
    &[WEAR_AND_NAMES, findings::UNREPORTED],
    &[DAYS, retention::CREATE, offers::CLEARTEXT],
];

const BASELINE: &str = "
    CREATE TABLE baseline (
        role          TEXT NOT NULL CHECK (role IN ('client', 'server')),  -- which end this host is
        own           TEXT NOT NULL,                 -- this host's address
        peer_kind     TEXT NOT NULL CHECK (peer_kind IN ('address', 'name')),
        peer          TEXT NOT NULL,                 -- server address, or name in lower case
        port          INTEGER NOT NULL,              -- server port
        sessions      INTEGER NOT NULL,
        offered         INTEGER NOT NULL,            -- the offer as a rate: yes, no, returns, run
        offered_no      INTEGER NOT NULL,
        offered_returns INTEGER NOT NULL,
        offered_run     INTEGER NOT NULL,
        used            INTEGER NOT NULL,            -- the use of an offer, likewise
        used_no         INTEGER NOT NULL,
        used_returns    INTEGER NOT NULL,
        used_run        INTEGER NOT NULL,
        first_seen    INTEGER NOT NULL,              -- nanoseconds since the epoch
        last_seen     INTEGER NOT NULL,
        last_offered  INTEGER NOT NULL,
        profile       TEXT,                          -- JSON: what the peer looked like when TLS last began
        PRIMARY KEY (role, own, peer_kind, peer, port)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX baseline_peer ON baseline (peer);
    CREATE INDEX baseline_age ON baseline (last_seen);
    CREATE TABLE request (                           -- what another process asks of the running daemon
        id    INTEGER PRIMARY KEY AUTOINCREMENT,     -- never used twice
        peer  TEXT NOT NULL                          -- forget this peer
    ) STRICT;
";

/// How interruptions affected the two rates, and the names of an address.
const WEAR_AND_NAMES: &str = "
    ALTER TABLE baseline ADD COLUMN wear TEXT;       -- JSON: of the offer, and of its use
    ALTER TABLE baseline ADD COLUMN names TEXT;      -- JSON: name and first and newest session
";

/// How the sessions behind the two rates are spread over days.
const DAYS: &str = "
    ALTER TABLE baseline ADD COLUMN days TEXT;       -- JSON: of the offer, and of its use
";

/// The columns of a row, in the order in which they are read.
const COLUMNS: &str = "role, own, peer_kind, peer, port, sessions, offered, offered_no, offered_returns, offered_run, \
                       used, used_no, used_returns, used_run, first_seen, last_seen, last_offered, profile, wear, names, days";
const UPSERT: &str = "INSERT OR REPLACE INTO baseline VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)";
const DELETE: &str = "DELETE FROM baseline WHERE role = ?1 AND own = ?2 AND peer_kind = ?3 AND peer = ?4 AND port = ?5";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file does not exist.
    #[error("no store at {}: nothing is recorded yet, or the daemon uses another path (see [store] path)", .0.display())]
    Missing(PathBuf),
    /// The file belongs to another program.
    #[error(
        "{} is not a smtpwatch store and is left untouched: name another file in [store] path, or move this one away",
        .0.display()
    )]
    Foreign(PathBuf),
    /// A later version wrote the file.
    #[error(
        "{} was written by a newer smtpwatch (schema {found}, this one knows {SCHEMA}): upgrade smtpwatch, or move the \
         file away to begin a fresh history",
        path.display()
    )]
    Newer {
        /// The path of the file.
        path: PathBuf,
        /// The schema of the file.
        found: i32,
    },
    /// Pages of the file are inconsistent or cannot be read.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The path of the file.
        path: PathBuf,
        /// What SQLite reported.
        what: String,
    },
    /// A directory or file could not be created.
    #[error("cannot create the store {}: {source}: make its directory writable, or set [store] path", path.display())]
    Create {
        /// The path of the file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Another process writes to this store.
    #[error("the store {} is in use by another smtpwatch: stop it, or name another file in [store] path", .0.display())]
    InUse(PathBuf),
    /// The writer thread could not be started.
    #[error("cannot start the store's writer thread: {0}")]
    Thread(std::io::Error),
    /// SQLite reported an error.
    #[error("store {}: {source}", path.display())]
    Sqlite {
        /// The path of the file.
        path: PathBuf,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
}

/// One row of history.
pub type Entry = (HistoryKey, HistoryRecord);

/// An open store.
pub struct Store {
    connection: Connection,
    path: PathBuf,
    /// Identity of the file that was opened.
    file: Option<file_monitor::FileId>,
    /// Stored findings, as counted by the writer.
    totals: findings::Totals,
}

impl Store {
    /// Opens the store for writing; creates the file (0640) and its directory (0750) if they are missing.
    ///
    /// # Errors
    ///
    /// See [`StoreError`]. A file that is not a smtpwatch store is left untouched.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create(path).map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
        let mut store = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        store.upgrade()?;
        store.check()?;
        store.check_pages()?;
        // WAL: readers never wait for the writer, and a killed process loses no committed data.
        store.sqlite(|connection| {
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "normal")
        })?;
        Ok(store)
    }

    /// Opens an existing store, for one query or one request; never creates a file.
    ///
    /// # Errors
    ///
    /// See [`StoreError`].
    pub fn open_existing(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing(path.to_owned()));
        }
        let mut store = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .or_else(|_| Self::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY))?;
        // A store of an earlier version lacks tables; a blank database is not a smtpwatch store and stays blank.
        let found = marks(&store.connection).map_err(|source| classify(path, source))?;
        if found.0 == APPLICATION_ID && found.1 < SCHEMA {
            store.upgrade()?;
        }
        store.check()?;
        Ok(store)
    }

    /// Every row, most recently seen first.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn entries(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.rows("ORDER BY last_seen DESC, peer, own, port")
    }

    /// Like `entries`, for the start of a writer: returns at most `peers` rows and deletes the others by the eviction
    /// rule of a full history. Requests to a previous daemon are complete, because their rows are already deleted.
    fn begin(&mut self, peers: usize) -> Result<Vec<Entry>, StoreError> {
        self.sqlite(|connection| connection.execute("DELETE FROM request", []))?;
        let mut entries = self.all()?;
        if entries.len() <= History::most(peers) {
            return Ok(entries);
        }
        let mut history = History::new(peers);
        let restore = |(key, record): &Entry| history.restore(key.clone(), record.clone());
        let gone: Vec<_> = entries.iter().filter_map(restore).collect();
        let known = gone.iter().filter(|row| row.known).count();
        if known > 0 {
            tracing::warn!(
                rows = known,
                "history rows strong enough to raise findings were left out, because the table is full: raise peers in [limits]"
            );
        }
        let gone: HashSet<HistoryKey> = gone.into_iter().map(|row| row.key).collect();
        entries.retain(|(key, _)| !gone.contains(key));
        self.sqlite(|connection| {
            let transaction = connection.transaction()?;
            {
                let mut delete = transaction.prepare(DELETE)?;
                for key in &gone {
                    let (kind, peer) = peer_text(&key.peer);
                    delete.execute(params![key.role.as_str(), key.own.to_string(), kind, peer, key.port])?;
                }
            }
            transaction.commit()
        })?;
        Ok(entries)
    }

    /// Every row, most recently seen first. The rows are sorted here, because SQLite would look up each row through the
    /// index.
    fn all(&mut self) -> Result<Vec<Entry>, StoreError> {
        let mut entries = self.rows("")?;
        entries.sort_by_key(|(_, record)| std::cmp::Reverse(record.last_seen));
        Ok(entries)
    }

    fn rows(&mut self, order: &str) -> Result<Vec<Entry>, StoreError> {
        self.sqlite(|connection| {
            let mut query = connection.prepare(&format!("SELECT {COLUMNS} FROM baseline {order}"))?;
            let rows = query.query_map([], entry)?;
            // A row with an invalid address, for example after an edit by another program, is skipped.
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// The rows of one peer, by address or name.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn peer(&mut self, peer: &str) -> Result<Vec<Entry>, StoreError> {
        let peer = normal_peer(peer);
        Ok(self.entries()?.into_iter().filter(|(key, _)| peer_text(&key.peer).1 == peer).collect())
    }

    /// Deletes the rows of one peer, and asks a running daemon to forget it. Returns the number of deleted rows.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn forget(&mut self, peer: &str) -> Result<usize, StoreError> {
        let peer = normal_peer(peer);
        self.sqlite(|connection| {
            let transaction = connection.transaction()?;
            let rows = transaction.execute("DELETE FROM baseline WHERE peer = ?1", [&peer])?;
            transaction.execute("INSERT INTO request (peer) VALUES (?1)", [&peer])?;
            transaction.commit()?;
            Ok(rows)
        })
    }

    /// Writes a batch: first peers to forget on request, then changed rows (deleted where there is no record), then the
    /// daily counts. `reported` are the numbers of findings that the journal has written. Returns how many counts
    /// exceeded the bounds.
    fn write(
        &mut self,
        rows: &HashMap<HistoryKey, Option<HistoryRecord>>,
        done: &[Request],
        deliveries: &deliveries::Pending,
        offers: &offers::Pending,
        reported: &[i64],
    ) -> Result<u64, StoreError> {
        self.sqlite(|connection| {
            let transaction = connection.transaction()?;
            findings::mark_reported(&transaction, reported)?;
            for request in done {
                transaction.execute("DELETE FROM baseline WHERE peer = ?1", [&request.peer])?;
                transaction.execute("DELETE FROM request WHERE id = ?1", [request.id])?;
            }
            {
                let (mut upsert, mut delete) =
                    (transaction.prepare_cached(UPSERT)?, transaction.prepare_cached(DELETE)?);
                for (key, record) in rows {
                    let (kind, peer) = peer_text(&key.peer);
                    let (role, own) = (key.role.as_str(), key.own.to_string());
                    match record {
                        Some(r) => upsert.execute(params![
                            role,
                            own,
                            kind,
                            peer,
                            key.port,
                            signed(r.sessions),
                            signed(r.offered.yes),
                            signed(r.offered.no),
                            signed(r.offered.returns),
                            signed(r.offered.run),
                            signed(r.used.yes),
                            signed(r.used.no),
                            signed(r.used.returns),
                            signed(r.used.run),
                            r.first_seen.0,
                            r.last_seen.0,
                            r.last_offered.0,
                            r.profile.as_deref().and_then(|profile| serde_json::to_string(profile).ok()),
                            wear_text(r),
                            Some(&r.names)
                                .filter(|names| !names.is_empty())
                                .and_then(|names| serde_json::to_string(names).ok()),
                            serde_json::to_string(&[r.offered.spread, r.used.spread]).ok(),
                        ])?,
                        None => delete.execute(params![role, own, kind, peer, key.port])?,
                    };
                }
            }
            let full = deliveries.write(&transaction)? + offers.write(&transaction)?;
            transaction.commit()?;
            Ok(full)
        })
    }

    /// Pending requests of other processes.
    fn requests(&mut self) -> Result<Vec<Request>, StoreError> {
        self.sqlite(|connection| {
            let mut query = connection.prepare_cached("SELECT id, peer FROM request ORDER BY id")?;
            let rows = query.query_map([], |row| Ok(Request { id: row.get(0)?, peer: row.get(1)? }))?;
            rows.collect()
        })
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let failed = |source| classify(path, source);
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(failed)?;
        connection.busy_timeout(BUSY).map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        // The first statement that reads the file: SQLite reports here that the file is not a database.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(failed)?;
        let file = file_monitor::FileId::at(path).ok();
        Ok(Self { connection, path: path.to_owned(), file, totals: findings::Totals::default() })
    }

    /// Whether the file at the path is the open file; another one may have replaced it.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.file.is_some() && file_monitor::FileId::at(&self.path).ok() == self.file
    }

    /// Writes a copy of the open database to a new file. This works even after the store's own file was unlinked.
    fn copy_to(&mut self, path: &Path) -> Result<(), StoreError> {
        create(path).map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
        let target = path.to_string_lossy().into_owned();
        self.sqlite(|connection| connection.execute("VACUUM INTO ?1", [target]).map(drop))
    }

    /// Copies the write-ahead log into the main file, as far as no reader prevents it.
    fn checkpoint(&mut self) {
        let moved = self.sqlite(|connection| connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())));
        if let Err(error) = moved {
            tracing::debug!("cannot checkpoint the store: {error}");
        }
    }

    /// Tests whether the store can be written, with a write that changes nothing.
    fn probe(&mut self) -> Result<(), StoreError> {
        self.sqlite(|connection| connection.pragma_update(None, "user_version", SCHEMA))
    }

    /// Checks that the file is a smtpwatch store and not of a later version.
    fn check(&self) -> Result<(), StoreError> {
        match marks(&self.connection).map_err(|source| classify(&self.path, source))? {
            (APPLICATION_ID, SCHEMA) => Ok(()),
            (APPLICATION_ID, found) if found > SCHEMA => Err(StoreError::Newer { path: self.path.clone(), found }),
            _ => Err(StoreError::Foreign(self.path.clone())),
        }
    }

    /// Checks that the pages of the file are intact.
    fn check_pages(&mut self) -> Result<(), StoreError> {
        let found: String =
            self.sqlite(|connection| connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
        if found == "ok" { Ok(()) } else { Err(StoreError::Damaged { path: self.path.clone(), what: found }) }
    }

    /// Upgrades a blank file or an older store to [`SCHEMA`]; leaves any other file untouched.
    fn upgrade(&mut self) -> Result<(), StoreError> {
        self.sqlite(|connection| {
            // Two processes may do this at the first start: the check and the creation are one transaction.
            let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let steps = match marks(&transaction)? {
                (APPLICATION_ID, found) => STEPS.get(usize::try_from(found).unwrap_or(usize::MAX)..),
                (0, _) if is_blank(&transaction)? => Some(&STEPS[..]),
                _ => None,
            };
            for step in steps.unwrap_or_default().iter().copied().flatten() {
                transaction.execute_batch(step)?;
            }
            if steps.is_some_and(|steps| !steps.is_empty()) {
                transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                transaction.pragma_update(None, "user_version", SCHEMA)?;
            }
            transaction.commit()
        })
    }

    fn sqlite<T>(&mut self, f: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        f(&mut self.connection).map_err(|source| classify(&self.path, source))
    }
}

/// The lock of the one writer. It ends with the process, however that ends.
///
/// It is released by an explicit unlock: a child process that is being started shares the open file until its exec, and would
/// hold the lock for that time (flock(2)).
struct WriterLock(std::fs::File);

impl Drop for WriterLock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Takes the lock of the one writer: two writers would overwrite each other's rows. The lock is not on the database itself,
/// whose locks are SQLite's.
fn lock(path: &Path) -> Result<WriterLock, StoreError> {
    let lock = lock_path(path);
    let failed = |source| StoreError::Create { path: lock.clone(), source };
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o640).open(&lock).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(WriterLock(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn lock_path(path: &Path) -> PathBuf {
    with_suffix(path, ".lock")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Creates a directory for stored data, with its missing parents.
pub fn make_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

fn create(path: &Path) -> std::io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        make_directory(directory)?;
    }
    // SQLite gives its side files the mode of the main file. An existing file is not opened here: closing it would
    // release the locks that other connections of this process hold on it, and opening a FIFO would block.
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            if std::fs::metadata(path)?.is_file() {
                Ok(())
            } else {
                Err(std::io::Error::new(error.kind(), "it is not a regular file"))
            }
        }
        created => created.map(drop),
    }
}

fn is_blank(connection: &Connection) -> rusqlite::Result<bool> {
    let table: Option<i64> =
        connection.query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |row| row.get(0)).optional()?;
    Ok(table.is_none())
}

/// Application ID and schema of the file.
fn marks(connection: &Connection) -> rusqlite::Result<(i32, i32)> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}

fn classify(path: &Path, source: rusqlite::Error) -> StoreError {
    match source.sqlite_error_code() {
        // The lock file shows that smtpwatch wrote here.
        Some(ErrorCode::NotADatabase) if lock_path(path).exists() => damage::of(path, &source),
        Some(ErrorCode::NotADatabase) => StoreError::Foreign(path.to_owned()),
        Some(ErrorCode::DatabaseCorrupt) => damage::of(path, &source),
        _ => StoreError::Sqlite { path: path.to_owned(), source },
    }
}

/// SQLite's integers are signed; no counter of sessions reaches 2^63.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// How interruptions affected both rates, as JSON; `None` if there were none.
fn wear_text(record: &HistoryRecord) -> Option<String> {
    let rates = [record.offered, record.used];
    let interrupted = rates.iter().any(|rate| rate.wear != Wear::default() || rate.returns > 0);
    interrupted.then(|| serde_json::to_string(&rates.map(|rate| rate.wear)).ok()).flatten()
}

/// Parses a row of [`COLUMNS`]; `None` if a value is invalid.
fn entry(row: &Row<'_>) -> rusqlite::Result<Option<Entry>> {
    let text = |column| row.get_ref(column).and_then(|value| Ok(value.as_str()?));
    let peer = match (text(2)?, text(3)?) {
        ("address", peer) => peer.parse().ok().map(HistoryPeer::Address),
        (_, peer) => Some(HistoryPeer::Name(peer.to_owned())),
    };
    let (Ok(own), Some(peer)) = (text(1)?.parse(), peer) else { return Ok(None) };
    let role = if text(0)? == Role::Server.as_str() { Role::Server } else { Role::Client };
    let count = |column| row.get::<_, i64>(column).map(|count| u64::try_from(count).unwrap_or(0));
    let wear: Option<[Wear; 2]> = row.get_ref(18)?.as_str_or_null()?.and_then(|text| serde_json::from_str(text).ok());
    // Without a value, in a row of schema 1 to 4, the days are estimated.
    let days = row.get_ref(20)?.as_str_or_null()?.and_then(|text| serde_json::from_str::<[Spread; 2]>(text).ok());
    let days = days.unwrap_or_default();
    let rate = |first, which: usize| {
        let returns = count(first + 2)?;
        Ok::<_, rusqlite::Error>(Rate {
            yes: count(first)?,
            no: count(first + 1)?,
            returns,
            run: count(first + 3)?,
            // A row of schema 1 to 3: every return was counted in the rate.
            wear: match wear {
                Some(wear) => wear[which],
                None => Wear { counted: returns, ..Wear::default() },
            },
            spread: days[which],
        })
    };
    let time = |column| row.get(column).map(Timestamp);
    let profile = row.get_ref(17)?.as_str_or_null()?;
    let names = row.get_ref(19)?.as_str_or_null()?;
    let record = HistoryRecord {
        sessions: count(5)?,
        offered: rate(6, 0)?,
        used: rate(10, 1)?,
        first_seen: time(14)?,
        last_seen: time(15)?,
        last_offered: time(16)?,
        // A profile that cannot be parsed is learnt again.
        profile: profile.and_then(|text| serde_json::from_str::<Profile>(text).ok()).map(Arc::new),
        names: names.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
    }
    .with_days();
    Ok(Some((HistoryKey { role, own, peer, port: row.get(4)? }, record)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_process_that_shares_the_open_file_does_not_hold_the_lock() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("smtpwatch.db");
        let totals = lock(&path).expect("the lock is free");
        assert!(matches!(lock(&path), Err(StoreError::InUse(_))));
        // As after fork(2), before exec closes it.
        let _shared = totals.0.try_clone().expect("a second descriptor");
        drop(totals);
        assert!(lock(&path).is_ok());
    }
}
