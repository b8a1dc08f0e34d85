//! Makes the captures that the benchmarks replay, from real servers: `bench-capture DIRECTORY`.
//!
//! * `short.pcap`: short sessions in clear, by Postfix's `smtp-source` and `smtp-sink`;
//! * `bodies.pcap`: messages of one megabyte in clear, by the same two;
//! * `bulk.pcap`: messages of ten megabytes under STARTTLS, from one real Postfix to another.
//!
//! Client and server live in network namespaces, with segmentation offload off, so that the packets are those of a wire. One
//! tcpdump records; a packet that it loses is an error. Everything is bounded, and nothing stays but the files.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path as FilePath, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smtpwatch_tests::command::{self, Guard, eventually};
use smtpwatch_tests::netns::{EXCHANGER_V4, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::postfix::{Postfix, SUBMISSION};
use smtpwatch_tests::root::{Instance, Packages, Root};
use smtpwatch_tests::smtp;
use smtpwatch_tests::tls::Identity;

const SHORT_SESSIONS: usize = 40_000;
const BODIES: usize = 150;
const BODY_OCTETS: usize = 1_000_000;
const BULK: usize = 30;
/// Just below Postfix's `message_size_limit` of 10,240,000.
const BULK_OCTETS: usize = 10_000_000;
/// Sessions at once.
const PARALLEL: usize = 20;
const LIMIT: Duration = Duration::from_secs(180);
const EXCHANGER: SocketAddr = SocketAddr::new(IpAddr::V4(EXCHANGER_V4), 25);

fn main() -> Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).context("usage: bench-capture DIRECTORY")?);
    std::fs::create_dir_all(&directory)?;
    let path = Path::create()?;
    for (namespace, interface) in
        [(&path.gateway, GATEWAY_INTERFACE), (&path.router, "left"), (&path.router, "right"), (&path.exchanger, "mx0")]
    {
        let off = ["-K", interface, "tso", "off", "gso", "off", "gro", "off"];
        command::run(namespace.command("ethtool").args(off), LIMIT)?;
    }
    {
        let _sink = sink(&path)?;
        record(&path, &directory.join("short.pcap"), || source(&path, SHORT_SESSIONS, 300, EXCHANGER))?;
        record(&path, &directory.join("bodies.pcap"), || source(&path, BODIES, BODY_OCTETS, EXCHANGER))?;
    }
    let identity = Identity::generate("mx1.example.net")?;
    let _receiver = Postfix::receiver(&path.exchanger, &identity)?;
    let sender = Postfix::sender(&path.gateway, &[("example.net", EXCHANGER)])?;
    record(&path, &directory.join("bulk.pcap"), || {
        source(&path, BULK, BULK_OCTETS, SUBMISSION)?;
        eventually(LIMIT, "the last message", || Ok((sender.sent() >= BULK).then_some(())))
    })
}

/// `smtp-sink` at the exchanger, ready to take mail.
fn sink(path: &Path) -> Result<Instance> {
    let address = EXCHANGER.to_string();
    let sink = ["smtp-sink", "-u", "postfix", &address, "1000"];
    let sink = Root::with(Packages::Postfix)?.start(&path.exchanger, &sink, |_| Ok(()))?;
    eventually(LIMIT, "smtp-sink", || Ok(path.gateway.run(|| smtp::greeting(EXCHANGER))?.ok()))?;
    Ok(sink)
}

/// `messages` sessions of `smtp-source` from the gateway, each with one message of `octets`.
fn source(path: &Path, messages: usize, octets: usize, to: SocketAddr) -> Result<()> {
    let (messages, octets, parallel) = (messages.to_string(), octets.to_string(), PARALLEL.to_string());
    let to = format!("inet:{}:{}", to.ip(), to.port());
    let source = ["smtp-source", "-s", &parallel, "-m", &messages, "-l", &octets, "-t", "b@example.net", &to];
    let out = Root::with(Packages::Postfix)?.output(&path.gateway, &source, LIMIT, |_| Ok(()))?;
    ensure!(out.status.success(), "smtp-source: {}", out.stderr);
    Ok(())
}

/// Records what crosses the gateway's interface while `traffic` runs.
fn record(path: &Path, file: &FilePath, traffic: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("bench-capture: {}", file.file_name().unwrap_or_default().display());
    let mut tcpdump = path.gateway.command("tcpdump");
    tcpdump.args(["-i", GATEWAY_INTERFACE, "-s", "0", "-B", "262144", "-Z", "root", "-w"]).arg(file);
    tcpdump.args(["tcp port 25"]).stderr(Stdio::piped()).stdin(Stdio::null());
    let mut tcpdump = Guard(tcpdump.spawn().context("cannot start tcpdump")?);
    eventually(LIMIT, "tcpdump", || Ok(file.exists().then_some(())))?;
    traffic()?;
    // The last FIN is under way when the sender has ended.
    std::thread::sleep(Duration::from_secs(2));
    kill(Pid::from_raw(i32::try_from(tcpdump.0.id())?), Signal::SIGINT)?;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut tcpdump.0.stderr.take().context("its error output")?, &mut said)?;
    ensure!(said.contains("\n0 packets dropped by kernel"), "the recording has holes: {said}");
    Ok(())
}
