//! Dialogues of the attacker's server and client over a userspace TCP, and forged dialogues that never took place.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use rustls::{ClientConnection, Connection, ServerConnection, StreamOwned};
use smtpwatch_tests::packet::flag::{ACK, PSH};
use smtpwatch_tests::packet::{Flaw, Frame, Tcp};
use smtpwatch_tests::smtp::{self, Session};
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::userspace_tcp::{Endpoint, SEGMENT};
use smtpwatch_tests::wire::Wire;

use super::bench::Bench;
use crate::set_up::SENDER;

/// When the attacker acts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// The client's SYN has arrived.
    Syn,
    /// The connection is established; the greeting has not been sent.
    Greeting,
    /// The client has sent EHLO.
    Ehlo,
    /// The client has sent MAIL.
    Mail,
    /// The client has sent DATA and received 354.
    Body,
    /// The client has sent QUIT.
    Quit,
}

/// The attacker's action at each moment.
pub type Act<'a> = dyn FnMut(Moment, &mut Endpoint<'_>) -> Result<()> + 'a;

/// Does nothing at any moment.
pub fn idle(_: Moment, _: &mut Endpoint<'_>) -> Result<()> {
    Ok(())
}

/// The EHLO reply of a server with STARTTLS.
pub const WITH_STARTTLS: &str = "250-mx.example.net\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME\r\n";
/// The same reply without STARTTLS.
pub const STRIPPED: &str = "250-mx.example.net\r\n250-SIZE 10240000\r\n250 8BITMIME\r\n";

/// A dialogue of a client on the host with a server that the attacker plays; `act` is called at each moment.
pub fn outbound(bench: &mut Bench<'_>, server: SocketAddr, ehlo: &str, act: &mut Act<'_>) -> Result<Session> {
    let identity = &bench.ground.identity;
    outbound_by(bench, server, ehlo, act, || smtp::send(server, Some(identity), SENDER, "bob@peer.example"))
}

/// As [`outbound`], with this client.
pub fn outbound_by<T: Send>(
    bench: &mut Bench<'_>,
    server: SocketAddr,
    ehlo: &str,
    act: &mut Act<'_>,
    client: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let isn = bench.isn();
    let identity = &bench.ground.identity;
    let gateway = &bench.ground.path.gateway;
    std::thread::scope(|scope| {
        let client = scope.spawn(move || gateway.run(client));
        let served = serve(&bench.wire, server, isn, ehlo, identity, act);
        let sent = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        match (served, sent) {
            (Ok(()), sent) => sent,
            (Err(server), Ok(_)) => Err(server),
            (Err(server), Err(client)) => Err(server.context(format!("the client: {client:#}"))),
        }
    })
}

/// The server's part of [`outbound`].
pub fn serve(
    wire: &Wire,
    server: SocketAddr,
    isn: u32,
    ehlo: &str,
    identity: &Identity,
    act: &mut Act<'_>,
) -> Result<()> {
    let mut endpoint = Endpoint::accept(wire, server, isn)?;
    act(Moment::Syn, &mut endpoint)?;
    endpoint.answer()?;
    act(Moment::Greeting, &mut endpoint)?;
    endpoint.write_all(b"220 mx.example.net ESMTP\r\n")?;
    loop {
        let line = endpoint.line()?;
        let reply = match line.split(' ').next().unwrap_or_default() {
            "EHLO" => {
                let before = endpoint.seq;
                act(Moment::Ehlo, &mut endpoint)?;
                // The attack may have sent the reply already.
                if endpoint.seq == before { ehlo } else { "" }
            }
            "STARTTLS" => {
                endpoint.write_all(b"220 2.0.0 Ready to start TLS\r\n")?;
                let connection = ServerConnection::new(identity.server()?)?;
                under_tls(StreamOwned::new(connection, &mut endpoint))?;
                endpoint.await_end()?;
                return endpoint.close();
            }
            "MAIL" => {
                act(Moment::Mail, &mut endpoint)?;
                "250 2.1.0 OK\r\n"
            }
            "DATA" => {
                endpoint.write_all(b"354 Go ahead\r\n")?;
                endpoint.await_line()?;
                act(Moment::Body, &mut endpoint)?;
                while endpoint.line()? != "." {}
                "250 2.0.0 OK\r\n"
            }
            "QUIT" => {
                act(Moment::Quit, &mut endpoint)?;
                endpoint.write_all(b"221 2.0.0 Bye\r\n")?;
                endpoint.await_end()?;
                return endpoint.close();
            }
            _ => "250 2.1.5 OK\r\n",
        };
        endpoint.write_all(reply.as_bytes())?;
        endpoint.await_acknowledgment(&line)?;
    }
}

