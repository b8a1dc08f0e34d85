//! Lists the interfaces of this host and selects those to watch. The main types are [`Interface`] and [`Inventory`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    ops::ControlFlow,
};

use nix::{ifaddrs::getifaddrs, sys::socket::SockProtocol};
use smtpwatch_common::{Encapsulation, Link};

use super::{
    netlink::{NLM_DUMP, each_attribute, number, request},
    routes,
};

/// A network interface of this network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Name, such as `eth0`.
    pub name: String,
    /// Index (ifindex).
    pub index: u32,
    /// First header of its packets; `None` for an unsupported link layer.
    pub link: Option<Link>,
    /// Ethernet address, if the interface has one.
    pub address: Option<[u8; 6]>,
    /// Whether the interface is an IP tunnel: ipip, ip6tnl, sit, gre, ip6gre.
    pub tunnel: bool,
}

impl Interface {
    /// Why the kernel programs cannot see packets that arrive at this interface on this kernel; `None`: they can.
    #[must_use]
    pub fn hides_arrivals(&self) -> Option<String> {
        let release = nix::sys::utsname::uname().ok()?;
        let release = release.release().to_string_lossy().into_owned();
        (self.tunnel && hides_tunnels(&release)).then(|| {
            format!(
                "{} is a tunnel, and Linux {release} shows what arrives there from its outer header on, which hides mail from the \
                 kernel programs: a strip is not seen there; kernel 5.14 and later show the packet within",
                self.name
            )
        })
    }
}

/// Whether a kernel of this release leaves the MAC header of a decapsulated tunnel packet at the outer header, where
/// programs at TC ingress begin to read. Linux 5.14 resets it ("net: reset MAC header consistently across L3 virtual
/// devices"). A release that cannot be parsed counts as a later one.
fn hides_tunnels(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) < (5, 14),
        _ => false,
    }
}

/// The interfaces that match one of `patterns`.
///
/// # Errors
///
/// The kernel does not list the interfaces.
pub fn matching(patterns: &[String]) -> io::Result<Vec<Interface>> {
    let chosen = |name: &str| patterns.iter().any(|pattern| matches(pattern, name));
    Ok(all()?.into_values().filter(|interface| chosen(&interface.name)).collect())
}

/// The interfaces that are watched by default: those of routes that lead out of this host, and `taken`, which carry
/// connections of watched ports. The flag is true if there are more routes than were read.
///
/// # Errors
///
/// The kernel does not list its routes or interfaces.
pub fn outward(taken: &BTreeSet<(u32, String)>) -> io::Result<(Vec<Interface>, bool)> {
    let routes = routes::outward()?;
    let chosen = |interface: &Interface| {
        routes.interfaces.contains(&interface.index) || taken.contains(&(interface.index, interface.name.clone()))
    };
    let chosen = all()?.into_values().filter(|interface| interface.name != LOOPBACK && chosen(interface)).collect();
    Ok((chosen, routes.cut))
}

/// Whether a pattern has wildcards; otherwise it is a plain name.
#[must_use]
pub fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

/// Loopback: traffic that does not leave this host cannot be attacked on a path.
const LOOPBACK: &str = "lo";

/// Every interface of this namespace, by index.
///
/// # Errors
///
/// The kernel does not list the interfaces.
pub fn all() -> io::Result<BTreeMap<u32, Interface>> {
    Ok(links()?.into_iter().map(|(index, device)| (index, device.interface)).collect())
}

/// The interfaces of this namespace that are up and show the packets within an encapsulation. MPLS has none: the kernel
/// removes the labels where it routes.
///
/// # Errors
///
/// The kernel does not list the interfaces.
pub fn ends(encapsulation: Encapsulation) -> io::Result<Vec<Interface>> {
    let kinds: &[&str] = match encapsulation {
        Encapsulation::Vxlan => &["vxlan"],
        Encapsulation::Geneve => &["geneve"],
        Encapsulation::Gre => &["gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan"],
        Encapsulation::Ipip => &["ipip", "sit", "ip6tnl"],
        Encapsulation::Pppoe => &["ppp"],
        Encapsulation::Mpls => &[],
    };
    let ends = links()?.into_values().filter(|device| device.up && kinds.contains(&device.kind.as_str()));
    Ok(ends.map(|device| device.interface).collect())
}

/// An interface and its place in the stack of devices.
#[derive(Clone, Debug)]
struct Device {
    interface: Interface,
    /// Kind as reported by the kernel: `vlan`, `bridge`; empty for hardware.
    kind: String,
    /// Index of the lower device, if it is in this namespace.
    below: Option<u32>,
    /// Index of the bridge, bond or VRF that this device is a member of.
    master: Option<u32>,
    /// Whether the device is up. Tunnel modules create devices that are never used (`gre0`, `tunl0`, `sit0`).
    up: bool,
}

