//! The setting of the live benchmark: the path of the lab with the daemon at one end.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use smtpwatch_tests::daemon::{Daemon, Options, Profile};
use smtpwatch_tests::netns::{EXCHANGER_V4, GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::root::lab_directory;

use super::empty_xdp::EmptyXdp;

/// Address of the far mail server.
pub const EXCHANGER: SocketAddr = SocketAddr::new(IpAddr::V4(EXCHANGER_V4), 25);
/// Target of load that must not be attributed to the mail server at [`EXCHANGER`]. It is port 25: on the submission
/// port each cleartext session would raise a finding.
pub const LOADED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 26)), 25);

/// Longest wait for the counters: the daemon reads the kernel's counters twice a second and counts a session shortly
/// after its end.
const SETTLE: Duration = Duration::from_secs(15);
const COUNTERS: Duration = Duration::from_millis(700);

/// The path and a scratch directory, which is removed at the end.
#[derive(Debug)]
pub struct Site {
    /// Client and server, with a router between them.
    pub path: Path,
    home: Home,
    serial: Cell<u32>,
}

/// Where and how the daemon watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Which end is the watched host.
    pub end: End,
    /// Value of the configuration key `ingress`.
    pub ingress: &'static str,
    /// What is attached in the runs without the daemon.
    pub beside: Beside,
}

/// What a run with the daemon is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// Nothing at all.
    Nothing,
    /// An XDP program that passes every packet.
    EmptyXdp,
}

/// The watched end of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Outgoing mail: bulk data passes the egress hook.
    Client,
    /// Incoming mail: bulk data passes the ingress hook.
    Server,
}

impl Place {
    /// Outgoing mail. The ingress hook, whichever it is, sees only acknowledgements.
    pub const CLIENT: Self = Self { end: End::Client, ingress: "tcx", beside: Beside::Nothing };
    /// All places.
    pub const ALL: [Self; 4] = [
        Self::CLIENT,
        Self { end: End::Server, ingress: "tcx", beside: Beside::Nothing },
        Self { end: End::Server, ingress: "xdp", beside: Beside::Nothing },
        Self { end: End::Server, ingress: "xdp", beside: Beside::EmptyXdp },
    ];

    /// Label of the place in a table row.
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
    /// Creates the path and the directory.
    pub fn create() -> Result<Self> {
        let home = Home(lab_directory().join("run").join(format!("{}-bench-live", std::process::id())));
        std::fs::create_dir_all(&home.0)?;
        let path = Path::create()?;
        path.exchanger.ip(&["addr", "add", &format!("{}/24", LOADED.ip()), "dev", "mx0"])?;
        Ok(Self { path, home, serial: Cell::new(0) })
    }

    /// Starts the daemon with an empty store.
    pub fn daemon(&self, place: Place) -> Result<Daemon<'_>> {
        let (namespace, interface) = self.watched(place);
        self.daemon_on(namespace, interface, place.ingress)
    }

    /// Attaches what is compared with the daemon; dropping the value detaches it.
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

    /// Creates an empty directory for one run.
    pub fn directory(&self) -> Result<PathBuf> {
        self.serial.set(self.serial.get() + 1);
        let directory = self.home.0.join(self.serial.get().to_string());
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    }
}

/// Counters of the daemon since its start.
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
    /// Waits until `sessions` sessions are counted or the time is over, and until the kernel's counters are read.
    pub fn after(daemon: &Daemon<'_>, sessions: f64) -> Result<Self> {
        // The caller decides whether all were counted: a lower count is a figure, not a failure.
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

    /// Checks that the daemon processed the traffic: most packets of a bulk transfer belong to muted flows.
    pub fn ensure_muted(&self) -> Result<()> {
        ensure!(self.muted > self.forwarded, "this is not what was to be measured: {self:?}");
        Ok(())
    }
}

/// A directory that is removed with its contents on drop.
#[derive(Debug)]
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        // The directory is below target/; the next run removes what remains.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
