//! Every row A to G of docs/threats.md as a dialogue: the finding that it raises, its evidence and its outcome.

use std::collections::BTreeSet;

use smtpwatch_core::{
    Finding, Role, Side, TcpFlags, Timestamp,
    day::Day,
    finding::{Evidence, Kind, Outcome, Severity},
    judge::{
        RuleId,
        catalogue::{self, Row},
        reported::{self, Comparison, OwnRecord, Reported},
    },
    offers::Offers,
    policy::rule::{AuthRule, Rule, StarttlsRule},
};

use crate::evasions::late_copy;
use crate::scenario::{
    Dialogue, GREETING, MASKED, OFFER, OwnedSegment, STRIPPED, client_hello, deliver, greeted, hear, hear_after,
    honest, honest_history, server_hello, tls,
};

/// How the peer is known.
#[derive(Clone, Copy)]
enum Known {
    Nothing,
    History,
    Required,
}

struct Threat {
    id: &'static str,
    kind: Kind,
    known: Known,
    talk: Dialogue,
    evidence: Evidence,
    outcome: Outcome,
}

fn threats() -> Vec<Threat> {
    use Evidence::{Policy, Regression, Suspicious, Tamper};
    use Known::{History, Nothing, Required};
    use Outcome::{Attempt, Content, Credential, Envelope};
    let threat = |id: &'static str, known, talk, evidence, outcome| {
        let kind = row(id).kind().expect("a row that is raised");
        Threat { id, kind, known, talk, evidence, outcome }
    };
    // A5 has a second kind: an offer that some clients still understand is masked, not removed.
    let as_kind = |kind, threat: Threat| Threat { kind, ..threat };
    let quit = |talk: Dialogue| talk.c("QUIT\r\n").s("221 Bye\r\n").close();
    let masked = |line: &str| OFFER.replace("250-STARTTLS", line);
    let submission = || Dialogue::new(587).s(GREETING).c("EHLO gw\r\n");
    let bare = "250 mx1.example.net\r\n";
    let asked = || greeted().s(OFFER).c("STARTTLS\r\n");
    let go = || asked().s("220 2.0.0 Ready to start TLS\r\n");
    vec![
        threat("A1", History, deliver(greeted().s(STRIPPED)), Regression, Content),
        threat("A1", Required, deliver(greeted().s(STRIPPED)), Policy, Content),
        threat("A1", History, quit(greeted().s(STRIPPED)), Regression, Attempt),
        threat("A1", Nothing, quit(greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s("530 5.7.0 Must issue a STARTTLS command first\r\n")), Suspicious, Envelope),
        threat("A2", Nothing, deliver(greeted().s(MASKED)), Tamper, Content),
        threat("A2", Nothing, quit(greeted().s(masked("250-XXXXXXXA\r\n250-STARTTLS"))), Suspicious, Attempt),
        threat("A2", Nothing, quit(greeted().s(masked("250-XXXXXXXB"))), Tamper, Attempt),
        threat("A3", Nothing, deliver(greeted().s(masked("250-XXXXXXXX"))), Tamper, Content),
        threat("A3", Nothing, deliver(greeted().s(masked("250-STARTTLX"))), Tamper, Content),
        threat("A3", History, deliver(greeted().s(masked("250-starttls"))), Suspicious, Content),
        threat("A3", Nothing, deliver(greeted().s(masked("250-starttls"))), Suspicious, Content),
        threat("A3", History, deliver(greeted().s(masked("250-TTTTTTTT"))), Regression, Content),
        threat("A3", Required, deliver(greeted().s(masked("250-STARTTLX"))), Tamper, Content),
        threat("A4", History, deliver(Dialogue::new(25).s("220 mx1.example.net ESMTP mail.redacted.com - x\r\n").c("EHLO gw.example.org\r\n").s(STRIPPED)), Regression, Content),
        threat("A4", History, deliver(greeted().s(STRIPPED.replace("250-mx1.example.net", "250-mx1.example.net at your service, [203.0.113.7]"))), Regression, Content),
        threat("A4", History, deliver(greeted().s("250-mx1.example.net at your service, [203.0.113.7]\r\n250-AUTH LOGIN PLAIN XOAUTH2\r\n250 SMTPUTF8\r\n")), Regression, Content),
        threat("A5", History, deliver(greeted().s("250-STARTTLS\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-ETRN\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n")), Regression, Content),
        as_kind(Kind::StarttlsMasked, threat("A5", Nothing, deliver(greeted().s(masked("250-STARTTLS="))), Suspicious, Content)),
        as_kind(Kind::StarttlsMasked, threat("A5", Nothing, deliver(greeted().s(masked("250- STARTTLS"))), Suspicious, Content)),
        as_kind(Kind::StarttlsMasked, threat("A5", Nothing, deliver(greeted().s(OFFER.replace("250-STARTTLS", "251-STARTTLS"))), Suspicious, Content)),
        as_kind(Kind::StarttlsMasked, threat("A5", History, tls(greeted().s(OFFER.replace("250-STARTTLS", "251-STARTTLS")).c("STARTTLS\r\n").s("220 2.0.0 go\r\n")).close(), Suspicious, Attempt)),
        as_kind(Kind::StarttlsMasked, threat("A5", Nothing, deliver(greeted().s(OFFER.replace("250-STARTTLS", "250\tSTARTTLS"))), Suspicious, Content)),
        as_kind(Kind::StarttlsMasked, threat("A5", Nothing, deliver(greeted().s(OFFER.replace("250-ETRN\r\n250-STARTTLS", "250-ETRN STARTTLS"))), Suspicious, Content)),
        threat("A5", History, deliver(greeted().s(OFFER.replace("250-STARTTLS", "250STARTTLS"))), Regression, Content),
        threat("A6", Nothing, deliver(greeted().s(STRIPPED.replace("250-ETRN", "250 ETRN"))), Tamper, Content),
        threat("A6", Nothing, greeted().s("250-mx1.example.net\r\n250-SIZE 10240000\r\n").ack(Side::Client).pause(300).leave(), Suspicious, Attempt),
        threat("A6", History, greeted().s(OFFER[..OFFER.len() - "250 8BITMIME\r\n".len()].replace("250-STARTTLS\r\n", "")).ack(Side::Client).close(), Regression, Attempt),
        threat("A6", Nothing, deliver(greeted().s("250-mx1.example.net\r\n250 SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME\r\n")), Tamper, Content),
        threat("A7", Nothing, tls(greeted().s(OFFER.replace("250 8BITMIME", "250 STARTTLS")).c("STARTTLS\r\n").s("220 2.0.0 go\r\n")).close(), Suspicious, Attempt),
        threat("A10", History, quit(greeted().s(OFFER.replace("250 8BITMIME", "250 AUTH LOGIN PLAIN"))), Suspicious, Attempt),
        threat("B1", History, deliver(greeted().s("502 Error: command \"EHLO\" not implemented\r\n").c("HELO gw\r\n").s(bare)), Regression, Content),
        threat("B1", Required, quit(greeted().s("502 not implemented\r\n").c("HELO gw\r\n").s(bare)), Policy, Attempt),
        threat("B2", Nothing, greeted_server("XXXX mail.example.org\r\n"), Tamper, Attempt),
        threat("B2", Nothing, quit(greeted().s("500 5.5.1 Command unrecognized: \"XXXX gw.example.org\"\r\n")), Tamper, Attempt),
        threat("B3", Nothing, deliver(Dialogue::new(25).s("220 ************************************\r\n").c("HELO gw\r\n").s(bare)), Suspicious, Content),
        threat("B3", History, deliver(Dialogue::new(25).s("200 ********************\r\n").c("HELO gw\r\n").s(bare)), Tamper, Content),
        threat("C1", Nothing, deliver(asked().s("454 TLS not available due to temporary reason\r\n")), Suspicious, Content),
        threat("C1", Required, deliver(asked().s("454 4.7.0 TLS not available due to local problem\r\n")), Policy, Content),
        threat("C1", Nothing, deliver(asked().s("454 STRIPTLS\r\n")), Tamper, Content),
        threat("C2", Nothing, deliver(asked().s("500 STRIPTLS\r\n")), Tamper, Content),
        threat("B1", History, quit(greeted().s("502 STRIPTLS\r\n").c("HELO gw\r\n").s(bare)), Tamper, Attempt),
        threat("C2", Nothing, deliver(asked().s("501 Syntax error\r\n")), Suspicious, Content),
        threat("C2", History, deliver(asked().s("530 Must issue STARTTLS first\r\n")), Regression, Content),
        threat("C3", Nothing, deliver(asked().s("354 do something else\r\n")), Suspicious, Content),
        threat("C3", Nothing, asked().s("200 STRIPTLS\r\n").ack(Side::Client).close(), Tamper, Attempt),
        threat("B1", History, quit(greeted().s("502 5.5.2 no\r\n").c("STARTTLS\r\n").s("502 5.5.2 no\r\n")), Regression, Attempt),
        threat("C3", Nothing, asked().s("200 STRIPTLS\r\n").c(client_hello(0x0304)).s("500 bad syntax\r\n").close(), Tamper, Attempt),
        threat("C4", Nothing, quit(asked().s("502 unknown command 'BBBBBBBB'\r\n")), Tamper, Attempt),
        threat("C4", Nothing, quit(asked().s("500 5.5.1 Command unrecognized: \"XXXXXXXX\"\r\n")), Tamper, Attempt),
        threat("C4", Nothing, quit(greeted().s(OFFER).c("XXXXXXXX\r\n").s("500 what?\r\n")).seen_by_server(), Tamper, Attempt),
        threat("C5", Nothing, asked().ack(Side::Server).reset(Side::Server), Suspicious, Attempt),
        threat("C5", Nothing, asked().ack(Side::Server).pause(300).leave(), Suspicious, Attempt),
        threat("C5", Required, asked().ack(Side::Server).pause(300).c("QUIT\r\n").leave(), Policy, Attempt),
        threat("C6", Nothing, deliver(go()), Tamper, Content),
        threat("C6", Nothing, go().c(client_hello(0x0303)).s("500 what?\r\n").ack(Side::Client).close(), Suspicious, Attempt),
        threat("C7", Required, deliver(greeted().s(OFFER)), Policy, Content),
        threat("D4", Nothing, go().c(client_hello(0x0304)).s(server_hello(0x0303, 0xc02f, b"DOWNGRD\x01")).close(), Tamper, Attempt),
        threat("D4", Nothing, go().c(client_hello(0x0303)).s(server_hello(0x0303, 0x0004, b"")).close(), Suspicious, Attempt),
        threat("D4", History, go().c(client_hello(0x0304)).s(server_hello(0x0301, 0x002f, b"")).close(), Regression, Attempt),
        threat("E1", Nothing, tls(greeted().s(OFFER).c("STARTTLS\r\nEHLO commandinjectiontester\r\n").s("220 go\r\n")).close(), Tamper, Attempt),
        threat("E1", Nothing, tls(greeted().s(OFFER).c("STARTTLS\r\nINJECTED_INVALID_COMMAND\r\n").s("220 go\r\n")).close().seen_by_server(), Tamper, Attempt),
        threat("E1", Nothing, tls(go().c("NOOP\r\n")).close(), Tamper, Attempt),
        threat("E2", Nothing, tls(asked().s("220 Ready to start TLS\r\n250-example.org\r\n250 AUTH LOGIN\r\n")).close(), Tamper, Attempt),
        threat("D4", History, go().c(client_hello(0x0304)).s(server_hello(0x0303, 0xc02f, b"")).close(), Regression, Attempt),
        threat("D4", History, go().c(client_hello(0x0303)).s(server_hello(0x0303, 0x0004, b"")).close(), Regression, Attempt),
        threat("E2", Nothing, asked().s("220 Ready\r\n250-example.org\r\n250 AUTH LOGIN\r\n").ack(Side::Client).leave(), Tamper, Attempt),
        threat("E2", Nothing, go().c(client_hello(0x0304)).s([b"250 AUTH LOGIN\r\n".to_vec(), server_hello(0x0304, 0x1301, b"")].concat()).close(), Tamper, Attempt),
        threat("E3", Nothing, greeted().s(OFFER).c("STARTTLS\r\nMAIL FROM:<a@example.org>\r\n").s("454 4.7.0 no\r\n250 ok\r\n").c("QUIT\r\n").s("221 Bye\r\n").close(), Tamper, Envelope),
        threat("E3", Nothing, tls(greeted().s(OFFER).c("STARTTLS\r\nEHLO x\r\nAUTH PLAIN AGEAYg==\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n").s("220 go\r\n")).close().seen_by_server(), Tamper, Credential),
        threat("E3", Nothing, tls(greeted().s(OFFER).c("STARTTLS\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n").s("220 go\r\n")).close(), Tamper, Content),
        threat("E4", Nothing, quit(greeted().s(OFFER).c("NOOP\r\n").s("250 ok\r\n250 and another\r\n")), Suspicious, Attempt),
        threat("F1", Nothing, quit(submission().s(bare).c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n")), Suspicious, Credential),
        threat("F2", Nothing, quit(submission().s(bare).c("AUTH PLAIN\r\n").s("334 \r\n").c("AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n")), Suspicious, Credential),
        threat("F3", Nothing, quit(submission().s(bare).c("AUTH LOGIN\r\n").s("334 VXNlcm5hbWU6\r\n").c("dXNlcg==\r\n").s("334 UGFzc3dvcmQ6\r\n").c("cGFzcw==\r\n").s("235 ok\r\n")), Suspicious, Credential),
        threat("F4", Nothing, quit(submission().s(bare).c("AUTH XOAUTH2 dXNlcj11AWF1dGg9QmVhcmVyIHQBAQ==\r\n").s("235 ok\r\n")), Suspicious, Credential),
        threat("F5", Nothing, quit(submission().s(bare).c("AUTH CRAM-MD5\r\n").s("334 PDEyMz4=\r\n").c("dXNlciAwMTIzNDU2Nzg5YWJjZGVm\r\n").s("235 ok\r\n")), Suspicious, Attempt),
        threat("F6", Nothing, tls(submission().s(OFFER.replace("250 8BITMIME", "250 AUTH=PLAIN LOGIN")).c("STARTTLS\r\n").s("220 go\r\n")).close().seen_by_server(), Suspicious, Attempt),
        threat("F7", Nothing, quit(submission().s(bare).c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("538 Encryption required\r\n")), Suspicious, Credential),
        threat("F8", History, deliver(greeted().s(STRIPPED.replace("250 8BITMIME", "250 AUTH PLAIN"))), Regression, Content),
        threat("F3", Nothing, submission().s(bare).c("AUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\n").s("334 x\r\n334 x\r\n235 ok\r\n").close(), Suspicious, Credential),
        threat("F7", Nothing, submission().s(bare).c("AUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\n").s("530 5.7.0 TLS first\r\n").close(), Suspicious, Credential),
        threat("F8", History, quit(greeted().s(STRIPPED.replace("250 8BITMIME", "250 AUTH PLAIN"))), Regression, Attempt),
        threat("F9", Nothing, quit(submission().s(bare).c("X-EXPS LOGIN\r\n").s("334 x\r\n").c("dXNlcg==\r\n").s("334 x\r\n").c("cGFzcw==\r\n").s("235 ok\r\n")), Suspicious, Credential),
        threat("G1", Required, deliver(greeted().s(OFFER)), Policy, Content),
        threat("G5", History, deliver(greeted().s(OFFER)), Regression, Content),
        threat("G7", Nothing, greeted().s(OFFER).c("MAIL FROM:<a@example.org> REQUIRETLS\r\n").s("250 ok\r\n").close(), Policy, Envelope),
        threat("G7", Nothing, quit(greeted().s(OFFER.replace("250 8BITMIME", "250 REQUIRETLS"))), Policy, Attempt),
        threat("G8", Nothing, deliver(submission().s(OFFER)), Suspicious, Content),
        threat("G8", Nothing, deliver(submission().s(bare)).seen_by_server(), Suspicious, Content),
        threat("FO-1", Nothing, two_copies(), Tamper, Attempt),
    ]
}

fn row(id: &str) -> &'static Row {
    id.parse::<RuleId>().expect("an identifier of the catalogue").row()
}

