//! The host as the client: real mail from the gateway to servers that the attacker plays.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use smtpwatch_tests::packet::flag::{ACK, FIN, SYN};
use smtpwatch_tests::packet::{Flaw, Frame, Tcp};
use smtpwatch_tests::userspace_tcp::Endpoint;

use super::bench::{Bench, kinds};
use super::decoys;
use super::dialogue::{
    self, Act, Moment, STRIPPED, Said, Side, WITH_STARTTLS, client, false_tls, forge, idle, server, tls_flights,
};

/// The same sessions without an attack.
pub fn controls(bench: &mut Bench<'_>) {
    bench.row("outbound, control: a strip", |bench| strip(bench, &mut idle));
    bench.row("outbound, control: an honest session", |bench| honest(bench, &mut idle));
}

/// Rows 1 and 3.
pub fn decoys(bench: &mut Bench<'_>) {
    for decoys in [decoys::OF_SERVER, decoys::OF_EITHER] {
        decoys::try_all(bench, Side::Server, decoys, (strip, honest));
    }
}

/// Frames with the host's source address beside a live session are counted.
pub fn counted(bench: &mut Bench<'_>) {
    bench.row("outbound, frames in the host's name are counted", |bench| {
        let forged = bench.forged()?;
        honest(bench, &mut |moment, endpoint| {
            if moment != Moment::Ehlo {
                return Ok(());
            }
            let (seq, ack) = (endpoint.ack, endpoint.seq);
            let frame = endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(ACK, b"decoy\r\n") });
            (0..100).try_for_each(|_| endpoint.inject(&frame))
        })?;
        bench.forged_reach(forged + 100.0)
    });
}

/// A strip combined with an attack: it is found, and the session is never classified as TLS.
pub fn strip(bench: &mut Bench<'_>, act: &mut Act<'_>) -> Result<()> {
    strip_found_as(bench, &["starttls-stripped"], act)
}

/// As [`strip`], found as one of these kinds.
pub fn strip_found_as(bench: &mut Bench<'_>, kinds: &[&str], act: &mut Act<'_>) -> Result<()> {
    let server = SocketAddr::new(bench.peer_with_rule(), 25);
    let before = bench.sessions()?;
    let session = dialogue::outbound(bench, server, STRIPPED, act)?;
    ensure!(!session.tls && session.ehlo.len() == 3, "the host took a decoy: {session:?}");
    bench.finding_of(kinds, server)?;
    bench.ended_somehow(&before)?;
    let after = bench.sessions()?;
    ensure!(after["tls"] == before["tls"], "cleartext is counted as TLS: {after:?}");
    Ok(())
}

/// A legitimate session combined with an attack: nothing is found.
fn honest(bench: &mut Bench<'_>, act: &mut Act<'_>) -> Result<()> {
    let server = SocketAddr::new(bench.peer_with_rule(), 25);
    let before = bench.sessions()?;
    let session = dialogue::outbound(bench, server, WITH_STARTTLS, act)?;
    ensure!(session.tls, "no TLS came about: {session:?}");
    bench.ended_somehow(&before)?;
    let found = bench.accusations(server)?;
    ensure!(found.is_empty(), "an honest server is accused: {:?}", kinds(&found));
    let after = bench.sessions()?;
    ensure!(after["plaintext"] == before["plaintext"], "TLS is counted as cleartext: {after:?}");
    Ok(())
}

