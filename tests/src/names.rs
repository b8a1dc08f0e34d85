//! A real Knot: the authoritative name server of a small DNS hierarchy with its own root, signed at start.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::netns::Namespace;
use crate::root::{Instance, Packages, Root};

const READY: Duration = Duration::from_secs(90);

/// A zone of the hierarchy. The root is one of them; every other zone is delegated by its closest ancestor.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its name, without the final dot; empty for the root.
    pub name: String,
    /// Its records in zone-file form, names relative to the zone; SOA, NS and delegations are added.
    pub records: String,
    /// How it is signed.
    pub signing: Signing,
}

/// How a zone is signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signing {
    /// Not signed; the delegation proves it.
    Unsigned,
    /// Signed, with NSEC denial of existence.
    Nsec,
    /// Signed, with NSEC3 denial, as large registries use.
    Nsec3,
    /// Signed, with NSEC3 opt-out for unsigned delegations.
    OptOut,
    /// Signed, with signatures that have expired.
    Expired,
}

impl Signing {
    const fn options(self) -> &'static str {
        match self {
            Self::Unsigned | Self::Nsec => "",
            Self::Nsec3 => "-n",
            Self::OptOut => "-n -p",
            Self::Expired => "-i 20200101000000 -e 20200201000000",
        }
    }
}

impl Zone {
    fn file(&self) -> &str {
        if self.name.is_empty() { "root" } else { &self.name }
    }

    fn labels(&self) -> usize {
        self.name.split('.').filter(|label| !label.is_empty()).count()
    }

    /// Whether `zone` is inside this zone.
    fn holds(&self, zone: &Self) -> bool {
        let above = zone.name.strip_suffix(&self.name).is_some_and(|rest| rest.ends_with('.') || self.name.is_empty());
        above && self.name != zone.name
    }
}

/// A running Knot with its own keys and signatures.
#[derive(Debug)]
pub struct Names {
    instance: Instance,
    /// The address at which it answers, port 53.
    pub address: IpAddr,
    /// The root's key in zone-file form: the trust anchor for a validating resolver.
    pub anchor: String,
}

impl Names {
    /// Signs `zones` and serves them at `address` of `namespace`. Each zone in `elsewhere` is delegated, unsigned, to
    /// the address given with it.
    ///
    /// # Errors
    /// [`crate::Skip`] when Knot cannot be installed here; otherwise the error with its log.
    pub fn start(namespace: &Namespace, address: IpAddr, zones: &[Zone], elsewhere: &[(&str, IpAddr)]) -> Result<Self> {
        let mut zones = zones.to_vec();
        zones.sort_by_key(|zone| std::cmp::Reverse(zone.labels()));
        let root = zones.last().context("no zone")?;
        ensure!(root.name.is_empty(), "there is no root");
        let mut instance = Root::with(Packages::Knot)?.start(namespace, &["sh", "/lab/start.sh"], |lab| {
            let directory = lab.join("zones");
            std::fs::create_dir(&directory)?;
            let (mut configuration, mut plan) = (configuration(address), String::new());
            for zone in &zones {
                let (file, name, signing) = (zone.file(), &zone.name, zone.signing);
                let mut text = format!("$ORIGIN {}\n{HEAD}{}\n", absolute(name), zone.records);
                if name.is_empty() {
                    writeln!(text, "{SERVER} {} {address}", if address.is_ipv4() { "A" } else { "AAAA" })?;
                }
                for child in zones.iter().filter(|child| parent(&zones, child).is_some_and(|above| above.name == *name))
                {
                    writeln!(text, "{}. NS {SERVER}", child.name)?;
                }
                for (child, address) in elsewhere {
                    let child = Zone { name: (*child).to_owned(), records: String::new(), signing: Signing::Unsigned };
                    if parent(&zones, &child).is_some_and(|above| above.name == *name) {
                        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
                        writeln!(text, "{0}. NS ns.{0}.\nns.{0}. {kind} {address}", child.name)?;
                    }
                }
                std::fs::write(directory.join(file), text)?;
                let suffix = if signing == Signing::Unsigned { "" } else { ".signed" };
                writeln!(configuration, "  - domain: {}\n    file: {file}{suffix}", absolute(name))?;
                if signing != Signing::Unsigned {
                    let above = parent(&zones, zone).map_or("/dev/null", Zone::file);
                    writeln!(plan, "sign {} {file} {above} {}", absolute(name), signing.options())?;
                }
            }
            std::fs::write(lab.join("knot.conf"), configuration)?;
            Ok(std::fs::write(lab.join("start.sh"), format!("{SIGN}{plan}{SERVE}"))?)
        })?;
        let ready = command::eventually(READY, "the name server", || {
            ensure!(!instance.ended(), "Knot ended");
            Ok(instance.read("output.log").contains("server started").then_some(()))
        });
        ready.with_context(|| instance.read("output.log"))?;
        let anchor = instance.read("anchor");
        ensure!(anchor.contains("DNSKEY"), "the root is not signed: {anchor}");
        Ok(Self { instance, address, anchor })
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.instance.read("output.log")
    }

    /// Socket address at which it answers.
    #[must_use]
    pub const fn server(&self) -> SocketAddr {
        SocketAddr::new(self.address, 53)
    }
}

/// The closest ancestor of `zone`.
fn parent<'a>(zones: &'a [Zone], zone: &Zone) -> Option<&'a Zone> {
    zones.iter().filter(|above| above.holds(zone)).max_by_key(|above| above.labels())
}

fn absolute(name: &str) -> String {
    format!("{name}.")
}

/// Host name of the server, in the root zone.
const SERVER: &str = "ns.";

/// Head of every zone. The times to live are short because a scenario may change the records.
const HEAD: &str = "\
$TTL 60
@ SOA ns. hostmaster.ns. 1 3600 600 86400 60
@ NS ns.
";

/// `sign ZONE FILE FILE-OF-THE-PARENT-ZONE OPTIONS`: one key for the whole zone.
const SIGN: &str = r#"
set -eu
mkdir -p /tmp/knot
cd /lab/zones
sign() {
  zone=$1 file=$2 above=$3; shift 3
  key=$(ldns-keygen -r /dev/urandom -a ECDSAP256SHA256 -k "$zone")
  ldns-signzone "$@" -f "$file.signed" "$file" "$key"
  cat "$key.ds" >> "$above"
  cp "$key.key" /lab/anchor
}
"#;

const SERVE: &str = "exec knotd -c /lab/knot.conf\n";

fn configuration(address: IpAddr) -> String {
    format!(
        "server:\n  rundir: /tmp/knot\n  user: root\n  listen: {address}@53\n\
         log:\n  - target: stderr\n    any: info\n\
         database:\n  storage: /tmp/knot\n\
         template:\n  - id: default\n    storage: /lab/zones\n    zonefile-load: whole\n    zonefile-sync: -1\n    \
         journal-content: none\n\
         zone:\n"
    )
}
