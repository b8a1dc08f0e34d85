//! Shared parts of scenarios: the path with an attacker, mail through a real sending server, and checks of findings.

use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use smtpwatch_tests::attacker::Attacker;
use smtpwatch_tests::command::{self, eventually};
use smtpwatch_tests::daemon::Profile;
use smtpwatch_tests::netns::{Family, Path};
use smtpwatch_tests::postfix::{self, Postfix};
use smtpwatch_tests::root::lab_directory;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scripted::Script, smtp};

/// Sender of every message.
pub const SENDER: &str = "anna@gateway.example.org";
/// Time limit for a finding.
pub const FINDING: Duration = Duration::from_secs(180);
/// Time limit for a batch of deliveries.
pub const DELIVERIES: Duration = Duration::from_secs(180);

/// A directory for a daemon's configuration, store and log; removed on drop.
pub struct Home(pub PathBuf);

impl Home {
    /// Creates one for this scenario.
    pub fn create(name: &str) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = lab_directory().join("run").join(format!("{}-{name}-{serial}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Gateway with a sending Postfix, attacker on the path, Postfix as exchanger.
pub struct Relay {
    sender: Postfix,
    _receiver: Postfix,
    /// The attacker on the path.
    pub attacker: Attacker,
    /// Declared last, so that it is dropped after everything that runs in it.
    pub path: Path,
}

impl Relay {
    /// Creates it; mail for `peer.example` goes to the exchanger's address of `family`.
    pub fn create(family: Family) -> Result<Self> {
        let path = Path::create()?;
        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mx1.example.net")?;
        let receiver = Postfix::receiver(&path.exchanger, &identity)?;
        let sender = Postfix::sender(&path.gateway, &[("peer.example", SocketAddr::new(family.exchanger(), 25))])?;
        Ok(Self { sender, _receiver: receiver, attacker, path })
    }

    /// Delivers `count` messages through Postfix, each in its own session.
    pub fn deliver(&self, count: usize) -> Result<()> {
        let before = self.sender.sent();
        self.submit(count)?;
        eventually(DELIVERIES, &format!("{count} deliveries"), || {
            Ok((self.sender.sent() >= before + count).then_some(()))
        })
        .with_context(|| self.sender.log())
    }

    /// Submits `count` messages to Postfix without waiting for their delivery.
    pub fn submit(&self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.path.gateway.run(|| smtp::send(postfix::SUBMISSION, None, SENDER, "bob@peer.example"))??;
        }
        Ok(())
    }

    /// Messages that Postfix has delivered so far.
    pub fn delivered(&self) -> usize {
        self.sender.sent()
    }
}

/// Checks the public form of a finding: every required key is present and every value is in its range.
pub fn check_form(finding: &Value) -> Result<()> {
    for name in [
        "/schema_version",
        "/id",
        "/time",
        "/kind",
        "/rule",
        "/severity",
        "/evidence",
        "/outcome",
        "/role",
        "/flow/client",
        "/flow/server",
        "/flow/interface",
        "/flow/community_id",
        "/peer/name",
        "/peer/greeting",
        "/expected/starttls",
        "/expected/source",
        "/expected/detail",
        "/observed/capabilities",
        "/observed/starttls",
        "/transcript/0/from",
        "/transcript/0/text",
        "/gaps",
    ] {
        ensure!(finding.pointer(name).is_some(), "no {name} in {finding}");
    }
    ensure!(finding["schema_version"] == 1 && finding["gaps"] == 0, "{finding}");
    let (time, id) = (text(finding, "/time")?, text(finding, "/id")?);
    // RFC 3339 in UTC with microseconds: 2026-11-23T15:04:05.123456Z; the id is a UUID of version 7 (RFC 9562).
    ensure!(time.len() == 27 && time.ends_with('Z') && time.as_bytes()[19] == b'.', "time {time}");
    ensure!(id.len() == 36 && id.as_bytes()[14] == b'7', "id {id}");
    ensure!(text(finding, "/flow/community_id")?.starts_with("1:"), "{finding}");
    Ok(())
}

/// Requires these values of a finding, by JSON pointer.
pub fn check(finding: &Value, wanted: &[(&str, Value)]) -> Result<()> {
    check_form(finding)?;
    for (pointer, value) in wanted {
        if finding.pointer(pointer) != Some(value) {
            bail!("{pointer} is {:?}, not {value}: {finding}", finding.pointer(pointer));
        }
    }
    Ok(())
}

/// A string of a finding, by JSON pointer.
pub fn text<'a>(finding: &'a Value, pointer: &str) -> Result<&'a str> {
    finding.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no text {pointer} in {finding}"))
}

/// The script of a server with this greeting and EHLO reply.
pub fn script(greeting: &str, ehlo: &[&str]) -> Script {
    Script { greeting: greeting.to_owned(), ehlo: ehlo.iter().map(|line| (*line).to_owned()).collect() }
}

/// Runs smtpwatch on the store of this home.
pub fn smtpwatch(home: &FilePath, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(Profile::Dev.binary()?);
    let store = home.join("smtpwatch.db");
    command::run(command.args(arguments).arg("--store").arg(store), Duration::from_secs(20))
}

/// The findings of a replay of an incident's capture file with the peer's history.
pub fn replay_evidence(home: &FilePath, id: &str) -> Result<Vec<Value>> {
    let file = home.join("proof.pcapng");
    let name = file.to_str().context("a path in UTF-8")?;
    smtpwatch(home, &["incidents", "export", id, "--pcapng", name])?;
    // The daemon holds the lock of the original store.
    let copy = home.join("copy");
    std::fs::create_dir_all(&copy)?;
    for file in ["smtpwatch.db", "smtpwatch.db-wal"] {
        std::fs::copy(home.join(file), copy.join(file))?;
    }
    let found = smtpwatch(
        &copy,
        &["replay", name, "--local", "192.0.2.0/24", "--local", "2001:db8:1::/64", "--format", "json"],
    )?;
    found.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
