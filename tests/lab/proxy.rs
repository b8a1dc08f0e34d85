//! docs/threats.md A4: a transparent proxy answers in place of the server. The two EHLO replies are those seen in
//! Thailand in 2014.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{FINDING, Home, SENDER, check, script};

const GENUINE: &str = "220 smtp.gmail.com ESMTP - gsmtp";
const FAKE: &str = "220 smtp.gmail.com ESMTP mail.redacted.com - gsmtp";
const WITH: [&str; 7] = [
    "smtp.gmail.com at your service",
    "SIZE 35882577",
    "8BITMIME",
    "STARTTLS",
    "ENHANCEDSTATUSCODES",
    "PIPELINING",
    "SMTPUTF8",
];
const WITHOUT: [&str; 6] = [
    "smtp.gmail.com at your service, [198.51.100.77]",
    "SIZE 35882577",
    "8BITMIME",
    "ENHANCEDSTATUSCODES",
    "PIPELINING",
    "SMTPUTF8",
];

#[test]
fn replaced_reply_v4() {
    scenario("replaced_reply_v4", || replaced_reply(Family::V4));
}

#[test]
fn replaced_reply_v6() {
    scenario("replaced_reply_v6", || replaced_reply(Family::V6));
}

fn replaced_reply(family: Family) -> Result<()> {
    let path = Path::create()?;
    let identity = Identity::generate("smtp.gmail.com")?;
    let address = SocketAddr::new(family.exchanger(), 25);
    let server = Server::start(&path.exchanger, address, &identity, script(GENUINE, &WITH))?;
    let home = Home::create("proxy")?;
    let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
    let send = || path.gateway.run(|| smtp::send(address, Some(&identity), SENDER, "bob@example.net"))?;
    for _ in 0..6 {
        ensure!(send()?.tls, "the genuine server takes mail under TLS");
    }
    daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "tls")], 6.0, FINDING)?;
    ensure!(daemon.findings().is_empty(), "honest mail: {:?}", daemon.findings());
    server.set_script(script(FAKE, &WITHOUT));
    ensure!(!send()?.tls, "the fake server offers no TLS");
    let found = daemon.finding("starttls-stripped", FINDING, |_| true)?;
    check(
        &found,
        &[
            ("/evidence", json!("regression")),
            ("/outcome", json!("content")),
            ("/role", json!("client")),
            ("/peer/name", json!("smtp.gmail.com")),
            ("/peer/greeting", json!(FAKE)),
            ("/observed/capabilities", json!(WITHOUT[1..])),
            ("/observed/starttls", json!("absent")),
        ],
    )
}
