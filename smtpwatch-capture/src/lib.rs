//! Capture: loads and attaches the kernel programs and reads their records; also reads packets from capture files.
//!
//! Use [`Capture`] from one thread: [`Capture::wait`], then [`Capture::drain`], and [`Capture::refresh`]
//! periodically. Dropping it detaches everything from all interfaces.
//!
//! For capture files, [`pcap`] and [`userspace_gate`] replace the kernel and the ring; [`probe`] tests what this
//! kernel and host support. The kernel object is in `bpf/`, next to the digest of its sources. Imports
//! `smtpwatch-common` (the record), `smtpwatch-core` (time stamps, orders to the gate), `smtpwatch-config` and
//! `smtpwatch-system`; contains no SMTP code.

// The embedded kernel object is little-endian, and both sides share structures of 64-bit words.
#[cfg(not(all(target_endian = "little", target_pointer_width = "64")))]
compile_error!(
    "smtpwatch runs on little-endian 64-bit machines only: its kernel programs are compiled for them (target bpfel)"
);

pub mod attach;
pub mod capabilities;
pub mod connections;
mod control;
pub mod counters;
mod encapsulated;
pub mod interfaces;
mod link;
pub mod listeners;
pub mod lock;
mod netlink;
pub mod object;
pub mod pcap;
pub mod probe;
mod routes;
pub mod userspace_gate;

use std::{
    collections::BTreeSet,
    io,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, RingBuf},
};
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smtpwatch_common::{Direction, FlowKey, FlowState, Order, PortSet, Record};
use smtpwatch_config::{Config, Ingress};
use smtpwatch_core::{
    Timestamp,
    engine::{GateAction, GateOrder},
};
use smtpwatch_system::clock::Steady;

pub use attach::{Attachment, Hook};
pub use object::object_digest;

use attach::Attachments;
use connections::Carried;
use control::Position;
use counters::Counters;
use encapsulated::Hidden;
use interfaces::{Interface, Inventory};
use netlink::Changes;
use object::LoadSettings;

/// Maximum number of records per call of [`Capture::drain`], so that the caller regains control during a flood.
const DRAIN_AT_ONCE: usize = 65_536;
/// Interval between comparisons of the clocks: the wall clock is slewed and stepped.
const CLOCK_AGE: Duration = Duration::from_secs(1);

/// Interval between look-ups of connections of watched ports.
const SURVEY: Duration = Duration::from_secs(60);
/// Minimum interval between look-ups after changes of interfaces, routes or rules.
const SURVEY_PAUSE: Duration = Duration::from_secs(2);
/// Interval between checks that every hook is still attached: the kernel does not notify the owner of a link or
/// filter that another process removes.
const CHECK: Duration = Duration::from_secs(1);

/// Settings of [`Capture`]: what to watch, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CaptureSettings {
    /// Interfaces, by name or glob; empty: those with routes that lead out of this host, and those that carry
    /// connections of watched ports.
    pub interfaces: Vec<String>,
    /// Ingress hook to use.
    pub ingress: Ingress,
    /// Whether interfaces that appear later are watched too.
    pub hot_plug: bool,
    /// Ports, sizes and logging of the kernel programs.
    pub load: LoadSettings,
}

impl From<&Config> for CaptureSettings {
    fn from(config: &Config) -> Self {
        let entries = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let load = LoadSettings {
            ports: PortSet::new(&config.ports),
            flows: entries(config.limits.gate_flows()),
            orders: entries(config.limits.flows),
            log: tracing::enabled!(target: KERNEL_LOG, tracing::Level::DEBUG),
            ..LoadSettings::default()
        };
        Self { interfaces: config.interfaces.clone(), ingress: config.ingress, hot_plug: config.hot_plug, load }
    }
}

