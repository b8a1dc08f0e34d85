//! The dialogues of the rows A to G of docs/threats.md: one or more for each row that one connection shows, and those of
//! the rows that several connections, or a report, show.

use smtpwatch_core::{
    Finding, Role, Side, Timestamp,
    day::Day,
    finding::{Evidence, Kind, Outcome},
    judge::{
        RuleId,
        catalogue::Row,
        reported::{self, Comparison, OwnRecord, Reported},
    },
    offers::Offers,
    policy::rule::{Rule, StarttlsRule},
};

use crate::scenario::{
    Dialogue, GREETING, MASKED, OFFER, OwnedSegment, STRIPPED, client_hello, deliver, greeted, hear_after, honest,
    honest_history, server_hello, tls,
};

/// How the peer is known.
#[derive(Clone, Copy)]
pub enum Known {
    Nothing,
    History,
    Required,
}

/// One dialogue, and what the engine reports under the identifier of its row.
pub struct Threat {
    pub id: &'static str,
    pub kind: Kind,
    pub known: Known,
    pub talk: Dialogue,
    pub evidence: Evidence,
    pub outcome: Outcome,
}

/// The rows that one connection shows.
pub fn threats() -> Vec<Threat> {
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

/// The findings about it.
pub fn heard(threat: &Threat) -> Vec<Finding> {
    heard_as(threat, threat.talk.role)
}

/// The findings about it with this host in `role`, which its history has as well.
pub fn heard_as(threat: &Threat, role: Role) -> Vec<Finding> {
    let mut before = match threat.known {
        Known::History => honest_history(6),
        Known::Nothing | Known::Required => Vec::new(),
    };
    let mut talk = threat.talk.clone();
    before.iter_mut().chain([&mut talk]).for_each(|dialogue| dialogue.role = role);
    hear_after(&before, &talk, rules(threat.known)).findings
}

/// A client, known or not, delivers in cleartext although STARTTLS is offered to it.
pub fn a8(before: &[Dialogue]) -> Vec<Finding> {
    hear_after(before, &deliver(greeted().s(OFFER)).seen_by_server(), Vec::new()).findings
}

/// Six sessions under TLS of one client with this host as the server.
pub fn known_client() -> Vec<Dialogue> {
    (0..6).map(|hour| honest().seen_by_server().at((hour - 1000) * 3600)).collect()
}

/// A strip, a session under TLS, and a second strip.
pub fn a9(known: Known) -> Vec<Finding> {
    let mut before = honest_history(40);
    before.push(deliver(greeted().s(STRIPPED)).at(-900 * 3600));
    before.push(honest().at(-800 * 3600));
    hear_after(&before, &deliver(greeted().s(STRIPPED)), rules(known)).findings
}

/// A handshake that a reset ends, and a cleartext delivery an hour later, with this host in `role`.
pub fn d1(role: Role) -> Vec<Finding> {
    let seen = |mut talk: Dialogue| {
        talk.role = role;
        talk
    };
    let go = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    let failed = go.c(client_hello(0x0304)).ack(Side::Server).reset(Side::Server).at(-3600);
    hear_after(&[seen(failed)], &seen(deliver(greeted().s(OFFER))), Vec::new()).findings
}

/// A TLS report that this host's own record contradicts.
pub fn g9() -> Vec<Finding> {
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

pub fn row(id: &str) -> &'static Row {
    id.parse::<RuleId>().expect("an identifier of the catalogue").row()
}

pub fn rules(known: Known) -> Vec<Rule> {
    match known {
        Known::Required => vec![Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }],
        Known::Nothing | Known::History => Vec::new(),
    }
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
