//! Pairing of replies with commands: what can shift it, and what becomes unknown as a result. See `docs/pairing.md`.

use smtpwatch_core::{
    Finding, Role, Side,
    engine::SessionResult,
    finding::{Evidence, Kind, Outcome, Severity},
    policy::rule::{Rule, StarttlsRule},
};

use crate::scenario::{
    Dialogue, GREETING, OFFER, OwnedSegment, Recorded, STRIPPED, certificate, client_hello, deliver, finished, greeted,
    hear, hear_after, honest, honest_history, sealed, server_hello, tls,
};

const PLAIN: &str = "AUTH PLAIN AHVzZXIAcGFzcw==\r\n";
const GO: &str = "220 2.0.0 go\r\n";

fn required() -> Vec<Rule> {
    vec![Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }]
}

fn submission() -> Dialogue {
    Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s("250 mx1.example.net\r\n")
}

fn quit(talk: Dialogue) -> Dialogue {
    talk.c("QUIT\r\n").s("221 Bye\r\n").close()
}

/// Both roles, in whole segments and byte by byte.
fn forms(talk: &Dialogue) -> Vec<(&'static str, Dialogue)> {
    vec![
        ("client", talk.clone()),
        ("client, byte by byte", talk.cut(1)),
        ("server", talk.clone().seen_by_server()),
        ("server, byte by byte", talk.cut(1).seen_by_server()),
        ("a capture without directions", talk.clone().without_directions()),
    ]
}

fn rules_of(heard: &Recorded) -> Vec<(Kind, &str)> {
    heard.findings.iter().map(|finding| (finding.kind, &*finding.rule)).collect()
}

fn json(heard: &Recorded) -> String {
    heard.findings.iter().map(|finding| serde_json::to_string(finding).expect("serialises")).collect()
}

/// Lines that are not a reply.
const STRAYS: [&str; 5] = ["4.7.0 TLS not available\r\n", "\r\n", "junk\r\n", "25\r\n", "2500 x\r\n"];

#[test]
fn starttls_answered_by_a_line_without_a_code_is_refused() {
    for stray in STRAYS {
        let asked = || greeted().s(OFFER).c("STARTTLS\r\n").s(stray);
        for (form, talk) in forms(&quit(asked())) {
            let heard = hear(&talk, Vec::new());
            assert_eq!(rules_of(&heard), [(Kind::StarttlsRefused, "C3")], "{stray:?} {form}");
            assert_eq!(heard.findings[0].evidence, Evidence::Suspicious);
            assert_eq!(heard.findings[0].observed.reply, None, "there was no code");
        }
        for (form, talk) in forms(&deliver(asked())) {
            let heard = hear(&talk, required());
            let kinds = heard.kinds();
            assert_eq!(kinds, [Kind::StarttlsRefused, Kind::PolicyViolation], "{stray:?} {form}");
            assert_eq!(heard.sessions[0].messages, 1);
        }
        // The client closes, or sends QUIT and receives no reply.
        let closed = hear(&asked().ack(Side::Client).leave(), Vec::new());
        assert_eq!(rules_of(&closed), [(Kind::StarttlsRefused, "C3")], "{stray:?}");
    }
}

#[test]
fn a_line_without_a_code_before_the_go_ahead_changes_nothing() {
    for stray in STRAYS {
        for (form, talk) in forms(&tls(greeted().s(OFFER).c("STARTTLS\r\n").s(stray).s(GO)).close()) {
            let heard = hear(&talk, required());
            assert_eq!((heard.kinds(), heard.sessions[0].result), (vec![], SessionResult::Tls), "{stray:?} {form}");
        }
        // A client that does not wait.
        let early = greeted().s(OFFER).c([b"STARTTLS\r\n".to_vec(), client_hello(0x0304)].concat()).s(stray).s(GO);
        let early = early.s(server_hello(0x0304, 0x1301, b"")).c(sealed(53)).s(sealed(80)).close();
        assert_eq!(hear(&early, required()).kinds(), [], "{stray:?}");
        // The client treats the line as the go-ahead: whether it was one is not known.
        let late = greeted().s(OFFER).c("STARTTLS\r\n").s(stray).c(client_hello(0x0304)).leave();
        let heard = hear(&late, required());
        assert_eq!((heard.kinds(), heard.sessions[0].result), (vec![], SessionResult::Unknown), "{stray:?}");
    }
}

