//! A small SMTP client: delivers messages to a mail server and upgrades to TLS if it is offered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::{ClientConnection, StreamOwned};

use crate::{command, tls::Identity};

/// Time limit for one reply.
const REPLY_LIMIT: Duration = Duration::from_secs(60);
/// Longest reply, bytes.
const MAX_REPLY: u64 = 64 * 1024;

/// Outcome of a session.
#[derive(Debug, PartialEq, Eq)]
pub struct Session {
    /// The EHLO reply in cleartext, line by line, with code and separator.
    pub ehlo: Vec<String>,
    /// Whether the mail was sent under TLS.
    pub tls: bool,
}

/// Sends one message from `sender` to `recipient` through `server`, as an opportunistic client does: under TLS if
/// STARTTLS is offered and accepted, else in cleartext. Without an `identity` to trust, STARTTLS is never sent.
///
/// # Errors
/// When the server cannot be reached or answers with an error.
pub fn send(server: SocketAddr, identity: Option<&Identity>, sender: &str, recipient: &str) -> Result<Session> {
    send_once(server, identity, (sender, recipient), |_| Ok(()))
}

/// As [`send`], but after the go-ahead the client begins TLS only once `ready` returns.
///
/// # Errors
/// As [`send`], and those of `ready`.
pub fn send_once(
    server: SocketAddr,
    identity: Option<&Identity>,
    (sender, recipient): (&str, &str),
    ready: impl FnOnce(&BufReader<TcpStream>) -> Result<()>,
) -> Result<Session> {
    let mut clear = connect(server)?;
    let ehlo = ask(&mut clear, "EHLO gateway.example.org")?;
    expect(&ehlo, '2')?;
    let offered = ehlo.iter().skip(1).any(|line| line.get(4..).is_some_and(|word| word.trim() == "STARTTLS"));
    if let Some(identity) = identity.filter(|_| offered)
        && ask(&mut clear, "STARTTLS")?.iter().all(|line| line.starts_with('2'))
    {
        ready(&clear)?;
        let connection = ClientConnection::new(identity.client()?, identity.server_name()?)?;
        let mut secure = BufReader::new(StreamOwned::new(connection, clear.into_inner()));
        expect(&ask(&mut secure, "EHLO gateway.example.org")?, '2')?;
        deliver(&mut secure, sender, recipient)?;
        return Ok(Session { ehlo, tls: true });
    }
    deliver(&mut clear, sender, recipient)?;
    Ok(Session { ehlo, tls: false })
}

/// Waits until the unread received data ends with `wanted`. The data stays unread.
///
/// # Errors
/// On timeout.
pub fn arrived(stream: &BufReader<TcpStream>, wanted: &[u8]) -> Result<()> {
    let mut bytes = [0; 1024];
    command::eventually(REPLY_LIMIT, "bytes of the server", || {
        // If the reader's buffer holds everything, no more data may follow, and a peek at the socket would block.
        let count = if stream.buffer().ends_with(wanted) { 0 } else { stream.get_ref().peek(&mut bytes)? };
        Ok([stream.buffer(), &bytes[..count]].concat().ends_with(wanted).then_some(()))
    })
}

/// Opens a connection and reads the greeting.
///
/// # Errors
/// When the server cannot be reached or does not greet with a 2xx reply.
pub fn connect(server: SocketAddr) -> Result<BufReader<TcpStream>> {
    let stream =
        TcpStream::connect_timeout(&server, REPLY_LIMIT).with_context(|| format!("cannot connect to {server}"))?;
    stream.set_read_timeout(Some(REPLY_LIMIT))?;
    stream.set_nodelay(true)?;
    let mut clear = BufReader::new(stream);
    expect(&read_reply(&mut clear)?, '2')?;
    Ok(clear)
}

/// Sends `line` (or several lines, or a whole message) with a line end; returns the lines of the reply.
///
/// # Errors
/// When the server closes the connection or stays silent.
pub fn ask<S: Read + Write>(stream: &mut BufReader<S>, line: &str) -> Result<Vec<String>> {
    let inner = stream.get_mut();
    inner.write_all(format!("{line}\r\n").as_bytes())?;
    inner.flush()?;
    read_reply(stream)
}

/// The first line that a server sends.
///
/// # Errors
/// When it cannot be reached or sends nothing.
pub fn greeting(server: SocketAddr) -> Result<String> {
    let stream = TcpStream::connect_timeout(&server, Duration::from_secs(30))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let reply = read_reply(&mut BufReader::new(&stream))?;
    // A client that disconnects without QUIT causes a log line; the result is not needed.
    let _ = (&stream).write_all(b"QUIT\r\n");
    Ok(reply.concat())
}

fn deliver<S: Read + Write>(stream: &mut BufReader<S>, sender: &str, recipient: &str) -> Result<()> {
    expect(&ask(stream, &format!("MAIL FROM:<{sender}>"))?, '2')?;
    expect(&ask(stream, &format!("RCPT TO:<{recipient}>"))?, '2')?;
    expect(&ask(stream, "DATA")?, '3')?;
    let message = format!("From: <{sender}>\r\nTo: <{recipient}>\r\nSubject: lab\r\n\r\nSTARTTLS\r\nAUTH PLAIN\r\n.");
    expect(&ask(stream, &message)?, '2')?;
    ask(stream, "QUIT").map(drop)
}

fn read_reply(stream: &mut impl BufRead) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut bounded = stream.take(MAX_REPLY);
    loop {
        let mut line = String::new();
        ensure!(bounded.read_line(&mut line)? > 0, "the server closed the connection after {lines:?}");
        let last = line.as_bytes().get(3) != Some(&b'-');
        lines.push(line.trim_end().to_owned());
        if last {
            return Ok(lines);
        }
    }
}

fn expect(reply: &[String], class: char) -> Result<()> {
    if !reply.last().is_some_and(|line| line.starts_with(class)) {
        bail!("expected a reply of class {class}, not {reply:?}");
    }
    Ok(())
}
