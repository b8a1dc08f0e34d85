//! Reads and replaces whole files: regular files only, up to a bound. A FIFO would block the program until another
//! process writes; a device such as `/dev/zero` never ends, and opening one may have side effects.

use std::{
    fs::{File, FileType, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::{FileTypeExt, MetadataExt as _, OpenOptionsExt, fchown},
    path::Path,
};

use libc::{O_NOCTTY, O_NONBLOCK};

/// Maximum size in bytes of a configuration file, of a web configuration file, and of each file that the latter
/// names.
pub const MAX_CONFIG: u64 = 1024 * 1024;

/// The content of a regular file of at most `most` bytes. Symbolic links are followed.
///
/// # Errors
///
/// The file cannot be opened or read, is not a regular file, or is longer than `most` bytes.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Checked before opening, so that a device is not opened at all; and after it, because the file may have been
    // replaced.
    require_regular(path.metadata()?.file_type())?;
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)?;
    require_regular(file.metadata()?.file_type())?;
    read_bounded(file, most)
}

/// The content of a regular file of at most `most` bytes, as text.
///
/// # Errors
///
/// As [`read`]; or the content is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8");
    String::from_utf8(read(path, most)?).map_err(not_text)
}

/// Replaces or creates a regular file atomically: a reader finds either the old or the complete new content. Symbolic
/// links are followed; mode and owner are preserved as far as the system permits.
///
/// # Errors
///
/// `path` is not a regular file, or the file cannot be written; the old file is then unchanged.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => path.to_owned(),
        Err(error) => return Err(error),
    };
    let before = match path.metadata() {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(before) = &before {
        require_regular(before.file_type())?;
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unfinished = directory.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&unfinished)?;
        if let Some(before) = &before {
            // Only root may change the owner of a file.
            let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
            file.set_permissions(before.permissions())?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)?;
        File::open(directory)?.sync_all()
    };
    // A leftover of another process that had the same process id.
    let _ = std::fs::remove_file(&unfinished);
    write().inspect_err(|_| _ = std::fs::remove_file(&unfinished))
}

/// The kind of a file that is not a regular file; `None`: it is a regular file.
#[must_use]
pub fn special_kind(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a named pipe (FIFO)")
    } else if kind.is_socket() {
        Some("a socket")
    } else if kind.is_symlink() {
        Some("a symbolic link")
    } else {
        Some("a device")
    }
}

fn require_regular(kind: FileType) -> io::Result<()> {
    match special_kind(kind) {
        None => Ok(()),
        Some(what) => {
            let message = format!("it is {what}: name a regular file");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

fn read_bounded(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // The reported length is ignored: it is 0 for a file in /proc, and other files may grow.
    file.take(most.saturating_add(1)).read_to_end(&mut content)?;
    if u64::try_from(content.len()).is_ok_and(|length| length <= most) {
        return Ok(content);
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {most} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        read(path, 9).expect_err("refused").to_string()
    }

    #[test]
    fn only_regular_files_within_the_bound_are_read() {
        let folder = tempfile::tempdir().expect("a directory");
        let [file, link, fifo] = ["file", "link", "fifo"].map(|name| folder.path().join(name));
        std::fs::write(&file, "123456789").expect("written");
        std::os::unix::fs::symlink("file", &link).expect("a link");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).expect("a socket");

        assert_eq!(read(&file, 9).expect("the bound itself"), b"123456789");
        assert_eq!(read_text(&link, 9).expect("links are followed"), "123456789");
        assert_eq!(read(&file, 8).expect_err("longer").to_string(), "it is longer than 8 bytes");
        for (path, what) in [
            (folder.path(), "a directory"),
            (&fifo, "a named pipe (FIFO)"),
            (Path::new("/dev/zero"), "a device"),
            (&folder.path().join("socket"), "a socket"),
        ] {
            assert_eq!(refusal(path), format!("it is {what}: name a regular file"));
        }
        assert_eq!(read(&folder.path().join("absent"), 9).expect_err("absent").kind(), io::ErrorKind::NotFound);
        std::fs::write(&file, [0xff]).expect("written");
        assert_eq!(read_text(&file, 9).expect_err("no text").to_string(), "it is not text in UTF-8");
    }
}