#[test]
fn what_follows_a_line_without_a_code_finds_its_reply() {
    let transaction = || {
        greeted()
            .s(STRIPPED)
            .c("MAIL FROM:<a@example.org>\r\n")
            .s("250 ok\r\n")
            .c("RCPT TO:<b@example.net>\r\n")
            .s("250 ok\r\n")
    };
    let message = "Subject: x\r\n\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\nSTARTTLS\r\nQUIT\r\n.\r\n";
    for stray in STRAYS {
        // Before or in place of the reply to each command of a session.
        for at in 0..3 {
            let noise = |number: usize| if number == at { stray } else { "" };
            let talk = greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s(format!("{}250 ok\r\n", noise(0)));
            let talk = talk.c("RCPT TO:<b@example.net>\r\n").s(format!("{}250 ok\r\n", noise(1)));
            let talk = talk.c("DATA\r\n").s(format!("{}354 go\r\n", noise(2))).c(message).s("250 queued\r\n");
            for (form, talk) in forms(&quit(talk)) {
                let heard = hear(&talk, required());
                assert!(!heard.kinds().contains(&Kind::AuthPlaintext), "{stray:?} {at} {form}: {:?}", heard.kinds());
                assert!(heard.kinds().contains(&Kind::PolicyViolation), "{stray:?} {at} {form}: {:?}", heard.kinds());
            }
        }
        for at in 0..2 {
            let reply = |number: usize| if number == at { stray } else { "250 ok\r\n" };
            let talk = greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s(reply(0));
            let talk = talk.c("RCPT TO:<b@example.net>\r\n").s(reply(1)).c("DATA\r\n").s("354 go\r\n");
            let heard = hear(&quit(talk.c(message).s("250 queued\r\n")), Vec::new());
            assert_eq!((heard.kinds(), heard.sessions[0].messages), (vec![], 1), "{stray:?} is the reply {at}");
        }
        // In a pipelined group (RFC 2920).
        let group = greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n");
        for replies in [format!("{stray}250 ok\r\n354 go\r\n"), format!("250 ok\r\n{stray}354 go\r\n")] {
            let heard = hear(&quit(group.clone().s(&replies).c(message).s("250 queued\r\n")), Vec::new());
            assert_eq!((heard.kinds(), heard.sessions[0].messages), (vec![], 1), "{replies:?}");
        }
        // The reply arrives after the client has continued: it is late, and answers no other command.
        let late = greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s(stray).c("RCPT TO:<b@example.net>\r\n");
        let late = late.s("250 ok\r\n250 ok\r\n").c("DATA\r\n").s("354 go\r\n").c(message).s("250 queued\r\n");
        assert_eq!(hear(&quit(late), Vec::new()).kinds(), [], "{stray:?}");
        // DATA that the client gives up, and DATA after which it sends text anyway.
        let refused = transaction().c("DATA\r\n").s(stray).c("RSET\r\n").s("250 ok\r\n").c(PLAIN).s("235 ok\r\n");
        assert_eq!(hear(&quit(refused), Vec::new()).kinds(), [Kind::AuthPlaintext], "{stray:?}");
        let text = hear(&transaction().c("DATA\r\n").s(stray).c(message).s("250 queued\r\n").close(), Vec::new());
        assert_eq!((text.kinds(), text.sessions[0].result), (vec![], SessionResult::Unknown), "{stray:?}");
        // BDAT without an offer.
        let chunk = transaction().c("BDAT 5 LAST\r\nabc\r\n").s(stray).s("250 ok\r\n");
        assert_eq!(hear(&quit(chunk), required()).sessions[0].messages, 1, "{stray:?}");
    }
}

#[test]
fn auth_answered_by_a_line_without_a_code_hides_no_credential() {
    for stray in STRAYS {
        for (talk, kinds) in [
            (quit(submission().c(PLAIN).s(stray)), vec![Kind::AuthPlaintext]),
            (quit(submission().c("AUTH PLAIN\r\n").s(stray)), vec![]),
            (
                quit(submission().c("AUTH PLAIN\r\n").s(stray).c("AHVzZXIAcGFzcw==\r\n").s("500 what?\r\n")),
                vec![Kind::AuthPlaintext],
            ),
            (
                quit(
                    submission()
                        .c("AUTH LOGIN\r\n")
                        .s(stray)
                        .c("dXNlcg==\r\n")
                        .s("500 what?\r\n")
                        .c("cGFzcw==\r\n")
                        .s("500 what?\r\n"),
                ),
                vec![Kind::AuthPlaintext],
            ),
        ] {
            for (form, talk) in forms(&talk) {
                let heard = hear(&talk, Vec::new());
                assert_eq!(heard.kinds(), kinds, "{stray:?} {form}");
                let json = json(&heard);
                assert!(!json.contains("cGFzcw") && !json.contains("AHVzZXI"), "{json}");
            }
        }
    }
}

