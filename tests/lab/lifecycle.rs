//! The service life cycle: the daemon runs as its own user with three capabilities, reloads, is supervised by the
//! service manager, and stops.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rusqlite::Connection;
use smtpwatch_store::Store;
use smtpwatch_tests::command::{self, eventually};
use smtpwatch_tests::daemon::{Daemon, Options, Privileges, SERVICE_UID, binary, configure, smtpwatch_in};
use smtpwatch_tests::netns::{Family, Path};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{FINDING, Home, SENDER, script};

/// The capabilities that the systemd unit grants.
pub const THREE: &[&str] = &["BPF", "NET_ADMIN", "PERFMON"];
/// CAP_BPF and CAP_NET_ADMIN, as /proc has them (include/uapi/linux/capability.h).
const HOT_PLUG: u64 = (1 << 39) | (1 << 12);
/// By this rule mail in cleartext to this network is a finding.
const RULE: &str = "[[rule]]\npeer = [\"198.51.100.0/24\"]\nstarttls = \"required\"\n";
/// Time limit for a stop by SIGTERM.
const END: Duration = Duration::from_secs(2);
/// Time limit for detecting and repairing a lost store, also on a busy machine.
const NOTICED: Duration = Duration::from_secs(30);
/// Number of attempts.
const TRIALS: usize = 3;
/// Time limit for the end of the process after any signal, also on a busy machine.
const GONE: Duration = Duration::from_secs(180);

/// A gateway whose peer offers no TLS.
struct Site {
    _server: Server,
    address: SocketAddr,
    path: Path,
}

impl Site {
    fn create() -> Result<Self> {
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let ehlo = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000"]);
        let server = Server::start(&path.exchanger, address, &identity, ehlo)?;
        Ok(Self { _server: server, address, path })
    }

    fn send(&self) -> Result<()> {
        self.path.gateway.run(|| smtp::send(self.address, None, SENDER, "bob@example.net"))??;
        Ok(())
    }

    /// Programs and filters attached to the gateway's interfaces.
    fn attached(&self) -> Result<String> {
        let mut links = self.path.gateway.command("ip");
        command::run(links.args(["-details", "link", "show"]), Duration::from_secs(10))
    }
}

/// A directory that every user of the machine can access.
pub fn home(name: &str) -> Result<Home> {
    let path = std::env::temp_dir().join(format!("smtpwatch-{}-{name}", std::process::id()));
    std::fs::create_dir(&path)?;
    Ok(Home(path))
}

/// Capabilities of each thread, as /proc reports them.
fn capabilities(daemon: &Daemon<'_>) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.map(str::to_owned).with_context(|| format!("{name} in {status}"))
        };
        let name = field("Name")?;
        ensure!(field("NoNewPrivs")? == "1" && field("Seccomp")? == "2", "{name} is not confined: {status}");
        let mask = |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(&field(name)?, 16)?);
        ensure!(mask("CapEff")? == mask("CapPrm")? && mask("CapInh")? == 0 && mask("CapAmb")? == 0, "{name}: {status}");
        // Keyed by thread name: several threads of one pool may share a name.
        *found.entry(name).or_default() |= mask("CapPrm")?;
    }
    Ok(found)
}

