//! Cost of the kernel programs, compared with an empty program, in one run.
//!
//! Every figure is the kernel's own measure (`BPF_PROG_TEST_RUN`, which repeats the program over one packet). The
//! rounds of all cases are interleaved, so that a slow moment of the machine affects all of them, and the fastest round
//! of each counts.

use std::{fmt::Write as _, fs, os::fd::AsFd as _};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::RingBuf,
    programs::{Program, ProgramFd},
};
use smtpwatch_testkit::{
    packet::Packet,
    test_run::{Kind, empty_program, test_run},
};

const ROUNDS: usize = 40;
const REPEAT: u32 = 100_000;
/// Repetitions for a forwarded packet. It fills the ring, which has room for some thousands, and uses a flow's budget:
/// few per round, many rounds.
const REPEAT_FORWARDED: u32 = 1_000;

/// The sender of a packet: the client's packets pass the measured program, the server's that of the other direction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Server,
}

/// One class of packets, sent by the client.
struct Case {
    name: &'static str,
    packet: Vec<u8>,
    /// Packets that bring the flow into its state.
    before: Vec<(From, Vec<u8>)>,
    forwarded: bool,
    goal: Option<f64>,
}

/// Runs the measurement and returns its table.
pub fn section() -> anyhow::Result<String> {
    let object = fs::read(crate::host::workspace().join("smtpwatch-capture/bpf/smtpwatch.bpf.o"))
        .context("there is no kernel object: run `cargo xtask build-ebpf`")?;
    let mut table = format!(
        "Nanoseconds per packet, the least of {ROUNDS} interleaved rounds of {REPEAT} packets (forwarded ones: of \
         {REPEAT_FORWARDED}); what the program adds to one that is empty, and the ratio of the two. The kernel tells whole nanoseconds.\n\n\
         | program | packet | ns | added | ratio | aim |\n|---|---|---:|---:|---:|---:|\n"
    );
    let (ingress, egress) = ("smtpwatch_tc_ingress", "smtpwatch_tc_egress");
    for (name, kind, other) in
        [("smtpwatch_xdp", Kind::Xdp, egress), (ingress, Kind::Tc, egress), (egress, Kind::Tc, ingress)]
    {
        measure(&object, (name, kind), other, &mut table)?;
    }
    Ok(table)
}

/// Index of an interface other than loopback, where arriving packets would repeat those that have left. Nothing is
/// attached to it.
fn interface() -> anyhow::Result<u32> {
    for entry in fs::read_dir("/sys/class/net").context("cannot list interfaces")? {
        // Some entries are not interfaces.
        let Ok(index) = fs::read_to_string(entry?.path().join("ifindex")) else { continue };
        let index = index.trim().parse()?;
        if index > 1 {
            return Ok(index);
        }
    }
    anyhow::bail!("there is no interface but loopback")
}

/// Loads a program of the object.
fn load(object: &mut Ebpf, name: &str) -> anyhow::Result<ProgramFd> {
    let program = object.program_mut(name).context("no such program")?;
    Ok(match program {
        Program::Xdp(program) => program.load().and_then(|()| program.fd()?.try_clone().map_err(Into::into)),
        Program::SchedClassifier(program) => {
            program.load().and_then(|()| program.fd()?.try_clone().map_err(Into::into))
        }
        _ => anyhow::bail!("{name} is of another type"),
    }?)
}