#[test]
fn lines_that_a_server_may_pass_over_shift_nothing() {
    // Blank lines and NULs: answered by an error, or not answered.
    for blank in ["\r\n", "\n", " \r\n", "\0\r\n", "\0\0\n"] {
        for answer in ["500 5.5.2 bad syntax\r\n", ""] {
            let session = |talk: Dialogue| tls(talk.c("STARTTLS\r\n").s(GO)).close();
            for (place, talk) in [
                ("before EHLO", session(Dialogue::new(25).s(GREETING).c(blank).s(answer).c("EHLO gw\r\n").s(OFFER))),
                (
                    "with EHLO",
                    session(
                        Dialogue::new(25).s(GREETING).c(format!("{blank}EHLO gw\r\n")).s(format!("{answer}{OFFER}")),
                    ),
                ),
                ("after EHLO", session(greeted().s(OFFER).c(blank).s(answer))),
            ] {
                for (form, talk) in forms(&talk) {
                    let heard = hear(&talk, required());
                    assert_eq!(
                        (heard.kinds(), heard.sessions[0].result),
                        (vec![], SessionResult::Tls),
                        "{blank:?} {answer:?} {place} {form}"
                    );
                }
            }
            let refused = greeted().s(OFFER).c(format!("{blank}STARTTLS\r\n")).s(format!("{answer}454 no\r\n"));
            assert_eq!(
                rules_of(&hear(&quit(refused), Vec::new())),
                [(Kind::StarttlsRefused, "C1")],
                "{blank:?} {answer:?}"
            );
        }
        // The error is the reply to what follows the blank line.
        let refused = hear(&quit(greeted().s(OFFER).c(format!("{blank}STARTTLS\r\n")).s("502 no\r\n")), Vec::new());
        assert_eq!(rules_of(&refused), [(Kind::StarttlsRefused, "C2")], "{blank:?}");
        let helo = Dialogue::new(25).s(GREETING).c(format!("{blank}EHLO gw.example.org\r\n")).s("502 no\r\n");
        let helo =
            hear_after(&honest_history(9), &deliver(helo.c("HELO gw.example.org\r\n").s("250 mx1\r\n")), Vec::new());
        assert_eq!(helo.kinds(), [Kind::EhloDowngraded], "{blank:?}");
    }
}

#[test]
fn a_proxy_header_that_the_server_does_not_know_is_no_finding() {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\xc0\0\x02\x01\xc3\x50\0\x19";
    let errors = "500 what?\r\n500 what?\r\n500 what?\r\n221 bye\r\n";
    for (form, talk) in forms(&Dialogue::new(25).c(v2).s(GREETING).s(errors).close()) {
        assert_eq!(hear(&talk, required()).kinds(), [], "{form}");
    }
    let v1 = Dialogue::new(25).c("PROXY TCP4 203.0.113.7 192.0.2.1 50000 25\r\n").s(GREETING).s("500 what?\r\n");
    for (form, talk) in forms(&tls(v1.c("EHLO gw\r\n").s(OFFER).c("STARTTLS\r\n").s(GO)).close()) {
        let heard = hear(&talk, required());
        assert_eq!((heard.kinds(), heard.sessions[0].result), (vec![], SessionResult::Tls), "{form}");
    }
}

#[test]
fn any_3yz_reply_to_data_begins_the_message() {
    for code in ["354", "350", "334", "300", "399", "355"] {
        for multi in [false, true] {
            let reply = if multi { format!("{code}-go\r\n{code} on\r\n") } else { format!("{code} go\r\n") };
            let talk = greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s("250 ok\r\n");
            let talk = talk.c("RCPT TO:<b@example.net>\r\n").s("250 ok\r\n").c("DATA\r\n").s(reply);
            let talk =
                quit(talk.c("Subject: x\r\n\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\nhunter\r\n.\r\n").s("250 queued\r\n"));
            for (form, talk) in forms(&talk) {
                let heard = hear(&talk, required());
                assert!(heard.kinds().contains(&Kind::PolicyViolation), "{code} {form}: {:?}", heard.kinds());
                assert!(!heard.kinds().contains(&Kind::AuthPlaintext), "{code} {form}: {:?}", heard.kinds());
                assert_eq!(heard.sessions[0].messages, 1, "{code} {form}");
                assert!(!json(&heard).contains("hunter"));
            }
        }
    }
}

