//! Sends incidents to Alertmanagers (API v2, `POST /api/v2/alerts`).
//!
//! An alert is one incident. It is sent at once and again at intervals, each time with its end (`endsAt`): the time
//! of the newest finding plus the hold time. So it resolves by itself, even if the daemon has ended. An incident that is not
//! about a peer has many findings and one cause, so that not each of them is sent: the store says when an alert is due.

use std::{collections::BTreeMap, time::Duration};

use reqwest::{Client, Url, header::CONTENT_TYPE};
use serde::Serialize;
use smtpwatch_config::AlertmanagerSettings;
use smtpwatch_core::{
    Finding, Timestamp,
    cause::{About, Cause},
    finding::Severity,
};
use smtpwatch_render::words;
use smtpwatch_store::StoredAs;
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{MissedTickBehavior, interval},
};

use super::metrics::{Metrics, Output};

/// Capacity of the queue of findings.
const QUEUE: usize = 1_024;
/// Maximum number of active incidents; a further one is counted as a failure, and sent with its next finding if there
/// is room.
const MAX_ALERTS: usize = 1_000;
/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An alert that no Alertmanager has accepted yet stays active for at least this many further attempts.
const UNDELIVERED: u32 = 3;

/// The sending half of the queue, for the writer of the store.
pub struct AlertSender(Sender<FindingNotice>);

/// The parts of a finding that an alert needs.
struct FindingNotice {
    stored: StoredAs,
    finding: Finding,
}

/// An alert in the format of the API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    labels: BTreeMap<&'static str, String>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// An incident that is being sent.
struct Active {
    alert: Alert,
    /// Time of the newest finding.
    newest: Timestamp,
    /// For each Alertmanager: whether it has accepted the alert since the newest finding.
    delivered: bool,
}

/// The task that sends to the Alertmanagers.
pub struct AlertWorker {
    notices: Receiver<FindingNotice>,
    client: Client,
    urls: Vec<Url>,
    settings: AlertmanagerSettings,
    cluster: String,
    instance: String,
    active: BTreeMap<String, Active>,
    failing: bool,
}

/// Creates both ends; `None`: no Alertmanager is configured.
///
/// # Errors
///
/// The system has no certificate authorities, or a configured URL cannot be extended to the path of the API.
pub fn start(
    settings: &AlertmanagerSettings,
    cluster: &str,
    instance: &str,
) -> anyhow::Result<Option<(AlertSender, AlertWorker)>> {
    if settings.urls.is_empty() {
        return Ok(None);
    }
    smtpwatch_policy::fetch::choose_cryptography();
    let client = Client::builder()
        .user_agent(format!("smtpwatch/{}", smtpwatch_core::VERSION))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(TIMEOUT)
        .build()?;
    let urls = settings.urls.iter().map(|url| endpoint(&url.0.0)).collect();
    let (sender, notices) = channel(QUEUE);
    let worker = AlertWorker {
        notices,
        client,
        urls,
        settings: settings.clone(),
        cluster: cluster.to_owned(),
        instance: instance.to_owned(),
        active: BTreeMap::new(),
        failing: false,
    };
    Ok(Some((AlertSender(sender), worker)))
}

/// Keeps the path prefix of the configured URL.
fn endpoint(base: &Url) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/api/v2/alerts", base.path().trim_end_matches('/')));
    url
}

impl AlertSender {
    /// Queues a finding whose incident is due for an alert; counts a failure if the queue is full. Never blocks.
    pub fn send(&self, finding: &Finding, stored: &StoredAs, metrics: &Metrics) {
        if !stored.is_announced {
            return;
        }
        let finding = Finding { exhibit: None, transcript: Vec::new(), ..finding.clone() };
        let notice = FindingNotice { stored: stored.clone(), finding };
        if self.0.try_send(notice).is_err() {
            metrics.output(Output::Alertmanager, 0, 1);
        }
    }
}

