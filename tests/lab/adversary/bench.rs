//! The test bench: one daemon with one hook, the attacker's packet socket, and the list of failed rows.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::wire::Wire;

use crate::set_up::{Home, script, smtpwatch};

/// Time limit for a finding or a count.
const PATIENCE: Duration = Duration::from_secs(60);

/// Networks whose addresses the attacker uses: those with a rule that requires STARTTLS, and those known from their
/// history alone (RFC 2544, RFC 3849).
const RULE_V4: [u8; 2] = [198, 18];
const HISTORY_V4: [u8; 2] = [198, 19];
const RULE_V6: u16 = 0x18;
const HISTORY_V6: u16 = 0x19;
const RULES: &str = "[[rule]]\npeer = [\"198.18.0.0/16\", \"2001:db8:18::/48\"]\nstarttls = \"required\"\n";

/// No look-ups: there is no resolver, and verdicts would wait for one.
const POLICY: &str = "[policy]\nmta_sts = false\ndane = false\n";

/// Packets to these networks reach a packet socket of the router; the router's kernel drops them silently.
const DROPPED: [[&str; 5]; 2] =
    [["-4", "route", "add", "blackhole", "198.18.0.0/15"], ["-6", "route", "add", "blackhole", "2001:db8:18::/47"]];

/// What outlives the daemon: the path and its directories.
pub struct Ground {
    pub path: Path,
    pub identity: Identity,
    home: Home,
}

impl Ground {
    pub fn create() -> Result<Self> {
        let path = Path::create()?;
        // Jumbo frames.
        path.router.ip(&["link", "set", "left", "mtu", "9200"])?;
        path.gateway.ip(&["link", "set", GATEWAY_INTERFACE, "mtu", "9200"])?;
        for route in DROPPED {
            path.router.ip(&route)?;
        }
        Ok(Self { path, identity: Identity::generate("mx.example.net")?, home: Home::create("adversary")? })
    }
}

/// Number of ended sessions of a daemon, by result.
pub type Sessions = BTreeMap<&'static str, f64>;

pub struct Bench<'g> {
    pub hook: &'static str,
    pub family: Family,
    pub ground: &'g Ground,
    pub daemon: Daemon<'g>,
    pub wire: Wire,
    peers: u16,
    isn: u32,
    rows: usize,
    failures: Vec<String>,
}

impl<'g> Bench<'g> {
    /// Starts a daemon with the rule and these further configuration tables.
    pub fn start(ground: &'g Ground, hook: &'static str, family: Family, tables: &str) -> Result<Self> {
        let gateway = &ground.path.gateway;
        let rules = format!("{RULES}\n{tables}");
        let options = Options { ingress: hook, rules: &rules, policy: POLICY, ..Options::default() };
        let daemon = Daemon::start(gateway, GATEWAY_INTERFACE, &ground.home.0, options)?;
        let attached = [("interface", GATEWAY_INTERFACE), ("direction", "ingress"), ("hook", hook)];
        let attached = daemon.metric("smtpwatch_probe_attached", &attached)?;
        ensure!(attached > 0.5, "{hook} was asked for and is not attached:\n{}", daemon.log());
        let wire = Wire::open((&ground.path.router, "left"), (gateway, GATEWAY_INTERFACE))?;
        // Start near the maximum, so that the sequence numbers of the first sessions wrap.
        Ok(Self { hook, family, ground, daemon, wire, peers: 0, isn: 0xffff_ff00, rows: 0, failures: Vec::new() })
    }

    /// Starts real servers of the host, on both ports.
    pub fn servers(&self) -> Result<[Server; 2]> {
        let start = |port| {
            let offer =
                script("220 gateway.example.org ESMTP", &["gateway.example.org", "STARTTLS", "AUTH PLAIN LOGIN"]);
            let address = SocketAddr::new(self.family.gateway(), port);
            Server::start(&self.ground.path.gateway, address, &self.ground.identity, offer)
        };
        Ok([start(25)?, start(587)?])
    }

    /// A fresh address of a mail exchanger with a rule that requires STARTTLS.
    pub fn peer_with_rule(&mut self) -> IpAddr {
        self.peer(RULE_V4, RULE_V6)
    }

    /// A fresh address of a mail exchanger without a rule.
    pub fn peer_without_rule(&mut self) -> IpAddr {
        self.peer(HISTORY_V4, HISTORY_V6)
    }