#[test]
fn auth_login_that_goes_on_after_a_refusal_is_a_credential() {
    let (user, password) = ("dXNlcg==\r\n", "cGFzcw==\r\n");
    for code in [
        "503 no\r\n",
        "535 5.7.8 no\r\n",
        "530 5.7.0 TLS first\r\n",
        "504 5.5.4 no\r\n",
        "454 4.7.0 not at the moment\r\n",
        "432-4.7.12 a password\r\n432 4.7.12 transition is needed\r\n",
        "421 4.3.2 closing\r\n",
    ] {
        for (how, talk) in [
            (
                "waits",
                submission().c("AUTH LOGIN\r\n").s(code).c(user).s("500 what?\r\n").c(password).s("500 what?\r\n"),
            ),
            (
                "does not wait",
                submission()
                    .c(format!("AUTH LOGIN\r\n{user}{password}"))
                    .s(format!("{code}500 what?\r\n500 what?\r\n")),
            ),
            (
                "user name asked for",
                submission().c("AUTH LOGIN\r\n").s("334 x\r\n").c(user).s(code).c(password).s("500 what?\r\n"),
            ),
            (
                "user name at once",
                submission().c(format!("AUTH LOGIN {}", user)).s(code).c(password).s("500 what?\r\n"),
            ),
            (
                "in clear",
                submission()
                    .c("AUTH LOGIN\r\n")
                    .s(code)
                    .c("user\r\n")
                    .s("500 what?\r\n")
                    .c("pass word\r\n")
                    .s("500 what?\r\n"),
            ),
            ("PLAIN", submission().c("AUTH PLAIN\r\n").s(code).c("AHVzZXIAcGFzcw==\r\n").s("500 what?\r\n")),
        ] {
            for (form, talk) in forms(&quit(talk)) {
                let heard = hear(&talk, Vec::new());
                assert_eq!(rules_of(&heard), [(Kind::AuthPlaintext, "F7")], "{code} {how} {form}");
                assert_eq!(heard.findings[0].outcome, Outcome::Credential);
            }
        }
        // No part of the password was sent.
        for talk in [
            submission().c("AUTH LOGIN\r\n").s(code),
            submission().c("AUTH LOGIN\r\n").s("334 x\r\n").c(user).s(code),
            submission().c("AUTH LOGIN\r\n").s(code).c("NOOP\r\n").s("250 ok\r\n").c("HELP\r\n").s("214 x\r\n"),
            submission().c("AUTH CRAM-MD5\r\n").s(code).c("FROB\r\n").s("500 what?\r\n"),
        ] {
            assert_eq!(hear(&quit(talk), Vec::new()).kinds(), [], "{code}");
        }
    }
    // No reply at all.
    let unanswered = submission().c(format!("AUTH LOGIN\r\n{user}{password}")).ack(Side::Server).reset(Side::Server);
    assert_eq!(hear(&unanswered, Vec::new()).kinds(), [Kind::AuthPlaintext]);
}

#[test]
fn eager_auth_and_quit_is_the_credential_alone() {
    let lines = "AUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\nQUIT\r\n";
    // The server parses the responses as commands, or ignores them.
    for replies in [
        "503 no\r\n500 what?\r\n500 what?\r\n221 bye\r\n",
        "503 no\r\n221 bye\r\n",
        "503 no\r\n500 what?\r\n221 bye\r\n",
    ] {
        for (form, talk) in forms(&submission().c(lines).s(replies).close()) {
            assert_eq!(rules_of(&hear(&talk, Vec::new())), [(Kind::AuthPlaintext, "F7")], "{replies:?} {form}");
        }
    }
}