#[test]
fn a_user_with_three_capabilities_keeps_two_in_one_thread() {
    scenario("a_user_with_three_capabilities_keeps_two_in_one_thread", || {
        let (site, home) = (Site::create()?, home("service")?);
        // XDP is the only hook that ip shows.
        let options = Options {
            ingress: "xdp-generic",
            rules: RULE,
            privileges: Privileges::Service(THREE),
            ..Options::default()
        };
        let before = site.attached()?;
        let mut daemon = Daemon::start(&site.path.gateway, "*", &home.0, options)?;
        ensure!(site.attached()? != before, "nothing is attached");
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid()))?;
        let core: Vec<_> = limits.lines().filter(|line| line.starts_with("Max core file size")).collect();
        ensure!(core.iter().all(|line| line.split_whitespace().nth(4) == Some("0")) && core.len() == 1, "{limits}");
        ensure!(status.contains(&format!("Uid:\t{SERVICE_UID}\t{SERVICE_UID}\t")), "{status}");
        let mut kept = capabilities(&daemon)?;
        ensure!(kept.remove("pipeline") == Some(HOT_PLUG), "{kept:x?}");
        ensure!(kept.len() >= 3 && kept.values().all(|mask| *mask == 0), "{kept:x?}");

        site.send()?;
        daemon.finding("policy-violation", FINDING, |_| true)?;
        // The retained capabilities are sufficient for an interface that is added later.
        site.path.gateway.ip(&["link", "add", "later", "type", "veth"])?;
        daemon.metric_reaches("smtpwatch_probe_attached", &[("interface", "later")], 2.0, FINDING)?;

        let mut took = Vec::new();
        // The kernel detaches from interfaces of all namespaces one after the other, so other tests may delay it.
        while took.len() < TRIALS && took.iter().all(|time| *time >= END) {
            if !took.is_empty() {
                daemon = Daemon::start(&site.path.gateway, "*", &home.0, options)?;
            }
            let ending = Instant::now();
            ensure!(daemon.terminate()?, "it ends with a failure: {}", daemon.log());
            took.push(ending.elapsed());
        }
        ensure!(took.iter().any(|time| *time < END), "SIGTERM took {took:?}");
        site.path.gateway.ip(&["link", "delete", "later"])?;
        ensure!(site.attached()? == before, "something stays attached");
        Ok(())
    });
}

#[test]
fn without_hot_plug_no_capability_is_left() {
    scenario("without_hot_plug_no_capability_is_left", || {
        let (site, home) = (Site::create()?, home("fixed")?);
        let privileges = Privileges::Service(THREE);
        let options = Options { rules: RULE, privileges, settings: "hot_plug = false", ..Options::default() };
        let daemon = Daemon::start(&site.path.gateway, "*", &home.0, options)?;
        let kept = capabilities(&daemon)?;
        ensure!(!kept.is_empty() && kept.values().all(|mask| *mask == 0), "{kept:x?}");
        site.send()?;
        daemon.finding("policy-violation", FINDING, |_| true)?;
        Ok(())
    });
}

#[test]
fn what_is_missing_is_told() {
    scenario("what_is_missing_is_told", || {
        let (site, home) = (Site::create()?, home("missing")?);
        for (given, wanted) in
            [(&[][..], "CAP_BPF"), (&["BPF"], "CAP_NET_ADMIN"), (&["BPF", "NET_ADMIN"], "CAP_PERFMON")]
        {
            let options = Options { privileges: Privileges::Service(given), ..Options::default() };
            let mut daemon = Daemon::launch(&site.path.gateway, "*", &home.0, options)?;
            let code = daemon.ended(FINDING)?;
            let log = daemon.log();
            ensure!(code == Some(77) && log.contains(wanted), "{given:?}: {code:?}: {log}");
            let mut probe = Privileges::Service(given).command(&site.path.gateway, binary()?, &home.0)?;
            let store = home.0.join("smtpwatch.toml");
            probe.args(["probe", "--format", "text", "--config"]).arg(store);
            let told = command::output(&mut probe, FINDING)?.stdout;
            let fails = |name: &str| told.lines().any(|line| line.starts_with(&format!("FAIL {name}: ")));
            ensure!(fails("capabilities") && fails("programs") && told.contains(wanted), "{told}");
            ensure!(told.contains("PASS confinement: ") && told.contains("PASS store: "), "{told}");
        }
        Ok(())
    });
}