/// Why capture failed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The kernel does not create the maps.
    #[error("cannot create the kernel maps: {cause}{}", hint(cause))]
    Maps {
        /// The error of the kernel.
        cause: io::Error,
    },
    /// The verifier rejects a program.
    #[error("this kernel rejects the program {name}: {cause}{}\n{log}", if lacks_perfmon(log) { PERFMON.to_owned() } else { hint(cause) })]
    Program {
        /// Name of the program.
        name: &'static str,
        /// The error of the kernel.
        cause: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// The embedded object does not match this program.
    #[error("the kernel object does not match this program: {0}; it was not built from the same sources")]
    Object(String),
    /// No hook of an interface could be attached.
    #[error("{detail}{}{remedy}", if remedy.is_empty() { "" } else { "; " })]
    Attach {
        /// The failed hook and the cause.
        detail: String,
        /// Remedy.
        remedy: String,
        /// The error of the kernel.
        cause: io::Error,
    },
    /// An interface has an unsupported link layer, or one that the configured hook does not support.
    #[error(
        "cannot watch {interface}: its link layer, or the ingress hook asked for on it, is not supported; \
             ingress = \"auto\" takes the best hook there is"
    )]
    LinkLayer {
        /// Name of the interface.
        interface: String,
    },
    /// Another smtpwatch watches an interface.
    #[error(
        "{interface} is watched by {holder}: two on one interface would count everything twice; stop the other one, or name \
         other interfaces"
    )]
    Watched {
        /// Name of the interface.
        interface: String,
        /// The process that watches it.
        holder: lock::Holder,
    },
    /// A configured interface does not exist.
    #[error("there is no interface {0}; `ip link` lists the interfaces")]
    NoInterface(String),
    /// No interface qualifies for watching.
    #[error(
        "no interface carries a default route, and no connection of a watched port is open: name one with --interface"
    )]
    NoDefaultRoute,
    /// A system call failed.
    #[error("{what}: {cause}")]
    System {
        /// The failed operation.
        what: &'static str,
        /// The error of the system.
        cause: io::Error,
    },
}

impl CaptureError {
    /// Whether the cause is a missing permission (exit code 77).
    #[must_use]
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Program { cause, log, .. } => is_permission(cause) || lacks_perfmon(log),
            Self::Maps { cause } | Self::Attach { cause, .. } | Self::System { cause, .. } => is_permission(cause),
            Self::Object(_)
            | Self::LinkLayer { .. }
            | Self::Watched { .. }
            | Self::NoInterface(_)
            | Self::NoDefaultRoute => false,
        }
    }
}

