//! The daemon is killed during traffic: mail is not affected, nothing remains in the kernel, and the history
//! survives.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use smtpwatch_tests::attacker::Mode;
use smtpwatch_tests::command::{self, eventually};
use smtpwatch_tests::daemon::{self, Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Namespace};
use smtpwatch_tests::{Skip, scenario, smtp};

use crate::set_up::{DELIVERIES, FINDING, Home, Relay, check};

/// Longest interval between commits of the store; older history survives a kill.
const COMMIT: Duration = Duration::from_millis(2500);
/// Messages sent after the kill, and the maximum before it.
const AFTER: usize = 20;
const MOST_BEFORE: usize = 2000;

/// XDP is the only hook that ip shows.
fn by_xdp() -> Options<'static> {
    Options { ingress: "xdp", ..Options::default() }
}

#[test]
fn killed_in_mid_traffic() {
    scenario("killed_in_mid_traffic", || {
        let relay = Relay::create(Family::V4)?;
        let home = Home::create("survival")?;
        let gateway = &relay.path.gateway;
        ensure!(attached(gateway)?.is_empty(), "attached before the daemon: {}", attached(gateway)?);
        let mut first = Daemon::start(gateway, GATEWAY_INTERFACE, &home.0, by_xdp())?;
        ensure!(!attached(gateway)?.is_empty(), "the daemon says ready, and nothing is attached:\n{}", first.log());
        relay.deliver(8)?;
        first.metric_reaches("smtpwatch_sessions_total", &[("result", "tls")], 8.0, DELIVERIES)?;
        std::thread::sleep(COMMIT);

        // At the kill, one session is in the middle of its dialogue and a batch of others is in progress.
        let server = SocketAddr::new(Family::V4.exchanger(), 25);
        let mut session = gateway.run(|| smtp::connect(server))??;
        gateway.run(|| smtp::ask(&mut session, "EHLO gateway.example.org"))??;
        let (before, dead) = (relay.delivered(), AtomicBool::new(false));
        let batch = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| traffic(&relay, &dead));
            let under_way = first.metric_reaches("smtpwatch_sessions_total", &[("result", "tls")], 12.0, DELIVERIES);
            let killed = first.kill();
            dead.store(true, Ordering::SeqCst);
            let batch = traffic.join().map_err(|_| anyhow!("the submission panicked"))?;
            under_way.and(killed).and(batch)
        })?;
        eventually(DELIVERIES, "every message of the batch", || {
            Ok((relay.delivered() >= before + batch).then_some(()))
        })?;
        for (command, code) in
            [("MAIL FROM:<anna@example.org>", "250"), ("RCPT TO:<bob@example.net>", "250"), ("QUIT", "221")]
        {
            let reply = gateway.run(|| smtp::ask(&mut session, command))??.concat();
            ensure!(reply.starts_with(code), "the open session: {command}: {reply}");
        }
        eventually(Duration::from_secs(5), "the kernel to detach everything", || {
            Ok(attached(gateway)?.is_empty().then_some(()))
        })
        .with_context(|| attached(gateway).unwrap_or_default())?;

        let config = home.0.join("smtpwatch.toml");
        let config = config.to_str().context("path")?;
        let list = daemon::smtpwatch(&["baseline", "list", "--config", config, "--format", "json"])?;
        let rows = list.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let sessions = rows.filter(|row| row["peer"] == "198.51.100.25").find_map(|row| row["sessions"].as_u64());
        ensure!(sessions.is_some_and(|sessions| sessions >= 8), "the history lost sessions: {list}");

        let second = Daemon::start(gateway, GATEWAY_INTERFACE, &home.0, by_xdp())?;
        relay.attacker.set_mode(Mode::Delete);
        relay.deliver(1)?;
        let found = second.finding("starttls-stripped", FINDING, |_| true)?;
        check(&found, &[("/evidence", json!("regression")), ("/expected/source", json!("history"))])
    });
}

/// Sends one message after the other until the daemon is dead, then [`AFTER`] more; returns their number.
fn traffic(relay: &Relay, dead: &AtomicBool) -> Result<usize> {
    let mut sent = 0;
    while !dead.load(Ordering::SeqCst) {
        ensure!(sent < MOST_BEFORE, "the daemon saw nothing of {sent} messages");
        relay.submit(1)?;
        sent += 1;
    }
    relay.submit(AFTER)?;
    println!("killed after {sent} messages were submitted; {AFTER} more followed");
    Ok(sent + AFTER)
}

/// The program attached to the gateway's interface, as the kernel reports it; empty if there is none.
fn attached(gateway: &Namespace) -> Result<String> {
    const LIMIT: Duration = Duration::from_secs(60);
    let net = command::run(gateway.command("bpftool").args(["net", "show", "dev", GATEWAY_INTERFACE]), LIMIT)
        .map_err(|error| Skip(format!("bpftool cannot tell what is attached: {error:#}")))?;
    let lines = net.lines().filter(|line| line.contains(GATEWAY_INTERFACE)).map(str::to_owned);
    let link = gateway.ip(&["-d", "link", "show", "dev", GATEWAY_INTERFACE])?;
    let link = link.lines().filter(|line| line.contains("xdp")).map(str::to_owned);
    let mut found: Vec<String> = lines.chain(link).collect();
    for hook in ["ingress", "egress"] {
        let mut tc = Command::new("tc");
        let out =
            command::output(tc.args(["-n", gateway.name(), "filter", "show", "dev", GATEWAY_INTERFACE, hook]), LIMIT)?;
        found.extend(out.stdout.lines().map(str::to_owned));
    }
    Ok(found.join("\n"))
}
