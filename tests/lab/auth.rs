//! Credentials in cleartext on the submission port, sent by swaks to a real Exim, into and out of the gateway.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use smtpwatch_tests::attacker::Attacker;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::exim::{self, Auth, Exim};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::root::{Packages, Root};
use smtpwatch_tests::scenario;
use smtpwatch_tests::tls::Identity;

use crate::set_up::{FINDING, Home, check, text};

/// `NUL anna NUL password` and the password alone, as base64: what crosses the wire with PLAIN and with LOGIN.
const ON_THE_WIRE: [&str; 3] = [exim::PASSWORD, "AGFubmEAbm90LWEtc2VjcmV0LTdLcQ==", "bm90LWEtc2VjcmV0LTdLcQ=="];

#[test]
fn inbound_v4() {
    scenario("inbound_v4", || plaintext(Family::V4, "server", false));
}

#[test]
fn inbound_v6() {
    scenario("inbound_v6", || plaintext(Family::V6, "server", false));
}

#[test]
fn outbound_v4() {
    scenario("outbound_v4", || plaintext(Family::V4, "client", false));
}

#[test]
fn outbound_v6() {
    scenario("outbound_v6", || plaintext(Family::V6, "client", false));
}

/// docs/threats.md EV-1.
#[test]
fn inbound_octet_by_octet() {
    scenario("inbound_octet_by_octet", || plaintext(Family::V6, "server", true));
}

/// docs/threats.md EV-1.
#[test]
fn outbound_octet_by_octet() {
    scenario("outbound_octet_by_octet", || plaintext(Family::V4, "client", true));
}

#[test]
fn under_tls_is_silent() {
    scenario("under_tls_is_silent", || {
        let path = Path::create()?;
        let identity = Identity::generate("mail.example.org")?;
        let _server = Exim::start(&path.gateway, &identity, Auth::UnderTls, &[])?;
        let home = Home::create("auth-tls")?;
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
        for (mechanism, family) in [("PLAIN", Family::V4), ("LOGIN", Family::V6)] {
            let said = swaks(&path.exchanger, &family.gateway().to_string(), mechanism, exim::PASSWORD, &["--tls"])?;
            ensure!(said.contains("235 "), "AUTH under TLS was not accepted: {said}");
        }
        let under_tls = [("role", "server"), ("port", "587"), ("result", "tls")];
        daemon.metric_reaches("smtpwatch_sessions_total", &under_tls, 2.0, FINDING)?;
        ensure!(daemon.findings().is_empty(), "{:?}", daemon.findings());
        Ok(())
    });
}

fn plaintext(family: Family, role: &str, cut: bool) -> Result<()> {
    let path = Path::create()?;
    let attacker = Attacker::start(&path.router)?;
    attacker.cut_every_octet(cut);
    let identity = Identity::generate("mail.example.org")?;
    let (host, peer, address) = match role {
        "server" => (&path.gateway, &path.exchanger, family.gateway()),
        _ => (&path.exchanger, &path.gateway, family.exchanger()),
    };
    let _server = Exim::start(host, &identity, Auth::Always, &[])?;
    let home = Home::create("auth")?;
    let mut daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
    // A rejected password has crossed the wire all the same (docs/threats.md F7).
    for (mechanism, password, reply) in
        [("PLAIN", exim::PASSWORD, "235 "), ("LOGIN", exim::PASSWORD, "235 "), ("PLAIN", "wrong", "535 ")]
    {
        let said = swaks(peer, &address.to_string(), mechanism, password, &[])?;
        ensure!(said.contains(reply), "{mechanism}: no {reply} from the server: {said}");
        let code: u16 = reply.trim().parse()?;
        let found = daemon.finding("auth-plaintext", FINDING, |finding| {
            finding["observed"]["mechanism"] == mechanism && finding["observed"]["reply"] == code
        })?;
        // Refused, it is a guess if a stranger sent it, and a real password if a program on this host did.
        let severity = match (code, role) {
            (235, _) => "critical",
            (_, "server") => "low",
            _ => "high",
        };
        check(&found, &[("/role", json!(role)), ("/outcome", json!("credential")), ("/severity", json!(severity))])?;
        ensure!(text(&found, "/flow/server")?.ends_with(":587"), "{found}");
    }
    let offered = daemon.finding("auth-offered-plaintext", FINDING, |_| true)?;
    check(&offered, &[("/role", json!(role))])?;
    ensure!(daemon.terminate()?, "the daemon ended with an error: {}", daemon.log());
    let mut kept = vec![("findings", json!(daemon.findings()).to_string())];
    for entry in std::fs::read_dir(&home.0)? {
        kept.push(("file", String::from_utf8_lossy(&std::fs::read(entry?.path())?).into_owned()));
    }
    for (place, content) in kept {
        ensure!(!ON_THE_WIRE.iter().any(|secret| content.contains(secret)), "a secret is in a {place}: {content}");
    }
    Ok(())
}

/// Sends a message with AUTH on port 587 through swaks; returns its transcript.
fn swaks(namespace: &Namespace, server: &str, mechanism: &str, password: &str, more: &[&str]) -> Result<String> {
    let to = format!("bob@{}.example", mechanism.to_lowercase());
    let mut arguments =
        vec!["swaks", "--server", server, "--port", "587", "--helo", "client.example", "--timeout", "10"];
    arguments.extend(["--from", "anna@client.example", "--to", &to]);
    arguments.extend(["--auth", mechanism, "--auth-user", exim::USER, "--auth-password", password]);
    arguments.extend(more);
    let root = Root::with(Packages::Postfix)?;
    let out = root.output(namespace, &arguments, Duration::from_secs(30), |_| Ok(()))?;
    Ok(out.stdout + &out.stderr)
}
