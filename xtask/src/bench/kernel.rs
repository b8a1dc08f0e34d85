//! What the kernel programs cost, beside a program that does nothing, in one run.
//!
//! Every figure is the kernel's own measure (`BPF_PROG_TEST_RUN`, which repeats the program over one packet). The rounds of
//! all cases are interleaved, so that a slow moment of the machine meets all of them, and the least round of each counts.

use std::{fmt::Write as _, fs, os::fd::AsFd as _};

use anyhow::{Context as _, ensure};
use aya::{EbpfLoader, maps::RingBuf, programs::Program};

#[path = "../../../tests/kernel/packet.rs"]
#[expect(dead_code, reason = "the tests of the kernel programs use more of it")]
mod packet;
#[path = "../../../tests/kernel/test_run.rs"]
mod test_run;

use packet::Packet;
use test_run::{Kind, empty_program, test_run};

const ROUNDS: usize = 40;
const REPEAT: u32 = 100_000;
/// A forwarded packet fills the ring, which has room for some thousands, and a flow's budget: few at once, many rounds.
const REPEAT_FORWARDED: u32 = 1_000;

/// One class of packets.
struct Case {
    name: &'static str,
    packet: Vec<u8>,
    /// What brings the flow into its state.
    before: Vec<Vec<u8>>,
    forwarded: bool,
    goal: Option<f64>,
}

/// Measures, and gives the table.
pub fn section() -> anyhow::Result<String> {
    let object = fs::read(crate::host::workspace().join("smtpwatch/bpf/smtpwatch.bpf.o"))
        .context("there is no kernel object: run `cargo xtask build-ebpf`")?;
    let mut table = format!(
        "Nanoseconds per packet, the least of {ROUNDS} interleaved rounds of {REPEAT} packets (forwarded ones: of \
         {REPEAT_FORWARDED}); what the program adds to one that is empty, and the ratio of the two. The kernel tells whole nanoseconds.\n\n\
         | program | packet | ns | added | ratio | aim |\n|---|---|---:|---:|---:|---:|\n"
    );
    for (name, kind) in
        [("smtpwatch_xdp", Kind::Xdp), ("smtpwatch_tc_ingress", Kind::Tc), ("smtpwatch_tc_egress", Kind::Tc)]
    {
        measure(&object, name, kind, &mut table)?;
    }
    Ok(table)
}

fn measure(object: &[u8], name: &str, kind: Kind, table: &mut String) -> anyhow::Result<()> {
    let mut object = EbpfLoader::new()
        .override_global("AYA_LOG_LEVEL", &0_u8, true)
        .load(object)
        .context("the kernel object does not load; it takes root")?;
    let program = object.program_mut(name).context("no such program")?;
    let ours = match program {
        Program::Xdp(program) => program.load().and_then(|()| program.fd()?.try_clone().map_err(Into::into)),
        Program::SchedClassifier(program) => {
            program.load().and_then(|()| program.fd()?.try_clone().map_err(Into::into))
        }
        _ => anyhow::bail!("{name} is of another type"),
    }?;
    let mut ring: RingBuf<_> = object.take_map("RING").context("no ring")?.try_into()?;
    let empty = empty_program(kind, "empty").context("cannot load an empty program")?;
    let cases = cases();
    let (mut baseline, mut least) = (u32::MAX, vec![u32::MAX; cases.len()]);
    for _ in 0..ROUNDS {
        baseline = baseline.min(test_run(empty.as_fd(), &cases[0].packet, REPEAT)?.duration_ns);
        for (case, least) in cases.iter().zip(&mut least) {
            for packet in &case.before {
                test_run(ours.as_fd(), packet, 1)?;
            }
            while ring.next().is_some() {}
            let repeat = if case.forwarded { REPEAT_FORWARDED } else { REPEAT };
            *least = (*least).min(test_run(ours.as_fd(), &case.packet, repeat)?.duration_ns);
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
    // What remains when nothing is decided: one bounds check, one comparison, one counter.
    let mut not_ip = web.ethernet();
    not_ip[12..14].copy_from_slice(&[0x88, 0xcc]);
    // A flow joined midstream has a small budget: this many octets spend it, and the flow is muted.
    let muted = Packet { source_port: 42_000, payload: data.clone(), ..mail.clone() };
    let muted_v6 = Packet { v6: true, ..muted.clone() };
    let muted_ack = Packet { payload: Vec::new(), flags: 0x10, ..muted.clone() };
    let spend = |packet: &Packet| vec![packet.ethernet(); 8];
    let reopened = |client: &Packet| {
        // Another SYN is another life of the flow, with its whole budget.
        let syn = Packet { flags: 0x02, seq: 0, payload: Vec::new(), ..client.clone() };
        vec![Packet { seq: 77, ..syn.clone() }.ethernet(), syn.ethernet()]
    };
    let clear = mail.clone();
    let ack = Packet { flags: 0x10, payload: Vec::new(), source_port: 42_001, ..mail.clone() };
    let body = Packet { source_port: 42_002, seq: 7, payload: data, ..mail.clone() };
    let begin_body = {
        let command = Packet { seq: 1, payload: b"DATA\r\n".to_vec(), ..body.clone() };
        let server = Packet {
            source: body.target,
            target: body.source,
            source_port: body.target_port,
            target_port: body.source_port,
            ..body.clone()
        };
        let answer = Packet { flags: 0x12, seq: 0, payload: Vec::new(), ..server.clone() };
        let reply = Packet { seq: 1, payload: b"354 go\r\n".to_vec(), ..server };
        let talk = [answer, command, reply, body.clone()].map(|packet| packet.ethernet());
        [reopened(&body), talk.into()].concat()
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
        still("body in clear, muted (IPv4)", &body, begin_body, 1.5),
        told("pure ACK of the dialogue, its header forwarded", &ack),
        told("line of the dialogue, forwarded", &clear),
    ]
}
