//! Decoys: frames sent during a session that the host discards, or that have the host's own source address.

use std::net::SocketAddr;

use anyhow::Result;
use smtpwatch_tests::netns::Family;
use smtpwatch_tests::packet::flag::{ACK, FIN, PSH, RST, SYN};
use smtpwatch_tests::packet::{Flaw, Frame, Tcp};
use smtpwatch_tests::userspace_tcp::Endpoint;

use super::bench::Bench;
use super::dialogue::{Act, Moment, Said, Side, WITH_STARTTLS, false_tls, forge, tls_flights};

/// What the attacker sends in addition to a session, and at which moment.
pub struct Decoy {
    name: &'static str,
    moment: Moment,
    flaws: Flaws,
    inject: fn(&mut Endpoint<'_>, &Means<'_>) -> Result<()>,
}

/// The parts from which a decoy is built.
struct Means<'a> {
    /// The end that the attacker plays in the real session.
    side: Side,
    /// The flaw of the decoy's frames.
    flaw: Flaw,
    /// A dialogue that continues from this moment to TLS.
    said: &'a [Said],
}

/// Which flaws the peer's frames of a decoy have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaws {
    /// Every flaw in turn.
    All,
    /// Flaws that a host detects before it looks up the connection.
    BeforeTcp,
    /// None: only the state of the connection makes the host discard the frames, or they have the host's source
    /// address.
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

/// Decoys for a session in which the attacker plays the server.
pub const OF_SERVER: &[Decoy] = &[
    Decoy { name: "false TLS before the EHLO reply", moment: Moment::Ehlo, flaws: Flaws::All, inject: false_dialogue },
    Decoy {
        name: "false TLS before the greeting",
        moment: Moment::Greeting,
        flaws: Flaws::All,
        inject: false_dialogue,
    },
    Decoy { name: "false TLS before the MAIL reply", moment: Moment::Mail, flaws: Flaws::All, inject: false_dialogue },
    Decoy { name: "false TLS in the body", moment: Moment::Body, flaws: Flaws::All, inject: false_dialogue },
    Decoy { name: "false TLS after QUIT", moment: Moment::Quit, flaws: Flaws::All, inject: false_dialogue },
    Decoy {
        name: "SYN-ACK with another ISN",
        moment: Moment::Syn,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, means| other_syn_ack(endpoint, means.flaw),
    },
    Decoy {
        name: "SYN-ACK with another ISN, after the handshake",
        moment: Moment::Greeting,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, means| other_syn_ack(endpoint, means.flaw),
    },
    Decoy {
        name: "SYN-ACK with another ISN and a false dialogue upon it",
        moment: Moment::Syn,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, means| {
            other_syn_ack(endpoint, means.flaw)?;
            let isn = endpoint.isn;
            (endpoint.isn, endpoint.seq) = (OTHER_ISN, OTHER_ISN.wrapping_add(1));
            let forged = forge(endpoint, means.side, means.said, means.flaw);
            (endpoint.isn, endpoint.seq) = (isn, isn);
            forged
        },
    },
    Decoy {
        name: "SYN-ACK that acknowledges another SYN",
        moment: Moment::Syn,
        flaws: Flaws::None,
        inject: |endpoint, _| {
            let tcp = endpoint.tcp(SYN | ACK, b"");
            endpoint.inject(&endpoint.frame(Tcp { seq: OTHER_ISN, ack: tcp.ack.wrapping_add(1000), ..tcp }))
        },
    },
    Decoy {
        name: "data before the SYN-ACK",
        moment: Moment::Syn,
        flaws: Flaws::None,
        inject: |endpoint, _| {
            let tcp = endpoint.tcp(ACK | PSH, b"220 mx.example.net ESMTP\r\n");
            endpoint.inject(&endpoint.frame(Tcp { seq: endpoint.isn.wrapping_add(1), ..tcp }))
        },
    },
    Decoy {
        name: "data before the SYN-ACK, far from its ISN",
        moment: Moment::Syn,
        flaws: Flaws::None,
        inject: |endpoint, _| {
            let tcp = endpoint.tcp(ACK | PSH, b"220 mx.example.net ESMTP\r\n");
            endpoint.inject(&endpoint.frame(Tcp { seq: endpoint.isn.wrapping_add(0x4000_0000), ..tcp }))
        },
    },
    Decoy {
        name: "SYN and SYN-ACK of another life",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _| {
            let tcp = endpoint.tcp(SYN, b"");
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq: OTHER_ISN, ack: 0, ..tcp.clone() }))?;
            let flags = SYN | ACK;
            endpoint.inject(&endpoint.frame(Tcp { seq: 77, ack: OTHER_ISN.wrapping_add(1), flags, ..tcp }))
        },
    },
];

