//! The condition of the store while the daemon runs: a closed set for metrics, health and log.

use std::{io::ErrorKind, path::Path};

use nix::sys::statvfs::{FsFlags, statvfs};
use rusqlite::ErrorCode;

use super::StoreError;

/// The condition of the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Condition {
    /// It is written.
    #[default]
    Ok,
    /// No file is at its path, or one of SQLite's files beside it is gone.
    Missing,
    /// Another file is at its path.
    Replaced,
    /// Its content is not a whole store.
    Damaged,
    /// The disk is full.
    Full,
    /// The file system is mounted read-only, or its permissions forbid writing.
    ReadOnly,
    /// Another process holds it for writing.
    Busy,
    /// Every other failure.
    IoError,
}

impl Condition {
    /// Every condition.
    pub const ALL: [Self; 8] =
        [Self::Ok, Self::Missing, Self::Replaced, Self::Damaged, Self::Full, Self::ReadOnly, Self::Busy, Self::IoError];
    /// Those after which a store is made again.
    pub const LOSSES: [Self; 3] = [Self::Missing, Self::Replaced, Self::Damaged];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Replaced => "replaced",
            Self::Damaged => "damaged",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Busy => "busy",
            Self::IoError => "io_error",
        }
    }

    /// What to do.
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

    /// The condition that an error shows, of a store in this directory.
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
                // SQLite says of several causes only that a file cannot be read or written.
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
    // A file system without a fixed number of inodes says zero of zero.
    let full = disk.blocks_available() == 0 || disk.files() > 0 && disk.files_available() == 0;
    full.then_some(Condition::Full)
}

/// Whether the file system of this path is mounted read-only.
pub(super) fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|disk| disk.flags().contains(FsFlags::ST_RDONLY))
}

/// How the store is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Its condition.
    pub condition: Condition,
    /// The cause, in words; empty: it is written.
    pub cause: String,
    /// Stores that were made again since the start.
    pub recoveries: Recoveries,
    /// The newest of them, in words; empty: none.
    pub recovered: String,
}

/// Stores that were made again since the start, by what had happened to the one before: as [`Condition::LOSSES`].
pub type Recoveries = [u64; Condition::LOSSES.len()];
