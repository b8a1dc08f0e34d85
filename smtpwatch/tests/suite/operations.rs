//! Files for operators match the program: rules, dashboard and docs name existing metrics, and each alert has its page.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, error::ErrorKind};
use smtpwatch::{cli::Cli, output::metrics::Metrics};
use smtpwatch_core::finding::Kind;

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of a directory with this extension, with their contents.
fn files(directory: &str, ending: &str) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(workspace(directory)).unwrap().map(|entry| entry.unwrap().file_name());
    let names = entries.filter_map(|name| Some(name.into_string().unwrap().strip_suffix(ending)?.to_owned()));
    names.map(|name| (name.clone(), read(&format!("{directory}/{name}{ending}")))).collect()
}

/// Metrics of the registry, each histogram with its series suffixes.
fn registered() -> BTreeSet<String> {
    let metrics = Metrics::new(&[25]).unwrap();
    // An interface's series exist once it is watched.
    metrics.watch_interface("eth0");
    metrics.attached("eth0", "ingress", "xdp", Some(true));
    let text = metrics.render();
    let mut names = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            names.insert(name.to_owned());
            if kind == "histogram" {
                names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
            }
        }
    }
    names
}

/// Names of smtpwatch metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    // A name of a recording rule contains colons.
    let ours = words.filter(|word| word.starts_with("smtpwatch_") && !word.contains(':'));
    ours.map(str::to_owned).collect()
}

/// Words that begin with smtpwatch_ and are not metrics: parts of the source, and objects of the kernel.
const OTHERS: [&str; 10] = [
    "smtpwatch_common",
    "smtpwatch_core",
    "smtpwatch_ebpf",
    "smtpwatch_tests",
    "smtpwatch_tc_egress",
    "smtpwatch_tc_egress_ip",
    "smtpwatch_tc_ingress",
    "smtpwatch_tc_ingress_ip",
    "smtpwatch_xdp",
    "smtpwatch_",
];

#[test]
fn every_metric_that_is_named_exists() {
    let registered = registered();
    let mut texts: BTreeMap<String, String> = [
        files("docs", ".md"),
        files("docs/runbooks", ".md"),
        files("deploy/prometheus", ".yaml"),
        files("deploy/grafana", ".json"),
    ]
    .into_iter()
    .flatten()
    .collect();
    texts.insert("README".to_owned(), read("README.md"));
    let mut found = 0;
    for (file, text) in &texts {
        for name in named(text).iter().filter(|name| !OTHERS.contains(&name.as_str())) {
            // "smtpwatch_config_*" names several.
            let exists = registered.contains(name)
                || name.ends_with('_') && registered.iter().any(|metric| metric.starts_with(name));
            assert!(exists, "{file} names {name}, which there is not");
            found += 1;
        }
    }
    assert!(found > 50, "only {found} metrics are named");
    let page = named(texts.get("metrics").unwrap());
    for name in registered.iter().filter(|name| name.starts_with("smtpwatch_")) {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        assert!(page.contains(base) || page.contains(name), "docs/metrics.md lacks {name}");
    }
}

/// Every kind of finding raises an alert.
#[test]
fn every_kind_has_a_rule() {
    let rules = read("deploy/prometheus/alerts.yaml");
    let kinds: BTreeSet<&str> = rules
        .lines()
        .filter(|line| line.contains("kind=") || line.contains("kind=~"))
        .flat_map(|line| line.split(['"', '|']))
        .collect();
    let pages = read("docs/runbooks/SmtpwatchIncident.md");
    for kind in Kind::ALL {
        assert!(kinds.contains(kind.as_str()), "no rule for {}", kind.as_str());
        assert!(pages.contains(&format!("| `{}` |", kind.as_str())), "no page for {}", kind.as_str());
    }
}

/// The page of an alert lists the kinds that its rule names.
#[test]
fn pages_list_what_their_alert_is_raised_by() {
    let rules = read("deploy/prometheus/alerts.yaml");
    let (findings, _) = rules.split_once("- name: smtpwatch-watch\n").unwrap();
    let mut pages = 0;
    for rule in findings.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        let kinds = rule.split("kind=").nth(1).and_then(|rest| rest.split('"').nth(1)).unwrap();
        let list: String = kinds.split('|').map(|kind| format!(" --kind {kind}")).collect();
        let command = format!("$ smtpwatch incidents list --since 1h{list}\n");
        assert!(read(&format!("docs/runbooks/{name}.md")).contains(&command), "{name} lacks {command}");
        pages += 1;
    }
    assert_eq!(pages, alerts_of("smtpwatch-findings").len());
}