    fn peer(&mut self, [a, b]: [u8; 2], network: u16) -> IpAddr {
        self.peers += 1;
        let [c, d] = self.peers.to_be_bytes();
        match self.family {
            Family::V4 => Ipv4Addr::new(a, b, c, d).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, network, self.peers, 0, 0, 0, 0x25).into(),
        }
    }

    /// A fresh address in a network that all its callers share: a /16 or a /64.
    pub fn neighbour(&mut self) -> IpAddr {
        self.peers += 1;
        let [c, d] = self.peers.to_be_bytes();
        match self.family {
            Family::V4 => Ipv4Addr::new(198, 19, c, d).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, HISTORY_V6, 0xffff, 0, 0, 0, self.peers).into(),
        }
    }

    /// An initial sequence number.
    pub const fn isn(&mut self) -> u32 {
        self.isn = self.isn.wrapping_add(0x0101_0101);
        self.isn
    }

    /// Runs one row of the table: an error does not stop the rows after it. `SMTPWATCH_ADVERSARY_ROW` selects rows
    /// whose names contain a part of its value; parts are separated by `|`.
    pub fn row(&mut self, name: &str, attack: impl FnOnce(&mut Self) -> Result<()>) {
        if std::env::var("SMTPWATCH_ADVERSARY_ROW").is_ok_and(|parts| !parts.split('|').any(|part| name.contains(part)))
        {
            return;
        }
        self.rows += 1;
        let start = std::time::Instant::now();
        let result = self.wire.drain().and_then(|()| attack(self));
        let row = format!("{} {:?} {name}", self.hook, self.family);
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{row}: {verdict} in {} ms", start.elapsed().as_millis());
        if let Err(error) = result {
            self.failures.push(format!("{row}: {error:#}"));
        }
    }

    /// Fails with the list of failed rows, if any.
    pub fn verdict(self) -> Result<()> {
        let Self { rows, failures, .. } = self;
        ensure!(failures.is_empty(), "{} of {rows} rows failed:\n{}", failures.len(), failures.join("\n"));
        Ok(())
    }

    /// Number of sessions that have ended so far, by result.
    pub fn sessions(&self) -> Result<Sessions> {
        ["tls", "plaintext", "rejected", "unknown"]
            .into_iter()
            .map(|result| Ok((result, self.daemon.metric("smtpwatch_sessions_total", &[("result", result)])?)))
            .collect()
    }

    /// Number of arrived frames with the host's own source address.
    pub fn forged(&self) -> Result<f64> {
        self.daemon.metric("smtpwatch_kernel_dropped_total", &[("reason", "forged")])
    }

    /// Findings about this peer, after every counted finding has also been printed.
    pub fn findings_about(&self, peer: SocketAddr) -> Result<Vec<Value>> {
        eventually(PATIENCE, "the findings that are counted", || {
            let counted = self.daemon.metric("smtpwatch_findings_total", &[])?;
            Ok((f64::from(u32::try_from(self.daemon.findings().len())?) >= counted).then_some(()))
        })?;
        Ok(self.told_about(peer))
    }

    /// Findings about this peer that accuse it. Excluded are offered plaintext mechanisms, which servers of the lab
    /// have, and conflicting copies of the stream: those are true of any stream beside which the attacker sends, and
    /// describe the path.
    pub fn accusations(&self, peer: SocketAddr) -> Result<Vec<Value>> {
        let others = ["auth-offered-plaintext", "stream-tampering"];
        let found = self.findings_about(peer)?;
        Ok(found.into_iter().filter(|finding| others.iter().all(|kind| finding["kind"] != *kind)).collect())
    }

    fn told_about(&self, peer: SocketAddr) -> Vec<Value> {
        let peer = peer.to_string();
        let about = |finding: &Value| ["server", "client"].iter().any(|end| finding["flow"][end] == peer.as_str());
        self.daemon.findings().into_iter().filter(about).collect()
    }

    /// Waits for a finding of this kind about this peer.
    pub fn finding(&self, kind: &str, peer: SocketAddr) -> Result<Value> {
        self.finding_of(&[kind], peer)
    }

    /// Waits for a finding of one of these kinds about this peer.
    pub fn finding_of(&self, wanted: &[&str], peer: SocketAddr) -> Result<Value> {
        let accepted = |finding: &Value| wanted.iter().any(|kind| finding["kind"] == *kind);
        let found = || Ok(self.told_about(peer).into_iter().find(accepted));
        eventually(PATIENCE, &format!("a finding {wanted:?} about {peer}"), found)
            .with_context(|| format!("sessions: {:?}; about it: {:?}", self.sessions(), kinds(&self.told_about(peer))))
    }

    /// Waits until `more` further sessions than in `before` have ended with this result.
    pub fn ended(&self, before: &Sessions, result: &'static str, more: f64) -> Result<()> {
        let before = before.get(result).copied().unwrap_or_default();
        eventually(PATIENCE, &format!("{more} sessions that ended as {result}"), || {
            Ok((self.sessions()?.get(result).copied().unwrap_or_default() >= before + more).then_some(()))
        })
        .with_context(|| format!("before: {before}; sessions: {:?}", self.sessions()))
    }

    /// Waits until one further session has ended, with any result.
    pub fn ended_somehow(&self, before: &Sessions) -> Result<()> {
        let before: f64 = before.values().sum();
        eventually(PATIENCE, "the end of a session", || {
            Ok((self.sessions()?.values().sum::<f64>() >= before + 1.0).then_some(()))
        })
    }

    /// Waits until `count` frames are counted as forged; the daemon reads the counters twice a second.
    pub fn forged_reach(&self, count: f64) -> Result<()> {
        let reached = || Ok((self.forged()? >= count).then_some(()));
        eventually(PATIENCE, &format!("{count} frames that are counted as forged"), reached)
    }

    /// Waits until the kernel's counters do not change, and returns them as [`Self::packets`] does.
    pub fn packets_at_rest(&self) -> Result<(f64, f64)> {
        let mut last = self.packets()?;
        eventually(PATIENCE, "counters that stand still", || {
            std::thread::sleep(Duration::from_millis(700));
            let seen = self.packets()?;
            Ok((std::mem::replace(&mut last, seen) == seen).then_some(seen))
        })
    }

    /// Number of packets of watched ports that were forwarded to the daemon, and of those that were not.
    pub fn packets(&self) -> Result<(f64, f64)> {
        let packets = |outcome| self.daemon.metric("smtpwatch_kernel_packets_total", &[("outcome", outcome)]);
        Ok((packets("forwarded")?, packets("muted")?))
    }

    /// Whether these bytes occur in the daemon's writable memory.
    pub fn remembers(&self, needle: &[u8]) -> Result<bool> {
        let process = format!("/proc/{}", self.daemon.pid());
        let memory = std::fs::File::open(format!("{process}/mem"))?;
        let mut looked = 0;
        for line in std::fs::read_to_string(format!("{process}/maps"))?.lines() {
            // address range, permissions, offset, device, inode, path (proc(5))
            let fields: Vec<_> = line.split_whitespace().collect();
            let (Some(range), true) = (fields.first(), fields.get(1).is_some_and(|rights| rights.starts_with("rw")))
            else {
                continue;
            };
            let ends = range.split('-').map(|end| u64::from_str_radix(end, 16)).collect::<Result<Vec<_>, _>>()?;
            let [start, end] = ends[..] else { continue };
            let mut bytes = vec![0; usize::try_from(end - start)?];
            // Memory mapped from a device cannot be read in this way.
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                looked += bytes.len();
                if holds(&bytes, needle)? {
                    return Ok(true);
                }
            }
        }
        ensure!(looked > 1 << 20, "only {looked} bytes of the daemon's memory can be read");
        Ok(false)
    }

    /// Waits until the daemon has processed everything that was sent to it.
    pub fn at_rest(&self) -> Result<()> {
        let mut last = Vec::new();
        eventually(Duration::from_secs(60), "the end of a backlog", || {
            let names = ["smtpwatch_flows", "smtpwatch_flows_evicted_total", "smtpwatch_sessions_total"];
            let seen = names.iter().map(|name| self.daemon.metric(name, &[])).collect::<Result<Vec<_>>>()?;
            if seen == last {
                return Ok(Some(()));
            }
            last = seen;
            std::thread::sleep(Duration::from_millis(700));
            Ok(None)
        })
    }

    /// The stored history of a peer.
    pub fn history(&self, peer: IpAddr) -> Result<Option<Value>> {
        let all = smtpwatch(&self.ground.home.0, &["baseline", "export"])?;
        let rows = all.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        let peer = peer.to_string();
        Ok(rows.into_iter().find(|row| row.to_string().contains(&format!("\"{peer}\""))))
    }

    /// Waits until `sessions` sessions of a peer are in its history.
    pub fn learned(&self, peer: IpAddr, sessions: u64) -> Result<Value> {
        eventually(PATIENCE, &format!("a history of {sessions} sessions of {peer}"), || {
            Ok(self.history(peer)?.filter(|history| history["sessions"] == sessions))
        })
        .with_context(|| format!("{:?}", self.history(peer)))
    }
}

/// Whether `needle` occurs in `bytes`, by the standard library's search, which is fast in unoptimised tests too.
fn holds(mut bytes: &[u8], needle: &[u8]) -> Result<bool> {
    let Some((first, rest)) = needle.split_first() else { return Ok(true) };
    while bytes.skip_until(*first)? > 0 {
        if bytes.starts_with(rest) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The kinds of findings, for messages.
pub fn kinds(findings: &[Value]) -> Vec<String> {
    findings.iter().map(|finding| format!("{} {} {}", finding["kind"], finding["rule"], finding["flow"])).collect()
}
