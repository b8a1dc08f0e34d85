//! The host as the client: real mail out of the gateway, to servers that the attacker plays.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use smtpwatch_tests::netns::Family;
use smtpwatch_tests::packet::flag::{ACK, FIN, PSH, RST, SYN};
use smtpwatch_tests::packet::{Flaw, Frame, Tcp};
use smtpwatch_tests::userspace_tcp::Endpoint;

use super::bench::{Bench, kinds};
use super::dialogue::{self, Moment, STRIPPED, Said, Side, WITH_STARTTLS, false_tls, forge, tls_flights};

/// What the attacker sends beside a session, at one moment of it.
struct Decoy {
    name: &'static str,
    moment: Moment,
    flaws: Flaws,
    inject: fn(&mut Endpoint<'_>, Flaw, &[Said]) -> Result<()>,
}

/// What is wrong with the server's frames of a decoy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaws {
    /// Each in turn.
    All,
    /// Those that a host sees before it looks for a connection.
    BeforeTcp,
    /// Nothing: the state of the connection alone makes the host discard them, or they are in the name of the host.
    None,
}

impl Flaws {
    fn of(self, family: Family) -> Vec<Flaw> {
        let all = if family == Family::V4 { Flaw::V4 } else { Flaw::V6 };
        match self {
            Self::None => vec![Flaw::None],
            Self::BeforeTcp => all.iter().copied().filter(|flaw| !flaw.of_connection()).collect(),
            Self::All => all.to_vec(),
        }
    }
}

