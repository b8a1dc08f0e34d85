//! The host as the server: the attacker plays clients against real servers on the gateway.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use smtpwatch_tests::packet::flag::{ACK, FIN, SYN};
use smtpwatch_tests::packet::{Flaw, Frame, Tcp};
use smtpwatch_tests::userspace_tcp::Endpoint;

use super::bench::{Bench, kinds};
use super::decoys;
use super::dialogue::{self, Act, Errand, Moment, Said, Side, client, false_tls, forge, idle, server, tls_flights};

/// Source port of every client.
pub const PORT: u16 = 40_001;

/// The same sessions without an attack.
pub fn controls(bench: &mut Bench<'_>) {
    bench.row("inbound, control: AUTH in cleartext", |bench| auth(bench, &mut idle));
    bench.row("inbound, control: AUTH under TLS", |bench| honest(bench, &mut idle));
}

/// Rows 1 and 3.
pub fn decoys(bench: &mut Bench<'_>) {
    for decoys in [decoys::OF_CLIENT, decoys::OF_EITHER] {
        decoys::try_all(bench, Side::Client, decoys, (auth, honest));
    }
}

/// A cleartext password combined with an attack: it is found, and the session is never classified as TLS.
pub fn auth(bench: &mut Bench<'_>, act: &mut Act<'_>) -> Result<()> {
    let client = SocketAddr::new(bench.peer_without_rule(), PORT);
    auth_from(bench, client, 587, act)
}

/// As [`auth`], with this client and this port.
pub fn auth_from(bench: &mut Bench<'_>, client: SocketAddr, port: u16, act: &mut Act<'_>) -> Result<()> {
    auth_found_as(bench, client, port, &["auth-plaintext"], act)
}

/// As [`auth`], found as one of these kinds.
pub fn auth_found_as(
    bench: &mut Bench<'_>,
    client: SocketAddr,
    port: u16,
    kinds: &[&str],
    act: &mut Act<'_>,
) -> Result<()> {
    let before = bench.sessions()?;
    dialogue::inbound(bench, client, port, Errand::Auth, act)?;
    let found = bench.finding_of(kinds, client)?;
    ensure!(found["role"] == "server" && found["flow"]["client"] == client.to_string().as_str(), "{found}");
    bench.ended_somehow(&before)?;
    let after = bench.sessions()?;
    ensure!(after["tls"] == before["tls"], "cleartext is counted as TLS: {after:?}");
    Ok(())
}

/// A legitimate session combined with an attack: nothing is found.
fn honest(bench: &mut Bench<'_>, act: &mut Act<'_>) -> Result<()> {
    let client = SocketAddr::new(bench.peer_without_rule(), PORT);
    let before = bench.sessions()?;
    dialogue::inbound(bench, client, 587, Errand::Tls, act)?;
    bench.ended_somehow(&before)?;
    let found = bench.accusations(client)?;
    ensure!(found.is_empty(), "an honest client is accused: {:?}", kinds(&found));
    let after = bench.sessions()?;
    ensure!(after["plaintext"] == before["plaintext"], "TLS is counted as cleartext: {after:?}");
    Ok(())
}

/// Row 2: client sessions that never took place; forged frames of the host's side arrive too.
pub fn forged_sessions(bench: &mut Bench<'_>) {
    let auth: Vec<Said> = vec![
        server("220 gateway.example.org ESMTP\r\n"),
        client("EHLO peer.example\r\n"),
        server("250-gateway.example.org\r\n250 AUTH PLAIN\r\n"),
        client("AUTH PLAIN AGFubmEAc2VjcmV0\r\n"),
        server("235 2.7.0 OK\r\n"),
        client("QUIT\r\n"),
        server("221 2.0.0 Bye\r\n"),
    ];
    // The host answers the first one itself, with other numbers.
    for flaw in [Flaw::None, Flaw::OtherStation, Flaw::PseudoHeaderSum] {
        bench.row(&format!("inbound, forged AUTH of a host that did not answer, {flaw:?}"), |bench| {
            never_answered(bench, &auth, flaw)
        });
        bench.row(&format!("inbound, forged TLS of a host that did not answer, {flaw:?}"), |bench| {
            let said = false_tls(Side::Client, Moment::Syn, &tls_flights(&bench.ground.identity)?);
            never_answered(bench, &said, flaw)
        });
    }
}

fn never_answered(bench: &mut Bench<'_>, said: &[Said], flaw: Flaw) -> Result<()> {
    let before = bench.sessions()?;
    let (address, isn) = (bench.peer_without_rule(), bench.isn());
    let client = SocketAddr::new(address, PORT);
    let mut endpoint = Endpoint::unopened(&bench.wire, client, SocketAddr::new(bench.family.gateway(), 587), isn);
    let syn = Tcp { ack: 0, ..endpoint.tcp(SYN, b"") };
    endpoint.inject(&Frame { flaw, ..endpoint.frame(syn) })?;
    let (seq, ack) = (endpoint.remote_isn, isn.wrapping_add(1));
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(SYN | ACK, b"") }))?;
    endpoint.seq = ack;
    endpoint.inject(&Frame { flaw, ..endpoint.frame(endpoint.tcp(ACK, b"")) })?;
    forge(&endpoint, Side::Client, said, flaw)?;
    for (side, bytes) in said {
        let length = u32::try_from(bytes.len())?;
        match side {
            Side::Client => endpoint.seq = endpoint.seq.wrapping_add(length),
            Side::Server => endpoint.ack = endpoint.ack.wrapping_add(length),
        }
    }
    endpoint.inject(&Frame { flaw, ..endpoint.frame(endpoint.tcp(FIN | ACK, b"")) })?;
    let (seq, ack) = (endpoint.ack, endpoint.seq.wrapping_add(1));
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(FIN | ACK, b"") }))?;
    endpoint.inject(&Frame {
        flaw,
        ..endpoint.frame(Tcp { seq: ack, ack: seq.wrapping_add(1), ..endpoint.tcp(ACK, b"") })
    })?;
    drop(endpoint);
    remembered(bench)?;
    let found = bench.findings_about(client)?;
    ensure!(found.is_empty(), "found of what never took place: {:?}", kinds(&found));
    let after = bench.sessions()?;
    ensure!(
        after["plaintext"] == before["plaintext"] && after["tls"] == before["tls"] + 1.0,
        "the forged session is counted: {before:?}, {after:?}"
    );
    ensure!(bench.history(address)?.is_none(), "something was learned of {address}");
    Ok(())
}

