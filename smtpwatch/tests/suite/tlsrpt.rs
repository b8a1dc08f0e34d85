//! TLS reports on the command line: this host's reports, and the check of others' reports.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output},
};

use flate2::{Compression, write::GzEncoder};
use smtpwatch_core::{
    Timestamp,
    engine::{Delivery, PolicyType, ResultType},
};
use smtpwatch_store::{Writer, WriterSettings};

use crate::cli::Files;
use crate::traffic::{self, CLIENT, SERVER, START_NS, Turn};

const DAY: &str = "2026-11-23";

fn smtpwatch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smtpwatch")).env_clear().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

impl Files {
    /// Creates the store of a host that received mail in `sessions`: a replay with this host as the server.
    fn store_of(&self, sessions: &[Vec<traffic::Packet>]) -> String {
        let packets: Vec<_> = sessions
            .iter()
            .flatten()
            .map(|packet| traffic::Packet { at_ns: packet.at_ns, ip: packet.ip.clone() })
            .collect();
        let capture = self.write("capture.pcap", traffic::pcap(&packets, 1, false, false));
        let store = self.text("smtpwatch.db");
        let own = "198.51.100.25";
        let output = smtpwatch(&["replay", "--local", own, "--store", &store, &capture]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        store
    }
}

/// A report of the sender from which the traffic comes.
fn report(sessions: u64) -> String {
    format!(
        r#"{{"organization-name":"Company-X","contact-info":"x@company-x.example","report-id":"735ff.e317",
        "date-range":{{"start-datetime":"{DAY}T00:00:00Z","end-datetime":"{DAY}T23:59:59Z"}},
        "policies":[{{"policy":{{"policy-type":"no-policy-found","policy-domain":"example.net"}},
          "summary":{{"total-successful-session-count":10,"total-failure-session-count":{sessions}}},
          "failure-details":[{{"result-type":"starttls-not-supported","sending-mta-ip":"192.0.2.10",
            "receiving-ip":"198.51.100.25","receiving-mx-hostname":"mx1.example.net",
            "failed-session-count":{sessions}}}]}}]}}"#
    )
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const OFFERED: &str = "250-STARTTLS\r\n250 8BITMIME\r\n";