const DECOYS: &[Decoy] = &[
    Decoy { name: "false TLS before the EHLO reply", moment: Moment::Ehlo, flaws: Flaws::All, inject: false_tls_here },
    Decoy {
        name: "false TLS before the greeting",
        moment: Moment::Greeting,
        flaws: Flaws::All,
        inject: false_tls_here,
    },
    Decoy { name: "false TLS before the MAIL reply", moment: Moment::Mail, flaws: Flaws::All, inject: false_tls_here },
    Decoy { name: "false TLS in the body", moment: Moment::Body, flaws: Flaws::All, inject: false_tls_here },
    Decoy { name: "false TLS after QUIT", moment: Moment::Quit, flaws: Flaws::All, inject: false_tls_here },
    Decoy {
        name: "SYN-ACK with another ISN",
        moment: Moment::Syn,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, flaw, _| other_syn_ack(endpoint, flaw),
    },
    Decoy {
        name: "SYN-ACK with another ISN, after the handshake",
        moment: Moment::Greeting,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, flaw, _| other_syn_ack(endpoint, flaw),
    },
    Decoy {
        name: "SYN-ACK with another ISN and a false dialogue upon it",
        moment: Moment::Syn,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, flaw, flights| {
            other_syn_ack(endpoint, flaw)?;
            let isn = endpoint.isn;
            (endpoint.isn, endpoint.seq) = (OTHER_ISN, OTHER_ISN.wrapping_add(1));
            let forged = forge(endpoint, &false_tls(Moment::Syn, flights), flaw);
            (endpoint.isn, endpoint.seq) = (isn, isn);
            forged
        },
    },
    Decoy {
        name: "SYN-ACK that acknowledges another SYN",
        moment: Moment::Syn,
        flaws: Flaws::None,
        inject: |endpoint, _, _| {
            let tcp = endpoint.tcp(SYN | ACK, b"");
            endpoint.inject(&endpoint.frame(Tcp { seq: OTHER_ISN, ack: tcp.ack.wrapping_add(1000), ..tcp }))
        },
    },
    Decoy {
        name: "data before the SYN-ACK",
        moment: Moment::Syn,
        flaws: Flaws::None,
        inject: |endpoint, _, _| {
            let tcp = endpoint.tcp(ACK | PSH, b"220 mx.example.net ESMTP\r\n");
            endpoint.inject(&endpoint.frame(Tcp { seq: endpoint.isn.wrapping_add(1), ..tcp }))
        },
    },
    Decoy {
        name: "data before the SYN-ACK, far from its ISN",
        moment: Moment::Syn,
        flaws: Flaws::None,
        inject: |endpoint, _, _| {
            let tcp = endpoint.tcp(ACK | PSH, b"220 mx.example.net ESMTP\r\n");
            endpoint.inject(&endpoint.frame(Tcp { seq: endpoint.isn.wrapping_add(0x4000_0000), ..tcp }))
        },
    },
    Decoy { name: "FIN of the server", moment: Moment::Ehlo, flaws: Flaws::All, inject: fin_of_server },
    Decoy {
        name: "FIN of the server, acknowledged in the host's name",
        moment: Moment::Ehlo,
        flaws: Flaws::All,
        inject: |endpoint, flaw, flights| {
            fin_of_server(endpoint, flaw, flights)?;
            let (seq, ack) = (endpoint.ack, endpoint.seq.wrapping_add(1));
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(ACK, b"") }))
        },
    },
    Decoy { name: "FIN in the host's name", moment: Moment::Ehlo, flaws: Flaws::None, inject: fin_of_host },
    Decoy {
        name: "FINs of both ends",
        moment: Moment::Ehlo,
        flaws: Flaws::All,
        inject: |endpoint, flaw, flights| {
            fin_of_host(endpoint, flaw, flights)?;
            let acknowledged = endpoint.ack.wrapping_add(1);
            let fin = Tcp { ack: acknowledged, ..endpoint.tcp(FIN | ACK, b"") };
            endpoint.inject(&Frame { flaw, ..endpoint.frame(fin) })?;
            let (seq, ack) = (acknowledged, endpoint.seq.wrapping_add(1));
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(ACK, b"") }))
        },
    },
    Decoy {
        name: "RST of the server",
        moment: Moment::Ehlo,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, flaw, _| endpoint.inject(&Frame { flaw, ..endpoint.frame(endpoint.tcp(RST | ACK, b"")) }),
    },
    Decoy {
        name: "RST of the server, out of the window",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _, _| rst_at(endpoint, 0x4000_0000),
    },
    Decoy {
        name: "RST of the server, in the window but not at its edge",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _, _| rst_at(endpoint, 100),
    },
    Decoy { name: "RST in the host's name", moment: Moment::Ehlo, flaws: Flaws::None, inject: rst_of_host },
    Decoy {
        name: "RST in the host's name, before the greeting",
        moment: Moment::Greeting,
        flaws: Flaws::None,
        inject: rst_of_host,
    },
    Decoy {
        name: "SYN in the host's name with another ISN",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _, _| {
            let tcp = endpoint.tcp(SYN, b"");
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq: OTHER_ISN, ack: 0, ..tcp }))
        },
    },
    Decoy {
        name: "SYN and SYN-ACK of another life",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _, _| {
            let tcp = endpoint.tcp(SYN, b"");
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq: OTHER_ISN, ack: 0, ..tcp.clone() }))?;
            let flags = SYN | ACK;
            endpoint.inject(&endpoint.frame(Tcp { seq: 77, ack: OTHER_ISN.wrapping_add(1), flags, ..tcp }))
        },
    },
    Decoy {
        name: "data ahead that the host discards",
        moment: Moment::Ehlo,
        flaws: Flaws::All,
        inject: |endpoint, flaw, _| {
            let tcp = endpoint.tcp(ACK | PSH, WITH_STARTTLS.as_bytes());
            let ahead = Tcp { seq: tcp.seq.wrapping_add(3000), ..tcp };
            endpoint.inject(&Frame { flaw, ..endpoint.frame(ahead) })
        },
    },
    Decoy {
        name: "data in the host's name",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _, _| {
            let (seq, ack) = (endpoint.ack, endpoint.seq);
            for at in [0, 3000] {
                let tcp = endpoint.tcp(ACK | PSH, b"XXXX decoy\r\n");
                endpoint.inject(&endpoint.frame_of_host(Tcp { seq: seq.wrapping_add(at), ack, ..tcp }))?;
            }
            Ok(())
        },
    },
];

