//! From a fresh Debian to the notification: install the package, write two lines of configuration, start the service
//! with three capabilities, strip STARTTLS, receive the alert. Also: systemd's assessment of the unit, and the package
//! life cycle of upgrade over a store, removal and purge.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
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

/// The whole configuration that the operator writes.
const TWO_LINES: &str = "[[rule]]\nstarttls = \"required\"\n";
const SETTINGS: &str = "/etc/smtpwatch/smtpwatch.toml";
const UNIT: &str = "/lib/systemd/system/smtpwatch.service";
/// Package versions, the older one first.
const VERSIONS: [&str; 2] = ["0.1.0~acceptance", "0.1.0~upgrade"];
/// A web application on the machine: connects to port 25 of `$0` and sends a password in cleartext.
const WEB_FORM: &str = r#"
exec 3<>"/dev/tcp/$0/25"
read -r -u 3 greeting
for line in "EHLO web.example.org" "AUTH PLAIN AGFubmEAbm90LWEtc2VjcmV0" QUIT; do
    printf "%s\r\n" "$line" >&3
    read -r -u 3 reply
done
"#;
const BUILD: Duration = Duration::from_secs(600);
/// Highest allowed exposure in `systemd-analyze security --offline` (version 252).
const EXPOSURE: f64 = 2.0;
/// CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON (include/uapi/linux/capability.h).
const THREE: &str = "CapBnd:\t000000c000001000";

/// Prints the duration of each step.
struct Steps(Instant);

