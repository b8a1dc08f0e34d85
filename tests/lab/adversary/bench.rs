//! One daemon by one hook, the attacker's wire, and the account of which rows failed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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

/// How long a finding or a count may take.
const PATIENCE: Duration = Duration::from_secs(6);

/// Networks whose addresses the attacker plays: those with a rule that demands STARTTLS, and those that are known by
/// their history alone (RFC 2544, RFC 3849).
const RULE_V4: [u8; 2] = [198, 18];
const HISTORY_V4: [u8; 2] = [198, 19];
const RULE_V6: u16 = 0x18;
const HISTORY_V6: u16 = 0x19;
const RULES: &str = "[[rule]]\npeer = [\"198.18.0.0/16\", \"2001:db8:18::/48\"]\nstarttls = \"required\"\n";

/// Nothing is looked up: there is no resolver, and verdicts would wait for one.
const POLICY: &str = "[policy]\nmta_sts = false\ndane = false\n";

/// What is for them reaches a packet socket of the router; its kernel drops it in silence.
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
        for route in DROPPED {
            path.router.ip(&route)?;
        }
        Ok(Self { path, identity: Identity::generate("mx.example.net")?, home: Home::create("adversary")? })
    }
}

/// Where the sessions of a daemon ended, by result.
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
    pub fn start(ground: &'g Ground, hook: &'static str, family: Family) -> Result<Self> {
        let gateway = &ground.path.gateway;
        let options = Options { ingress: hook, rules: RULES, policy: POLICY, ..Options::default() };
        let daemon = Daemon::start(gateway, GATEWAY_INTERFACE, &ground.home.0, options)?;
        let attached = [("interface", GATEWAY_INTERFACE), ("direction", "ingress"), ("hook", hook)];
        let attached = daemon.metric("smtpwatch_probe_attached", &attached)?;
        ensure!(attached > 0.5, "{hook} was asked for and is not attached:\n{}", daemon.log());
        let wire = Wire::open((&ground.path.router, "left"), (gateway, GATEWAY_INTERFACE))?;
        // The first sessions wrap.
        Ok(Self { hook, family, ground, daemon, wire, peers: 0, isn: 0xffff_ff00, rows: 0, failures: Vec::new() })
    }

    /// Real servers of the host, on both ports.
    pub fn servers(&self) -> Result<[Server; 2]> {
        let start = |port| {
            let offer =
                script("220 gateway.example.org ESMTP", &["gateway.example.org", "STARTTLS", "AUTH PLAIN LOGIN"]);
            let address = SocketAddr::new(self.family.gateway(), port);
            Server::start(&self.ground.path.gateway, address, &self.ground.identity, offer)
        };
        Ok([start(25)?, start(587)?])
    }

    /// An address that no other row has, of a mail exchanger with a rule that demands STARTTLS.
    pub fn peer_with_rule(&mut self) -> IpAddr {
        self.peer(RULE_V4, RULE_V6)
    }

    /// The same, of one without any.
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

    /// An initial sequence number.
    pub const fn isn(&mut self) -> u32 {
        self.isn = self.isn.wrapping_add(0x0101_0101);
        self.isn
    }

    /// One row of the table: an error does not keep the others from being tried. `SMTPWATCH_ADVERSARY_ROW` picks those whose
    /// names hold its value.
    pub fn row(&mut self, name: &str, attack: impl FnOnce(&mut Self) -> Result<()>) {
        if std::env::var("SMTPWATCH_ADVERSARY_ROW").is_ok_and(|part| !name.contains(&part)) {
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

    /// All rows, or those that failed.
    pub fn verdict(self) -> Result<()> {
        let Self { rows, failures, .. } = self;
        ensure!(failures.is_empty(), "{} of {rows} rows failed:\n{}", failures.len(), failures.join("\n"));
        Ok(())
    }

    /// Where sessions have ended so far.
    pub fn sessions(&self) -> Result<Sessions> {
        ["tls", "plaintext", "rejected", "unknown"]
            .into_iter()
            .map(|result| Ok((result, self.daemon.metric("smtpwatch_sessions_total", &[("result", result)])?)))
            .collect()
    }

    /// Frames that arrived in the host's own name.
    pub fn forged(&self) -> Result<f64> {
        self.daemon.metric("smtpwatch_kernel_dropped_total", &[("reason", "forged")])
    }

    /// What was found about this peer, when everything that was counted has also been told.
    pub fn findings_about(&self, peer: SocketAddr) -> Result<Vec<Value>> {
        eventually(PATIENCE, "the findings that are counted", || {
            let counted = self.daemon.metric("smtpwatch_findings_total", &[])?;
            Ok((f64::from(u32::try_from(self.daemon.findings().len())?) >= counted).then_some(()))
        })?;
        Ok(self.told_about(peer))
    }

    fn told_about(&self, peer: SocketAddr) -> Vec<Value> {
        let peer = peer.to_string();
        let about = |finding: &Value| ["server", "client"].iter().any(|end| finding["flow"][end] == peer.as_str());
        self.daemon.findings().into_iter().filter(about).collect()
    }

    /// Waits for a finding about this peer.
    pub fn finding(&self, kind: &str, peer: SocketAddr) -> Result<Value> {
        let found = || Ok(self.told_about(peer).into_iter().find(|finding| finding["kind"] == kind));
        eventually(PATIENCE, &format!("a finding {kind} about {peer}"), found)
            .with_context(|| format!("sessions: {:?}; about it: {:?}", self.sessions(), kinds(&self.told_about(peer))))
    }

    /// Waits until so many sessions more have ended with this result as there were `before`.
    pub fn ended(&self, before: &Sessions, result: &'static str, more: f64) -> Result<()> {
        let before = before.get(result).copied().unwrap_or_default();
        eventually(PATIENCE, &format!("{more} sessions that ended as {result}"), || {
            Ok((self.sessions()?.get(result).copied().unwrap_or_default() >= before + more).then_some(()))
        })
        .with_context(|| format!("before: {before}; sessions: {:?}", self.sessions()))
    }

    /// Waits until a session more has ended, whatever its result.
    pub fn ended_somehow(&self, before: &Sessions) -> Result<()> {
        let before: f64 = before.values().sum();
        eventually(PATIENCE, "the end of a session", || {
            Ok((self.sessions()?.values().sum::<f64>() >= before + 1.0).then_some(()))
        })
    }

    /// What is remembered of a peer, as its history says.
    pub fn history(&self, peer: IpAddr) -> Result<Option<Value>> {
        let all = smtpwatch(&self.ground.home.0, &["baseline", "export"])?;
        let rows = all.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        let peer = peer.to_string();
        Ok(rows.into_iter().find(|row| row.to_string().contains(&format!("\"{peer}\""))))
    }

    /// Waits until so many sessions of a peer are remembered.
    pub fn learned(&self, peer: IpAddr, sessions: u64) -> Result<Value> {
        eventually(PATIENCE, &format!("a history of {sessions} sessions of {peer}"), || {
            Ok(self.history(peer)?.filter(|history| history["sessions"] == sessions))
        })
        .with_context(|| format!("{:?}", self.history(peer)))
    }
}

/// The kinds of findings, for messages.
pub fn kinds(findings: &[Value]) -> Vec<String> {
    findings.iter().map(|finding| format!("{} {} {}", finding["kind"], finding["rule"], finding["flow"])).collect()
}
