//! Measures how many sessions per second the daemon costs, and whether it counts all of them.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use smtpwatch_tests::load::{self, Messages, Sink};

use super::pairs::Pairs;
use super::plan::Plan;
use super::site::{Beside, Counts, EXCHANGER, Place, Site};
use super::{cpu, table};

/// Greatest allowed loss, as a fraction.
const AIM: f64 = 0.03;
const OCTETS: u64 = 1_000;
const PARALLEL: u64 = 20;
const LIMIT: Duration = Duration::from_secs(120);
/// Time for the daemon to process what is queued.
const SETTLE: Duration = Duration::from_millis(200);

/// Sessions made and sessions counted during one run of the daemon.
#[derive(Clone, Copy, Debug)]
struct Tally {
    /// Sessions that `smtp-source` made.
    made: u64,
    counts: Counts,
    cpu: Duration,
    elapsed: Duration,
}

/// Runs the measurement and returns both tables.
pub fn section(site: &Site, plan: &Plan) -> Result<String> {
    let _sink = Sink::start(&site.path.exchanger, EXCHANGER)?;
    let (mut rates, mut counted) = (String::new(), String::new());
    // Only the bulk measurement has the rows compared with an empty XDP program, to save time: the cost of the veth
    // copy grows with the bytes.
    let places = || Place::ALL.into_iter().filter(|place| place.beside == Beside::Nothing);
    for place in places() {
        let mut tallies = Vec::new();
        let pairs = Pairs::measure(plan.pairs, &format!("sessions per second, {}", place.describe()), |watched| {
            if watched {
                let tally = watched_run(site, place, plan.sessions)?;
                tallies.push(tally);
                return Ok(tally.rate());
            }
            Ok(rate(plan.sessions, sessions(site, plan.sessions)?))
        })?;
        rates.write_str(&table::pairs_row(
            "`smtp-source` to `smtp-sink`, 1 kB",
            place.describe(),
            "sessions/s",
            &pairs,
            AIM,
        ))?;
        counted.write_str(&count_row(&format!("{} runs", tallies.len()), place, &tallies))?;
    }
    for place in places() {
        let tally = watched_run(site, place, plan.long_sessions)?;
        eprintln!("bench-live: the long run, {}: {tally:?}", place.describe());
        counted.write_str(&count_row("one long run", place, &[tally]))?;
    }
    Ok(format!(
        "**Sessions.** As above, with {} sessions a run, {PARALLEL} at a time, as fast as this machine makes them with \
         generator, server, router and daemon on the same CPUs.\n\n{}{rates}\n\
         Lost is the sum of `smtpwatch_kernel_dropped_total` over all reasons; counted is what \
         `smtpwatch_sessions_total` rose by. The CPU time is the daemon's own (user and system), without its kernel \
         programs.\n\n{COUNT_HEAD}{counted}",
        table::thousands(as_figure(plan.sessions)),
        table::PAIRS_HEAD
    ))
}

const COUNT_HEAD: &str = "\
| runs | mail goes | sessions/s | sessions | counted | records | lost | daemon's CPU | per session | aim | |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|
";

fn watched_run(site: &Site, place: Place, count: u64) -> Result<Tally> {
    let daemon = site.daemon(place)?;
    let before = cpu::process(daemon.pid())?;
    let elapsed = sessions(site, count)?;
    // Wait before the first metrics scrape: repeated scrapes are not part of the measured work.
    std::thread::sleep(SETTLE);
    let cpu = cpu::process(daemon.pid())?.saturating_sub(before);
    let counts = Counts::after(&daemon, as_figure(count))?;
    Ok(Tally { made: count, counts, cpu, elapsed })
}

fn sessions(site: &Site, count: u64) -> Result<Duration> {
    load::source(&site.path.gateway, Messages { count, octets: OCTETS, parallel: PARALLEL }, EXCHANGER, LIMIT)
}

impl Tally {
    fn rate(&self) -> f64 {
        rate(self.made, self.elapsed)
    }
}

fn count_row(what: &str, place: Place, tallies: &[Tally]) -> String {
    let sum = |figure: fn(&Tally) -> f64| tallies.iter().map(figure).sum::<f64>();
    let (made, counted) = (sum(|tally| as_figure(tally.made)), sum(|tally| tally.counts.sessions));
    let (records, lost) = (sum(|tally| tally.counts.forwarded), sum(|tally| tally.counts.dropped));
    let (cpu, elapsed) = (sum(|tally| tally.cpu.as_secs_f64()), sum(|tally| tally.elapsed.as_secs_f64()));
    let missed = [(counted - made, "sessions"), (lost, "records")];
    let missed: Vec<_> =
        missed.iter().filter(|(by, _)| *by != 0.0).map(|(by, what)| format!("{by:+.0} {what}")).collect();
    let verdict = if missed.is_empty() { "met".to_owned() } else { format!("**missed** by {}", missed.join(", ")) };
    format!(
        "| {what} | {} | {} | {} | {} | {} | {} | {cpu:.2} s ({:.0} % of one CPU) | {:.1} µs | all counted, none lost | {verdict} |\n",
        place.describe(),
        table::thousands(made / elapsed),
        table::thousands(made),
        table::thousands(counted),
        table::thousands(records),
        table::thousands(lost),
        cpu / elapsed * 100.0,
        cpu / made * 1e6
    )
}

fn rate(count: u64, elapsed: Duration) -> f64 {
    as_figure(count) / elapsed.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn as_figure(count: u64) -> f64 {
    count as f64
}
