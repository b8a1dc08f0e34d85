//! Recorded traffic of other projects' test suites, with its known content.
//!
//! `../shared/captures/INDEX.tsv` beside the repository names every file and its flows. Without it the test is skipped
//! with a message.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
};

use smtpwatch_config::Config;
use smtpwatch_core::{
    Finding, FlowKey,
    engine::SessionSummary,
    finding::{Kind, StarttlsState},
    limits,
    policy::history::History,
};
use smtpwatch_pipeline::replay::{Event, Replay};

/// Kinds that none of these recordings justifies.
const NEVER: [Kind; 6] = [
    Kind::StarttlsStripped,
    Kind::StarttlsMasked,
    Kind::StarttlsRefused,
    Kind::CommandInjection,
    Kind::ResponseInjection,
    Kind::PolicyViolation,
];

/// One flow of the index.
struct Truth {
    flow: FlowKey,
    words: Vec<String>,
}

#[test]
fn every_capture_agrees_with_its_ground_truth() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let Ok(index) = std::fs::read_to_string(directory.join("INDEX.tsv")) else {
        println!("SKIPPED: {} is not there", directory.join("INDEX.tsv").display());
        return;
    };
    let mut wrong = Vec::new();
    let mut good = 0;
    let files: Vec<_> = index.lines().skip(1).filter(|line| !line.is_empty()).collect();
    for line in &files {
        let columns: Vec<_> = line.split('\t').collect();
        let (path, truth) = (directory.join(columns[0]), flows(columns[6]));
        let mistakes = judge(&path, columns[5].parse().unwrap(), &truth);
        if mistakes.is_empty() {
            good += 1;
        }
        wrong.extend(mistakes.into_iter().map(|mistake| format!("{}: {mistake}", columns[0])));
    }
    println!("{good} of {} captures agree with their ground truth", files.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!files.is_empty());
}

/// `#0 10.0.0.1:1>10.0.0.2:25 offered plain-auth:LOGIN=235 [gap c1 s0] ;; #1 …`
fn flows(column: &str) -> Vec<Truth> {
    column
        .split(" ;; ")
        .map(|flow| {
            let mut words = flow.split_whitespace().skip(1);
            let (client, server) = words.next().and_then(|ends| ends.split_once('>')).expect("client>server");
            let flow = FlowKey { client: end_point(client), server: end_point(server) };
            Truth { flow, words: words.map(str::to_owned).collect() }
        })
        .collect()
}

fn end_point(text: &str) -> SocketAddr {
    let (address, port) = text.rsplit_once(':').expect("address:port");
    SocketAddr::new(address.parse().expect("address"), port.parse().expect("port"))
}

fn judge(path: &Path, packets: u64, truth: &[Truth]) -> Vec<String> {
    // Some recordings use ports other than those of mail.
    let ports: BTreeSet<u16> = truth.iter().map(|truth| truth.flow.server.port()).collect();
    let config = Config { ports: ports.into_iter().collect(), ..Config::default() };
    let mut replay = Replay::new(&config, History::new(limits::HISTORY_PEERS));
    let (mut findings, mut sessions) = (Vec::new(), BTreeMap::<FlowKey, Vec<SessionSummary>>::new());
    let mut take = |event| match event {
        Event::Finding(finding) => findings.push(finding),
        Event::Session(session, _) => sessions.entry(session.flow).or_default().push(session),
        Event::History(..) | Event::HistoryForgotten(_) => {}
    };
    let report = replay.file(path, &mut take).expect("a capture file");
    replay.finish(&mut take);
    let mut wrong = Vec::new();
    if report.packets != packets || report.damage.is_some() {
        wrong.push(format!("{} of {packets} packets read, {:?}", report.packets, report.damage));
    }
    for finding in &findings {
        if NEVER.contains(&finding.kind) {
            wrong.push(format!("claims {} of {}", finding.kind, finding.flow.client));
        }
        if finding.kind == Kind::AuthPlaintext && !truth.iter().any(|t| of(finding, t) && !t.auth().is_empty()) {
            wrong.push(format!("claims credentials of {} that are not there", finding.flow.client));
        }
    }
    for truth in truth {
        let sessions = sessions.get(&truth.flow).map_or([].as_slice(), Vec::as_slice);
        wrong.extend(disagreements(truth, sessions, &findings));
    }
    wrong
}

fn of(finding: &Finding, truth: &Truth) -> bool {
    finding.flow.client == truth.flow.client.to_string() && finding.flow.server == truth.flow.server.to_string()
}

impl Truth {
    fn says(&self, word: &str) -> bool {
        self.words.iter().any(|found| found == word)
    }

    /// `plain-auth:LOGIN=235`: mechanism, and code of the last reply (0: not in the table).
    fn auth(&self) -> Vec<(String, u16)> {
        let auth = self.words.iter().filter_map(|word| word.strip_prefix("plain-auth:"));
        auth.flat_map(|list| list.split(','))
            .map(|one| match one.split_once('=') {
                Some((mechanism, code)) => (mechanism.to_owned(), code.parse().expect("reply code")),
                None => (one.to_owned(), 0),
            })
            .collect()
    }
}

fn disagreements(truth: &Truth, sessions: &[SessionSummary], findings: &[Box<Finding>]) -> Vec<String> {
    let mut wrong = Vec::new();
    let client = truth.flow.client;
    let found: Vec<_> = sessions.iter().flat_map(|session| session.auth.iter().cloned()).collect();
    let expected = truth.auth();
    let agrees = |(found, code): &(String, u16), (mechanism, known): &(String, u16)| {
        found == mechanism && (*known == 0 || code == known)
    };
    if found.len() != expected.len() || !found.iter().zip(&expected).all(|(found, expected)| agrees(found, expected)) {
        wrong.push(format!("{client}: AUTH {found:?}, not {expected:?}"));
    }
    if !expected.is_empty() && !findings.iter().any(|finding| finding.kind == Kind::AuthPlaintext && of(finding, truth))
    {
        wrong.push(format!("{client}: no finding for {expected:?}"));
    }
    let state = |wanted: StarttlsState| sessions.iter().any(|session| session.starttls == wanted);
    if truth.says("offered") && !state(StarttlsState::Offered) {
        wrong.push(format!("{client}: STARTTLS is offered, found {:?}", states(sessions)));
    }
    if truth.says("not-offered") && !state(StarttlsState::Absent) {
        wrong.push(format!("{client}: STARTTLS is not offered, found {:?}", states(sessions)));
    }
    if truth.says("helo-only") && (state(StarttlsState::Offered) || state(StarttlsState::Masked)) {
        wrong.push(format!("{client}: there was no EHLO, found {:?}", states(sessions)));
    }
    let sent = sessions.iter().any(|session| session.starttls_sent);
    if truth.says("starttls-sent") != sent {
        wrong.push(format!("{client}: STARTTLS sent is {sent}"));
    }
    wrong
}

fn states(sessions: &[SessionSummary]) -> Vec<StarttlsState> {
    sessions.iter().map(|session| session.starttls).collect()
}
