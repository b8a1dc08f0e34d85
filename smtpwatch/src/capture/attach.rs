//! Attaching: which hook is tried in which order, what is said when one is not to be had, and how it ends.
//!
//! Nothing of others is ever replaced or removed. XDP and TCX end with the file descriptor of their link, so with this
//! process, however it ends. Filters of a clsact qdisc do not: they are removed at the end, and stale ones at the start.

use std::{collections::BTreeSet, io, os::fd::OwnedFd};

use aya::{
    Ebpf,
    programs::{
        Program, ProgramError, SchedClassifier, TcAttachType, loaded_programs,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};
use smtpwatch_common::{Direction, Link};

use super::{
    CaptureError,
    interfaces::Interface,
    link::{self, Target},
    netlink,
    object::program,
};
use crate::config::Ingress;

/// Priority and handle of our clsact filters: ours alone, so that no other filter is met.
const PRIORITY: u16 = 0x5357;
const HANDLE: TcHandle = TcHandle::new(0, 0x5357);

/// A place in the kernel where packets are seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    /// XDP in the driver.
    Xdp,
    /// XDP on the generic path.
    XdpGeneric,
    /// TCX, kernel 6.6 and later.
    Tcx,
    /// A filter of a clsact qdisc.
    Clsact,
}

impl Hook {
    /// Every hook, for metric labels.
    pub const ALL: [Self; 4] = [Self::Xdp, Self::XdpGeneric, Self::Tcx, Self::Clsact];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    const fn name(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (Self::Xdp, _) => "XDP",
            (Self::XdpGeneric, _) => "generic XDP",
            (Self::Tcx, Direction::Ingress) => "TCX ingress",
            (Self::Tcx, Direction::Egress) => "TCX egress",
            (Self::Clsact, Direction::Ingress) => "a clsact ingress filter",
            (Self::Clsact, Direction::Egress) => "a clsact egress filter",
        }
    }
}

/// One direction of one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// Name of the interface.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// Which way.
    pub direction: Direction,
    /// Where; `None` if it is wanted and could not be had.
    pub hook: Option<Hook>,
}

/// What is attached, and how it ends.
#[derive(Default)]
pub(crate) struct Attachments {
    held: Vec<(Attachment, Option<Held>)>,
    /// Interfaces whose clsact qdisc we made.
    qdiscs: BTreeSet<u32>,
}

/// Dropped, it is detached.
#[expect(dead_code, reason = "held for their Drop alone")]
enum Held {
    Link(OwnedFd),
    Filter(SchedClassifierLink),
}

