//! Which interfaces there are, and which of them are watched.

use std::{collections::BTreeMap, fs, io};

use nix::ifaddrs::getifaddrs;
use smtpwatch_common::Link;

/// A network interface of this namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// What its packets begin with; `None` for a link layer that is not understood.
    pub link: Option<Link>,
    /// Its Ethernet address.
    pub address: Option<[u8; 6]>,
}

/// The interfaces that match one of `patterns`; without patterns those that carry a default route.
///
/// # Errors
///
/// The system does not tell.
pub fn wanted(patterns: &[String]) -> io::Result<Vec<Interface>> {
    let all = all()?;
    let chosen: Box<dyn Fn(&str) -> bool> = if patterns.is_empty() {
        let routes = default_routes();
        Box::new(move |name| routes.iter().any(|route| route == name))
    } else {
        Box::new(|name| patterns.iter().any(|pattern| matches(pattern, name)))
    };
    Ok(all.into_values().filter(|interface| chosen(&interface.name)).collect())
}

/// Whether a pattern can match several names; otherwise it is one.
#[must_use]
pub fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

fn all() -> io::Result<BTreeMap<u32, Interface>> {
    let mut found = BTreeMap::new();
    // Packet-socket addresses name every interface, with index and hardware type, in the namespace of this thread; sysfs
    // shows the namespace that it was mounted in.
    for address in getifaddrs()? {
        let Some(link) = address.address.as_ref().and_then(|storage| storage.as_link_addr()) else { continue };
        let Ok(index) = u32::try_from(link.ifindex()) else { continue };
        let interface = Interface {
            name: address.interface_name.clone(),
            index,
            link: link_layer(link.hatype()),
            address: if link.hatype() == ETHERNET { link.addr() } else { None },
        };
        found.insert(index, interface);
    }
    Ok(found)
}

/// Hardware type of Ethernet (include/uapi/linux/if_arp.h: ARPHRD_ETHER).
const ETHERNET: u16 = 1;

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

/// Names of the interfaces that carry a default route, without loopback.
fn default_routes() -> Vec<String> {
    // The namespace of this thread, not of the process's first one.
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let mut names: Vec<String> = ipv4_defaults(&read("route")).chain(ipv6_defaults(&read("ipv6_route"))).collect();
    names.sort();
    names.dedup();
    names.retain(|name| name != "lo");
    names
}

/// `/proc/net/route`: interface, destination, gateway, flags, …, mask (column 8).
fn ipv4_defaults(table: &str) -> impl Iterator<Item = String> {
    table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let up = u32::from_str_radix(columns.get(3)?, 16).ok()? & ROUTE_UP != 0;
        let default = *columns.get(1)? == "00000000" && *columns.get(7)? == "00000000";
        (up && default).then(|| (*columns[0]).to_owned())
    })
}

/// `/proc/net/ipv6_route`: destination, prefix length, …, flags (column 9), interface (column 10).
fn ipv6_defaults(table: &str) -> impl Iterator<Item = String> {
    table.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(columns.get(8)?, 16).ok()?;
        let default = columns.first()?.bytes().all(|digit| digit == b'0') && *columns.get(1)? == "00";
        (default && flags & ROUTE_UP != 0 && flags & ROUTE_REJECT == 0)
            .then(|| columns.get(9).map(|name| (*name).to_owned()))?
    })
}

// include/uapi/linux/route.h
const ROUTE_UP: u32 = 0x1;
const ROUTE_REJECT: u32 = 0x200;

/// Whether `name` matches a pattern with `*` and `?`.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when the last star has to take one octet more.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, n));
                p += 1;
            }
            Some(octet) if *octet == b'?' || *octet == name[n] => {
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
    pattern[p..].iter().all(|octet| *octet == b'*')
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
    fn default_routes_of_both_versions() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                  eth1\t00000000\t010200C0\t0000\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(ipv4_defaults(v4).collect::<Vec<_>>(), ["eth0"]);
        let zero = "00000000000000000000000000000000";
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 ens3\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n\
             20010db8000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 ens4\n"
        );
        assert_eq!(ipv6_defaults(&v6).collect::<Vec<_>>(), ["ens3"]);
    }
}