/// The gateway as server: what it sends is not what the client answers.
fn greeted_server(line: &str) -> Dialogue {
    Dialogue::new(25).s(GREETING).c(line).s("500 what?\r\n").c("QUIT\r\n").s("221 Bye\r\n").close().seen_by_server()
}

/// The EHLO reply, acknowledged, then the same range once more with STARTTLS in it.
fn two_copies() -> Dialogue {
    let mut talk = greeted().s(MASKED.replace("XXXXXXXA", "ETRN1234")).ack(Side::Client);
    let reply = talk.packets.iter().find(|packet| packet.payload.starts_with(b"250-mx1")).expect("reply").clone();
    let payload = String::from_utf8(reply.payload.clone()).expect("text").replace("ETRN1234", "STARTTLS").into_bytes();
    talk.packets.push(OwnedSegment { payload, ..reply });
    talk.c("QUIT\r\n").s("221 Bye\r\n").close()
}

fn rules(known: Known) -> Vec<Rule> {
    match known {
        Known::Required => vec![Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }],
        Known::Nothing | Known::History => Vec::new(),
    }
}

fn heard(threat: &Threat) -> Vec<Finding> {
    let before = match threat.known {
        Known::History => honest_history(6),
        Known::Nothing | Known::Required => Vec::new(),
    };
    hear_after(&before, &threat.talk, rules(threat.known)).findings
}