impl AlertWorker {
    /// Sends until all senders are dropped.
    pub async fn run(mut self, metrics: &Metrics, clock: impl Fn() -> Timestamp) {
        let mut resend = interval(self.settings.resend());
        resend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = resend.tick() => self.drop_ended(clock()),
                notice = self.notices.recv() => {
                    let Some(notice) = notice else { return };
                    self.update(notice, metrics);
                    // Findings that arrived together are sent together.
                    while let Ok(notice) = self.notices.try_recv() {
                        self.update(notice, metrics);
                    }
                }
            }
            self.post_all(clock(), metrics).await;
        }
    }

    fn update(&mut self, notice: FindingNotice, metrics: &Metrics) {
        let FindingNotice { stored, finding } = notice;
        let incident = stored.incident.clone();
        if !self.active.contains_key(&incident) && self.active.len() >= MAX_ALERTS {
            metrics.output(Output::Alertmanager, 0, 1);
            return;
        }
        let starts_at = self.active.get(&incident).map_or(finding.time, |active| active.alert.starts_at);
        let newest = self.active.get(&incident).map_or(finding.time, |active| active.newest.max(finding.time));
        let alert = Alert {
            labels: labels(&incident, &finding, &self.cluster, &self.instance),
            annotations: annotations(&stored, &finding),
            starts_at,
            ends_at: newest,
        };
        self.active.insert(incident, Active { alert, newest, delivered: false });
    }

    /// Drops incidents that have ended and that every Alertmanager has accepted.
    fn drop_ended(&mut self, now: Timestamp) {
        let hold = self.settings.hold();
        self.active.retain(|_, active| !active.delivered || now.since(active.newest) < hold);
    }

    async fn post_all(&mut self, now: Timestamp, metrics: &Metrics) {
        if self.active.is_empty() {
            return;
        }
        for active in self.active.values_mut() {
            let end = active.newest + self.settings.hold();
            // An incident that ends before any Alertmanager has accepted it would never be sent.
            active.alert.ends_at =
                if active.delivered { end } else { end.max(now + self.settings.resend() * UNDELIVERED) };
        }
        let alerts: Vec<_> = self.active.values().map(|active| &active.alert).collect();
        let body = serde_json::to_vec(&alerts).unwrap_or_default();
        let sent = u64::try_from(alerts.len()).unwrap_or(u64::MAX);
        let mut failure = None;
        for url in &self.urls {
            match post(&self.client, url, body.clone()).await {
                Ok(()) => metrics.output(Output::Alertmanager, sent, 0),
                Err(error) => {
                    metrics.output(Output::Alertmanager, 0, sent);
                    failure.get_or_insert((url, error));
                }
            }
        }
        match failure {
            None => {
                self.failing = false;
                self.active.values_mut().for_each(|active| active.delivered = true);
            }
            Some((url, error)) if !std::mem::replace(&mut self.failing, true) => {
                let host = url.host_str().unwrap_or_default();
                tracing::error!(alertmanager = host, "cannot push alerts, will retry: {error}");
            }
            Some(_) => {}
        }
    }
}

async fn post(client: &Client, url: &Url, body: Vec<u8>) -> Result<(), String> {
    let request = client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(body);
    let answer = request.send().await.map_err(|error| format!("{:#}", anyhow::Error::new(error.without_url())))?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("HTTP status {}", answer.status())) }
}

/// The labels that identify an alert. `peer` is missing where the peer is not what the alert is about.
fn labels(incident: &str, finding: &Finding, cluster: &str, instance: &str) -> BTreeMap<&'static str, String> {
    let severity = match finding.severity {
        Severity::Critical | Severity::High => "critical",
        Severity::Medium => "warning",
        Severity::Low | Severity::Info => "info",
    };
    let mut labels = BTreeMap::from([
        ("alertname", "SmtpwatchIncident".to_owned()),
        ("incident", incident.to_owned()),
        ("instance", instance.to_owned()),
        ("job", "smtpwatch".to_owned()),
        ("kind", finding.kind.as_str().to_owned()),
        ("role", finding.role.as_str().to_owned()),
        ("severity", severity.to_owned()),
    ]);
    if !cluster.is_empty() {
        labels.insert("cluster", cluster.to_owned());
    }
    if let Some(cause) = Cause::of(finding) {
        labels.insert("cause", cause.id());
        labels.insert("port", cause.port.to_string());
        match cause.about {
            About::Peer => _ = labels.insert("peer", cause.address.to_string()),
            About::ThisHost | About::Guessing => {}
        }
    }
    labels
}