/// What the server of no session has.
const OTHER_ISN: u32 = 0x5555_0000;

fn false_tls_here(endpoint: &mut Endpoint<'_>, flaw: Flaw, said: &[Said]) -> Result<()> {
    forge(endpoint, said, flaw)
}

fn other_syn_ack(endpoint: &Endpoint<'_>, flaw: Flaw) -> Result<()> {
    let ack = endpoint.remote_isn.wrapping_add(1);
    let tcp = Tcp { seq: OTHER_ISN, ack, ..endpoint.tcp(SYN | ACK, b"") };
    endpoint.inject(&Frame { flaw, ..endpoint.frame(tcp) })
}

fn fin_of_server(endpoint: &mut Endpoint<'_>, flaw: Flaw, _: &[Said]) -> Result<()> {
    endpoint.inject(&Frame { flaw, ..endpoint.frame(endpoint.tcp(FIN | ACK, b"")) })
}

fn fin_of_host(endpoint: &mut Endpoint<'_>, _: Flaw, _: &[Said]) -> Result<()> {
    let (seq, ack) = (endpoint.ack, endpoint.seq);
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(FIN | ACK, b"") }))
}

fn rst_of_host(endpoint: &mut Endpoint<'_>, _: Flaw, _: &[Said]) -> Result<()> {
    let (seq, ack) = (endpoint.ack, endpoint.seq);
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(RST | ACK, b"") }))
}

fn rst_at(endpoint: &Endpoint<'_>, distance: u32) -> Result<()> {
    let tcp = endpoint.tcp(RST | ACK, b"");
    endpoint.inject(&endpoint.frame(Tcp { seq: tcp.seq.wrapping_add(distance), ..tcp }))
}

/// The same machinery, idle.
pub fn controls(bench: &mut Bench<'_>) {
    bench.row("control: a strip", |bench| strip(bench, |_, _| Ok(())));
    bench.row("control: an honest session", |bench| honest(bench, |_, _| Ok(())));
}

/// Rows 1 and 3: frames that the host discards, or that are in its own name.
pub fn decoys(bench: &mut Bench<'_>) {
    let flights = match tls_flights(&bench.ground.identity) {
        Ok(flights) => flights,
        Err(error) => return bench.row("a TLS handshake in memory", |_| Err(error)),
    };
    for (at, decoy) in DECOYS.iter().enumerate() {
        let all = decoy.flaws.of(bench.family);
        // Every decoy with two flaws at least, the first one with each; all of them are covered over hooks and families.
        let start = at * 5 + usize::from(bench.hook == "xdp") * 7;
        let few = if at == 0 || super::thorough() { all.len() } else { all.len().min(2) };
        for flaw in (0..few).map(|step| all[(start + step * 3) % all.len()]) {
            bench.row(&format!("{}, {flaw:?}", decoy.name), |bench| {
                let said = false_tls(decoy.moment, &flights);
                strip(
                    bench,
                    |moment, endpoint| {
                        if moment == decoy.moment { (decoy.inject)(endpoint, flaw, &said) } else { Ok(()) }
                    },
                )
            });
            bench.row(&format!("{}, {flaw:?}, no strip", decoy.name), |bench| {
                // Later moments are under TLS.
                let moment =
                    if matches!(decoy.moment, Moment::Syn | Moment::Greeting) { decoy.moment } else { Moment::Ehlo };
                let said = false_tls(moment, &flights);
                honest(
                    bench,
                    |now, endpoint| if now == moment { (decoy.inject)(endpoint, flaw, &said) } else { Ok(()) },
                )
            });
        }
    }
}

