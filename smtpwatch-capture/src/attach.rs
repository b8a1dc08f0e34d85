//! Attaches the kernel programs and detaches them: the order of hooks to try, messages about failures, and removal.
//! [`super::Capture`] owns the set of attachments.
//!
//! Programs, filters and qdiscs of other owners are never replaced or removed. XDP and TCX attachments end with the
//! file descriptor of their link, and so with this process. Filters of a clsact qdisc do not: they are removed at
//! exit, and stale ones at start. A filter is stale if no live smtpwatch holds the lock of the interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{
        Program, ProgramError, SchedClassifier, TcAttachType, loaded_programs,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};
use smtpwatch_common::{Direction, Link};
use smtpwatch_config::Ingress;

use super::{
    CaptureError,
    interfaces::Interface,
    link::{self, Target},
    lock::{InterfaceLock, LockRefusal},
    netlink,
    object::program,
};

/// Priority and handle of our clsact filters: distinctive values, so that no other filter is addressed.
const PRIORITY: u16 = 0x5357;
const HANDLE: TcHandle = TcHandle::new(0, 0x5357);

/// Interval between attempts to attach a missing hook.
const RETRY: Duration = Duration::from_secs(30);

/// Why `ingress = "auto"` does not use XDP.
pub(crate) const AUTO: &str = "auto uses TCX, or clsact if the kernel has no TCX; XDP only if configured, because some \
                               drivers copy every packet before an XDP program sees it (veth: a third of the throughput of bulk mail)";

smtpwatch_system::vocabulary! {
    /// A hook point of the kernel.
    #[derive(PartialOrd, Ord, Hash)]
    pub enum Hook {
        /// XDP in the driver.
        Xdp = "xdp",
        /// XDP on the generic path.
        XdpGeneric = "xdp-generic",
        /// TCX, kernel 6.6 and later.
        Tcx = "tcx",
        /// A filter of a clsact qdisc.
        Clsact = "clsact",
    }
}

impl Hook {
    /// The hooks available for a direction: XDP sees arriving packets only.
    #[must_use]
    pub const fn of(direction: Direction) -> &'static [Self] {
        match direction {
            Direction::Ingress => &Self::ALL,
            Direction::Egress => &[Self::Tcx, Self::Clsact],
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

/// One direction of one interface, and its hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// Name of the interface.
    pub interface: String,
    /// Index of the interface.
    pub index: u32,
    /// Direction of the packets.
    pub direction: Direction,
    /// The attached hook; `None` if attaching failed.
    pub hook: Option<Hook>,
    /// Whether the hook was attached, then removed by another program, and could not be attached again.
    pub lost: bool,
}

/// All attachments of this process.
#[derive(Default)]
pub(crate) struct Attachments {
    slots: Vec<HookSlot>,
    /// Interfaces whose clsact qdisc this process created.
    qdiscs: BTreeSet<u32>,
    /// Locks that keep other smtpwatch processes off the watched interfaces.
    locks: BTreeMap<u32, InterfaceLock>,
}

/// One direction of one interface, and the state of its hook.
struct HookSlot {
    attachment: Attachment,
    interface: Interface,
    attached: Option<AttachedHook>,
    /// Time of the next attempt to attach a missing hook.
    retry: Instant,
    /// Cause of the missing hook as logged: an unchanged cause is not logged again.
    logged: String,
}

/// A hook attached by this process.
struct AttachedHook {
    /// Program id assigned by the kernel.
    program: u32,
    by: HookGuard,
}

/// Keeps the hook attached; dropping it detaches the hook.
enum HookGuard {
    Link(OwnedFd),
    #[expect(dead_code, reason = "held for its Drop alone")]
    Filter(SchedClassifierLink),
}

impl AttachedHook {
    /// Whether the hook is still attached at its place.
    fn is_there(&self, slot: &Attachment) -> io::Result<bool> {
        match &self.by {
            HookGuard::Link(link) => Ok(link::program_and_interface(link.as_fd())? == (self.program, slot.index)),
            HookGuard::Filter(_) => netlink::clsact_has(slot.index, slot.direction, self.program),
        }
    }
}

/// Result of [`Attachments::mend`].
#[derive(Debug, Default)]
pub(crate) struct Mended {
    /// Hooks that were removed by other programs.
    pub(crate) lost: Vec<(Direction, Hook)>,
    /// Whether the set of attached hooks has changed.
    pub(crate) changed: bool,
}

impl Attachments {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.slots.iter().map(|slot| &slot.attachment)
    }

