//! Programs that preempt each other, as on PREEMPT_RT: each has a scratch buffer of its own.
//!
//! The test kernel may not be PREEMPT_RT, so the test marks slots as taken, as preempted programs would.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::Program,
};
use smtpwatch_common::{Counter, Link, Record, Scratch, binding::LOOPBACK};

use crate::{
    packet::Packet,
    test_run::{Kind, test_run},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../smtpwatch-capture/bpf/smtpwatch.bpf.o");

/// Number of slots of `SCRATCH` per CPU.
const SLOTS: u32 = 8;
/// Size of a slot, bytes: a counter of the programs that hold or try to take it, then the scratch buffer.
const SLOT: usize = size_of::<u64>() + size_of::<Scratch>();

const PROGRAMS: [(&str, Link); 5] = [
    ("smtpwatch_xdp", Link::Ethernet),
    ("smtpwatch_tc_ingress", Link::Ethernet),
    ("smtpwatch_tc_egress", Link::Ethernet),
    ("smtpwatch_tc_ingress_ip", Link::Ip),
    ("smtpwatch_tc_egress_ip", Link::Ip),
];

/// One loaded program and its maps.
struct Bench {
    name: &'static str,
    link: Link,
    object: Ebpf,
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    slots: PerCpuArray<MapData, [u8; SLOT]>,
}

impl Bench {
    fn load((name, link): (&'static str, Link)) -> Self {
        let mut object = EbpfLoader::new().override_global("AYA_LOG_LEVEL", &0_u8, true).load(OBJECT).unwrap();
        match object.program_mut(name) {
            Some(Program::Xdp(program)) => program.load().unwrap(),
            Some(Program::SchedClassifier(program)) => program.load().unwrap(),
            _ => panic!("no program {name}"),
        }
        Self {
            name,
            link,
            ring: object.take_map("RING").unwrap().try_into().unwrap(),
            counters: object.take_map("COUNTERS").unwrap().try_into().unwrap(),
            slots: object.take_map("SCRATCH").unwrap().try_into().unwrap(),
            object,
        }
    }

    /// Runs the program over the first packet of a connection; returns the source ports in the resulting records.
    fn open(&mut self, source_port: u16) -> Vec<u16> {
        // An IPv6 header has no checksum to fill in.
        let packet = Packet { v6: true, flags: 0x02, seq: 100, ack: 0, source_port, ..Packet::default() };
        let packet = match self.link {
            Link::Ethernet => packet.ethernet(),
            Link::Ip => packet.ip(),
        };
        let (fd, kind) = match self.object.program(self.name) {
            Some(Program::Xdp(program)) => (program.fd().unwrap(), Kind::Xdp),
            Some(Program::SchedClassifier(program)) => (program.fd().unwrap(), Kind::Tc),
            _ => unreachable!(),
        };
        test_run(fd.as_fd(), kind, &packet, 1, LOOPBACK).unwrap();
        let mut ports = Vec::new();
        while let Some(bytes) = self.ring.next() {
            ports.push(Record::decode(&bytes).unwrap().header.key.client_port);
        }
        ports
    }

    /// The slot with this index of every CPU.
    fn slot(&self, index: u32) -> Vec<[u8; SLOT]> {
        self.slots.get(&index, 0).unwrap().to_vec()
    }

    fn lost(&self) -> u64 {
        self.counters.get(&(Counter::NoScratch as u32), 0).unwrap().iter().sum()
    }
}

#[test]
fn a_program_leaves_the_scratch_of_a_preempted_one_alone() {
    crate::need_root!();
    // Held by one program, with a partly written record.
    let taken: [u8; SLOT] = std::array::from_fn(|at| if at < 8 { u8::from(at == 0) } else { 0xa5 });
    for program in PROGRAMS {
        let mut bench = Bench::load(program);
        let name = bench.name;
        let cpus = bench.slot(0).len();
        for busy in 0..SLOTS {
            let port = 40_000 + u16::try_from(busy).unwrap();
            assert_eq!(bench.open(port), [port], "{name}, {busy} slots taken");
            for index in 0..SLOTS {
                let slots = bench.slot(index);
                if index < busy {
                    assert!(slots.iter().all(|slot| *slot == taken), "{name}: slot {index} of {busy} was written to");
                } else {
                    assert!(slots.iter().all(|slot| slot[..8] == [0; 8]), "{name}: slot {index} of {busy} is not free");
                }
            }
            bench.slots.set(busy, PerCpuValues::try_from(vec![taken; cpus]).unwrap(), 0).unwrap();
        }
        assert_eq!(bench.lost(), 0, "{name}");
        assert_eq!(bench.open(50_000), [0_u16; 0], "{name}: a record without a scratch");
        assert_eq!(bench.lost(), 1, "{name}: the loss is counted");
        for index in 0..SLOTS {
            assert!(bench.slot(index).iter().all(|slot| *slot == taken), "{name}: slot {index} was written to");
        }
    }
}
