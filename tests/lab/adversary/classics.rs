//! Classic evasions of monitors (docs/threats.md, EV rows) by a peer whose frames the host accepts.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::netns::Family;
use smtpwatch_tests::packet::Flaw;
use smtpwatch_tests::packet::flag::ACK;
use smtpwatch_tests::smtp;
use smtpwatch_tests::userspace_tcp::Endpoint;

use super::bench::Bench;
use super::dialogue::{
    self, Act, Errand, Moment, PASSWORD, STRIPPED, Said, Side, WITH_STARTTLS, false_tls, forge, tls_flights,
};
use super::{inbound, outbound};
use crate::set_up::SENDER;

/// An evasion: what the peer sends at each step.
struct Trick {
    name: &'static str,
    act: fn(Moment, &mut Endpoint<'_>, &Material) -> Result<()>,
}

/// The input of an evasion.
struct Material {
    /// The end that the attacker plays.
    side: Side,
    /// The flights of a TLS handshake.
    flights: Vec<Said>,
    /// The bytes that the host receives after EHLO: the stripped reply, or the password.
    truth: Vec<u8>,
    /// Harmless bytes of the same length.
    lie: Vec<u8>,
}

/// Two copies of one range, both sent before the host acknowledges either: which copy the host uses depends on its
/// stack.
const RIVALS: [&str; 2] = ["a lie ahead, then the truth over it", "the truth, then a lie over it"];

const TRICKS: &[Trick] = &[
    Trick {
        name: "false TLS with timestamps of the past (PAWS, RFC 7323 §5)",
        act: |moment, endpoint, material| match moment {
            Moment::Syn => {
                endpoint.timestamp = Some(1_000_000_000);
                Ok(())
            }
            Moment::Ehlo => {
                endpoint.timestamp = Some(900_000_000);
                let forged =
                    forge(endpoint, material.side, &false_tls(material.side, moment, &material.flights), Flaw::None);
                endpoint.timestamp = Some(1_000_000_100);
                forged
            }
            _ => Ok(()),
        },
    },
    Trick {
        name: "data in the first segment, with a cookie request (RFC 7413)",
        act: |moment, endpoint, material| {
            if moment == Moment::Syn {
                endpoint.opening.extend([34, 2, 1, 1]);
                endpoint.opening_data = match material.side {
                    Side::Server => b"220 decoy.example ESMTP\r\n250-decoy.example\r\n250 STARTTLS\r\n".to_vec(),
                    Side::Client => b"EHLO decoy.example\r\nSTARTTLS\r\n".to_vec(),
                };
            }
            Ok(())
        },
    },
    Trick {
        name: "multipath TCP (RFC 8684)",
        act: |moment, endpoint, material| {
            if moment == Moment::Syn {
                endpoint.opening.extend(match material.side {
                    Side::Server => &[30, 12, 0x01, 0x81, 1, 2, 3, 4, 5, 6, 7, 8][..],
                    Side::Client => &[30, 4, 0x01, 0x81],
                });
            }
            Ok(())
        },
    },
    Trick {
        name: "a window of zero",
        act: |moment, endpoint, material| {
            if moment == Moment::Ehlo {
                let window = std::mem::replace(&mut endpoint.window, 0);
                endpoint.send(ACK, b"")?;
                endpoint.write_all(&material.truth)?;
                std::thread::sleep(Duration::from_millis(50));
                endpoint.window = window;
                endpoint.send(ACK, b"")?;
            }
            Ok(())
        },
    },
    Trick {
        name: "frames of time to live 1",
        act: |moment, endpoint, _| {
            if moment == Moment::Syn {
                endpoint.ttl = 1;
            }
            Ok(())
        },
    },
    Trick {
        name: RIVALS[0],
        act: |moment, endpoint, material| {
            if moment == Moment::Ehlo {
                endpoint.send_at(20, &material.lie[20..])?;
                endpoint.write_all(&material.truth)?;
            }
            Ok(())
        },
    },
    Trick {
        name: RIVALS[1],
        act: |moment, endpoint, material| {
            if moment == Moment::Ehlo {
                endpoint.send_at(0, &material.truth)?;
                endpoint.send_at(0, &material.lie)?;
                endpoint.write_all(&material.truth)?;
            }
            Ok(())
        },
    },
    Trick {
        name: "the truth backwards, byte by byte",
        act: |moment, endpoint, material| {
            if moment == Moment::Ehlo {
                for (at, byte) in material.truth.iter().enumerate().rev() {
                    endpoint.send_at(u32::try_from(at)?, &[*byte])?;
                }
                endpoint.write_all(&material.truth)?;
            }
            Ok(())
        },
    },
    Trick {
        name: "an urgent pointer after the end of the truth",
        act: |moment, endpoint, material| {
            if moment == Moment::Ehlo {
                // The urgent pointer refers to a byte that is never sent.
                endpoint.send_urgent(&material.truth, material.truth.len() + 5000)?;
            }
            Ok(())
        },
    },
];

/// The stripped reply, replaced by one of the same length that offers STARTTLS.
const LIE_OF_SERVER: &str = "250-mx.example.net\r\n250-SIZE 10240000\r\n250 STARTTLS\r\n";

/// Row 8.
pub fn tricks(bench: &mut Bench<'_>) {
    let flights = match tls_flights(&bench.ground.identity) {
        Ok(flights) => flights,
        Err(error) => return bench.row("a TLS handshake in memory", |_| Err(error)),
    };
    for side in [Side::Server, Side::Client] {
        let (truth, lie) = match side {
            Side::Server => (STRIPPED.to_owned(), LIE_OF_SERVER.to_owned()),
            Side::Client => (format!("{PASSWORD}\r\n"), format!("{:<width$}\r\n", "NOOP", width = PASSWORD.len())),
        };
        let material = Material { side, flights: flights.clone(), truth: truth.into(), lie: lie.into() };
        for Trick { name, act } in TRICKS {
            let act = &mut |moment: Moment, endpoint: &mut Endpoint<'_>| act(moment, endpoint, &material);
            found(bench, side, name, act);
        }
    }
    urgent(bench);
    large(bench);
}

/// A row: the strip or the password is found. With conflicting copies it is enough that the conflict is reported, and
/// that cleartext mail is found or the session is unknown.
fn found(bench: &mut Bench<'_>, side: Side, name: &str, act: &mut Act<'_>) {
    let rivals: &[&str] = if RIVALS.contains(&name) { &["stream-tampering", "starttls-unused"] } else { &[] };
    match side {
        Side::Server => bench.row(&format!("outbound, {name}"), |bench| {
            outbound::strip_found_as(bench, &[&["starttls-stripped"], rivals].concat(), act)
        }),
        Side::Client => bench.row(&format!("inbound, {name}"), |bench| {
            let client = SocketAddr::new(bench.peer_without_rule(), inbound::PORT);
            inbound::auth_found_as(bench, client, 587, &[&["auth-plaintext"], rivals].concat(), act)
        }),
    }
}

/// Urgent bytes, which a host omits from the stream that its program reads.
fn urgent(bench: &mut Bench<'_>) {
    for at in 0..8 {
        let whole = super::thorough() || at % 4 == usize::from(bench.hook == "xdp");
        if !whole {
            continue;
        }
        bench.row(&format!("outbound, byte {at} of STARTTLS is urgent"), |bench| {
            let server = SocketAddr::new(bench.peer_with_rule(), 25);
            let before = bench.sessions()?;
            let keyword = WITH_STARTTLS.find("STARTTLS").unwrap_or_default();
            let session = dialogue::outbound(bench, server, WITH_STARTTLS, &mut |moment, endpoint| {
                if moment != Moment::Ehlo {
                    return Ok(());
                }
                endpoint.send_urgent(WITH_STARTTLS.as_bytes(), keyword + at)
            })?;
            ensure!(!session.tls, "the host read the urgent byte: {session:?}");
            bench.ended_somehow(&before)?;
            // The wire does not show which bytes the program read, but it shows that mail was sent in cleartext.
            bench.finding_of(&["starttls-stripped", "starttls-unused"], server)?;
            ensure!(bench.sessions()?["tls"] == before["tls"], "cleartext is counted as TLS");
            Ok(())
        });
        let at = at / 2;
        bench.row(&format!("inbound, an urgent byte at {at} in AUTH"), |bench| {
            let mut line = format!("{PASSWORD}\r\n").into_bytes();
            line.insert(at, b'X');
            let client = SocketAddr::new(bench.peer_without_rule(), inbound::PORT);
            inbound::auth_from(bench, client, 587, &mut |moment, endpoint| {
                if moment == Moment::Ehlo { endpoint.send_urgent(&line, at) } else { Ok(()) }
            })
        });
    }
}

/// Segments larger than Ethernet allows: segments of the host before hardware splits them, and jumbo frames.
fn large(bench: &mut Bench<'_>) {
    bench.row("outbound, AUTH at the end of 64 KiB that the host sends at once", |bench| {
        let server = SocketAddr::new(bench.peer_without_rule(), 587);
        let before = bench.sessions()?;
        let lines = format!("NOOP {}\r\n", "x".repeat(500)).repeat(120);
        let act = &mut dialogue::idle;
        dialogue::outbound_by(bench, server, WITH_STARTTLS, act, || {
            let mut client = smtp::connect(server)?;
            smtp::ask(&mut client, "EHLO gateway.example.org")?;
            client.get_mut().write_all(format!("{lines}{PASSWORD}\r\n").as_bytes())?;
            let mut reply = String::new();
            for _ in 0..121 {
                client.read_line(&mut reply)?;
            }
            smtp::ask(&mut client, "QUIT")
        })?;
        let found = bench.finding("auth-plaintext", server)?;
        ensure!(found["role"] == "client", "{found}");
        bench.ended_somehow(&before)
    });
    bench.row("inbound, AUTH at the end of a jumbo frame", |bench| {
        let mut lines = format!("NOOP {}\r\n", "x".repeat(80)).repeat(100).into_bytes();
        lines.extend(format!("{PASSWORD}\r\n").as_bytes());
        inbound::auth(bench, &mut |moment, endpoint| {
            if moment != Moment::Ehlo {
                return Ok(());
            }
            endpoint.send_at(0, &lines)?;
            endpoint.seq = endpoint.seq.wrapping_add(u32::try_from(lines.len())?);
            endpoint.await_acknowledgment("a jumbo frame")?;
            (0..100).try_for_each(|_| endpoint.reply().map(drop))
        })
    });
}

/// What the attacker sends between two segments of a body.
type Interruption = fn(&mut Endpoint<'_>) -> Result<()>;

/// Row 6: packets of an outsider do not make the gate copy a message body.
pub fn bodies(bench: &mut Bench<'_>) {
    let decoys: [(&str, Interruption); 6] = [
        ("control: nothing", |_| Ok(())),
        ("a SYN of the client with another ISN", |endpoint| super::decoys::syn(endpoint, 0x1000)),
        ("a SYN of the client with its own ISN", |endpoint| super::decoys::syn(endpoint, 0)),
        ("a SYN-ACK of the server with another ISN", |endpoint| super::decoys::syn_ack(endpoint, 0x1000)),
        ("a SYN-ACK of the server with its own ISN", |endpoint| super::decoys::syn_ack(endpoint, 0)),
        ("SYN and SYN-ACK of another life", |endpoint| {
            super::decoys::syn(endpoint, 0x1000)?;
            super::decoys::syn_ack(endpoint, 0x1000)
        }),
    ];
    let odd = usize::from(bench.hook == "xdp") ^ usize::from(bench.family == Family::V6);
    for (at, (name, decoy)) in decoys.into_iter().enumerate() {
        // Each attack runs with half of the hooks and families.
        if at > 0 && at % 2 == odd && !super::thorough() {
            continue;
        }
        bench.row(&format!("outbound, in a body: {name}"), |bench| body_out(bench, at, decoy));
        bench.row(&format!("inbound, in a body: {name}"), |bench| body_in(bench, at, decoy));
    }
}

/// Number of body lines sent after the attack: a third of a megabyte.
const LINES: usize = 4000;
/// Minimum number of segments of a body.
const MANY: f64 = 150.0;

fn canary(bench: &Bench<'_>, direction: &str, at: usize) -> String {
    format!("The-{direction}-{}-{:?}-{at}-canary-of-a-message-body.{}", bench.hook, bench.family, "=".repeat(10))
}

fn body_out(bench: &mut Bench<'_>, at: usize, decoy: Interruption) -> Result<()> {
    let canary = canary(bench, "outbound", at);
    let server = SocketAddr::new(bench.peer_without_rule(), 25);
    let (before, packets) = (bench.sessions()?, bench.packets_at_rest()?);
    let act = &mut |moment: Moment, endpoint: &mut Endpoint<'_>| {
        match moment {
            // One segment at a time, so that each is a packet of its own, also before hardware segmentation.
            Moment::Syn => endpoint.window = 1460,
            Moment::Body => decoy(endpoint)?,
            _ => {}
        }
        Ok(())
    };
    dialogue::outbound_by(bench, server, STRIPPED, act, || {
        let mut client = smtp::connect(server)?;
        for line in ["EHLO gateway.example.org", "MAIL FROM:<anna@example.org>", "RCPT TO:<bob@example.net>", "DATA"] {
            smtp::ask(&mut client, line)?;
        }
        let body = format!("Subject: x\r\n\r\n{}", format!("{canary}\r\n").repeat(LINES));
        smtp::ask(&mut client, &format!("{body}."))?;
        smtp::ask(&mut client, "QUIT")
    })?;
    stays_in_the_kernel(bench, &canary, &before, packets)
}

fn body_in(bench: &mut Bench<'_>, at: usize, decoy: Interruption) -> Result<()> {
    let canary = canary(bench, "inbound", at);
    let client = SocketAddr::new(bench.peer_without_rule(), inbound::PORT);
    let server = SocketAddr::new(bench.family.gateway(), 25);
    let (before, packets, isn) = (bench.sessions()?, bench.packets_at_rest()?, bench.isn());
    let mut endpoint = Endpoint::unopened(&bench.wire, client, server, isn);
    endpoint.open()?;
    endpoint.reply()?;
    for line in ["EHLO peer.example", "MAIL FROM:<anna@peer.example>", "RCPT TO:<bob@example.org>", "DATA"] {
        endpoint.ask(line)?;
    }
    endpoint.write_all(b"Subject: x\r\n\r\nThe first line.\r\n")?;
    decoy(&mut endpoint)?;
    endpoint.write_all(format!("{canary}\r\n").repeat(LINES).as_bytes())?;
    endpoint.ask(".")?;
    endpoint.ask("QUIT")?;
    endpoint.await_end()?;
    endpoint.close()?;
    stays_in_the_kernel(bench, &canary, &before, packets)
}

/// Checks that the message was counted in the kernel and not copied to the daemon.
fn stays_in_the_kernel(
    bench: &Bench<'_>,
    canary: &str,
    before: &super::bench::Sessions,
    (forwarded, muted): (f64, f64),
) -> Result<()> {
    bench.ended_somehow(before)?;
    let counted = || {
        let (forwarded_now, muted_now) = bench.packets()?;
        let (copied, left) = (forwarded_now - forwarded, muted_now - muted);
        Ok((copied + left > MANY).then_some((copied, left)))
    };
    let (copied, left) = eventually(Duration::from_secs(5), "the packets of a body in the kernel's counters", counted)?;
    // The dialogue is copied, and the start of the body until the gate mutes the flow.
    ensure!(copied < left, "{copied} packets were copied to the daemon, {left} were not");
    ensure!(!bench.remembers(canary.as_bytes())?, "a line of the message is in the daemon's memory");
    Ok(())
}

/// Row 7: a flood of flows without a connection does not evict the stripped one.
pub fn floods(bench: &mut Bench<'_>) {
    for flaw in [Flaw::OtherStation, Flaw::None] {
        // Each flood runs with one hook.
        if (flaw == Flaw::None) != (bench.hook == "xdp") && !super::thorough() {
            continue;
        }
        bench.row(&format!("outbound, 70,000 flows of one packet within a session, {flaw:?}"), |bench| {
            let flood = super::decoys::flood(bench, 70_000, flaw);
            let server = SocketAddr::new(bench.peer_with_rule(), 25);
            let wire = &bench.wire;
            let (isn, gateway, identity) = (0x7000_0000, &bench.ground.path.gateway, &bench.ground.identity);
            std::thread::scope(|scope| {
                let client =
                    scope.spawn(|| gateway.run(|| smtp::send(server, Some(identity), SENDER, "bob@peer.example")));
                let mut idle = |moment: Moment, endpoint: &mut Endpoint<'_>| {
                    if moment == Moment::Ehlo {
                        flood.iter().try_for_each(|frame| endpoint.inject(frame))?;
                        endpoint.drain()?;
                        // The strip is slow: it waits until the daemon has processed the flood.
                        bench.at_rest()?;
                    }
                    Ok(())
                };
                let served = dialogue::serve(wire, server, isn, STRIPPED, identity, &mut idle);
                let sent = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
                served.and(sent)
            })?;
            bench.finding("starttls-stripped", server).map(drop)
        });
    }
}

/// The history reserves a share per role: clients of one network do not evict a mail exchanger.
pub fn history_flood(bench: &mut Bench<'_>) {
    // More clients than the whole history holds; in the short run only enough to check the procedure.
    let clients: u16 = if super::thorough() { 1100 } else { 20 };
    bench.row(&format!("history, then {clients} clients of one network, a strip"), |bench| {
        let exchanger = bench.peer_without_rule();
        let server = SocketAddr::new(exchanger, 25);
        for _ in 0..6 {
            let session = dialogue::outbound(bench, server, WITH_STARTTLS, &mut dialogue::idle)?;
            ensure!(session.tls, "no TLS came about: {session:?}");
        }
        bench.learned(exchanger, 6)?;
        let before = bench.sessions()?;
        for _ in 0..clients {
            let client = SocketAddr::new(bench.neighbour(), inbound::PORT);
            dialogue::inbound(bench, client, 25, Errand::Greeting, &mut dialogue::idle)?;
        }
        bench.ended(&before, "tls", f64::from(clients))?;
        dialogue::outbound(bench, server, STRIPPED, &mut dialogue::idle)?;
        bench.finding("starttls-stripped", server).map(drop)
    });
}
