//! The monitor that watches the replay: the daemon, or another program to compare it with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use smtpwatch_tests::command::{self, Guard, eventually};
use smtpwatch_tests::daemon::Daemon;
use smtpwatch_tests::netns::Namespace;
use smtpwatch_tests::recording::{self, number_before};

use super::cpu;
use super::replay::{self, WIRE};
use super::site::{Counts, Site};

const READY: Duration = Duration::from_secs(60);
const FILTER: &str = "tcp port 25 or tcp port 587";
/// Time for every monitor to process what is queued, before the CPU time is read.
const SETTLE: Duration = Duration::from_secs(1);

/// A monitor of the replayed traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watcher {
    /// No monitor: the cost of the replay itself.
    None,
    /// The daemon with XDP at ingress.
    SmtpwatchXdp,
    /// The daemon with TCX at ingress.
    SmtpwatchTcx,
    /// tcpdump with the mail ports as its filter, writing to a file.
    Tcpdump,
    /// Suricata with rules for SMTP, over AF_PACKET.
    Suricata,
}

impl Watcher {
    /// All monitors; the first is the reference that the others are compared with.
    pub const ALL: [Self; 5] = [Self::None, Self::SmtpwatchXdp, Self::SmtpwatchTcx, Self::Tcpdump, Self::Suricata];

    /// Label of the monitor in a table row.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "nobody",
            Self::SmtpwatchXdp => "smtpwatch (XDP)",
            Self::SmtpwatchTcx => "smtpwatch (TCX)",
            Self::Tcpdump => "tcpdump",
            Self::Suricata => "Suricata",
        }
    }

    /// Whether it is the daemon.
    pub const fn is_ours(self) -> bool {
        match self {
            Self::SmtpwatchXdp | Self::SmtpwatchTcx => true,
            Self::None | Self::Tcpdump | Self::Suricata => false,
        }
    }

    /// Its version; `None` where it is not installed.
    pub fn version(self) -> Option<String> {
        let (program, argument, before) = match self {
            Self::None | Self::SmtpwatchXdp | Self::SmtpwatchTcx => return Some(String::new()),
            Self::Tcpdump => ("tcpdump", "--version", "tcpdump version "),
            Self::Suricata => ("suricata", "-V", "Suricata version "),
        };
        let out = command::output(Command::new(replay::find(program)?).arg(argument), READY).ok()?;
        let said = out.stdout + &out.stderr;
        Some(said.split_once(before)?.1.split_whitespace().next()?.to_owned())
    }

    /// Starts it in `namespace` and waits until it captures.
    pub fn start<'a>(self, site: &Site, namespace: &'a Namespace) -> Result<Running<'a>> {
        let directory = site.directory()?;
        Ok(match self {
            Self::None => Running::None,
            Self::SmtpwatchXdp => Running::Smtpwatch(site.daemon_on(namespace, WIRE, "xdp")?),
            Self::SmtpwatchTcx => Running::Smtpwatch(site.daemon_on(namespace, WIRE, "tcx")?),
            Self::Tcpdump => {
                let file = directory.join("seen.pcap");
                let mut tcpdump = namespace.command("tcpdump");
                tcpdump.args(["-i", WIRE, "-Z", "root", "-w"]).arg(&file).arg(FILTER);
                let tcpdump = Guard(tcpdump.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?);
                eventually(READY, "tcpdump", || Ok(file.exists().then_some(())))?;
                Running::Tcpdump(tcpdump, file)
            }
            Self::Suricata => {
                let guard = suricata(namespace, &directory)?;
                Running::Suricata(guard, directory)
            }
        })
    }
}

/// A running monitor.
pub enum Running<'a> {
    /// No monitor runs.
    None,
    /// The daemon.
    Smtpwatch(Daemon<'a>),
    /// tcpdump and its capture file.
    Tcpdump(Guard, PathBuf),
    /// Suricata and its log directory.
    Suricata(Guard, PathBuf),
}

/// The counts that a monitor reports about itself.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Account {
    /// CPU time since its start.
    pub cpu: Duration,
    /// Packets or records lost.
    pub lost: f64,
    /// Sessions, if the monitor counts them.
    pub sessions: Option<f64>,
}

