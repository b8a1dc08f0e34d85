//! A TCP endpoint in userspace at the attacker's end of the path. The host's kernel treats it as any peer, and it can
//! send arbitrary segments at any moment, in the name of either end.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::packet::flag::{ACK, FIN, PSH, RST, SYN, URG};
use crate::packet::{Arrival, Flaw, Frame, Tcp};
use crate::wire::Wire;

/// Time limit for one step of the host.
const LIMIT: Duration = Duration::from_secs(60);
/// Delay before unacknowledged data is retransmitted.
const RETRANSMIT: Duration = Duration::from_millis(300);
/// Payload of one segment, bytes: fits an MTU of 1,500 with any header of [`Flaw`].
pub const SEGMENT: usize = 1380;
/// The advertised window, unscaled.
const WINDOW: u16 = 60_000;

/// One end of a connection whose other end is a socket of the host.
#[derive(Debug)]
pub struct Endpoint<'w> {
    wire: &'w Wire,
    /// Address of this end, the peer that the attacker plays.
    pub local: SocketAddr,
    /// Address of the host's end.
    pub remote: SocketAddr,
    /// The initial sequence number of this end.
    pub isn: u32,
    /// The host's initial sequence number.
    pub remote_isn: u32,
    /// Next sequence number that this end sends.
    pub seq: u32,
    /// Next sequence number expected from the host.
    pub ack: u32,
    /// The advertised window, unscaled.
    pub window: u16,
    /// TCP options of its SYN or SYN-ACK.
    pub opening: Vec<u8>,
    /// Payload of its SYN or SYN-ACK, which does not advance the sequence number.
    pub opening_data: Vec<u8>,
    /// TCP options of every segment after the handshake.
    pub options: Vec<u8>,
    /// The timestamp of the next segment (RFC 7323), if the option is in use.
    pub timestamp: Option<u32>,
    /// Time to live of every segment.
    pub ttl: u8,
    /// The last segment of the host.
    pub last: Tcp,
    /// The handshake is complete and the connection is not closed.
    open: bool,
    acknowledged: u32,
    inbox: VecDeque<u8>,
    finished: bool,
    reset: bool,
}

