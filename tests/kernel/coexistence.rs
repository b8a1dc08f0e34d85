//! Coexistence: every kind of interface, and every other user of a hook that occurs on mail hosts. The daemon captures
//! a session through each and changes nothing of the others. `docs/coexistence.md` has the table.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use smtpwatch_capture::{Capture, Hook};
use smtpwatch_config::Ingress;
use smtpwatch_tests::{
    Skip, command,
    netns::{Family, GATEWAY_INTERFACE, Namespace, Path},
    root::{Instance, Packages, Root},
    scenario,
};

use crate::{
    attach::{LIMIT, hooks, session, settings, transcript},
    test_run::{Kind, empty_program},
};

/// One row: how an interface of the gateway is set up, and which hooks are expected.
struct Row {
    /// Arguments of `ip` in the gateway, one call each.
    prepare: &'static [&'static str],
    watched: &'static str,
    ingress: Ingress,
    /// The expected hooks at ingress and egress.
    expected: (Hook, Hook),
}

/// Moves the gateway's address from its interface to another one.
macro_rules! instead {
    ($device:literal) => {
        [
            "addr flush dev mail0",
            concat!("addr add 192.0.2.10/24 dev ", $device),
            concat!("link set ", $device, " up"),
            concat!("route replace default via 192.0.2.1 dev ", $device),
        ]
    };
}

const BRIDGE: [&str; 6] = {
    let [flush, address, up, route] = instead!("br0");
    ["link add br0 type bridge", "link set mail0 master br0", flush, address, up, route]
};
const BOND: [&str; 8] = {
    let [flush, address, up, route] = instead!("bond0");
    [
        "link add bond0 type bond mode active-backup",
        flush,
        "link set mail0 down",
        "link set mail0 master bond0",
        address,
        up,
        "link set mail0 up",
        route,
    ]
};
const MACVLAN: [&str; 5] = {
    let [flush, address, up, route] = instead!("mac0");
    ["link add link mail0 mac0 type macvlan mode bridge", flush, address, up, route]
};
const VLAN: [&str; 1] = ["link add link mail0 name mail0.5 type vlan id 5"];

/// Defines one test per row.
macro_rules! rows {
    ($($name:ident: $row:expr,)+) => {
        $(#[test]
        fn $name() {
            crate::need_root!();
            scenario(stringify!($name), || run(&$row));
        })+
    };
}

rows! {
    a_bridge: Row { prepare: &BRIDGE, watched: "br0", ingress: Ingress::Auto, expected: (Hook::Tcx, Hook::Tcx) },
    a_member_of_a_bridge: Row { prepare: &BRIDGE, watched: GATEWAY_INTERFACE, ingress: Ingress::Auto, expected: (Hook::Tcx, Hook::Tcx) },
    a_bond: Row { prepare: &BOND, watched: "bond0", ingress: Ingress::Tcx, expected: (Hook::Tcx, Hook::Tcx) },
    a_macvlan: Row { prepare: &MACVLAN, watched: "mac0", ingress: Ingress::Auto, expected: (Hook::Tcx, Hook::Tcx) },
    below_a_macvlan: Row { prepare: &MACVLAN, watched: GATEWAY_INTERFACE, ingress: Ingress::Auto, expected: (Hook::Tcx, Hook::Tcx) },
    a_vlan_device: Row { prepare: &VLAN, watched: GATEWAY_INTERFACE, ingress: Ingress::Auto, expected: (Hook::Tcx, Hook::Tcx) },
    frames_of_9_000_octets: Row { prepare: &["link set mail0 mtu 9000"], watched: GATEWAY_INTERFACE, ingress: Ingress::Xdp, expected: (Hook::Xdp, Hook::Tcx) },
    frames_of_65_535_octets: Row { prepare: &["link set mail0 mtu 65535"], watched: GATEWAY_INTERFACE, ingress: Ingress::Xdp, expected: (Hook::Xdp, Hook::Tcx) },
    the_clsact_fall_back_on_a_bridge: Row { prepare: &BRIDGE, watched: "br0", ingress: Ingress::Clsact, expected: (Hook::Clsact, Hook::Tcx) },
}

/// Programs, filters and queueing disciplines of others in a namespace.
fn others(namespace: &Namespace) -> Result<String> {
    let mut all = String::new();
    for (program, arguments) in [
        ("bpftool", &["net", "show"][..]),
        ("tc", &["qdisc", "show"]),
        ("tc", &["filter", "show", "dev", GATEWAY_INTERFACE, "ingress"]),
    ] {
        all += &command::run(namespace.command(program).args(arguments), LIMIT)?;
    }
    Ok(all)
}

fn run(row: &Row) -> Result<()> {
    let path = Path::create()?;
    for arguments in row.prepare {
        let done = path.gateway.ip(&arguments.split(' ').collect::<Vec<_>>());
        if let Err(error) = done {
            let unknown = format!("{error:#}").contains("Unknown device type");
            return Err(if unknown { Skip(format!("this kernel has none: {arguments}")).into() } else { error });
        }
    }
    beside(&path, row.watched, row.ingress, row.expected)
}

/// Captures a session through these hooks and detaches; checks that the programs of others are unchanged.
fn beside(path: &Path, watched: &str, ingress: Ingress, (arriving, leaving): (Hook, Hook)) -> Result<()> {
    let before = others(&path.gateway)?;
    let mut capture = path.gateway.run(|| Capture::start(&settings(watched, ingress)))??;
    let taken: Vec<_> = hooks(&capture).into_iter().map(|(_, _, hook)| hook).collect();
    ensure!(taken == [Some(arriving), Some(leaving)], "attached: {:?}", hooks(&capture));
    sees(path, &mut capture)?;
    path.gateway.run(move || drop(capture))?;
    let after = others(&path.gateway)?;
    ensure!(after == before, "something has changed:\n{before}\n{after}");
    Ok(())
}