impl Running<'_> {
    /// CPU time since its start.
    pub fn cpu(&self) -> Result<Duration> {
        match self {
            Self::None => Ok(Duration::ZERO),
            Self::Smtpwatch(daemon) => cpu::process(daemon.pid()),
            Self::Tcpdump(guard, _) | Self::Suricata(guard, _) => cpu::process(guard.0.id()),
        }
    }

    /// Waits until it has processed what is queued.
    pub fn settle(&self) {
        std::thread::sleep(SETTLE);
    }

    /// Ends it and returns its counts; `sessions` sessions are expected.
    pub fn end(self, sessions: f64) -> Result<Account> {
        let cpu = self.cpu()?;
        match self {
            Self::None => Ok(Account::default()),
            Self::Smtpwatch(daemon) => {
                let counts = Counts::after(&daemon, sessions)?;
                Ok(Account { cpu, lost: counts.dropped, sessions: Some(counts.sessions) })
            }
            Self::Tcpdump(mut guard, file) => {
                let said = recording::end(&mut guard)?;
                std::fs::remove_file(file)?;
                let lost = number_before(&said, " packets dropped by kernel").with_context(|| said.clone())?;
                Ok(Account { cpu, lost: as_figure(lost), sessions: None })
            }
            Self::Suricata(mut guard, directory) => {
                kill(Pid::from_raw(i32::try_from(guard.0.id())?), Signal::SIGINT)?;
                eventually(READY, "the end of Suricata", || Ok(guard.0.try_wait()?))?;
                let log = std::fs::read_to_string(directory.join("suricata.log"))?;
                // `wire0: packets: 12, drops: 3 (25.00%), invalid chksum: 0`
                let drops =
                    log.rsplit_once(", drops: ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
                Ok(Account { cpu, lost: as_figure(drops.with_context(|| log.clone())?), sessions: None })
            }
        }
    }
}

/// Starts Suricata with the same port filter as the others, rules for SMTP, and alerts as its only output.
fn suricata(namespace: &Namespace, directory: &Path) -> Result<Guard> {
    let configuration = directory.join("suricata.yaml");
    let rules = directory.join("smtp.rules");
    std::fs::write(&configuration, CONFIGURATION)?;
    std::fs::write(&rules, RULES)?;
    let mut suricata = namespace.command("suricata");
    suricata
        .arg("-c")
        .arg(configuration)
        .arg("-S")
        .arg(rules)
        .arg("-l")
        .arg(directory)
        .arg(format!("--af-packet={WIRE}"));
    let output = std::fs::File::create(directory.join("output.log"))?;
    let suricata = suricata.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut suricata = Guard(suricata.spawn().context("cannot start Suricata")?);
    let read = |file| std::fs::read_to_string(directory.join(file)).unwrap_or_default();
    let ready = eventually(READY, "Suricata", || {
        anyhow::ensure!(matches!(suricata.0.try_wait(), Ok(None)), "Suricata ended");
        Ok(read("suricata.log").contains("Engine started").then_some(()))
    });
    ready.with_context(|| format!("{}{}", read("output.log"), read("suricata.log")))?;
    Ok(suricata)
}

/// The closest rules to what the daemon detects: a secret in cleartext, and an EHLO reply without STARTTLS.
const RULES: &str = r#"
alert smtp any any -> any any (msg:"AUTH in clear"; flow:to_server,established; content:"AUTH "; nocase; depth:5; sid:1000001; rev:1;)
alert tcp any [25,587] -> any any (msg:"EHLO reply without STARTTLS"; flow:to_client,established; content:"250-"; depth:4; content:!"STARTTLS"; nocase; sid:1000002; rev:1;)
"#;

const CONFIGURATION: &str = r#"%YAML 1.1
---
vars:
  address-groups: {HOME_NET: "any", EXTERNAL_NET: "any"}
stats: {enabled: yes, interval: 8}
logging:
  default-log-level: notice
  outputs:
    - console: {enabled: no}
    - file: {enabled: yes, level: info, filename: suricata.log}
outputs:
  - stats: {enabled: yes, filename: stats.log}
  - eve-log: {enabled: yes, filetype: regular, filename: eve.json, types: [alert]}
af-packet:
  - interface: wire0
    threads: auto
    cluster-id: 99
    cluster-type: cluster_flow
    defrag: yes
    use-mmap: yes
    tpacket-v3: yes
    bpf-filter: "tcp port 25 or tcp port 587"
app-layer:
  protocols:
    smtp: {enabled: yes}
    tls: {enabled: yes, detection-ports: {dp: 443}}
"#;

#[expect(clippy::cast_precision_loss, reason = "some millions")]
fn as_figure(count: u64) -> f64 {
    count as f64
}