/// EPERM only: the verifier returns EACCES for programs that it rejects.
fn is_permission(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// Without CAP_PERFMON the verifier forbids comparisons of packet pointers that it otherwise allows (Linux 5.8, commit
/// 2c78ee898d8f).
fn lacks_perfmon(log: &str) -> bool {
    log.contains("pointer comparison prohibited")
}

const PERFMON: &str = "; CAP_PERFMON is missing: run it as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON";

fn hint(error: &io::Error) -> String {
    remedy_of_permission(error).map_or_else(String::new, |remedy| format!("; {remedy}"))
}

/// Remedy for EPERM; `None` for any other error.
fn remedy_of_permission(error: &io::Error) -> Option<String> {
    is_permission(error).then(|| permission_remedy(&Permissions::of_this_process()))
}

/// The facts that explain an EPERM of the kernel.
struct Permissions {
    /// Missing capabilities.
    missing: Vec<caps::Capability>,
    /// Whether this is not the initial user namespace: BPF requires capabilities in the initial one, regardless of
    /// root in another.
    user_namespace: bool,
    /// Limit of locked memory in bytes; `None`: unlimited.
    memlock: Option<u64>,
}

impl Permissions {
    fn of_this_process() -> Self {
        use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let memlock = getrlimit(Resource::RLIMIT_MEMLOCK).ok().map(|(soft, _)| soft);
        Self {
            missing: capabilities::missing(),
            user_namespace: is_user_namespace(&map),
            memlock: memlock.filter(|soft| *soft != RLIM_INFINITY),
        }
    }
}

/// Whether a `uid_map` (user_namespaces(7)) belongs to a user namespace other than the initial one, which maps every
/// user to itself.
fn is_user_namespace(map: &str) -> bool {
    let fields: Vec<&str> = map.split_whitespace().collect();
    !fields.is_empty() && fields != ["0", "0", "4294967295"]
}

/// Remedy if the kernel returns EPERM.
fn permission_remedy(permissions: &Permissions) -> String {
    match permissions {
        Permissions { user_namespace: true, .. } => "this is a user namespace, and even its root may not load kernel programs: \
             run it in the initial one, as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (container: no user remapping)"
            .to_owned(),
        Permissions { missing, memlock: Some(bytes), .. } if missing.is_empty() => format!(
            "the capabilities are there, but only {} KiB may be locked, which kernels before 5.11 count for maps: raise the limit \
             (unit: LimitMEMLOCK=infinity; container: --ulimit memlock=-1), or allow bpf(2) where a filter forbids it",
            bytes / 1024
        ),
        Permissions { missing, .. } if missing.is_empty() => {
            "the capabilities are there: a filter of system calls (container: its seccomp profile), a security module or kernel \
             lockdown forbids bpf(2)"
                .to_owned()
        }
        Permissions { .. } => "run it as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned(),
    }
}

/// Result of a record handler: orders to the gate for the record's own flow, or none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Orders(Vec<GateOrder>);

impl From<()> for Orders {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<Vec<GateOrder>> for Orders {
    fn from(orders: Vec<GateOrder>) -> Self {
        Self(orders)
    }
}

/// Result of one call of [`Capture::drain`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// No record.
    Nothing,
    /// At least one record, and the ring is empty.
    Everything,
    /// The maximum number of records per call: there may be more.
    Part,
}

/// Connections of watched ports on interfaces that are not watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Whether [`Capture::attachments`] has changed.
    pub attached: bool,
    /// Number of connections of clients on this host on unwatched interfaces.
    pub clients: u64,
    /// Number of connections of servers on this host on unwatched interfaces.
    pub servers: u64,
    /// Number of connections without a look-up, because the table was full.
    pub dropped: u64,
    /// Whether there are more routes than were read.
    pub routes_cut: bool,
    /// Whether the kernel did not list its sockets or a route look-up failed.
    pub failed: bool,
}

/// The kernel programs, loaded and attached.
pub struct Capture {
    // First, so that it is dropped first: everything is detached before the maps are freed.
    attachments: Attachments,
    settings: CaptureSettings,
    no_xdp: Option<String>,
    changes: Changes,
    /// Interfaces that were found to carry connections: they stay watched until they disappear, because the next
    /// connection may be too short to be found.
    taken: BTreeSet<(u32, String)>,
    /// Time of the last check that the hooks are still attached.
    checked: Instant,
    /// Hooks that were removed since [`Capture::take_lost`].
    lost: Vec<(Direction, Hook)>,
    /// Time of the last look-up of connections.
    surveyed: Option<Instant>,
    /// Interfaces, routes or rules have changed since then.
    changed: bool,
    routes_cut: bool,
    /// Interfaces that carry connections, are not watched, and were already logged.
    named: BTreeSet<(u32, String)>,
    /// The log already reports that connections cannot be looked up.
    unsurveyed: bool,
    ring: RingBuf<MapData>,
    control: Control,
    counters: Arc<Counters>,
    /// Map of the kernel programs: Ethernet address by interface index, with two bytes of padding.
    link_addresses: HashMap<MapData, u32, [u8; 8]>,
    hidden: Hidden,
    clock: Clock,
    log: Option<EbpfLogger<KernelLog>>,
    /// An unreadable record was already logged.
    undecodable: bool,
    object: Ebpf,
}

