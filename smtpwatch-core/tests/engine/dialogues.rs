//! Whole dialogues through the engine: the findings that they must raise, and must not raise.

use crate::scenario::{
    Dialogue, GREETING, MASKED, OFFER, Recorded, STRIPPED, client_hello, deliver, engine, finished, greeted, hear,
    hear_after, honest, honest_history, sealed, server_hello, tls,
};
use smtpwatch_core::{
    Side, Timestamp,
    engine::{GateAction, SessionResult},
    finding::{Evidence, Kind, Outcome, Severity, StarttlsState},
    policy::rule::{AuthRule, Rule, StarttlsRule},
    smtp::TlsVersion,
};

fn rule(starttls: Option<StarttlsRule>, auth_plaintext: Option<AuthRule>) -> Vec<Rule> {
    vec![Rule { starttls, auth_plaintext, ..Rule::default() }]
}

fn required() -> Vec<Rule> {
    rule(Some(StarttlsRule::Required), None)
}

#[test]
fn an_honest_session_is_tls_and_silent() {
    let heard = hear(&honest(), required());
    assert_eq!(heard.kinds(), []);
    assert_eq!(heard.sessions.len(), 1);
    assert_eq!(heard.sessions[0].result, SessionResult::Tls);
    assert_eq!(heard.sessions[0].starttls, StarttlsState::Offered);
}

#[test]
fn mail_in_clear_to_a_peer_of_which_nothing_is_known_is_no_finding() {
    for reply in [OFFER, STRIPPED] {
        let heard = hear(&deliver(greeted().s(reply)), Vec::new());
        assert_eq!(heard.kinds(), [], "{reply}");
        assert_eq!(heard.sessions[0].result, SessionResult::Plaintext);
        assert_eq!(heard.sessions[0].messages, 1);
    }
}

#[test]
fn a_strip_after_history_is_a_regression() {
    let heard = hear_after(&honest_history(5), &deliver(greeted().s(STRIPPED)), Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
    let finding = &heard.findings[0];
    assert_eq!(
        (finding.evidence, finding.outcome, finding.severity),
        (Evidence::Regression, Outcome::Content, Severity::Low)
    );
    assert_eq!((&*finding.rule, &*finding.expected.source), ("A1", "history"));
    let detail = &finding.expected.detail;
    assert!(detail.starts_with("offered in 5 of 5 sessions on ") && detail.contains("fewer than 1 in "), "{detail}");
    assert_eq!(finding.observed.starttls, StarttlsState::Absent);
    assert_eq!(finding.peer.name, "mx1.example.net");
    assert!(finding.transcript.iter().any(|line| line.from == Side::Server && line.text == "250-ETRN"));
}

#[test]
fn a_strip_with_too_little_history_is_silent() {
    assert_eq!(hear_after(&honest_history(4), &deliver(greeted().s(STRIPPED)), Vec::new()).kinds(), []);
}

#[test]
fn a_client_that_leaves_was_only_attempted() {
    let quit = greeted().s(STRIPPED).c("QUIT\r\n").s("221 Bye\r\n").close();
    let heard = hear_after(&honest_history(5), &quit, Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
    assert_eq!((heard.findings[0].outcome, heard.findings[0].severity), (Outcome::Attempt, Severity::Low));
}

#[test]
fn a_rule_makes_the_first_contact_a_violation() {
    let heard = hear(&deliver(greeted().s(STRIPPED)), required());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped, Kind::PolicyViolation]);
    assert!(heard.findings.iter().all(|finding| finding.evidence == Evidence::Policy));
    assert!(heard.findings.iter().all(|finding| finding.severity == Severity::Critical));
    let expected = hear(&deliver(greeted().s(STRIPPED)), rule(Some(StarttlsRule::Expected), None));
    assert_eq!(expected.kinds(), [Kind::StarttlsStripped]);
    let ignored =
        hear_after(&honest_history(9), &deliver(greeted().s(STRIPPED)), rule(Some(StarttlsRule::Ignore), None));
    assert_eq!(ignored.kinds(), []);
}

