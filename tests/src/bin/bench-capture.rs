//! Records the captures that the benchmarks replay, from real servers: `bench-capture DIRECTORY`.
//!
//! * `short.pcap`: short sessions in cleartext, by Postfix's `smtp-source` and `smtp-sink`;
//! * `bodies.pcap`: messages of one megabyte in cleartext, by the same two programs;
//! * `bulk.pcap`: messages of ten megabytes under STARTTLS, from one real Postfix to another.
//!
//! Client and server run in network namespaces with segmentation offload off, so that the packets look as they do on a
//! wire. One tcpdump records; a packet that it loses is an error. Everything is bounded, and only the capture files
//! remain.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::load::{self, Messages, Sink};
use smtpwatch_tests::netns::{EXCHANGER_V4, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::postfix::{Postfix, SUBMISSION};
use smtpwatch_tests::recording;
use smtpwatch_tests::tls::Identity;

const SHORT_SESSIONS: u64 = 40_000;
const BODIES: u64 = 150;
const BODY_OCTETS: u64 = 1_000_000;
const BULK: u64 = 30;
/// Just below Postfix's `message_size_limit` of 10,240,000.
const BULK_OCTETS: u64 = 10_000_000;
/// Number of concurrent sessions.
const PARALLEL: u64 = 20;
const LIMIT: Duration = Duration::from_secs(180);
const EXCHANGER: SocketAddr = SocketAddr::new(IpAddr::V4(EXCHANGER_V4), 25);

fn main() -> Result<()> {
    let directory = PathBuf::from(std::env::args_os().nth(1).context("usage: bench-capture DIRECTORY")?);
    std::fs::create_dir_all(&directory)?;
    let path = Path::create()?;
    recording::as_on_a_wire(&path)?;
    let record = |name: &str, traffic: &dyn Fn() -> Result<()>| {
        eprintln!("bench-capture: {name}");
        recording::record(&path.gateway, GATEWAY_INTERFACE, &directory.join(name), traffic).map(drop)
    };
    let source = |count, octets, to| {
        load::source(&path.gateway, Messages { count, octets, parallel: PARALLEL }, to, LIMIT).map(drop)
    };
    {
        let _sink = Sink::start(&path.exchanger, EXCHANGER)?;
        record("short.pcap", &|| source(SHORT_SESSIONS, 300, EXCHANGER))?;
        record("bodies.pcap", &|| source(BODIES, BODY_OCTETS, EXCHANGER))?;
    }
    let identity = Identity::generate("mx1.example.net")?;
    let _receiver = Postfix::receiver(&path.exchanger, &identity)?;
    let sender = Postfix::sender(&path.gateway, &[("example.net", EXCHANGER)])?;
    record("bulk.pcap", &|| {
        source(BULK, BULK_OCTETS, SUBMISSION)?;
        let all = usize::try_from(BULK)?;
        eventually(LIMIT, "the last message", || Ok((sender.sent() >= all).then_some(())))
    })
}