impl Capture {
    /// Loads the kernel programs and attaches them to every wanted interface.
    ///
    /// # Errors
    ///
    /// Any [`CaptureError`]; nothing stays attached.
    pub fn start(settings: &CaptureSettings) -> Result<Self, CaptureError> {
        // Subscribed before the interfaces are listed, so that no change is missed in between.
        let changes = Changes::subscribe().map_err(system("cannot watch for changes of interfaces"))?;
        // An error here recurs in the first survey, which logs it.
        let taken = if settings.interfaces.is_empty() { taken(settings).unwrap_or_default() } else { BTreeSet::new() };
        let (selected, routes_cut) = found(settings, &taken)?;
        let loaded = object::load(&settings.load)?;
        if let Some(why) = &loaded.no_attribution {
            tracing::info!("findings do not name users and cgroups of senders: {why}");
        }
        let mut object = loaded.object;
        let log = if settings.load.log { kernel_log(&mut object) } else { None };
        let mut attachments = Attachments::default();
        for interface in &selected {
            attachments.attach(&mut object, interface, settings.ingress, loaded.no_xdp.as_deref())?;
        }
        let mut link_addresses = map(&mut object, "LINK_ADDRESSES")?;
        note_addresses(&mut link_addresses, &selected)?;
        Ok(Self {
            attachments,
            settings: settings.clone(),
            no_xdp: loaded.no_xdp,
            changes,
            taken,
            checked: Instant::now(),
            lost: Vec::new(),
            surveyed: None,
            changed: false,
            routes_cut,
            named: BTreeSet::new(),
            unsurveyed: false,
            ring: map(&mut object, "RING")?,
            control: Control { orders: map(&mut object, "ORDERS")?, flows: map(&mut object, "FLOWS")?, serial: 0 },
            counters: Arc::new(Counters::new(map(&mut object, "COUNTERS")?)),
            link_addresses,
            hidden: Hidden::new(map(&mut object, "ENCAPSULATED")?),
            clock: Clock::start()?,
            log,
            undecodable: false,
            object,
        })
    }