/// Runs a real session of another client: once it is counted and stored, everything before it is processed.
fn remembered(bench: &mut Bench<'_>) -> Result<()> {
    let (address, before) = (bench.peer_without_rule(), bench.sessions()?);
    dialogue::inbound(bench, SocketAddr::new(address, PORT), 25, Errand::Tls, &mut idle)?;
    bench.ended(&before, "tls", 1.0)?;
    bench.learned(address, 1).map(drop)
}

/// Row 4: reuses the four-tuple and the initial sequence number of a session under TLS.
pub fn reuse(bench: &mut Bench<'_>) {
    bench.row("inbound, AUTH by the four-tuple and ISN of a session under TLS", |bench| {
        let client = SocketAddr::new(bench.peer_without_rule(), PORT);
        let server = SocketAddr::new(bench.family.gateway(), 587);
        let (isn, before) = (bench.isn(), bench.sessions()?);
        let identity = &bench.ground.identity;
        for (errand, result) in [(Errand::Tls, "tls"), (Errand::Auth, "rejected")] {
            let mut endpoint = Endpoint::unopened(&bench.wire, client, server, isn);
            dialogue::visit(&mut endpoint, identity, errand, &mut idle)?;
            if errand == Errand::Tls {
                bench.ended(&before, result, 1.0)?;
            }
        }
        bench.finding("auth-plaintext", client)?;
        bench.ended_somehow(&before)
    });
}

/// Row 5: both ports are watched; the attack fills the table of flows whose client has the lower port.
pub fn watched_ports(bench: &mut Bench<'_>) {
    bench.row("inbound, control: AUTH from port 25 to 587", |bench| {
        let client = SocketAddr::new(bench.peer_without_rule(), 25);
        auth_from(bench, client, 587, &mut idle)
    });
    bench.row("inbound, AUTH from port 25 to 587 after 4,300 SYNs", |bench| {
        for _ in 0..4300 {
            let (address, isn) = (bench.peer_without_rule(), bench.isn());
            let host = SocketAddr::new(bench.family.gateway(), 587);
            let endpoint = Endpoint::unopened(&bench.wire, SocketAddr::new(address, 25), host, isn);
            // The host keeps no state for a frame to another station, and answers the other one.
            let syn = Tcp { ack: 0, ..endpoint.tcp(SYN, b"") };
            endpoint.inject(&Frame { flaw: Flaw::OtherStation, ..endpoint.frame(syn.clone()) })?;
            endpoint.inject(&endpoint.frame(syn))?;
        }
        for (from, to) in [(25, 587), (587, 25), (25, 25)] {
            let client = SocketAddr::new(bench.peer_without_rule(), from);
            auth_from(bench, client, to, &mut idle)?;
        }
        Ok(())
    });
}

/// Row 9: data that the path forges does not change the identity of a known client.
pub fn known_clients(bench: &mut Bench<'_>) {
    let rows: [(&str, &[&str]); 6] = [
        ("control: the same EHLO name", &["EHLO peer.example"]),
        ("control: HELO", &["HELO peer.example"]),
        ("another EHLO name", &["EHLO other.example"]),
        (
            "a refused XCLIENT",
            &["EHLO peer.example", "XCLIENT ADDR=203.0.113.9 NAME=other.example", "EHLO other.example"],
        ),
        ("a PROXY line", &["PROXY TCP4 203.0.113.9 192.0.2.10 40001 25", "EHLO other.example"]),
        ("HELO with another name", &["HELO other.example"]),
    ];
    for (name, lines) in rows {
        bench.row(&format!("inbound, no STARTTLS from a client that is known to use it: {name}"), |bench| {
            let (address, before) = (bench.peer_without_rule(), bench.sessions()?);
            for at in 0..6 {
                let client = SocketAddr::new(address, PORT + at);
                dialogue::inbound(bench, client, 25, Errand::Tls, &mut idle)?;
            }
            bench.ended(&before, "tls", 6.0)?;
            let client = SocketAddr::new(address, PORT + 100);
            dialogue::inbound(bench, client, 25, Errand::Cleartext(lines), &mut idle)?;
            let kind =
                if lines.iter().any(|line| line.starts_with("HELO")) { "ehlo-downgraded" } else { "starttls-unused" };
            bench.finding(kind, client).map(drop)
        });
    }
    bench.row("inbound, control: no STARTTLS from a client that was never seen", |bench| {
        let (client, before) = (SocketAddr::new(bench.peer_without_rule(), PORT), bench.sessions()?);
        dialogue::inbound(bench, client, 25, Errand::Cleartext(&["EHLO peer.example"]), &mut idle)?;
        bench.ended(&before, "plaintext", 1.0)?;
        let found = bench.accusations(client)?;
        ensure!(found.is_empty(), "accused at first sight: {:?}", kinds(&found));
        Ok(())
    });
}