#[test]
fn the_configuration_is_read_again_and_the_manager_is_told() {
    scenario("the_configuration_is_read_again_and_the_manager_is_told", || {
        let (site, home) = (Site::create()?, home("reload")?);
        let socket = home.0.join("notify");
        let manager = UnixDatagram::bind(&socket)?;
        std::os::unix::fs::chown(&socket, Some(SERVICE_UID), None)?;
        manager.set_read_timeout(Some(FINDING))?;
        let violations = |daemon: &Daemon<'_>| {
            daemon.findings().iter().filter(|finding| finding["kind"] == "policy-violation").count()
        };
        let told = |what: &str| -> Result<String> {
            let mut seen = Vec::new();
            loop {
                let mut message = [0; 1024];
                let length = manager.recv(&mut message).with_context(|| format!("no {what} in {seen:?}"))?;
                let message = String::from_utf8_lossy(&message[..length]).into_owned();
                if message.lines().any(|line| line.starts_with(what)) {
                    return Ok(message);
                }
                seen.push(message);
            }
        };
        let environment = [("NOTIFY_SOCKET", socket.to_str().context("UTF-8")?), ("WATCHDOG_USEC", "400000")];
        let options =
            Options { environment: &environment, privileges: Privileges::Service(THREE), ..Options::default() };
        let mut daemon = Daemon::start(&site.path.gateway, "*", &home.0, options)?;
        ensure!(told("STATUS=")?.contains("STATUS=watching "), "the status");
        told("READY=1")?;
        told("WATCHDOG=1")?;

        site.send()?;
        daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "plaintext")], 1.0, FINDING)?;
        configure("*", &home.0, Options { rules: RULE, ..options })?;
        daemon.signal(Signal::SIGHUP)?;
        ensure!(told("RELOADING=1")?.contains("MONOTONIC_USEC="), "the time of the reload");
        told("READY=1")?;
        site.send()?;
        daemon.finding("policy-violation", FINDING, |_| true)?;
        ensure!(violations(&daemon) == 1, "the rule holds for what came before it");
        let reloaded = "smtpwatch_config_last_reload_success_timestamp_seconds";
        let (successful, at) = ("smtpwatch_config_last_reload_successful", daemon.metric(reloaded, &[])?);

        // An invalid configuration changes nothing and is reported.
        configure("*", &home.0, Options { rules: "[[rule]]\nstarttsl = \"required\"\n", ..options })?;
        let (status, said) = daemon.ask("POST", "/-/reload")?;
        ensure!(status == 500 && said.contains("unknown key \"starttsl\""), "{status} {said}");
        ensure!(daemon.metric(successful, &[])? == 0.0 && daemon.metric(reloaded, &[])? == at, "the metrics");
        site.send()?;
        eventually(FINDING, "the rule that was good", || Ok((violations(&daemon) == 2).then_some(())))?;

        // Settings that cannot change at run time are named; the rest takes effect.
        let settings = "hot_plug = false\nlocal = [\"192.0.2.0/24\"]";
        configure("*", &home.0, Options { settings, ingress: "tcx", ..options })?;
        let (status, said) = daemon.ask("POST", "/-/reload")?;
        let expected = "the configuration was read again\n\
                        ingress: changed, and needs a restart\nhot_plug: changed, and needs a restart\n";
        ensure!(status == 200 && said == expected, "{status} {said}");
        ensure!(daemon.metric(successful, &[])? == 1.0 && daemon.metric(reloaded, &[])? >= at, "the metrics");
        site.send()?;
        ensure!(daemon.ask("GET", "/-/reload")?.0 == 405, "a question changes nothing");

        ensure!(daemon.terminate()?, "it ends with a failure: {}", daemon.log());
        told("STOPPING=1")?;
        ensure!(violations(&daemon) == 2, "without its rule there is no finding");
        Ok(())
    });
}