    /// All attachments, including those that are configured but missing.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.attachments.iter()
    }

    /// Hooks that other programs removed since the last call; they are attached again if possible.
    pub fn take_lost(&mut self) -> Vec<(Direction, Hook)> {
        std::mem::take(&mut self.lost)
    }

    /// Follows interfaces that appeared or disappeared, and hooks that other programs removed. Returns whether
    /// [`Capture::attachments`] has changed. Never blocks.
    ///
    /// # Errors
    ///
    /// The system does not list its interfaces. An interface that cannot be attached is not an error: it is logged
    /// and visible in [`Attachment::hook`].
    pub fn refresh(&mut self) -> Result<bool, CaptureError> {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let mut changed = false;
        if self.changes.happened() {
            self.changed = true;
            changed = self.follow()?;
        }
        if self.checked.elapsed() >= CHECK {
            self.checked = Instant::now();
            changed |= self.mend()?;
        }
        Ok(changed)
    }

    /// Attaches hooks again that other programs removed; returns whether the set of attached hooks has changed.
    fn mend(&mut self) -> Result<bool, CaptureError> {
        let all = interfaces::all().map_err(system("cannot list the interfaces"))?;
        let is_there = |attachment: &Attachment| {
            all.get(&attachment.index).is_some_and(|interface| interface.name == attachment.interface)
        };
        let (ingress, no_xdp) = (self.settings.ingress, self.no_xdp.as_deref());
        let mended = self.attachments.mend(&mut self.object, ingress, no_xdp, is_there);
        self.lost.extend(mended.lost);
        Ok(mended.changed)
    }

    /// Looks up the interfaces of connections of watched ports when due: at first, every minute, and after changes of
    /// interfaces, routes and rules. Without configured interfaces, these interfaces are attached; the remaining ones
    /// are logged, once per interface.
    pub fn survey(&mut self) -> Option<Survey> {
        let due = if self.changed { SURVEY_PAUSE } else { SURVEY };
        if self.surveyed.is_some_and(|at| at.elapsed() < due) {
            return None;
        }
        self.changed = false;
        let survey = self.look();
        self.surveyed = Some(Instant::now());
        let failed = survey.is_err();
        let survey = survey.unwrap_or_else(|error| {
            if !self.unsurveyed {
                tracing::warn!("where mail leaves this host is not known: {error}; {}", connections::REMEDY);
            }
            Survey { failed, ..Survey::default() }
        });
        self.unsurveyed = failed;
        Some(Survey { routes_cut: self.routes_cut, ..survey })
    }

    fn look(&mut self) -> Result<Survey, CaptureError> {
        let located = Located::read(&self.settings).map_err(system(CONNECTIONS))?;
        let mut survey = Survey { dropped: located.found.dropped, ..Survey::default() };
        let by_default = self.settings.interfaces.is_empty();
        if by_default && self.settings.hot_plug {
            let watched = self.watched();
            if located.take(&mut self.taken, &watched) {
                survey.attached = self.follow()?;
            }
        }
        for (interface, carried) in located.unseen(&self.watched()) {
            survey.clients += carried.clients;
            survey.servers += carried.servers;
            if self.named.insert((interface.index, interface.name.clone())) {
                let name = &interface.name;
                let remedy = match (by_default, self.settings.hot_plug) {
                    (false, _) => connections::NOT_AMONG_INTERFACES,
                    (true, false) => "hot_plug = false: it is watched after a restart",
                    (true, true) => "it cannot be attached, for the reason above",
                };
                tracing::warn!(interface = name, "{}, which is not watched: {remedy}", carried.describe(name));
            }
        }
        Ok(survey)
    }

    /// Indexes of the interfaces that are watched in both directions.
    fn watched(&self) -> BTreeSet<u32> {
        let without: BTreeSet<u32> = self
            .attachments
            .iter()
            .filter(|attachment| attachment.hook.is_none())
            .map(|attachment| attachment.index)
            .collect();
        self.attachments.iter().map(|attachment| attachment.index).filter(|index| !without.contains(index)).collect()
    }

    /// Changes the watched interfaces, by name or glob; empty: as in [`CaptureSettings::interfaces`]. Returns whether
    /// [`Capture::attachments`] has changed.
    ///
    /// # Errors
    ///
    /// A named interface does not exist, or none qualifies: the watched interfaces are unchanged.
    pub fn rewatch(&mut self, interfaces: &[String]) -> Result<bool, CaptureError> {
        if self.settings.interfaces == interfaces {
            return Ok(false);
        }
        let settings = CaptureSettings { interfaces: interfaces.to_vec(), ..self.settings.clone() };
        found(&settings, &BTreeSet::new())?;
        self.settings = settings;
        self.taken.clear();
        self.named.clear();
        self.changed = true;
        self.follow()
    }

    /// Detaches interfaces that are not wanted or have gone; attaches the wanted ones.
    fn follow(&mut self) -> Result<bool, CaptureError> {
        let all = interfaces::all().map_err(system("cannot list the interfaces"))?;
        let is_there = |(index, name): &(u32, String)| all.get(index).is_some_and(|interface| interface.name == *name);
        self.taken.retain(is_there);
        self.named.retain(is_there);
        let (selected, routes_cut) = select_interfaces(&self.settings, &self.taken)?;
        self.routes_cut = routes_cut;
        note_addresses(&mut self.link_addresses, &selected)?;
        let same = |attachment: &Attachment, interface: &Interface| {
            attachment.index == interface.index && attachment.interface == interface.name
        };
        let removed: Vec<Attachment> = self
            .attachments
            .iter()
            .filter(|attachment| !selected.iter().any(|interface| same(attachment, interface)))
            .cloned()
            .collect();
        for attachment in &removed {
            if self.attachments.iter().any(|other| other.index == attachment.index) {
                tracing::info!(
                    interface = attachment.interface,
                    "detached: the interface is gone or no longer selected"
                );
                self.attachments.detach(attachment.index);
            }
        }
        let missing = |interface: &&Interface| !self.attachments.iter().any(|attachment| same(attachment, interface));
        let added: Vec<&Interface> = selected.iter().filter(missing).filter(|_| self.settings.hot_plug).collect();
        for interface in &added {
            let no_xdp = self.no_xdp.as_deref();
            if let Err(error) = self.attachments.attach(&mut self.object, interface, self.settings.ingress, no_xdp) {
                tracing::error!(interface = interface.name, "{error}");
            }
        }
        Ok(!removed.is_empty() || !added.is_empty())
    }

    /// Waits until a record is available or `timeout` has passed.
    ///
    /// # Errors
    ///
    /// The system cannot wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<(), CaptureError> {
        let mut ready = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(system("cannot wait for the ring")(error.into())),
        }
    }

    /// Passes the available records to `on`, up to a bound, each with its time of day and the name of its interface.
    ///
    /// The orders that `on` returns are valid for the state of the flow at this record, so that a late order cannot
    /// mute later data. A handler without orders returns `()`.
    ///
    /// # Errors
    ///
    /// The kernel rejects an order.
    pub fn drain<R: Into<Orders>>(
        &mut self,
        mut on: impl FnMut(Record<'_>, Timestamp, &str) -> R,
    ) -> Result<Drained, CaptureError> {
        self.clock.compare()?;
        for taken in 0..DRAIN_AT_ONCE {
            let Some(bytes) = self.ring.next() else {
                return Ok(if taken == 0 { Drained::Nothing } else { Drained::Everything });
            };
            let record = match Record::decode(&bytes) {
                Ok(record) => record,
                Err(error) => {
                    if !std::mem::replace(&mut self.undecodable, true) {
                        tracing::error!("{error}: program and kernel object do not match");
                    }
                    continue;
                }
            };
            let at = self.clock.steady.at(record.header.timestamp);
            let name = self.attachments.name_of(record.header.interface);
            let Orders(orders) = on(record, at, name).into();
            for order in orders {
                self.control.obey(&order, Position::after(&record))?;
            }
        }
        Ok(Drained::Part)
    }

    /// The current time on the clock of the records.
    ///
    /// # Errors
    ///
    /// The system does not provide a clock.
    pub fn now(&self) -> Result<Timestamp, CaptureError> {
        self.clock.steady.now().map_err(unread)
    }

    /// Passes on an order that is not a response to a record: a deadline has passed. [`GateAction::MuteBody`] has no
    /// effect here, because the body may have ended in the meantime.
    ///
    /// # Errors
    ///
    /// The kernel rejects the order.
    pub fn order(&mut self, order: &GateOrder) -> Result<(), CaptureError> {
        if matches!(order.action, GateAction::MuteBody) {
            return Ok(());
        }
        match self.control.life(order)? {
            Some(flow) => self.control.obey(order, Position { flow, server_next: 0 }),
            None => Ok(()),
        }
    }

    /// Mail in encapsulation that passed a watched interface during the last minutes while no watched interface showed
    /// its inner packets: one line for each interface and encapsulation, with the remedy. Each line is logged once.
    ///
    /// # Errors
    ///
    /// The kernel does not return what its programs have noted.
    pub fn encapsulated(&mut self) -> Result<Vec<String>, CaptureError> {
        let watched = self.watched();
        self.hidden.read(&watched)
    }

    /// Handle to the counters of the kernel programs.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

/// Writes the Ethernet addresses of `interfaces` to the kernel's map: an index can be reused, and an address can
/// change.
fn note_addresses(
    addresses: &mut HashMap<MapData, u32, [u8; 8]>,
    interfaces: &[Interface],
) -> Result<(), CaptureError> {
    for interface in interfaces {
        match interface.address {
            Some([a, b, c, d, e, f]) => {
                addresses.insert(interface.index, [a, b, c, d, e, f, 0, 0], 0).map_err(map_error)?;
            }
            None => match addresses.remove(&interface.index) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(map_error(error)),
            },
        }
    }
    Ok(())
}

