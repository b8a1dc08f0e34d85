//! Mail from Postfix to Postfix through the attacker: history first, then each edit, then legitimate mail.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use smtpwatch_tests::attacker::Mode;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE};
use smtpwatch_tests::scenario;

use crate::set_up::{DELIVERIES, FINDING, Home, Relay, check, text};

#[test]
fn history_then_attacks_v4() {
    scenario("history_then_attacks_v4", || history_then_attacks(Family::V4, false));
}

#[test]
fn history_then_attacks_v6() {
    scenario("history_then_attacks_v6", || history_then_attacks(Family::V6, false));
}

/// docs/threats.md EV-1: an attacker or a server that sends every byte in its own segment hides nothing.
#[test]
fn history_then_attacks_one_octet_per_segment() {
    scenario("history_then_attacks_one_octet_per_segment", || history_then_attacks(Family::V4, true));
}

#[test]
fn rule_on_first_contact_v4() {
    scenario("rule_on_first_contact_v4", || rule_on_first_contact(Family::V4));
}

#[test]
fn rule_on_first_contact_v6() {
    scenario("rule_on_first_contact_v6", || rule_on_first_contact(Family::V6));
}

fn history_then_attacks(family: Family, cut: bool) -> Result<()> {
    let relay = Relay::create(family)?;
    let home = Home::create("strip")?;
    let daemon = Daemon::start(&relay.path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
    relay.attacker.cut_every_octet(cut);
    relay.deliver(6)?;
    let under_tls = [("role", "client"), ("port", "25"), ("result", "tls")];
    daemon.metric_reaches("smtpwatch_sessions_total", &under_tls, 6.0, DELIVERIES)?;
    ensure!(daemon.findings().is_empty(), "honest mail: {:?}", daemon.findings());

    let server = match family {
        Family::V4 => "198.51.100.25:25",
        Family::V6 => "[2001:db8:2::25]:25",
    };
    let accused = |finding: &Value, starttls: &str| {
        check(
            finding,
            &[
                ("/role", json!("client")),
                ("/outcome", json!("content")),
                ("/flow/server", json!(server)),
                ("/flow/interface", json!(GATEWAY_INTERFACE)),
                ("/peer/name", json!("mx1.example.net")),
                ("/observed/starttls", json!(starttls)),
            ],
        )
    };

    relay.attacker.set_mode(Mode::Delete);
    relay.deliver(1)?;
    let stripped = daemon.finding("starttls-stripped", FINDING, |_| true)?;
    accused(&stripped, "absent")?;
    check(
        &stripped,
        &[
            ("/evidence", json!("regression")),
            // Six sessions of one day prove little (docs/severity.md).
            ("/severity", json!("low")),
            ("/expected/starttls", json!(true)),
            ("/expected/source", json!("history")),
        ],
    )?;
    let own = format!(
        "{}:",
        match family {
            Family::V4 => "192.0.2.10".to_owned(),
            Family::V6 => "[2001:db8:1::10]".to_owned(),
        }
    );
    ensure!(text(&stripped, "/flow/client")?.starts_with(&own), "{stripped}");
    let capabilities = stripped["observed"]["capabilities"].to_string();
    ensure!(capabilities.contains("PIPELINING") && !capabilities.contains("STARTTLS"), "{capabilities}");

    relay.attacker.set_mode(Mode::Overwrite);
    relay.deliver(1)?;
    let masked = daemon.finding("starttls-masked", FINDING, |_| true)?;
    accused(&masked, "masked")?;
    ensure!(
        masked["expected"]["starttls"] == true && masked["evidence"] != "suspicious",
        "the loss is known: {masked}"
    );
    ensure!(masked["observed"]["capabilities"].to_string().contains("XXXXXXXA"), "{masked}");

    relay.attacker.set_mode(Mode::Forge454);
    relay.deliver(1)?;
    let refused = daemon.finding("starttls-refused", FINDING, |_| true)?;
    accused(&refused, "refused")?;
    check(&refused, &[("/observed/reply", json!(454))])?;

    for kind in ["starttls-stripped", "starttls-masked", "starttls-refused"] {
        let count = daemon.metric("smtpwatch_findings_total", &[("kind", kind), ("role", "client")])?;
        ensure!((count - 1.0).abs() < f64::EPSILON, "{kind}: {count} findings counted");
    }
    daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "plaintext")], 3.0, FINDING)?;

    if cut {
        let segments =
            daemon.metric("smtpwatch_kernel_packets_total", &[("direction", "ingress"), ("outcome", "forwarded")])?;
        ensure!(segments > 1000.0, "single octets came as {segments} segments: nothing is shown");
    }

    relay.attacker.set_mode(Mode::Pass);
    let before = daemon.findings().len();
    relay.deliver(3)?;
    daemon.metric_reaches("smtpwatch_sessions_total", &under_tls, 9.0, DELIVERIES)?;
    ensure!(daemon.findings().len() == before, "after the attack: {:?}", daemon.findings());
    let edited = relay.attacker.edits();
    ensure!(edited == 3, "{edited} edits");
    Ok(())
}

fn rule_on_first_contact(family: Family) -> Result<()> {
    let relay = Relay::create(family)?;
    let home = Home::create("rule")?;
    let rules = "[[rule]]\npeer = [\"198.51.100.0/24\", \"2001:db8:2::/64\"]\nstarttls = \"required\"\n";
    let daemon =
        Daemon::start(&relay.path.gateway, GATEWAY_INTERFACE, &home.0, Options { rules, ..Options::default() })?;
    relay.attacker.set_mode(Mode::Delete);
    relay.deliver(1)?;
    let stripped = daemon.finding("starttls-stripped", FINDING, |_| true)?;
    check(
        &stripped,
        &[
            ("/evidence", json!("policy")),
            ("/severity", json!("critical")),
            ("/outcome", json!("content")),
            ("/expected/starttls", json!(true)),
            ("/expected/source", json!("rule")),
        ],
    )
}