/// `smtpwatch silence` beside a running daemon: it reloads, counts what the exception suppresses, and refuses a bad file.
#[test]
fn an_exception_applies_to_a_running_daemon() {
    scenario("an_exception_applies_to_a_running_daemon", || {
        let (site, home) = (Site::create()?, home("silence")?);
        let options = Options { rules: RULE, privileges: Privileges::Service(THREE), ..Options::default() };
        let mut daemon = Daemon::start(&site.path.gateway, "*", &home.0, options)?;
        let violations = || daemon.findings().iter().filter(|finding| finding["kind"] == "policy-violation").count();
        let (config, peer) = (home.0.join("smtpwatch.toml"), Family::V4.exchanger().to_string());
        let config = config.to_str().context("UTF-8")?;
        let silence = |arguments: &[&str]| {
            smtpwatch_in(&site.path.gateway, &[&["silence", "--config", config], arguments].concat(), FINDING)
        };
        site.send()?;
        daemon.finding("policy-violation", FINDING, |_| true)?;
        ensure!(daemon.metric("smtpwatch_rules", &[("state", "active")])? == 1.0, "the rule of the configuration");

        let out = silence(&[&peer, "--for", "7d", "--reason", "TICKET-4711"])?;
        ensure!(out.status.success() && out.stdout.contains("has reloaded its configuration"), "{out:?}");
        ensure!(daemon.metric("smtpwatch_rules", &[("state", "expiring")])? == 1.0, "the exception");
        ensure!(daemon.log().contains("a rule ends soon") && daemon.log().contains("TICKET-4711"), "{}", daemon.log());
        site.send()?;
        let suppressed = ("smtpwatch_rule_exceptions_total", [("kind", "policy-violation")]);
        daemon.metric_reaches(suppressed.0, &suppressed.1, 1.0, FINDING)?;
        ensure!(violations() == 1, "the exception does not apply");

        // The daemon keeps its rules while any file is bad, and the user learns which one.
        let bad = home.0.join("smtpwatch.d/zz.toml");
        std::fs::write(&bad, "[store]\n")?;
        let out = silence(&["--end", &peer])?;
        ensure!(out.status.code() == Some(1) && out.stderr.contains("kept its previous configuration"), "{out:?}");
        ensure!(out.stderr.contains("zz.toml:1: unknown table \"store\""), "{out:?}");
        site.send()?;
        daemon.metric_reaches(suppressed.0, &suppressed.1, 2.0, FINDING)?;
        std::fs::remove_file(&bad)?;
        ensure!(daemon.ask("POST", "/-/reload")?.0 == 200, "{}", daemon.log());
        ensure!(daemon.metric("smtpwatch_rules", &[("state", "expiring")])? == 0.0, "the exception has ended");
        site.send()?;
        eventually(FINDING, "a violation again", || Ok((violations() == 2).then_some(())))?;
        let counted = daemon.metric(suppressed.0, &suppressed.1)?;
        ensure!(counted == 2.0, "{counted} sessions are counted");
        ensure!(daemon.terminate()?, "{}", daemon.log());
        Ok(())
    });
}

#[test]
fn after_any_exit_nothing_is_left() {
    scenario("after_any_exit_nothing_is_left", || {
        let (site, home) = (Site::create()?, Home::create("exits")?);
        let before = site.attached()?;
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGABRT, Signal::SIGKILL] {
            let options = Options { ingress: "xdp-generic", ..Options::default() };
            let mut daemon = Daemon::start(&site.path.gateway, "*", &home.0, options)?;
            ensure!(site.attached()? != before, "nothing is attached");
            daemon.signal(signal)?;
            daemon.ended(GONE).with_context(|| format!("{signal}"))?;
            ensure!(site.attached()? == before, "something is left after {signal}");
        }
        Ok(())
    });
}

#[test]
fn the_journal_is_a_file_that_is_rotated() {
    scenario("the_journal_is_a_file_that_is_rotated", || {
        let (site, home) = (Site::create()?, home("journal")?);
        let (log, old) = (home.0.join("findings.json"), home.0.join("findings.json.1"));
        let rules = format!("{RULE}[journal]\npath = {log:?}\nformat = \"ecs\"\n");
        let options = Options { rules: &rules, privileges: Privileges::Service(THREE), ..Options::default() };
        let mut daemon = Daemon::start(&site.path.gateway, "*", &home.0, options)?;
        let lines = |path: &std::path::Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        site.send()?;
        eventually(FINDING, "findings in the file", || Ok((lines(&log) == 2).then_some(())))?;
        std::fs::rename(&log, &old)?;
        daemon.signal(Signal::SIGUSR1)?;
        eventually(FINDING, "a fresh file", || Ok(log.exists().then_some(())))?;
        site.send()?;
        eventually(FINDING, "findings in the fresh file", || Ok((lines(&log) == 2).then_some(())))?;
        ensure!(lines(&old) == 2, "the old file was written to");
        let first: serde_json::Value =
            serde_json::from_str(std::fs::read_to_string(&log)?.lines().next().context("a line")?)?;
        ensure!(first["event"]["module"] == "smtpwatch" || first["ecs"].is_object(), "{first}");
        ensure!(daemon.findings().is_empty(), "stdout has findings too");
        ensure!(daemon.terminate()?, "{}", daemon.log());
        Ok(())
    });
}

