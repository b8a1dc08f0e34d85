//! A minimal netlink client: the program in an XDP slot, the filters of a clsact qdisc, change notifications, and the
//! transport for [`super::routes`] and [`super::connections`].

use std::{
    io::{self, IoSlice},
    ops::ControlFlow,
    os::fd::{AsRawFd as _, OwnedFd},
};

use smtpwatch_common::Direction;

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg, socket,
    },
};

// include/uapi/linux/rtnetlink.h: bit n - 1 is group n.
const GROUPS: u32 = 0x1 /* link */ | 0x40 /* IPv4 route */ | 0x400 /* IPv6 route */
    | 0x80 /* IPv4 rule */ | 0x4_0000 /* IPv6 rule */ | 0x8000_0000 /* nexthop */;
const NLM_REQUEST: u16 = 0x1;
/// One response, then an acknowledgment.
pub(super) const NLM_ACK: u16 = 0x4;
/// All objects of the requested kind.
pub(super) const NLM_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_GETLINK: u16 = 18;
const RTM_NEWLINK: u16 = 16;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and the same for egress.
const CLSACT_SIDES: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
// include/uapi/linux/rtnetlink.h, pkt_cls.h
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
const NLA_TYPE: u16 = 0x3fff;

/// Notifies of changes to interfaces, routes or rules.
pub(crate) struct Changes(OwnedFd);

impl Changes {
    pub(crate) fn subscribe() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self(fd))
    }

    /// Whether anything has changed since the last call. The caller looks up the details, because messages can be
    /// lost.
    pub(crate) fn happened(&self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let mut happened = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return happened,
                // ENOBUFS: messages were lost, so something changed.
                Ok(_) | Err(Errno::ENOBUFS) => happened = true,
                Err(Errno::EINTR) => {}
                Err(_) => return happened,
            }
        }
    }
}

/// The id of the XDP program of an interface, if it has one.
pub(crate) fn xdp_program(interface: u32) -> io::Result<Option<u32>> {
    let mut id = None;
    request(SockProtocol::NetlinkRoute, RTM_GETLINK, NLM_ACK, &ifinfo(interface), |kind, body| {
        if kind != RTM_NEWLINK {
            return ControlFlow::Continue(());
        }
        // struct ifinfomsg is 16 bytes.
        each_attribute(body.get(16..).unwrap_or_default(), |kind, value| {
            if kind == IFLA_XDP {
                each_attribute(value, |kind, value| {
                    if kind == IFLA_XDP_PROG_ID {
                        id = value.first_chunk().map(|id| u32::from_ne_bytes(*id)).filter(|id| *id != 0);
                    }
                });
            }
        });
        ControlFlow::Continue(())
    })?;
    Ok(id)
}

/// Whether the clsact qdisc of an interface has any filter.
pub(crate) fn clsact_in_use(interface: u32) -> io::Result<bool> {
    let mut found = false;
    for side in CLSACT_SIDES {
        each_filter(interface, side, |_| found = true)?;
    }
    Ok(found)
}

/// Whether one side of the clsact qdisc of an interface has a filter with this BPF program.
pub(crate) fn clsact_has(interface: u32, direction: Direction, program: u32) -> io::Result<bool> {
    let [ingress, egress] = CLSACT_SIDES;
    let side = match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    };
    let mut found = false;
    each_filter(interface, side, |attributes| {
        each_attribute(attributes, |kind, value| {
            if kind == TCA_OPTIONS {
                each_attribute(value, |kind, value| {
                    found |= kind == TCA_BPF_ID && number(value, 0) == Some(program);
                });
            }
        });
    })?;
    Ok(found)
}

/// Calls `on` with the attributes of every filter of one side. Without the qdisc there are none.
fn each_filter(interface: u32, side: u32, mut on: impl FnMut(&[u8])) -> io::Result<()> {
    request(SockProtocol::NetlinkRoute, RTM_GETTFILTER, NLM_DUMP, &tcmsg(interface, 0, side), |kind, body| {
        if kind == RTM_NEWTFILTER {
            // struct tcmsg is 20 bytes.
            on(body.get(20..).unwrap_or_default());
        }
        ControlFlow::Continue(())
    })
}

/// Removes the clsact qdisc of an interface.
pub(crate) fn remove_clsact(interface: u32) -> io::Result<()> {
    let message = tcmsg(interface, CLSACT_HANDLE, CLSACT_PARENT);
    request(SockProtocol::NetlinkRoute, RTM_DELQDISC, NLM_ACK, &message, |_, _| ControlFlow::Continue(()))
}

fn ifinfo(interface: u32) -> Vec<u8> {
    let mut message = vec![0; 16];
    message[4..8].copy_from_slice(&interface.to_ne_bytes());
    message
}

fn tcmsg(interface: u32, handle: u32, parent: u32) -> Vec<u8> {
    let mut message = vec![0; 20];
    message[4..8].copy_from_slice(&interface.to_ne_bytes());
    message[8..12].copy_from_slice(&handle.to_ne_bytes());
    message[12..16].copy_from_slice(&parent.to_ne_bytes());
    message
}

/// Sends one request and calls `on` with the type and body of every message of the response, until the response ends
/// or `on` breaks.
pub(super) fn request(
    protocol: SockProtocol,
    kind: u16,
    flags: u16,
    body: &[u8],
    mut on: impl FnMut(u16, &[u8]) -> ControlFlow<()>,
) -> io::Result<()> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    sendmsg(fd.as_raw_fd(), &[IoSlice::new(&message)], &[], MsgFlags::empty(), Some(&NetlinkAddr::new(0, 0)))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let received = match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        let mut rest = buffer.get(..received).unwrap_or_default();
        while let Some((kind, body, next)) = next_message(rest) {
            rest = next;
            match kind {
                // Both begin with an error number: negative for an error, otherwise 0 or a length.
                NLMSG_DONE | NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code >= 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                kind => {
                    if on(kind, body).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        if received == 0 {
            return Ok(());
        }
    }
}

/// Splits off one message, RFC 3549 §2.3.2: its type, its body, and the remaining bytes.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..6)?.first_chunk()?);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Calls `on` with type and value of every attribute: struct rtattr and struct nlattr have the same layout.
pub(super) fn each_attribute(mut bytes: &[u8], mut on: impl FnMut(u16, &[u8])) {
    while let Some(head) = bytes.first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(value) = bytes.get(4..length) else { return };
        on(u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE, value);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// Appends an attribute to a message.
pub(super) fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Cannot fail: values are addresses, numbers, and a program of bounded length, far below 64 KiB.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// A number of four bytes in host byte order at offset `at`.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}
