//! The lock of an interface: a second smtpwatch on it would count every session twice, and would take the filters of
//! the first one for those of a killed process.
//!
//! The lock is a listening socket with an abstract name (unix(7)). Abstract names belong to a network namespace, as
//! interfaces do, so containers that share the host's network see the lock. The kernel releases it with the process,
//! however that ends.

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

/// The right to watch one interface of this network namespace; it ends with the value.
#[derive(Debug)]
pub(crate) struct InterfaceLock {
    /// Open for the name alone: nothing is accepted.
    _name: UnixListener,
}

/// Why there is no lock.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Another process has it.
    Taken(Holder),
    /// The system does not give it.
    System(io::Error),
}

/// The process that has a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holder {
    /// Its process id; `None` where it is of another PID namespace, or the kernel does not give it.
    pub process: Option<i32>,
    /// Its user.
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
    /// Takes the lock of the interface with this index, in the network namespace of the calling thread.
    pub(crate) fn take(interface: u32) -> Result<Self, Refused> {
        let name = name(interface);
        let address = SocketAddr::from_abstract_name(&name).map_err(Refused::System)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self { _name: listener }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Err(Refused::Taken(holder(&name).unwrap_or_default()))
            }
            Err(error) => Err(Refused::System(error)),
        }
    }
}

fn name(interface: u32) -> Vec<u8> {
    format!("smtpwatch/interface/{interface}").into_bytes()
}

/// Asks the kernel who listens under this name. Does not wait: the queue of a listener that accepts nothing may be full.
fn holder(name: &[u8]) -> nix::Result<Holder> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    let credentials = getsockopt(&fd, PeerCredentials)?;
    // 0: the process is not seen from this PID namespace.
    let process = Some(credentials.pid()).filter(|process| *process != 0);
    Ok(Holder { process, user: Some(credentials.uid()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_watcher_is_refused_as_long_as_the_first_one_lives() {
        // No interface has such an index: the lock needs none.
        let interface = 0x8000_0000 | std::process::id();
        let first = InterfaceLock::take(interface).unwrap();
        let Err(Refused::Taken(holder)) = InterfaceLock::take(interface) else { panic!("it was given twice") };
        assert_eq!(holder.process, Some(i32::try_from(std::process::id()).unwrap()));
        assert!(holder.to_string().contains(&format!("process {}", std::process::id())), "{holder}");
        InterfaceLock::take(interface + 1).expect("another interface");
        drop(first);
        InterfaceLock::take(interface).expect("the first one has gone");
    }
}
