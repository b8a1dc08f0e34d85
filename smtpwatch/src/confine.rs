//! Privileges that the daemon drops permanently before it reads hostile input; each thread keeps only what it needs.
//!
//! Capabilities, Landlock rules and seccomp filters apply to a thread and its later children. Therefore the capture
//! thread is started first; then the main thread drops everything, and so do all threads that it starts.

mod calls;
mod capabilities;
mod files;

use std::path::PathBuf;

pub use capabilities::without as without_capabilities;

/// The privileges that a thread keeps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Privileges {
    /// Capabilities, as far as the thread has them.
    pub capabilities: &'static [caps::Capability],
    /// Whether `bpf(2)` is allowed.
    pub bpf: bool,
    /// Writable directories and files.
    pub writable: Vec<PathBuf>,
    /// Readable directories and files in addition to those of the system.
    pub readable: Vec<PathBuf>,
}

/// Restrictions of [`thread`] that this kernel does not support, each with the reason.
pub type Unsupported = Vec<String>;

/// Confines the calling thread and its later children permanently: no new privileges, at most the capabilities of
/// `privileges`, the files of `privileges`, and no system call that a monitor does not need.
///
/// Restrictions that the kernel lacks are returned; all others are in force.
///
/// # Errors
///
/// Capabilities cannot be dropped.
pub fn thread(privileges: &Privileges) -> anyhow::Result<Unsupported> {
    no_new_privileges()?;
    capabilities::keep(privileges.capabilities)?;
    let parts = [files::restrict(&privileges.readable, &privileges.writable), calls::refuse(privileges.bpf)];
    Ok(parts.into_iter().filter_map(Result::err).collect())
}

/// Disables core dumps: the memory of this process may contain passwords from the network.
///
/// # Errors
///
/// The system refuses.
pub fn no_core() -> anyhow::Result<()> {
    use anyhow::Context as _;
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot disable core dumps")
}

/// Prevents that this process and its children gain privileges (`PR_SET_NO_NEW_PRIVS`); required by seccomp and
/// Landlock.
fn no_new_privileges() -> anyhow::Result<()> {
    use anyhow::Context as _;
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")
}

#[cfg(test)]
mod tests {
    use std::{fs, io::ErrorKind, net::TcpListener, process::Command, thread};

    use super::*;

    /// Runs the work in a confined thread of its own, because confinement is irreversible.
    fn confined<T: Send>(privileges: &Privileges, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let confined = scope.spawn(|| {
                assert_eq!(thread(privileges).expect("confined"), Unsupported::new());
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
        let privileges = Privileges { writable: vec![state.path().to_owned()], ..Privileges::default() };
        confined(&privileges, || {
            fs::write(&inside, "kept").expect("the state directory");
            fs::rename(&inside, inside.with_extension("old")).expect("renamed");
            assert_eq!(fs::write(&outside, "lost").unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(fs::read(&outside).unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(fs::remove_file(&outside).unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), ErrorKind::PermissionDenied);
            fs::read("/proc/self/status").expect("the process itself");
            fs::read("/etc/hosts").expect("the files of the resolver");
            TcpListener::bind("127.0.0.1:0").expect("a listener");
            // Children of a confined thread are confined too.
            let child = thread::spawn(move || fs::write(&outside, "lost").unwrap_err().kind());
            assert_eq!(child.join().expect("the child"), ErrorKind::PermissionDenied);
        });
        assert_eq!(fs::read(other.path().join("file")).expect("read"), b"secret");
    }

    #[test]
    fn nothing_is_left_of_the_capabilities() {
        let status =
            confined(&Privileges::default(), || fs::read_to_string("/proc/thread-self/status").expect("the status"));
        for line in ["CapInh:\t0", "CapPrm:\t0", "CapEff:\t0", "CapAmb:\t0", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line}: {status}");
        }
    }
}