impl Steps {
    fn done(&mut self, what: &str) {
        println!("{:>6.1} s  {what}", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

/// Builds the package of this version with the test build, in a directory that the machine sees. Each version is built
/// once.
fn package(version: &'static str, machine: &Machine) -> Result<PathBuf> {
    static BUILT: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !built.contains_key(version) {
        built.insert(version, build(version)?);
    }
    let deb = built.get(version).context("the package")?;
    let name = deb.file_name().context("a name")?;
    std::fs::copy(deb, machine.lab().join(name)).with_context(|| format!("cannot copy {}", deb.display()))?;
    Ok(FilePath::new("/lab").join(name))
}

fn build(version: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = FilePath::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let mut build = Command::new(cargo);
    build.args(["run", "-q", "-p", "xtask", "--", "package", "--dev", "--version", version]).current_dir(workspace);
    daemon::forget_cargo(&mut build);
    let out = command::run(&mut build, BUILD)?;
    out.lines().last().map(PathBuf::from).context("the package")
}

fn install(machine: &Machine, package: &FilePath) -> Result<String> {
    machine.run(&["apt-get", "install", "-y", "-q", "--no-install-recommends", package.to_str().context("UTF-8")?])
}

/// A property of the unit.
fn unit(machine: &Machine, property: &str) -> Result<String> {
    let shown = machine.run(&["systemctl", "show", "--value", "--property", property, "smtpwatch.service"])?;
    Ok(shown.trim().to_owned())
}

/// Rewrites the configuration.
fn configure(machine: &Machine, settings: &str) -> Result<()> {
    machine.run(&["sh", "-c", &format!("printf %s '{settings}' > {SETTINGS}")]).map(drop)
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
        let deb = package(VERSIONS[0], &machine)?;
        steps.done("the package is built");
        install(&machine, &deb)?;
        ensure!(unit(&machine, "ActiveState")? == "inactive", "it was started by its installation");
        ensure!(unit(&machine, "UnitFileState")? == "disabled", "it was enabled by its installation");
        machine.run(&["smtpwatch", "check-config"])?;
        let rated = machine.run(&["systemd-analyze", "security", "--no-pager", "--offline=true", UNIT])?;
        let exposure: f64 = rated
            .split("smtpwatch.service: ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .context("a rating")?
            .parse()?;
        ensure!(exposure <= EXPOSURE, "systemd-analyze security: {exposure}; docs/install.md has {EXPOSURE}");
        steps.done("the package is installed, nothing was started");

        configure(&machine, TWO_LINES)?;
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
        let alert = alertmanager.notified("SmtpwatchStarttlsStripped", "firing", Duration::from_secs(180));
        let alert = alert.with_context(|| log(&machine))?;
        ensure!(alert["labels"]["severity"] == "critical", "{alert}");
        let runbook = alert["annotations"]["runbook_url"].as_str().context("a page")?;
        ensure!(machine.run(&["cat", runbook])?.contains("## Mitigation"), "{runbook}");
        steps.done("a strip was played, and the pager has it");

        let shown = findings(&machine)?;
        ensure!(shown.iter().any(|incident| incident["kind"] == "starttls-stripped"), "{shown:?}");
        machine.run(&["systemctl", "reload", "smtpwatch"])?;
        // systemctl returns when the signal is sent; the unit is "reloading" until the daemon reports that it is ready.
        eventually(FINDING, "the end of a reload", || Ok((unit(&machine, "ActiveState")? == "active").then_some(())))
            .with_context(|| log(&machine))?;
        machine.run(&["systemctl", "stop", "smtpwatch"])?;
        ensure!(unit(&machine, "Result")? == "success", "{}", log(&machine));
        steps.done("evidence shown, reloaded, stopped");
        Ok(())
    });
}

#[test]
fn systemd_takes_the_unit_as_it_is_meant() {
    scenario("systemd_takes_the_unit_as_it_is_meant", || {
        let path = Path::create()?;
        let machine = Machine::boot(&path.gateway)?;
        install(&machine, &package(VERSIONS[0], &machine)?)?;
        // systemd ignores a directive that it does not know, and reports it.
        let verified = machine.output(&["systemd-analyze", "verify", "--man=no", UNIT])?;
        ensure!(verified.status.success() && verified.stderr.is_empty(), "{}", verified.stderr);
        machine.run(&["bash", "-c", ". /usr/share/bash-completion/completions/smtpwatch && complete -p smtpwatch"])?;
        for page in ["smtpwatch", "smtpwatch-run", "smtpwatch-incidents-export"] {
            machine.run(&["test", "-s", &format!("/usr/share/man/man8/{page}.8.gz")])?;
        }
        let changes = machine.run(&["zcat", "/usr/share/doc/smtpwatch/changelog.gz"])?;
        ensure!(changes.starts_with(&format!("smtpwatch ({})", VERSIONS[0])), "{changes}");
        machine.run(&[
            "test",
            "-s",
            changes.split_whitespace().find(|word| word.starts_with('/')).context("a file")?,
        ])?;

        // With an invalid configuration the service stops: no restart is scheduled.
        configure(&machine, "no_such_key = 1\n")?;
        ensure!(!machine.output(&["systemctl", "start", "smtpwatch"])?.status.success(), "{}", log(&machine));
        ensure!(
            unit(&machine, "ExecMainStatus")? == "78" && unit(&machine, "ActiveState")? == "failed",
            "{}",
            log(&machine)
        );

        // A short watchdog interval, so that the test does not wait for the default.
        let settings = "[Service]\nWatchdogSec=4\nRestartSec=0\n";
        let set = format!("mkdir $0 && printf %s '{settings}' > $0/test.conf && systemctl daemon-reload");
        machine.run(&["sh", "-c", &set, "/run/systemd/system/smtpwatch.service.d"])?;
        configure(&machine, "[[rule]]\nstarttls = \"ignore\"\n")?;
        machine.run(&["systemctl", "start", "smtpwatch"]).with_context(|| log(&machine))?;
        let main = unit(&machine, "MainPID")?;

        // Inside its sandbox the daemon can name the sending program, and the finding reaches the journal.
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let clear = script("220 mx1.example.net ESMTP", &["mx1.example.net", "AUTH PLAIN"]);
        let _server = Server::start(&path.exchanger, address, &identity, clear)?;
        let web_form = ["systemd-run", "--wait", "--collect", "--quiet", "--unit=web-form", "--uid=33", "bash", "-c"];
        machine.run(&[&web_form[..], &[WEB_FORM, &address.ip().to_string()]].concat())?;
        let told = |kind: &str| {
            eventually(FINDING, kind, || {
                let said = machine.run(&["journalctl", "--no-pager", "--output=cat", "--unit=smtpwatch"])?;
                let mut found = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                Ok(found.find(|finding| finding["kind"] == kind))
            })
        };
        let password = told("auth-plaintext")?;
        ensure!(password["sender"]["unit"] == "web-form.service" && password["sender"]["uid"] == 33, "{password}");

        // Reload rejects an invalid configuration; a valid one takes effect.
        configure(&machine, "no_such_key = 1\n")?;
        ensure!(!machine.output(&["systemctl", "reload", "smtpwatch"])?.status.success(), "{}", log(&machine));
        let read_at = || {
            let (_, page) = path.gateway.run(|| daemon::get(daemon::WEB, "/metrics"))??;
            let mut lines = page.lines();
            let name = "smtpwatch_config_last_reload_success_timestamp_seconds ";
            lines.find_map(|line| line.strip_prefix(name)).map(str::to_owned).context("the time of the last reload")
        };
        let before = read_at()?;
        configure(&machine, TWO_LINES)?;
        machine.run(&["systemctl", "reload", "smtpwatch"])?;
        eventually(FINDING, "a reload", || Ok((read_at()? != before).then_some(())))?;
        path.gateway.run(|| smtp::send(address, None, SENDER, "bob@example.net"))??;
        told("policy-violation")?;
        ensure!(unit(&machine, "MainPID")? == main && unit(&machine, "NRestarts")? == "0", "{}", log(&machine));

        // systemd kills a stopped daemon by the watchdog and starts it again.
        machine.run(&["sh", "-c", "kill -STOP $0", &main])?;
        eventually(FINDING, "a restart by the watchdog", || {
            Ok((unit(&machine, "NRestarts")? == "1" && unit(&machine, "ActiveState")? == "active").then_some(()))
        })
        .with_context(|| log(&machine))?;
        // It stops before systemd's time limit would kill it; the lifecycle test measures how fast.
        machine.run(&["systemctl", "stop", "smtpwatch"])?;
        ensure!(unit(&machine, "Result")? == "success", "{}", log(&machine));
        Ok(())
    });
}

#[test]
fn the_package_is_upgraded_over_a_store_removed_and_purged() {
    scenario("the_package_is_upgraded_over_a_store_removed_and_purged", || {
        let path = Path::create()?;
        let machine = Machine::boot(&path.gateway)?;
        let (old, new) = (package(VERSIONS[0], &machine)?, package(VERSIONS[1], &machine)?);
        install(&machine, &old)?;
        configure(&machine, TWO_LINES)?;
        machine.run(&["systemctl", "enable", "--now", "smtpwatch"]).with_context(|| log(&machine))?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let clear = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000"]);
        let _server = Server::start(&path.exchanger, address, &identity, clear)?;
        let send = || path.gateway.run(|| smtp::send(address, None, SENDER, "bob@example.net"))?;
        send()?;
        let before =
            eventually(FINDING, "an incident", || Ok(Some(findings(&machine)?).filter(|found| !found.is_empty())))?;

        // An upgrade restarts a running daemon with its settings and its store.
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
        machine.run(&["smtpwatch", "incidents", "verify"])?;

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

/// The machine's journal of the service.
fn log(machine: &Machine) -> String {
    let said = |program: &[&str]| machine.output(program).map(|out| out.stdout + &out.stderr).unwrap_or_default();
    said(&["systemctl", "status", "--no-pager", "--full", "smtpwatch"])
        + &said(&["journalctl", "--no-pager", "-n", "40"])
}
