//! Checks that the files of the store are the open ones: SQLite continues to use a file that was unlinked, replaced
//! or overwritten by another process, and reports no error for a long time.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    APPLICATION_ID,
    condition::{Condition, is_read_only},
    damage::SIDE_FILES,
    with_suffix,
};

/// Header of a database file (<https://www.sqlite.org/fileformat.html>, §1.3): its length, its leading string, and the
/// offsets of the page size (2 bytes), the number of pages and the application ID (4 bytes each), all big-endian.
const HEADER: usize = 100;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const PAGE_SIZE: usize = 16;
const PAGES: usize = 28;
const APPLICATION: usize = 68;
/// Header of the write-ahead log (§4.1): its length, and its magic number, whose last bit is the byte order of the
/// checksums.
const LOG: &str = "-wal";
const LOG_HEADER: u64 = 32;
const LOG_MAGIC: u32 = 0x377f_0682;

/// Identity of a file, independent of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|file| Self::of(&file))
    }

    pub(super) fn of(file: &std::fs::Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino() }
    }
}

/// A fault of the store's files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub condition: Condition,
    /// Description of the cause.
    pub cause: String,
}

/// The files of an open store.
pub(super) struct FileMonitor {
    path: PathBuf,
    /// The main file. It stays open as long as the store: closing it would release SQLite's locks, because POSIX locks
    /// belong to the process and the file.
    file: File,
    id: FileId,
    /// The write-ahead log and its index, once they have been seen.
    sides: [Option<FileId>; SIDE_FILES.len()],
    /// At the last check the file was shorter than its header says, as during a checkpoint.
    short: bool,
}

impl FileMonitor {
    /// Watches the files of the store that was just opened at this path.
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let id = FileId::of(&file.metadata()?);
        let sides = SIDE_FILES.map(|side| FileId::at(&with_suffix(path, side)).ok());
        Ok(Self { path: path.to_owned(), file, id, sides, short: false })
    }

    /// Whether this file belongs to the open store.
    pub(super) fn is_ours(&self, path: &Path) -> bool {
        FileId::at(path).is_ok_and(|id| id == self.id || self.sides.contains(&Some(id)))
    }

    /// Checks the files. `checkpoint` completes an interrupted checkpoint, during which the file may be shorter than
    /// its header says.
    pub(super) fn examine(&mut self, checkpoint: impl FnOnce()) -> Option<Fault> {
        self.files().or_else(|| self.content(checkpoint)).or_else(|| {
            is_read_only(&self.path).then(|| Fault {
                condition: Condition::ReadOnly,
                cause: format!("the file system of {} is mounted read-only", self.path.display()),
            })
        })
    }

    fn files(&mut self) -> Option<Fault> {
        match FileId::at(&self.path) {
            Ok(found) if found == self.id => {}
            Ok(_) => return Some(fault(Condition::Replaced, &self.path, "another file is at its place")),
            Err(error) if is_absence(&error) => return Some(fault(Condition::Missing, &self.path, "it was removed")),
            Err(error) => return Some(fault(Condition::IoError, &self.path, &error.to_string())),
        }
        for (side, known) in SIDE_FILES.into_iter().zip(&mut self.sides) {
            let path = with_suffix(&self.path, side);
            match (FileId::at(&path), &known) {
                (Ok(found), None) => *known = Some(found),
                (Ok(found), Some(known)) if found != *known => {
                    return Some(fault(Condition::Replaced, &path, "another file is at its place"));
                }
                (Err(error), Some(_)) if is_absence(&error) => {
                    return Some(fault(Condition::Missing, &path, "it was removed"));
                }
                _ => {}
            }
        }
        None
    }

    fn content(&mut self, checkpoint: impl FnOnce()) -> Option<Fault> {
        let damaged = |what: &str| Some(fault(Condition::Damaged, &self.path, what));
        let mut header = [0; HEADER];
        match self.file.read_exact_at(&mut header, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return damaged("it was cut off"),
            Err(error) => return Some(fault(Condition::IoError, &self.path, &error.to_string())),
        }
        let number = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        if !header.starts_with(MAGIC) || number(APPLICATION) != APPLICATION_ID.cast_unsigned() {
            return damaged("it was overwritten");
        }
        if self.is_log_damaged() {
            return Some(fault(Condition::Damaged, &with_suffix(&self.path, LOG), "it was overwritten"));
        }
        let page = match header[PAGE_SIZE..].first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes)) {
            1 => 65_536,
            size => u64::from(size),
        };
        let is_short = || self.file.metadata().is_ok_and(|file| file.len() < page * u64::from(number(PAGES)));
        let (short, before) = (is_short(), self.short);
        if short && before {
            checkpoint();
            if is_short() {
                return damaged("it was cut off");
            }
        }
        self.short = short && !before;
        None
    }
}

impl FileMonitor {
    /// Whether the log file does not contain a valid log: the next start would ignore it.
    fn is_log_damaged(&self) -> bool {
        // SQLite holds no locks on this file that closing it could release. Opening a FIFO must not block.
        let log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(with_suffix(&self.path, LOG));
        let Ok(log) = log else { return false };
        let mut magic = [0; 4];
        log.metadata().is_ok_and(|log| log.len() >= LOG_HEADER)
            && log.read_exact_at(&mut magic, 0).is_ok()
            && u32::from_be_bytes(magic) & !1 != LOG_MAGIC
    }
}

fn fault(condition: Condition, path: &Path, what: &str) -> Fault {
    Fault { condition, cause: format!("{}: {what}", path.display()) }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) || error.raw_os_error() == Some(libc::ELOOP)
}
