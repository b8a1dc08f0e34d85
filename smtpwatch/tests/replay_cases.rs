//! Dialogues from public reports of mail server operators: each capture with its correct findings.
//!
//! `../shared/cases/wire` beside the repository holds the captures, the configuration that each is judged by, and a
//! text that states which end this host is. Without the directory the test is skipped with a message.

use std::path::{Path, PathBuf};

use smtpwatch_config::Config;
use smtpwatch_core::{
    Finding,
    finding::{Evidence, Kind},
    limits,
    policy::history::History,
};
use smtpwatch_pipeline::replay::{Event, Replay};

/// One capture.
struct Case {
    name: &'static str,
    config: &'static str,
    /// Kinds of the findings of its last session, sorted by name.
    kinds: &'static [Kind],
    /// The strongest evidence among them.
    evidence: Evidence,
    /// Texts that must occur in a finding.
    says: &'static [&'static str],
    /// Texts that must not occur in any finding.
    hides: &'static [&'static str],
}

const SILENT: Case =
    Case { name: "", config: "base.toml", kinds: &[], evidence: Evidence::Suspicious, says: &[], hides: &[] };

const CASES: &[Case] = &[
    // Some clients ignore a line without a code, others treat it as the reply; this client did the latter.
    Case {
        name: "f01b-starttls-reply-without-code-quit",
        kinds: &[Kind::StarttlsRefused],
        says: &["\"rule\":\"C3\""],
        ..SILENT
    },
    Case {
        name: "f01b-starttls-reply-without-code-quit",
        config: "rule.toml",
        kinds: &[Kind::StarttlsRefused],
        evidence: Evidence::Policy,
        ..SILENT
    },
    Case {
        name: "f05-421-after-go-ahead",
        kinds: &[Kind::TlsHandshakeFailed],
        says: &["421 4.4.2 timeout exceeded", "300 s"],
        ..SILENT
    },
    Case {
        name: "d16-454-behind-go-ahead",
        kinds: &[Kind::TlsHandshakeFailed],
        says: &["454 4.7.0 TLS not available"],
        ..SILENT
    },
    Case { name: "f07b-xxxx-in-a-phone-number", ..SILENT },
    Case {
        name: "f08-eager-auth-then-221",
        kinds: &[Kind::AuthOfferedPlaintext, Kind::AuthPlaintext],
        says: &["\"rule\":\"F7\""],
        hides: &["Y2FuYXJ5", "S2FuYXJp"],
        ..SILENT
    },
    Case {
        name: "f09-user-name-in-reply",
        kinds: &[Kind::AuthOfferedPlaintext, Kind::AuthPlaintext],
        hides: &["canaryname"],
        ..SILENT
    },
    Case {
        name: "f09b-user-name-as-mechanism",
        kinds: &[Kind::AuthExchangePlaintext, Kind::AuthOfferedPlaintext],
        hides: &["canaryname", "CANARYNAME", "xyz123"],
        ..SILENT
    },
    // The chunk was sent before the client received the refusal: the server's errors answer message text.
    Case { name: "d10-unoffered-bdat", ..SILENT },
    Case { name: "d11-proxy-v2-unknown-to-server", ..SILENT },
    Case {
        name: "d12-nul-ack",
        kinds: &[Kind::StreamTampering],
        evidence: Evidence::Tamper,
        says: &["250-STARTTLS", "2 NUL bytes"],
        ..SILENT
    },
    Case { name: "d13-double-starttls-always", ..SILENT },
    Case { name: "d14-pipelined-starttls-554", ..SILENT },
];

#[test]
fn every_reported_dialogue_is_judged_right() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/wire");
    if !directory.is_dir() {
        println!("SKIPPED: {} is not there", directory.display());
        return;
    }
    let mut wrong = Vec::new();
    for case in CASES {
        wrong.extend(judge(&directory, case).into_iter().map(|mistake| format!("{}: {mistake}", case.name)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_reported_dialogue_is_left_out() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/wire");
    let Ok(files) = std::fs::read_dir(&directory) else {
        println!("SKIPPED: {} is not there", directory.display());
        return;
    };
    let paths = files.map(|file| file.expect("readable").path());
    let captures: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "pcap")).collect();
    assert!(!captures.is_empty());
    for capture in captures {
        let name = capture.file_stem().expect("readable").to_str().expect("readable");
        assert!(CASES.iter().any(|case| case.name == name), "{name} has no right value");
    }
}

fn judge(directory: &Path, case: &Case) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join(case.config)).expect("readable");
    let mut config = Config::parse(&text, Path::new(case.config)).expect("readable");
    let described = std::fs::read_to_string(directory.join(format!("{}.txt", case.name))).expect("readable");
    let local = if described.contains("role server") { "198.51.100.0/24" } else { "192.0.2.0/24" };
    config.local = vec![local.parse().expect("readable")];
    let mut replay = Replay::new(&config, History::new(limits::HISTORY_PEERS));
    let (mut findings, mut last) = (Vec::<Finding>::new(), None);
    let mut take = |event| match event {
        Event::Finding(finding) => findings.push(*finding),
        Event::Session(session, _) => last = Some(session.flow),
        Event::History(..) | Event::HistoryForgotten(_) => {}
    };
    replay.file(&directory.join(format!("{}.pcap", case.name)), &mut take).expect("readable");
    replay.finish(&mut take);
    let last = last.expect("a session");
    findings.retain(|finding| finding.flow.client == last.client.to_string());
    findings.sort_by_key(|finding| finding.kind.as_str());
    let mut wrong = Vec::new();
    let kinds: Vec<_> = findings.iter().map(|finding| finding.kind).collect();
    if kinds != case.kinds {
        wrong.push(format!("{kinds:?}, not {:?}", case.kinds));
    }
    if let Some(loud) = findings.iter().find(|finding| finding.evidence > case.evidence) {
        wrong.push(format!("{} with evidence {:?}: {:?}", loud.kind, loud.evidence, loud.indicators));
    }
    let json: String = findings.iter().map(|finding| serde_json::to_string(finding).expect("readable")).collect();
    let bytes = findings.iter().filter_map(|finding| finding.exhibit.as_deref());
    let bytes: Vec<u8> = bytes.flat_map(|exhibit| &exhibit.octets).flat_map(|piece| piece.octets.to_vec()).collect();
    let bytes = String::from_utf8_lossy(&bytes);
    wrong.extend(case.says.iter().filter(|text| !json.contains(**text)).map(|text| format!("does not say {text:?}")));
    let leaked = case.hides.iter().filter(|text| json.contains(**text) || bytes.contains(**text));
    wrong.extend(leaked.map(|text| format!("shows {text:?}")));
    wrong
}
