//! A stream that the gate mutes: an SMTP dialogue, a real TLS handshake, then records as fast as TCP accepts them.
//!
//! The bytes after the handshake have the form of application-data records and are not encrypted: encryption would be
//! the bottleneck and hide the loss on the watched host.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustls::{ClientConnection, ServerConnection};
use smtpwatch_tests::netns::Path;
use smtpwatch_tests::smtp;
use smtpwatch_tests::tls::Identity;

use super::site::EXCHANGER;

/// Longest record of TLS 1.2 and 1.3 on the wire (RFC 8446 §5.2).
const RECORD: usize = 16_384 + 256;
const AT_ONCE: usize = 8;
const SILENCE: Duration = Duration::from_secs(20);

/// When the stream ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// After this duration.
    Elapsed(Duration),
    /// After this many bytes.
    Octets(u64),
}

/// Runs one stream from the gateway to the exchanger; returns bytes per second as the receiver measures them.
pub fn run(path: &Path, identity: &Identity, until: Until) -> Result<f64> {
    let listener = path.exchanger.run(|| TcpListener::bind(EXCHANGER))??;
    std::thread::scope(|scope| {
        let (ready, go) = channel();
        let receiver = scope.spawn(move || receive(&listener, identity, &ready));
        let begun = path.gateway.run(move || send(identity, until, &go))?;
        let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
        // If the receiver failed, its error is the cause: report it first.
        let ((octets, end), begun) = (received?, begun?);
        Ok(octets / end.duration_since(begun).as_secs_f64())
    })
}

fn send(identity: &Identity, until: Until, go: &Receiver<()>) -> Result<Instant> {
    let mut clear = smtp::connect(EXCHANGER)?;
    smtp::ask(&mut clear, "EHLO gateway.example.org")?;
    smtp::ask(&mut clear, "STARTTLS")?;
    let mut stream = clear.into_inner();
    let mut connection = ClientConnection::new(identity.client()?, identity.server_name()?)?;
    connection.complete_io(&mut stream)?;
    // Before the receiver has finished the handshake it would parse the benchmark's records as real ones.
    go.recv_timeout(SILENCE).context("the receiver does not end the handshake")?;
    let records = [0x17, 0x03, 0x03].into_iter().chain(u16::try_from(RECORD)?.to_be_bytes());
    let records: Vec<u8> = records.chain((0..RECORD).map(|at| at.to_le_bytes()[0])).collect::<Vec<_>>().repeat(AT_ONCE);
    let (begun, mut sent) = (Instant::now(), 0);
    while match until {
        Until::Elapsed(limit) => begun.elapsed() < limit,
        Until::Octets(limit) => sent < limit,
    } {
        stream.write_all(&records)?;
        sent += records.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    // Read to the end what the server has sent: unread data would cause a reset.
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(begun)
}

fn receive(listener: &TcpListener, identity: &Identity, ready: &Sender<()>) -> Result<(f64, Instant)> {
    let (stream, _) = accept(listener)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let mut clear = BufReader::new(stream);
    for reply in [
        "220 mx1.example.net ESMTP",
        "250-mx1.example.net\r\n250-SIZE 35882577\r\n250 STARTTLS",
        "220 2.0.0 Ready to start TLS",
    ] {
        clear.get_mut().write_all(format!("{reply}\r\n").as_bytes())?;
        if !reply.ends_with("TLS") || reply.starts_with("250") {
            clear.read_line(&mut String::new())?;
        }
    }
    let mut stream = clear.into_inner();
    let mut connection = ServerConnection::new(identity.server()?)?;
    connection.complete_io(&mut stream)?;
    while connection.wants_write() {
        connection.write_tls(&mut stream)?;
    }
    ready.send(()).context("the sender is gone")?;
    let (mut buffer, mut octets) = (vec![0; 256 * 1024], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => {
                let end = Instant::now();
                #[expect(clippy::cast_precision_loss, reason = "some gigabytes")]
                return Ok((octets as f64, end));
            }
            read => octets += read,
        }
    }
}

/// Accepts the next connection within [`SILENCE`].
fn accept(listener: &TcpListener) -> Result<(TcpStream, std::net::SocketAddr)> {
    listener.set_nonblocking(true)?;
    smtpwatch_tests::command::eventually(SILENCE, "a connection", || match listener.accept() {
        Ok((stream, from)) => {
            stream.set_nonblocking(false)?;
            Ok(Some((stream, from)))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    })
}
