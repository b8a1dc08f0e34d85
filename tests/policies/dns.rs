//! A DNS server that answers with one TXT record, and with the address 127.0.0.1 for every name.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

const A: u16 = 1;
const TXT: u16 = 16;

/// A running DNS server; dropping it ends it.
pub struct NameServer {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Starts it; every TXT record contains `text`.
    pub fn start(text: String) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let address = socket.local_addr()?;
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (stop, asked) = (stop.clone(), asked.clone());
            move || {
                let mut octets = [0; 1500];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut octets) else { continue };
                    if let Some((answer, kind)) = answer(&octets[..length], &text) {
                        asked.fetch_add(usize::from(kind == TXT), Ordering::Relaxed);
                        // The client repeats an unanswered query.
                        let _ = socket.send_to(&answer, from);
                    }
                }
            }
        });
        Ok(Self { address, asked, stop, thread: Some(thread) })
    }

    /// Number of TXT queries so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer to a query (RFC 1035 §4.1), and the query's type.
fn answer(query: &[u8], text: &str) -> Option<(Vec<u8>, u16)> {
    let mut at = 12;
    while *query.get(at)? != 0 {
        at += usize::from(query[at]) + 1;
    }
    let question = query.get(12..at + 5)?;
    let kind = u16::from_be_bytes([*query.get(at + 1)?, *query.get(at + 2)?]);
    let data = match kind {
        A => Ipv4Addr::LOCALHOST.octets().to_vec(),
        // Strings of at most 255 bytes.
        TXT => text
            .as_bytes()
            .chunks(255)
            .flat_map(|part| [&[u8::try_from(part.len()).unwrap_or(0)], part].concat())
            .collect(),
        _ => Vec::new(),
    };
    let count = u8::from(!data.is_empty());
    let mut answer = [&query[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0], question].concat();
    if count > 0 {
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 1, 0]);
        answer.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        answer.extend(data);
    }
    Some((answer, kind))
}