impl Attachments {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.held.iter().map(|(attachment, _)| attachment)
    }

    /// Name of the interface with this index; empty for one that has gone.
    pub(crate) fn name_of(&self, index: u32) -> &str {
        self.iter().find(|held| held.index == index).map_or("", |held| held.interface.as_str())
    }

    /// Attaches both directions of `interface`.
    pub(crate) fn attach(
        &mut self,
        object: &mut Ebpf,
        interface: &Interface,
        ingress: Ingress,
        no_xdp: Option<&str>,
    ) -> Result<(), CaptureError> {
        let mut first_failure = None;
        for direction in Direction::ALL {
            let taken = self.climb(object, interface, direction, ladder(ingress, direction, interface.link), no_xdp);
            let (hook, held) = match taken {
                Ok((hook, held)) => {
                    tracing::info!(
                        interface = interface.name,
                        direction = direction.as_str(),
                        hook = hook.as_str(),
                        "attached"
                    );
                    (Some(hook), Some(held))
                }
                Err(error) => {
                    first_failure.get_or_insert(error);
                    (None, None)
                }
            };
            let Interface { name, index, .. } = interface;
            self.held.push((Attachment { interface: name.clone(), index: *index, direction, hook }, held));
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// Detaches both directions of an interface, which may have gone.
    pub(crate) fn detach(&mut self, index: u32) {
        self.held.retain(|(attachment, _)| attachment.index != index);
        if self.qdiscs.remove(&index) {
            match netlink::clsact_in_use(index) {
                Ok(false) => {
                    if let Err(error) = netlink::remove_clsact(index) {
                        tracing::debug!(index, %error, "the clsact qdisc stays");
                    }
                }
                Ok(true) => tracing::info!(index, "the clsact qdisc stays, because others use it"),
                Err(error) => tracing::debug!(index, %error, "the clsact qdisc stays"),
            }
        }
    }

    /// Tries the hooks of `ladder` in turn; each fall-back is logged with its cause.
    fn climb(
        &mut self,
        object: &mut Ebpf,
        interface: &Interface,
        direction: Direction,
        ladder: &[Hook],
        no_xdp: Option<&str>,
    ) -> Result<(Hook, Held), CaptureError> {
        let mut failure = None;
        for (position, hook) in ladder.iter().enumerate() {
            match self.try_hook(object, interface, direction, *hook, no_xdp) {
                Ok(held) => return Ok((*hook, held)),
                Err(cause) => {
                    let next = ladder.get(position + 1).map(|next| next.name(direction));
                    match next {
                        // Others' programs are worth a look; a driver without XDP is everyday life.
                        Some(next) if cause.occupied => tracing::warn!("{cause}: using {next}"),
                        Some(next) => tracing::info!("{cause}: using {next}"),
                        None => {}
                    }
                    failure = Some(cause);
                }
            }
        }
        Err(failure.map_or_else(
            || CaptureError::LinkLayer { interface: interface.name.clone() },
            |cause| CaptureError::Attach { cause: cause.source, detail: cause.text, remedy: cause.remedy },
        ))
    }

    fn try_hook(
        &mut self,
        object: &mut Ebpf,
        interface: &Interface,
        direction: Direction,
        hook: Hook,
        no_xdp: Option<&str>,
    ) -> Result<Held, Cause> {
        let refused = |source: io::Error| Cause::new(interface, direction, hook, source);
        let ip = interface.link == Some(Link::Ip);
        let (name, target) = match (hook, direction) {
            (Hook::Xdp, _) => (program::XDP, Some(Target::XdpNative)),
            (Hook::XdpGeneric, _) => (program::XDP, Some(Target::XdpGeneric)),
            (Hook::Tcx, Direction::Ingress) => (tc_program(direction, ip), Some(Target::TcxIngress)),
            (Hook::Tcx, Direction::Egress) => (tc_program(direction, ip), Some(Target::TcxEgress)),
            (Hook::Clsact, _) => (tc_program(direction, ip), None),
        };
        if let (Hook::Xdp | Hook::XdpGeneric, Some(why)) = (hook, no_xdp) {
            let why = format!("this kernel does not take the program ({why}); kernel 5.18 and later do");
            return Err(Cause {
                text: told(interface, direction, hook, &why),
                ..refused(io::ErrorKind::Unsupported.into())
            });
        }
        let missing = || refused(io::Error::other(format!("the program {name} is not loaded")));
        match target {
            Some(target) => {
                use std::os::fd::AsFd as _;
                let fd = match object.program(name) {
                    Some(Program::Xdp(program)) => program.fd(),
                    Some(Program::SchedClassifier(program)) => program.fd(),
                    _ => return Err(missing()),
                };
                let fd = fd.map_err(|_| missing())?;
                link::create(fd.as_fd(), interface.index, target).map(Held::Link).map_err(refused)
            }
            None => match object.program_mut(name) {
                Some(Program::SchedClassifier(program)) => {
                    self.attach_filter(program, interface, direction, name).map(Held::Filter).map_err(refused)
                }
                _ => Err(missing()),
            },
        }
    }

    fn attach_filter(
        &mut self,
        program: &mut SchedClassifier,
        interface: &Interface,
        direction: Direction,
        name: &str,
    ) -> io::Result<SchedClassifierLink> {
        let side = match direction {
            Direction::Ingress => TcAttachType::Ingress,
            Direction::Egress => TcAttachType::Egress,
        };
        match tc::qdisc_add_clsact(&interface.name) {
            Ok(()) => {
                self.qdiscs.insert(interface.index);
            }
            Err(TcError::AlreadyAttached) => {}
            Err(error) => {
                let error = from_tc(error);
                if error.raw_os_error() != Some(libc::EEXIST) {
                    return Err(error);
                }
            }
        }
        // Left behind by a process that was killed; the name is ours.
        if tc::qdisc_detach_program(&interface.name, side, name).is_ok() {
            tracing::warn!(interface = interface.name, program = name, "removed a stale filter of a killed smtpwatch");
        }
        let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
        let id = program.attach_with_options(&interface.name, side, options).map_err(from_program)?;
        program.take_link(id).map_err(from_program)
    }
}

impl Drop for Attachments {
    fn drop(&mut self) {
        let indexes: BTreeSet<u32> = self.iter().map(|attachment| attachment.index).collect();
        for index in indexes {
            self.detach(index);
        }
    }
}

/// The order of hooks: DESIGN §3. XDP is for devices with a link layer.
const fn ladder(ingress: Ingress, direction: Direction, link: Option<Link>) -> &'static [Hook] {
    match (direction, link, ingress) {
        (_, None, _) => &[],
        (Direction::Egress, Some(_), _) | (Direction::Ingress, Some(Link::Ip), Ingress::Auto) => {
            &[Hook::Tcx, Hook::Clsact]
        }
        (Direction::Ingress, Some(Link::Ethernet), Ingress::Auto) => &[Hook::Xdp, Hook::Tcx, Hook::Clsact],
        (Direction::Ingress, Some(_), Ingress::Tcx) => &[Hook::Tcx],
        (Direction::Ingress, Some(_), Ingress::Clsact) => &[Hook::Clsact],
        (Direction::Ingress, Some(Link::Ethernet), Ingress::Xdp) => &[Hook::Xdp],
        (Direction::Ingress, Some(Link::Ethernet), Ingress::XdpGeneric) => &[Hook::XdpGeneric],
        (Direction::Ingress, Some(Link::Ip), Ingress::Xdp | Ingress::XdpGeneric) => &[],
    }
}

