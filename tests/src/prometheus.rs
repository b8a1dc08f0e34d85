//! A real Prometheus: scrapes the daemon and evaluates the shipped alert rules.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::netns::Namespace;
use crate::root::{Instance, Packages, Root};
use crate::{alertmanager, command, daemon};

const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
const READY: Duration = Duration::from_secs(90);
/// The time span that [`Prometheus::start`] substitutes for fifteen minutes in the rules.
pub const WINDOW: Duration = Duration::from_secs(20);
/// The shipped rules.
const RULES: [&str; 2] = ["alerts.yaml", "recording.yaml"];

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus<'a> {
    namespace: &'a Namespace,
    instance: Instance,
}

impl<'a> Prometheus<'a> {
    /// Starts it in `namespace` with the shipped rules. It scrapes [`daemon::WEB`] every second and sends alerts to the
    /// Alertmanager at [`alertmanager::ADDRESS`]. Ranges of fifteen minutes in the rules are shortened to [`WINDOW`],
    /// so that an alert also ends within a test.
    ///
    /// # Errors
    /// [`crate::Skip`] when Prometheus cannot be installed here; otherwise the error with its log.
    pub fn start(namespace: &'a Namespace) -> Result<Self> {
        let program = [
            "prometheus",
            "--config.file=/lab/prometheus.yml",
            "--storage.tsdb.path=/tmp/prometheus",
            "--web.listen-address=127.0.0.1:9090",
        ];
        let instance = Root::with(Packages::Prometheus)?.start(namespace, &program, |lab| {
            for name in RULES {
                let text = std::fs::read_to_string(rules().join(name)).with_context(|| format!("the rules {name}"))?;
                let seconds = WINDOW.as_secs();
                let text = text.replace("[15m]", &format!("[{seconds}s]")).replace("- 900", &format!("- {seconds}"));
                let text = text.replace("offset 15m", &format!("offset {seconds}s"));
                std::fs::write(lab.join(name), text)?;
            }
            let pushed = format!(
                "alerting:\n  alertmanagers:\n  - static_configs:\n    - targets: [\"{}\"]\n",
                alertmanager::ADDRESS
            );
            let scraped = format!("      - targets: [\"{}\"]\n", daemon::WEB);
            Ok(std::fs::write(lab.join("prometheus.yml"), format!("{pushed}{CONFIGURATION}{scraped}"))?)
        })?;
        let mut prometheus = Self { namespace, instance };
        let ready = command::eventually(READY, "Prometheus", || {
            anyhow::ensure!(!prometheus.instance.ended(), "Prometheus ended");
            Ok(namespace.run(|| daemon::get(ADDRESS, "/-/ready"))?.ok().filter(|(status, _)| *status == 200))
        });
        ready.with_context(|| prometheus.instance.read("output.log"))?;
        Ok(prometheus)
    }

    /// Waits until it has scraped the daemon at least once.
    ///
    /// # Errors
    /// When the target does not come up.
    pub fn scraped(&self) -> Result<()> {
        command::eventually(READY, "the first scrape", || {
            let value = self.api("/api/v1/query?query=up%7Bjob%3D%22smtpwatch%22%7D")?;
            Ok((value["data"]["result"][0]["value"][1] == "1").then_some(()))
        })
    }

    /// Waits until the alert `name` fires, and returns it.
    ///
    /// # Errors
    /// On timeout: the error lists the firing alerts.
    pub fn firing(&self, name: &str, limit: Duration) -> Result<Value> {
        let alerts = || Ok::<_, anyhow::Error>(self.api("/api/v1/alerts")?["data"]["alerts"].clone());
        command::eventually(limit, &format!("the alert {name} to fire"), || {
            let found = alerts()?;
            let mut list = found.as_array().into_iter().flatten();
            Ok(list.find(|alert| alert["labels"]["alertname"] == name && alert["state"] == "firing").cloned())
        })
        .with_context(|| format!("alerts: {}", alerts().unwrap_or_default()))
    }

    /// Evaluates an expression and returns the list of its series.
    ///
    /// # Errors
    /// When Prometheus rejects it.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let value = self.api(&format!("/api/v1/query?query={}", encoded(expression)))?;
        anyhow::ensure!(value["status"] == "success", "{expression}: {value}");
        Ok(value["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    fn api(&self, path: &str) -> Result<Value> {
        let (_, body) = self.namespace.run(|| daemon::get(ADDRESS, path))??;
        serde_json::from_str(&body).with_context(|| format!("Prometheus answers {body}"))
    }
}

/// Percent-encodes text for a URL query.
fn encoded(text: &str) -> String {
    text.bytes().map(|octet| format!("%{octet:02X}")).collect()
}

/// Runs promtool in its own root, which sees the files of `deploy/prometheus` in `/lab`.
///
/// # Errors
/// [`crate::Skip`] when it cannot be installed; otherwise its error.
pub fn promtool(namespace: &Namespace, arguments: &[&str]) -> Result<String> {
    tool(namespace, "promtool", arguments)
}

/// Runs amtool with the shipped files in `/lab`, and returns its output.
///
/// # Errors
/// [`crate::Skip`] when it cannot be installed here; otherwise its output when it fails.
pub fn amtool(namespace: &Namespace, arguments: &[&str]) -> Result<String> {
    tool(namespace, "amtool", arguments)
}

fn tool(namespace: &Namespace, name: &str, arguments: &[&str]) -> Result<String> {
    let program: Vec<&str> = std::iter::once(name).chain(arguments.iter().copied()).collect();
    let out = Root::with(Packages::Prometheus)?.output(namespace, &program, Duration::from_secs(60), |lab| {
        for entry in std::fs::read_dir(rules()).context("the alert rules")? {
            let entry = entry?;
            std::fs::copy(entry.path(), lab.join(entry.file_name()))?;
        }
        Ok(())
    })?;
    anyhow::ensure!(out.status.success(), "{name} {arguments:?}: {}{}", out.stdout, out.stderr);
    Ok(out.stdout)
}

/// The directory `deploy` of the workspace.
#[must_use]
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).join("deploy")
}

/// The shipped dashboard.
#[must_use]
pub fn dashboard() -> PathBuf {
    deploy().join("grafana/smtpwatch.json")
}

fn rules() -> PathBuf {
    deploy().join("prometheus")
}

const CONFIGURATION: &str = "\
global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
rule_files: [/lab/alerts.yaml, /lab/recording.yaml]
scrape_configs:
  - job_name: smtpwatch
    static_configs:
";