#[test]
fn a_mask_is_proven_and_its_meaning_is_said() {
    let alone = hear(&deliver(greeted().s(MASKED)), Vec::new());
    assert_eq!(alone.kinds(), [Kind::StarttlsMasked]);
    assert_eq!(alone.findings[0].severity, Severity::Critical, "it stands where Postfix says STARTTLS");
    assert_eq!(alone.findings[0].observed.starttls, StarttlsState::Masked);

    let exchange = "250-mail.example.com Hello\r\n250-TURN\r\n250-SIZE\r\n250-BINARYMIME\r\n250-XXXXXXXB\r\n250-XXXC\r\n250 OK\r\n";
    let unproven = hear(&deliver(greeted().s(exchange)), Vec::new());
    assert_eq!(unproven.findings[0].severity, Severity::Medium, "FP-26");
    assert!(unproven.findings[0].indicators[0].contains("possibly STARTTLS"));
    let known = hear_after(
        &honest_history(5),
        &deliver(greeted().s(exchange.replace("mail.example.com", "mx1.example.net"))),
        Vec::new(),
    );
    assert_eq!((known.kinds(), known.findings[0].severity), (vec![Kind::StarttlsMasked], Severity::Critical));

    let both = MASKED.replace("250 8BITMIME", "250 STARTTLS");
    let offered = hear(&deliver(greeted().s(both)), Vec::new());
    assert_eq!((offered.kinds(), offered.findings[0].severity), (vec![Kind::StarttlsMasked], Severity::Info), "FP-14");
}

#[test]
fn a_refusal_is_named_by_its_code() {
    for (reply, rule, evidence) in [
        ("454 TLS not available due to temporary reason\r\n", "C1", Evidence::Suspicious),
        ("501 Syntax error\r\n", "C2", Evidence::Regression),
        ("354 do something else\r\n", "C3", Evidence::Regression),
        ("421 Closing\r\n", "C3", Evidence::Regression),
    ] {
        let talk = deliver(greeted().s(OFFER).c("STARTTLS\r\n").s(reply));
        let heard = hear_after(&honest_history(5), &talk, Vec::new());
        assert_eq!(heard.kinds(), [Kind::StarttlsRefused], "{reply}");
        let finding = &heard.findings[0];
        assert_eq!((&*finding.rule, finding.evidence, finding.outcome), (rule, evidence, Outcome::Content), "{reply}");
        assert_eq!(finding.observed.starttls, StarttlsState::Refused);
        assert_eq!(hear(&talk, Vec::new()).findings[0].evidence, Evidence::Suspicious);
    }
    let quit = greeted().s(OFFER).c("STARTTLS\r\n").s("454 no\r\n").c("QUIT\r\n").s("221 Bye\r\n").close();
    assert_eq!(hear(&quit, Vec::new()).findings[0].severity, Severity::Info, "the client did the right thing");
}

#[test]
fn a_connection_cut_after_starttls_is_a_refusal() {
    let heard = hear(&greeted().s(OFFER).c("STARTTLS\r\n").ack(Side::Server).reset(Side::Server), Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsRefused]);
    assert_eq!((&*heard.findings[0].rule, heard.findings[0].observed.reply), ("C5", None));
}

#[test]
fn a_refusal_of_what_was_not_offered_is_none() {
    let talk =
        greeted().s(STRIPPED).c("STARTTLS\r\n").s("502 not implemented\r\n").c("QUIT\r\n").s("221 Bye\r\n").close();
    assert_eq!(hear(&talk, Vec::new()).kinds(), []);
}

#[test]
fn any_positive_reply_is_a_go_ahead() {
    let talk = tls(greeted().s(OFFER).c("STARTTLS\r\n").s("200 STRIPTLS\r\n")).close();
    assert_eq!(hear(&talk, Vec::new()).sessions[0].result, SessionResult::Tls);
}

const SECRETS: [&str; 4] = ["AHVzZXIAcGFzcw==", "dXNlcg==", "cGFzcw==", "dXNlcj11c2VyAWF1dGg9QmVhcmVyIHRva2VuAQE="];

