//! A store that is damaged is set aside, and a fresh one takes its place: the watch goes on. Nothing is deleted, so that what
//! can be saved of it can be saved (`sqlite3 FILE .recover`).

use std::path::Path;

use smtpwatch_core::Timestamp;

use super::{StoreError, with_suffix};

/// SQLite keeps what was written last in these files beside the main one.
const SIDE_FILES: [&str; 3] = ["", "-wal", "-shm"];

pub(super) fn of(path: &Path, source: &rusqlite::Error) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), what: source.to_string() }
}

/// Renames the files of a damaged store, and says so.
pub(super) fn set_aside(path: &Path, what: &str, now: Timestamp) -> Result<(), StoreError> {
    let stamp = now.to_string().replace([':', '-'], "");
    let aside = with_suffix(path, &format!(".damaged-{stamp}"));
    for side in SIDE_FILES {
        let (from, to) = (with_suffix(path, side), with_suffix(&aside, side));
        match std::fs::rename(&from, &to) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Create { path: to, source });
            }
            _ => {}
        }
    }
    tracing::error!(
        damage = what,
        kept = %aside.display(),
        "the store was damaged and is set aside: history and findings begin afresh; what can be read of it: sqlite3 FILE .recover"
    );
    Ok(())
}
