//! Shared by the kernel programs and the daemon: the record that crosses the ring, the flow key, the header parser, the
//! fast path and the gate.
//!
//! The crate is compiled for the kernel and for userspace. [`process()`] takes one packet through it in both: fast path
//! ([`mod@fast_path`]), headers ([`headers`]), binding of the flow to its sides ([`binding`]), gate ([`gate`]), record
//! ([`record`]). Mail within tunnels is counted ([`encapsulation`]). The two builds differ behind three traits: [`Packet`]
//! (how bytes are read), [`Flows`] (where flow state is stored) and [`Env`] (clock, ring, counters).
//!
//! Written for the kernel's verifier: no allocation, no recursion, every loop has a constant bound, and no byte is read
//! before its length is checked.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod binding;
pub mod checksum;
pub mod counters;
pub mod encapsulation;
pub mod fast_path;
pub mod flow_key;
pub mod gate;
pub mod headers;
pub mod packet;
pub mod ports;
pub mod process;
pub mod record;
pub mod tail;

pub use binding::{Admission, Binding};
pub use checksum::Checksum;
pub use counters::Counter;
pub use encapsulation::Encapsulation;
pub use fast_path::{Tag, fast_path};
pub use flow_key::{Address, FlowKey, Side};
pub use gate::{FlowState, Order};
pub use headers::{Link, ParsedPacket, Segment};
pub use packet::{Packet, Slice};
pub use ports::PortSet;
pub use process::{Env, Flows, Outcome, process};
pub use record::{CHUNK, DecodeError, Direction, Header, Record, RecordBuffer, Scratch};