/// A TLS report that this host's own record contradicts.
fn g9() -> Vec<Finding> {
    let at = Timestamp::from_secs(1_795_400_000);
    let reported = Reported {
        organization: "Company-X",
        id: "735ff",
        window: (at, at),
        sender: [198, 51, 100, 7].into(),
        own: [192, 0, 2, 25].into(),
        host: "mx1.example.org",
        sessions: 1,
    };
    let offers = Offers { sessions: 1, offered: 1, unused: 1, last_unused: at, ..Offers::default() };
    match reported::judge(&reported, &OwnRecord { days: (Day::of(at), Day::of(at)), offers }) {
        Comparison::Stripped(finding) => vec![*finding],
        Comparison::Agrees(_) | Comparison::Gaps(_) | Comparison::TooFew => Vec::new(),
    }
}

#[test]
fn every_row_is_raised_with_its_id_or_listed_with_its_reason() {
    let mut covered = BTreeSet::new();
    for threat in threats() {
        let findings = heard(&threat);
        let found = findings.iter().find(|finding| finding.rule == threat.id);
        let Some(found) = found else {
            panic!("{}: raised {:?}", threat.id, findings.iter().map(|f| (&*f.rule, f.kind)).collect::<Vec<_>>());
        };
        let shown = (found.kind, found.evidence, found.outcome);
        assert_eq!(shown, (threat.kind, threat.evidence, threat.outcome), "{}", threat.id);
        covered.insert(threat.id);
    }
    // Compared by what was raised, with the kind of the row.
    let raised = raised_by_several_connections();
    let of_its_row = |finding: &Finding| {
        let row = row(&finding.rule);
        (row.kind() == Some(finding.kind)).then_some(row.id.as_str())
    };
    covered.extend(raised.iter().filter_map(of_its_row));
    let missing: Vec<_> =
        catalogue::ROWS.iter().filter(|row| row.kind().is_some() && !covered.contains(row.id.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let listed = catalogue::ROWS.iter().filter(|row| row.kind().is_none()).count();
    println!("{} rows raised, {listed} listed as not raised, {} in all", covered.len(), catalogue::ROWS.len());
}

/// Findings of rows that need several connections, a published policy or a report.
fn raised_by_several_connections() -> Vec<Finding> {
    [a8(&known_client()), a9(Known::History), a9(Known::Required), d1(), crate::published::raised(), g9()].concat()
}

/// Findings about one dialogue, seen from both ends, whatever is known about the peer.
fn in_all_circumstances(talk: &Dialogue) -> Vec<Finding> {
    let required = Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() };
    let forbidden = Rule { auth_plaintext: Some(AuthRule::Forbid), ..Rule::default() };
    let mut findings = Vec::new();
    for talk in [talk.clone(), talk.clone().seen_by_server()] {
        for known in [false, true] {
            let mut before = if known { honest_history(6) } else { Vec::new() };
            for session in &mut before {
                session.role = talk.role;
                session.flow.server.set_port(talk.flow.server.port());
            }
            for rules in [Vec::new(), vec![required.clone()], vec![forbidden.clone()]] {
                findings.extend(hear_after(&before, &talk, rules).findings);
            }
        }
    }
    findings
}

/// The catalogue promises nothing that its rules do not raise. That they raise nothing else is compared where tests
/// play dialogues (`assert_allowed` in the test kit).
#[test]
fn every_kind_role_and_grade_of_a_row_is_raised() {
    let mut raised: BTreeSet<(String, &str)> = BTreeSet::new();
    let dialogues = threats().into_iter().flat_map(|threat| in_all_circumstances(&threat.talk));
    let others = [raised_by_several_connections(), late_copy(), crate::history::raised()].concat();
    for finding in dialogues.chain(others) {
        for name in [finding.kind.as_str(), finding.role.as_str(), finding.evidence.as_str()] {
            raised.insert((finding.rule.to_string(), name));
        }
    }
    for row in catalogue::ROWS {
        let kinds = row.kinds.iter().map(|kind| kind.as_str());
        let roles = [Role::Client, Role::Server].into_iter().filter(|role| row.seen_from.includes(*role));
        let evidence = row.evidence.iter().flat_map(|grade| grade.evidence).map(|level| level.as_str());
        for name in kinds.chain(roles.map(Role::as_str)).chain(evidence) {
            assert!(raised.contains(&(row.id.to_string(), name)), "{} names {name}, and nothing raises it", row.id);
        }
    }
}

#[test]
fn every_finding_names_a_row_and_speaks_plainly() {
    for threat in threats() {
        for finding in heard(&threat) {
            assert!(row(&finding.rule).allows(&finding), "{}: {finding:?}", &*finding.rule);
            let text = serde_json::to_string(&finding).expect("serialises").to_lowercase();
            let said: BTreeSet<_> = finding.indicators.iter().collect();
            assert_eq!(said.len(), finding.indicators.len(), "{}: said twice: {:?}", threat.id, finding.indicators);
            assert!(!finding.indicators.iter().any(|line| line.trim().is_empty()), "{}", threat.id);
            assert_ne!(finding.observed.reply, Some(0), "{}: no code is no code", threat.id);
            for word in ["attack", "\"isp", " isp ", "hacker"] {
                assert!(!text.contains(word), "FP-16 {}: {text}", threat.id);
            }
        }
    }
}

#[test]
fn every_row_survives_one_octet_per_segment() {
    for threat in threats() {
        if threat.id == "FO-1" {
            continue;
        }
        let cut = Threat { talk: threat.talk.cut(1), ..threat };
        assert!(heard(&cut).iter().any(|finding| finding.rule == cut.id), "EV-1 {}", cut.id);
    }
}

#[test]
fn injected_octets_before_a_handshake_that_succeeds_are_one_finding() {
    let go = || greeted().s(OFFER).c("STARTTLS\r\n");
    let reply = tls(go().s("220 Ready to start TLS\r\n250 injected\r\n")).close();
    assert_eq!(hear(&reply, Vec::new()).kinds(), [Kind::ResponseInjection]);
    let command = tls(greeted().s(OFFER).c("STARTTLS\r\nNOOP\r\n").s("220 Ready to start TLS\r\n")).close();
    assert_eq!(hear(&command, Vec::new()).kinds(), [Kind::CommandInjection]);
}

/// Six sessions under TLS of one client with this host as the server.
fn known_client() -> Vec<Dialogue> {
    (0..6).map(|hour| honest().seen_by_server().at((hour - 1000) * 3600)).collect()
}

/// A client, known or not, delivers in cleartext although STARTTLS is offered to it.
fn a8(before: &[Dialogue]) -> Vec<Finding> {
    hear_after(before, &deliver(greeted().s(OFFER)).seen_by_server(), Vec::new()).findings
}

#[test]
fn a8_a_known_client_that_stops_using_tls() {
    let findings = a8(&known_client());
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.kind, &*finding.rule, finding.evidence), (Kind::StarttlsUnused, "A8", Evidence::Regression));
    assert!(
        finding.indicators.iter().any(|line| line.contains("SIZE") && line.contains("FO-14")),
        "{:?}",
        finding.indicators
    );
    assert_eq!(a8(&[]), [], "nothing is known of the client");
}