/// Row 2: sessions that never took place; the frames of both ends arrive.
pub fn forged_sessions(bench: &mut Bench<'_>) {
    // The host answers the first with resets, because no socket has these numbers. It does not answer the others.
    for flaw in [Flaw::None, Flaw::OtherStation, Flaw::PseudoHeaderSum] {
        bench.row(&format!("outbound, forged cleartext against a host that never spoke, {flaw:?}"), |bench| {
            let server = bench.peer_with_rule();
            never_spoke(bench, server, &cleartext(STRIPPED), (25, flaw))
        });
        bench.row(&format!("outbound, forged refusal against a host that never spoke, {flaw:?}"), |bench| {
            let server = bench.peer_with_rule();
            never_spoke(bench, server, &refusal(), (25, flaw))
        });
        bench.row(&format!("outbound, forged AUTH against a host that never spoke, {flaw:?}"), |bench| {
            let server = bench.peer_with_rule();
            never_spoke(bench, server, &auth(), (587, flaw))
        });
        bench.row(&format!("outbound, forged TLS of a host that never spoke, {flaw:?}"), |bench| {
            let server = bench.peer_without_rule();
            let said = false_tls(Side::Server, Moment::Greeting, &tls_flights(&bench.ground.identity)?);
            never_spoke(bench, server, &said, (25, flaw))
        });
        bench.row(
            &format!("outbound, forged TLS six times, then an honest session without the offer, {flaw:?}"),
            |bench| {
                let server = bench.peer_without_rule();
                let said = false_tls(Side::Server, Moment::Greeting, &tls_flights(&bench.ground.identity)?);
                for _ in 0..6 {
                    forged_session(bench, server, &said, (25, flaw))?;
                }
                let (server, before) = (SocketAddr::new(server, 25), bench.sessions()?);
                dialogue::outbound(bench, server, STRIPPED, &mut idle)?;
                bench.ended(&before, "plaintext", 1.0)?;
                let found = bench.findings_about(server)?;
                ensure!(found.is_empty(), "accused by what was forged: {:?}", kinds(&found));
                Ok(())
            },
        );
        bench.row(
            &format!("outbound, history, forged TLS with and without the offer in turns, a strip, {flaw:?}"),
            |bench| wear_down(bench, 16, flaw),
        );
        bench.row(&format!("outbound, history, forged TLS without the offer, a strip, {flaw:?}"), |bench| {
            wear_down(bench, 40, flaw)
        });
    }
    bench.row("outbound, control: history, a strip", |bench| wear_down(bench, 0, Flaw::None));
}

/// Builds a history of six legitimate sessions, forges further ones, then strips.
fn wear_down(bench: &mut Bench<'_>, forged: usize, flaw: Flaw) -> Result<()> {
    let address = bench.peer_without_rule();
    let server = SocketAddr::new(address, 25);
    let before = bench.sessions()?;
    for _ in 0..6 {
        let session = dialogue::outbound(bench, server, WITH_STARTTLS, &mut idle)?;
        ensure!(session.tls, "no TLS came about: {session:?}");
    }
    bench.ended(&before, "tls", 6.0)?;
    let taught = bench.learned(address, 6)?;
    let flights = tls_flights(&bench.ground.identity)?;
    for at in 0..forged {
        let said = if at % 2 == 0 && forged < 20 {
            false_tls(Side::Server, Moment::Greeting, &flights)
        } else {
            bare_tls(&flights)
        };
        forged_session(bench, address, &said, (25, flaw))?;
    }
    remembered(bench)?;
    let (after, found) = (bench.history(address)?, bench.findings_about(server)?);
    ensure!(found.is_empty(), "accused by what was forged: {:?}", kinds(&found));
    ensure!(after.as_ref() == Some(&taught), "the history was {taught}, and is {after:?}");
    dialogue::outbound(bench, server, STRIPPED, &mut idle)?;
    bench.finding("starttls-stripped", server).map(drop)
}

/// Runs a real session with another server: once it is counted and stored, everything before it is processed.
fn remembered(bench: &mut Bench<'_>) -> Result<()> {
    let (address, before) = (bench.peer_without_rule(), bench.sessions()?);
    let session = dialogue::outbound(bench, SocketAddr::new(address, 25), WITH_STARTTLS, &mut idle)?;
    ensure!(session.tls, "no TLS came about: {session:?}");
    bench.ended(&before, "tls", 1.0)?;
    bench.learned(address, 1).map(drop)
}

