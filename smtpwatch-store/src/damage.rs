//! Sets a damaged file aside and replaces it with an empty store, so that monitoring continues. Nothing is deleted:
//! `sqlite3 FILE .recover` can still read the rest.

use std::path::{Path, PathBuf};

use smtpwatch_core::Timestamp;

use super::{StoreError, with_suffix};

/// Side files of SQLite: the write-ahead log with the most recent writes, and its index.
pub(super) const SIDE_FILES: [&str; 2] = ["-wal", "-shm"];

pub(super) fn of(path: &Path, source: &rusqlite::Error) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), what: source.to_string() }
}

/// Renames the files of a store that is found damaged at the start, and logs it.
pub(super) fn set_aside_at_start(path: &Path, what: &str, now: Timestamp) -> Result<(), StoreError> {
    let aside = set_aside(path, "damaged", now, |_| true)?;
    tracing::error!(
        damage = what,
        kept = %aside.unwrap_or_default().display(),
        "the store was damaged and is set aside: history and findings start empty; to read the rest of it: sqlite3 FILE .recover"
    );
    Ok(())
}

/// Renames the file at the path, whatever its type, and the side files that `side` accepts. Returns the new name of the
/// first renamed file; `None` if there was no file.
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