/// A strip, a session under TLS, and a second strip.
fn a9(known: Known) -> Vec<Finding> {
    let mut before = honest_history(40);
    before.push(deliver(greeted().s(STRIPPED)).at(-900 * 3600));
    before.push(honest().at(-800 * 3600));
    hear_after(&before, &deliver(greeted().s(STRIPPED)), rules(known)).findings
}

#[test]
fn a9_a_strip_that_comes_back() {
    let findings = a9(Known::History);
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.kind, &*finding.rule), (Kind::StarttlsStripped, "A9"));
}

/// A handshake that a reset ends, and a cleartext delivery an hour later.
fn d1() -> Vec<Finding> {
    let go = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    let failed = go.c(client_hello(0x0304)).ack(Side::Server).reset(Side::Server).at(-3600);
    hear_after(&[failed], &deliver(greeted().s(OFFER)), Vec::new()).findings
}

#[test]
fn d1_a_failed_handshake_and_the_delivery_in_clear_that_follows() {
    let go = || greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    let alert = [0x15, 3, 3, 0, 2, 2, 40];
    for (first, how) in [
        (go().c(client_hello(0x0304)).ack(Side::Server).reset(Side::Server), "a reset came from the server"),
        (go().c(client_hello(0x0304)).s(alert).close(), "the server sent alert 40"),
        (
            go().c(client_hello(0x0304)).s(server_hello(0x0303, 0xc02f, b"")).c(alert).close(),
            "the client sent alert 40",
        ),
        (go().ack(Side::Client).reset(Side::Client), "a reset came from the client"),
    ] {
        let half = hear(&first, Vec::new());
        assert_eq!(half.kinds(), [Kind::TlsHandshakeFailed], "{how}");
        assert_eq!((&*half.findings[0].rule, half.findings[0].severity), ("D1", Severity::Info));
        assert!(half.findings[0].indicators[0].contains(how), "{:?}", half.findings[0].indicators);
        let heard = hear_after(&[first.at(-3600)], &deliver(greeted().s(OFFER)), Vec::new());
        let finding = heard.findings.iter().find(|finding| finding.kind == Kind::DowngradeRetry).expect(how);
        assert_eq!((&*finding.rule, finding.evidence, finding.outcome), ("D1", Evidence::Suspicious, Outcome::Content));
        assert!(finding.indicators[0].contains(how), "{:?}", finding.indicators);
    }
    let healed = hear_after(
        &[go().c(client_hello(0x0304)).ack(Side::Server).reset(Side::Server).at(-7200), honest().at(-3600)],
        &deliver(greeted().s(OFFER)),
        Vec::new(),
    );
    assert_eq!(healed.kinds(), [], "TLS came about since");
}

