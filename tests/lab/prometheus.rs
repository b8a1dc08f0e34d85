//! A real Prometheus scrapes the real daemon with the shipped rules, and ends with the alert firing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use smtpwatch_tests::attacker::{Attacker, Mode};
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::prometheus::Prometheus;
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{FINDING, Home, SENDER, script};

#[test]
fn alert_fires() {
    scenario("alert_fires", || {
        let path = Path::create()?;
        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let script = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000", "STARTTLS", "8BITMIME"]);
        let _server = Server::start(&path.exchanger, address, &identity, script)?;
        let home = Home::create("prometheus")?;
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
        let prometheus = Prometheus::start(&path.gateway)?;
        prometheus.scraped()?;
        let send = || path.gateway.run(|| smtp::send(address, Some(&identity), SENDER, "bob@example.net"))?;
        for _ in 0..6 {
            ensure!(send()?.tls, "honest mail goes under TLS");
        }
        daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "tls")], 6.0, FINDING)?;
        attacker.set_mode(Mode::Delete);
        ensure!(!send()?.tls, "stripped mail goes in clear");
        daemon.finding("starttls-stripped", FINDING, |_| true)?;
        let alert = prometheus.firing("SmtpwatchStarttlsStripped", Duration::from_secs(90))?;
        for name in ["summary", "description"] {
            ensure!(alert["annotations"][name].as_str().is_some_and(|text| !text.is_empty()), "no {name}: {alert}");
        }
        Ok(())
    });
}
