//! Measures detection latency: from the kernel's time stamp of an EHLO reply to the finding on standard output.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use smtpwatch_tests::daemon::{Arrival, Daemon};
use smtpwatch_tests::load::{self, Messages, Sink};
use smtpwatch_tests::netns::Namespace;
use smtpwatch_tests::scripted::{Script, Server};
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{command, smtp};

use super::plan::Plan;
use super::site::{EXCHANGER, LOADED, Place, Site};
use super::table;

/// Greatest allowed 99th percentile.
const AIM: Duration = Duration::from_millis(5);
/// Pause between two sessions.
const PAUSE: Duration = Duration::from_millis(8);
const LIMIT: Duration = Duration::from_secs(20);
/// Kind of finding measured. It is final at the EHLO reply itself: no later event can change it.
const KIND: &str = "auth-offered-plaintext";

/// Runs the measurement and returns its table.
pub fn section(site: &Site, plan: &Plan) -> Result<String> {
    let identity = Identity::generate("mx1.example.net")?;
    let ehlo = ["mx1.example.net", "SIZE 35882577", "STARTTLS", "AUTH PLAIN LOGIN"].map(str::to_owned).to_vec();
    let script = Script { greeting: "220 mx1.example.net ESMTP".to_owned(), ehlo };
    let _server = Server::start(&site.path.exchanger, EXCHANGER, &identity, script)?;
    let mut rows = String::new();
    {
        let daemon = site.daemon(Place::CLIENT)?;
        row(&mut rows, "nothing else", measured(&daemon, &site.path.gateway, plan.latencies)?)?;
    }
    {
        let _sink = Sink::start(&site.path.exchanger, LOADED)?;
        let daemon = site.daemon(Place::CLIENT)?;
        // More messages than can be sent during the measurement; the load ends with it.
        let load = Messages { count: 100_000_000, octets: 1_000, parallel: 20 };
        let mut load = load::background(&site.path.gateway, load, LOADED)?;
        daemon.metric_reaches("smtpwatch_sessions_total", &[], 1_000.0, LIMIT)?;
        let latencies = measured(&daemon, &site.path.gateway, plan.latencies)?;
        ensure!(!load.ended(), "the load ended: {}", load.read("output.log"));
        row(&mut rows, "`smtp-source` to another server, as fast as it can", latencies)?;
    }
    Ok(format!(
        "**Latency.** A scripted server offers AUTH PLAIN before TLS, and the finding `{KIND}` is final at its EHLO reply. \
         Measured is from the kernel's time stamp of that packet (the finding's `time`) until the reader of the daemon's \
         standard output has the line, one session about every {} ms. Under load, generator, server, daemon and reader share \
         the CPUs.\n\n\
         | beside it | sessions | p50 | p99 | greatest | aim | |\n|---|---:|---:|---:|---:|---:|---|\n{rows}",
        PAUSE.as_millis()
    ))
}

fn row(rows: &mut String, beside: &str, mut latencies: Vec<i64>) -> Result<()> {
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get((latencies.len() * percent).div_ceil(100).saturating_sub(1));
    let at = |percent| at(percent).copied().context("no latency was measured");
    let (p50, p99, greatest) = (at(50)?, at(99)?, at(100)?);
    #[expect(clippy::cast_precision_loss, reason = "a difference of two times")]
    let shown = |nanoseconds: i64| format!("{:.2} ms", nanoseconds as f64 / 1e6);
    let verdict = if u128::try_from(p99).unwrap_or_default() <= AIM.as_nanos() {
        "met".to_owned()
    } else {
        format!("**missed** by {}", shown(p99 - i64::try_from(AIM.as_nanos())?))
    };
    eprintln!("bench-live: latency, {beside}: p50 {}, p99 {}, greatest {}", shown(p50), shown(p99), shown(greatest));
    writeln!(
        rows,
        "| {beside} | {} | {} | {} | {} | p99 ≤ {} ms | {verdict} |",
        table::thousands(f64::from(u32::try_from(latencies.len())?)),
        shown(p50),
        shown(p99),
        shown(greatest),
        AIM.as_millis()
    )?;
    Ok(())
}

/// Latency of every finding of `sessions` sessions, nanoseconds.
fn measured(daemon: &Daemon<'_>, client: &Namespace, sessions: usize) -> Result<Vec<i64>> {
    client.run(|| {
        (0..sessions).try_for_each(|_| {
            std::thread::sleep(PAUSE);
            session(EXCHANGER)
        })
    })??;
    let ours = || daemon.arrivals().into_iter().filter(|arrival| arrival.finding["kind"] == KIND).collect::<Vec<_>>();
    let arrivals = command::eventually(LIMIT, &format!("{sessions} findings"), || {
        Ok(Some(ours()).filter(|arrivals| arrivals.len() >= sessions))
    });
    let arrivals = arrivals.with_context(|| format!("{} came; log:\n{}", ours().len(), daemon.log()))?;
    ensure!(arrivals.len() == sessions, "{} findings in {sessions} sessions", arrivals.len());
    arrivals.iter().map(latency).collect()
}

/// One client session: greeting, EHLO, QUIT, without mail.
fn session(server: SocketAddr) -> Result<()> {
    let mut clear = smtp::connect(server)?;
    smtp::ask(&mut clear, "EHLO gateway.example.org")?;
    smtp::ask(&mut clear, "QUIT").map(drop)
}

fn latency(arrival: &Arrival) -> Result<i64> {
    let time: Timestamp = arrival.finding["time"].as_str().context("a finding without time")?.parse()?;
    Ok(i64::try_from(Timestamp::try_from(arrival.at)?.as_nanosecond() - time.as_nanosecond())?)
}
