//! Incidents, pushed to Alertmanagers (API v2, `POST /api/v2/alerts`).
//!
//! An alert is one incident. It is told at once, again at intervals, and with each telling until when it holds (`endsAt`): the
//! newest finding and the time of holding. So it resolves by itself, also when this daemon is gone.

use std::{collections::BTreeMap, time::Duration};

use reqwest::{Client, Url, header::CONTENT_TYPE};
use serde::Serialize;
use smtpwatch_core::{Finding, Timestamp, finding::Severity};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{MissedTickBehavior, interval},
};

use super::metrics::{Metrics, Output};
use crate::{config::AlertmanagerSettings, incident::words, store::KeptAs, version};

/// Findings that may wait to be told.
const QUEUE: usize = 1_024;
/// Incidents that are told at once; one beyond is counted as a failure, and told when its next finding finds room.
const MAX_ALERTS: usize = 1_000;
/// For an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// An alert that nobody has taken yet holds for at least so many tellings more.
const UNTOLD: u32 = 3;

/// Where findings are handed over.
pub struct Push(Sender<News>);

/// What an alert needs to know of a finding.
struct News {
    incident: String,
    findings: u64,
    finding: Finding,
}

/// As the API has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    labels: BTreeMap<&'static str, String>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// An incident that is told.
struct Active {
    alert: Alert,
    /// Of the newest finding.
    newest: Timestamp,
    /// Each Alertmanager has taken it since its newest finding.
    taken: bool,
}

/// Tells Alertmanagers; run it.
pub struct Pusher {
    news: Receiver<News>,
    client: Client,
    urls: Vec<Url>,
    settings: AlertmanagerSettings,
    instance: String,
    active: BTreeMap<String, Active>,
    failing: bool,
}

/// Makes both ends; `None`: nobody is to be told.
///
/// # Errors
///
/// The system has no certificate authorities, or a URL cannot be had from the configured one.
pub fn start(settings: &AlertmanagerSettings, instance: &str) -> anyhow::Result<Option<(Push, Pusher)>> {
    if settings.urls.is_empty() {
        return Ok(None);
    }
    crate::policy::fetch::choose_cryptography();
    let client = Client::builder()
        .user_agent(format!("smtpwatch/{}", version::VERSION))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(PATIENCE)
        .build()?;
    let urls = settings.urls.iter().map(|url| endpoint(&url.0.0)).collect();
    let (sender, news) = channel(QUEUE);
    let pusher = Pusher {
        news,
        client,
        urls,
        settings: settings.clone(),
        instance: instance.to_owned(),
        active: BTreeMap::new(),
        failing: false,
    };
    Ok(Some((Push(sender), pusher)))
}

/// Below the path that a proxy may have put before it.
fn endpoint(base: &Url) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/api/v2/alerts", base.path().trim_end_matches('/')));
    url
}

impl Push {
    /// Hands over a finding; counts a failure when too many wait. Never blocks.
    pub fn tell(&self, finding: &Finding, kept: &KeptAs, metrics: &Metrics) {
        let finding = Finding { exhibit: None, transcript: Vec::new(), ..finding.clone() };
        let news = News { incident: kept.incident.clone(), findings: kept.findings, finding };
        if self.0.try_send(news).is_err() {
            metrics.output(Output::Alertmanager, 0, 1);
        }
    }
}

impl Pusher {
    /// Tells until nothing can come any more.
    pub async fn run(mut self, metrics: &Metrics, clock: impl Fn() -> Timestamp) {
        let mut resend = interval(self.settings.resend());
        resend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = resend.tick() => self.forget(clock()),
                news = self.news.recv() => {
                    let Some(news) = news else { return };
                    self.take(news, metrics);
                    // What has come at once is told at once.
                    while let Ok(news) = self.news.try_recv() {
                        self.take(news, metrics);
                    }
                }
            }
            self.push(clock(), metrics).await;
        }
    }

    fn take(&mut self, news: News, metrics: &Metrics) {
        let News { incident, findings, finding } = news;
        if !self.active.contains_key(&incident) && self.active.len() >= MAX_ALERTS {
            metrics.output(Output::Alertmanager, 0, 1);
            return;
        }
        let starts_at = self.active.get(&incident).map_or(finding.time, |active| active.alert.starts_at);
        let newest = self.active.get(&incident).map_or(finding.time, |active| active.newest.max(finding.time));
        let alert = Alert {
            labels: labels(&incident, &finding, &self.instance),
            annotations: annotations(&incident, findings, &finding),
            starts_at,
            ends_at: newest,
        };
        self.active.insert(incident, Active { alert, newest, taken: false });
    }

    /// Incidents that are over, and that everybody knows of, are not told any more.
    fn forget(&mut self, now: Timestamp) {
        let hold = self.settings.hold();
        self.active.retain(|_, active| !active.taken || now.since(active.newest) < hold);
    }

    async fn push(&mut self, now: Timestamp, metrics: &Metrics) {
        if self.active.is_empty() {
            return;
        }
        for active in self.active.values_mut() {
            let end = active.newest + self.settings.hold();
            // One that ends before anybody has heard of it would never be told.
            active.alert.ends_at = if active.taken { end } else { end.max(now + self.settings.resend() * UNTOLD) };
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
                self.active.values_mut().for_each(|active| active.taken = true);
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

/// What an alert is known by.
fn labels(incident: &str, finding: &Finding, instance: &str) -> BTreeMap<&'static str, String> {
    let severity = match finding.severity {
        Severity::Critical | Severity::High => "critical",
        Severity::Medium => "warning",
        Severity::Low | Severity::Info => "info",
    };
    BTreeMap::from([
        ("alertname", "SmtpwatchIncident".to_owned()),
        ("incident", incident.to_owned()),
        ("instance", instance.to_owned()),
        ("job", "smtpwatch".to_owned()),
        ("kind", finding.kind.as_str().to_owned()),
        ("role", finding.role.as_str().to_owned()),
        ("severity", severity.to_owned()),
    ])
}

fn annotations(incident: &str, findings: u64, finding: &Finding) -> BTreeMap<&'static str, String> {
    let peer = Some(&finding.peer.name).filter(|name| !name.is_empty()).unwrap_or(&finding.flow.server);
    let count = if findings == 1 { "1 finding".to_owned() } else { format!("{findings} findings") };
    BTreeMap::from([
        ("summary", format!("{peer}: {}", words::happened(finding.kind))),
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
