//! Generates mail load with Postfix's own programs `smtp-source` and `smtp-sink`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;
use crate::root::{Instance, Packages, Root};
use crate::{command, smtp};

const READY: Duration = Duration::from_secs(90);

/// The load that `smtp-source` sends, each message in its own session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Messages {
    /// Number of messages.
    pub count: u64,
    /// Length of each body, bytes.
    pub octets: u64,
    /// Number of concurrent sessions.
    pub parallel: u64,
}

/// A running `smtp-sink`: accepts every message in cleartext and discards it.
#[derive(Debug)]
pub struct Sink {
    _instance: Instance,
}

impl Sink {
    /// Listens on `address` of `namespace`.
    ///
    /// # Errors
    /// [`crate::Skip`] when Postfix cannot be installed here; otherwise when no greeting arrives.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listen = address.to_string();
        // As root, smtp-sink requires a user; the last argument is the listener's backlog.
        let program = ["smtp-sink", "-u", "postfix", &listen, "1000"];
        let instance = Root::with(Packages::Postfix)?.start(namespace, &program, |_| Ok(()))?;
        command::eventually(READY, "smtp-sink", || Ok(namespace.run(|| smtp::greeting(address))?.ok()))?;
        Ok(Self { _instance: instance })
    }
}

/// Sends `messages` from `namespace`; returns the elapsed time, the start of the program included.
///
/// # Errors
/// When a session fails, or not all are over after `limit`.
pub fn source(namespace: &Namespace, messages: Messages, to: SocketAddr, limit: Duration) -> Result<Duration> {
    let words = words(messages, to);
    let program: Vec<&str> = ["sh", "-c", TIMED, "sh"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let out = Root::with(Packages::Postfix)?.output(namespace, &program, limit, |_| Ok(()))?;
    ensure!(out.status.success(), "smtp-source: {}{}", out.stdout, out.stderr);
    let nanoseconds = out.stdout.trim().parse().with_context(|| format!("no time in {:?}", out.stdout))?;
    Ok(Duration::from_nanos(nanoseconds))
}

/// As [`source`], in the background, until the value is dropped.
///
/// # Errors
/// When it cannot be started.
pub fn background(namespace: &Namespace, messages: Messages, to: SocketAddr) -> Result<Instance> {
    let words = words(messages, to);
    let program: Vec<&str> = words.iter().map(String::as_str).collect();
    Root::with(Packages::Postfix)?.start(namespace, &program, |_| Ok(()))
}

fn words(messages: Messages, to: SocketAddr) -> Vec<String> {
    let Messages { count, octets, parallel } = messages;
    let number = |option: &str, value: u64| [option.to_owned(), value.to_string()];
    let mut words = vec!["smtp-source".to_owned()];
    words.extend(number("-m", count));
    words.extend(number("-l", octets));
    words.extend(number("-s", parallel));
    words.extend(["-f", "anna@example.org", "-t", "bob@example.net"].map(str::to_owned));
    words.push(format!("inet:{}:{}", to.ip(), to.port()));
    words
}

/// Measures the program's own time: mounting the overlay root takes longer than a short run.
const TIMED: &str = r#"
set -eu
begin=$(date +%s%N)
"$@"
end=$(date +%s%N)
echo $((end - begin))
"#;
