//! The boundary to TLS: injected commands and replies, an overwritten verb, a sabotaged handshake.

use std::{net::SocketAddr, path::Path as FilePath};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use smtpwatch_tests::attacker::{Attacker, Mode};
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::postfix::Postfix;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{FINDING, Home, SENDER, check, replay_evidence, text};

/// Mail to the gateway: the gateway receives what the attacker has changed.
#[test]
fn commands_on_their_way_in() {
    scenario("commands_on_their_way_in", || {
        let path = Path::create()?;
        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mail.example.org")?;
        let _server = Postfix::receiver(&path.gateway, &identity)?;
        let home = Home::create("commands")?;
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
        let send = |family: Family| {
            let server = SocketAddr::new(family.gateway(), 25);
            path.exchanger.run(|| smtp::send(server, Some(&identity), "anna@peer.example", "bob@peer.example"))
        };
        send(Family::V4)??;
        let under_tls = [("role", "server"), ("port", "25"), ("result", "tls")];
        daemon.metric_reaches("smtpwatch_sessions_total", &under_tls, 1.0, FINDING)?;
        ensure!(daemon.findings().is_empty(), "honest mail: {:?}", daemon.findings());

        attacker.set_mode(Mode::InjectCommand);
        for (family, cut) in [(Family::V4, false), (Family::V6, false), (Family::V4, true)] {
            attacker.cut_every_octet(cut);
            let before = daemon.findings().len();
            // Postfix drops a command that is injected in one piece; single bytes after its go-ahead it parses as
            // invalid TLS.
            let sent = send(family)?;
            ensure!(cut || sent?.tls, "TLS did not come about");
            // With single bytes the server may close before the client's TLS arrives: then only a failed handshake is
            // visible.
            let found = eventually(FINDING, "a finding about the injection", || {
                let kinds = ["command-injection", "tls-handshake-failed"];
                let kinds = if cut { &kinds[..] } else { &kinds[..1] };
                let mut new = daemon.findings().into_iter().skip(before);
                Ok(new.find(|found| kinds.iter().any(|kind| found["kind"] == *kind)))
            })
            .with_context(|| format!("{:?}", daemon.findings()))?;
            let broken = found["kind"] == "tls-handshake-failed";
            let (rule, evidence) = if broken { ("D1", found["evidence"].clone()) } else { ("E1", json!("tamper")) };
            check(&found, &[("/role", json!("server")), ("/rule", json!(rule)), ("/evidence", evidence)])?;
            if !cut {
                proven(&home.0, &found)?;
            }
        }

        attacker.cut_every_octet(false);
        attacker.set_mode(Mode::OverwriteVerb);
        ensure!(!send(Family::V4)??.tls, "STARTTLS reached the server");
        let found = daemon.finding("command-rewritten", FINDING, |_| true)?;
        check(&found, &[("/role", json!("server")), ("/rule", json!("C4")), ("/outcome", json!("content"))])?;
        ensure!(found["proof"].to_string().contains("XXXXXXXX"), "{found}");
        Ok(())
    });
}

/// Mail from the gateway: a reply after the go-ahead, and a broken handshake followed by mail in cleartext.
#[test]
fn replies_and_handshakes_on_the_way_out() {
    scenario("replies_and_handshakes_on_the_way_out", || {
        let path = Path::create()?;
        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mx1.example.net")?;
        let _server = Postfix::receiver(&path.exchanger, &identity)?;
        let home = Home::create("replies")?;
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
        for family in Family::ALL {
            let server = SocketAddr::new(family.exchanger(), 25);
            let send = |trusted| path.gateway.run(|| smtp::send(server, trusted, SENDER, "bob@peer.example"));

            attacker.set_mode(Mode::InjectReply);
            let ours = |found: &Value| found["flow"]["server"] == json!(server.to_string());
            for cut in [false, true] {
                attacker.cut_every_octet(cut);
                let before = daemon.findings().len();
                // With single bytes the injection arrives after the data that the client discards with the reply, and
                // breaks its TLS. All of it arrives before the client begins: later data would be an answer to the
                // handshake, which is another finding (C6).
                let sent = path.gateway.run(|| {
                    let mail = (SENDER, "bob@peer.example");
                    smtp::send_once(server, Some(&identity), mail, |stream| smtp::arrived(stream, b"250 injected\r\n"))
                })?;
                ensure!(cut || sent?.tls, "TLS did not come about");
                let new = |found: &Value| ours(found) && is_new(&daemon, before, found);
                let found = daemon.finding("response-injection", FINDING, new)?;
                check(&found, &[("/role", json!("client")), ("/rule", json!("E2")), ("/evidence", json!("tamper"))])?;
                if !cut {
                    proven(&home.0, &found)?;
                }
            }
            attacker.cut_every_octet(false);

            attacker.set_mode(Mode::Sabotage);
            ensure!(send(Some(&identity))?.is_err(), "the handshake came about");
            let half = daemon.finding("tls-handshake-failed", FINDING, ours)?;
            check(&half, &[("/rule", json!("D1")), ("/outcome", json!("attempt"))])?;

            attacker.set_mode(Mode::Pass);
            send(None)??;
            let retry = daemon.finding("downgrade-retry", FINDING, ours)?;
            check(&retry, &[("/rule", json!("D1")), ("/outcome", json!("content"))])?;
            ensure!(text(&retry, "/proof/0")?.contains("handshake"), "{retry}");
        }
        Ok(())
    });
}

/// Whether the finding is not among the first `before` findings.
fn is_new(daemon: &Daemon<'_>, before: usize, found: &Value) -> bool {
    daemon.findings().iter().skip(before).any(|new| new["id"] == found["id"])
}

/// Checks that the capture file of the finding's evidence yields the same finding again.
fn proven(home: &FilePath, found: &Value) -> Result<()> {
    let again = replay_evidence(home, text(found, "/id")?)?;
    let same = again.iter().find(|finding| finding["kind"] == found["kind"]);
    let same = same.with_context(|| format!("no such finding again: {again:?}"))?;
    for member in ["rule", "evidence", "outcome", "role", "severity", "proof"] {
        ensure!(same[member] == found[member], "{member}: {same}\nis not\n{found}");
    }
    Ok(())
}
