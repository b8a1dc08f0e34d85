//! Sets a damaged file aside and replaces it with an empty store, so that monitoring continues. Nothing is deleted:
//! `sqlite3 FILE .recover` can still read the rest.

use std::path::{Path, PathBuf};

use smtpwatch_core::Timestamp;

use super::{StoreError, with_suffix};

/// SQLite keeps what was written last in these files beside the main one: the write-ahead log, and its index.
pub(super) const SIDE_FILES: [&str; 2] = ["-wal", "-shm"];

pub(super) fn of(path: &Path, source: &rusqlite::Error) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), what: source.to_string() }
}

/// Renames the files of a damaged store at the start, and says so.
pub(super) fn set_aside_at_start(path: &Path, what: &str, now: Timestamp) -> Result<(), StoreError> {
    let aside = set_aside(path, "damaged", now, |_| true)?;
    tracing::error!(
        damage = what,
        kept = %aside.unwrap_or_default().display(),
        "the store was damaged and is set aside: history and findings start empty; to read the rest of it: sqlite3 FILE .recover"
    );
    Ok(())
}

/// Renames what is at the path, of whatever type it is, and those files beside it that `side` accepts. Returns the name that the
/// first of them has then; `None`: nothing was there.
pub(super) fn set_aside(
    path: &Path,
    why: &str,
    now: Timestamp,
    side: impl Fn(&Path) -> bool,
) -> Result<Option<PathBuf>, StoreError> {
    let aside = with_suffix(path, &format!(".{why}-{}", now.to_string().replace([':', '-'], "")));
    let sides = SIDE_FILES.into_iter().filter(|suffix| side(&with_suffix(path, suffix)));
    let mut moved = None;
    for suffix in std::iter::once("").chain(sides) {
        let to = with_suffix(&aside, suffix);
        match std::fs::rename(with_suffix(path, suffix), &to) {
            Ok(()) if moved.is_none() => moved = Some(to),
            Ok(()) => {}
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Create { path: to, source }),
        }
    }
    Ok(moved)
}
