//! Honest mail between two real mail servers, both ways and both families: counted, and silent.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::daemon::Daemon;
use smtpwatch_tests::exim::{self, Auth, Exim};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::postfix::{self, Postfix};
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{DELIVERIES, Home, SENDER};

/// Messages, one session each, for each pair of sending server and family: 200 in all.
const EACH: usize = 50;

#[test]
fn two_hundred_sessions_are_silent() {
    scenario("two_hundred_sessions_are_silent", || {
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let home = Home::create("honest")?;
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, "")?;
        let [v4, v6] = Family::ALL.map(|family| SocketAddr::new(family.exchanger(), 25));
        let routes = [("v4.example", v4), ("v6.example", v6)];
        {
            let _receiver = Exim::start(&path.exchanger, &identity, Auth::UnderTls, &[])?;
            let sender = Postfix::sender(&path.gateway, &routes)?;
            submit(&path, postfix::SUBMISSION)?;
            delivered("Postfix", || sender.sent()).with_context(|| sender.log())?;
        }
        {
            let _receiver = Postfix::receiver(&path.exchanger, &identity)?;
            let sender = Exim::start(&path.gateway, &identity, Auth::UnderTls, &routes)?;
            submit(&path, exim::SUBMISSION)?;
            delivered("Exim", || sender.sent()).with_context(|| sender.log())?;
        }
        let sessions = [("role", "client"), ("port", "25"), ("result", "tls")];
        daemon.metric_reaches("smtpwatch_sessions_total", &sessions, 200.0, DELIVERIES)?;
        ensure!(daemon.findings().is_empty(), "honest mail is accused: {:?}", daemon.findings());
        for metric in ["smtpwatch_findings_total", "smtpwatch_kernel_dropped_total", "smtpwatch_reassembly_gaps_total"]
        {
            let count = daemon.metric(metric, &[])?;
            ensure!(count.abs() < f64::EPSILON, "{metric} is {count}:\n{}", daemon.metrics()?);
        }
        let other =
            daemon.metric("smtpwatch_sessions_total", &[])? - daemon.metric("smtpwatch_sessions_total", &sessions)?;
        ensure!(other.abs() < f64::EPSILON, "{other} sessions are not under TLS:\n{}", daemon.metrics()?);
        Ok(())
    });
}

fn submit(path: &Path, server: SocketAddr) -> Result<()> {
    for _ in 0..EACH {
        for recipient in ["bob@v4.example", "bob@v6.example"] {
            path.gateway.run(|| smtp::send(server, None, SENDER, recipient))??;
        }
    }
    Ok(())
}

fn delivered(name: &str, sent: impl Fn() -> usize) -> Result<()> {
    eventually(DELIVERIES, &format!("{} deliveries by {name}", 2 * EACH), || Ok((sent() >= 2 * EACH).then_some(())))
}