/// Decoys for a session in which the attacker plays the client.
pub const OF_CLIENT: &[Decoy] = &[
    Decoy { name: "false TLS after the EHLO reply", moment: Moment::Ehlo, flaws: Flaws::All, inject: false_dialogue },
    Decoy { name: "false TLS after the greeting", moment: Moment::Greeting, flaws: Flaws::All, inject: false_dialogue },
    Decoy { name: "false TLS after AUTH", moment: Moment::Quit, flaws: Flaws::All, inject: false_dialogue },
    Decoy {
        name: "SYN with another ISN before the real one",
        moment: Moment::Syn,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, means| other_syn(endpoint, means.flaw),
    },
    Decoy {
        name: "SYN with another ISN, after the handshake",
        moment: Moment::Greeting,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, means| other_syn(endpoint, means.flaw),
    },
    Decoy {
        name: "SYN with another ISN that the host challenges",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _| other_syn(endpoint, Flaw::None),
    },
    Decoy {
        name: "SYN-ACK in the host's name before the real SYN",
        moment: Moment::Syn,
        flaws: Flaws::None,
        inject: |endpoint, _| syn_ack_of_host(endpoint),
    },
    Decoy {
        name: "SYN-ACK in the host's name",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _| syn_ack_of_host(endpoint),
    },
    Decoy {
        name: "SYN-ACK in the host's name and a false dialogue upon it",
        moment: Moment::Syn,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, means| {
            let syn = Tcp { ack: 0, ..endpoint.tcp(SYN, b"") };
            endpoint.inject(&Frame { flaw: means.flaw, ..endpoint.frame(syn) })?;
            syn_ack_of_host(endpoint)?;
            let (isn, ack) = (endpoint.isn, endpoint.ack);
            (endpoint.seq, endpoint.ack) = (isn.wrapping_add(1), OTHER_ISN.wrapping_add(1));
            let forged = forge(endpoint, means.side, means.said, means.flaw);
            (endpoint.seq, endpoint.ack) = (isn, ack);
            forged
        },
    },
];

/// Decoys for any session.
pub const OF_EITHER: &[Decoy] = &[
    Decoy { name: "FIN of the peer", moment: Moment::Ehlo, flaws: Flaws::All, inject: fin_of_peer },
    Decoy {
        name: "FIN of the peer, acknowledged in the host's name",
        moment: Moment::Ehlo,
        flaws: Flaws::All,
        inject: |endpoint, means| {
            fin_of_peer(endpoint, means)?;
            let (seq, ack) = (endpoint.ack, endpoint.seq.wrapping_add(1));
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(ACK, b"") }))
        },
    },
    Decoy { name: "FIN in the host's name", moment: Moment::Ehlo, flaws: Flaws::None, inject: fin_of_host },
    Decoy {
        name: "FINs of both ends",
        moment: Moment::Ehlo,
        flaws: Flaws::All,
        inject: |endpoint, means| {
            fin_of_host(endpoint, means)?;
            let acknowledged = endpoint.ack.wrapping_add(1);
            let fin = Tcp { ack: acknowledged, ..endpoint.tcp(FIN | ACK, b"") };
            endpoint.inject(&Frame { flaw: means.flaw, ..endpoint.frame(fin) })?;
            let (seq, ack) = (acknowledged, endpoint.seq.wrapping_add(1));
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(ACK, b"") }))
        },
    },
    Decoy {
        name: "RST of the peer",
        moment: Moment::Ehlo,
        flaws: Flaws::BeforeTcp,
        inject: |endpoint, means| {
            endpoint.inject(&Frame { flaw: means.flaw, ..endpoint.frame(endpoint.tcp(RST | ACK, b"")) })
        },
    },
    Decoy {
        name: "RST of the peer, out of the window",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _| rst_at(endpoint, 0x4000_0000),
    },
    Decoy {
        name: "RST of the peer, in the window but not at its edge",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _| rst_at(endpoint, 100),
    },
    Decoy { name: "RST in the host's name", moment: Moment::Ehlo, flaws: Flaws::None, inject: rst_of_host },
    Decoy {
        name: "RST in the host's name, after the handshake",
        moment: Moment::Greeting,
        flaws: Flaws::None,
        inject: rst_of_host,
    },
    Decoy {
        name: "SYN in the host's name with another ISN",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _| {
            let tcp = endpoint.tcp(SYN, b"");
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq: OTHER_ISN, ack: 0, ..tcp }))
        },
    },
    Decoy {
        name: "data ahead that the host discards",
        moment: Moment::Ehlo,
        flaws: Flaws::All,
        inject: |endpoint, means| {
            let tcp = endpoint.tcp(ACK | PSH, WITH_STARTTLS.as_bytes());
            let ahead = Tcp { seq: tcp.seq.wrapping_add(3000), ..tcp };
            endpoint.inject(&Frame { flaw: means.flaw, ..endpoint.frame(ahead) })
        },
    },
    Decoy {
        name: "data in the host's name",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _| {
            let (seq, ack) = (endpoint.ack, endpoint.seq);
            for at in [0, 3000] {
                let tcp = endpoint.tcp(ACK | PSH, b"XXXX decoy\r\n");
                endpoint.inject(&endpoint.frame_of_host(Tcp { seq: seq.wrapping_add(at), ack, ..tcp }))?;
            }
            Ok(())
        },
    },
    Decoy {
        name: "acknowledgments in the host's name of what it has not got",
        moment: Moment::Ehlo,
        flaws: Flaws::None,
        inject: |endpoint, _| {
            let (seq, ack) = (endpoint.ack, endpoint.seq.wrapping_add(20_000));
            endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(ACK, b"") }))
        },
    },
];