const fn tc_program(direction: Direction, ip: bool) -> &'static str {
    match (direction, ip) {
        (Direction::Ingress, false) => program::TC_INGRESS,
        (Direction::Ingress, true) => program::TC_INGRESS_IP,
        (Direction::Egress, false) => program::TC_EGRESS,
        (Direction::Egress, true) => program::TC_EGRESS_IP,
    }
}

/// Why a hook is not to be had.
#[derive(Debug)]
struct Cause {
    text: String,
    remedy: &'static str,
    source: io::Error,
    /// Somebody else is there.
    occupied: bool,
}

impl Cause {
    fn new(interface: &Interface, direction: Direction, hook: Hook, source: io::Error) -> Self {
        let xdp = matches!(hook, Hook::Xdp | Hook::XdpGeneric);
        let (why, remedy, occupied) = match (hook, source.raw_os_error()) {
            (_, Some(libc::EBUSY | libc::EEXIST)) if xdp => {
                let why = format!("the slot is held by {}; smtpwatch never replaces it", occupant(interface.index));
                (why, "ingress = \"tcx\" needs no XDP", true)
            }
            (Hook::Xdp, Some(libc::EOPNOTSUPP)) => {
                ("the driver has no native XDP".to_owned(), "ingress = \"auto\" takes the best hook there is", false)
            }
            (Hook::Xdp, Some(libc::ERANGE | libc::EINVAL)) => (
                format!("the driver's XDP does not take the interface as it is set up, its MTU or offloads ({source})"),
                "ingress = \"auto\" takes the best hook there is",
                false,
            ),
            (Hook::Tcx, Some(libc::EINVAL)) => (
                "this kernel has no TCX, which came with 6.6".to_owned(),
                "ingress = \"clsact\" serves older ones",
                false,
            ),
            (_, Some(libc::EPERM)) => {
                (source.to_string(), "run it as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON", false)
            }
            (_, Some(libc::ENODEV)) => ("the interface has gone".to_owned(), "", false),
            _ => (source.to_string(), "", false),
        };
        Self { text: told(interface, direction, hook, &why), remedy, source, occupied }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn told(interface: &Interface, direction: Direction, hook: Hook, why: &str) -> String {
    format!("cannot attach {} to {}: {why}", hook.name(direction), interface.name)
}

/// Who holds an XDP slot, in words.
fn occupant(index: u32) -> String {
    let Ok(Some(id)) = netlink::xdp_program(index) else { return "a program that the kernel does not name".to_owned() };
    let found = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    match found.as_ref().and_then(|program| program.name_as_str()).filter(|name| !name.is_empty()) {
        Some(name) => format!("\"{name}\" (program {id})"),
        None => format!("program {id}"),
    }
}

fn from_tc(error: TcError) -> io::Error {
    match error {
        TcError::NetlinkError(error) => {
            error.raw_os_error().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
        }
        TcError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

fn from_program(error: ProgramError) -> io::Error {
    match error {
        ProgramError::TcError(error) => from_tc(error),
        ProgramError::SyscallError(error) => error.io_error,
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_is_watched_in_both_directions() {
        for ingress in Ingress::ALL {
            assert_eq!(ladder(ingress, Direction::Egress, Some(Link::Ethernet)), [Hook::Tcx, Hook::Clsact]);
            assert!(!ladder(ingress, Direction::Ingress, Some(Link::Ethernet)).is_empty());
        }
        assert_eq!(ladder(Ingress::Auto, Direction::Ingress, Some(Link::Ethernet))[0], Hook::Xdp);
        assert_eq!(ladder(Ingress::Auto, Direction::Ingress, Some(Link::Ip)), [Hook::Tcx, Hook::Clsact]);
    }
}
