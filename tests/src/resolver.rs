//! Real resolvers on the watched host: Unbound, which validates, and PowerDNS Recursor with DNSSEC switched off.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::{self, Output};
use crate::names::Names;
use crate::netns::Namespace;
use crate::root::{Instance, Packages, Root};

const READY: Duration = Duration::from_secs(90);
/// Time limit for one query, including the queries of the resolver itself.
const ANSWER: Duration = Duration::from_secs(60);

/// How a resolver treats DNSSEC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dnssec {
    /// Validates, and includes signatures for clients that request them.
    Validates,
    /// Neither requests signatures nor returns them, as resolvers of hotels and old routers do.
    Stripped,
}

impl Dnssec {
    /// Address of such a resolver, on the loopback of its namespace.
    #[must_use]
    pub const fn address(self) -> SocketAddr {
        let last = match self {
            Self::Validates => 1,
            Self::Stripped => 2,
        };
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 53)
    }
}

/// A running resolver.
#[derive(Debug)]
pub struct Resolver<'a> {
    namespace: &'a Namespace,
    instance: Instance,
    /// How it treats DNSSEC.
    pub dnssec: Dnssec,
}

impl<'a> Resolver<'a> {
    /// Starts it in `namespace`, with the root servers of `names`.
    ///
    /// # Errors
    /// [`crate::Skip`] when it cannot be installed here; otherwise the error with its log.
    pub fn start(namespace: &'a Namespace, names: &Names, dnssec: Dnssec) -> Result<Self> {
        let address = dnssec.address().ip();
        let (packages, program, configuration, started) = match dnssec {
            Dnssec::Validates => {
                let program = ["unbound", "-d", "-c", "/lab/unbound.conf"];
                (Packages::Unbound, program, format!("{UNBOUND}  interface: {address}\n"), "start of service")
            }
            Dnssec::Stripped => {
                let program = ["pdns_recursor", "--config-dir=/lab", "--daemon=no", "--disable-syslog"];
                (Packages::Recursor, program, format!("{RECURSOR}local-address={address}\n"), "multiplexer")
            }
        };
        let instance = Root::with(packages)?.start(namespace, &program, |lab| {
            std::fs::write(lab.join("hints"), format!(". 3600 IN NS ns.\nns. 3600 IN A {}\n", names.address))?;
            std::fs::write(lab.join("anchor"), &names.anchor)?;
            Ok(std::fs::write(lab.join(program[0].replace("pdns_", "") + ".conf"), configuration)?)
        })?;
        let mut resolver = Self { namespace, instance, dnssec };
        let ready = command::eventually(READY, "the resolver", || {
            ensure!(!resolver.instance.ended(), "it ended");
            Ok(resolver.log().contains(started).then_some(()))
        });
        ready.with_context(|| resolver.log())?;
        Ok(resolver)
    }

    /// Output of `dig` with `arguments`.
    ///
    /// # Errors
    /// When dig fails.
    pub fn dig(&self, arguments: &[&str]) -> Result<String> {
        let server = format!("@{}", self.dnssec.address().ip());
        let program: Vec<&str> =
            ["dig", server.as_str(), "+timeout=20", "+tries=1"].iter().chain(arguments).copied().collect();
        Ok(self.tool(&program, "")?.stdout)
    }

    /// Output of `delv`, which trusts the root of `names` and validates by itself.
    ///
    /// # Errors
    /// When delv fails.
    pub fn delv(&self, names: &Names, arguments: &[&str]) -> Result<String> {
        let mut words = names.anchor.split_whitespace().skip_while(|word| *word != "DNSKEY").skip(1);
        let mut word = || words.next().context("the anchor is no DNSKEY");
        let (flags, protocol, algorithm, key) = (word()?, word()?, word()?, word()?);
        let anchors = format!("trust-anchors {{ . static-key {flags} {protocol} {algorithm} \"{key}\"; }};\n");
        let server = format!("@{}", self.dnssec.address().ip());
        let program = ["delv", server.as_str(), "-a", "/lab/anchors", "+root=."];
        let program: Vec<&str> = program.iter().chain(arguments).copied().collect();
        let out = self.tool(&program, &anchors)?;
        Ok(out.stdout + &out.stderr)
    }

    fn tool(&self, program: &[&str], anchors: &str) -> Result<Output> {
        Root::with(Packages::Unbound)?
            .output(self.namespace, program, ANSWER, |lab| Ok(std::fs::write(lab.join("anchors"), anchors)?))
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.instance.read("output.log")
    }
}

const UNBOUND: &str = "\
server:
  module-config: \"validator iterator\"
  trust-anchor-file: /lab/anchor
  port: 53
  access-control: 127.0.0.0/8 allow
  username: \"\"
  chroot: \"\"
  directory: /tmp
  pidfile: \"\"
  use-syslog: no
  logfile: \"\"
  log-time-ascii: no
  verbosity: 1
  root-hints: /lab/hints
  do-ip6: no
  cache-min-ttl: 0
  cache-max-ttl: 60
  cache-max-negative-ttl: 1
";

/// Recursor configuration: it queries the documentation address ranges and nothing outside the lab.
const RECURSOR: &str = "\
dnssec=off
hint-file=/lab/hints
dont-query=
allow-from=127.0.0.0/8
local-port=53
socket-dir=/tmp
security-poll-suffix=
threads=1
max-cache-ttl=15
max-negative-ttl=1
";
