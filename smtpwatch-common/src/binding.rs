//! Which side of a flow leaves by this host's own egress hook.
//!
//! Anyone on the path can send a frame with any source address, but only this host sends through its egress hook. A frame that
//! leaves is therefore true, and a frame that arrives is a claim. Each flow is bound to the interface and the side that was
//! first seen to leave (the local side). A frame of that side that *arrives* there is forged. Frames of the remote side count
//! when they arrive; the local side's acknowledgments show whether this host accepted them.
//!
//! | place | what leaves | what arrives | decided |
//! |---|---|---|---|
//! | a mail host | its own side | the peer's side | bound to its own side |
//! | host end of a container's pair | the remote side | the container's side | bound to the remote side: both directions swap |
//! | a forwarding host, both interfaces watched | each side, by one interface each | likewise | bound to the first interface; the other one repeats it |
//! | asymmetric routes, several uplinks | its own side, by any interface | the peer, by any interface | both count |
//! | loopback | both sides | both sides, a second time | what leaves counts, what arrives repeats it |
//! | a mirror port, egress not watched | nothing | both sides | never bound: `unknown` |

use crate::{Direction, Side};

/// Interface index of the loopback device, the same in every network namespace (Linux: `LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// The local side of a flow. Part of a kernel map value: no padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Binding {
    /// Index of the interface.
    pub interface: u32,
    /// See [`Leaves`].
    pub leaves: Leaves,
    /// Zero.
    pub reserved: [u8; 3],
}

/// The side of a flow that leaves this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Leaves {
    /// Nothing was seen to leave.
    #[default]
    Unknown = 0,
    /// The client's side.
    Client = 1,
    /// The server's side.
    Server = 2,
    /// The capture does not say which way packets went: every segment is taken for what it claims to be.
    Either = 3,
}

/// How far a segment is trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Of the local side: true.
    Own,
    /// Of the remote side: a claim, confirmed by acknowledgments of the local side.
    Peer,
    /// Arrived before the local side has sent anything: it confirms nothing.
    Claim,
    /// Of the local side, but it arrived at the interface where that side leaves: forged.
    Forged,
    /// A repetition of a segment seen at another interface or at the other end of loopback.
    Duplicate,
}

impl Binding {
    /// The binding of a flow whose first segment is of `from`.
    #[inline(always)]
    #[must_use]
    pub const fn of(from: Side, direction: Option<Direction>, interface: u32) -> Self {
        let leaves = match (direction, from) {
            (Some(Direction::Egress), Side::Client) => Leaves::Client,
            (Some(Direction::Egress), Side::Server) => Leaves::Server,
            (Some(Direction::Ingress), _) => Leaves::Unknown,
            (None, _) => Leaves::Either,
        };
        Self { interface, leaves, reserved: [0; 3] }
    }

    /// Whether anything was seen to leave.
    #[inline(always)]
    #[must_use]
    pub const fn is_bound(&self) -> bool {
        !matches!(self.leaves, Leaves::Unknown)
    }

    /// How far a segment of `from` is trusted that was seen in this direction at `interface`.
    #[inline(always)]
    #[must_use]
    pub const fn admit(&self, from: Side, direction: Option<Direction>, interface: u32) -> Admission {
        let arrives = matches!(direction, Some(Direction::Ingress));
        let own = match self.leaves {
            Leaves::Unknown if !arrives => return Admission::Own,
            Leaves::Unknown if interface == LOOPBACK => return Admission::Duplicate,
            Leaves::Unknown => return Admission::Claim,
            Leaves::Either => return Admission::Own,
            Leaves::Client => matches!(from, Side::Client),
            Leaves::Server => matches!(from, Side::Server),
        };
        match (arrives, own) {
            (true, _) if interface == LOOPBACK => Admission::Duplicate,
            (true, true) if interface == self.interface => Admission::Forged,
            (true, true) => Admission::Duplicate,
            (true, false) => Admission::Peer,
            (false, true) => Admission::Own,
            // One interface for both ways: a router on a stick, loopback.
            (false, false) if interface == self.interface => Admission::Peer,
            (false, false) => Admission::Duplicate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Egress, Ingress};
    use Side::{Client, Server};

    #[test]
    fn each_place_is_decided() {
        let eth0 = 2;
        let eth1 = 3;
        // (place, first segment that leaves, segment, its admission)
        let cases = [
            ("mail host: own side leaves", (Client, eth0), (Client, Egress, eth0), Admission::Own),
            ("mail host: the peer arrives", (Client, eth0), (Server, Ingress, eth0), Admission::Peer),
            ("mail host: own side arrives", (Client, eth0), (Client, Ingress, eth0), Admission::Forged),
            ("mail host as server: own side arrives", (Server, eth0), (Server, Ingress, eth0), Admission::Forged),
            ("second uplink: own side leaves", (Client, eth0), (Client, Egress, eth1), Admission::Own),
            ("second uplink: the peer arrives", (Client, eth0), (Server, Ingress, eth1), Admission::Peer),
            ("second uplink: own side arrives", (Client, eth0), (Client, Ingress, eth1), Admission::Duplicate),
            ("container's pair: the remote side leaves", (Server, eth1), (Server, Egress, eth1), Admission::Own),
            ("container's pair: the container arrives", (Server, eth1), (Client, Ingress, eth1), Admission::Peer),
            (
                "forwarding: the peer leaves by the other interface",
                (Client, eth1),
                (Server, Egress, eth0),
                Admission::Duplicate,
            ),
            ("router on a stick: the peer leaves as well", (Client, eth0), (Server, Egress, eth0), Admission::Peer),
            ("loopback: what leaves", (Client, LOOPBACK), (Server, Egress, LOOPBACK), Admission::Peer),
            ("loopback: what arrives", (Client, LOOPBACK), (Client, Ingress, LOOPBACK), Admission::Duplicate),
        ];
        for (place, (side, interface), (from, direction, at), worth) in cases {
            let binding = Binding::of(side, Some(Egress), interface);
            assert_eq!(binding.admit(from, Some(direction), at), worth, "{place}");
        }
    }

    #[test]
    fn what_arrives_binds_nothing() {
        let binding = Binding::of(Client, Some(Ingress), 2);
        assert!(!binding.is_bound());
        assert_eq!(binding.admit(Server, Some(Ingress), 2), Admission::Claim);
        assert_eq!(binding.admit(Server, Some(Egress), 2), Admission::Own);
    }

    #[test]
    fn a_capture_without_directions_is_taken_as_it_is() {
        let binding = Binding::of(Client, None, 0);
        for side in [Client, Server] {
            assert_eq!(binding.admit(side, None, 0), Admission::Own);
        }
    }
}
