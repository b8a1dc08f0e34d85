//! A packet socket (packet(7)) at the attacker's end of the path: sends any frame, and sees what the host sends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::netns::Namespace;
use crate::packet::{Arrival, Frame, Mac};

/// Receive buffer, bytes: large enough for what a host sends at full speed while the attacker does not read.
const BUFFER: usize = 32 << 20;
/// Longest wait of one receive call.
const TICK: TimeVal = TimeVal::new(0, 20_000);

/// The attacker's interface.
#[derive(Debug)]
pub struct Wire {
    fd: OwnedFd,
    /// Its own link-layer address.
    pub mac: Mac,
    /// The watched host's link-layer address.
    pub host: Mac,
}

impl Wire {
    /// Opens `interface` of `attacker`; its peer is the interface `far` of `host`.
    ///
    /// # Errors
    /// When there is no such interface, or no permission for packet sockets.
    pub fn open((attacker, interface): (&Namespace, &str), (host, far): (&Namespace, &str)) -> Result<Self> {
        let host = host.run(|| link(far))??.addr().context("a link-layer address")?;
        attacker.run(|| {
            let link = link(interface)?;
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
            bind(fd.as_raw_fd(), &link).with_context(|| format!("bind a packet socket to {interface}"))?;
            setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TICK)?;
            Ok(Self { fd, mac: link.addr().context("a link-layer address")?, host })
        })?
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the interface does not accept it.
    pub fn send(&self, frame: &Frame) -> Result<()> {
        self.send_bytes(&frame.to_bytes())
    }

    /// Sends the bytes of a frame.
    ///
    /// # Errors
    /// When the interface does not accept it.
    pub fn send_bytes(&self, frame: &[u8]) -> Result<()> {
        loop {
            match send(self.fd.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(sent) => {
                    ensure!(sent == frame.len(), "{sent} bytes of {} sent", frame.len());
                    return Ok(());
                }
                // The far end's queue is full.
                Err(Errno::ENOBUFS | Errno::EINTR) => std::thread::sleep(Duration::from_micros(200)),
                Err(error) => return Err(error).context("cannot send a frame"),
            }
        }
    }

    /// The next TCP segment that the host sends; `None` if it sends nothing for 20 ms.
    ///
    /// # Errors
    /// When the interface has been removed.
    pub fn receive(&self) -> Result<Option<Arrival>> {
        let mut buffer = vec![0; 80 * 1024];
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("cannot receive"),
            };
            let frame = &buffer[..length];
            if frame.get(..6) == Some(&self.mac[..])
                && let Some(arrival) = Arrival::parse(frame)
            {
                return Ok(Some(arrival));
            }
        }
    }

    /// Discards what the host has sent so far.
    ///
    /// # Errors
    /// When the interface has been removed.
    pub fn drain(&self) -> Result<()> {
        let mut buffer = [0; 64];
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
    }
}

/// The link-layer address of an interface of this thread's namespace, with its index.
fn link(interface: &str) -> Result<LinkAddr> {
    let mut all = nix::ifaddrs::getifaddrs()?.filter(|one| one.interface_name == interface);
    all.find_map(|one| one.address?.as_link_addr().copied()).with_context(|| format!("no interface {interface}"))
}
