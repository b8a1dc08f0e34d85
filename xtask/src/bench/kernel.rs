//! What the kernel programs cost, beside a program that does nothing, in one run.
//!
//! Every figure is the kernel's own measure (`BPF_PROG_TEST_RUN`, which repeats the program over one packet). The rounds of
//! all cases are interleaved, so that a slow moment of the machine meets all of them, and the least round of each counts.

use std::{
    fmt::Write as _,
    fs,
    os::fd::{AsFd as _, BorrowedFd},
};

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

struct Case {
    name: &'static str,
    packet: Vec<u8>,
    /// What brings the flow into its state.
    before: Vec<Vec<u8>>,
    repeat: u32,
    goal: Option<f64>,
}

/// Measures, and gives the table.
pub fn section() -> anyhow::Result<String> {
    let object = fs::read(crate::host::workspace().join("smtpwatch/bpf/smtpwatch.bpf.o"))
        .context("there is no kernel object: run `cargo xtask build-ebpf`")?;
    let mut table = format!(
        "Nanoseconds per packet, the least of {ROUNDS} interleaved rounds.\n\n\
         | program | packet | ns | beside the empty program | aim |\n|---|---|---:|---:|---:|\n"
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
    let mut baseline = u32::MAX;
    let mut least = vec![u32::MAX; cases.len()];
    for _ in 0..ROUNDS {
        baseline = baseline.min(test_run(empty.as_fd(), &cases[0].packet, REPEAT)?.duration_ns);
        for (case, least) in cases.iter().zip(&mut least) {
            prepare(ours.as_fd(), case)?;
            while ring.next().is_some() {}
            let run = test_run(ours.as_fd(), &case.packet, case.repeat)?;
            let records = std::iter::from_fn(|| ring.next().map(drop)).count();
            let forwarded = case.repeat == REPEAT_FORWARDED;
            ensure!(
                if forwarded { records >= REPEAT_FORWARDED as usize } else { records == 0 },
                "{}: {records} records, so this is not what was to be measured",
                case.name
            );
            *least = (*least).min(run.duration_ns);
        }
    }
    writeln!(table, "| empty | any | {baseline} | 1.00 | |")?;
    for (case, least) in cases.iter().zip(least) {
        let ratio = f64::from(least) / f64::from(baseline.max(1));
        let goal = case.goal.map_or_else(String::new, |goal| format!("≤ {goal:.2}"));
        writeln!(table, "| `{name}` | {} | {least} | {ratio:.2} | {goal} |", case.name)?;
    }
    Ok(())
}

fn prepare(program: BorrowedFd<'_>, case: &Case) -> anyhow::Result<()> {
    for packet in &case.before {
        test_run(program, packet, 1)?;
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let mail = Packet { payload: b"EHLO gw.example.org\r\n".to_vec(), flags: 0x18, ..Packet::default() };
    let data = vec![b'x'; 1_400];
    let web = Packet { source_port: 443, target_port: 51_000, payload: data.clone(), ..mail.clone() };
    let syn = Packet { flags: 0x02, seq: 0, payload: Vec::new(), ..mail.clone() };
    // A flow joined midstream has a small budget: this many octets spend it, and the flow is muted.
    let muted = Packet { source_port: 42_000, payload: data, ..mail.clone() };
    let muted_v6 = Packet { v6: true, ..muted.clone() };
    let another = Packet { seq: 77, ..syn.clone() };
    let spend = |packet: &Packet| vec![packet.ethernet(); 8];
    // What remains when nothing is decided: one bounds check, one comparison, one counter.
    let mut not_ip = web.ethernet();
    not_ip[12..14].copy_from_slice(&[0x88, 0xcc]);
    vec![
        Case { name: "not IP", packet: not_ip, before: Vec::new(), repeat: REPEAT, goal: None },
        Case { name: "not mail", packet: web.ethernet(), before: Vec::new(), repeat: REPEAT, goal: Some(1.1) },
        Case {
            name: "mail, muted (IPv4)",
            packet: muted.ethernet(),
            before: spend(&muted),
            repeat: REPEAT,
            goal: Some(1.6),
        },
        Case {
            name: "mail, muted (IPv6)",
            packet: muted_v6.ethernet(),
            before: spend(&muted_v6),
            repeat: REPEAT,
            goal: Some(1.6),
        },
        Case {
            name: "mail, forwarded",
            packet: mail.ethernet(),
            // Another SYN is another life of the flow, with its whole budget.
            before: vec![another.ethernet(), syn.ethernet()],
            repeat: REPEAT_FORWARDED,
            goal: None,
        },
    ]
}