/// The store is removed, overwritten, locked by another process, and made inaccessible while the daemon runs: it
/// continues to monitor and reports the fault.
#[test]
fn the_store_is_lost_while_it_runs() {
    scenario("the_store_is_lost_while_it_runs", || {
        let (site, home) = (Site::create()?, home("store")?);
        let options = Options { rules: RULE, privileges: Privileges::Service(THREE), ..Options::default() };
        let mut daemon = Daemon::start(&site.path.gateway, "*", &home.0, options)?;
        let path = home.0.join("smtpwatch.db");
        let held = || -> Result<(usize, u64)> {
            let mut store = Store::open_existing(&path)?;
            Ok((store.entries()?.len(), store.counts()?.findings))
        };
        let becomes = |what: &str, wanted: &dyn Fn((usize, u64)) -> bool| {
            eventually(NOTICED, what, || Ok(held().ok().filter(|held| wanted(*held)).map(drop)))
                .with_context(|| format!("{:?}; {}", held(), daemon.log()))
        };
        let recovered =
            |cause: &str| daemon.metric_reaches("smtpwatch_store_recoveries_total", &[("cause", cause)], 1.0, NOTICED);
        let ready = |status: u16, part: &str| {
            eventually(NOTICED, &format!("/-/ready: {status}, {part}"), || {
                let (found, body) = daemon.ask("GET", "/-/ready")?;
                Ok((found == status && body.contains(part)).then_some(()))
            })?;
            let (alive, _) = daemon.ask("GET", "/-/healthy")?;
            ensure!(alive == 200, "a restart does not mend the store");
            Ok(())
        };
        let found = |count: usize| {
            eventually(FINDING, &format!("{count} findings"), || Ok((daemon.findings().len() >= count).then_some(())))
        };
        site.send()?;
        found(2)?;
        becomes("history on the disk", &|(rows, findings)| rows > 0 && findings == 2)?;

        std::fs::remove_file(&path)?;
        recovered("missing")?;
        ready(200, "a store was made again, everything in it was copied")?;
        becomes("the same in a store of its own", &|(rows, findings)| rows > 0 && findings == 2)?;

        let other = Connection::open(&path)?;
        other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        drop(other);
        std::fs::write(&path, "overwritten ".repeat(10_000))?;
        recovered("damaged")?;
        becomes("the history that was in memory", &|(rows, _)| rows > 0)?;
        let (_, before) = held()?;

        let other = Connection::open(&path)?;
        other.execute_batch("BEGIN IMMEDIATE")?;
        site.send()?;
        found(4)?;
        ready(503, "store: busy: ")?;
        daemon.metric_reaches("smtpwatch_store_state", &[("state", "busy")], 1.0, NOTICED)?;
        other.execute_batch("COMMIT")?;
        drop(other);
        ready(200, "")?;
        becomes("the findings of the gap", &|(_, findings)| findings == before + 2)?;

        // The confined daemon cannot recreate the directory.
        let away = home.0.with_extension("away");
        std::fs::rename(&home.0, &away)?;
        let outcome = ready(503, "it cannot be made again").and_then(|()| site.send()).and_then(|()| found(6));
        std::fs::rename(&away, &home.0)?;
        outcome?;
        ready(200, "")?;
        becomes("the findings of the gap", &|(_, findings)| findings == before + 4)?;
        ensure!(daemon.findings().len() == 6, "some were reported twice: {:?}", daemon.findings());
        ensure!(daemon.terminate()?, "{}", daemon.log());
        Ok(())
    });
}