/// A strip with an attack at its side: it is found, and never taken for TLS.
fn strip(bench: &mut Bench<'_>, act: impl FnMut(Moment, &mut Endpoint<'_>) -> Result<()>) -> Result<()> {
    let server = SocketAddr::new(bench.peer_with_rule(), 25);
    let before = bench.sessions()?;
    let session = dialogue::outbound(bench, server, STRIPPED, act)?;
    ensure!(!session.tls && session.ehlo.len() == 3, "the host took a decoy: {session:?}");
    bench.finding("starttls-stripped", server)?;
    bench.ended_somehow(&before)?;
    let after = bench.sessions()?;
    ensure!(after["tls"] == before["tls"], "cleartext is counted as TLS: {after:?}");
    Ok(())
}

/// An honest session with an attack at its side: nothing is found.
fn honest(bench: &mut Bench<'_>, act: impl FnMut(Moment, &mut Endpoint<'_>) -> Result<()>) -> Result<()> {
    let server = SocketAddr::new(bench.peer_with_rule(), 25);
    let before = bench.sessions()?;
    let session = dialogue::outbound(bench, server, WITH_STARTTLS, act)?;
    ensure!(session.tls, "no TLS came about: {session:?}");
    bench.ended_somehow(&before)?;
    let found = bench.findings_about(server)?;
    ensure!(found.is_empty(), "an honest server is accused: {:?}", kinds(&found));
    let after = bench.sessions()?;
    ensure!(after["plaintext"] == before["plaintext"], "TLS is counted as cleartext: {after:?}");
    Ok(())
}

/// Row 2: sessions that never took place, both ends of which arrive.
pub fn forged_sessions(bench: &mut Bench<'_>) {
    // The host answers the first with resets: no socket of its own has these numbers. It says nothing about the others.
    for flaw in [Flaw::None, Flaw::OtherStation, Flaw::PseudoHeaderSum] {
        bench.row(&format!("forged cleartext against a host that never spoke, {flaw:?}"), |bench| {
            let server = bench.peer_with_rule();
            never_spoke(bench, server, &cleartext(STRIPPED), (25, flaw))
        });
        bench.row(&format!("forged refusal against a host that never spoke, {flaw:?}"), |bench| {
            let server = bench.peer_with_rule();
            never_spoke(bench, server, &refusal(), (25, flaw))
        });
        bench.row(&format!("forged AUTH against a host that never spoke, {flaw:?}"), |bench| {
            let server = bench.peer_with_rule();
            never_spoke(bench, server, &auth(), (587, flaw))
        });
        bench.row(&format!("forged TLS of a host that never spoke, {flaw:?}"), |bench| {
            let server = bench.peer_without_rule();
            let said = false_tls(Moment::Greeting, &tls_flights(&bench.ground.identity)?);
            never_spoke(bench, server, &said, (25, flaw))
        });
        bench.row(&format!("forged TLS six times, then an honest session without the offer, {flaw:?}"), |bench| {
            let server = bench.peer_without_rule();
            let said = false_tls(Moment::Greeting, &tls_flights(&bench.ground.identity)?);
            for _ in 0..6 {
                forged_session(bench, server, &said, (25, flaw))?;
            }
            let (server, before) = (SocketAddr::new(server, 25), bench.sessions()?);
            dialogue::outbound(bench, server, STRIPPED, |_, _| Ok(()))?;
            bench.ended(&before, "plaintext", 1.0)?;
            let found = bench.findings_about(server)?;
            ensure!(found.is_empty(), "accused by what was forged: {:?}", kinds(&found));
            Ok(())
        });
        bench.row(&format!("history, forged TLS with and without the offer in turns, a strip, {flaw:?}"), |bench| {
            wear_down(bench, 16, flaw)
        });
        bench.row(&format!("history, forged TLS without the offer, a strip, {flaw:?}"), |bench| {
            wear_down(bench, 40, flaw)
        });
    }
    bench.row("control: history, a strip", |bench| wear_down(bench, 0, Flaw::None));
}

