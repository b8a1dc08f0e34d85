//! Another process removes a hook of the daemon, or another daemon uses the same interface: the daemon detects it,
//! attaches again and logs it; meanwhile metric and readiness report it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smtpwatch_tests::command::{self, eventually};
use smtpwatch_tests::daemon::{Daemon, Options, Privileges, smtpwatch_in};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::lifecycle::{THREE, home};
use crate::set_up::{FINDING, Home, SENDER, script};

/// By this rule mail in cleartext to this network is a finding.
const RULE: &str = "[[rule]]\npeer = [\"198.51.100.0/24\"]\nstarttls = \"required\"\n";
const LIMIT: Duration = Duration::from_secs(60);

/// A gateway whose peer offers no TLS.
fn site() -> Result<(Server, Path)> {
    let path = Path::create()?;
    let identity = Identity::generate("mx1.example.net")?;
    let ehlo = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000"]);
    let address = SocketAddr::new(Family::V4.exchanger(), 25);
    Ok((Server::start(&path.exchanger, address, &identity, ehlo)?, path))
}

fn send(path: &Path) -> Result<()> {
    let address = SocketAddr::new(Family::V4.exchanger(), 25);
    path.gateway.run(|| smtp::send(address, None, SENDER, "bob@example.net"))??;
    Ok(())
}

fn violations(daemon: &Daemon<'_>) -> usize {
    daemon.findings().iter().filter(|finding| finding["kind"] == "policy-violation").count()
}

fn filters(path: &Path) -> Result<String> {
    command::run(path.gateway.command("tc").args(["filter", "show", "dev", GATEWAY_INTERFACE, "ingress"]), LIMIT)
}

#[test]
fn beside_a_running_daemon_nothing_is_taken_from_it() {
    scenario("beside_a_running_daemon_nothing_is_taken_from_it", || {
        let ((_server, path), home, other) = (site()?, Home::create("beside")?, Home::create("second")?);
        let options = Options { rules: RULE, ingress: "clsact", ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let before = filters(&path)?;
        ensure!(before.contains("smtpwatch_tc_in"), "{before}");
        let holder = format!("watched by another smtpwatch (process {}, user 0)", daemon.pid());

        let config = home.0.join("smtpwatch.toml");
        let config = config.to_str().context("UTF-8")?;
        let probe = ["probe", "--format", "text", "--config", config, "--interface", GATEWAY_INTERFACE];
        let said = smtpwatch_in(&path.gateway, &probe, FINDING)?.stdout;
        ensure!(said.contains(&holder), "{said}");
        ensure!(filters(&path)? == before, "probe has changed what the daemon has");

        let store = other.0.join("other.toml");
        std::fs::write(&store, format!("[store]\npath = {:?}\n", other.0.join("store.sqlite")))?;
        let store = store.to_str().context("UTF-8")?;
        let second =
            ["run", "--config", store, "--interface", GATEWAY_INTERFACE, "--web.listen-address", "127.0.0.1:19588"];
        let ended = smtpwatch_in(&path.gateway, &second, FINDING)?;
        ensure!(ended.stderr.contains(&holder), "{}", ended.stderr);
        ensure!(filters(&path)? == before, "a second daemon has changed what the first one has");

        send(&path)?;
        daemon.finding("policy-violation", FINDING, |_| true)?;
        ensure!(daemon.metric("smtpwatch_probe_lost_total", &[])? == 0.0, "{}", daemon.log());
        Ok(())
    });
}

#[test]
fn a_filter_that_is_removed_is_attached_again() {
    scenario("a_filter_that_is_removed_is_attached_again", || {
        let ((_server, path), home) = (site()?, home("removed")?);
        let privileges = Privileges::Service(THREE);
        let options = Options { rules: RULE, ingress: "clsact", privileges, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        send(&path)?;
        daemon.finding("policy-violation", FINDING, |_| true)?;
        let hook = [("direction", "ingress"), ("hook", "clsact")];
        ensure!(daemon.metric("smtpwatch_probe_lost_total", &hook)? == 0.0, "{}", daemon.log());
        ensure!(daemon.metrics()?.contains("smtpwatch_probe_lost_total{direction=\"egress\",hook=\"tcx\"} 0\n"));
        for removal in 1..=2_u8 {
            let qdisc = ["qdisc", "del", "dev", GATEWAY_INTERFACE, "clsact"];
            command::run(path.gateway.command("tc").args(qdisc), LIMIT)?;
            daemon.metric_reaches("smtpwatch_probe_lost_total", &hook, f64::from(removal), FINDING)?;
            let attached = [("direction", "ingress"), ("hook", "clsact"), ("interface", GATEWAY_INTERFACE)];
            ensure!(daemon.metric("smtpwatch_probe_attached", &attached)? == 1.0, "{}", daemon.log());
            ensure!(daemon.log().contains("a clsact ingress filter of mail0 was taken away"), "{}", daemon.log());
            let before = violations(&daemon);
            send(&path)?;
            eventually(FINDING, "a finding after it", || Ok((violations(&daemon) > before).then_some(())))?;
        }
        ensure!(daemon.ask("GET", "/-/ready")?.0 == 200, "{}", daemon.log());
        Ok(())
    });
}

/// Without hot-plug the daemon retains no capability; linking a loaded program needs none.
#[test]
fn without_capabilities_a_link_is_made_again() {
    scenario("without_capabilities_a_link_is_made_again", || {
        let ((_server, path), home) = (site()?, home("unmended")?);
        let privileges = Privileges::Service(THREE);
        let options = Options { ingress: "tcx", settings: "hot_plug = false", privileges, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        ensure!(daemon.ask("GET", "/-/ready")?.0 == 200, "{}", daemon.log());
        let mut link = None;
        for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid()))? {
            let info = std::fs::read_to_string(entry?.path()).unwrap_or_default();
            link = link
                .or_else(|| info.lines().find_map(|line| line.strip_prefix("link_id:")).map(|id| id.trim().to_owned()));
        }
        let link = link.context("the daemon has no link")?;
        command::run(path.gateway.command("bpftool").args(["link", "detach", "id", &link]), LIMIT)?;
        daemon.metric_reaches("smtpwatch_probe_lost_total", &[("hook", "tcx")], 1.0, FINDING)?;
        ensure!(daemon.metric("smtpwatch_probe_attached", &[("hook", "tcx")])? == 2.0, "{}", daemon.log());
        ensure!(daemon.ask("GET", "/-/ready")?.0 == 200, "{}", daemon.log());
        Ok(())
    });
}
