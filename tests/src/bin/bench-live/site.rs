//! The setting: the path of the lab, and the daemon at one end.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use smtpwatch_tests::daemon::{Daemon, Options, Profile};
use smtpwatch_tests::netns::{EXCHANGER_V4, GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::root::lab_directory;

use super::empty_xdp::EmptyXdp;

/// The far mail server.
pub const EXCHANGER: SocketAddr = SocketAddr::new(IpAddr::V4(EXCHANGER_V4), 25);
/// Where load goes that must not be taken for the mail server at [`EXCHANGER`]. On the submission port each of its sessions
/// in cleartext would be a finding.
pub const LOADED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 26)), 25);

/// The daemon reads the kernel's counters twice a second, and knows of a session a moment after its end.
const SETTLE: Duration = Duration::from_secs(15);
const COUNTERS: Duration = Duration::from_millis(700);

/// The path, and a directory that is removed at the end.
#[derive(Debug)]
pub struct Site {
    /// Client and server, with a router between them.
    pub path: Path,
    home: Home,
    serial: Cell<u32>,
}

/// Where the daemon watches, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Which end is the watched host.
    pub end: End,
    /// `ingress = …` of the configuration.
    pub ingress: &'static str,
    /// What is there while the daemon is not.
    pub beside: Beside,
}

/// What a run with the daemon is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// Nothing at all.
    Nothing,
    /// An XDP program that only passes.
    EmptyXdp,
}

/// An end of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Mail goes out: bulk passes the hook at egress.
    Client,
    /// Mail comes in: bulk passes the hook at ingress.
    Server,
}

impl Place {
    /// Mail goes out. Which hook is at ingress meets the acknowledgements alone.
    pub const CLIENT: Self = Self { end: End::Client, ingress: "tcx", beside: Beside::Nothing };
    /// Each of them.
    pub const ALL: [Self; 4] = [
        Self::CLIENT,
        Self { end: End::Server, ingress: "tcx", beside: Beside::Nothing },
        Self { end: End::Server, ingress: "xdp", beside: Beside::Nothing },
        Self { end: End::Server, ingress: "xdp", beside: Beside::EmptyXdp },
    ];

    /// As a row of a table says it.
    pub const fn describe(self) -> &'static str {
        match (self.end, self.ingress.as_bytes(), self.beside) {
            (End::Client, _, _) => "out, TCX",
            (End::Server, b"tcx", _) => "in, TCX",
            (End::Server, _, Beside::Nothing) => "in, XDP",
            (End::Server, _, Beside::EmptyXdp) => "in, XDP beside an empty XDP program",
        }
    }
}

impl Site {
    /// Builds the path.
    pub fn create() -> Result<Self> {
        let home = Home(lab_directory().join("run").join(format!("{}-bench-live", std::process::id())));
        std::fs::create_dir_all(&home.0)?;
        let path = Path::create()?;
        path.exchanger.ip(&["addr", "add", &format!("{}/24", LOADED.ip()), "dev", "mx0"])?;
        Ok(Self { path, home, serial: Cell::new(0) })
    }

    /// Starts the daemon, which knows nothing yet.
    pub fn daemon(&self, place: Place) -> Result<Daemon<'_>> {
        let (namespace, interface) = self.watched(place);
        self.daemon_on(namespace, interface, place.ingress)
    }

    /// What is there while the daemon is not; it goes when the value is dropped.
    pub fn beside(&self, place: Place) -> Result<Option<EmptyXdp>> {
        let (namespace, interface) = self.watched(place);
        match place.beside {
            Beside::Nothing => Ok(None),
            Beside::EmptyXdp => EmptyXdp::attach(namespace, interface).map(Some),
        }
    }

    const fn watched(&self, place: Place) -> (&Namespace, &'static str) {
        match place.end {
            End::Client => (&self.path.gateway, GATEWAY_INTERFACE),
            End::Server => (&self.path.exchanger, "mx0"),
        }
    }

    /// Starts the daemon on an interface of any namespace.
    pub fn daemon_on<'a>(&self, namespace: &'a Namespace, interface: &str, ingress: &str) -> Result<Daemon<'a>> {
        let options = Options { ingress, profile: Profile::Dist, ..Options::default() };
        Daemon::start(namespace, interface, &self.directory()?, options)
    }

    /// A fresh directory.
    pub fn directory(&self) -> Result<PathBuf> {
        self.serial.set(self.serial.get() + 1);
        let directory = self.home.0.join(self.serial.get().to_string());
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    }
}

/// What the daemon counted since it was started.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Counts {
    /// Sessions that were judged.
    pub sessions: f64,
    /// Records that the kernel programs could not deliver.
    pub dropped: f64,
    /// Packets of muted flows.
    pub muted: f64,
    /// Packets handed to the daemon.
    pub forwarded: f64,
}

impl Counts {
    /// Waits until `sessions` are counted, or the time for it is over, and until the kernel's counters are read.
    pub fn after(daemon: &Daemon<'_>, sessions: f64) -> Result<Self> {
        // Whether they all came is for the caller to say: fewer are a figure, not a failure.
        let _ = daemon.metric_reaches("smtpwatch_sessions_total", &[], sessions, SETTLE);
        std::thread::sleep(COUNTERS);
        let packets = |outcome| daemon.metric("smtpwatch_kernel_packets_total", &[("outcome", outcome)]);
        Ok(Self {
            sessions: daemon.metric("smtpwatch_sessions_total", &[])?,
            dropped: daemon.metric("smtpwatch_kernel_dropped_total", &[])?,
            muted: packets("muted")?,
            forwarded: packets("forwarded")?,
        })
    }

    /// The daemon was really at it: most packets of a bulk transfer are of muted flows.
    pub fn ensure_muted(&self) -> Result<()> {
        ensure!(self.muted > self.forwarded, "this is not what was to be measured: {self:?}");
        Ok(())
    }
}

/// Removed with everything in it.
#[derive(Debug)]
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        // It is below target/, and the next run sweeps what stays.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
