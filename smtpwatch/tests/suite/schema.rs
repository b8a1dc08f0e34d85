//! Findings of the engine, validated against the published JSON Schema.

use std::{collections::BTreeSet, path::Path, process::Command};

use jsonschema::Validator;
use serde_json::{Value, json};
use smtpwatch_config::Config;
use smtpwatch_core::{
    Finding, Role, Side,
    evidence::{AppliedPolicy, ByteRange, ConflictingSegments, EvidenceBundle, Octets, Packet},
    finding::{Evidence, Kind, Outcome, Sender, Severity, StarttlsState},
    limits,
    policy::history::History,
};
use smtpwatch_pipeline::{
    incident,
    replay::{Event, Replay},
};
use smtpwatch_web::api::schema;

use crate::traffic::{self, START_NS, Turn};

fn validators() -> (Validator, Validator) {
    let validator = |schema: schemars::Schema| {
        let schema = schema.to_value();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
    };
    (validator(schema::finding()), validator(schema::exhibit()))
}

fn mistakes(finding: &Finding) -> Vec<String> {
    let (document, exhibit) = validators();
    let wrong = |validator: &Validator, value: &Value| -> Vec<String> {
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    };
    let mut found = wrong(&document, &serde_json::to_value(finding).unwrap());
    if let Some(evidence) = &finding.exhibit {
        found.extend(wrong(&exhibit, &serde_json::to_value(evidence).unwrap()));
    }
    found
}

fn findings(path: &Path, config: &Config) -> Vec<Finding> {
    let mut replay = Replay::new(config, History::new(limits::HISTORY_PEERS));
    let mut found = Vec::new();
    let mut take = |event| {
        if let Event::Finding(finding) = event {
            found.push(*finding);
        }
    };
    replay.file(path, &mut take).unwrap();
    replay.finish(&mut take);
    found.iter_mut().for_each(|finding| incident::name(finding, "none"));
    found
}

