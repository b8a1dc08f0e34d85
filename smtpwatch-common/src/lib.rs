//! What the kernel programs and the daemon share: the record that crosses the ring, the flow key, the header walk and
//! the gate.
//!
//! The crate is compiled twice, for the kernel and for the daemon; [`process`] is the whole way of one packet in both.
//! What differs stays outside, behind [`Packet`] (how octets are read), [`Flows`] (where state lives) and [`Host`] (clock,
//! ring, counters).
//!
//! Written for the kernel's verifier: no allocation, no recursion, every loop has a constant bound, and no octet is read
//! without a length that was checked.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod binding;
pub mod checksum;
pub mod counters;
pub mod flow_key;
pub mod gate;
pub mod glance;
pub mod packet;
pub mod ports;
pub mod process;
pub mod record;
pub mod tail;
pub mod walk;

pub use binding::{Admission, Binding};
pub use checksum::Checksum;
pub use counters::Counter;
pub use flow_key::{Address, FlowKey, Side};
pub use gate::{FlowState, Order};
pub use glance::{Tag, glance};
pub use packet::{Packet, Slice};
pub use ports::PortSet;
pub use process::{Flows, Host, Outcome, process};
pub use record::{CHUNK, DecodeError, Direction, Header, Record, RecordBuffer, Scratch};
pub use walk::{Link, Segment, Walk};