/// Checks that a forged session raises no finding, and is neither stored nor counted.
fn never_spoke(bench: &mut Bench<'_>, server: IpAddr, said: &[Said], (port, flaw): (u16, Flaw)) -> Result<()> {
    let before = bench.sessions()?;
    forged_session(bench, server, said, (port, flaw))?;
    remembered(bench)?;
    let found = bench.findings_about(SocketAddr::new(server, port))?;
    ensure!(found.is_empty(), "accused, and never spoke: {:?}", kinds(&found));
    let after = bench.sessions()?;
    ensure!(
        after["plaintext"] == before["plaintext"] && after["tls"] == before["tls"] + 1.0,
        "the forged session is counted: {before:?}, {after:?}"
    );
    ensure!(bench.history(server)?.is_none(), "something was learned of {server}");
    Ok(())
}

/// A whole session that never took place: every frame of both ends arrives at the host. The server's frames have this
/// flaw.
fn forged_session(bench: &mut Bench<'_>, server: IpAddr, said: &[Said], (port, flaw): (u16, Flaw)) -> Result<()> {
    let isn = bench.isn();
    // A port that no socket of the host uses: ephemeral ports begin at 32768.
    let client = SocketAddr::new(bench.family.gateway(), 20_000 + u16::try_from(isn % 10_000)?);
    let mut endpoint = Endpoint::unopened(&bench.wire, SocketAddr::new(server, port), client, isn);
    let syn = Tcp { seq: endpoint.remote_isn, ack: 0, ..endpoint.tcp(SYN, b"") };
    endpoint.inject(&endpoint.frame_of_host(syn))?;
    endpoint.inject(&Frame { flaw, ..endpoint.frame(endpoint.tcp(SYN | ACK, b"")) })?;
    endpoint.seq = isn.wrapping_add(1);
    let third = Tcp { seq: endpoint.ack, ack: endpoint.seq, ..endpoint.tcp(ACK, b"") };
    endpoint.inject(&endpoint.frame_of_host(third))?;
    forge(&endpoint, Side::Server, said, flaw)?;
    for (side, bytes) in said {
        let length = u32::try_from(bytes.len())?;
        match side {
            Side::Server => endpoint.seq = endpoint.seq.wrapping_add(length),
            Side::Client => endpoint.ack = endpoint.ack.wrapping_add(length),
        }
    }
    let (seq, ack) = (endpoint.ack, endpoint.seq);
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(FIN | ACK, b"") }))?;
    endpoint.ack = endpoint.ack.wrapping_add(1);
    endpoint.inject(&Frame { flaw, ..endpoint.frame(endpoint.tcp(FIN | ACK, b"")) })?;
    let (seq, ack) = (endpoint.ack, endpoint.seq.wrapping_add(1));
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(ACK, b"") }))
}

fn cleartext(ehlo: &str) -> Vec<Said> {
    vec![
        server("220 mx.example.net ESMTP\r\n"),
        client("EHLO gateway.example.org\r\n"),
        server(ehlo),
        client("MAIL FROM:<anna@example.org>\r\n"),
        server("250 2.1.0 OK\r\n"),
        client("RCPT TO:<bob@example.net>\r\n"),
        server("250 2.1.5 OK\r\n"),
        client("DATA\r\n"),
        server("354 Go ahead\r\n"),
        client("Subject: x\r\n\r\nx\r\n.\r\n"),
        server("250 2.0.0 OK\r\n"),
        client("QUIT\r\n"),
        server("221 2.0.0 Bye\r\n"),
    ]
}

fn refusal() -> Vec<Said> {
    let mut said = cleartext(WITH_STARTTLS);
    said.splice(3..3, [client("STARTTLS\r\n"), server("454 4.7.0 TLS not available\r\n")]);
    said
}

fn auth() -> Vec<Said> {
    let mut said = cleartext("250-mx.example.net\r\n250 AUTH PLAIN\r\n");
    said.splice(3..3, [client("AUTH PLAIN AGFubmEAc2VjcmV0\r\n"), server("235 2.7.0 OK\r\n")]);
    said
}

/// STARTTLS without an offer, then TLS.
fn bare_tls(flights: &[Said]) -> Vec<Said> {
    let mut said = cleartext(STRIPPED);
    said.truncate(3);
    said.extend([client("STARTTLS\r\n"), server("220 2.0.0 Ready to start TLS\r\n")]);
    said.extend_from_slice(flights);
    said
}
