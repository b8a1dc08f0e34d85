//! The daemon compared with other monitors on the same replayed traffic.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;

use super::pairs::Spread;
use super::plan::Plan;
use super::replay::{self, Recording, Sent, Speed, Wire};
use super::site::Site;
use super::watcher::{Account, Watcher};
use super::{cpu, table};

const RATE: u32 = 50_000;

/// Result of one replay with one monitor.
#[derive(Clone, Copy, Debug)]
struct Round {
    sent: Sent,
    /// CPU time of the monitor's process.
    process: Duration,
    /// CPU time of the whole machine.
    machine: Duration,
    account: Account,
    sessions: u64,
}

/// Measures every monitor at every speed and returns one table per speed.
pub fn section(site: &Site, plan: &Plan) -> Result<String> {
    if !replay::possible() {
        return Ok("**Beside others.** Not measured: tcpreplay, tcpdump or ethtool is not installed.".to_owned());
    }
    eprintln!("bench-live: recording");
    let recording = Recording::make(site, plan)?;
    let wire = Wire::create()?;
    let versions: Vec<_> = [Watcher::Tcpdump, Watcher::Suricata]
        .into_iter()
        .map(|watcher| {
            format!("{} {}", watcher.name(), watcher.version().unwrap_or_else(|| "(not installed)".to_owned()))
        })
        .collect();
    let mut text = format!(
        "**Beside others.** {}, on a recording of {} real sessions ({} packets: {} short ones, {} with a body of 1 MB, \
         one that goes on under TLS with 20 MB) that tcpreplay sends into a veth pair, every loop between other addresses. \
         Each watcher is alone at the receiving end, the median of {} rounds in turns. tcpdump writes to a file, with its \
         default buffer and the filter `tcp port 25 or tcp port 587`; Suricata has the same filter, two rules for SMTP, and writes \
         alerts only. \"Process\" is the watcher's own user and system time, \"whole machine\" what all CPUs were busier than in the \
         same replay that nobody watches (kernel programs, copies and interrupts are in it; so is the noise, which is \
         what the row \"nobody\" spreads). Sessions are expected as often as they were sent.\n",
        versions.join(", "),
        table::thousands(as_figure(recording.sessions)),
        table::thousands(as_figure(recording.packets)),
        table::thousands(as_figure(plan.recorded_sessions)),
        plan.recorded_bodies,
        plan.rounds
    );
    for (speed, loops, name) in [
        (Speed::Top, plan.loops, "As fast as tcpreplay can".to_owned()),
        (Speed::Rate(RATE), 1, format!("At {} packets/s", table::thousands(f64::from(RATE)))),
    ] {
        write!(text, "\n{name}:\n\n{}", at_speed(site, &wire, &recording, plan, loops, speed)?)?;
    }
    Ok(text)
}

fn at_speed(site: &Site, wire: &Wire, recording: &Recording, plan: &Plan, loops: u64, speed: Speed) -> Result<String> {
    let mut rounds: Vec<(Watcher, Vec<Round>)> = Watcher::ALL.map(|watcher| (watcher, Vec::new())).into();
    for at in 1..=plan.rounds {
        for (watcher, rounds) in &mut rounds {
            if watcher.version().is_none() {
                continue;
            }
            let round = round(site, wire, recording, *watcher, loops, speed)?;
            eprintln!("bench-live: {speed:?}, round {at}, {}: {round:?}", watcher.name());
            rounds.push(round);
        }
    }
    let middle = |watcher: Watcher, figure: fn(&Round) -> f64| {
        let found = rounds.iter().find(|(other, rounds)| *other == watcher && !rounds.is_empty());
        found.map(|(_, rounds)| Spread::of(rounds.iter().map(figure).collect()))
    };
    let idle = middle(Watcher::None, |round| round.machine.as_secs_f64());
    let goal = middle(Watcher::Tcpdump, |round| round.process.as_secs_f64()).map(|cpu| cpu.median);
    let mut text = HEAD.to_owned();
    for (watcher, rounds) in &rounds {
        text.push_str(&row(*watcher, rounds, idle, goal));
    }
    Ok(text)
}

