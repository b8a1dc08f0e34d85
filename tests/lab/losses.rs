//! Packets that the kernel program could not deliver are part of the evidence of a finding.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn};
use serde_json::{Value, json};
use smtpwatch_tests::command;
use smtpwatch_tests::daemon::{Daemon, Options, WEB, get};
use smtpwatch_tests::netns::{EXCHANGER_V4, GATEWAY_INTERFACE, GATEWAY_V4, Path};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{FINDING, Home, SENDER, script, text};

const RULE: &str = "[[rule]]\npeer = [\"198.51.100.0/24\"]\nstarttls = \"required\"\n";

/// Sends only the second half of a TCP segment.
fn fragment() -> Result<()> {
    let raw = socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), Some(SockProtocol::Raw))?;
    // RFC 791 §3.1: 28 bytes, last fragment, offset 8 bytes, time to live 64, TCP. The kernel fills in the checksum.
    let mut packet = vec![0x45, 0, 0, 28, 0, 1, 0, 1, 64, 6, 0, 0];
    packet.extend(GATEWAY_V4.octets().iter().chain(&EXCHANGER_V4.octets()));
    packet.extend([0; 8]);
    let to = SockaddrIn::from(SocketAddrV4::new(EXCHANGER_V4, 0));
    ensure!(socket::sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty())? == packet.len(), "cut short");
    Ok(())
}

#[test]
fn losses_are_evidence() {
    scenario("losses_are_evidence", || {
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(IpAddr::V4(EXCHANGER_V4), 25);
        let ehlo = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000"]);
        let _server = Server::start(&path.exchanger, address, &identity, ehlo)?;
        let home = Home::create("losses")?;
        let options = Options { rules: RULE, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        for lost in [json!({}), json!({ "fragment": 1 })] {
            let known = daemon.findings().len();
            path.gateway.run(|| smtp::send(address, None, SENDER, "bob@example.net"))??;
            let found = command::eventually(FINDING, "a finding", || Ok(daemon.findings().into_iter().nth(known)))?;
            let page = format!("/api/v1/findings/{}", text(&found, "/id")?);
            let (status, kept) = path.gateway.run(|| get(WEB, &page))??;
            ensure!(status == 200, "{kept}");
            let kept: Value = serde_json::from_str(&kept)?;
            let losses = kept.pointer("/exhibit/losses").context("losses")?;
            ensure!(*losses == lost, "{losses} is not {lost}");
            path.gateway.run(fragment)??;
        }
        Ok(())
    });
}