impl<'w> Endpoint<'w> {
    /// Waits for the host's SYN to `local`, without answering it.
    ///
    /// # Errors
    /// On timeout.
    pub fn accept(wire: &'w Wire, local: SocketAddr, isn: u32) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let Some(arrival) = wire.receive()? else { continue };
            if arrival.target == local && arrival.tcp.flags & (SYN | ACK) == SYN {
                return Ok(Self::new(wire, local, &arrival, isn));
            }
        }
        bail!("no SYN to {local}")
    }

    fn new(wire: &'w Wire, local: SocketAddr, arrival: &Arrival, isn: u32) -> Self {
        Self {
            wire,
            local,
            remote: arrival.source,
            isn,
            remote_isn: arrival.tcp.seq,
            seq: isn,
            ack: arrival.tcp.seq.wrapping_add(1),
            window: WINDOW,
            opening: vec![2, 4, 5, 0xb4],
            opening_data: Vec::new(),
            options: Vec::new(),
            timestamp: None,
            ttl: 61,
            last: arrival.tcp.clone(),
            open: false,
            acknowledged: isn,
            inbox: VecDeque::new(),
            finished: false,
            reset: false,
        }
    }

    /// Answers the host's SYN and waits for the third segment of the handshake.
    ///
    /// # Errors
    /// On timeout.
    pub fn answer(&mut self) -> Result<()> {
        self.wire.send(&self.frame(self.opening(SYN | ACK)))?;
        self.seq = self.isn.wrapping_add(1);
        self.open = true;
        self.await_acknowledgment("the end of the handshake")
    }

    fn opening(&self, flags: u8) -> Tcp {
        let tcp = self.tcp(flags, &self.opening_data);
        Tcp { options: [&self.opening[..], &tcp.options].concat(), ..tcp }
    }

    /// Opens the connection from [`Self::local`] to a socket of the host.
    ///
    /// # Errors
    /// When the host does not answer or resets the connection.
    pub fn open(&mut self) -> Result<()> {
        let syn = Tcp { ack: 0, ..self.opening(SYN) };
        let (syn, deadline, mut sent) = (self.frame(syn), Instant::now() + LIMIT, None::<Instant>);
        while Instant::now() < deadline {
            if sent.is_none_or(|sent| sent.elapsed() > RETRANSMIT) {
                self.wire.send(&syn)?;
                sent = Some(Instant::now());
            }
            let Some(arrival) = self.wire.receive()? else { continue };
            if arrival.source != self.remote || arrival.target != self.local {
                continue;
            }
            let next = self.isn.wrapping_add(1);
            // The host also answers decoys, with other acknowledgment numbers.
            ensure!(arrival.tcp.flags & RST == 0 || arrival.tcp.ack != next, "{} refuses {}", self.remote, self.local);
            if arrival.tcp.flags & (SYN | ACK) == SYN | ACK && arrival.tcp.ack == next {
                self.remote_isn = arrival.tcp.seq;
                self.ack = arrival.tcp.seq.wrapping_add(1);
                self.seq = next;
                self.acknowledged = next;
                self.last = arrival.tcp;
                self.open = true;
                return self.send(ACK, b"");
            }
        }
        bail!("{} does not answer the SYN of {}", self.remote, self.local)
    }

    /// An endpoint without a handshake, for forged sessions.
    #[must_use]
    pub fn unopened(wire: &'w Wire, local: SocketAddr, remote: SocketAddr, isn: u32) -> Self {
        let tcp = Tcp { seq: isn.wrapping_mul(31).wrapping_add(77), ..Tcp::default() };
        Self::new(wire, local, &Arrival { source: remote, target: local, tcp }, isn)
    }

    /// The next segment of this end, not yet sent.
    #[must_use]
    pub fn tcp(&self, flags: u8, payload: &[u8]) -> Tcp {
        let mut options = self.options.clone();
        if let Some(timestamp) = self.timestamp {
            options.extend(timestamps(timestamp, echo(&self.last.options).unwrap_or_default()));
        }
        Tcp { seq: self.seq, ack: self.ack, flags, window: self.window, urgent: 0, options, payload: payload.to_vec() }
    }

    /// Wraps a segment of this end in a frame to the host.
    #[must_use]
    pub fn frame(&self, tcp: Tcp) -> Frame {
        let macs = (self.wire.host, self.wire.mac);
        Frame { macs, source: self.local, target: self.remote, ttl: self.ttl, tcp, flaw: Flaw::None }
    }

    /// A frame with the host's address as its source that arrives at the host. A host never receives its own packets
    /// from the network.
    #[must_use]
    pub fn frame_of_host(&self, tcp: Tcp) -> Frame {
        let macs = (self.wire.host, self.wire.mac);
        Frame { macs, source: self.remote, target: self.local, ttl: 64, tcp, flaw: Flaw::None }
    }

    /// Sends any frame.
    ///
    /// # Errors
    /// When the wire does not accept it.
    pub fn inject(&self, frame: &Frame) -> Result<()> {
        self.wire.send(frame)
    }

    /// Sends a segment of this end and advances the sequence number by its length.
    ///
    /// # Errors
    /// When the wire does not accept it.
    pub fn send(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        self.wire.send(&self.frame(self.tcp(flags, payload)))?;
        self.seq = self.seq.wrapping_add(u32::try_from(payload.len())?).wrapping_add(u32::from(flags & FIN != 0));
        Ok(())
    }

    /// Sends bytes of this end's stream as one segment at this distance from its next sequence number, without
    /// advancing it.
    ///
    /// # Errors
    /// When the wire does not accept it.
    pub fn send_at(&self, distance: u32, payload: &[u8]) -> Result<()> {
        let tcp = self.tcp(ACK | PSH, payload);
        self.wire.send(&self.frame(Tcp { seq: tcp.seq.wrapping_add(distance), ..tcp }))
    }

    /// Sends a segment of this end with one urgent byte: a host without SO_OOBINLINE leaves that byte out of the stream
    /// (tcp(7)).
    ///
    /// # Errors
    /// When the wire does not accept it.
    pub fn send_urgent(&mut self, payload: &[u8], at: usize) -> Result<()> {
        // Linux interprets the pointer as the byte after the urgent one (RFC 6093 §2.1).
        let tcp = Tcp { urgent: u16::try_from(at + 1)?, ..self.tcp(ACK | PSH | URG, payload) };
        self.wire.send(&self.frame(tcp))?;
        self.seq = self.seq.wrapping_add(u32::try_from(payload.len())?);
        Ok(())
    }

    /// Discards the segments of the host that are not yet examined.
    ///
    /// # Errors
    /// When the wire has failed.
    pub fn drain(&self) -> Result<()> {
        self.wire.drain()
    }

    /// Processes one segment of the host, if one arrives within 20 ms.
    ///
    /// # Errors
    /// When the wire has failed.
    pub fn poll(&mut self) -> Result<bool> {
        let Some(Arrival { source, target, tcp }) = self.wire.receive()? else { return Ok(false) };
        if source != self.remote || target != self.local {
            return Ok(true);
        }
        // The host sends an RST about decoys too, with their numbers. Only an RST at the next number ends the
        // connection.
        if tcp.flags & RST != 0 {
            self.reset |= tcp.seq == self.ack;
            return Ok(true);
        }
        if tcp.flags & ACK != 0 && after(tcp.ack, self.acknowledged) && !after(tcp.ack, self.seq) {
            self.acknowledged = tcp.ack;
        }
        let length = u32::try_from(tcp.payload.len())?;
        let fresh = if tcp.seq == self.ack { length + u32::from(tcp.flags & FIN != 0) } else { 0 };
        if fresh > 0 {
            self.inbox.extend(&tcp.payload);
            self.finished |= tcp.flags & FIN != 0;
            self.ack = self.ack.wrapping_add(fresh);
        }
        if fresh > 0 || length > 0 || tcp.flags & (FIN | SYN) != 0 {
            self.send(ACK, b"")?;
        }
        self.last = tcp;
        Ok(true)
    }

    /// Waits until the host has acknowledged everything; does not retransmit.
    ///
    /// # Errors
    /// On timeout.
    pub fn await_acknowledgment(&mut self, what: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.acknowledged != self.seq {
            ensure!(!self.reset, "{} reset the connection before {what}", self.remote);
            ensure!(Instant::now() < deadline, "{} does not acknowledge {what}", self.remote);
            self.poll()?;
        }
        Ok(())
    }

    /// Waits until the host's next line has arrived, without consuming it.
    ///
    /// # Errors
    /// When the connection ends first.
    pub fn await_line(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.inbox.contains(&b'\n') {
            ensure!(!self.reset && !self.finished && Instant::now() < deadline, "no line from {}", self.remote);
            self.poll()?;
        }
        Ok(())
    }

    /// Returns the host's next line.
    ///
    /// # Errors
    /// When the connection ends first.
    pub fn line(&mut self) -> Result<String> {
        self.await_line()?;
        let end = self.inbox.iter().position(|byte| *byte == b'\n').map_or(self.inbox.len(), |at| at + 1);
        let line: Vec<u8> = self.inbox.drain(..end).collect();
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Returns the host's next reply with all its lines.
    ///
    /// # Errors
    /// When the connection ends first.
    pub fn reply(&mut self) -> Result<String> {
        let mut reply = String::new();
        loop {
            let line = self.line()?;
            let last = line.as_bytes().get(3) != Some(&b'-');
            reply.push_str(&line);
            reply.push('\n');
            if last {
                return Ok(reply);
            }
        }
    }

    /// Sends a line and returns the reply.
    ///
    /// # Errors
    /// When the connection ends first.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.write_all(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// Waits until the host has closed its direction.
    ///
    /// # Errors
    /// On timeout.
    pub fn await_end(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.reset && !self.finished {
            ensure!(Instant::now() < deadline, "{} does not end its direction", self.remote);
            self.poll()?;
        }
        Ok(())
    }

    /// Closes the connection in both directions.
    ///
    /// # Errors
    /// When the host does not close its direction.
    pub fn close(&mut self) -> Result<()> {
        self.send(FIN | ACK, b"")?;
        let deadline = Instant::now() + LIMIT;
        while !(self.reset || self.finished && self.acknowledged == self.seq) {
            ensure!(Instant::now() < deadline, "{} does not close", self.remote);
            self.poll()?;
        }
        self.open = false;
        Ok(())
    }

    /// Whether the host has reset the connection.
    #[must_use]
    pub const fn is_reset(&self) -> bool {
        self.reset
    }
}

