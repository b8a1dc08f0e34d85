//! Runs a real Alertmanager and a webhook receiver that collects its notifications.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::netns::Namespace;
use crate::root::{Instance, Packages, Root};
use crate::{command, daemon};

/// Address of the Alertmanager API that accepts alerts.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9093);
const WEBHOOK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9095);
const READY: Duration = Duration::from_secs(90);
/// Longest notification body, bytes.
const MAX_BODY: u64 = 1 << 20;

/// A running Alertmanager with its receiver.
#[derive(Debug)]
pub struct Alertmanager {
    instance: Instance,
    received: Arc<Mutex<Vec<Value>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Alertmanager {
    /// Starts it in `namespace`. Grouping is off: each alert is sent at once as its own notification.
    ///
    /// # Errors
    /// [`crate::Skip`] when it cannot be installed here; otherwise the error with its log.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let (received, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let listener = namespace.run(|| TcpListener::bind(WEBHOOK))??;
        listener.set_nonblocking(true)?;
        let thread = namespace.spawn({
            let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::SeqCst) {
                    match listener.accept() {
                        // A truncated notification is an error here; Alertmanager sends it again.
                        Ok((stream, _)) => _ = receive(&stream, &received),
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
            }
        })?;
        let program = [
            "prometheus-alertmanager",
            "--config.file=/lab/alertmanager.yml",
            "--storage.path=/tmp/alertmanager",
            "--web.listen-address=127.0.0.1:9093",
            "--cluster.listen-address=",
        ];
        let instance = Root::with(Packages::Prometheus)?.start(namespace, &program, |lab| {
            Ok(std::fs::write(
                lab.join("alertmanager.yml"),
                format!("{CONFIGURATION}      - url: http://{WEBHOOK}/\n"),
            )?)
        })?;
        let mut alertmanager = Self { instance, received, stop, thread: Some(thread) };
        let ready = command::eventually(READY, "Alertmanager", || {
            anyhow::ensure!(!alertmanager.instance.ended(), "Alertmanager ended");
            Ok(namespace.run(|| daemon::get(ADDRESS, "/-/ready"))?.ok().filter(|(status, _)| *status == 200))
        });
        ready.with_context(|| alertmanager.instance.read("output.log"))?;
        Ok(alertmanager)
    }

    /// Waits for a notification that reports the alert `name` with `status` `firing` or `resolved`. Returns the alert.
    ///
    /// # Errors
    /// On timeout: the error lists the notifications received.
    pub fn notified(&self, name: &str, status: &str, limit: Duration) -> Result<Value> {
        let received = || self.received.lock().unwrap_or_else(PoisonError::into_inner).clone();
        command::eventually(limit, &format!("the notification that {name} is {status}"), || {
            let all = received();
            let mut alerts = all.iter().flat_map(|notification| notification["alerts"].as_array()).flatten();
            Ok(alerts.find(|alert| alert["labels"]["alertname"] == name && alert["status"] == status).cloned())
        })
        .map_err(|error| anyhow!("{error:#}; received: {:?}", received()))
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Reads one webhook request and stores its alerts.
fn receive(stream: &TcpStream, received: &Mutex<Vec<Value>>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream).take(MAX_BODY);
    let mut length = 0;
    loop {
        let mut line = String::new();
        anyhow::ensure!(reader.read_line(&mut line)? > 0, "the request ends in its head");
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    received.lock().unwrap_or_else(PoisonError::into_inner).push(serde_json::from_slice(&body)?);
    let mut stream = stream;
    Ok(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?)
}

const CONFIGURATION: &str = "\
route:
  receiver: pager
  group_by: ['...']
  group_wait: 0s
  group_interval: 1s
  repeat_interval: 1h
receivers:
  - name: pager
    webhook_configs:
";
