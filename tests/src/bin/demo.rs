//! The demonstration: legitimate mail, then a STARTTLS strip, and the findings of the daemon.
//!
//! It uses three network namespaces, a scripted server and client with real TLS, the attacker of the lab, and the real
//! daemon. It needs root, iproute2 and nftables, and removes everything that it created.

use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use smtpwatch_tests::attacker::{Attacker, Mode};
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::root::lab_directory;
use smtpwatch_tests::scripted::{Script, Server};
use smtpwatch_tests::smtp;
use smtpwatch_tests::tls::Identity;

/// One more session than `[baseline] min_sessions`, so that the history is sufficient for a finding.
const HONEST: u32 = 6;
const LIMIT: Duration = Duration::from_secs(15);

fn main() -> Result<()> {
    let home = Home(lab_directory().join("run").join(format!("{}-demo", std::process::id())));
    play(&home.0)
}

fn play(home: &FilePath) -> Result<()> {
    println!("building the daemon (cargo build -p smtpwatch)");
    smtpwatch_tests::daemon::binary()?;
    let path = Path::create()?;
    let attacker = Attacker::start(&path.router)?;
    let identity = Identity::generate("mx1.example.net")?;
    let address = SocketAddr::new(Family::V4.exchanger(), 25);
    let ehlo = ["mx1.example.net", "PIPELINING", "SIZE 35882577", "STARTTLS", "8BITMIME"].map(str::to_owned).to_vec();
    let script = Script { greeting: "220 mx1.example.net ESMTP".to_owned(), ehlo };
    let server = Server::start(&path.exchanger, address, &identity, script)?;
    println!("three namespaces: gateway {} -- router -- {address} mx1.example.net", Family::V4.gateway());

    let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, home, Options::default())?;
    println!("\n$ smtpwatch run --interface {GATEWAY_INTERFACE}");
    print!("{}", daemon.log());

    let send = || path.gateway.run(|| smtp::send(address, Some(&identity), "anna@example.org", "bob@example.net"))?;
    for _ in 0..HONEST {
        ensure!(send()?.tls, "the honest server takes mail under TLS");
    }
    daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "tls")], f64::from(HONEST), LIMIT)?;
    println!(
        "\n{HONEST} messages delivered under TLS: the daemon knows this peer. Findings: {}",
        daemon.findings().len()
    );
    ensure!(daemon.findings().is_empty(), "honest mail is accused: {:?}", daemon.findings());

    let labels = [("kind", "starttls-stripped"), ("role", "client")];
    let before = daemon.metric("smtpwatch_findings_total", &labels)?;
    attacker.set_mode(Mode::Delete);
    let session = send()?;
    ensure!(!session.tls && attacker.edits() == 1, "the attack failed: {session:?}");
    println!("\nThe attacker on the router deletes \"250-STARTTLS\". The next message is sent in cleartext:");
    session.ehlo.iter().for_each(|line| println!("    {line}"));
    println!("    accepted by the server: {} in cleartext, {} under TLS", server.accepted().0, server.accepted().1);

    let finding = daemon.finding("starttls-stripped", LIMIT, |_| true)?;
    ensure!(finding["evidence"] == "regression", "expected evidence from history: {finding}");
    show(&finding);
    let after = daemon.metric("smtpwatch_findings_total", &labels)?;
    ensure!(after > before, "the metric did not move: {before}, {after}");
    println!(
        "\n/metrics: smtpwatch_findings_total{{kind=\"starttls-stripped\",role=\"client\"}} went from {before} to {after}"
    );
    println!("          the rule that pages on it is SmtpwatchStarttlsStripped in deploy/prometheus/alerts.yaml");
    println!(
        "\nWhat to do: hold mail to this peer, ask its operator by another way whether STARTTLS is still offered,"
    );
    println!("and compare from another network; if it is offered there, a device on your path removes it.");
    println!(
        "To refuse clear text from here on, demand TLS in the mail server (Postfix: smtp_tls_policy_maps, \"encrypt\")"
    );
    println!("and say so to the daemon: [[rule]] peer = [\"{}\"], starttls = \"required\".", address.ip());
    Ok(())
}

/// Prints a finding in the form that an operator reads.
fn show(finding: &Value) {
    let text = |pointer: &str| match finding.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "-".to_owned(),
    };
    println!("\nALERT {}: {} ({})", text("/severity").to_uppercase(), text("/kind"), text("/rule"));
    for (label, value) in [
        ("when", text("/time")),
        ("flow", format!("{} -> {} on {}", text("/flow/client"), text("/flow/server"), text("/flow/interface"))),
        ("peer", format!("{} (\"{}\")", text("/peer/name"), text("/peer/greeting"))),
        ("expected", format!("STARTTLS, by {}: {}", text("/expected/source"), text("/expected/detail"))),
        ("observed", format!("STARTTLS {} in {}", text("/observed/starttls"), text("/observed/capabilities"))),
        ("evidence", text("/evidence")),
        ("outcome", text("/outcome")),
    ] {
        println!("    {label:<9} {value}");
    }
    for line in finding["transcript"].as_array().into_iter().flatten() {
        println!("    | {:<7} {}", line["from"].as_str().unwrap_or("-"), line["text"].as_str().unwrap_or("-"));
    }
}

/// The daemon's directory, removed with its contents on drop.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