/// Sends the engine's orders to the kernel programs.
struct Control {
    orders: HashMap<MapData, [u8; FlowKey::SIZE], [u8; Order::SIZE]>,
    flows: HashMap<MapData, [u8; FlowKey::SIZE], [u8; FlowState::SIZE]>,
    serial: u32,
}

impl Control {
    fn obey(&mut self, order: &GateOrder, at: Position) -> Result<(), CaptureError> {
        self.serial = self.serial.wrapping_add(1).max(1);
        let (key, order) = control::translate(order, at, self.serial);
        self.orders.insert(key.to_bytes(), order.to_bytes(), 0).map_err(map_error)
    }

    /// The flow's instance number in the kernel's table.
    fn life(&self, order: &GateOrder) -> Result<Option<u64>, CaptureError> {
        // For a flow between two watched ports, the kernel may have the end points swapped.
        let key = control::key(&order.flow);
        for key in [key, key.swapped()] {
            match self.flows.get(&key.to_bytes(), 0) {
                Ok(state) => return Ok(Some(FlowState::flow_of(&state))),
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error(error)),
            }
        }
        Ok(None)
    }
}

/// Converts time stamps of the kernel to the engine's time.
struct Clock {
    compared: Instant,
    steady: Steady,
}

impl Clock {
    fn start() -> Result<Self, CaptureError> {
        Ok(Self { compared: Instant::now(), steady: Steady::start().map_err(unread)? })
    }

