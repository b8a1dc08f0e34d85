//! What the kernel counts, one slot per CPU.

use crate::{Direction, Encapsulation};

/// One counter. The value is its index in the kernel's per-CPU array.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Packets that were forwarded to userspace, at least as a header, at ingress.
    ForwardedIngress,
    /// The same at egress.
    ForwardedEgress,
    /// Packets of watched flows that were not forwarded, at ingress.
    MutedIngress,
    /// The same at egress.
    MutedEgress,
    /// Packets that are not TCP or not of a watched port, at ingress.
    OtherIngress,
    /// The same at egress.
    OtherEgress,
    /// Records lost because the ring had no room.
    RingFull,
    /// Packets lost because no flow state could be created.
    FlowTableFull,
    /// TCP in an IP fragment (docs/threats.md EV-5): both hooks run before the host reassembles.
    Fragment,
    /// Packets shorter than their own headers say, and payload past what one packet may cost.
    Truncated,
    /// Invalid IP or TCP headers, too many tags or extension headers.
    Unparsed,
    /// Frames of this host's own side of a flow that arrived from outside: see [`binding`](crate::binding).
    Forged,
    /// Packets lost because every scratch of the CPU was taken: programs preempt each other on PREEMPT_RT.
    NoScratch,
    /// Packets with mail in VXLAN whose inner packets are not seen; see [`encapsulation`](crate::encapsulation). These packets and
    /// those of the next counters are among the other ones too.
    Vxlan,
    /// The same in Geneve.
    Geneve,
    /// The same in GRE.
    Gre,
    /// The same in IP.
    Ipip,
    /// The same in PPPoE.
    Pppoe,
    /// The same in MPLS.
    Mpls,
}

impl Counter {
    /// Number of counters.
    pub const COUNT: u32 = 19;

    /// Every counter, in the order of the array.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::ForwardedIngress,
        Self::ForwardedEgress,
        Self::MutedIngress,
        Self::MutedEgress,
        Self::OtherIngress,
        Self::OtherEgress,
        Self::RingFull,
        Self::FlowTableFull,
        Self::Fragment,
        Self::Truncated,
        Self::Unparsed,
        Self::Forged,
        Self::NoScratch,
        Self::Vxlan,
        Self::Geneve,
        Self::Gre,
        Self::Ipip,
        Self::Pppoe,
        Self::Mpls,
    ];

    /// The counter of forwarded packets of a direction.
    #[must_use]
    pub const fn forwarded(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::ForwardedIngress,
            Direction::Egress => Self::ForwardedEgress,
        }
    }

    /// The counter of muted packets of a direction.
    #[must_use]
    pub const fn muted(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::MutedIngress,
            Direction::Egress => Self::MutedEgress,
        }
    }

    /// The counter of packets that are not of mail, of a direction.
    #[must_use]
    pub const fn other(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::OtherIngress,
            Direction::Egress => Self::OtherEgress,
        }
    }

    /// The counter of packets with mail in an encapsulation.
    #[inline(always)]
    #[must_use]
    pub const fn encapsulated(encapsulation: Encapsulation) -> Self {
        match encapsulation {
            Encapsulation::Vxlan => Self::Vxlan,
            Encapsulation::Geneve => Self::Geneve,
            Encapsulation::Gre => Self::Gre,
            Encapsulation::Ipip => Self::Ipip,
            Encapsulation::Pppoe => Self::Pppoe,
            Encapsulation::Mpls => Self::Mpls,
        }
    }

    /// What kind of counter this is, with its metric labels.
    #[must_use]
    pub const fn label(self) -> Label {
        match self {
            Self::ForwardedIngress => Label::Packets { direction: Direction::Ingress, outcome: "forwarded" },
            Self::ForwardedEgress => Label::Packets { direction: Direction::Egress, outcome: "forwarded" },
            Self::MutedIngress => Label::Packets { direction: Direction::Ingress, outcome: "muted" },
            Self::MutedEgress => Label::Packets { direction: Direction::Egress, outcome: "muted" },
            Self::OtherIngress => Label::Packets { direction: Direction::Ingress, outcome: "other" },
            Self::OtherEgress => Label::Packets { direction: Direction::Egress, outcome: "other" },
            Self::RingFull => Label::Dropped { reason: "ring_full" },
            Self::FlowTableFull => Label::Dropped { reason: "flow_table_full" },
            Self::Fragment => Label::Dropped { reason: "fragment" },
            Self::Truncated => Label::Dropped { reason: "truncated" },
            Self::Unparsed => Label::Dropped { reason: "unparsed" },
            Self::Forged => Label::Dropped { reason: "forged" },
            Self::NoScratch => Label::Dropped { reason: "no_scratch" },
            Self::Vxlan => Label::Encapsulated(Encapsulation::Vxlan),
            Self::Geneve => Label::Encapsulated(Encapsulation::Geneve),
            Self::Gre => Label::Encapsulated(Encapsulation::Gre),
            Self::Ipip => Label::Encapsulated(Encapsulation::Ipip),
            Self::Pppoe => Label::Encapsulated(Encapsulation::Pppoe),
            Self::Mpls => Label::Encapsulated(Encapsulation::Mpls),
        }
    }
}

/// The metric that a [`Counter`] feeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Label {
    /// `smtpwatch_kernel_packets_total`.
    Packets {
        /// Label `direction`.
        direction: Direction,
        /// Label `outcome`.
        outcome: &'static str,
    },
    /// `smtpwatch_kernel_dropped_total`.
    Dropped {
        /// Label `reason`.
        reason: &'static str,
    },
    /// `smtpwatch_encapsulated_packets_total`, with its label `encapsulation`.
    Encapsulated(Encapsulation),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_position() {
        for (position, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, position);
        }
    }

    #[test]
    fn an_encapsulation_has_its_counter() {
        for encapsulation in Encapsulation::ALL {
            assert_eq!(Counter::encapsulated(encapsulation).label(), Label::Encapsulated(encapsulation));
        }
    }
}