#[test]
fn a_report_that_our_own_frames_contradict_is_a_finding_with_both_proofs() {
    let place = Files::new();
    let store = place.store_of(&[
        traffic::mail(CLIENT, START_NS, OFFERED),
        traffic::mail(CLIENT, START_NS + 60_000_000_000, OFFERED),
    ]);
    let file = place.write("report.json.gz", gzip(report(2).as_bytes()));
    let output = smtpwatch(&["tlsrpt", "import", "--store", &store, &file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let finding: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for (key, value) in [
        ("kind", "starttls-stripped"),
        ("rule", "G9"),
        ("evidence", "tamper"),
        ("outcome", "content"),
        ("severity", "critical"),
        ("role", "server"),
        ("time", "2026-11-23T15:01:00.032000Z"),
    ] {
        assert_eq!(finding[key], value, "{finding}");
    }
    assert_eq!(finding["expected"]["source"], "tlsrpt");
    assert_eq!(finding["flow"]["client"], "192.0.2.10:0");
    assert_eq!(finding["flow"]["community_id"], "", "many connections have no one name");
    assert_eq!(finding["id"].as_str().unwrap().len(), 36);
    let proof = finding["proof"].as_array().unwrap();
    assert!(proof[0].as_str().unwrap().starts_with("report 735ff.e317 of Company-X, "), "{finding}");
    assert!(proof[1].as_str().unwrap().starts_with("own record, 2026-11-23 to 2026-11-23: 2 sessions from 192.0.2.10"));
    assert_eq!(
        text(&output.stderr),
        "files 1, reports 1 (refused 0, twice 0), claims that STARTTLS was missing 1: contradicted by our own \
         record 1, agree with it 0, unknown 0\n"
    );
    let output = smtpwatch(&["tlsrpt", "import", "--store", &store, "--format", "text", &file]);
    assert!(text(&output.stdout).contains(" CRITICAL starttls-stripped [G9] 192.0.2.10:0 -> 198.51.100.25:25"));
}

#[test]
fn where_our_own_record_does_not_tell_there_is_no_finding() {
    let tls = |start_ns| {
        let turns = [
            Turn::Server("220 mx1.example.net ESMTP\r\n"),
            Turn::Client("EHLO mail.example.org\r\n"),
            Turn::Server("250-mx1.example.net\r\n250-STARTTLS\r\n250 8BITMIME\r\n"),
            Turn::Client("STARTTLS\r\n"),
            Turn::Server("220 2.0.0 Ready\r\n"),
            Turn::Client("\u{16}\u{3}\u{1}\u{0}\u{2}\u{1}\u{0}"),
        ];
        traffic::session(CLIENT, SERVER, start_ns, &turns)
    };
    let mut holed = traffic::mail(CLIENT, START_NS, OFFERED);
    holed.remove(9);
    let other = traffic::mail("192.0.2.77:41234", START_NS, OFFERED);
    for (sessions, verdict) in [
        (vec![tls(START_NS)], "1 sessions are recorded, 0 of them with an offer that was not used"),
        (vec![traffic::mail(CLIENT, START_NS, OFFERED)], "1 sessions are recorded, 1 of them with an offer"),
        (vec![traffic::mail(CLIENT, START_NS, "250 8BITMIME\r\n")], "true: by our own record we did not offer it in 1"),
        (vec![holed], "unknown: the own record has gaps in 1 sessions"),
        (vec![other], "unknown: no session from the sender is recorded"),
        (vec![traffic::mail(CLIENT, START_NS + 86_400_000_000_000, OFFERED)], "unknown: no session from the sender"),
    ] {
        let place = Files::new();
        let store = place.store_of(&sessions);
        let output = smtpwatch(&["tlsrpt", "import", "--store", &store, &place.write("report.json", report(2))]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), String::new()));
        assert!(text(&output.stderr).contains(verdict), "{} lacks {verdict}", text(&output.stderr));
    }
    let place = Files::new();
    let output = smtpwatch(&["tlsrpt", "import", "--store", "/nowhere/x.db", &place.write("report.json", report(2))]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("no store at /nowhere/x.db"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("unknown 1\n"));
}

#[test]
fn bad_files_are_refused_and_the_others_are_read() {
    let place = Files::new();
    let store = place.store_of(&[traffic::mail(CLIENT, START_NS, OFFERED)]);
    let good = place.write("good.json", report(1));
    let cut = place.write("cut.gz", &gzip(report(1).as_bytes())[..60]);
    let bomb = place.write("bomb.gz", gzip(&vec![b' '; 20_000_000]));
    let dates = place.write("dates.json", report(1).replace("2026-11-23T23", "2026-11-22T23"));
    let types = place.write("types.json", report(1).replace("\"policies\":[", "\"policies\":7,\"x\":["));
    let escape = place.write("escape.json", report(1).replace("2026-11-23T00", "\\u001b[2J"));
    let files = [cut.as_str(), &bomb, &dates, &types, &escape, "/nowhere", &good, &good];
    let output = smtpwatch(&[&["tlsrpt", "import", "--store", &store][..], &files].concat());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout).lines().count(), 1, "the good one, once");
    let log = text(&output.stderr);
    for line in [
        format!("smtpwatch: {cut}: the gzip data are damaged or cut off: "),
        format!("smtpwatch: {bomb}: inflates to more than 16777216 bytes"),
        format!("smtpwatch: {dates}: date-range from 2026-11-23T00:00:00.000000Z to "),
        format!("smtpwatch: {types}: not a TLS report: invalid type: integer `7`, expected an array"),
        "smtpwatch: /nowhere: cannot be read: No such file or directory".to_owned(),
        "files 8, reports 1 (refused 6, twice 1)".to_owned(),
    ] {
        assert!(log.lines().any(|found| found.starts_with(&line)), "{log}\nlacks {line}");
    }
    assert!(!log.contains('\u{1b}'));
}