    fn compare(&mut self) -> Result<(), CaptureError> {
        if self.compared.elapsed() >= CLOCK_AGE {
            self.compared = Instant::now();
            self.steady.measure().map_err(unread)?;
        }
        Ok(())
    }
}

fn unread(error: nix::Error) -> CaptureError {
    system("cannot read the clock")(error.into())
}

/// Log target for lines of the kernel programs.
const KERNEL_LOG: &str = "smtpwatch::kernel";

/// Forwards log lines of the kernel programs to the daemon's log.
struct KernelLog;

impl log::Log for KernelLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: KERNEL_LOG, "{}", record.args());
    }

    fn flush(&self) {}
}

fn kernel_log(object: &mut Ebpf) -> Option<EbpfLogger<KernelLog>> {
    EbpfLogger::init_with_logger(object, KernelLog)
        .inspect_err(|error| tracing::warn!(%error, "cannot read the log of the kernel programs"))
        .ok()
}

/// The wanted interfaces, and whether there are more routes than were read.
fn select_interfaces(
    settings: &CaptureSettings,
    taken: &BTreeSet<(u32, String)>,
) -> Result<(Vec<Interface>, bool), CaptureError> {
    let found = if settings.interfaces.is_empty() {
        interfaces::outward(taken)
    } else {
        interfaces::matching(&settings.interfaces).map(|found| (found, false))
    };
    found.map_err(system("cannot list interfaces and routes"))
}

/// The wanted interfaces; an error if one that is configured by name does not exist.
fn found(settings: &CaptureSettings, taken: &BTreeSet<(u32, String)>) -> Result<(Vec<Interface>, bool), CaptureError> {
    let (selected, routes_cut) = select_interfaces(settings, taken)?;
    let named = settings.interfaces.iter().filter(|pattern| !interfaces::is_glob(pattern));
    for name in named {
        if !selected.iter().any(|interface| interface.name == *name) {
            return Err(CaptureError::NoInterface(name.clone()));
        }
    }
    if selected.is_empty() && settings.interfaces.is_empty() {
        return Err(CaptureError::NoDefaultRoute);
    }
    Ok((selected, routes_cut))
}