fn annotations(stored: &StoredAs, finding: &Finding) -> BTreeMap<&'static str, String> {
    let StoredAs { incident, findings, addresses, is_announced: _ } = stored;
    let about = Cause::of(finding).map_or(About::Peer, |cause| cause.about);
    let subject = match about {
        About::Peer => Some(&finding.peer.name).filter(|name| !name.is_empty()).unwrap_or(&finding.flow.server),
        About::ThisHost | About::Guessing => &finding.flow.server,
    };
    let count = if *findings == 1 { "1 finding".to_owned() } else { format!("{findings} findings") };
    let addresses = if *addresses == 1 { "1 address".to_owned() } else { format!("{addresses} addresses") };
    let happened = words::headline(finding.kind, about, *findings, &addresses)
        .unwrap_or_else(|| words::happened(finding.kind, about).to_owned());
    BTreeMap::from([
        ("summary", format!("{subject}: {happened}")),
        (
            "description",
            format!(
                "{count}; the newest: {} to {}, evidence {}, outcome {}. smtpwatch incidents show {incident}",
                finding.flow.client,
                finding.flow.server,
                finding.evidence.as_str(),
                finding.outcome.as_str(),
            ),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    const CLIENT: &str = "192.0.2.10:41234";
    const SERVER: &str = "[2001:db8::25]:587";

    fn finding(kind: &str, role: &str, client: &str, server: &str, stranger: bool) -> Finding {
        from_value(json!({
            "schema_version": 1, "id": "", "time": "2026-11-23T15:00:00Z", "kind": kind, "rule": "A1",
            "severity": "high", "evidence": "policy", "outcome": "content", "role": role,
            "flow": { "client": client, "server": server, "interface": "", "community_id": "" },
            "peer": { "name": "", "greeting": "", "stranger": stranger },
            "expected": { "starttls": true, "source": "rule", "detail": "" },
            "observed": { "capabilities": [], "starttls": "absent" },
            "transcript": [], "gaps": 0
        }))
        .expect("a finding")
    }

    fn label<'a>(labels: &'a BTreeMap<&'static str, String>, name: &str) -> Option<&'a str> {
        labels.get(name).map(String::as_str)
    }

    #[test]
    fn an_alert_about_a_peer_names_it() {
        let finding = finding("starttls-stripped", "client", CLIENT, SERVER, false);
        let labels = labels("id", &finding, "mail-eu", "mx1");
        let cause = Cause::of(&finding).expect("a cause").id();
        for (name, value) in [
            ("alertname", "SmtpwatchIncident"),
            ("incident", "id"),
            ("instance", "mx1"),
            ("job", "smtpwatch"),
            ("kind", "starttls-stripped"),
            ("role", "client"),
            ("severity", "critical"),
            ("cluster", "mail-eu"),
            ("peer", "2001:db8::25"),
            ("port", "587"),
            ("cause", cause.as_str()),
        ] {
            assert_eq!(label(&labels, name), Some(value), "{name}");
        }
        assert_eq!(labels.len(), 11, "{labels:?}");
    }

    /// The same cause on another host, from another port of the client and at another time, has the same hash.
    #[test]
    fn the_cause_is_the_same_everywhere() {
        let cause = |kind, client, server| {
            let labels = labels("id", &finding(kind, "client", client, server, false), "", "mx1");
            label(&labels, "cause").map(str::to_owned)
        };
        let one = cause("starttls-stripped", CLIENT, SERVER);
        assert!(one.is_some());
        assert_eq!(one, cause("starttls-stripped", "203.0.113.9:1025", SERVER));
        assert_ne!(one, cause("starttls-masked", CLIENT, SERVER));
        assert_ne!(one, cause("starttls-stripped", CLIENT, "[2001:db8::25]:25"));
        assert_ne!(one, cause("starttls-stripped", CLIENT, "[2001:db8::26]:587"));
    }

    #[test]
    fn an_alert_that_is_not_about_a_peer_names_none() {
        for (kind, stranger, is_named) in [
            ("auth-offered-plaintext", false, false),
            ("starttls-refused", true, false),
            ("auth-plaintext", true, false),
            ("auth-plaintext", false, true),
        ] {
            let labels = labels("id", &finding(kind, "server", CLIENT, "198.51.100.25:587", stranger), "", "mx1");
            assert_eq!(label(&labels, "peer"), is_named.then_some("192.0.2.10"), "{kind}");
            assert_eq!(label(&labels, "port"), Some("587"), "{kind}");
            assert!(label(&labels, "cause").is_some(), "{kind}");
            assert_eq!(label(&labels, "cluster"), None, "without a value there is no label");
        }
    }

    fn guess(kind: &str, stranger: bool) -> Finding {
        let mut finding = finding(kind, "server", "203.0.113.5:41234", "192.0.2.10:587", stranger);
        finding.peer.name = "bot.example.net".to_owned();
        finding
    }

    fn stored(findings: u64, is_announced: bool) -> StoredAs {
        StoredAs { incident: "an-incident".to_owned(), findings, addresses: findings.min(300), is_announced }
    }

    #[test]
    fn only_an_incident_that_is_due_is_pushed() {
        let metrics = Metrics::new(&[25]).expect("metrics");
        let (sender, mut notices) = channel(QUEUE);
        let sender = AlertSender(sender);
        for (findings, is_announced) in [(1, true), (2, false), (3, false), (1_500, true)] {
            sender.send(&guess("auth-plaintext", true), &stored(findings, is_announced), &metrics);
        }
        let mut sent = Vec::new();
        while let Ok(notice) = notices.try_recv() {
            sent.push(notice.stored.findings);
        }
        assert_eq!(sent, [1, 1_500]);
    }

    #[test]
    fn the_summary_names_this_host_where_no_peer_is_meant() {
        let summary = |finding: &Finding| annotations(&stored(1_500, true), finding)["summary"].clone();
        let guessing = "192.0.2.10:587: password guessing in cleartext: 1500 attempts from 300 addresses";
        assert_eq!(summary(&guess("auth-plaintext", true)), guessing);
        let offer = guess("auth-offered-plaintext", false);
        assert_eq!(summary(&offer), "192.0.2.10:587: this host offers AUTH before TLS");
        let known = summary(&guess("auth-plaintext", false));
        assert!(known.starts_with("bot.example.net: a password"), "{known}");
    }
}
