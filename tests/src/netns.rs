//! Network namespaces and the path of the lab: gateway ── router (position of the attacker) ── mail exchanger.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::{Skip, command, root};

/// The watched host, in the documentation range of RFC 5737.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The watched host, in the documentation range of RFC 3849.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
/// The far mail exchanger (RFC 5737).
pub const EXCHANGER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 25);
/// The far mail exchanger (RFC 3849).
pub const EXCHANGER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x25);
/// The gateway's interface, which the daemon watches.
pub const GATEWAY_INTERFACE: &str = "mail0";

/// Prefix of every namespace of the lab; the process id that follows identifies its owner.
const PREFIX: &str = "swlab";
const LIMIT: Duration = Duration::from_secs(60);

static COUNTER: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// Address family of a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The gateway's address.
    #[must_use]
    pub const fn gateway(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(GATEWAY_V4),
            Self::V6 => IpAddr::V6(GATEWAY_V6),
        }
    }

    /// The exchanger's address.
    #[must_use]
    pub const fn exchanger(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(EXCHANGER_V4),
            Self::V6 => IpAddr::V6(EXCHANGER_V6),
        }
    }
}

/// A network namespace with its loopback up; removed on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace whose name ends in `role`.
    ///
    /// # Errors
    /// [`Skip`] when the machine does not permit it; otherwise the error of `ip`.
    pub fn create(role: &str) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Skip("network namespaces need root".to_owned()).into());
        }
        SWEEP.call_once(|| {
            sweep();
            root::sweep();
        });
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{serial}-{role}", std::process::id());
        command::run(Command::new("ip").args(["netns", "add", &name]), LIMIT)
            .map_err(|error| Skip(format!("cannot create a network namespace: {error:#}")))?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside and is killed when the calling thread ends.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = command::mortal("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// As [`Namespace::command`], for a program that reads cgroups: `ip netns exec` mounts a `/sys` without them.
    #[must_use]
    pub fn command_with_cgroups(&self, program: &str) -> Command {
        let mut command = command::mortal("nsenter");
        command.args([&format!("--net=/run/netns/{}", self.name), "--", program]);
        command
    }

    /// Runs `closure` inside on a thread of its own and returns its value.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the closure panics.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.file()?;
        std::thread::scope(|scope| {
            let thread = Builder::new().spawn_scoped(scope, || {
                setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                Ok(closure())
            })?;
            thread.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// Starts `closure` inside on a thread of its own; threads that it starts are inside too.
    ///
    /// # Errors
    /// When the namespace or the thread cannot be created.
    pub fn spawn<T: Send + 'static>(
        &self,
        closure: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let file = self.file()?;
        Ok(Builder::new().spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            Ok(closure())
        })?)
    }

    /// Runs `ip -n NAME …`.
    ///
    /// # Errors
    /// The error of `ip`.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        command::run(Command::new("ip").args(["-n", &self.name]).args(arguments), LIMIT)
    }

    /// Loads a rule set by `nft -f -`.
    ///
    /// # Errors
    /// The error of `nft`.
    pub fn nft(&self, rules: &str) -> Result<()> {
        command::run_with_input(self.command("nft").args(["-f", "-"]), rules.as_bytes(), LIMIT).map(drop)
    }

    /// Writes a value below `/proc/sys/net` of this namespace, for example `ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is no such key.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/net/{key}"), value))?
            .with_context(|| format!("cannot set net/{key} to {value}"))
    }

    fn file(&self) -> Result<File> {
        let path = format!("/run/netns/{}", self.name);
        File::open(&path).with_context(|| format!("cannot open {path}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Gateway, router and exchanger, joined by two veth pairs, routed for IPv4 and IPv6.
#[derive(Debug)]
pub struct Path {
    /// The watched mail host.
    pub gateway: Namespace,
    /// The router between them, where the attacker runs.
    pub router: Namespace,
    /// The remote mail host.
    pub exchanger: Namespace,
}

impl Path {
    /// Creates the path and checks that both address families cross it.
    ///
    /// # Errors
    /// [`Skip`] without permission to create namespaces; otherwise the failure.
    pub fn create() -> Result<Self> {
        let path = Self {
            gateway: Namespace::create("gw")?,
            router: Namespace::create("router")?,
            exchanger: Namespace::create("mx")?,
        };
        let Self { gateway, router, exchanger } = &path;
        for (key, value) in
            [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv4/conf/all/rp_filter", "0")]
        {
            router.sysctl(key, value)?;
        }
        router.sysctl("ipv4/conf/default/rp_filter", "0")?;
        join((gateway, GATEWAY_INTERFACE), (router, "left"))?;
        join((exchanger, "mx0"), (router, "right"))?;
        for (namespace, interface, v4, v6) in [
            (gateway, GATEWAY_INTERFACE, GATEWAY_V4.to_string(), GATEWAY_V6.to_string()),
            (router, "left", "192.0.2.1".to_owned(), "2001:db8:1::1".to_owned()),
            (router, "right", "198.51.100.1".to_owned(), "2001:db8:2::1".to_owned()),
            (exchanger, "mx0", EXCHANGER_V4.to_string(), EXCHANGER_V6.to_string()),
        ] {
            namespace.ip(&["addr", "add", &format!("{v4}/24"), "dev", interface])?;
            namespace.ip(&["addr", "add", &format!("{v6}/64"), "dev", interface, "nodad"])?;
            namespace.ip(&["link", "set", interface, "up"])?;
        }
        for (namespace, v4, v6) in
            [(gateway, "192.0.2.1", "2001:db8:1::1"), (exchanger, "198.51.100.1", "2001:db8:2::1")]
        {
            namespace.ip(&["route", "add", "default", "via", v4])?;
            namespace.ip(&["-6", "route", "add", "default", "via", v6])?;
        }
        Ok(path)
    }
}

/// Joins two namespaces by a veth pair, whose ends have these names; both are down.
///
/// # Errors
/// [`Skip`] when the kernel has no veth.
pub fn join((left, left_name): (&Namespace, &str), (right, right_name): (&Namespace, &str)) -> Result<()> {
    let arguments =
        ["link", "add", left_name, "netns", left.name(), "type", "veth", "peer", "name", right_name, "netns"];
    command::run(Command::new("ip").args(arguments).arg(right.name()), LIMIT)
        .map(drop)
        .map_err(|error| Skip(format!("cannot create a veth pair: {error:#}")).into())
}

/// Removes the namespaces that killed earlier runs left.
fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1)?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    // Success is not required: the next run removes a namespace that stays.
    let _ = command::run(Command::new("ip").args(["netns", "del", name]), LIMIT);
}
