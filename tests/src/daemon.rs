//! The real daemon: starts it in a namespace, reads its findings from standard output, and scrapes its metrics.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::command::{self, Guard, Output};
use crate::netns::Namespace;

/// Address of its metrics, on loopback in its namespace.
pub const WEB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 19587);

/// Maximum number of findings that are retained; a scenario raises a handful.
const MAX_FINDINGS: usize = 10_000;
const READY: Duration = Duration::from_secs(90);
const BUILD: Duration = Duration::from_secs(900);

/// Settings of a scenario that differ from the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Value of the configuration key `ingress`: the hook for arriving packets.
    pub ingress: &'a str,
    /// `[[rule]]` tables in configuration syntax.
    pub rules: &'a str,
    /// The `[policy]` table in configuration syntax.
    pub policy: &'a str,
    /// Top-level settings in configuration syntax.
    pub settings: &'a str,
    /// Variables of the daemon's environment.
    pub environment: &'a [(&'a str, &'a str)],
    /// User and capabilities of the daemon.
    pub privileges: Privileges,
    /// The build profile of the program.
    pub profile: Profile,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            ingress: "auto",
            rules: "",
            policy: "",
            settings: "",
            environment: &[],
            privileges: Privileges::Root,
            profile: Profile::Dev,
        }
    }
}

/// User and capabilities of the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privileges {
    /// The same as the lab: root.
    Root,
    /// As in its systemd unit: a separate user with these capabilities, named as in capabilities(7) without `CAP_`.
    Service(&'static [&'static str]),
}

/// The user id of [`Privileges::Service`]; no user of the machine has it.
pub const SERVICE_UID: u32 = 64_587;

impl Privileges {
    /// A command that runs the program with these privileges in a namespace. The program can write to `home` only. It
    /// is copied there, because the user may lack access to the original path.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn command(self, namespace: &Namespace, program: &Path, home: &Path) -> Result<Command> {
        let Self::Service(capabilities) = self else {
            return Ok(namespace.command_with_cgroups(program.to_str().context("a path in UTF-8")?));
        };
        let copy = home.join("smtpwatch");
        std::fs::copy(program, &copy)?;
        std::os::unix::fs::chown(home, Some(SERVICE_UID), Some(SERVICE_UID))?;
        let some = capabilities.iter().fold("-all".to_owned(), |some, name| format!("{some},+{}", name.to_lowercase()));
        let id = SERVICE_UID.to_string();
        let mut command = namespace.command_with_cgroups("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"]);
        command.args(["--inh-caps", &some, "--ambient-caps", &some, "--bounding-set", &some]).arg("--").arg(copy);
        Ok(command)
    }
}

/// A profile of Cargo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// With overflow checks, and quick to build: for tests.
    Dev,
    /// The release build: for measurements.
    Dist,
}

impl Profile {
    /// The daemon's binary; it is built if it is out of date.
    ///
    /// # Errors
    /// When it does not build.
    pub fn binary(self) -> Result<&'static Path> {
        static BINARIES: [OnceLock<Result<PathBuf, String>>; 2] = [const { OnceLock::new() }; 2];
        let built = BINARIES[self as usize].get_or_init(|| build(self).map_err(|error| format!("{error:#}")));
        built.as_deref().map_err(|error| anyhow!("{error}"))
    }

    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Dist => &["--profile", "dist"],
        }
    }
}

/// A finding with its time of arrival.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Time at which its line was read.
    pub at: SystemTime,
    /// The line as JSON; a JSON string with the line if it is not valid JSON.
    pub finding: Value,
}

/// A running daemon, killed on drop.
#[derive(Debug)]
pub struct Daemon<'a> {
    namespace: &'a Namespace,
    child: Guard,
    log: PathBuf,
    findings: Arc<Mutex<Vec<Arrival>>>,
    reader: Option<JoinHandle<()>>,
}

impl<'a> Daemon<'a> {
    /// Starts `smtpwatch run` on `interface` of `namespace` and waits until it is ready. With an empty name the
    /// configuration lists no interface. `home` holds its configuration, its store and its log.
    ///
    /// # Errors
    /// When it does not become ready: the error carries its log.
    pub fn start(namespace: &'a Namespace, interface: &str, home: &Path, options: Options<'_>) -> Result<Self> {
        let mut daemon = Self::launch(namespace, interface, home, options)?;
        let ready = command::eventually(READY, "/-/ready of the daemon", || {
            let child: &mut Child = &mut daemon.child.0;
            ensure!(matches!(child.try_wait(), Ok(None)), "the daemon ended");
            Ok(namespace.run(|| get(WEB, "/-/ready"))?.ok().filter(|(status, _)| *status == 200))
        });
        ready.map_err(|error| anyhow!("{error:#}; its log:\n{}", daemon.log()))?;
        Ok(daemon)
    }