/// The rest of a session under TLS, which the attacker does not change.
fn under_tls(mut stream: impl Read + Write) -> Result<()> {
    let mut reader = BufReader::new(&mut stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let reply = match line.trim_end().split(' ').next().unwrap_or_default() {
            "DATA" => {
                reader.get_mut().write_all(b"354 Go ahead\r\n")?;
                while line.trim_end() != "." {
                    line.clear();
                    reader.read_line(&mut line)?;
                }
                "250 2.0.0 OK\r\n"
            }
            "QUIT" => {
                reader.get_mut().write_all(b"221 2.0.0 Bye\r\n")?;
                return Ok(reader.get_mut().flush()?);
            }
            _ => "250 2.0.0 OK\r\n",
        };
        reader.get_mut().write_all(reply.as_bytes())?;
        reader.get_mut().flush()?;
    }
}

/// The speaker of an utterance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// One utterance.
pub type Said = (Side, Vec<u8>);

/// The flights of a real TLS handshake, and the records after it.
pub fn tls_flights(identity: &Identity) -> Result<Vec<Said>> {
    let mut client = Connection::from(ClientConnection::new(identity.client()?, identity.server_name()?)?);
    let mut server = Connection::from(ServerConnection::new(identity.server()?)?);
    let mut said = Vec::new();
    for round in 0..4 {
        if round == 3 {
            client.writer().write_all(b"EHLO gateway.example.org\r\n")?;
        }
        exchange(Side::Client, &mut client, &mut server, &mut said)?;
        exchange(Side::Server, &mut server, &mut client, &mut said)?;
    }
    Ok(said)
}

fn exchange(side: Side, from: &mut Connection, to: &mut Connection, said: &mut Vec<Said>) -> Result<()> {
    let mut flight = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut flight)?;
    }
    if !flight.is_empty() {
        let mut rest = &flight[..];
        while !rest.is_empty() {
            to.read_tls(&mut rest)?;
            to.process_new_packets()?;
        }
        said.push((side, flight));
    }
    Ok(())
}

/// The utterances that the daemon would have to see from this moment on to classify the session as TLS. The attacker
/// plays `side` in the real session.
pub fn false_tls(side: Side, moment: Moment, flights: &[Said]) -> Vec<Said> {
    let mut said = match (side, moment) {
        (_, Moment::Syn) | (Side::Server, Moment::Greeting) => {
            vec![server("220 mx.example.net ESMTP\r\n"), client("EHLO gateway.example.org\r\n"), server(WITH_STARTTLS)]
        }
        (Side::Client, Moment::Greeting) => vec![client("EHLO gateway.example.org\r\n"), server(WITH_STARTTLS)],
        (Side::Client, _) => Vec::new(),
        (_, Moment::Ehlo) => vec![server(WITH_STARTTLS)],
        (_, Moment::Mail) => {
            vec![server("250 2.1.0 OK\r\n"), client("EHLO gateway.example.org\r\n"), server(WITH_STARTTLS)]
        }
        (_, Moment::Body) => vec![
            client(".\r\n"),
            server("250 2.0.0 OK\r\n"),
            client("EHLO gateway.example.org\r\n"),
            server(WITH_STARTTLS),
        ],
        (_, Moment::Quit) => vec![server("250 2.0.0 OK\r\n")],
    };
    said.extend([client("STARTTLS\r\n"), server("220 2.0.0 Ready to start TLS\r\n")]);
    said.extend_from_slice(flights);
    said
}

/// An utterance of the server.
pub fn server(text: &str) -> Said {
    (Side::Server, text.as_bytes().to_vec())
}

/// An utterance of the client.
pub fn client(text: &str) -> Said {
    (Side::Client, text.as_bytes().to_vec())
}

