//! The lock of an interface: a second smtpwatch on it would count every session twice, and would regard the filters
//! of the first one as stale.
//!
//! The lock is a listening socket with an abstract name (unix(7)). Abstract names belong to a network namespace, as
//! interfaces do, so containers that share the host's network see the lock. The kernel releases it when the process
//! ends in any way.

use std::{
    fmt,
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
};

/// The exclusive right to watch one interface of this network namespace; dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct InterfaceLock {
    /// Held for its name: it never accepts a connection.
    _name: UnixListener,
}

/// Why the lock was not acquired.
#[derive(Debug)]
pub(crate) enum LockRefusal {
    /// Another process holds it.
    Taken(Holder),
    /// The system call failed.
    System(io::Error),
}

/// The process that holds a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holder {
    /// Its process id; `None` if it is in another PID namespace, or the kernel does not report it.
    pub process: Option<i32>,
    /// Its user id.
    pub user: Option<u32>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another smtpwatch")?;
        match (self.process, self.user) {
            (Some(process), Some(user)) => write!(f, " (process {process}, user {user})"),
            (None, Some(user)) => write!(f, " (a process of another PID namespace, user {user})"),
            (_, None) => Ok(()),
        }
    }
}

impl InterfaceLock {
    /// Acquires the lock of the interface with this index, in the network namespace of the calling thread.
    pub(crate) fn take(interface: u32) -> Result<Self, LockRefusal> {
        let name = name(interface);
        let address = SocketAddr::from_abstract_name(&name).map_err(LockRefusal::System)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self { _name: listener }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Err(LockRefusal::Taken(holder(&name).unwrap_or_default()))
            }
            Err(error) => Err(LockRefusal::System(error)),
        }
    }
}

fn name(interface: u32) -> Vec<u8> {
    format!("smtpwatch/interface/{interface}").into_bytes()
}

/// The process that listens under this name. Does not block: the queue of a listener that never accepts may be full.
fn holder(name: &[u8]) -> nix::Result<Holder> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    let credentials = getsockopt(&fd, PeerCredentials)?;
    // 0: the process is not visible from this PID namespace.
    let process = Some(credentials.pid()).filter(|process| *process != 0);
    Ok(Holder { process, user: Some(credentials.uid()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_watcher_is_refused_as_long_as_the_first_one_lives() {
        // No interface has this index: the lock does not require one.
        let interface = 0x8000_0000 | std::process::id();
        let first = InterfaceLock::take(interface).unwrap();
        let Err(LockRefusal::Taken(holder)) = InterfaceLock::take(interface) else { panic!("it was given twice") };
        assert_eq!(holder.process, Some(i32::try_from(std::process::id()).unwrap()));
        assert!(holder.to_string().contains(&format!("process {}", std::process::id())), "{holder}");
        InterfaceLock::take(interface + 1).expect("another interface");
        drop(first);
        InterfaceLock::take(interface).expect("the first one has gone");
    }
}