#[test]
fn d1_the_retry_counts_in_every_shape_and_at_every_address() {
    let failed = || {
        let go = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
        go.c(client_hello(0x0304)).ack(Side::Server).reset(Side::Server).at(-3600)
    };
    let moved = |mut talk: Dialogue, client: &str, server: &str| {
        talk.flow.client = client.parse().expect("address");
        talk.flow.server = server.parse().expect("address");
        talk
    };
    let retries = |first: &Dialogue, retry: &Dialogue| {
        hear_after(std::slice::from_ref(first), retry, Vec::new()).kinds().contains(&Kind::DowngradeRetry)
    };
    let bare = "250 mx1.example.net\r\n";
    for (retry, how) in [
        (deliver(Dialogue::new(25).s(GREETING).c("HELO gw\r\n").s(bare)), "by HELO"),
        (deliver(greeted().s(STRIPPED)), "without an offer"),
        (moved(deliver(greeted().s(OFFER)), "192.0.2.10:50000", "198.51.100.77:25"), "another address of that name"),
        (moved(deliver(greeted().s(OFFER)), "[2001:db8::10]:50000", "[2001:db8:1::25]:25"), "the other family"),
    ] {
        assert!(retries(&failed(), &retry), "{how}");
    }
    let other = Dialogue::new(25).s("220 mx9.example.com ESMTP\r\n").c("EHLO gw\r\n").s("250 mx9.example.com\r\n");
    let other = moved(deliver(other), "192.0.2.10:50000", "198.51.100.77:25");
    assert!(!retries(&failed(), &other), "another server");
    let inbound = deliver(Dialogue::new(25).s(GREETING).c("HELO gw\r\n").s(bare)).seen_by_server();
    assert!(retries(&failed().seen_by_server(), &inbound));
}

