//! The shipped alert rules, checked and unit-tested by promtool; the shipped dashboard and manifests, validated against
//! the schemas of Grafana and Kubernetes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use smtpwatch_tests::netns::Namespace;
use smtpwatch_tests::prometheus::{amtool, dashboard, promtool};
use smtpwatch_tests::{command, kubernetes, python, scenario};

#[test]
fn rules_are_valid() {
    scenario("rules_are_valid", || {
        promtool(&Namespace::create("promtool")?, &["check", "rules", "/lab/alerts.yaml", "/lab/recording.yaml"])
            .map(drop)
    });
}

#[test]
fn rules_pass_their_unit_tests() {
    scenario("rules_pass_their_unit_tests", || {
        promtool(
            &Namespace::create("promtool")?,
            &["test", "rules", "/lab/alerts_test.yaml", "/lab/alerts_days_test.yaml"],
        )
        .map(drop)
    });
}

/// The receiver of the example that an alert with these labels reaches.
fn receiver(namespace: &Namespace, labels: &[&str]) -> anyhow::Result<String> {
    let arguments = [&["config", "routes", "test", "--config.file=/lab/alertmanager.yaml"], labels].concat();
    Ok(amtool(namespace, &arguments)?.trim().to_owned())
}

#[test]
fn the_example_of_alertmanager_is_valid_and_routes_by_severity() {
    scenario("the_example_of_alertmanager_is_valid_and_routes_by_severity", || {
        let namespace = Namespace::create("amtool")?;
        let checked = amtool(&namespace, &["check-config", "/lab/alertmanager.yaml"])?;
        anyhow::ensure!(checked.contains("SUCCESS") && checked.contains("5 inhibit rules"), "{checked}");
        for (labels, expected) in [
            (&["alertname=SmtpwatchIncident", "severity=critical", "peer=198.51.100.7"][..], "pager"),
            (&["alertname=SmtpwatchIncident", "severity=warning"], "mail-team"),
            (&["alertname=SmtpwatchIncident", "severity=info"], "log"),
            (&["alertname=SmtpwatchExceptionEnds", "severity=info"], "log"),
            (&["alertname=SmtpwatchDown", "severity=critical"], "pager"),
            (&["alertname=Other", "severity=critical"], "mail-team"),
        ] {
            let found = receiver(&namespace, labels)?;
            anyhow::ensure!(found == expected, "{labels:?}: {found}");
        }
        Ok(())
    });
}

#[test]
fn the_dashboard_fits_the_schema() {
    scenario("the_dashboard_fits_the_schema", || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules/grafana.py");
        let mut check = Command::new(python::grafana_interpreter()?);
        command::run(check.arg(script).arg(dashboard()), Duration::from_secs(60)).map(drop)
    });
}

#[test]
fn manifests_are_fresh_and_fit_the_schemas() {
    scenario("manifests_are_fresh_and_fit_the_schemas", || {
        let mut check = Command::new(python::kubernetes_interpreter()?);
        command::run(check.args(kubernetes::manifests("check")), Duration::from_secs(120)).map(drop)
    });
}