#[test]
fn the_report_of_a_day_can_be_seen_before_anything_is_sent() {
    let place = Files::new();
    let path = place.path("smtpwatch.db");
    let deliver = |domain: &str, failure| Delivery {
        at: Timestamp(i64::try_from(START_NS).unwrap()),
        domain: domain.to_owned(),
        policy: PolicyType::Sts,
        policy_strings: vec!["version: STSv1".to_owned(), "mode: enforce".to_owned()],
        mx_hosts: vec!["*.example.net".to_owned()],
        failure,
        reason: None,
        sending: "192.0.2.10".parse().unwrap(),
        receiving: "198.51.100.25".parse().unwrap(),
        receiving_host: "mx1.example.net".to_owned(),
        receiving_helo: String::new(),
    };
    let (writer, _) = Writer::start(Path::new(&path), WriterSettings::default()).unwrap();
    let handle = writer.handle().unwrap();
    for failure in [None, None, Some(ResultType::StarttlsNotSupported)] {
        handle.delivery(Box::new(deliver("example.net", failure)));
    }
    handle.delivery(Box::new(deliver("example.org", None)));
    drop(handle);
    assert_eq!(writer.finish(), 0);
    let store = place.text("smtpwatch.db");
    let config =
        place.write("smtpwatch.toml", "[tlsrpt]\norganization = \"Example Corp\"\ncontact = \"tlsrpt@example.com\"\n");
    let output = smtpwatch(&["tlsrpt", "report", "--day", DAY, "--store", &store, "--config", &config]);
    let reports: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((output.status.code(), reports.len()), (Some(0), 2), "{}", text(&output.stderr));
    assert_eq!(reports[0]["organization-name"], "Example Corp");
    assert_eq!(reports[0]["date-range"]["end-datetime"], "2026-11-23T23:59:59Z");
    let policy = &reports[0]["policies"][0];
    assert_eq!(policy["policy"]["policy-domain"], "example.net");
    assert_eq!(policy["summary"]["total-successful-session-count"], 2);
    assert_eq!(policy["failure-details"][0]["result-type"], "starttls-not-supported");
    assert!(!text(&output.stdout).contains("null"));
    let one = smtpwatch(&["tlsrpt", "report", "--day", DAY, "--domain", "EXAMPLE.org.", "--store", &store]);
    assert_eq!(text(&one.stdout).lines().count(), 1);
    let none = smtpwatch(&["tlsrpt", "report", "--store", &store]);
    assert_eq!((none.status.code(), text(&none.stdout)), (Some(0), String::new()));
    assert!(text(&none.stderr).contains("there is nothing to report"));
    assert_eq!(smtpwatch(&["tlsrpt", "report", "--day", "23.11.2026", "--store", &store]).status.code(), Some(2));
}

#[test]
fn sending_needs_a_name_to_send_in() {
    let place = Files::new();
    for (lines, message) in [
        ("send = true", "[tlsrpt] send = true: reports go out in somebody's name: set organization and contact"),
        ("contact = \"nobody\"", "contact: \"nobody\": expected a mail address"),
        ("organization = \"a\\nb\"", "organization: \"a\\nb\": expected a name"),
        ("delay_seconds = 14401", "delay_seconds: 14401: expected a number of seconds from 0 to 14400"),
        ("smtp = \"localhost\"", "smtp: \"localhost\": expected an address and a port"),
        ("directry = \"x\"", "unknown key \"directry\" in [tlsrpt]: did you mean \"directory\"?"),
    ] {
        let config = place.write("smtpwatch.toml", format!("[tlsrpt]\n{lines}\n"));
        let output = smtpwatch(&["check-config", "--config", &config]);
        assert_eq!(output.status.code(), Some(78), "{lines}");
        let error = text(&output.stderr);
        assert!(error.contains(message), "{error} lacks {message}");
        assert!(error.contains("smtpwatch.toml:"), "{error}");
    }
    let good = "[tlsrpt]\nsend = true\norganization = \"Example Corp\"\ncontact = \"tlsrpt@example.org\"\n\
                smtp = \"[::1]:25\"\n";
    let config = place.write("smtpwatch.toml", good);
    assert_eq!(smtpwatch(&["check-config", "--config", &config]).status.code(), Some(0));
}
