//! Resolves the id of a cgroup (v2) to its path.
//!
//! A cgroup is a directory in the file system cgroup2, and its id is the inode number of that directory. With
//! CAP_DAC_READ_SEARCH the kernel opens a directory by this number; without it, `Cgroups` scans the tree.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{DirEntryExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use procfs::process::Process;
use smtpwatch_core::Timestamp;

/// Maximum number of directories per walk; directories beyond it are not found.
const DIRECTORIES: usize = 4_096;
/// Minimum interval between walks: packets wait during a walk.
const WALK_AGAIN: Duration = Duration::from_secs(1);
/// `FILEID_KERNFS` of include/linux/exportfs.h: the handle is the inode number of the directory.
const FILEID_KERNFS: libc::c_int = 0xfe;

/// The cgroup tree as visible to this process.
pub(super) struct Cgroups {
    mount: File,
    root: PathBuf,
    walked: Option<Timestamp>,
}

/// `struct file_handle` of a cgroup directory.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: u64,
}

impl Cgroups {
    /// Opens the mount point of cgroup2; `None`: it is not mounted.
    pub(super) fn open() -> Option<Self> {
        let root = mount_point()?;
        Some(Self { mount: File::open(&root).ok()?, root, walked: None })
    }

    /// The path of a cgroup below the root of the tree; `None`: the cgroup is gone or was not found.
    pub(super) fn path(&mut self, id: u64, at: Timestamp) -> Option<String> {
        let place = match self.by_id(id) {
            Ok(place) => place,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                if self.walked.is_some_and(|walked| at.since(walked) < WALK_AGAIN) {
                    return None;
                }
                self.walked = Some(at);
                walk(&self.root, id)?
            }
            Err(_) => return None,
        };
        let below = place.strip_prefix(&self.root).ok()?;
        Some(format!("/{}", below.to_string_lossy()))
    }

    fn by_id(&self, id: u64) -> io::Result<PathBuf> {
        let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id };
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the kernel reads the head of the handle and the eight bytes that it announces; both exist and
        // outlive the call.
        let fd = unsafe { libc::open_by_handle_at(self.mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just created this descriptor for this caller only.
        let directory = unsafe { OwnedFd::from_raw_fd(fd) };
        std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
    }
}

/// Mount point of the tree; the host's tree if a container's tree is mounted too.
pub fn mount_point() -> Option<PathBuf> {
    let mounts = Process::myself().ok()?.mountinfo().ok()?;
    let trees = mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2");
    trees.min_by_key(|mount| mount.root.len()).map(|mount| mount.mount_point)
}

/// Searches for the directory with this inode number, level by level: services are near the root.
fn walk(root: &Path, id: u64) -> Option<PathBuf> {
    if root.metadata().ok()?.ino() == id {
        return Some(root.to_owned());
    }
    let mut waiting = VecDeque::from([root.to_owned()]);
    for _ in 0..DIRECTORIES {
        let directory = waiting.pop_front()?;
        // A directory may disappear during the scan.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == id {
                return Some(entry.path());
            }
            if waiting.len() < DIRECTORIES {
                waiting.push_back(entry.path());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_every_cgroup_near_the_root() {
        let Some(mut cgroups) = Cgroups::open() else { return };
        let mut places = vec![cgroups.root.clone()];
        let entries = std::fs::read_dir(&cgroups.root).expect("the root").flatten();
        places.extend(entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()));
        for place in places {
            // Another process may have removed the directory.
            let Ok(metadata) = place.metadata() else { continue };
            let id = metadata.ino();
            assert_eq!(walk(&cgroups.root, id).as_ref(), Some(&place));
            match cgroups.by_id(id) {
                Ok(found) => assert_eq!(found, place),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
            }
            let below = place.strip_prefix(&cgroups.root).expect("below the root").display().to_string();
            cgroups.walked = None;
            assert_eq!(cgroups.path(id, Timestamp::default()), Some(format!("/{below}")));
        }
    }

    #[test]
    fn a_walk_reaches_deep_directories() {
        let root = tempfile::tempdir().expect("a directory");
        let (deep, file) = (root.path().join("a/b/c"), root.path().join("a/file"));
        std::fs::create_dir_all(&deep).expect("directories");
        std::fs::write(&file, "").expect("a file");
        let number = |place: &Path| place.metadata().expect("it is there").ino();
        assert_eq!(walk(root.path(), number(&deep)), Some(deep));
        assert_eq!(walk(root.path(), number(&file)), None, "only a directory is a cgroup");
    }

    #[test]
    fn one_that_is_not_there_is_not_found() {
        let Some(mut cgroups) = Cgroups::open() else { return };
        assert_eq!(cgroups.path(u64::MAX, Timestamp::default()), None);
    }
}
