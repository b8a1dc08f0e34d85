//! An HTTPS server that accepts reports.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use smtpwatch_tests::tls::Identity;

const MAX_BODY: u64 = 1024 * 1024;

/// A received POST request.
#[derive(Clone, Debug)]
pub struct Post {
    pub path: String,
    pub kind: String,
    pub body: Vec<u8>,
}

/// A running HTTPS server; dropping it ends it.
pub struct WebServer {
    pub address: SocketAddr,
    posts: Arc<Mutex<Vec<Post>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WebServer {
    /// Starts it; it answers with these statuses in order, then always with the last one.
    pub fn start(identity: &Identity, statuses: &[&'static str]) -> Result<Self> {
        let tls = identity.server()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (posts, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let mut statuses: VecDeque<_> = statuses.to_vec().into();
        let thread = std::thread::spawn({
            let (posts, stop) = (posts.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    let status = statuses.front().copied().unwrap_or("201 Created");
                    if let Ok(post) = serve(stream, tls.clone(), status) {
                        posts.lock().unwrap_or_else(PoisonError::into_inner).push(post);
                        if statuses.len() > 1 {
                            statuses.pop_front();
                        }
                    }
                }
            }
        });
        Ok(Self { address, posts, stop, thread: Some(thread) })
    }

    /// Requests received so far.
    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, status: &str) -> Result<Post> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(tls)?, stream));
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let path = line.strip_prefix("POST ").and_then(|rest| rest.split(' ').next()).context("no POST")?.to_owned();
    let (mut length, mut kind) = (0, String::new());
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse::<u64>()?.min(MAX_BODY),
            "content-type" => kind = value.to_owned(),
            _ => {}
        }
    }
    let mut body = Vec::new();
    (&mut stream).take(length).read_to_end(&mut body)?;
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.get_mut().write_all(answer.as_bytes())?;
    stream.get_mut().conn.send_close_notify();
    stream.get_mut().flush()?;
    Ok(Post { path, kind, body })
}
