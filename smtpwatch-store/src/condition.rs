//! The condition of the store while the daemon runs: a closed set of values for metrics, the health page and the log.
//! [`Condition`] is derived from the last error of SQLite and from the file system; the writer thread sets it.

use std::{io::ErrorKind, path::Path};

use nix::sys::statvfs::{FsFlags, statvfs};
use rusqlite::ErrorCode;

use super::{StoreError, retention::Removals};

smtpwatch_system::vocabulary! {
    /// The condition of the store.
    #[derive(Hash, Default)]
    pub enum Condition {
        /// The store can be written.
        #[default]
        Ok = "ok",
        /// There is no file at the store's path, or one of SQLite's side files (`-wal`, `-shm`) is gone.
        Missing = "missing",
        /// A different file is at the store's path.
        Replaced = "replaced",
        /// The file is not an intact database.
        Damaged = "damaged",
        /// The disk is full.
        Full = "full",
        /// The file system is mounted read-only, or its permissions forbid writing.
        ReadOnly = "read_only",
        /// Another process holds the write lock.
        Busy = "busy",
        /// Any other I/O failure.
        IoError = "io_error",
    }
}

impl Condition {
    /// Conditions after which the store is recreated.
    pub const LOSSES: [Self; 3] = [Self::Missing, Self::Replaced, Self::Damaged];

    /// What the operator can do about this condition.
    pub(super) const fn remedy(self) -> &'static str {
        match self {
            Self::Ok => "nothing",
            Self::Missing | Self::Replaced => {
                "find out who removed or replaced it; if its directory was recreated, restart the service"
            }
            Self::Damaged => "look at the disk (dmesg), and find out who else writes to the file",
            Self::Full => "free space on its disk, or lower [store] max_megabytes",
            Self::ReadOnly => "mount its file system writable, and give the directory to the service's user",
            Self::Busy => "end the process that holds it (fuser)",
            Self::IoError => "look at the disk (dmesg)",
        }
    }

    /// The condition that caused an error of the store in this directory.
    pub(super) fn of(error: &StoreError, directory: &Path) -> Self {
        match error {
            StoreError::Missing(_) => Self::Missing,
            StoreError::Damaged { .. } | StoreError::Foreign(_) | StoreError::Newer { .. } => Self::Damaged,
            StoreError::InUse(_) => Self::Busy,
            StoreError::Create { source, .. } | StoreError::Thread(source) => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full,
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => Self::ReadOnly,
                ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Missing,
                _ => Self::IoError,
            },
            StoreError::Sqlite { source, .. } => match source.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Self::Full,
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly,
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged,
                // SQLite reports a full and a read-only file system only as a failed read or write.
                _ => of_disk(directory).unwrap_or(Self::IoError),
            },
        }
    }
}

/// Whether the file system of this path is full or read-only.
fn of_disk(path: &Path) -> Option<Condition> {
    if is_read_only(path) {
        return Some(Condition::ReadOnly);
    }
    let disk = statvfs(path).ok()?;
    // A file system without a fixed number of inodes reports 0 of 0.
    let full = disk.blocks_available() == 0 || disk.files() > 0 && disk.files_available() == 0;
    full.then_some(Condition::Full)
}

/// Whether the file system of this path is mounted read-only.
pub(super) fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|disk| disk.flags().contains(FsFlags::ST_RDONLY))
}

/// The state of the store, as health and metrics report it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// The current condition.
    pub condition: Condition,
    /// The cause as text; empty while the store can be written.
    pub cause: String,
    /// How often the store was recreated since the start.
    pub recoveries: Recoveries,
    /// Description of the last recovery; empty if there was none.
    pub recovered: String,
    /// Findings that retention has removed since the start.
    pub removals: Removals,
}

/// Recoveries since the start, one counter for each condition of [`Condition::LOSSES`], in that order.
pub type Recoveries = [u64; Condition::LOSSES.len()];