fn measure(object: &[u8], (name, kind): (&str, Kind), other: &str, table: &mut String) -> anyhow::Result<()> {
    let interface = interface()?;
    let mut object = EbpfLoader::new()
        .override_global("AYA_LOG_LEVEL", &0_u8, true)
        .load(object)
        .context("the kernel object does not load; it takes root")?;
    let (ours, other) = (load(&mut object, name)?, load(&mut object, other)?);
    let mut ring: RingBuf<_> = object.take_map("RING").context("no ring")?.try_into()?;
    let empty = empty_program(kind, "empty").context("cannot load an empty program")?;
    let cases = cases();
    let (mut baseline, mut least) = (u32::MAX, vec![u32::MAX; cases.len()]);
    for _ in 0..ROUNDS {
        baseline = baseline.min(test_run(empty.as_fd(), kind, &cases[0].packet, REPEAT, interface)?.duration_ns);
        for (case, least) in cases.iter().zip(&mut least) {
            for (from, packet) in &case.before {
                match from {
                    From::Client => test_run(ours.as_fd(), kind, packet, 1, interface)?,
                    From::Server => test_run(other.as_fd(), Kind::Tc, packet, 1, interface)?,
                };
            }
            while ring.next().is_some() {}
            let repeat = if case.forwarded { REPEAT_FORWARDED } else { REPEAT };
            *least = (*least).min(test_run(ours.as_fd(), kind, &case.packet, repeat, interface)?.duration_ns);
            let records = std::iter::from_fn(|| ring.next().map(drop)).count();
            ensure!(
                // A body is announced by one record.
                if case.forwarded { records >= REPEAT_FORWARDED as usize } else { records <= 1 },
                "{}: {records} records, so this is not what was to be measured",
                case.name
            );
        }
    }
    writeln!(table, "| empty | any | {baseline} | | 1.00 | |")?;
    for (case, least) in cases.iter().zip(least) {
        let goal = case.goal.map_or_else(String::new, |goal| format!("≤ {goal:.2}"));
        let (added, ratio) = (i64::from(least) - i64::from(baseline), f64::from(least) / f64::from(baseline.max(1)));
        writeln!(table, "| `{name}` | {} | {least} | {added} | {ratio:.2} | {goal} |", case.name)?;
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let mail = Packet { flags: 0x18, payload: b"EHLO gw.example.org\r\n".to_vec(), ..Packet::default() };
    let data = vec![b'x'; 1_400];
    let web = Packet { source_port: 443, target_port: 51_000, payload: data.clone(), ..mail.clone() };
    // The minimum path: one bounds check, one comparison, one counter.
    let mut not_ip = web.ethernet();
    not_ip[12..14].copy_from_slice(&[0x88, 0xcc]);
    // A flow joined midstream has a small budget: this many bytes use it up, and the flow is muted.
    let muted = Packet { source_port: 42_000, payload: data.clone(), ..mail.clone() };
    let muted_v6 = Packet { v6: true, ..muted.clone() };
    let muted_ack = Packet { payload: Vec::new(), flags: 0x10, ..muted.clone() };
    // One arriving packet is enough: a flow from which nothing has left is muted after it.
    let spend = |packet: &Packet| vec![(From::Client, packet.ethernet()); 8];
    let reopened = |client: &Packet| {
        // A new SYN of the leaving side starts a new flow instance with its whole budget.
        let syn = |seq| Packet { flags: 0x02, seq, payload: Vec::new(), ..client.clone() }.ethernet();
        let syn_ack =
            |seq, ack| Packet { flags: 0x12, seq, ack, payload: Vec::new(), ..client.clone().reversed() }.ethernet();
        let (client, server) = (From::Client, From::Server);
        vec![(client, syn(77)), (server, syn_ack(77, 78)), (client, syn(0)), (server, syn_ack(0, 1))]
    };
    let clear = mail.clone();
    let ack = Packet { flags: 0x10, payload: Vec::new(), source_port: 42_001, ..mail.clone() };
    let body = Packet { source_port: 42_002, seq: 7, payload: data, ..mail.clone() };
    let begin_body = {
        let command = Packet { seq: 1, payload: b"DATA\r\n".to_vec(), ..body.clone() };
        let reply = Packet { seq: 1, ack: 7, payload: b"354 go\r\n".to_vec(), ..body.clone().reversed() };
        let talk = [(From::Client, command), (From::Server, reply), (From::Client, body.clone())];
        [reopened(&body), talk.map(|(from, packet)| (from, packet.ethernet())).into()].concat()
    };
    let still = |name, packet: &Packet, before, goal| Case {
        name,
        packet: packet.ethernet(),
        before,
        forwarded: false,
        goal: Some(goal),
    };
    let told = |name, packet: &Packet| Case {
        name,
        packet: packet.ethernet(),
        before: reopened(packet),
        forwarded: true,
        goal: Some(4.0),
    };
    vec![
        Case { name: "not IP", packet: not_ip, before: Vec::new(), forwarded: false, goal: None },
        still("not mail", &web, Vec::new(), 1.05),
        still("TLS bulk, muted (IPv4)", &muted, spend(&muted), 1.5),
        still("TLS bulk, muted (IPv6)", &muted_v6, spend(&muted_v6), 1.5),
        still("pure ACK, muted (IPv4)", &muted_ack, spend(&muted), 1.5),
        still("body in cleartext, muted (IPv4)", &body, begin_body, 1.5),
        told("pure ACK of the dialogue, its header forwarded", &ack),
        told("line of the dialogue, forwarded", &clear),
    ]
}