    /// As [`Daemon::start`], but does not wait until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(namespace: &'a Namespace, interface: &str, home: &Path, options: Options<'_>) -> Result<Self> {
        let (config, log) = (configure(interface, home, options)?, home.join("smtpwatch.log"));
        let mut command = options.privileges.command(namespace, options.profile.binary()?, home)?;
        command.arg("run").arg("--config").arg(&config);
        if !interface.is_empty() {
            command.args(["--interface", interface]);
        }
        command.args(["--web.listen-address", &WEB.to_string()]);
        command.envs(options.environment.iter().copied());
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn();
        let mut child = Guard(child.context("cannot start the daemon")?);
        let findings = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.0.stdout.take().context("standard output is piped")?;
        let reader = std::thread::spawn({
            let findings = Arc::clone(&findings);
            move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let at = SystemTime::now();
                    let mut findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
                    // Findings beyond the maximum are read and discarded: a closed pipe would be a fault of the lab,
                    // not of the daemon.
                    if findings.len() < MAX_FINDINGS {
                        let finding = serde_json::from_str(&line).unwrap_or(Value::String(line));
                        findings.push(Arrival { at, finding });
                    }
                }
            }
        });
        Ok(Self { namespace, child, log, findings, reader: Some(reader) })
    }

    /// The daemon's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Every finding so far; a line that is not JSON is a JSON string.
    #[must_use]
    pub fn findings(&self) -> Vec<Value> {
        self.arrivals().into_iter().map(|arrival| arrival.finding).collect()
    }

    /// Every finding so far, with its time of arrival.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a finding of `kind` for which `accept` returns true.
    ///
    /// # Errors
    /// On timeout: the error lists the findings received and the daemon's log.
    pub fn finding(&self, kind: &str, limit: Duration, accept: impl Fn(&Value) -> bool) -> Result<Value> {
        command::eventually(limit, &format!("a finding {kind}"), || {
            Ok(self.findings().into_iter().find(|finding| finding["kind"] == kind && accept(finding)))
        })
        .map_err(|error| {
            let came: Vec<_> = self.findings().iter().map(ToString::to_string).collect();
            anyhow!("{error:#}; findings so far: [{}]; log:\n{}", came.join("\n"), self.log())
        })
    }

    /// Sums all series of `metric` that carry every one of `labels`.
    ///
    /// # Errors
    /// When the metrics cannot be scraped.
    pub fn metric(&self, metric: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum(&self.metrics()?, metric, labels))
    }

    /// Returns the text of `/metrics`.
    ///
    /// # Errors
    /// When the response status is not 200.
    pub fn metrics(&self) -> Result<String> {
        let (status, body) = self.namespace.run(|| get(WEB, "/metrics"))??;
        ensure!(status == 200, "/metrics answers {status}: {body}");
        Ok(body)
    }

    /// Waits until the sum of [`Daemon::metric`] is at least `wanted`.
    ///
    /// # Errors
    /// On timeout: the error carries the series.
    pub fn metric_reaches(&self, metric: &str, labels: &[(&str, &str)], wanted: f64, limit: Duration) -> Result<()> {
        command::eventually(limit, &format!("{metric}{labels:?} >= {wanted}"), || {
            Ok((self.metric(metric, labels)? >= wanted).then_some(()))
        })
        .map_err(|error| {
            let body = self.metrics().unwrap_or_default();
            let series: Vec<_> =
                body.lines().filter(|line| line.starts_with("smtpwatch_") && !line.ends_with(" 0")).collect();
            anyhow!("{error:#}; non-zero series:\n{}", series.join("\n"))
        })
    }

    /// Kills the daemon with SIGKILL, as the out-of-memory killer does, and waits until its output is read to the end.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.0.kill()?;
        self.child.0.wait()?;
        let read = self.reader.take().map_or(Ok(()), JoinHandle::join);
        read.map_err(|_| anyhow!("the reader of the findings panicked"))
    }

    /// Waits until the daemon exits by itself; returns its exit code.
    ///
    /// # Errors
    /// On timeout.
    pub fn ended(&mut self, limit: Duration) -> Result<Option<i32>> {
        Ok(command::eventually(limit, "the end of the daemon", || Ok(self.child.0.try_wait()?))?.code())
    }

    /// Sends an HTTP request to the daemon's web address; returns status and body.
    ///
    /// # Errors
    /// When there is no response.
    pub fn ask(&self, method: &str, path: &str) -> Result<(u16, String)> {
        self.namespace.run(|| ask(WEB, method, path))?
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// Ends the daemon with SIGTERM, as a service manager does; returns whether its exit code was 0.
    ///
    /// # Errors
    /// When it has not ended after half a minute.
    pub fn terminate(&mut self) -> Result<bool> {
        self.signal(nix::sys::signal::Signal::SIGTERM)?;
        Ok(self.ended(Duration::from_secs(30))? == Some(0))
    }
}

