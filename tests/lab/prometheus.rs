//! A real Prometheus scrapes the real daemon with the shipped rules, and a real Alertmanager sends the notification of
//! a strip and of its end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use smtpwatch_tests::alertmanager::{self, Alertmanager};
use smtpwatch_tests::attacker::{Attacker, Mode};
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::prometheus::{Prometheus, WINDOW, dashboard};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

/// Values that Grafana substitutes for its variables.
const VARIABLES: [(&str, &str); 4] =
    [("$__rate_interval", "20s"), ("$__range", "5m"), ("$job", ".+"), ("$instance", ".+")];

use crate::set_up::{FINDING, Home, SENDER, script};

#[test]
fn alert_fires() {
    scenario("alert_fires", || {
        let path = Path::create()?;
        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let script = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000", "STARTTLS", "8BITMIME"]);
        let _server = Server::start(&path.exchanger, address, &identity, script)?;
        let home = Home::create("prometheus")?;
        let alertmanager = Alertmanager::start(&path.gateway)?;
        // The daemon also sends alerts directly, in addition to the path through Prometheus.
        let tables = format!(
            "[[rule]]\nstarttls = \"required\"\n[alertmanager]\nurls = [\"http://{}\"]\nresend_seconds = 1\nhold_minutes = 1\n",
            alertmanager::ADDRESS
        );
        let options = Options { rules: &tables, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let prometheus = Prometheus::start(&path.gateway)?;
        prometheus.scraped()?;
        let send = || path.gateway.run(|| smtp::send(address, Some(&identity), SENDER, "bob@example.net"))?;
        for _ in 0..6 {
            ensure!(send()?.tls, "honest mail goes under TLS");
        }
        daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "tls")], 6.0, FINDING)?;
        attacker.set_mode(Mode::Delete);
        ensure!(!send()?.tls, "stripped mail goes in clear");
        daemon.finding("starttls-stripped", FINDING, |_| true)?;
        let named = |alert: &Value, kind: &str| {
            let part = |part: &str| alert["annotations"][part].as_str().unwrap_or_default().to_owned();
            ensure!(alert["labels"]["severity"] == "critical", "{alert}");
            ensure!(!part("summary").is_empty() && part(kind).contains("smtpwatch"), "{alert}");
            Ok(())
        };
        let pushed = alertmanager.notified("SmtpwatchIncident", "firing", Duration::from_secs(90))?;
        named(&pushed, "description")?;
        let page = pushed["labels"]["incident"].as_str().map(|id| daemon.ask("GET", &format!("/incidents/{id}")));
        ensure!(page.transpose()?.is_some_and(|(status, _)| status == 200), "there is no such incident: {pushed}");
        let alert = alertmanager.notified("SmtpwatchStarttlsStripped", "firing", Duration::from_secs(90))?;
        named(&alert, "runbook_url")?;
        prometheus.firing("SmtpwatchStarttlsStripped", Duration::from_secs(90))?;
        // Every query of the dashboard returns data, its annotations included.
        let dashboard: Value = serde_json::from_slice(&std::fs::read(dashboard())?)?;
        let questions = questions(&dashboard)?;
        ensure!(questions.len() > 20, "only {} questions", questions.len());
        for Question { title, asked, named } in questions {
            ensure!(!asked.contains('$'), "{asked}");
            let series = eventually(FINDING, &format!("data in {title}: {asked}"), || {
                Ok(Some(prometheus.query(&asked)?).filter(|series| !series.is_empty()))
            })?;
            for label in named {
                let has = |series: &Value| series["metric"][&label].is_string();
                ensure!(series.iter().all(has), "{title} names each series by {label}, which {asked} does not have");
            }
        }
        for record in ["sessions_tls:ratio_rate15m", "starttls_offers:ratio_rate15m"] {
            let recorded = prometheus.query(&format!("last_over_time(instance_role:smtpwatch_{record}[5m])"))?;
            ensure!(!recorded.is_empty(), "nothing is recorded of {record}");
        }
        alertmanager.notified("SmtpwatchStarttlsStripped", "resolved", WINDOW * 3)?;
        let resolved = alertmanager.notified("SmtpwatchIncident", "resolved", Duration::from_secs(90))?;
        let (begin, end) = (time(&resolved["startsAt"])?, time(&resolved["endsAt"])?);
        // The alert ends one minute after its newest finding.
        ensure!((59..=75).contains(&begin.duration_until(end).as_secs()), "{resolved}");
        ensure!(
            daemon.metric("smtpwatch_output_records_total", &[("output", "alertmanager")])? >= 2.0,
            "not told again"
        );
        Ok(())
    });
}

/// A query of the dashboard.
struct Question {
    title: String,
    /// The expression with its variables substituted.
    asked: String,
    /// Labels that its legend uses.
    named: Vec<String>,
}

/// The queries of all panels and all annotations.
fn questions(dashboard: &Value) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut ask = |title: &Value, question: &Value, names: &[&str]| {
        let expression = question["expr"].as_str().with_context(|| format!("an expression in {title}"))?;
        let asked = VARIABLES.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
        let names = names.iter().filter_map(|name| question[name].as_str());
        let named = names.flat_map(|name| name.split("{{").skip(1)).filter_map(|rest| rest.split_once("}}"));
        let named = named.map(|(label, _)| label.trim().to_owned()).collect();
        questions.push(Question { title: title.to_string(), asked, named });
        Ok::<_, anyhow::Error>(())
    };
    for panel in list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row") {
        let targets = list(&panel["targets"]);
        ensure!(!targets.is_empty(), "{} asks nothing", panel["title"]);
        targets.iter().try_for_each(|target| ask(&panel["title"], target, &["legendFormat"]))?;
    }
    list(&dashboard["annotations"]["list"])
        .iter()
        .try_for_each(|mark| ask(&mark["name"], mark, &["titleFormat", "textFormat"]))?;
    Ok(questions)
}

fn time(value: &Value) -> Result<Timestamp> {
    Ok(value.as_str().context("a time")?.parse()?)
}