#[test]
fn after_the_go_ahead_what_is_not_tls_is_a_failed_handshake() {
    let go = || greeted().s(OFFER).c("STARTTLS\r\n").s("220 ready\r\n");
    for said in [
        "421 4.4.2 timeout exceeded\r\n",
        "454 4.7.0 TLS not available\r\n",
        "554-5.7.0 no\r\n554 5.7.0 bye\r\n",
        "TLS engine broken\r\n",
        "220 ready\r\n",
        "\r\n\r\n421 bye\r\n",
    ] {
        for pause in [0, 300] {
            for (form, talk) in forms(&go().ack(Side::Client).pause(pause).s(said).close()) {
                let heard = hear(&talk, Vec::new());
                assert_eq!(rules_of(&heard), [(Kind::TlsHandshakeFailed, "C6")], "{said:?} {form}");
                let finding = &heard.findings[0];
                assert_eq!(finding.evidence, Evidence::Suspicious, "{said:?} {form}");
                let line = said.trim().lines().next().expect("line");
                assert!(
                    finding.indicators.iter().any(|text| text.contains(line)),
                    "{said:?}: {:?}",
                    finding.indicators
                );
                assert!(
                    finding.transcript.iter().any(|shown| shown.text == line),
                    "{said:?}: {:?}",
                    finding.transcript
                );
                let waited = finding.indicators.iter().any(|text| text.contains("300 s"));
                assert_eq!(waited, pause == 300, "{said:?} {form}: {:?}", finding.indicators);
            }
        }
    }
    // Blank lines have no meaning.
    for (form, talk) in forms(&go().s("\r\n\r\n").ack(Side::Client).leave()) {
        assert_eq!(rules_of(&hear(&talk, Vec::new())), [(Kind::TlsHandshakeFailed, "D1")], "{form}");
    }
    for blank in ["\r\n", "\n", "\r\n\r\n", " \r\n", "\0\0"] {
        for (form, talk) in forms(&tls(go().s(blank)).close()) {
            let heard = hear(&talk, required());
            assert_eq!((heard.kinds(), heard.sessions[0].result), (vec![], SessionResult::Tls), "{blank:?} {form}");
        }
    }
}

#[test]
fn the_injected_reply_is_in_the_finding() {
    let talk =
        tls(greeted().s(OFFER).c("STARTTLS\r\n").s("220 ready\r\n250-example.org\r\n250 AUTH LOGIN\r\n")).close();
    for (form, talk) in forms(&talk) {
        let heard = hear(&talk, Vec::new());
        assert_eq!(rules_of(&heard), [(Kind::ResponseInjection, "E2")], "{form}");
        let finding = &heard.findings[0];
        assert!(
            finding.indicators[0].contains("\"250-example.org\", \"250 AUTH LOGIN\""),
            "{form}: {:?}",
            finding.indicators
        );
        assert!(finding.transcript.iter().any(|line| line.text == "250 AUTH LOGIN"), "{:?}", finding.transcript);
    }
    // The quoted text may be a secret of the same session.
    let secret =
        tls(Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s(OFFER).c(PLAIN).s("530 TLS first\r\n").c("STARTTLS\r\n"));
    let mut talk = secret.clone();
    let hello = talk.packets.iter().position(|packet| packet.payload.first() == Some(&0x16)).expect("hello");
    talk.packets.truncate(hello);
    let talk =
        Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s(OFFER).c(PLAIN).s("530 TLS first\r\n").c("STARTTLS\r\n");
    let talk = tls(talk.s("220 go\r\n250 AHVzZXIAcGFzcw== is user, pass\r\n")).close();
    let json = json(&hear(&talk, Vec::new()));
    assert!(!json.contains("AHVzZXI") && json.contains("[secret] is [secret]"), "{json}");
}

#[test]
fn what_a_refusal_quotes_is_no_verb_unless_it_is_the_command() {
    let mail =
        || greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s("250 ok\r\n").c("RCPT TO:<b@example.net>\r\n");
    for refusal in [
        "550 5.7.1 blocked, call +1 800 555 XXXX\r\n",
        "550 5.1.1 \"XXXX\" is not here\r\n",
        "550 5.1.1 <XXXX>: no such user\r\n",
        "501 5.1.3 bad address \"XXXX\"\r\n",
        "500 call +1 800 555 XXXX\r\n",
        "500 5.5.2 unrecognized \"RCPT TO:<XXXX>\"\r\n",
    ] {
        assert_eq!(hear(&quit(mail().s(refusal)), Vec::new()).kinds(), [], "{refusal:?}");
    }
    for (command, refusal) in [
        ("VRFY XXXX\r\n", "502 5.5.1 \"XXXX\": not verified\r\n"),
        ("HELP XXXX\r\n", "500 unknown XXXX\r\n"),
        ("EHLO XXXX\r\n", "500 unknown \"XXXX\"\r\n"),
    ] {
        assert_eq!(hear(&quit(greeted().s(STRIPPED).c(command).s(refusal)), Vec::new()).kinds(), [], "{refusal:?}");
    }
    // This host is the server: what it quotes was not on the path.
    let talk = quit(greeted().s("500 5.5.1 Command unrecognized: \"XXXX gw.example.org\"\r\n"));
    assert_eq!(hear(&talk, Vec::new()).kinds(), [Kind::CommandRewritten]);
    assert_eq!(hear(&talk.seen_by_server(), Vec::new()).kinds(), []);
}

