//! A large message in cleartext: its body is not copied to the daemon, and the rest of the session is still captured.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::exim::{Auth, Exim};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{command, scenario, smtp};

use crate::set_up::{FINDING, Home, check};

/// A body line that would be a credential if it were parsed as a command.
const LINE: &str = "AUTH PLAIN AGJvZHkAYm9keQ==\r\n";
/// Number of body lines: more than 4 MiB.
const LINES: usize = 150_000;
/// `AUTH PLAIN` of Exim's account.
const LOGIN: &str = "AUTH PLAIN AGFubmEAbm90LWEtc2VjcmV0LTdLcQ==";

/// Every hook: at TC a segment may be 64 KiB and non-linear, at XDP it may have several buffers.
const HOOKS: [&str; 4] = ["xdp", "xdp-generic", "tcx", "clsact"];

#[test]
fn after_data() {
    scenario("after_data", || {
        let body = format!("{}.", LINE.repeat(LINES));
        HOOKS.into_iter().try_for_each(|hook| credentials_after(hook, &["DATA", &body]))
    });
}

#[test]
fn after_bdat() {
    scenario("after_bdat", || {
        let body = LINE.repeat(LINES);
        let body = body.trim_end_matches("\r\n");
        let command = format!("BDAT {} LAST\r\n{body}", body.len() + 2);
        HOOKS.into_iter().try_for_each(|hook| credentials_after(hook, &[&command]))
    });
}

fn credentials_after(hook: &str, message: &[&str]) -> Result<()> {
    let path = Path::create()?;
    let _server = Exim::start(&path.gateway, &Identity::generate("mail.example.org")?, Auth::Always, &[])?;
    let home = Home::create("body")?;
    let daemon =
        Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options { ingress: hook, ..Options::default() })?;
    let attached = [("interface", GATEWAY_INTERFACE), ("direction", "ingress"), ("hook", hook)];
    let attached = daemon.metric("smtpwatch_probe_attached", &attached)?;
    ensure!(attached > 0.5, "{hook} was asked for and is not attached:\n{}", daemon.log());
    let server = SocketAddr::new(Family::V4.gateway(), 587);
    let replies = path.exchanger.run(|| -> Result<Vec<String>> {
        let mut client = smtp::connect(server)?;
        let envelope = ["EHLO client.example", "MAIL FROM:<anna@client.example>", "RCPT TO:<bob@example.org>"];
        let commands = envelope.iter().chain(message).chain(&[LOGIN, "QUIT"]);
        commands.map(|command| Ok(smtp::ask(&mut client, command)?.concat())).collect()
    })??;
    ensure!(replies.iter().any(|reply| reply.starts_with("235")), "no AUTH after the message: {replies:?}");
    let found = daemon.finding("auth-plaintext", FINDING, |_| true)?;
    check(
        &found,
        &[("/role", json!("server")), ("/observed/mechanism", json!("PLAIN")), ("/observed/reply", json!(235))],
    )?;
    let count = daemon.findings().iter().filter(|finding| finding["kind"] == "auth-plaintext").count();
    ensure!(count == 1, "the body is read as commands: {count} findings");
    let packets =
        |outcome| daemon.metric("smtpwatch_kernel_packets_total", &[("direction", "ingress"), ("outcome", outcome)]);
    // The daemon reads the kernel's counters twice a second.
    let mostly_muted = || Ok((packets("muted")? > packets("forwarded")?).then_some(()));
    command::eventually(FINDING, &format!("{hook}: more packets muted than forwarded"), mostly_muted)?;
    let dropped = daemon.metric("smtpwatch_kernel_dropped_total", &[])?;
    ensure!(dropped.abs() < f64::EPSILON, "{dropped} packets dropped:\n{}", daemon.metrics()?);
    Ok(())
}