#[test]
fn credentials_in_every_shape() {
    let [plain, user, pass, bearer] = SECRETS;
    let auth = |talk: Dialogue| talk.s("235 2.7.0 ok\r\n").c("QUIT\r\n").s("221 Bye\r\n").close();
    let submission = || Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s("250-mx1.example.net\r\n250 SIZE\r\n");
    for (talk, rule, mechanism) in [
        (auth(submission().c(format!("AUTH PLAIN {plain}\r\n"))), "F1", "PLAIN"),
        (auth(submission().c(format!("aUtH plain {plain} \n"))), "F1", "PLAIN"),
        (auth(submission().c("AUTH PLAIN\r\n").s("334 \r\n").c(format!("{plain}\r\n"))), "F2", "PLAIN"),
        (auth(submission().c("AUTH PLAIN =\r\n").s("334\r\n").c(format!("{plain}\r\n"))), "F2", "PLAIN"),
        (
            auth(
                submission()
                    .c("AUTH LOGIN\r\n")
                    .s("334 VXNlcm5hbWU6\r\n")
                    .c(format!("{user}\r\n"))
                    .s("334 x\r\n")
                    .c(format!("{pass}\r\n")),
            ),
            "F3",
            "LOGIN",
        ),
        (auth(submission().c(format!("AUTH LOGIN {user}\r\n")).s("334 x\r\n").c(format!("{pass}\r\n"))), "F3", "LOGIN"),
        (
            auth(submission().c(format!("X-EXPS LOGIN {user}\r\n")).s("334 x\r\n").c(format!("{pass}\r\n"))),
            "F9",
            "LOGIN",
        ),
        (auth(submission().c(format!("AUTH XOAUTH2 {bearer}\r\n"))), "F4", "XOAUTH2"),
        (auth(submission().c("AUTH OAUTHBEARER\r\n").s("334 \r\n").c(format!("{bearer}\r\n"))), "F4", "OAUTHBEARER"),
        // A base64 answer may look like a verb.
        (
            auth(submission().c("AUTH LOGIN\r\n").s("334 x\r\n").c("QUIT\r\n").s("334 x\r\n").c("DATA\r\n")),
            "F3",
            "LOGIN",
        ),
        // Some clients do not wait.
        (auth(submission().c(format!("AUTH LOGIN\r\n{user}\r\n{pass}\r\n")).s("334 x\r\n334 x\r\n")), "F3", "LOGIN"),
    ] {
        for talk in [talk.clone(), talk.cut(1), talk.seen_by_server()] {
            let heard = hear(&talk, Vec::new());
            assert_eq!(heard.kinds(), [Kind::AuthPlaintext], "{rule} {mechanism} {:?}", heard.sessions);
            let finding = &heard.findings[0];
            assert_eq!((&*finding.rule, finding.observed.mechanism.as_deref()), (rule, Some(mechanism)));
            assert_eq!((finding.outcome, finding.severity), (Outcome::Credential, Severity::Critical));
            assert_eq!(finding.observed.reply, Some(235));
            let json = serde_json::to_string(finding).expect("serialises");
            assert!(SECRETS.iter().all(|secret| !json.contains(secret)), "{json}");
            assert_eq!(heard.sessions[0].result, SessionResult::Plaintext);
        }
    }
}

#[test]
fn a_refused_credential_was_sent_all_the_same_and_its_echo_is_blanked() {
    let [plain, ..] = SECRETS;
    let heard = hear(
        &Dialogue::new(587)
            .s(GREETING)
            .c("EHLO gw\r\n")
            .s(OFFER)
            .c(format!("AUTH PLAIN {plain}\r\n"))
            .s(format!("530 5.7.0 Must issue a STARTTLS command first: \"AUTH PLAIN {plain}\"\r\n"))
            .close(),
        Vec::new(),
    );
    assert_eq!(heard.kinds(), [Kind::AuthPlaintext]);
    assert_eq!((&*heard.findings[0].rule, heard.findings[0].observed.reply), ("F7", Some(530)));
    assert!(!serde_json::to_string(&heard.findings[0]).expect("serialises").contains(plain));
}