impl Drop for Endpoint<'_> {
    /// Resets the connection of a failed session, so that the host's server can accept the next one.
    fn drop(&mut self) {
        if self.open {
            // The host accepts a reset only at its next expected sequence number, which is the acknowledged one.
            self.seq = self.acknowledged;
            let _ = self.send(RST | ACK, b"");
        }
    }
}

impl Read for Endpoint<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let deadline = Instant::now() + LIMIT;
        while self.inbox.is_empty() {
            if self.finished {
                return Ok(0);
            }
            if self.reset {
                return Err(ErrorKind::ConnectionReset.into());
            }
            if Instant::now() > deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            self.poll().map_err(Error::other)?;
        }
        self.inbox.read(buffer)
    }
}

impl Write for Endpoint<'_> {
    /// Sends at most one segment, and returns when the host has acknowledged it.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(SEGMENT)];
        let segment = self.frame(self.tcp(ACK | PSH, bytes));
        self.send(ACK | PSH, bytes).map_err(Error::other)?;
        let (deadline, mut sent) = (Instant::now() + LIMIT, Instant::now());
        while self.acknowledged != self.seq {
            if self.reset {
                return Err(ErrorKind::ConnectionReset.into());
            }
            if Instant::now() > deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            if sent.elapsed() > RETRANSMIT {
                self.inject(&segment).map_err(Error::other)?;
                sent = Instant::now();
            }
            self.poll().map_err(Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The option of RFC 7323 §3, with two bytes of padding before it.
#[must_use]
pub fn timestamps(value: u32, echo: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
}

/// The timestamp value in a segment's options, which the answer echoes.
fn echo(mut options: &[u8]) -> Option<u32> {
    loop {
        match *options {
            [8, 10, a, b, c, d, ..] => return Some(u32::from_be_bytes([a, b, c, d])),
            [1, ref rest @ ..] => options = rest,
            [kind, length, ..] if kind != 0 => options = options.get(usize::from(length.max(2))..)?,
            _ => return None,
        }
    }
}

/// Whether `a` comes after `b` (RFC 1982).
const fn after(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance <= i32::MAX as u32
}