/// Commands on the pages are accepted by the program.
#[test]
fn commands_of_pages_are_understood() {
    let mut pages: BTreeMap<_, _> = files("docs", ".md").into_iter().chain(files("docs/runbooks", ".md")).collect();
    pages.insert("README".to_owned(), read("README.md"));
    let mut understood = 0;
    for (page, text) in pages {
        let typed = text.lines().filter_map(|line| line.strip_prefix("$ "));
        let typed = typed.flat_map(|line| line.split('#').next().unwrap_or_default().split([';', '|', '>']));
        // In a sentence a command may lack its argument; text with | or … names several commands.
        let said = text.split('`').skip(1).step_by(2).filter(|words| !words.contains(['|', '…', '[', '\n']));
        for command in typed.chain(said).map(str::trim).filter(|command| command.starts_with("smtpwatch ")) {
            let words = command
                .split_whitespace()
                .map(|word| if matches!(word, "DOMAIN" | "PEER") { "example.net" } else { word });
            let Err(error) = Cli::command().try_get_matches_from(words) else {
                understood += 1;
                continue;
            };
            let only_named = [
                ErrorKind::MissingRequiredArgument,
                ErrorKind::MissingSubcommand,
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            ];
            assert!(only_named.contains(&error.kind()), "{page}: {command}: {error}");
        }
    }
    assert!(understood > 60, "only {understood} commands");
}

/// No loss is silent: every counter of a loss has an alert.
#[test]
fn every_loss_has_a_rule() {
    let rules = read("deploy/prometheus/alerts.yaml");
    let asked = named(&rules);
    let losses = ["_dropped_total", "_evicted_total", "_failures_total", "_gaps_total"];
    let counters: Vec<_> =
        registered().into_iter().filter(|name| losses.iter().any(|loss| name.ends_with(loss))).collect();
    assert!(counters.len() >= 7, "{counters:?}");
    for counter in counters {
        assert!(asked.contains(&counter), "no rule asks for {counter}");
    }
}

/// Alerts of one group of the rules.
fn alerts_of(group: &str) -> BTreeSet<String> {
    let rules = read("deploy/prometheus/alerts.yaml");
    let (_, rest) = rules.split_once(&format!("- name: {group}\n")).unwrap();
    let group = rest.split("- name: ").next().unwrap();
    group.split("- alert: ").skip(1).map(|rule| rule.lines().next().unwrap().to_owned()).collect()
}

/// Each alert fires in a unit test: a test expects its name.
#[test]
fn every_alert_has_a_unit_test() {
    let tests =
        ["alerts_test", "alerts_days_test"].map(|name| read(&format!("deploy/prometheus/{name}.yaml"))).concat();
    let expected: BTreeSet<&str> =
        tests.lines().filter(|line| line.contains("labels: '{")).flat_map(|line| line.split('"')).collect();
    for alert in [alerts_of("smtpwatch-findings"), alerts_of("smtpwatch-watch")].iter().flatten() {
        assert!(expected.contains(alert.as_str()), "no unit test of {alert}");
    }
}

/// A pushed incident silences the alerts of findings, and none about the monitor's own health.
#[test]
fn the_push_silences_findings_only() {
    for file in ["docs/alerting.md", "deploy/prometheus/alertmanager.yaml"] {
        let page = read(file);
        let matcher =
            page.split("target_matchers: [alertname=~\"Smtpwatch(").nth(1).and_then(|rest| rest.split(')').next());
        let silenced: BTreeSet<_> = matcher.unwrap().split('|').map(|name| format!("Smtpwatch{name}")).collect();
        assert_eq!(silenced, alerts_of("smtpwatch-findings"), "{file}");
    }
}

/// Kinds that the example of Alertmanager names exist.
#[test]
fn the_example_of_alertmanager_names_kinds_that_exist() {
    let example = read("deploy/prometheus/alertmanager.yaml");
    let lists = example.split("kind=").skip(1).filter_map(|rest| rest.trim_start_matches('~').split('"').nth(1));
    let named: Vec<_> = lists.flat_map(|list| list.split('|')).collect();
    assert!(named.len() > 8, "{named:?}");
    for kind in named {
        assert!(kind.parse::<Kind>().is_ok(), "{kind}");
    }
}

#[test]
fn every_alert_has_its_words_and_its_page() {
    const PAGE: &str = "/usr/share/doc/smtpwatch/runbooks/";
    let rules = read("deploy/prometheus/alerts.yaml");
    let mut alerts = BTreeSet::from(["SmtpwatchIncident".to_owned()]);
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        for part in ["severity: ", "summary: ", "description: ", &format!("runbook_url: {PAGE}{name}.md\n")] {
            assert!(rule.contains(part), "{name} lacks {part}");
        }
        alerts.insert(name.to_owned());
    }
    let mut pages = files("docs/runbooks", ".md");
    let index = pages.remove("README").unwrap();
    assert_eq!(pages.keys().cloned().collect::<BTreeSet<_>>(), alerts, "pages and alerts");
    for (name, page) in pages {
        for part in ["Meaning", "Impact", "Diagnosis", "Mitigation", "False alarms"] {
            assert!(page.contains(&format!("\n## {part}\n")), "{name} lacks {part}");
        }
        assert!(index.contains(&format!("[{name}]({name}.md)")), "the index lacks {name}");
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages: Vec<(PathBuf, String)> = Vec::new();
    for directory in [".", "docs", "docs/runbooks"] {
        for (name, text) in files(directory, ".md") {
            pages.push((workspace(directory).join(name), text));
        }
    }
    let mut followed = 0;
    for (page, text) in pages {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") && !path.contains(' ') {
                assert!(page.parent().unwrap().join(path).exists(), "{}: {link}", page.display());
                followed += 1;
            }
        }
    }
    assert!(followed > 80, "only {followed} links");
}
