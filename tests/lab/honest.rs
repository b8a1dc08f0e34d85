//! Legitimate mail between two real mail servers, in both directions and both address families: it is counted and
//! raises no findings.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::exim::{self, Auth, Exim};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::postfix::{self, Postfix};
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{DELIVERIES, Home, SENDER};

/// Messages, one session each, per pair of sending server and family: 200 in total.
const EACH: usize = 50;
/// The same for the other paths that mail takes.
const FURTHER: usize = 10;

#[test]
fn two_hundred_sessions_are_silent() {
    scenario("two_hundred_sessions_are_silent", || {
        let path = Path::create()?;
        let (gateway, exchanger) = (&path.gateway, &path.exchanger);
        let identity = Identity::generate("mx1.example.net")?;
        let home = Home::create("honest")?;
        let daemon = Daemon::start(gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
        let out = Family::ALL.map(|family| SocketAddr::new(family.exchanger(), 25));
        let out = [("v4.example", out[0]), ("v6.example", out[1])];
        let inward = Family::ALL.map(|family| SocketAddr::new(family.gateway(), 25));
        let inward = [("v4.example", inward[0]), ("v6.example", inward[1])];
        {
            let _receiver = Exim::start(exchanger, &identity, Auth::UnderTls, &[])?;
            let sender = Postfix::sender(gateway, &out)?;
            submit(gateway, postfix::SUBMISSION, EACH)?;
            delivered("Postfix", EACH, || sender.sent()).with_context(|| sender.log())?;
        }
        {
            let _receiver = Postfix::receiver(exchanger, &identity)?;
            let sender = Exim::start(gateway, &identity, Auth::UnderTls, &out)?;
            submit(gateway, exim::SUBMISSION, EACH)?;
            delivered("Exim", EACH, || sender.sent()).with_context(|| sender.log())?;
        }
        {
            // Between two Exim servers the client sends EHLO before the greeting (PIPECONNECT, docs/threats.md E4).
            let _receiver = Exim::start(exchanger, &identity, Auth::UnderTls, &[])?;
            let sender = Exim::start(gateway, &identity, Auth::UnderTls, &out)?;
            submit(gateway, exim::SUBMISSION, FURTHER)?;
            delivered("Exim", FURTHER, || sender.sent()).with_context(|| sender.log())?;
            ensure!(sender.log().contains(" L* "), "no early pipelining: {}", sender.log());
        }
        {
            let _receiver = Exim::start(gateway, &identity, Auth::UnderTls, &[])?;
            let sender = Postfix::sender(exchanger, &inward)?;
            submit(exchanger, postfix::SUBMISSION, FURTHER)?;
            delivered("Postfix", FURTHER, || sender.sent()).with_context(|| sender.log())?;
        }
        for (role, wanted) in [("client", 4 * EACH + 2 * FURTHER), ("server", 2 * FURTHER)] {
            let under_tls = [("role", role), ("port", "25"), ("result", "tls")];
            let wanted = f64::from(u32::try_from(wanted)?);
            daemon.metric_reaches("smtpwatch_sessions_total", &under_tls, wanted, DELIVERIES)?;
            let all = daemon.metric("smtpwatch_sessions_total", &[("role", role)])?;
            ensure!((all - wanted).abs() < f64::EPSILON, "{all} sessions, not {wanted}:\n{}", daemon.metrics()?);
        }
        ensure!(daemon.findings().is_empty(), "honest mail is accused: {:?}", daemon.findings());
        for metric in ["smtpwatch_findings_total", "smtpwatch_kernel_dropped_total", "smtpwatch_reassembly_gaps_total"]
        {
            let count = daemon.metric(metric, &[])?;
            ensure!(count.abs() < f64::EPSILON, "{metric} is {count}:\n{}", daemon.metrics()?);
        }
        Ok(())
    });
}

/// Submits `each` messages per family to the sending server in `namespace`.
fn submit(namespace: &Namespace, server: SocketAddr, each: usize) -> Result<()> {
    for _ in 0..each {
        for recipient in ["bob@v4.example", "bob@v6.example"] {
            namespace.run(|| smtp::send(server, None, SENDER, recipient))??;
        }
    }
    Ok(())
}

fn delivered(name: &str, each: usize, sent: impl Fn() -> usize) -> Result<()> {
    eventually(DELIVERIES, &format!("{} deliveries by {name}", 2 * each), || Ok((sent() >= 2 * each).then_some(())))
}
