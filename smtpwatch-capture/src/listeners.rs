//! Finds mail servers that also listen on unwatched ports (docs/threats.md EV-25).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use procfs::{
    net::TcpState,
    process::{FDTarget, Process},
};

/// TLS from the first byte (RFC 8314 §3.3): there is no cleartext dialogue to watch.
const IMPLICIT_TLS: u16 = 465;

/// A program that listens on a watched port and on unwatched ones.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Unwatched {
    /// Name of the process, as the kernel reports it.
    pub program: String,
    /// The unwatched ports.
    pub ports: BTreeSet<u16>,
}

impl Unwatched {
    /// A description such as `"master listens on 2525 too"`.
    #[must_use]
    pub fn describe(&self) -> String {
        let ports: Vec<_> = self.ports.iter().map(u16::to_string).collect();
        format!("{} listens on {} too, which is not watched", self.program, ports.join(", "))
    }
}

/// Remedy for an unwatched port.
pub const REMEDY: &str = "if SMTP is spoken there, add the port to `ports` in the configuration, or by --port";

/// Searches the processes of this host, as far as permissions allow: a service with its own user sees only its own
/// processes.
#[must_use]
pub fn unwatched(watched: &[u16]) -> Vec<Unwatched> {
    let listeners = listeners();
    let mut programs: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        let ports = ports(&process, &listeners);
        if ports.iter().any(|port| watched.contains(port))
            && let Ok(stat) = process.stat()
        {
            programs.entry(stat.comm).or_default().extend(ports);
        }
    }
    let other = |port: &u16| *port != IMPLICIT_TLS && !watched.contains(port);
    let programs = programs
        .into_iter()
        .map(|(program, ports)| Unwatched { program, ports: ports.into_iter().filter(other).collect() });
    programs.filter(|program| !program.ports.is_empty()).collect()
}

/// Listening port by socket inode, for this network namespace.
fn listeners() -> HashMap<u64, u16> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let entries = tables.into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| (entry.inode, entry.local_address.port()))
        .collect()
}

fn ports(process: &Process, listeners: &HashMap<u64, u16>) -> BTreeSet<u16> {
    let sockets = process.fd().into_iter().flatten().flatten().filter_map(|fd| match fd.target {
        FDTarget::Socket(inode) => Some(inode),
        _ => None,
    });
    sockets.filter_map(|inode| listeners.get(&inode).copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn ev25_a_mail_listener_on_another_port_is_found() {
        let listen = || TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let (watched, other) = (listen(), listen());
        let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
        let found = unwatched(&[port(&watched)]);
        assert!(found.iter().any(|program| program.ports.contains(&port(&other))), "{found:?}");
        let both = unwatched(&[port(&watched), port(&other)]);
        assert!(!both.iter().any(|program| program.ports.contains(&port(&other))), "{both:?}");
        drop(watched);
        assert!(!unwatched(&[1]).iter().any(|program| program.ports.contains(&port(&other))), "no mail server");
    }
}