    /// Name of the interface with this index; empty if the interface has gone.
    pub(crate) fn name_of(&self, index: u32) -> &str {
        self.iter().find(|attachment| attachment.index == index).map_or("", |attachment| attachment.interface.as_str())
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
            let (hook, attached) = match self.take(object, interface, direction, ingress, no_xdp) {
                Ok((hook, attached)) => (Some(hook), Some(attached)),
                Err(error) => {
                    first_failure.get_or_insert(error);
                    (None, None)
                }
            };
            let Interface { name, index, .. } = interface;
            self.slots.push(HookSlot {
                attachment: Attachment { interface: name.clone(), index: *index, direction, hook, lost: false },
                interface: interface.clone(),
                attached,
                retry: Instant::now() + RETRY,
                logged: String::new(),
            });
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// Attaches the best available hook of a direction.
    fn take(
        &mut self,
        object: &mut Ebpf,
        interface: &Interface,
        direction: Direction,
        ingress: Ingress,
        no_xdp: Option<&str>,
    ) -> Result<(Hook, AttachedHook), CaptureError> {
        self.lock(interface)?;
        if direction == Direction::Ingress
            && let Some(why) = interface.hides_arrivals()
        {
            tracing::warn!(interface = interface.name, "{why}");
        }
        let ladder = ladder(ingress, direction, interface.link);
        let (hook, attached) = self.try_ladder(object, interface, direction, ladder, no_xdp)?;
        let why = if ingress == Ingress::Auto && direction == Direction::Ingress { AUTO } else { "" };
        let why = (!why.is_empty()).then_some(why);
        tracing::info!(
            interface = interface.name,
            direction = direction.as_str(),
            hook = hook.as_str(),
            why,
            "attached"
        );
        Ok((hook, attached))
    }

    /// Locks `interface` against other smtpwatch processes, and removes what a killed one left there.
    fn lock(&mut self, interface: &Interface) -> Result<(), CaptureError> {
        if self.locks.contains_key(&interface.index) {
            return Ok(());
        }
        let lock = InterfaceLock::take(interface.index).map_err(|refused| match refused {
            LockRefusal::Taken(holder) => CaptureError::Watched { interface: interface.name.clone(), holder },
            LockRefusal::System(cause) => CaptureError::System { what: "cannot lock the interface", cause },
        })?;
        self.locks.insert(interface.index, lock);
        remove_stale_filters(interface);
        Ok(())
    }

    /// Checks that every hook is still attached. Hooks that other programs removed are attached again, and attaching
    /// missing hooks is retried after [`RETRY`].
    pub(crate) fn mend(
        &mut self,
        object: &mut Ebpf,
        ingress: Ingress,
        no_xdp: Option<&str>,
        is_there: impl Fn(&Attachment) -> bool,
    ) -> Mended {
        let mut mended = Mended::default();
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at) else { continue };
            let lost = match &slot.attached {
                Some(attached) => match attached.is_there(&slot.attachment) {
                    Ok(true) => continue,
                    // An interface that disappears takes its hooks with it: the list of interfaces reports that.
                    Ok(false) if !is_there(&slot.attachment) => continue,
                    Ok(false) => slot.attachment.hook,
                    Err(error) => {
                        tracing::debug!(interface = slot.attachment.interface, %error, "cannot query the hook");
                        continue;
                    }
                },
                None if slot.retry > Instant::now() || !is_there(&slot.attachment) => continue,
                None => None,
            };
            // First removes the remains of the old attachment: at clsact, the new filter has the same priority and
            // handle.
            slot.attached = None;
            slot.attachment.hook = None;
            let (interface, direction) = (slot.interface.clone(), slot.attachment.direction);
            let before = slot.attachment.lost;
            let taken = self.take(object, &interface, direction, ingress, no_xdp);
            let Some(slot) = self.slots.get_mut(at) else { continue };
            slot.retry = Instant::now() + RETRY;
            slot.attachment.lost = taken.is_err() && (before || lost.is_some());
            mended.changed |= lost.is_some() || taken.is_ok();
            if let Some(hook) = lost {
                mended.lost.push((direction, hook));
                let name = hook.name(direction);
                tracing::warn!("{name} of {} was taken away by another program", interface.name);
            }
            match taken {
                Ok((hook, attached)) => {
                    slot.attached = Some(attached);
                    slot.attachment.hook = Some(hook);
                    slot.logged.clear();
                }
                Err(error) => {
                    let why = error.to_string();
                    if slot.logged != why {
                        let direction = direction.as_str();
                        tracing::error!("{} {direction} is not watched: {why}", interface.name);
                        slot.logged = why;
                    }
                }
            }
        }
        mended
    }

    /// Detaches both directions of an interface, which may have gone.
    pub(crate) fn detach(&mut self, index: u32) {
        self.slots.retain(|slot| slot.attachment.index != index);
        if self.qdiscs.remove(&index) {
            remove_qdisc(index);
        }
        // Last: without the lock, another smtpwatch regards the filters that it finds as stale.
        self.locks.remove(&index);
    }

    /// Tries the hooks of `ladder` in order; each fall-back is logged with its cause.
    fn try_ladder(
        &mut self,
        object: &mut Ebpf,
        interface: &Interface,
        direction: Direction,
        ladder: &[Hook],
        no_xdp: Option<&str>,
    ) -> Result<(Hook, AttachedHook), CaptureError> {
        let mut failure = None;
        for (position, hook) in ladder.iter().enumerate() {
            match self.try_hook(object, interface, direction, *hook, no_xdp) {
                Ok(attached) => return Ok((*hook, attached)),
                Err(cause) => {
                    let next = ladder.get(position + 1).map(|next| next.name(direction));
                    match next {
                        // A program of another owner deserves a warning; a driver without XDP is common.
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
    ) -> Result<AttachedHook, Cause> {
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
            let why = format!("this kernel refuses the program: {why}");
            return Err(Cause {
                text: failure_text(interface, direction, hook, &why),
                ..refused(io::ErrorKind::Unsupported.into())
            });
        }
        let missing = || refused(io::Error::other(format!("the program {name} is not loaded")));
        let id = |object: &Ebpf| {
            let info = object.program(name).ok_or_else(missing)?.info();
            info.map(|info| info.id()).map_err(|error| refused(from_program(error)))
        };
        match target {
            Some(target) => {
                let fd = match object.program(name) {
                    Some(Program::Xdp(program)) => program.fd(),
                    Some(Program::SchedClassifier(program)) => program.fd(),
                    _ => return Err(missing()),
                };
                let fd = fd.map_err(|_| missing())?;
                let link = link::create(fd.as_fd(), interface.index, target).map_err(refused)?;
                Ok(AttachedHook { program: id(object)?, by: HookGuard::Link(link) })
            }
            None => match object.program_mut(name) {
                Some(Program::SchedClassifier(program)) => {
                    let filter = self.attach_filter(program, interface, direction).map_err(refused)?;
                    Ok(AttachedHook { program: id(object)?, by: HookGuard::Filter(filter) })
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
    ) -> io::Result<SchedClassifierLink> {
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
        let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
        let id = program.attach_with_options(&interface.name, side(direction), options).map_err(from_program)?;
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

const fn side(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

/// Removes the clsact filters of a killed smtpwatch, recognised by the names of their programs, and the qdisc if it
/// is empty then. Call only with the lock of the interface.
fn remove_stale_filters(interface: &Interface) {
    let mut removed = false;
    for direction in Direction::ALL {
        for ip in [false, true] {
            let program = tc_program(direction, ip);
            // An error means that there is no such filter or no clsact qdisc.
            if tc::qdisc_detach_program(&interface.name, side(direction), program).is_ok() {
                tracing::warn!(interface = interface.name, program, "removed a stale filter of a killed smtpwatch");
                removed = true;
            }
        }
    }
    if removed {
        remove_qdisc(interface.index);
    }
}

/// Removes the clsact qdisc of an interface if no filter is left there.
fn remove_qdisc(index: u32) {
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

/// The order of hooks. TCX adds no step to the path of a packet through the kernel; XDP on a veth device copies every
/// packet (docs/performance.md) and requires a device with a link layer, so it is used only if configured.
const fn ladder(ingress: Ingress, direction: Direction, link: Option<Link>) -> &'static [Hook] {
    match (direction, link, ingress) {
        (_, None, _) => &[],
        (Direction::Egress, Some(_), _) | (Direction::Ingress, Some(_), Ingress::Auto) => &[Hook::Tcx, Hook::Clsact],
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

/// Why a hook cannot be attached.
#[derive(Debug)]
struct Cause {
    text: String,
    remedy: String,
    source: io::Error,
    /// Whether another program occupies the hook.
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
            // The remedy follows below.
            (_, Some(libc::EPERM)) => (source.to_string(), "", false),
            (_, Some(libc::ENODEV)) => ("the interface has gone".to_owned(), "", false),
            _ => (source.to_string(), "", false),
        };
        let remedy = super::remedy_of_permission(&source).unwrap_or_else(|| remedy.to_owned());
        Self { text: failure_text(interface, direction, hook, &why), remedy, source, occupied }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn failure_text(interface: &Interface, direction: Direction, hook: Hook, why: &str) -> String {
    format!("cannot attach {} to {}: {why}", hook.name(direction), interface.name)
}

/// Description of the program that occupies an XDP slot.
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
    }

    /// XDP costs bulk mail a third of its throughput on veth (docs/performance.md).
    #[test]
    fn xdp_is_used_only_if_configured() {
        for link in [Link::Ethernet, Link::Ip] {
            assert_eq!(ladder(Ingress::Auto, Direction::Ingress, Some(link)), [Hook::Tcx, Hook::Clsact]);
        }
        assert_eq!(ladder(Ingress::Xdp, Direction::Ingress, Some(Link::Ethernet)), [Hook::Xdp]);
        assert_eq!(ladder(Ingress::XdpGeneric, Direction::Ingress, Some(Link::Ethernet)), [Hook::XdpGeneric]);
    }
}