#[test]
fn a_credential_without_a_line_end_has_crossed_the_wire() {
    let heard = hear(
        &Dialogue::new(587)
            .s(GREETING)
            .c("EHLO gw\r\n")
            .s(OFFER)
            .c("AUTH PLAIN AHVzZXIAcGFzcw==")
            .ack(Side::Server)
            .reset(Side::Client),
        Vec::new(),
    );
    assert_eq!(heard.kinds(), [Kind::AuthPlaintext]);
}

#[test]
fn what_is_not_a_credential_is_none() {
    let submission = || Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s("250 mx1.example.net\r\n");
    for talk in [
        submission().c("AUTH PLAIN\r\n").s("530 5.7.0 TLS first\r\n").close(),
        submission().c("AUTH PLAIN\r\n").s("334 \r\n").c("*\r\n").s("501 cancelled\r\n").close(),
        submission()
            .c("AUTH LOGIN\r\n")
            .s("334 x\r\n")
            .c("dXNlcg==\r\n")
            .s("334 x\r\n")
            .c("*\r\n")
            .s("501 cancelled\r\n")
            .close(),
        submission().c("AUTH EXTERNAL dXNlcg==\r\n").s("235 ok\r\n").close(),
        submission().c("MAIL FROM:<a@example.org> AUTH=<>\r\n").s("250 ok\r\n").close(),
        deliver(greeted().s(OFFER)),
    ] {
        assert_eq!(hear(&talk, Vec::new()).kinds(), []);
    }
}

#[test]
fn a_challenge_response_exchange_is_its_own_kind() {
    let heard = hear(
        &Dialogue::new(587)
            .s(GREETING)
            .c("EHLO gw\r\n")
            .s("250 mx1.example.net\r\n")
            .c("AUTH CRAM-MD5\r\n")
            .s("334 PDEyMz4=\r\n")
            .c("dXNlciAwMTIzNDU2Nzg5YWJjZGVm\r\n")
            .s("235 ok\r\n")
            .close(),
        Vec::new(),
    );
    assert_eq!(heard.kinds(), [Kind::AuthExchangePlaintext]);
    assert_eq!((&*heard.findings[0].rule, heard.findings[0].severity), ("F5", Severity::Medium));
}

#[test]
fn a_server_that_invites_credentials_in_clear() {
    let offer = OFFER.replace("250-STARTTLS", "250-STARTTLS\r\n250-AUTH PLAIN LOGIN");
    let talk = tls(Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s(offer).c("STARTTLS\r\n").s("220 go\r\n"));
    let talk = talk.close().seen_by_server();
    let heard = hear(&talk, Vec::new());
    assert_eq!(heard.kinds(), [Kind::AuthOfferedPlaintext]);
    assert_eq!((heard.findings[0].severity, &*heard.findings[0].rule), (Severity::High, "F6"));
    assert_eq!(hear(&talk, rule(None, Some(AuthRule::Allow))).kinds(), []);
    assert_eq!(hear(&talk, rule(None, Some(AuthRule::Forbid))).findings[0].evidence, Evidence::Policy);
}

#[test]
fn the_server_does_not_accuse_its_own_reply() {
    let heard = hear_after(&honest_history(9), &deliver(greeted().s(STRIPPED)).seen_by_server(), Vec::new());
    assert_eq!(heard.kinds(), [], "A8 is inferred, not seen");
}

#[test]
fn the_same_octets_in_any_cut_give_the_same_findings() {
    for talk in [
        deliver(greeted().s(STRIPPED)),
        deliver(greeted().s(MASKED)),
        deliver(greeted().s(OFFER).c("STARTTLS\r\n").s("501 no\r\n")),
    ] {
        let summary = |heard: Recorded| -> Vec<_> {
            heard
                .findings
                .into_iter()
                .map(|finding| (finding.kind, finding.evidence, finding.outcome, finding.transcript))
                .collect()
        };
        let whole = summary(hear_after(&honest_history(5), &talk, Vec::new()));
        assert!(!whole.is_empty());
        for size in [1, 2, 3, 7, 50] {
            assert_eq!(summary(hear_after(&honest_history(5), &talk.cut(size), Vec::new())), whole, "{size}");
        }
    }
}