/// Findings of synthetic sessions with a peer that has to offer STARTTLS.
fn made() -> Vec<Finding> {
    let rule = "[[rule]]\npeer = [\"198.51.100.0/24\"]\nstarttls = \"required\"\nauth_plaintext = \"forbid\"\n";
    let config = Config::parse(rule, Path::new("smtpwatch.toml")).unwrap();
    let after_go_ahead: [Turn<'_>; 7] = [
        Turn::Server("220 mx1.example.net ESMTP\r\n"),
        Turn::Client("EHLO mail.example.org\r\n"),
        Turn::Server("250-mx1.example.net\r\n250 STARTTLS\r\n"),
        Turn::Client("STARTTLS\r\nRSET\r\n"),
        Turn::Server("454 4.7.0 TLS not available\r\n"),
        Turn::Client("QUIT\r\n"),
        Turn::Server("221 2.0.0 Bye\r\n"),
    ];
    let sessions = [
        traffic::password(),
        traffic::mail("192.0.2.10:41235", START_NS, "250 8BITMIME\r\n"),
        traffic::mail("192.0.2.10:41236", START_NS, "250-8BITMIME\r\n250 XXXXXXXA\r\n"),
        traffic::mail("192.0.2.10:41237", START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n"),
        traffic::session("192.0.2.10:41238", traffic::SERVER, START_NS, &after_go_ahead),
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    sessions.iter().fold(Vec::new(), |mut all, session| {
        std::fs::write(&path, traffic::pcap(session, 1, false, false)).unwrap();
        all.extend(findings(&path, &config));
        all
    })
}

#[test]
fn what_the_engine_says_is_valid() {
    let found = made();
    let kinds: BTreeSet<_> = found.iter().map(|finding| finding.kind).collect();
    assert!(kinds.len() >= 4, "{kinds:?}");
    for finding in &found {
        assert!(mistakes(finding).is_empty(), "{:?}: {finding:#?}", mistakes(finding));
    }
    assert!(found.iter().any(|finding| finding.exhibit.is_some()), "evidence is checked too");
}

#[test]
fn every_optional_part_and_every_word_is_valid() {
    let mut full = made().swap_remove(0);
    full.sender = Some(Sender {
        uid: Some(33),
        cgroup_id: 7,
        cgroup: "/system.slice/php-fpm.service".to_owned(),
        unit: Some("php-fpm.service".to_owned()),
        pod: Some("0f6a".to_owned()),
        container: Some("c0ffee".to_owned()),
    });
    full.expected.mode = Some("enforce".into());
    full.observed.mechanism = Some("PLAIN".to_owned());
    full.observed.reply = Some(235);
    full.indicators = vec!["fourteen octets shorter".to_owned()];
    let time = full.time;
    let mut exhibit = full.exhibit.take().unwrap_or_default();
    let bytes = || Octets(b"220 \xff\0".to_vec());
    exhibit.octets.push(ByteRange { from: Side::Server, seq: u32::MAX, octets: bytes() });
    exhibit.packets.push(Packet {
        time,
        from: Side::Client,
        seq: 1,
        ack: u32::MAX,
        flags: 0xff,
        length: 65_536,
        ttl: 255,
        ip_id: u16::MAX,
        window: u16::MAX,
        options: bytes(),
    });
    exhibit.copies.push(ConflictingSegments {
        from: Side::Server,
        seq: 1,
        first: bytes(),
        other: bytes(),
        time,
        ttl: 63,
    });
    exhibit.policies.push(AppliedPolicy {
        source: "mta-sts".to_owned(),
        mode: "enforce".to_owned(),
        subject: "example.net".to_owned(),
        detail: "*.example.net".to_owned(),
    });
    exhibit.losses.insert("ring_full".to_owned(), u64::MAX);
    full.exhibit = Some(exhibit);
    assert_eq!(mistakes(&full), [""; 0]);
    let bare = Finding { exhibit: Some(Box::new(EvidenceBundle::default())), ..full.clone() };
    assert_eq!(mistakes(&bare), [""; 0]);
    for kind in Kind::ALL {
        assert_eq!(mistakes(&Finding { kind: *kind, ..full.clone() }), [""; 0]);
    }
    let words = Severity::ALL.iter().cycle().zip(Evidence::ALL.iter().cycle()).zip(Outcome::ALL.iter().cycle());
    for (((severity, evidence), outcome), state) in words.zip(StarttlsState::ALL) {
        let mut one = Finding { severity: *severity, evidence: *evidence, outcome: *outcome, ..full.clone() };
        one.observed.starttls = *state;
        one.role = Role::Server;
        assert_eq!(mistakes(&one), [""; 0]);
    }
    // A document that is not a finding is rejected.
    let (document, exhibit) = validators();
    let whole = serde_json::to_value(&full).unwrap();
    assert!(document.is_valid(&whole));
    for (pointer, value) in [
        ("/kind", json!("something")),
        ("/severity", json!(3)),
        ("/time", json!("yesterday")),
        ("/schema_version", json!(2)),
        ("/flow", json!({})),
        ("/gaps", json!(-1)),
        ("/observed/reply", json!(70_000)),
        ("/transcript", json!([{ "from": "nobody", "text": "" }])),
        ("/sender", json!({ "uid": "root" })),
    ] {
        let mut wrong = whole.clone();
        *wrong.pointer_mut(pointer).unwrap() = value;
        assert!(!document.is_valid(&wrong), "{pointer}");
    }
    for field in ["id", "rule", "proof", "provenance", "expected"] {
        let mut wrong = whole.clone();
        wrong.as_object_mut().unwrap().remove(field);
        assert!(!document.is_valid(&wrong), "without {field}");
    }
    assert!(!exhibit.is_valid(&json!({ "octets": "none" })));
}

#[test]
fn findings_of_recorded_traffic_are_valid() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let Ok(index) = std::fs::read_to_string(directory.join("INDEX.tsv")) else {
        println!("SKIPPED: {} is not there", directory.join("INDEX.tsv").display());
        return;
    };
    let mut count = 0;
    for line in index.lines().skip(1).filter(|line| !line.is_empty()) {
        let columns: Vec<_> = line.split('\t').collect();
        let port = |end: &str| end.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let ends = columns[6].split_whitespace().filter_map(|word| word.split_once('>'));
        let ports: BTreeSet<u16> = ends.filter_map(|(_, server)| port(server)).collect();
        let config = Config { ports: ports.into_iter().collect(), ..Config::default() };
        for finding in findings(&directory.join(columns[0]), &config) {
            assert!(mistakes(&finding).is_empty(), "{}: {:?}", columns[0], mistakes(&finding));
            count += 1;
        }
    }
    println!("{count} findings of recorded traffic are valid");
    assert!(count > 0);
}

#[test]
fn the_schema_is_printed() {
    let out = Command::new(env!("CARGO_BIN_EXE_smtpwatch")).env_clear().args(["generate", "schema"]).output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).unwrap(), schema::finding().to_value());
}
