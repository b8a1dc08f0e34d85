//! A scripted SMTP server with real TLS; its greeting and EHLO reply are given line by line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::netns::Namespace;
use crate::tls::Identity;

/// A client that is silent for this long is disconnected.
const IDLE: Duration = Duration::from_secs(30);
/// Longest command line, bytes.
const MAX_LINE: u64 = 16 * 1024;

/// What the server sends before TLS.
#[derive(Clone, Debug)]
pub struct Script {
    /// The greeting, without the line end.
    pub greeting: String,
    /// The EHLO reply, each line without code and separator.
    pub ehlo: Vec<String>,
}

/// The running server; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    tls: Arc<ServerConfig>,
    stop: AtomicBool,
    in_clear: AtomicUsize,
    under_tls: AtomicUsize,
}

impl Server {
    /// Listens on `address` inside `namespace`.
    ///
    /// # Errors
    /// When the address is in use or the certificate is unusable.
    pub fn start(namespace: &Namespace, address: SocketAddr, identity: &Identity, script: Script) -> Result<Self> {
        let listener = namespace.run(|| TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            tls: identity.server()?,
            stop: AtomicBool::new(false),
            in_clear: AtomicUsize::new(0),
            under_tls: AtomicUsize::new(0),
        });
        let thread = namespace.spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.stop.load(Ordering::SeqCst) {
                    match listener.accept() {
                        // The server handles one client at a time; an error ends its session.
                        Ok((stream, _)) => drop(serve(stream, &shared)),
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets the script for the sessions that start from here on.
    pub fn set_script(&self, script: Script) {
        *self.shared.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// Number of messages accepted in cleartext and under TLS.
    #[must_use]
    pub fn accepted(&self) -> (usize, usize) {
        (self.shared.in_clear.load(Ordering::SeqCst), self.shared.under_tls.load(Ordering::SeqCst))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> Result<()> {
    let script = shared.script.lock().unwrap_or_else(PoisonError::into_inner).clone();
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut clear = BufReader::new(stream);
    say(&mut clear, &script.greeting)?;
    if dialogue(&mut clear, &script, &shared.in_clear)? == End::StartTls {
        let connection = ServerConnection::new(Arc::clone(&shared.tls))?;
        let mut secure = BufReader::new(StreamOwned::new(connection, clear.into_inner()));
        let ehlo = script.ehlo.iter().filter(|line| *line != "STARTTLS").cloned().collect();
        dialogue(&mut secure, &Script { ehlo, ..script }, &shared.under_tls)?;
        secure.get_mut().conn.send_close_notify();
        secure.get_mut().flush()?;
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum End {
    Quit,
    StartTls,
}

fn dialogue<S: Read + Write>(stream: &mut BufReader<S>, script: &Script, accepted: &AtomicUsize) -> Result<End> {
    loop {
        let mut line = String::new();
        if stream.take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(End::Quit);
        }
        match line.trim_end().to_ascii_uppercase().split(' ').next().unwrap_or_default() {
            "EHLO" => {
                let last = script.ehlo.len().saturating_sub(1);
                let line = |(at, text)| format!("250{}{text}", if at == last { ' ' } else { '-' });
                say(stream, &script.ehlo.iter().enumerate().map(line).collect::<Vec<_>>().join("\r\n"))?;
            }
            "STARTTLS" if script.ehlo.iter().any(|line| line == "STARTTLS") => {
                say(stream, "220 2.0.0 Ready to start TLS")?;
                return Ok(End::StartTls);
            }
            "HELO" => say(stream, "250 OK")?,
            "MAIL" | "RCPT" => say(stream, "250 2.1.0 OK")?,
            "DATA" => {
                say(stream, "354 Go ahead")?;
                let mut text = String::new();
                while text.trim_end() != "." {
                    text.clear();
                    if stream.take(MAX_LINE).read_line(&mut text)? == 0 {
                        return Ok(End::Quit);
                    }
                }
                accepted.fetch_add(1, Ordering::SeqCst);
                say(stream, "250 2.0.0 OK")?;
            }
            "QUIT" => {
                say(stream, "221 2.0.0 closing connection")?;
                return Ok(End::Quit);
            }
            _ => say(stream, "502 5.5.1 Unrecognized command")?,
        }
    }
}

fn say<S: Read + Write>(stream: &mut BufReader<S>, text: &str) -> Result<()> {
    stream.get_mut().write_all(format!("{text}\r\n").as_bytes())?;
    Ok(stream.get_mut().flush()?)
}
