//! Quota of open connections for each peer network and each role (EV-24): one peer cannot evict the sessions of others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    Role,
    hash::HashMap,
    limits::{PEER_SHARE, ROLE_SHARE},
};

/// Open connections by peer network. A connection that this host has not answered does not count: its source address
/// may be forged.
#[derive(Debug)]
pub(super) struct Quota {
    each: u32,
    role: u32,
    open: HashMap<(Role, IpAddr), u32>,
    /// Totals, in the order of [`Role`].
    roles: [u32; 2],
}

impl Quota {
    /// Computes the share of each network and role in a table of `flows` flows.
    pub fn new(flows: usize) -> Self {
        let share = |of: usize| u32::try_from(of).unwrap_or(u32::MAX).max(1);
        let role = share(flows / ROLE_SHARE.1 * ROLE_SHARE.0 + flows % ROLE_SHARE.1);
        Self { each: share(flows / PEER_SHARE), role, open: HashMap::default(), roles: [0; 2] }
    }

    /// Whether the role has its full share: one of its flows must be evicted first.
    pub const fn is_full(&self, role: Role) -> bool {
        self.roles[role as usize] >= self.role
    }

    /// Counts one connection. Returns false and counts nothing if the peer's network has its full share.
    pub fn take(&mut self, role: Role, peer: IpAddr) -> bool {
        let open = self.open.entry((role, network(peer))).or_default();
        let granted = *open < self.each;
        *open += u32::from(granted);
        self.roles[role as usize] += u32::from(granted);
        granted
    }

    /// Releases one connection.
    pub fn give_back(&mut self, role: Role, peer: IpAddr) {
        let key = (role, network(peer));
        if let Some(open) = self.open.get_mut(&key) {
            self.roles[role as usize] = self.roles[role as usize].saturating_sub(1);
            *open = open.saturating_sub(1);
            if *open == 0 {
                self.open.remove(&key);
            }
        }
    }
}

/// The network that one subscriber typically holds: an IPv4 /24, an IPv6 /48.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !0xff).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 48)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_its_own_and_gets_it_back() {
        let one = IpAddr::from([192, 0, 2, 1]);
        let neighbour = IpAddr::from([192, 0, 2, 200]);
        let other = IpAddr::from([192, 0, 3, 1]);
        let mut quota = Quota::new(8 * PEER_SHARE);
        assert!((0..8).all(|number| quota.take(Role::Server, if number % 2 == 0 { one } else { neighbour })));
        assert!(!quota.take(Role::Server, neighbour) && quota.take(Role::Server, other));
        assert!(quota.take(Role::Client, one), "the roles do not share");
        quota.give_back(Role::Server, one);
        assert!(quota.take(Role::Server, neighbour));
        quota.give_back(Role::Server, other);
        assert!(!quota.open.contains_key(&(Role::Server, network(other))));
    }

    #[test]
    fn addresses_of_one_ipv6_site_are_one_peer() {
        let mut quota = Quota::new(8 * PEER_SHARE);
        let address = |host: u16| IpAddr::from([0x2001, 0xdb8, 7, host, 0, 0, 0, host]);
        assert!((0..8).all(|host| quota.take(Role::Server, address(host))));
        assert!(!quota.take(Role::Server, address(9)));
    }

    #[test]
    fn no_role_takes_all() {
        let mut quota = Quota::new(64);
        let mut third = 0;
        while !quota.is_full(Role::Server) {
            assert!(quota.take(Role::Server, [203, 0, third, 1].into()));
            third += 1;
        }
        assert_eq!(third, 48);
        assert!(!quota.is_full(Role::Client) && quota.take(Role::Client, [198, 51, 100, 25].into()));
    }
}
