//! From a fresh Debian to the pager: the package installed, two lines of configuration, the service with three capabilities, a
//! strip, and the notification. Then the package's own life: upgraded over a store, removed, purged.

use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smtpwatch_tests::alertmanager::Alertmanager;
use smtpwatch_tests::attacker::{Attacker, Mode};
use smtpwatch_tests::command::{self, eventually};
use smtpwatch_tests::machine::Machine;
use smtpwatch_tests::netns::{Family, Path};
use smtpwatch_tests::prometheus::Prometheus;
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{daemon, scenario, smtp};

use crate::set_up::{FINDING, SENDER, script};

/// All of it that an operator writes.
const TWO_LINES: &str = "[[rule]]\nstarttls = \"required\"\n";
const SETTINGS: &str = "/etc/smtpwatch/smtpwatch.toml";
const BUILD: Duration = Duration::from_secs(600);
/// What `systemd-analyze security --offline` (version 252) says of the unit.
const EXPOSURE: f64 = 2.0;
/// CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON (include/uapi/linux/capability.h).
const THREE: &str = "CapBnd:\t000000c000001000";

/// Says how long each step took.
struct Steps(Instant);

impl Steps {
    fn done(&mut self, what: &str) {
        println!("{:>6.1} s  {what}", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

/// The package of the build for tests, in this version, in the directory `to`.
fn package(version: &str, to: &FilePath) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = FilePath::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let mut build = Command::new(cargo);
    build.args(["run", "-q", "-p", "xtask", "--", "package", "--dev", "--version", version]).current_dir(workspace);
    daemon::forget_cargo(&mut build);
    let out = command::run(&mut build, BUILD)?;
    let built = FilePath::new(out.lines().last().context("the package")?);
    let copy = to.join(built.file_name().context("a name")?);
    std::fs::copy(built, &copy).with_context(|| out.clone())?;
    Ok(FilePath::new("/lab").join(copy.file_name().context("a name")?))
}

fn install(machine: &Machine, package: &FilePath) -> Result<String> {
    machine.run(&["apt-get", "install", "-y", "-q", "--no-install-recommends", package.to_str().context("UTF-8")?])
}

/// A property of the unit.
fn unit(machine: &Machine, property: &str) -> Result<String> {
    let shown = machine.run(&["systemctl", "show", "--value", "--property", property, "smtpwatch.service"])?;
    Ok(shown.trim().to_owned())
}

fn findings(machine: &Machine) -> Result<Vec<Value>> {
    let listed = machine.run(&["smtpwatch", "incidents", "list", "--format", "json"])?;
    listed.lines().map(|line| serde_json::from_str(line).context("a line of JSON")).collect()
}

#[test]
fn acceptance() {
    scenario("acceptance", || {
        let mut steps = Steps(Instant::now());
        let path = Path::create()?;
        let machine = Machine::boot(&path.gateway)?;
        steps.done("a fresh Debian has booted");
        let deb = package("0.1.0~acceptance", &machine.lab())?;
        steps.done("the package is built");
        install(&machine, &deb)?;
        ensure!(unit(&machine, "ActiveState")? == "inactive", "it was started by its installation");
        ensure!(unit(&machine, "UnitFileState")? == "disabled", "it was enabled by its installation");
        machine.run(&["smtpwatch", "check-config"])?;
        let rated = machine.run(&[
            "systemd-analyze",
            "security",
            "--no-pager",
            "--offline=true",
            "/lib/systemd/system/smtpwatch.service",
        ])?;
        let exposure: f64 = rated
            .split("smtpwatch.service: ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .context("a rating")?
            .parse()?;
        ensure!(exposure <= EXPOSURE, "systemd-analyze security: {exposure}; docs/install.md has {EXPOSURE}");
        steps.done("the package is installed, nothing was started");

        machine.run(&["sh", "-c", &format!("printf '{}' > {SETTINGS}", TWO_LINES.replace('\n', "\\n"))])?;
        machine.run(&["systemctl", "start", "smtpwatch"]).with_context(|| log(&machine))?;
        ensure!(unit(&machine, "StatusText")?.starts_with("watching "), "{}", unit(&machine, "StatusText")?);
        let main = unit(&machine, "MainPID")?;
        let status = machine.run(&["cat", &format!("/proc/{main}/status")])?;
        ensure!(status.contains(THREE) && status.contains("NoNewPrivs:\t1"), "{status}");
        let user = machine.run(&["id", "-u", "smtpwatch"])?;
        ensure!(status.contains(&format!("Uid:\t{}\t", user.trim())) && user.trim() != "0", "{status}");
        steps.done("the service runs, as its own user with three capabilities");

        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let offer = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000", "STARTTLS"]);
        let _server = Server::start(&path.exchanger, address, &identity, offer)?;
        let alertmanager = Alertmanager::start(&path.gateway)?;
        let prometheus = Prometheus::start(&path.gateway)?;
        prometheus.scraped()?;
        steps.done("Prometheus and Alertmanager run with the shipped rules");
        attacker.set_mode(Mode::Delete);
        let sent = path.gateway.run(|| smtp::send(address, Some(&identity), SENDER, "bob@example.net"))??;
        ensure!(!sent.tls, "the strip did not work");
        let alert = alertmanager.notified("SmtpwatchStarttlsStripped", "firing", Duration::from_secs(60));
        let alert = alert.with_context(|| log(&machine))?;
        ensure!(alert["labels"]["severity"] == "critical", "{alert}");
        let runbook = alert["annotations"]["runbook_url"].as_str().context("a page")?;
        ensure!(machine.run(&["cat", runbook])?.contains("## Mitigation"), "{runbook}");
        steps.done("a strip was played, and the pager has it");

        let shown = findings(&machine)?;
        ensure!(shown.iter().any(|incident| incident["kind"] == "starttls-stripped"), "{shown:?}");
        machine.run(&["systemctl", "reload", "smtpwatch"])?;
        ensure!(unit(&machine, "ActiveState")? == "active", "{}", log(&machine));
        machine.run(&["systemctl", "stop", "smtpwatch"])?;
        ensure!(unit(&machine, "Result")? == "success", "{}", log(&machine));
        steps.done("evidence shown, reloaded, stopped");
        Ok(())
    });
}

#[test]
fn the_package_is_upgraded_over_a_store_removed_and_purged() {
    scenario("the_package_is_upgraded_over_a_store_removed_and_purged", || {
        let path = Path::create()?;
        let machine = Machine::boot(&path.gateway)?;
        let (old, new) = (package("0.1.0~old", &machine.lab())?, package("0.1.0~upgrade", &machine.lab())?);
        install(&machine, &old)?;
        machine.run(&["sh", "-c", &format!("printf '{}' > {SETTINGS}", TWO_LINES.replace('\n', "\\n"))])?;
        machine.run(&["systemctl", "enable", "--now", "smtpwatch"]).with_context(|| log(&machine))?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let clear = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000"]);
        let _server = Server::start(&path.exchanger, address, &identity, clear)?;
        let send = || path.gateway.run(|| smtp::send(address, None, SENDER, "bob@example.net"))?;
        send()?;
        let before =
            eventually(FINDING, "an incident", || Ok(Some(findings(&machine)?).filter(|found| !found.is_empty())))?;

        // One that runs is restarted, with its settings and its store.
        let main = unit(&machine, "MainPID")?;
        let said = install(&machine, &new)?;
        ensure!(
            unit(&machine, "ActiveState")? == "active" && unit(&machine, "MainPID")? != main,
            "{said}{}",
            log(&machine)
        );
        ensure!(machine.run(&["cat", SETTINGS])? == TWO_LINES, "the settings were replaced");
        ensure!(findings(&machine)?.len() >= before.len(), "the store was lost");
        send()?;
        let metrics = || machine.run(&["smtpwatch", "incidents", "verify", "--format", "json"]);
        metrics()?;

        machine.run(&["apt-get", "remove", "-y", "-q", "smtpwatch"])?;
        ensure!(machine.output(&["systemctl", "is-active", "smtpwatch"])?.stdout.trim() != "active", "it runs on");
        machine.run(&["test", "-e", "/var/lib/smtpwatch/smtpwatch.db"])?;
        machine.run(&["test", "-e", SETTINGS])?;
        machine.run(&["apt-get", "purge", "-y", "-q", "smtpwatch"])?;
        let left =
            machine.run(&["sh", "-c", "find / -xdev -name '*smtpwatch*' -not -path '/lab/*' -not -path '/proc/*'"])?;
        ensure!(left.is_empty(), "left behind: {left}");
        Ok(())
    });
}

/// What the machine has to say of the service.
fn log(machine: &Machine) -> String {
    let said = |program: &[&str]| machine.output(program).map(|out| out.stdout + &out.stderr).unwrap_or_default();
    said(&["systemctl", "status", "--no-pager", "--full", "smtpwatch"])
        + &said(&["journalctl", "--no-pager", "-n", "40"])
}