#[test]
fn joined_midstream_nothing_is_claimed() {
    let talk = deliver(Dialogue::midstream(25).s(GREETING).c("EHLO gw\r\n").s(STRIPPED));
    let heard = hear_after(&honest_history(9), &talk, required());
    assert_eq!(heard.kinds(), []);
    assert_eq!(heard.sessions[0].result, SessionResult::Unknown);
}

#[test]
fn a_hole_in_the_reply_makes_the_session_unknown() {
    let mut talk = deliver(greeted().s(STRIPPED));
    let reply = talk.packets.iter().position(|packet| packet.payload.starts_with(b"250-mx1")).expect("reply");
    talk.packets.remove(reply);
    let heard = hear_after(&honest_history(9), &talk, required());
    assert_eq!((heard.kinds(), heard.gaps), (vec![], 1));
    assert_eq!(heard.sessions[0].result, SessionResult::Unknown);
}

#[test]
fn one_direction_alone_is_unknown() {
    let mut talk = deliver(greeted().s(STRIPPED));
    talk.packets.retain(|packet| packet.from == Side::Client);
    let heard = hear_after(&honest_history(9), &talk, required());
    assert_eq!(heard.kinds(), []);
    assert_eq!(heard.sessions[0].result, SessionResult::Unknown);
}

#[test]
fn a_muted_body_is_no_hole() {
    let mut talk = deliver(greeted().s(STRIPPED));
    let body = talk.packets.iter_mut().find(|packet| packet.payload.starts_with(b"Subject")).expect("body");
    let length = body.payload.len();
    body.payload.clear();
    let mut engine = engine(required());
    let mut heard = Recorded::default();
    for packet in &talk.packets {
        let mut segment = talk.segment(packet);
        if packet.payload.is_empty() && packet.flags.contains(smtpwatch_core::TcpFlags::PSH) {
            segment.length = u32::try_from(length).expect("small");
        }
        engine.handle(&segment);
        heard.drain(&mut engine);
    }
    assert_eq!(heard.gaps, 0);
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped, Kind::PolicyViolation]);
    assert_eq!((heard.sessions[0].result, heard.sessions[0].messages), (SessionResult::Plaintext, 1));
    assert!(heard.gate.contains(&GateAction::MuteBody));
}

#[test]
fn pipelined_groups_and_chunks_find_their_replies() {
    let talk = greeted()
        .s(OFFER.replace("250 8BITMIME", "250 CHUNKING"))
        .c("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nFROB\r\nDATA\r\n")
        .s("250 ok\r\n250 ok\r\n502 what?\r\n503 no\r\n")
        .c("RSET\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nBDAT 25\r\nAUTH PLAIN QUFBQUFBQUE=\r\nBDAT 6 LAST\r\nQUIT\r\n")
        .s("250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n")
        .c("QUIT\r\n")
        .s("221 bye\r\n")
        .close();
    for talk in [talk.clone(), talk.cut(1)] {
        let heard = hear(&talk, Vec::new());
        assert_eq!((heard.kinds(), heard.sessions[0].messages), (vec![], 1), "FP-10, FP-11, BDAT by octets");
        assert!(heard.gate.iter().any(|action| matches!(action, GateAction::SkipUntil { from: Side::Client, .. })));
    }
}

#[test]
fn odd_replies_do_not_switch_the_parser_off() {
    for reply in
        ["200 hello\r\n", "299-a\r\n299 b\r\n", "538 no\r\n", "432 no\r\n", "99 x\r\n", "hello\r\n", "\x00\x7f\r\n"]
    {
        let talk = deliver(greeted().s(STRIPPED).c("NOOP\r\n").s(reply));
        assert_eq!(hear(&talk, required()).kinds(), [Kind::StarttlsStripped, Kind::PolicyViolation], "EV-18 {reply:?}");
    }
}

#[test]
fn a_claim_that_waits_goes_out_in_time_and_gets_louder() {
    let mut engine = engine(required());
    let mut heard = Recorded::default();
    let talk =
        greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s("250 ok\r\n").c("RCPT TO:<b@example.net>\r\n");
    talk.play(&mut engine, &mut heard);
    engine.tick(Timestamp(talk.packets[0].at + 1_000_000_000));
    heard.drain(&mut engine);
    assert_eq!(heard.kinds(), []);
    engine.tick(Timestamp(talk.packets[0].at + 60_000_000_000));
    heard.drain(&mut engine);
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
    assert_eq!(heard.findings[0].outcome, Outcome::Envelope);
    engine.tick(Timestamp(talk.packets[0].at + 120_000_000_000));
    heard.drain(&mut engine);
    assert_eq!(heard.findings.len(), 1);
}