/// Snapshot of the interfaces and addresses of this namespace.
#[derive(Debug)]
pub struct Inventory {
    devices: BTreeMap<u32, Device>,
    /// Interface index by own address, for interfaces where packets can arrive. Loopback and dummy interfaces are
    /// excluded: they hold service addresses.
    pub addresses: BTreeMap<IpAddr, u32>,
}

impl Inventory {
    /// Reads the interfaces and addresses.
    ///
    /// # Errors
    ///
    /// The kernel does not list them.
    pub fn read() -> io::Result<Self> {
        let devices = links()?;
        let arriving = devices.iter().filter(|(_, device)| device.kind != "dummy" && device.interface.name != LOOPBACK);
        let by_name: HashMap<&str, u32> =
            arriving.map(|(index, device)| (device.interface.name.as_str(), *index)).collect();
        let mut addresses = BTreeMap::new();
        for found in getifaddrs()? {
            let Some(storage) = found.address else { continue };
            let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            let address = v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())));
            if let (Some(address), Some(index)) = (address, by_name.get(found.interface_name.as_str())) {
                addresses.insert(address, *index);
            }
        }
        Ok(Self { devices, addresses })
    }

    /// The interface with this index, except loopback.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Interface> {
        self.devices.get(&index).map(|device| &device.interface).filter(|interface| interface.name != LOOPBACK)
    }

    /// Whether the traffic of an interface is visible at one of `watched`: at the interface itself; below a VLAN
    /// device or macvlan; at a member of a bridge; at all members of a bond (docs/coexistence.md).
    #[must_use]
    pub fn is_seen(&self, index: u32, watched: &BTreeSet<u32>) -> bool {
        self.is_seen_from(index, watched, MAX_STACK)
    }

    fn is_seen_from(&self, index: u32, watched: &BTreeSet<u32>, depth: u8) -> bool {
        if watched.contains(&index) {
            return true;
        }
        let (Some(device), Some(depth)) = (self.devices.get(&index), depth.checked_sub(1)) else { return false };
        let seen = |index: &u32| self.is_seen_from(*index, watched, depth);
        let members = || self.devices.iter().filter(|(_, member)| member.master == Some(index)).map(|(index, _)| index);
        match device.kind.as_str() {
            "vlan" | "macvlan" | "macvtap" | "ipvlan" => device.below.as_ref().is_some_and(seen),
            "bridge" => members().any(&seen),
            "bond" | "team" => members().next().is_some() && members().all(seen),
            _ => false,
        }
    }
}

/// Maximum depth of stacked devices (MAX_NEST_DEV of the kernel).
const MAX_STACK: u8 = 8;

// include/uapi/linux/if_link.h, rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_ADDRESS: u16 = 1;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;