#[test]
fn d1_a_handshake_that_stands_still_has_failed() {
    let go = || greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n").c(client_hello(0x0304));
    let retry_after = |secs: i64| {
        let mut retry = deliver(greeted().s(OFFER)).at(secs);
        retry.flow.client.set_port(50_000);
        retry
    };
    let kinds = |first: &Dialogue, retry: &Dialogue| {
        let mut engine = crate::scenario::engine(Vec::new());
        let mut heard = crate::scenario::Recorded::default();
        first.play(&mut engine, &mut heard);
        retry.play(&mut engine, &mut heard);
        heard.kinds()
    };
    // The hello is dropped: no answer arrives, and the client's FIN is not answered either.
    assert_eq!(kinds(&go(), &retry_after(30)), [Kind::DowngradeRetry]);
    let mut left = go().leave();
    left.packets.truncate(left.packets.len() - 2);
    assert_eq!(kinds(&left, &retry_after(1)), [Kind::DowngradeRetry]);
    // Slow, and not broken: another client delivers in cleartext in the meantime.
    assert_eq!(kinds(&go(), &retry_after(2)), []);
    assert_eq!(kinds(&tls(greeted().s(OFFER).c("STARTTLS\r\n").s("220 go\r\n")), &retry_after(30)), []);
}