#[test]
fn the_deadline_of_a_connection_ends_with_it() {
    let mut engine = engine(required());
    let mut heard = Recorded::default();
    let mail =
        || greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s("250 ok\r\n").c("RCPT TO:<b@example.net>\r\n");
    let first = mail().close();
    first.play(&mut engine, &mut heard);
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
    // The same addresses and ports, two seconds before the deadline of the first connection.
    mail().at(8).play(&mut engine, &mut heard);
    for (second, findings) in [(11, 1), (19, 2)] {
        engine.tick(Timestamp(first.packets[0].at + second * 1_000_000_000));
        heard.drain(&mut engine);
        assert_eq!(heard.findings.len(), findings, "second {second}");
    }
}

#[test]
fn a_reused_tuple_is_another_session() {
    let mut engine = engine(required());
    let mut heard = Recorded::default();
    let unfinished = greeted().s(OFFER).c("STARTTLS\r\n");
    unfinished.play(&mut engine, &mut heard);
    let mut next = deliver(greeted().s(STRIPPED)).at(100);
    for packet in &mut next.packets {
        packet.seq = packet.seq.wrapping_add(77_777_777);
        packet.ack = packet.ack.wrapping_add(77_777_777);
    }
    next.play(&mut engine, &mut heard);
    engine.finish(Timestamp(i64::MAX));
    heard.drain(&mut engine);
    assert_eq!(heard.sessions.len(), 2);
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped, Kind::PolicyViolation]);
}

#[test]
fn a_finding_is_the_contract_s_json() {
    let heard = hear_after(&honest_history(5), &deliver(greeted().s(STRIPPED)), Vec::new());
    let json: serde_json::Value = serde_json::to_value(&heard.findings[0]).expect("serialises");
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["kind"], "starttls-stripped");
    assert_eq!(json["flow"]["client"], "192.0.2.10:41234");
    assert_eq!(json["flow"]["server"], "198.51.100.25:25");
    assert_eq!(json["role"], "client");
    assert_eq!(json["expected"]["starttls"], true);
    assert_eq!(json["observed"]["starttls"], "absent");
    assert_eq!(json["observed"]["capabilities"][1], "SIZE 10240000");
    assert_eq!(
        json["transcript"][0],
        serde_json::json!({"from": "server", "text": "220 mx1.example.net ESMTP Postfix"})
    );
    assert_eq!(json["gaps"], 0);
    let time = json["time"].as_str().expect("time");
    assert!(time.ends_with('Z') && time.len() == "2026-11-23T15:04:05.123456Z".len(), "{time}");
}

#[test]
fn a_session_says_which_version_of_tls_it_negotiated() {
    let go = || greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    let below = |version| {
        let hellos = go().c(client_hello(0x0303)).s(server_hello(version, 0xc02f, b""));
        hellos.c(finished()).s(finished()).c(sealed(40)).close()
    };
    for (talk, version) in [
        (honest(), TlsVersion::V1_3),
        (below(0x0303), TlsVersion::V1_2),
        (below(0x0302), TlsVersion::V1_1),
        (below(0x0301), TlsVersion::V1_0),
    ] {
        let session = &hear(&talk, Vec::new()).sessions[0];
        assert_eq!((session.result, session.tls_version), (SessionResult::Tls, Some(version)));
    }
    // A handshake that fails negotiates nothing, and a session without TLS has no version.
    let failed = go().c(client_hello(0x0303)).s(server_hello(0x0303, 0xc02f, b"")).ack(Side::Client);
    for talk in [failed.reset(Side::Client), deliver(greeted().s(STRIPPED))] {
        let session = &hear(&talk, Vec::new()).sessions[0];
        assert_ne!(session.result, SessionResult::Tls);
        assert_eq!(session.tls_version, None);
    }
}