#[test]
fn text_of_a_refused_chunk_is_no_command() {
    let chunk = "Subject: x\r\n\r\nSTARTTLS\r\nEHLO x\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\nhunter\r\n";
    let errors = "500 what?\r\n".repeat(6);
    let transaction = || {
        greeted()
            .s(STRIPPED)
            .c("MAIL FROM:<a@example.org>\r\n")
            .s("250 ok\r\n")
            .c("RCPT TO:<b@example.net>\r\n")
            .s("250 ok\r\n")
    };
    let bdat = format!("BDAT {} LAST\r\n", chunk.len());
    for (how, talk) in [
        ("one write", transaction().c(format!("{bdat}{chunk}")).s(format!("500 what?\r\n{errors}"))),
        ("two writes", transaction().c(&bdat).c(chunk).s(format!("500 what?\r\n{errors}"))),
        ("the refusal between them", transaction().c(&bdat).s("500 what?\r\n").c(chunk).s(&errors)),
    ] {
        for (form, talk) in forms(&quit(talk)) {
            let heard = hear(&talk, Vec::new());
            assert_eq!(heard.kinds(), [], "{how} {form}");
            assert_eq!(heard.sessions[0].gaps, 0);
        }
    }
    // A server without ESMTP has offered nothing.
    let helo = Dialogue::new(25).s(GREETING).c("HELO gw.example.org\r\n").s("250 mx1.example.net\r\n");
    let helo = quit(helo.c(format!("{bdat}{chunk}")).s(format!("500 what?\r\n{errors}")));
    assert_eq!(hear(&helo, Vec::new()).kinds(), []);
    // A command that the server parses from the text: the pairing of replies is lost, and that is counted.
    let taken = transaction()
        .c(format!("{bdat}{chunk}"))
        .s(format!("500 what?\r\n{}235 ok\r\n250 ok\r\n", "500 what?\r\n".repeat(4)));
    let heard = hear(&taken.close(), Vec::new());
    assert_eq!((heard.kinds(), heard.sessions[0].result), (vec![], SessionResult::Unknown));
}

#[test]
fn a_session_that_was_refused_as_a_whole_is_no_downgrade() {
    for early in [
        "STARTTLS\r\n",
        "MAIL FROM:<a@example.org>\r\n",
        "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n",
    ] {
        for refusal in ["554 SMTP synchronization error\r\n", "550 5.7.1 no\r\n", "421 4.3.2 no\r\n"] {
            let talk = Dialogue::new(25)
                .s(GREETING)
                .c(format!("EHLO gw.example.org\r\n{early}"))
                .s(refusal)
                .ack(Side::Client)
                .close();
            assert_eq!(hear_after(&honest_history(9), &talk, Vec::new()).kinds(), [], "{early:?} {refusal:?}");
        }
    }
}

#[test]
fn a_server_that_always_doubles_its_offer_is_known_by_its_history() {
    let doubled = OFFER.replace("250 8BITMIME", "250 STARTTLS");
    let session = |offer: &str| tls(greeted().s(offer).c("STARTTLS\r\n").s(GO)).close();
    let before: Vec<_> = (0..9).map(|hour| session(&doubled).at((hour - 1000) * 3600)).collect();
    assert_eq!(hear_after(&before, &session(&doubled), Vec::new()).kinds(), []);
    let tripled = doubled.replace("250-ETRN", "250-STARTTLS");
    assert_eq!(rules_of(&hear_after(&before, &session(&tripled), Vec::new())), [(Kind::StreamTampering, "A7")]);
    assert_eq!(
        rules_of(&hear_after(&honest_history(9), &session(&doubled), Vec::new())),
        [(Kind::StreamTampering, "A7")]
    );
}

#[test]
fn nuls_with_an_acknowledgment_leave_the_proof_readable() {
    let mut talk = honest().seen_by_server();
    let ehlo = talk.packets.iter().position(|packet| packet.payload.starts_with(b"EHLO")).expect("EHLO");
    let nuls = OwnedSegment { payload: vec![0, 0], at: talk.packets[ehlo].at + 1000, ..talk.packets[ehlo].clone() };
    for place in [ehlo, ehlo + 1] {
        let mut talk = talk.clone();
        talk.packets.insert(place, nuls.clone());
        let heard = hear(&talk, Vec::new());
        assert_eq!(heard.kinds(), [Kind::StreamTampering], "{place}");
        let text = json(&heard);
        assert!(text.contains("250-STARTTLS") && text.contains("2 NUL bytes"), "{place}: {text}");
    }
    talk.packets.truncate(ehlo);
}