/// Sends the utterances of `said` in the names of both ends, each acknowledged by the other end. Frames of the end that
/// the attacker plays have this flaw; frames in the host's name are well-formed but arrive instead of leaving.
pub fn forge(endpoint: &Endpoint<'_>, plays: Side, said: &[Said], flaw: Flaw) -> Result<()> {
    let (mut seq, mut ack) = (endpoint.seq, endpoint.ack);
    if seq == endpoint.isn {
        seq = seq.wrapping_add(1);
    }
    for (side, bytes) in said {
        for piece in bytes.chunks(SEGMENT) {
            let of_peer = |flags, payload: &[u8], seq, ack| {
                let tcp = Tcp { seq, ack, ..endpoint.tcp(flags, payload) };
                Frame { flaw, ..endpoint.frame(tcp) }
            };
            let of_host = |flags, payload: &[u8], seq, ack| {
                endpoint.frame_of_host(Tcp { seq, ack, ..endpoint.tcp(flags, payload) })
            };
            let length = u32::try_from(piece.len())?;
            if *side == plays {
                endpoint.inject(&of_peer(ACK | PSH, piece, seq, ack))?;
                seq = seq.wrapping_add(length);
                endpoint.inject(&of_host(ACK, b"", ack, seq))?;
            } else {
                endpoint.inject(&of_host(ACK | PSH, piece, ack, seq))?;
                ack = ack.wrapping_add(length);
                endpoint.inject(&of_peer(ACK, b"", seq, ack))?;
            }
        }
    }
    Ok(())
}

/// What the attacker's client does with a real server of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Errand<'a> {
    /// A password in cleartext.
    Auth,
    /// TLS, then a password and a message under it.
    Tls,
    /// TLS, and only EHLO under it.
    Greeting,
    /// These lines before and instead of TLS, then a message in cleartext.
    Cleartext(&'a [&'a str]),
}

/// A dialogue of a client that the attacker plays with a server of the host; `act` is called at each moment.
pub fn inbound(
    bench: &mut Bench<'_>,
    client: SocketAddr,
    port: u16,
    errand: Errand<'_>,
    act: &mut Act<'_>,
) -> Result<()> {
    let isn = bench.isn();
    let mut endpoint = Endpoint::unopened(&bench.wire, client, SocketAddr::new(bench.family.gateway(), port), isn);
    visit(&mut endpoint, &bench.ground.identity, errand, act)
}

/// As [`inbound`], on an endpoint that is not yet connected.
pub fn visit(endpoint: &mut Endpoint<'_>, identity: &Identity, errand: Errand<'_>, act: &mut Act<'_>) -> Result<()> {
    const NAME: &str = "EHLO peer.example";
    act(Moment::Syn, endpoint)?;
    endpoint.open()?;
    let greeting = endpoint.reply()?;
    ensure!(greeting.starts_with("220"), "{greeting}");
    act(Moment::Greeting, endpoint)?;
    let before: &[&str] = if let Errand::Cleartext(lines) = errand { lines } else { &[NAME] };
    for line in before {
        endpoint.ask(line)?;
    }
    let before = endpoint.seq;
    act(Moment::Ehlo, endpoint)?;
    match errand {
        // The attack may have sent it already.
        Errand::Auth if endpoint.seq != before => {
            endpoint.reply()?;
        }
        Errand::Auth => {
            endpoint.ask(PASSWORD)?;
        }
        Errand::Tls | Errand::Greeting => {
            let go_ahead = endpoint.ask("STARTTLS")?;
            ensure!(go_ahead.starts_with("220"), "{go_ahead}");
            let connection = ClientConnection::new(identity.client()?, identity.server_name()?)?;
            let mut secure = BufReader::new(StreamOwned::new(connection, &mut *endpoint));
            // More than the gate copies of a handshake.
            let message = format!("Subject: x\r\n\r\n{}.", "Under TLS.\r\n".repeat(4000));
            let [mail, rcpt, data, _] = MESSAGE;
            let lines = [NAME, PASSWORD, mail, rcpt, data, &message];
            for line in if errand == Errand::Tls { &lines[..] } else { &lines[..1] } {
                smtp::ask(&mut secure, line)?;
            }
            // Without QUIT the host closes second, so its socket is freed at once.
            return endpoint.close();
        }
        Errand::Cleartext(_) => {
            for line in MESSAGE {
                let reply = endpoint.ask(line)?;
                ensure!(reply.starts_with(['2', '3']), "{line}: {reply}");
            }
        }
    }
    act(Moment::Quit, endpoint)?;
    endpoint.ask("QUIT")?;
    endpoint.await_end()?;
    endpoint.close()
}

/// A password in cleartext.
pub const PASSWORD: &str = "AUTH PLAIN AGFubmEAbm90LWEtc2VjcmV0LTdLcQ==";
const MESSAGE: [&str; 4] =
    ["MAIL FROM:<anna@peer.example>", "RCPT TO:<bob@gateway.example.org>", "DATA", "Subject: x\r\n\r\nx\r\n."];