/// Step from one flaw to the next; no list of flaws has a length that shares a divisor with it.
const STEP: usize = 7;

/// An initial sequence number that no session has.
const OTHER_ISN: u32 = 0x5555_0000;

fn false_dialogue(endpoint: &mut Endpoint<'_>, means: &Means<'_>) -> Result<()> {
    forge(endpoint, means.side, means.said, means.flaw)
}

fn other_syn_ack(endpoint: &Endpoint<'_>, flaw: Flaw) -> Result<()> {
    let ack = endpoint.remote_isn.wrapping_add(1);
    let tcp = Tcp { seq: OTHER_ISN, ack, ..endpoint.tcp(SYN | ACK, b"") };
    endpoint.inject(&Frame { flaw, ..endpoint.frame(tcp) })
}

fn other_syn(endpoint: &Endpoint<'_>, flaw: Flaw) -> Result<()> {
    let tcp = Tcp { seq: OTHER_ISN, ack: 0, ..endpoint.tcp(SYN, b"") };
    endpoint.inject(&Frame { flaw, ..endpoint.frame(tcp) })
}

fn syn_ack_of_host(endpoint: &Endpoint<'_>) -> Result<()> {
    let ack = endpoint.isn.wrapping_add(1);
    let tcp = Tcp { seq: OTHER_ISN, ack, ..endpoint.tcp(SYN | ACK, b"") };
    endpoint.inject(&endpoint.frame_of_host(tcp))
}

fn fin_of_peer(endpoint: &mut Endpoint<'_>, means: &Means<'_>) -> Result<()> {
    endpoint.inject(&Frame { flaw: means.flaw, ..endpoint.frame(endpoint.tcp(FIN | ACK, b"")) })
}

fn fin_of_host(endpoint: &mut Endpoint<'_>, _: &Means<'_>) -> Result<()> {
    let (seq, ack) = (endpoint.ack, endpoint.seq);
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(FIN | ACK, b"") }))
}

fn rst_of_host(endpoint: &mut Endpoint<'_>, _: &Means<'_>) -> Result<()> {
    let (seq, ack) = (endpoint.ack, endpoint.seq);
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(RST | ACK, b"") }))
}

fn rst_at(endpoint: &Endpoint<'_>, distance: u32) -> Result<()> {
    let tcp = endpoint.tcp(RST | ACK, b"");
    endpoint.inject(&endpoint.frame(Tcp { seq: tcp.seq.wrapping_add(distance), ..tcp }))
}

/// A kind of session that is attacked.
pub type Session = fn(&mut Bench<'_>, &mut Act<'_>) -> Result<()>;