fn sees(path: &Path, capture: &mut Capture) -> Result<()> {
    let exchanger: IpAddr = Family::V4.exchanger();
    session(path, exchanger)?;
    let said = transcript(capture)?;
    ensure!(said.len() == 3, "a session of three lines is seen as {said:?}");
    Ok(())
}

/// Checks that renamed, removed and re-created interfaces are followed.
#[test]
fn an_interface_is_renamed_and_comes_again() {
    scenario("an interface is renamed and comes again", || {
        let path = Path::create()?;
        path.gateway.run(|| -> Result<()> {
            let mut capture = Capture::start(&settings("mail*", Ingress::Auto))?;
            for step in ["link set mail0 down", "link set mail0 name mail9", "link set mail9 up"] {
                path.gateway.ip(&step.split(' ').collect::<Vec<_>>())?;
            }
            path.gateway.ip(&["route", "replace", "default", "via", "192.0.2.1", "dev", "mail9"])?;
            ensure!(capture.refresh()?, "nothing was noticed");
            let names: Vec<_> = hooks(&capture).into_iter().map(|(name, _, hook)| (name, hook.is_some())).collect();
            ensure!(names == [("mail9".to_owned(), true), ("mail9".to_owned(), true)], "{names:?}");
            sees(&path, &mut capture)?;
            // Removing its namespace removes the peer, and with it this end of the pair.
            path.router.ip(&["link", "del", "left"])?;
            ensure!(capture.refresh()? && capture.attachments().count() == 0, "{:?}", hooks(&capture));
            path.gateway.ip(&["link", "add", "mail0", "type", "veth"])?;
            ensure!(capture.refresh()? && capture.attachments().count() == 2, "{:?}", hooks(&capture));
            Ok(())
        })?
    });
}

/// `BPF_LINK_CREATE` for TCX (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TcxLink {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

/// Attaches another owner's program at one end of the chain.
fn neighbour(namespace: &Namespace, interface: &str, attach_type: u32, place: u32) -> Result<OwnedFd> {
    let program = empty_program(Kind::Tc, "neighbour").context("cannot load an empty program")?;
    let index = namespace.run(|| nix::net::if_::if_nametoindex(interface))??;
    let attributes = TcxLink {
        program: u32::try_from(program.as_raw_fd())?,
        interface: index,
        attach_type,
        flags: place,
        ..TcxLink::default()
    };
    let fd = namespace.run(|| {
        // SAFETY: `attributes` outlives the call, which only reads it.
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attributes, size_of::<TcxLink>()) }
    })?;
    ensure!(fd >= 0, "cannot attach a neighbour: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just created this descriptor for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

/// Programs of others before and after the daemon's in the chain, attached earlier and later: all see the packets and
/// stay attached.
#[test]
fn others_programs_in_the_chain() {
    scenario("others' programs in the chain", || {
        let path = Path::create()?;
        let at = |attach_type, place| neighbour(&path.gateway, GATEWAY_INTERFACE, attach_type, place);
        let before = [at(BPF_TCX_INGRESS, BPF_F_BEFORE)?, at(BPF_TCX_EGRESS, BPF_F_AFTER)?];
        let settings = settings(GATEWAY_INTERFACE, Ingress::Tcx);
        let mut capture = path.gateway.run(|| Capture::start(&settings))??;
        sees(&path, &mut capture)?;
        let after =
            [at(BPF_TCX_INGRESS, BPF_F_BEFORE)?, at(BPF_TCX_EGRESS, BPF_F_BEFORE)?, at(BPF_TCX_INGRESS, BPF_F_AFTER)?];
        sees(&path, &mut capture)?;
        path.gateway.run(move || drop(capture))?;
        for link in before.iter().chain(&after) {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
            let index = info.lines().find_map(|line| line.strip_prefix("ifindex:")).map(str::trim);
            ensure!(index.is_some_and(|index| index != "0"), "a neighbour was detached: {info}");
        }
        Ok(())
    });
}

/// xdp-filter, attached by libxdp: through its dispatcher, or directly where the kernel does not let a program replace
/// a function of another one (freplace).
fn xdp_filter(namespace: &Namespace) -> Result<Instance> {
    let script = "mount -t sysfs sysfs /sys; mount -t bpf bpf /sys/fs/bpf; \
                  xdp-filter load mail0 && touch /lab/loaded; exec sleep infinity";
    Root::with(Packages::XdpTools)?.start(namespace, &["sh", "-c", script], |_| Ok(()))
}

#[test]
fn beside_a_program_of_libxdp() {
    scenario("beside a program of libxdp", || {
        let path = Path::create()?;
        let mut instance = xdp_filter(&path.gateway)?;
        command::eventually(LIMIT, "xdp-filter", || {
            ensure!(!instance.ended(), "it ended: {}", instance.read("output.log"));
            Ok(instance.lab().join("loaded").exists().then_some(()))
        })
        .map_err(|error| Skip(format!("xdp-filter does not load here: {error:#}: {}", instance.read("output.log"))))?;
        let error = path.gateway.run(|| Capture::start(&settings(GATEWAY_INTERFACE, Ingress::Xdp)).err())?;
        let told = error.context("XDP was attached over another's")?.to_string();
        let holder =
            ["xdp_dispatcher", "xdpfilt_"].iter().any(|name| told.contains(&format!("the slot is held by \"{name}")));
        ensure!(holder, "{told}");
        beside(&path, GATEWAY_INTERFACE, Ingress::Auto, (Hook::Tcx, Hook::Tcx))
    });
}
