//! Detects changes of files. [`Files`] records the identity and the times of the files that were read; the
//! configuration file compares it with their current state.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use smtpwatch_system::whole_file::{self, MAX_CONFIG};

/// Files that were read, and their state at that time.
#[derive(PartialEq, Eq, Default)]
pub(super) struct Files(Vec<(PathBuf, Option<Stamp>)>);

/// The attributes that change with a file, also when it is replaced by a rename or through a symbolic link.
#[derive(PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Files {
    /// Reads a file, and records its state from before the read.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.push((path.to_owned(), stamp(path)));
        whole_file::read(path, MAX_CONFIG)
    }

    /// The paths of the files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, _)| path.as_path())
    }

    /// The current state of the same files.
    pub(super) fn now(&self) -> Self {
        Self(self.0.iter().map(|(path, _)| (path.clone(), stamp(path))).collect())
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    path.metadata().ok().map(|found: Metadata| Stamp {
        device: found.dev(),
        inode: found.ino(),
        length: found.len(),
        modified: (found.mtime(), found.mtime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_target_of_a_link_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new, link] = ["old", "new", "link"].map(|name| folder.path().join(name));
        std::fs::write(&old, "same").unwrap();
        std::os::unix::fs::symlink("old", &link).unwrap();
        let mut files = Files::default();
        assert_eq!(files.read(&link).unwrap(), b"same");
        assert!(files.now() == files);
        std::fs::write(&new, "same").unwrap();
        std::fs::rename(&new, &old).unwrap();
        assert!(files.now() != files);
        std::fs::remove_file(&old).unwrap();
        let mut missing = Files::default();
        assert!(missing.read(&link).is_err() && missing.now() == missing);
        std::fs::write(&old, "back").unwrap();
        assert!(missing.now() != missing);
    }

    #[test]
    fn a_file_has_a_bound() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_CONFIG + 1).unwrap();
        assert!(Files::default().read(file.path()).is_err_and(|why| why.to_string().contains("longer than")));
    }
}