#[test]
fn a_server_that_demands_what_it_does_not_list_is_named() {
    for (command, refusal) in [
        ("MAIL FROM:<a@example.org>\r\n", "530 5.7.0 Must issue a STARTTLS command first\r\n"),
        ("AUTH PLAIN\r\n", "538 5.7.11 STARTTLS is required\r\n"),
        ("MAIL FROM:<a@example.org>\r\n", "450 4.7.0 you must use starttls\r\n"),
    ] {
        let talk = |reply: &str| quit(greeted().s(reply).c(command).s(refusal));
        let heard = hear(&talk(STRIPPED), Vec::new());
        assert_eq!(rules_of(&heard), [(Kind::StarttlsStripped, "A1")], "{refusal:?}");
        assert_eq!(heard.findings[0].evidence, Evidence::Suspicious);
        assert!(heard.findings[0].severity <= Severity::Medium);
        assert!(heard.findings[0].indicators.iter().any(|line| line.contains("demands STARTTLS")));
        // The server lists it, or this host is the server.
        assert_eq!(hear(&talk(OFFER), Vec::new()).kinds(), [], "{refusal:?}");
        assert_eq!(hear(&talk(STRIPPED).seen_by_server(), Vec::new()).kinds(), [], "{refusal:?}");
        let known = hear_after(&honest_history(9), &talk(STRIPPED), Vec::new());
        assert!(
            known.findings[0].indicators.iter().any(|line| line.contains("demands STARTTLS")),
            "{:?}",
            known.findings
        );
    }
    // The client sends it, and TLS begins: whether the list was complete or not, no security is lost.
    let talk =
        greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s("530 Must issue a STARTTLS command first\r\n");
    assert_eq!(hear(&tls(talk.c("STARTTLS\r\n").s(GO)).close(), Vec::new()).kinds(), []);
}

#[test]
fn starttls_without_an_offer_is_a_sign_of_a_peer_that_is_known() {
    for reply in ["502 5.5.1 no\r\n", "500 what?\r\n", "454 4.7.0 no\r\n"] {
        let talk = quit(greeted().s(STRIPPED).c("STARTTLS\r\n").s(reply));
        let code = &reply[..3];
        for (before, rules) in [(honest_history(9), Vec::new()), (Vec::new(), required())] {
            let heard = hear_after(&before, &talk, rules);
            assert_eq!(heard.kinds(), [Kind::StarttlsStripped], "{reply:?}");
            let says = |line: &String| line.contains("requested STARTTLS anyway") && line.contains(code);
            assert!(heard.findings[0].indicators.iter().any(says), "{:?}", heard.findings[0].indicators);
        }
        assert_eq!(hear(&talk, Vec::new()).kinds(), [], "of a stranger it says nothing");
    }
    let granted = tls(greeted().s(STRIPPED).c("STARTTLS\r\n").s(GO)).close();
    assert_eq!(hear_after(&honest_history(9), &granted, Vec::new()).kinds(), [Kind::StarttlsStripped]);
    assert_eq!(hear(&granted, Vec::new()).kinds(), []);
}

#[test]
fn words_of_another_product_support_a_finding_and_make_none() {
    let exim = "454 TLS currently unavailable\r\n";
    let heard = hear(&quit(greeted().s(OFFER).c("STARTTLS\r\n").s(exim)), Vec::new());
    assert!(
        heard.findings[0].indicators.iter().any(|line| line.contains("Postfix") && line.contains("Exim")),
        "{:?}",
        heard.findings[0].indicators
    );
    assert_eq!(heard.findings[0].evidence, Evidence::Suspicious);
    let own = "454 4.7.0 TLS not available due to local problem\r\n";
    let heard = hear(&quit(greeted().s(OFFER).c("STARTTLS\r\n").s(own)), Vec::new());
    assert!(
        !heard.findings[0].indicators.iter().any(|line| line.contains("has the words of")),
        "{:?}",
        heard.findings[0].indicators
    );
    assert_eq!(
        hear(&quit(greeted().s(STRIPPED).c("FROB\r\n").s("500 unrecognized command\r\n")), Vec::new()).kinds(),
        []
    );
}