#[test]
fn d1_says_how_long_nobody_answered() {
    let go = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    let heard = hear(&go.c(client_hello(0x0304)).ack(Side::Server).pause(300).leave(), Vec::new());
    let indicators = heard.findings[0].indicators.join("; ");
    assert!(indicators.contains("neither side sent anything for 300 s, and then the client closed"), "{indicators}");
}

#[test]
fn b1_a_server_that_used_to_answer_ehlo() {
    let never_offered: Vec<_> = (0..6).map(|hour| deliver(greeted().s(STRIPPED)).at((hour - 1000) * 3600)).collect();
    let refused = deliver(greeted().s("502 no\r\n").c("HELO gw\r\n").s("250 mx1.example.net\r\n"));
    let heard = hear_after(&never_offered, &refused, Vec::new());
    assert_eq!((heard.kinds(), heard.findings[0].severity), (vec![Kind::EhloDowngraded], Severity::Low));
    assert!(heard.findings[0].expected.detail.contains("EHLO was answered in 6 sessions"), "{:?}", heard.findings[0]);
    // With this host as server, a rule does not hide what the history has of the client.
    let before: Vec<_> = (0..6).map(|hour| honest().seen_by_server().at((hour - 1000) * 3600)).collect();
    let helo = Dialogue::new(25).s(GREETING).c("HELO gw.example.org\r\n").s("250 mx1.example.net\r\n");
    let helo = deliver(helo).seen_by_server();
    let heard = hear_after(&before, &helo, rules(Known::Required));
    assert!(heard.kinds().contains(&Kind::EhloDowngraded), "{:?}", heard.kinds());
}

#[test]
fn one_refusal_is_one_finding() {
    for reply in ["200 STRIPTLS\r\n", "250 ok\r\n"] {
        let refused = || greeted().s(OFFER).c("STARTTLS\r\n").s(reply);
        assert_eq!(hear(&deliver(refused()), Vec::new()).kinds(), [Kind::StarttlsRefused], "{reply}");
        let junk = refused().c(client_hello(0x0304)).s("500 bad syntax\r\n").close();
        assert_eq!(hear(&junk, Vec::new()).kinds(), [Kind::StarttlsRefused], "{reply}");
    }
}

#[test]
fn e3_a_response_that_nobody_asked_for_is_one() {
    for lines in ["AUTH PLAIN\r\nAGEAYg==\r\n", "AUTH LOGIN YQ==\r\nYg==\r\n"] {
        let injected = greeted().s(OFFER).c(format!("STARTTLS\r\nEHLO x\r\n{lines}")).s("220 go\r\n");
        let heard = hear(&tls(injected).close(), Vec::new());
        assert_eq!(heard.kinds(), [Kind::CommandInjection, Kind::AuthPlaintext], "{lines:?}");
    }
}

#[test]
fn e4_a_second_reply_to_ehlo_is_no_capability() {
    let heard =
        hear(&greeted().s(format!("{OFFER}250 2.0.0 Ok\r\n")).c("QUIT\r\n").s("221 Bye\r\n").close(), Vec::new());
    assert_eq!((heard.kinds(), &*heard.findings[0].rule), (vec![Kind::ResponseInjection], "E4"));
}

#[test]
fn fo4_a_reset_from_elsewhere() {
    let mut talk = greeted().s(OFFER).c("STARTTLS\r\n").ack(Side::Server).reset(Side::Server);
    talk.packets.last_mut().expect("reset").ttl = 41;
    let indicators = hear(&talk, Vec::new()).findings[0].indicators.join("; ");
    assert!(
        indicators.contains("the reset came with TTL 41, the peer's other packets with 64 to 64 (FO-4)"),
        "{indicators}"
    );
}

#[test]
fn fo8_a_reply_that_is_faster_than_the_handshake() {
    let mut talk = deliver(greeted().s(OFFER).c("STARTTLS\r\n").s("454 4.7.0 not now\r\n"));
    for packet in talk.packets.iter_mut().skip(1) {
        packet.at += 40_000_000;
    }
    let indicators = hear(&talk, Vec::new()).findings[0].indicators.join("; ");
    assert!(indicators.contains("SYN and SYN-ACK of this connection took 41.00 ms (FO-8)"), "{indicators}");
}

#[test]
fn fo11_words_that_no_server_writes() {
    let forged = greeted().s("502 Error: command \"EHLO\" not implemented\r\n").c("HELO gw\r\n");
    let indicators =
        hear_after(&honest_history(6), &deliver(forged.s("250 mx1\r\n")), Vec::new()).findings[0].indicators.join("; ");
    assert!(
        indicators.contains("its reply 502 has no enhanced code (FO-11)") && indicators.contains("word for word"),
        "{indicators}"
    );
}

