//! Records real sessions and replays the recording over a veth pair.

use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use smtpwatch_tests::command;
use smtpwatch_tests::load::{self, Messages, Sink};
use smtpwatch_tests::netns::{GATEWAY_INTERFACE, Namespace, join};
use smtpwatch_tests::recording::{self, number_before};
use smtpwatch_tests::tls::Identity;

use super::plan::Plan;
use super::site::{EXCHANGER, Site};
use super::stream::{self, Until};

/// The receiving interface, which the monitors watch.
pub const WIRE: &str = "wire0";
const SENDER: &str = "replay0";
const LIMIT: Duration = Duration::from_secs(60);
const BODY: u64 = 1_000_000;
const STREAM: u64 = 20_000_000;

/// A capture file.
#[derive(Debug)]
pub struct Recording {
    file: PathBuf,
    /// Packets in it.
    pub packets: u64,
    /// Sessions in it.
    pub sessions: u64,
}

impl Recording {
    /// Records short sessions, some sessions with a body of one megabyte, and a bulk transfer under TLS, as packets on
    /// a wire.
    pub fn make(site: &Site, plan: &Plan) -> Result<Self> {
        recording::as_on_a_wire(&site.path)?;
        let file = site.directory()?.join("mail.pcap");
        let packets = recording::record(&site.path.gateway, GATEWAY_INTERFACE, &file, || {
            {
                let _sink = Sink::start(&site.path.exchanger, EXCHANGER)?;
                for (count, octets) in [(plan.recorded_sessions, 1_000), (plan.recorded_bodies, BODY)] {
                    load::source(&site.path.gateway, Messages { count, octets, parallel: 20 }, EXCHANGER, LIMIT)?;
                }
            }
            let identity = Identity::generate("mx1.example.net")?;
            stream::run(&site.path, &identity, Until::Octets(STREAM)).map(drop)
        })?;
        Ok(Self { file, packets, sessions: plan.recorded_sessions + plan.recorded_bodies + 1 })
    }
}

/// Two namespaces joined by a veth pair without addresses: packets arrive, are captured, and are not forwarded.
#[derive(Debug)]
pub struct Wire {
    sender: Namespace,
    /// The namespace in which the monitors run.
    pub receiver: Namespace,
}

/// Speed of a replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speed {
    /// As fast as one CPU can send.
    Top,
    /// Packets per second.
    Rate(u32),
}

/// Counts of one replay.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sent {
    /// Packets that tcpreplay sent.
    pub packets: u64,
    /// Packets counted by the receiving interface.
    pub arrived: u64,
    /// Duration that tcpreplay reported, seconds.
    pub seconds: f64,
}

impl Wire {
    /// Creates the namespaces and the veth pair.
    pub fn create() -> Result<Self> {
        let wire = Self { sender: Namespace::create("replay")?, receiver: Namespace::create("wire")? };
        join((&wire.sender, SENDER), (&wire.receiver, WIRE))?;
        for (namespace, interface) in [(&wire.sender, SENDER), (&wire.receiver, WIRE)] {
            // Without IPv6, only the recording is on the wire.
            namespace.sysctl(&format!("ipv6/conf/{interface}/disable_ipv6"), "1")?;
            namespace.ip(&["link", "set", interface, "up"])?;
        }
        Ok(wire)
    }

    /// Replays the recording `loops` times, with different addresses each time, so that every session is distinct.
    pub fn replay(&self, recording: &Recording, loops: u64, speed: Speed) -> Result<Sent> {
        let before = self.arrived()?;
        let mut tcpreplay = self.sender.command("tcpreplay");
        tcpreplay.args(["--intf1", SENDER, "--preload-pcap", "--unique-ip", "--loop", &loops.to_string()]);
        match speed {
            Speed::Top => tcpreplay.arg("--topspeed"),
            Speed::Rate(packets) => tcpreplay.args(["--pps", &packets.to_string()]),
        };
        let said = command::run(tcpreplay.arg(&recording.file), LIMIT)?;
        let actual = said.lines().find(|line| line.starts_with("Actual: ")).context("tcpreplay tells no figures")?;
        let packets = number_before(actual, " packets").with_context(|| actual.to_owned())?;
        ensure!(packets == recording.packets * loops, "tcpreplay has not sent everything: {said}");
        let seconds = seconds(actual).with_context(|| actual.to_owned())?;
        Ok(Sent { packets, arrived: self.arrived()? - before, seconds })
    }

    fn arrived(&self) -> Result<u64> {
        let text = command::run(
            Command::new("ip").args(["-n", self.receiver.name(), "-s", "-j", "link", "show", "dev", WIRE]),
            LIMIT,
        )?;
        let links: Value = serde_json::from_str(&text)?;
        let Some(packets) = links[0]["stats64"]["rx"]["packets"].as_u64() else { bail!("no counters in {text}") };
        Ok(packets)
    }
}

/// Parses the duration from `Actual: 12 packets (345 bytes) sent in 6.78 seconds`.
fn seconds(actual: &str) -> Option<f64> {
    actual.split_once(" sent in ")?.1.split_whitespace().next()?.parse().ok()
}

/// Whether tcpreplay and tcpdump are installed.
pub fn possible() -> bool {
    ["tcpreplay", "tcpdump", "ethtool"].into_iter().all(|program| find(program).is_some())
}

/// Finds a program in PATH, or in the sbin directories of Debian.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|at| at.join(program)).find(|file: &PathBuf| FilePath::is_file(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_tcpreplay_tells() {
        assert_eq!(seconds("Actual: 12 packets (345 bytes) sent in 6.78 seconds"), Some(6.78));
        assert_eq!(seconds("Actual: 12 packets"), None);
    }
}