const HEAD: &str = "\
| watched by | packets/s sent | process | whole machine | per packet, process | per packet, machine | lost by it | not arrived | sessions | aim | |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---|
";

fn row(watcher: Watcher, rounds: &[Round], idle: Option<Spread>, tcpdump: Option<f64>) -> String {
    if rounds.is_empty() {
        return format!("| {} | not installed | | | | | | | | | |\n", watcher.name());
    }
    let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure).collect());
    let sum = |figure: fn(&Round) -> f64| rounds.iter().map(figure).sum::<f64>();
    let packets = of(|round| as_figure(round.sent.packets)).median;
    let process = of(|round| round.process.as_secs_f64()).median;
    let machine = of(|round| round.machine.as_secs_f64());
    let idle = idle.unwrap_or(machine);
    let added = if watcher == Watcher::None {
        format!("{:.2} s ({:.2} to {:.2})", machine.median, machine.least, machine.greatest)
    } else {
        format!("{:+.2} s", machine.median - idle.median)
    };
    let per_packet = |seconds: f64| format!("{:.0} ns", seconds / packets * 1e9);
    let lost = sum(|round| round.account.lost);
    let sessions = sum(|round| round.account.sessions.unwrap_or_default());
    let expected = sum(|round| as_figure(round.sessions));
    let seen = if watcher.is_ours() {
        format!("{} of {}", table::thousands(sessions), table::thousands(expected))
    } else {
        "–".to_owned()
    };
    let (aim, verdict) =
        if watcher.is_ours() { aim(process, tcpdump, lost, sessions - expected) } else { Default::default() };
    format!(
        "| {} | {} | {process:.2} s | {added} | {} | {} | {} | {} | {seen} | {aim} | {verdict} |\n",
        watcher.name(),
        table::thousands(of(|round| as_figure(round.sent.packets) / round.sent.seconds).median),
        per_packet(process),
        if watcher == Watcher::None { "–".to_owned() } else { per_packet(machine.median - idle.median) },
        table::thousands(lost),
        table::thousands(sum(|round| as_figure(round.sent.packets) - as_figure(round.sent.arrived))),
    )
}

/// Checks the aim: CPU time at most that of tcpdump, nothing lost, every session counted.
fn aim(process: f64, tcpdump: Option<f64>, lost: f64, sessions: f64) -> (String, String) {
    let mut missed = Vec::new();
    if let Some(tcpdump) = tcpdump
        && process > tcpdump
    {
        missed.push(format!("{:.2} s ({:.1} times tcpdump's)", process - tcpdump, process / tcpdump.max(0.01)));
    }
    if lost > 0.0 {
        missed.push(format!("{} records", table::thousands(lost)));
    }
    if sessions != 0.0 {
        missed.push(format!("{sessions:+.0} sessions"));
    }
    let verdict = if missed.is_empty() { "met".to_owned() } else { format!("**missed** by {}", missed.join(", ")) };
    ("process ≤ tcpdump's, nothing lost".to_owned(), verdict)
}

fn round(site: &Site, wire: &Wire, recording: &Recording, watcher: Watcher, loops: u64, speed: Speed) -> Result<Round> {
    let running = watcher.start(site, &wire.receiver)?;
    let (process, machine) = (running.cpu()?, cpu::machine()?);
    let sent = wire.replay(recording, loops, speed)?;
    running.settle();
    let (process, machine) = (running.cpu()?.saturating_sub(process), cpu::machine()?.saturating_sub(machine));
    let sessions = recording.sessions * loops;
    let account = running.end(as_figure(sessions))?;
    Ok(Round { sent, process, machine, account, sessions })
}

#[expect(clippy::cast_precision_loss, reason = "some millions")]
fn as_figure(count: u64) -> f64 {
    count as f64
}