#[test]
fn fo1_copies_beyond_the_bound_are_counted() {
    let mut talk = greeted().s(STRIPPED).ack(Side::Client);
    let reply = talk.packets.iter().find(|packet| packet.payload.starts_with(b"250-mx1")).expect("reply").clone();
    for letter in b'A'..=b'L' {
        talk.packets.push(OwnedSegment { payload: vec![letter; reply.payload.len()], ..reply.clone() });
    }
    let heard = hear(&talk.c("QUIT\r\n").s("221 Bye\r\n").close(), Vec::new());
    assert!(
        heard.findings[0].indicators.iter().any(|line| line.starts_with("9 more ranges")),
        "{:?}",
        heard.findings[0].indicators
    );
}

#[test]
fn fo13_the_scope_as_a_server() {
    let mut before = Vec::new();
    for host in 1..4_u8 {
        for hour in 0..6 {
            let mut talk = honest().seen_by_server().at((hour - 1000) * 3600);
            talk.flow.client = ([192, 0, 2, host], 40_000).into();
            before.push(talk);
        }
        let mut lost = deliver(greeted().s(OFFER)).seen_by_server().at(-60);
        lost.flow.client = ([192, 0, 2, host], 40_000).into();
        before.push(lost);
    }
    let last = before.pop().expect("a session");
    let finding = hear_after(&before, &last, Vec::new()).findings.remove(0);
    assert_eq!(finding.rule, "A8");
    assert!(
        finding.indicators.iter().any(|line| line.contains("every client seen in the last hour (3)")),
        "{:?}",
        finding.indicators
    );
}

#[test]
fn fo2_the_length_and_the_order_are_compared_with_history() {
    let heard = hear_after(&honest_history(6), &deliver(greeted().s(STRIPPED)), Vec::new());
    let line = heard.findings[0].indicators.iter().find(|line| line.contains("FO-2")).expect("FO-2");
    assert!(line.contains("-14 against") && line.contains("missing: STARTTLS; added: none"), "{line}");
    assert!(line.contains("order of the rest unchanged"), "{line}");
}

#[test]
fn fo8_a_reply_that_is_faster_than_light() {
    // The round trip of the legitimate sessions is 30 ms; the forged refusal arrives after 1 ms.
    let slow: Vec<_> = honest_history(6).into_iter().map(|talk| talk.far(30)).collect();
    let heard = hear_after(
        &slow,
        &deliver(greeted().s(OFFER).c("STARTTLS\r\n").s("454 TLS not available due to temporary reason\r\n")),
        Vec::new(),
    );
    let indicators = &heard.findings[0].indicators;
    assert!(
        indicators.iter().any(|line| line.contains("reply to STARTTLS") && line.contains("FO-8")),
        "{indicators:?}"
    );
    assert!(
        indicators.iter().any(|line| line.contains("ENHANCEDSTATUSCODES") && line.contains("FO-11")),
        "{indicators:?}"
    );
    assert!(indicators.iter().any(|line| line.contains("word for word")), "{indicators:?}");
    assert!(indicators.iter().any(|line| line.starts_with("scope: ")), "{indicators:?}");
}

#[test]
fn fo4_fo6_another_stack_answers_from_another_distance() {
    // MSS 1460, SACK permitted, timestamps, window scale; TTL 53: the server itself.
    let server = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7];
    // MSS 1380 and no other option: the answer of a common firewall in the server's place.
    let proxy = [2, 4, 0x05, 0x64];
    let dressed = |mut talk: Dialogue, options: &[u8], ttl: u8| {
        for packet in talk.packets.iter_mut().filter(|packet| packet.from == Side::Server) {
            packet.ttl = ttl;
            if packet.flags.contains(TcpFlags::SYN) {
                packet.options = options.to_vec();
            }
        }
        talk
    };
    let before: Vec<_> = honest_history(6).into_iter().map(|talk| dressed(talk, &server, 53)).collect();
    let mut talk = dressed(deliver(greeted().s(STRIPPED)), &proxy, 64);
    // One packet has a different origin again.
    talk.packets
        .iter_mut()
        .rfind(|packet| packet.from == Side::Server && !packet.payload.is_empty())
        .expect("packet")
        .ttl = 240;
    let heard = hear_after(&before, &talk, Vec::new());
    let indicators = heard.findings[0].indicators.join("\n");
    for sign in [
        "SYN-ACK with TTL 64, before 53",
        "MSS 1380, the default of a Cisco ASA",
        "option kinds [2], before [2, 4, 8, 1, 3]",
    ] {
        assert!(indicators.contains(sign), "{sign}: {indicators}");
    }
    let same = hear_after(&before, &dressed(deliver(greeted().s(STRIPPED)), &server, 53), Vec::new());
    assert!(!same.findings[0].indicators.iter().any(|line| line.contains("FO-4") || line.contains("FO-6")), "{same:?}");
}
