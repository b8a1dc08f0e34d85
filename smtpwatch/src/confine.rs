//! Privileges that the daemon drops permanently before it reads hostile input; each thread keeps only what it needs.
//!
//! Capabilities, Landlock rules and seccomp filters apply to a thread and its later children. Therefore the capture
//! thread is started first; then the main thread drops everything, and so do all threads that it starts.

mod calls;
mod capabilities;
mod files;

use std::path::PathBuf;

pub use capabilities::without as without_capabilities;

/// What a thread keeps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// Capabilities, as far as it has them.
    pub capabilities: &'static [caps::Capability],
    /// Whether `bpf(2)` may be called.
    pub bpf: bool,
    /// Directories and files that may be written.
    pub writable: Vec<PathBuf>,
    /// Directories and files that may be read beside those of the system.
    pub readable: Vec<PathBuf>,
}

/// What a kernel did not take of [`thread`], each with its reason.
pub type Loose = Vec<String>;

/// Confines the calling thread and those that it starts, for good: no new privileges, the capabilities of `kept` at most,
/// files as `kept` says, and no system call that a monitor has no use for.
///
/// A kernel that lacks one of the means is told of; what is available is in force.
///
/// # Errors
///
/// Capabilities cannot be given up.
pub fn thread(kept: &Kept) -> anyhow::Result<Loose> {
    no_new_privileges()?;
    capabilities::keep(kept.capabilities)?;
    let parts = [files::restrict(&kept.readable, &kept.writable), calls::refuse(kept.bpf)];
    Ok(parts.into_iter().filter_map(Result::err).collect())
}

/// No memory of this process is written to a file when it ends by a fault: a password on the wire may be in it.
///
/// # Errors
///
/// The system refuses.
pub fn no_core() -> anyhow::Result<()> {
    use anyhow::Context as _;
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot disable core dumps")
}

/// Nothing that this process starts can ever get more than it has (`PR_SET_NO_NEW_PRIVS`): what the filter of system calls and
/// Landlock need.
fn no_new_privileges() -> anyhow::Result<()> {
    use anyhow::Context as _;
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")
}

#[cfg(test)]
mod tests {
    use std::{fs, io::ErrorKind, net::TcpListener, process::Command, thread};

    use super::*;

    /// In its own thread: it cannot be undone.
    fn confined<T: Send>(kept: &Kept, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let confined = scope.spawn(|| {
                assert_eq!(thread(kept).expect("confined"), Loose::new());
                work()
            });
            confined.join().expect("the thread")
        })
    }

    #[test]
    fn a_confined_thread_writes_where_it_may_and_starts_nothing() {
        let (state, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let (inside, outside) = (state.path().join("file"), other.path().join("file"));
        fs::write(&outside, "secret").expect("written");
        let kept = Kept { writable: vec![state.path().to_owned()], ..Kept::default() };
        confined(&kept, || {
            fs::write(&inside, "kept").expect("the state directory");
            fs::rename(&inside, inside.with_extension("old")).expect("renamed");
            assert_eq!(fs::write(&outside, "lost").unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(fs::read(&outside).unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(fs::remove_file(&outside).unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), ErrorKind::PermissionDenied);
            fs::read("/proc/self/status").expect("the process itself");
            fs::read("/etc/hosts").expect("the files of the resolver");
            TcpListener::bind("127.0.0.1:0").expect("a listener");
            // What a thread starts is confined with it.
            let child = thread::spawn(move || fs::write(&outside, "lost").unwrap_err().kind());
            assert_eq!(child.join().expect("the child"), ErrorKind::PermissionDenied);
        });
        assert_eq!(fs::read(other.path().join("file")).expect("read"), b"secret");
    }

    #[test]
    fn nothing_is_left_of_the_capabilities() {
        let status = confined(&Kept::default(), || fs::read_to_string("/proc/thread-self/status").expect("the status"));
        for line in ["CapInh:\t0", "CapPrm:\t0", "CapEff:\t0", "CapAmb:\t0", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line}: {status}");
        }
    }
}