/// Writes a daemon's configuration file into `home`, where its store will be, and returns its path.
///
/// # Errors
/// When it cannot be written.
pub fn configure(interface: &str, home: &Path, options: Options<'_>) -> Result<PathBuf> {
    std::fs::create_dir_all(home)?;
    let path = home.join("smtpwatch.toml");
    let Options { ingress, rules, policy, settings, .. } = options;
    let interfaces = if interface.is_empty() { String::new() } else { format!("interfaces = [\"{interface}\"]\n") };
    let mut text = format!("ports = [25, 587]\n{interfaces}ingress = \"{ingress}\"\n{settings}\n\n[store]\n");
    writeln!(text, "path = \"{}\"\n\n{policy}\n{rules}", home.join("smtpwatch.db").display())?;
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Runs `smtpwatch` with `arguments` in `namespace` for at most `limit`; the caller checks the exit code.
///
/// # Errors
/// When it cannot be built or does not end.
pub fn smtpwatch_in(namespace: &Namespace, arguments: &[&str], limit: Duration) -> Result<Output> {
    let program = binary()?.to_str().context("the path of the daemon is not UTF-8")?;
    command::output(namespace.command(program).args(arguments), limit)
}

/// Runs `smtpwatch` with `arguments` on this machine and returns its output.
///
/// # Errors
/// When it cannot be built or fails.
pub fn smtpwatch(arguments: &[&str]) -> Result<String> {
    command::run(Command::new(binary()?).args(arguments), Duration::from_secs(30))
}

/// The daemon's binary for tests; it is built if it is out of date.
///
/// # Errors
/// When it does not build.
pub fn binary() -> Result<&'static Path> {
    Profile::Dev.binary()
}

fn build(profile: Profile) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.join("Cargo.toml");
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", "smtpwatch", "--message-format=json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(manifest)
        .args(profile.arguments());
    forget_cargo(&mut command);
    let out = command::output(&mut command, BUILD)?;
    // Compiler messages are on standard error; standard output is for programs.
    ensure!(out.status.success(), "the daemon does not build: {}", out.stderr);
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "smtpwatch").then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    out.stdout.lines().filter_map(executable).next_back().context("cargo build names no executable smtpwatch")
}

/// Removes the variables that cargo sets for the test package: a nested build that inspects them would rebuild
/// everything.
pub fn forget_cargo(command: &mut Command) {
    let of_package = |name: &String| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for name in std::env::vars().map(|(name, _)| name).filter(of_package) {
        command.env_remove(name);
    }
}

/// Sends a plain HTTP GET; returns status and body.
///
/// # Errors
/// When the server cannot be reached or does not speak HTTP.
pub fn get(server: SocketAddr, path: &str) -> Result<(u16, String)> {
    ask(server, "GET", path)
}

/// Sends a plain HTTP request without a body; returns status and body of the response.
///
/// # Errors
/// When the server cannot be reached or does not speak HTTP.
pub fn ask(server: SocketAddr, method: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(30))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(16 << 20).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP reply")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
    Ok((status, body.to_owned()))
}

fn sum(exposition: &str, metric: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    exposition
        .lines()
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let has = |label: &String| labels.trim_end_matches('}').split(',').any(|found| found == label);
            (name == metric && wanted.iter().all(has)).then(|| value.parse::<f64>().ok())?
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_label() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\nab{x=\"1\"} 9\nb 5\n";
        assert!((sum(text, "a", &[("x", "1")]) - 7.0).abs() < f64::EPSILON);
        assert!((sum(text, "a", &[("y", "3")]) - 4.0).abs() < f64::EPSILON);
        assert!((sum(text, "b", &[]) - 5.0).abs() < f64::EPSILON);
        assert!(sum(text, "a", &[("y", "4")]).abs() < f64::EPSILON);
    }
}