/// Teaches by six honest sessions, forges some, and strips.
fn wear_down(bench: &mut Bench<'_>, forged: usize, flaw: Flaw) -> Result<()> {
    let address = bench.peer_without_rule();
    let server = SocketAddr::new(address, 25);
    let before = bench.sessions()?;
    for _ in 0..6 {
        let session = dialogue::outbound(bench, server, WITH_STARTTLS, |_, _| Ok(()))?;
        ensure!(session.tls, "no TLS came about: {session:?}");
    }
    bench.ended(&before, "tls", 6.0)?;
    let taught = bench.learned(address, 6)?;
    let flights = tls_flights(&bench.ground.identity)?;
    for at in 0..forged {
        let said = if at % 2 == 0 && forged < 20 { false_tls(Moment::Greeting, &flights) } else { bare_tls(&flights) };
        forged_session(bench, address, &said, (25, flaw))?;
    }
    remembered(bench)?;
    let (after, found) = (bench.history(address)?, bench.findings_about(server)?);
    ensure!(found.is_empty(), "accused by what was forged: {:?}", kinds(&found));
    ensure!(after.as_ref() == Some(&taught), "the history was {taught}, and is {after:?}");
    dialogue::outbound(bench, server, STRIPPED, |_, _| Ok(()))?;
    bench.finding("starttls-stripped", server).map(drop)
}

/// Has a real session, with a server of its own: when that is counted and remembered, everything before it is.
fn remembered(bench: &mut Bench<'_>) -> Result<()> {
    let (address, before) = (bench.peer_without_rule(), bench.sessions()?);
    let session = dialogue::outbound(bench, SocketAddr::new(address, 25), WITH_STARTTLS, |_, _| Ok(()))?;
    ensure!(session.tls, "no TLS came about: {session:?}");
    bench.ended(&before, "tls", 1.0)?;
    bench.learned(address, 1).map(drop)
}

/// Nothing is found, learned or counted of a session that was forged.
fn never_spoke(bench: &mut Bench<'_>, server: IpAddr, said: &[Said], (port, flaw): (u16, Flaw)) -> Result<()> {
    let (before, forged) = (bench.sessions()?, bench.forged()?);
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
    ensure!(bench.forged()? > forged, "no frame is counted as forged");
    Ok(())
}

/// A whole session that never took place: every frame of both ends arrives at the host. The server's have
/// this flaw.
fn forged_session(bench: &mut Bench<'_>, server: IpAddr, said: &[Said], (port, flaw): (u16, Flaw)) -> Result<()> {
    let isn = bench.isn();
    // A port that no socket of the host has: ephemeral ones begin at 32768.
    let client = SocketAddr::new(bench.family.gateway(), 20_000 + u16::try_from(isn % 10_000)?);
    let mut endpoint = Endpoint::unopened(&bench.wire, SocketAddr::new(server, port), client, isn);
    let syn = Tcp { seq: endpoint.remote_isn, ack: 0, ..endpoint.tcp(SYN, b"") };
    endpoint.inject(&endpoint.frame_of_host(syn))?;
    endpoint.inject(&Frame { flaw, ..endpoint.frame(endpoint.tcp(SYN | ACK, b"")) })?;
    endpoint.seq = isn.wrapping_add(1);
    let third = Tcp { seq: endpoint.ack, ack: endpoint.seq, ..endpoint.tcp(ACK, b"") };
    endpoint.inject(&endpoint.frame_of_host(third))?;
    forge(&endpoint, said, flaw)?;
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

fn server(text: &str) -> Said {
    (Side::Server, text.as_bytes().to_vec())
}

fn client(text: &str) -> Said {
    (Side::Client, text.as_bytes().to_vec())
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

/// TLS, asked for without an offer.
fn bare_tls(flights: &[Said]) -> Vec<Said> {
    let mut said = cleartext(STRIPPED);
    said.truncate(3);
    said.extend([client("STARTTLS\r\n"), server("220 2.0.0 Ready to start TLS\r\n")]);
    said.extend_from_slice(flights);
    said
}