#[test]
fn a_wait_says_how_long_it_was() {
    let asked = || greeted().s(OFFER).c("STARTTLS\r\n");
    for (talk, words) in [
        (asked().ack(Side::Server).pause(120).leave(), "no reply to STARTTLS came within 120 s"),
        (asked().s(GO).ack(Side::Client).pause(90).leave(), "neither side sent anything for 90 s"),
        (greeted().s("250-mx1.example.net\r\n").ack(Side::Client).pause(60).leave(), "none came within 60 s"),
    ] {
        let heard = hear(&talk, Vec::new());
        let indicators = &heard.findings.first().expect(words).indicators;
        assert!(indicators.iter().any(|line| line.contains(words)), "{words}: {indicators:?}");
    }
}

/// Sessions without a fault on either side.
fn honest_sessions() -> Vec<Dialogue> {
    let der =
        [&[0x30, 0x82, 1, 0x90][..], &[0x16, 3, 3, 0, 70, 2, 0, 0, 66, 3, 1], &[0x15, 3, 3, 0, 2, 2, 40], &[0x5a; 386]]
            .concat();
    let go = || greeted().s(OFFER).c("STARTTLS\r\n").s(GO);
    let old = |version: u16, suite: u16| {
        let flight =
            [server_hello(version, suite, b""), certificate(&der), vec![0x16, 3, 3, 0, 4, 14, 0, 0, 0]].concat();
        go().c(client_hello(version))
            .s(flight)
            .c([&[0x16, 3, 3, 0, 4, 16, 0, 0, 0][..], &finished()].concat())
            .s(finished())
            .c(sealed(40))
            .s(sealed(60))
            .close()
    };
    vec![
        honest(),
        old(0x0303, 0xc02f),
        old(0x0301, 0x002f),
        deliver(greeted().s(OFFER)),
        deliver(greeted().s(STRIPPED)),
        deliver(greeted().s(OFFER).c("STARTTLS\r\n").s("454 4.7.0 not now\r\n")),
        quit(greeted().s(OFFER)),
        quit(greeted().s(STRIPPED).c("BDAT 5 LAST\r\nabc\r\n").s("250 ok\r\n")),
        quit(
            submission()
                .c("AUTH LOGIN\r\n")
                .s("334 x\r\n")
                .c("dXNlcg==\r\n")
                .s("334 x\r\n")
                .c("cGFzcw==\r\n")
                .s("235 ok\r\n"),
        ),
        quit(submission().c("AUTH SCRAM-SHA-256 biwsbj11\r\n").s("334 cj1h\r\n").c("Yz1i\r\n").s("235 ok\r\n")),
    ]
}

/// Nothing is claimed across a gap, wherever it is.
#[test]
fn a_segment_that_is_missing_adds_no_finding() {
    let known = |findings: &[Finding]| {
        findings.iter().map(|finding| (finding.kind, finding.rule.to_string())).collect::<Vec<_>>()
    };
    let mut holes = 0;
    for role in [Role::Client, Role::Server] {
        for (number, mut talk) in honest_sessions().into_iter().enumerate() {
            talk.role = role;
            // The hellos and the certificate in pieces, the rest in one segment each.
            let sizes = if number < 3 { &[usize::MAX, 48][..] } else { &[usize::MAX] };
            for &size in sizes {
                let cut = if size == usize::MAX { talk.clone() } else { talk.cut(size) };
                let before = if number < 3 { vec![talk.clone(); 5] } else { honest_history(5) };
                let before: Vec<_> =
                    before.into_iter().zip(0..).map(|(talk, hour)| talk.at((hour - 2000) * 3600)).collect();
                for (before, rules) in [(&[][..], Vec::new()), (&before[..], Vec::new()), (&[][..], required())] {
                    let whole = known(&hear_after(before, &cut, rules.clone()).findings);
                    for lost in (0..cut.packets.len()).filter(|at| !cut.packets[*at].payload.is_empty()) {
                        let mut hole = cut.clone();
                        hole.packets.remove(lost);
                        holes += 1;
                        for finding in hear_after(before, &hole, rules.clone()).findings {
                            let same = whole.contains(&(finding.kind, finding.rule.to_string()));
                            assert!(
                                same,
                                "{role:?} session {number} in {size}, without packet {lost}: {} {} {:?}",
                                finding.kind, &*finding.rule, finding.indicators
                            );
                        }
                    }
                }
            }
        }
    }
    println!("{holes} holes");
    assert!(holes > 1000);
}