/// The interfaces of the thread's namespace, by netlink: sysfs shows the namespace in which it was mounted.
fn links() -> io::Result<BTreeMap<u32, Device>> {
    let mut found = BTreeMap::new();
    // struct ifinfomsg: family, padding, hardware type, index, flags, change mask.
    request(SockProtocol::NetlinkRoute, RTM_GETLINK, NLM_DUMP, &[0; 16], |kind, body| {
        if kind == RTM_NEWLINK
            && let (Some([_, _, low, high, ..]), Some(index)) = (body.first_chunk::<16>(), number(body, 4))
        {
            let hardware = u16::from_ne_bytes([*low, *high]);
            let tunnel = is_tunnel(hardware);
            let interface = Interface { name: String::new(), index, link: link_layer(hardware), address: None, tunnel };
            let up = number(body, 8).is_some_and(|flags| flags & IFF_UP != 0);
            found.insert(index, device(interface, hardware, up, &body[16..]));
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Hardware type of Ethernet (include/uapi/linux/if_arp.h: ARPHRD_ETHER).
const ETHERNET: u16 = 1;

fn device(interface: Interface, hardware: u16, up: bool, attributes: &[u8]) -> Device {
    let text = |value: &[u8]| String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
    let mut device = Device { interface, kind: String::new(), below: None, master: None, up };
    let mut elsewhere = false;
    each_attribute(attributes, |kind, value| match kind {
        IFLA_ADDRESS if hardware == ETHERNET => device.interface.address = value.try_into().ok(),
        IFLA_IFNAME => device.interface.name = text(value),
        IFLA_LINK => device.below = number(value, 0),
        IFLA_MASTER => device.master = number(value, 0),
        IFLA_LINK_NETNSID => elsewhere = true,
        IFLA_LINKINFO => each_attribute(value, |kind, value| {
            if kind == IFLA_INFO_KIND {
                device.kind = text(value);
            }
        }),
        _ => {}
    });
    // The index belongs to another namespace.
    device.below = device.below.filter(|_| !elsewhere);
    device
}

/// The link layer of a hardware type (include/uapi/linux/if_arp.h).
const fn link_layer(hardware: u16) -> Option<Link> {
    match hardware {
        // Ethernet, and loopback, whose packets carry an empty Ethernet header.
        1 | 772 => Some(Link::Ethernet),
        // PPP, IP-in-IP, IPv6-in-IP, SIT, GRE, raw IP, GRE over IPv6, none (tun, WireGuard).
        512 | 768 | 769 | 776 | 778 | 519 | 823 | 0xfffe => Some(Link::Ip),
        _ => None,
    }
}

/// ARPHRD_TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE.
const fn is_tunnel(hardware: u16) -> bool {
    matches!(hardware, 768 | 769 | 776 | 778 | 823)
}

/// Whether `name` matches a pattern with `*` and `?`.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Position to resume from if the last star must match one more byte.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((star, taken)) = retry else { return false };
                retry = Some((star, taken + 1));
                p = star + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("ens*", "ens", true),
            ("ens*", "ens3f0", true),
            ("*f0", "ens3f0", true),
            ("*f0", "ens3f1", false),
            ("e*s*0", "ens3f0", true),
            ("eth?", "eth", false),
            ("eth?", "eth1", true),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn kernels_that_hide_what_arrives_by_a_tunnel_are_known() {
        for (release, expected) in [
            ("5.10.0-46-cloud-amd64", true),
            ("5.13.19", true),
            ("4.19.0-21-amd64", true),
            ("5.14.0-427.el9.x86_64", false),
            ("6.1.0-50-amd64", false),
            ("7.3.4+deb13-rt-amd64", false),
            ("", false),
            ("unknown", false),
        ] {
            assert_eq!(hides_tunnels(release), expected, "{release}");
        }
        for (hardware, expected) in [(1, false), (512, false), (0xfffe, false), (768, true), (778, true)] {
            assert_eq!(is_tunnel(hardware), expected, "{hardware}");
        }
    }

    #[test]
    fn what_lies_on_a_watched_interface_is_seen() {
        let device = |index: u32, kind: &str, below: Option<u32>, master: Option<u32>| {
            let name = format!("if{index}");
            let interface = Interface { name, index, link: Some(Link::Ethernet), address: None, tunnel: false };
            (index, Device { interface, kind: kind.to_owned(), below, master, up: true })
        };
        let devices = BTreeMap::from([
            device(2, "", None, Some(5)),
            device(3, "", None, Some(6)),
            device(4, "", None, Some(6)),
            device(5, "bridge", None, None),
            device(6, "bond", None, None),
            device(7, "vlan", Some(6), None),
            device(8, "veth", Some(2), None),
            device(9, "bond", None, None),
            // The kernel never reports a cycle; a message that contains one must not hang the daemon.
            device(10, "vlan", Some(11), None),
            device(11, "vlan", Some(10), None),
        ]);
        let inventory = Inventory { devices, addresses: BTreeMap::new() };
        for (index, watched, expected) in [
            (2, &[2][..], true),
            (2, &[3], false),
            (5, &[2], true),
            (6, &[3], false),
            (6, &[3, 4], true),
            (7, &[6], true),
            (7, &[3, 4], true),
            (8, &[2], false),
            (9, &[2], false),
            (10, &[2], false),
            (99, &[2], false),
        ] {
            let watched: BTreeSet<u32> = watched.iter().copied().collect();
            assert_eq!(inventory.is_seen(index, &watched), expected, "{index} at {watched:?}");
        }
    }

    #[test]
    fn the_loopback_interface_is_there_and_never_chosen() {
        let inventory = Inventory::read().expect("the interfaces");
        let lo = all().expect("the interfaces").into_values().find(|interface| interface.name == LOOPBACK);
        let lo = lo.expect("loopback");
        assert_eq!(lo.link, Some(Link::Ethernet));
        assert_eq!(inventory.get(lo.index), None);
        let taken = BTreeSet::from([(lo.index, lo.name.clone())]);
        assert!(!outward(&taken).expect("routes").0.contains(&lo));
        assert_eq!(matching(&["l?".to_owned()]).expect("the interfaces"), [lo]);
    }
}