const CONNECTIONS: &str = "cannot look up the connections of watched ports";

/// The interfaces of this host, and the connections that they carry.
struct Located {
    inventory: Inventory,
    found: connections::ConnectionsByInterface,
}

impl Located {
    fn read(settings: &CaptureSettings) -> io::Result<Self> {
        let inventory = Inventory::read()?;
        let found = connections::find(&settings.load.ports, &inventory.addresses)?;
        Ok(Self { inventory, found })
    }

    /// Interfaces with connections that are not visible at the watched interfaces.
    fn unseen(&self, watched: &BTreeSet<u32>) -> impl Iterator<Item = (&Interface, &Carried)> {
        let unseen = self.found.by_interface.iter().filter(|(index, _)| !self.inventory.is_seen(**index, watched));
        unseen.filter_map(|(index, carried)| Some((self.inventory.get(*index)?, carried)))
    }

    /// Adds the interfaces that carry connections and are not watched to `taken`; returns whether there are any.
    fn take(&self, taken: &mut BTreeSet<(u32, String)>, watched: &BTreeSet<u32>) -> bool {
        let before = taken.len();
        for (Interface { index, name, .. }, carried) in self.unseen(watched) {
            if taken.insert((*index, name.clone())) {
                tracing::info!(interface = name, "{}: it is watched from here on", carried.describe(name));
            }
        }
        taken.len() > before
    }
}

/// Interfaces that carry connections, in addition to those of routes that lead out.
fn taken(settings: &CaptureSettings) -> io::Result<BTreeSet<(u32, String)>> {
    let mut taken = BTreeSet::new();
    let (by_routes, _) = interfaces::outward(&taken)?;
    let watched = by_routes.iter().map(|interface| interface.index).collect();
    Located::read(settings)?.take(&mut taken, &watched);
    Ok(taken)
}

fn map<T: TryFrom<aya::maps::Map, Error = MapError>>(object: &mut Ebpf, name: &str) -> Result<T, CaptureError> {
    let map = object.take_map(name).ok_or_else(|| CaptureError::Object(format!("it has no map {name}")))?;
    T::try_from(map).map_err(|error| CaptureError::Object(format!("map {name}: {error}")))
}

fn map_error(error: MapError) -> CaptureError {
    match error {
        MapError::SyscallError(error) => CaptureError::System { what: error.call, cause: error.io_error },
        other => CaptureError::Object(other.to_string()),
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> CaptureError {
    move |cause| CaptureError::System { what, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_fits_what_is_missing() {
        let permissions = |missing: &[caps::Capability], user_namespace, memlock| Permissions {
            missing: missing.to_vec(),
            user_namespace,
            memlock,
        };
        let bpf = [caps::Capability::CAP_BPF];
        for (permissions, expected) in [
            (permissions(&bpf, false, None), "run it as root"),
            (permissions(&bpf, false, Some(65_536)), "run it as root"),
            (permissions(&[], false, Some(65_536)), "only 64 KiB may be locked"),
            (permissions(&[], false, None), "seccomp"),
            (permissions(&[], true, None), "this is a user namespace"),
            (permissions(&bpf, true, Some(65_536)), "this is a user namespace"),
        ] {
            let remedy = permission_remedy(&permissions);
            assert!(remedy.contains(expected), "{remedy}");
        }
    }

    #[test]
    fn the_initial_user_namespace_is_known_by_its_map() {
        assert!(!is_user_namespace("         0          0 4294967295\n"));
        assert!(is_user_namespace("         0       1000          1\n"));
        assert!(is_user_namespace("         0     100000      65536\n"));
        assert!(is_user_namespace("0 1000 1\n1 100000 65536\n"));
        // Without /proc the map is unknown.
        assert!(!is_user_namespace(""));
    }
}