/// Tries each decoy during a cleartext session, which must be found, and during a legitimate session, which must raise
/// nothing. The attacker plays `side`.
pub fn try_all(bench: &mut Bench<'_>, side: Side, decoys: &'static [Decoy], (cleartext, honest): (Session, Session)) {
    let flights = match tls_flights(&bench.ground.identity) {
        Ok(flights) => flights,
        Err(error) => return bench.row("a TLS handshake in memory", |_| Err(error)),
    };
    for (at, decoy) in decoys.iter().enumerate() {
        let all = decoy.flaws.of(bench.family);
        // Every decoy with one flaw, the first one with all; the chosen flaw differs between hooks, families and sides.
        let start = at * 5 + usize::from(bench.hook == "xdp") * 7 + usize::from(side == Side::Client) * 3;
        let whole = super::thorough() || at == 0 && decoy.flaws == Flaws::All && decoys.len() != OF_EITHER.len();
        let few = if whole { all.len() } else { 1 };
        for flaw in (0..few).map(|step| all[(start + step * STEP) % all.len()]) {
            let name = match side {
                Side::Server => format!("outbound, {}, {flaw:?}", decoy.name),
                Side::Client => format!("inbound, {}, {flaw:?}", decoy.name),
            };
            let act = |chosen: Moment| {
                let said = false_tls(side, chosen, &flights);
                move |moment: Moment, endpoint: &mut Endpoint<'_>| {
                    let means = Means { side, flaw, said: &said };
                    if moment == chosen { (decoy.inject)(endpoint, &means) } else { Ok(()) }
                }
            };
            bench.row(&name, |bench| cleartext(bench, &mut act(decoy.moment)));
            // Later moments are under TLS.
            let early = matches!(decoy.moment, Moment::Syn | Moment::Greeting | Moment::Ehlo);
            let moment = if early { decoy.moment } else { Moment::Ehlo };
            bench.row(&format!("{name}, honest"), |bench| honest(bench, &mut act(moment)));
        }
    }
}

/// Injects a SYN of the client at this distance from its initial sequence number. If the attacker plays the server, the
/// SYN has the host's source address.
pub fn syn(endpoint: &Endpoint<'_>, distance: u32) -> Result<()> {
    if endpoint.remote.port() >= 1024 {
        let seq = endpoint.remote_isn.wrapping_add(distance);
        return endpoint.inject(&endpoint.frame_of_host(Tcp { seq, ack: 0, ..endpoint.tcp(SYN, b"") }));
    }
    let seq = endpoint.isn.wrapping_add(distance);
    endpoint.inject(&endpoint.frame(Tcp { seq, ack: 0, ..endpoint.tcp(SYN, b"") }))
}

/// Injects the server's SYN-ACK that answers [`syn`]. If the attacker plays the client, it has the host's source
/// address.
pub fn syn_ack(endpoint: &Endpoint<'_>, distance: u32) -> Result<()> {
    let (isn, remote) = (endpoint.isn.wrapping_add(distance), endpoint.remote_isn.wrapping_add(distance));
    let tcp = endpoint.tcp(SYN | ACK, b"");
    if endpoint.remote.port() >= 1024 {
        return endpoint.inject(&endpoint.frame(Tcp { seq: isn, ack: remote.wrapping_add(1), ..tcp }));
    }
    endpoint.inject(&endpoint.frame_of_host(Tcp { seq: remote, ack: isn.wrapping_add(1), ..tcp }))
}

/// `count` frames, each of a flow of its own without a SYN: half of them from servers, half from clients.
pub fn flood(bench: &mut Bench<'_>, count: u32, flaw: Flaw) -> Vec<Frame> {
    let mut address = bench.peer_without_rule();
    (0..count)
        .map(|at| {
            if at % 10_000 == 0 {
                address = bench.peer_without_rule();
            }
            #[expect(clippy::cast_possible_truncation, reason = "below 65,536")]
            let high = (20_000 + at % 10_000) as u16;
            let (from, to) = if at % 2 == 0 { (25, high) } else { (high, 25) };
            let host = SocketAddr::new(bench.family.gateway(), to);
            let endpoint = Endpoint::unopened(&bench.wire, SocketAddr::new(address, from), host, at);
            Frame { flaw, ..endpoint.frame(endpoint.tcp(ACK | PSH, b"250 x\r\n")) }
        })
        .collect()
}
