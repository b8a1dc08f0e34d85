//! Tests of the lab itself: what the scenarios rely on.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use smtpwatch_tests::attacker::{Attacker, Mode};
use smtpwatch_tests::exim::{Auth, Exim};
use smtpwatch_tests::netns::{Family, Path};
use smtpwatch_tests::postfix::{self, Postfix};
use smtpwatch_tests::scripted::{Script, Server};
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{command, exim, scenario, smtp};

const SENDER: &str = "anna@gateway.example.org";

/// A client of the lab through each mode of the attacker, for both families, with whole segments and single bytes.
#[test]
fn attacker_edits_and_keeps_addresses() {
    scenario("attacker_edits_and_keeps_addresses", || {
        let path = Path::create()?;
        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mx1.example.net")?;
        for family in Family::ALL {
            let address = SocketAddr::new(family.exchanger(), 25);
            let server = Server::start(&path.exchanger, address, &identity, script())?;
            for cut in [false, true] {
                attacker.cut_every_octet(cut);
                for (mode, line, tls, edits) in [
                    (Mode::Pass, Some("250-STARTTLS"), true, 0),
                    (Mode::Delete, None, false, 1),
                    (Mode::Overwrite, Some("250-XXXXXXXA"), false, 1),
                    (Mode::Forge454, Some("250-STARTTLS"), false, 1),
                    (Mode::Pass, Some("250-STARTTLS"), true, 0),
                ] {
                    let before = attacker.edits();
                    attacker.set_mode(mode);
                    let session =
                        path.gateway.run(|| smtp::send(address, Some(&identity), SENDER, "bob@example.net"))??;
                    let found = session.ehlo.iter().find(|line| line.contains("STARTTLS") || line.contains("XXXX"));
                    ensure!(found.map(String::as_str) == line, "{mode:?} {family:?} cut {cut}: {:?}", session.ehlo);
                    ensure!(session.tls == tls && attacker.edits() - before == edits, "{mode:?}: {session:?}");
                }
            }
            ensure!(server.accepted() == (6, 4), "accepted in clear and under TLS: {:?}", server.accepted());
        }
        Ok(())
    });
}

/// Postfix and Exim deliver to each other under TLS, and both fall back to cleartext when the STARTTLS line is deleted.
#[test]
fn mail_servers_use_tls_until_stripped() {
    scenario("mail_servers_use_tls_until_stripped", || {
        let path = Path::create()?;
        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mx1.example.net")?;
        let exchanger = SocketAddr::new(Family::V4.exchanger(), 25);
        {
            let _receiver = Postfix::receiver(&path.exchanger, &identity)?;
            let sender = Exim::start(&path.gateway, &identity, Auth::UnderTls, &[("v4.example", exchanger)])?;
            for (mode, tls) in [(Mode::Pass, true), (Mode::Delete, false)] {
                attacker.set_mode(mode);
                let before = sender.sent();
                path.gateway.run(|| smtp::send(exim::SUBMISSION, None, SENDER, "bob@v4.example"))??;
                let sent = || Ok((sender.sent() > before).then_some(()));
                command::eventually(Duration::from_secs(30), "Exim's delivery", sent)
                    .map_err(|error| error.context(sender.log()))?;
                let last = sender.log().lines().rfind(|line| line.contains(" => ")).unwrap_or_default().to_owned();
                ensure!(last.contains(" X=TLS") == tls, "{mode:?}: {last}");
            }
        }
        attacker.set_mode(Mode::Pass);
        let _receiver = Exim::start(&path.exchanger, &identity, Auth::UnderTls, &[])?;
        let sender = Postfix::sender(&path.gateway, &[("v4.example", exchanger)])?;
        for (mode, tls) in [(Mode::Pass, 1), (Mode::Delete, 1)] {
            attacker.set_mode(mode);
            let before = sender.sent();
            path.gateway.run(|| smtp::send(postfix::SUBMISSION, None, SENDER, "bob@v4.example"))??;
            command::eventually(Duration::from_secs(30), "Postfix's delivery", || {
                Ok((sender.sent() > before).then_some(()))
            })
            .map_err(|error| error.context(sender.log()))?;
            let found = sender.log().lines().filter(|line| line.contains("TLS connection established")).count();
            ensure!(found == tls, "{mode:?}: {found} TLS connections\n{}", sender.log());
        }
        Ok(())
    });
}

fn script() -> Script {
    let ehlo = ["mx1.example.net", "SIZE 35882577", "8BITMIME", "STARTTLS", "PIPELINING"];
    Script { greeting: "220 mx1.example.net ESMTP".to_owned(), ehlo: ehlo.map(str::to_owned).to_vec() }
}
