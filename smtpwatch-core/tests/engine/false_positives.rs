//! Legitimate peers that a careless detector accuses (docs/threats.md, FP rows): each must raise nothing, or only what
//! is true.

use smtpwatch_core::{
    Side,
    engine::SessionResult,
    finding::{Evidence, Kind, Severity, StarttlsState},
    policy::rule::{Rule, StarttlsRule},
};

use crate::scenario::{
    Dialogue, GREETING, MASKED, OFFER, STRIPPED, client_hello, deliver, greeted, hear, hear_after, honest,
    honest_history, sealed, server_hello, tls,
};

fn silent(talk: &Dialogue) {
    silent_after(&[], talk);
}

fn silent_after(before: &[Dialogue], talk: &Dialogue) {
    let heard = hear_after(before, talk, Vec::new());
    assert!(heard.findings.is_empty(), "{:?}", heard.findings);
}

fn quit(talk: Dialogue) -> Dialogue {
    talk.c("QUIT\r\n").s("221 Bye\r\n").close()
}

fn from_address(mut talk: Dialogue, client: &str) -> Dialogue {
    talk.flow.client = format!("{client}:41234").parse().expect("address");
    talk
}

#[test]
fn fp1_a_farm_answers_differently() {
    let farm: Vec<_> = (0..12)
        .map(|hour| if hour % 3 == 0 { deliver(greeted().s(STRIPPED)) } else { honest() }.at((hour - 1000) * 3600))
        .collect();
    silent_after(&farm, &deliver(greeted().s(STRIPPED)));
}

#[test]
fn fp2_an_honest_454_is_never_called_tampering() {
    for reply in [
        "454 4.7.0 TLS not available due to local problem\r\n",
        "454 4.7.0 Error: too many new TLS sessions from x\r\n",
    ] {
        let heard = hear_after(&honest_history(9), &deliver(greeted().s(OFFER).c("STARTTLS\r\n").s(reply)), Vec::new());
        assert_eq!(heard.kinds(), [Kind::StarttlsRefused]);
        assert_eq!(heard.findings[0].evidence, Evidence::Suspicious);
        assert!(heard.findings[0].severity <= Severity::Medium);
    }
}

#[test]
fn fp3_history_belongs_to_the_own_address() {
    let before: Vec<_> = honest_history(9).into_iter().map(|talk| from_address(talk, "192.0.2.11")).collect();
    silent_after(&before, &deliver(greeted().s(STRIPPED)));
}

#[test]
fn fp4_the_order_and_number_of_other_keywords_mean_nothing() {
    let postscreen = "250-mx1.example.net\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME\r\n";
    silent_after(&honest_history(9), &tls(greeted().s(postscreen).c("STARTTLS\r\n").s("220 2.0.0 go\r\n")).close());
}

#[test]
fn fp5_helo_alone() {
    let helo = || deliver(Dialogue::new(25).s(GREETING).c("HELO printer\r\n").s("250 mx1.example.net\r\n"));
    silent(&helo());
    silent_after(&honest_history(9), &helo());
    silent(&helo().seen_by_server());
}

#[test]
fn fp6_the_last_ehlo_reply_in_clear_counts() {
    let talk = greeted().s(STRIPPED).c("EHLO gw.example.org\r\n").s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    silent_after(&honest_history(9), &tls(talk).close());
}

#[test]
fn fp7_a_flow_joined_midstream() {
    let mut talk = deliver(greeted().s(STRIPPED));
    talk.packets.drain(..6);
    let heard = hear_after(&honest_history(9), &talk, Vec::new());
    assert!(heard.findings.is_empty());
    assert_eq!(heard.sessions[0].result, SessionResult::Unknown);
}

#[test]
fn fp8_a_retransmission_is_no_second_command() {
    let mut talk = honest();
    let copies: Vec<_> = talk.packets.clone();
    talk.packets = copies.iter().flat_map(|packet| [packet.clone(), packet.clone()]).collect();
    let heard = hear(&talk, Vec::new());
    assert!(heard.findings.is_empty(), "{:?}", heard.findings);
    assert_eq!(heard.sessions[0].result, SessionResult::Tls);
}

#[test]
fn fp9_a_body_about_this_topic() {
    // `deliver` has AUTH, STARTTLS and a masked line in its message.
    silent(&deliver(greeted().s(OFFER)));
    let chunk = "AUTH PLAIN AHVzZXIAcGFzcw==\r\n250-XXXXXXXA\r\nSTARTTLS\r\n";
    let bdat = format!("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nBDAT {} LAST\r\n{chunk}", chunk.len());
    silent(&quit(greeted().s(OFFER).c(bdat).s("250 ok\r\n250 ok\r\n250 ok\r\n")));
}

#[test]
fn fp10_after_a_refused_data_comes_a_command() {
    let talk = Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s("250 mx1.example.net\r\n");
    let talk = talk.c("DATA\r\n").s("503 5.5.1 need RCPT\r\n").c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n");
    assert_eq!(hear(&quit(talk), Vec::new()).kinds(), [Kind::AuthPlaintext]);
}

#[test]
fn fp11_pipelined_replies_find_their_commands() {
    let talk = greeted().s(OFFER).c("FROB\r\nNOOP\r\nSTARTTLS\r\n").s("500 what?\r\n250 ok\r\n220 2.0.0 go\r\n");
    silent(&tls(talk).close());
}

#[test]
fn fp12_commands_before_the_banner() {
    let talk = Dialogue::new(25).c("EHLO gw.example.org\r\n").s([GREETING, OFFER].concat());
    silent_after(&honest_history(9), &tls(talk.c("STARTTLS\r\n").s("220 2.0.0 go\r\n")).close());
}

#[test]
fn fp13_proxy_header_xclient_and_lhlo() {
    let silent = |talk: Dialogue| {
        let heard = hear(&tls(talk.s("220 2.0.0 go\r\n")).close(), Vec::new());
        assert!(heard.findings.is_empty(), "{:?}", heard.findings);
        let session = &heard.sessions[0];
        assert_eq!((session.result, session.starttls), (SessionResult::Tls, StarttlsState::Offered));
    };
    let dialogue = |talk: Dialogue| talk.s(GREETING).c("EHLO gw\r\n").s(OFFER).c("STARTTLS\r\n");
    silent(dialogue(Dialogue::new(25).c("PROXY TCP4 203.0.113.7 192.0.2.1 50000 25\r\n")));
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\xc0\0\x02\x01\xc3\x50\0\x19";
    silent(dialogue(Dialogue::new(25).c(binary)));
    silent(dialogue(Dialogue::new(25).c(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")));
    silent(dialogue(Dialogue::new(25).c(binary)).cut(1));
    silent(dialogue(greeted().s(OFFER).c("XCLIENT NAME=x ADDR=203.0.113.7 LOGIN=user\r\n")));
    silent(Dialogue::new(25).s(GREETING).c("LHLO gw\r\n").s(OFFER).c("X-ANONYMOUSTLS\r\n"));
}

#[test]
fn fp13_turned_roles_end_the_verdict() {
    for turn in ["TURN\r\n", "ATRN example.org\r\n"] {
        let talk = greeted().s(STRIPPED).c(turn).s("250 ok, reversing the connection\r\n").c(GREETING);
        let talk = talk.s("EHLO mx1.example.net\r\n").c(STRIPPED).s("MAIL FROM:<a@example.org>\r\n").c("250 ok\r\n");
        let heard = hear(&talk.s("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").close(), Vec::new());
        assert_eq!((heard.kinds(), heard.sessions[0].result), (vec![], SessionResult::Unknown), "{turn:?}");
    }
    silent(&quit(greeted().s(OFFER).c("TURN\r\n").s("502 5.5.1 no\r\n")));
}

#[test]
fn fp14_a_mask_beside_starttls_is_never_called_a_strip() {
    let both = MASKED.replace("250 8BITMIME", "250 STARTTLS");
    let heard = hear_after(
        &honest_history(9),
        &tls(greeted().s(both).c("STARTTLS\r\n").s("220 2.0.0 go\r\n")).close(),
        Vec::new(),
    );
    assert_eq!((heard.kinds(), heard.findings[0].severity), (vec![Kind::StarttlsMasked], Severity::Info));
    assert_eq!(heard.findings[0].evidence, Evidence::Suspicious);
    assert_eq!((&*heard.findings[0].rule, heard.findings[0].observed.starttls), ("A2", StarttlsState::Offered));
}

#[test]
fn fp15_names_made_of_x() {
    silent(&deliver(
        Dialogue::new(25).s("220 XXXXXXXX.com ESMTP\r\n").c("EHLO gw\r\n").s("250-XXXXXXXX.com Hello\r\n250 SIZE\r\n"),
    ));
    silent(&deliver(Dialogue::new(25).s(GREETING).c("EHLO gw\r\n").s("250-XXXXXXXA\r\n250 SIZE\r\n")));
}

#[test]
fn fp16_the_words_blame_nobody_and_say_where_to_look() {
    let heard = hear_after(&honest_history(9), &deliver(greeted().s(STRIPPED)), Vec::new());
    let scope = heard.findings[0].indicators.iter().find(|line| line.starts_with("scope: ")).expect("scope");
    assert!(scope.contains("server"), "{scope}");
}

#[test]
fn fp17_probes_do_not_feed_history_and_loopback_can_be_left_out() {
    let probes: Vec<_> = (0..9).map(|hour| quit(greeted().s(OFFER)).at((hour - 1000) * 3600)).collect();
    silent_after(&probes, &deliver(greeted().s(STRIPPED)));
    let loopback = vec![Rule {
        peer: vec!["127.0.0.0/8".parse().expect("network")],
        starttls: Some(StarttlsRule::Ignore),
        ..Rule::default()
    }];
    let mut talk = from_address(deliver(greeted().s(STRIPPED)), "127.0.0.1");
    talk.flow.server = "127.0.0.1:25".parse().expect("address");
    let all = Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() };
    assert!(hear(&talk, [loopback, vec![all]].concat()).findings.is_empty());
}

#[test]
fn fp18_auth_is_grammar_not_a_substring() {
    let submission =
        || Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s("250-mx1.example.net\r\n250 HELP AUTH PLAIN\r\n");
    for line in ["AUTH *\r\n", "NOOP AUTH PLAIN AHVzZXIAcGFzcw==\r\n", "HELP AUTH LOGIN\r\n"] {
        let heard = hear(&quit(submission().c(line).s("500 what?\r\n")), Vec::new());
        assert!(heard.findings.is_empty(), "{line}: {:?}", heard.findings);
    }
    silent(&greeted().s(OFFER).c("MAIL FROM:<a@example.org> AUTH=<user@example.org>\r\n").s("250 ok\r\n").close());
}

#[test]
fn fp19_a_sasl_security_layer_is_neither_garbage_nor_tls() {
    let talk = Dialogue::new(587)
        .s(GREETING)
        .c("EHLO gw\r\n")
        .s("250 mx1.example.net\r\n")
        .c("AUTH GSSAPI YIIC\r\n")
        .s("235 ok\r\n");
    let heard = hear(&talk.c(b"\0\0\0\x20XXXXXXXX\xff\xfe").s(b"\0\0\0\x20\x16\x03\x01").close(), Vec::new());
    assert_eq!(heard.kinds(), [Kind::AuthExchangePlaintext]);
    assert_ne!(heard.sessions[0].result, SessionResult::Tls);
}

#[test]
fn fp20_our_own_server_told_not_to_use_tls() {
    silent(&deliver(greeted().s(OFFER)));
    let heard = hear_after(&honest_history(9), &deliver(greeted().s(OFFER)), Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsUnused], "the offer was there: not a strip");
}

#[test]
fn fp21_a_reused_tuple_and_the_other_family() {
    let mut v6 = deliver(greeted().s(STRIPPED));
    v6.flow.client = "[2001:db8::10]:41234".parse().expect("address");
    v6.flow.server = "[2001:db8:1::25]:25".parse().expect("address");
    silent_after(&honest_history(9), &v6);
}

/// The client chooses its name. A different name may be another client behind the same address and raises only a
/// finding of low severity; it may also be forged on the path.
#[test]
fn fp21_another_client_behind_the_same_address() {
    let before: Vec<_> = (0..9).map(|hour| honest().seen_by_server().at((hour - 1000) * 3600)).collect();
    let other = deliver(Dialogue::new(25).s(GREETING).c("EHLO scanner.lan\r\n").s(OFFER)).seen_by_server();
    let heard = hear_after(&before, &other, Vec::new());
    assert_eq!((heard.kinds(), heard.findings[0].severity), (vec![Kind::StarttlsUnused], Severity::Low));
    let probe = quit(Dialogue::new(25).s(GREETING).c("HELO gw.example.org\r\n").s("250 mx1\r\n")).seen_by_server();
    silent_after(&before, &probe);
    // If clients of both kinds have been seen, nothing is raised.
    let mixed: Vec<_> = (0..30)
        .map(|hour| {
            let talk = if hour % 3 == 0 && hour > 0 { other.clone() } else { honest().seen_by_server() };
            talk.at((hour - 1000) * 3600)
        })
        .collect();
    silent_after(&mixed, &other);
}

#[test]
fn fp1_another_server_of_a_known_name_is_at_most_suspicious() {
    let mut talk = deliver(greeted().s(STRIPPED));
    talk.flow.server = "198.51.100.99:25".parse().expect("address");
    let heard = hear_after(&honest_history(9), &talk, Vec::new());
    assert_eq!((heard.kinds(), heard.findings[0].evidence), (vec![Kind::StarttlsStripped], Evidence::Suspicious));
    assert_eq!((&*heard.findings[0].rule, &*heard.findings[0].expected.source), ("A1", "history"));
}

#[test]
fn fp6_a_capture_that_ends_early_is_no_verdict() {
    let mut talk = greeted().s(STRIPPED);
    silent_after(&honest_history(9), &talk);
    for cut in 1..STRIPPED.len() {
        let reply = talk.packets.len() - 1;
        talk.packets[reply].payload = STRIPPED.as_bytes()[..cut].to_vec();
        silent_after(&honest_history(9), &talk);
    }
}

#[test]
fn fp22_another_certificate() {
    let session = |certificate: u8| {
        let certificate = [&[0x16, 3, 3, 0, 40, 11, 0, 0, 36][..], &[certificate; 36]].concat();
        let talk = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n").c(client_hello(0x0303));
        let talk = talk.s([server_hello(0x0303, 0xc02f, b""), certificate].concat());
        let talk = talk.c([0x16, 3, 3, 0, 4, 16, 0, 0, 0, 0x14, 3, 3, 0, 1, 1]).s([0x14, 3, 3, 0, 1, 1]);
        talk.c(sealed(40)).s(sealed(40)).close()
    };
    let before: Vec<_> = (0..9).map(|hour| session(7).at((hour - 1000) * 3600)).collect();
    silent_after(&before, &session(9));
}

#[test]
fn fp23_rejected_sessions_are_no_downgrade() {
    for banner in ["421 4.7.0 too many connections\r\n", "554 5.7.1 go away\r\n"] {
        silent_after(&honest_history(9), &Dialogue::new(25).s(banner).c("QUIT\r\n").s("221 Bye\r\n").close());
    }
    silent_after(&honest_history(9), &quit(greeted().s("550 5.7.1 bad name\r\n")));
    silent_after(&honest_history(9), &greeted().s("421 4.3.2 closing\r\n").close());
}

#[test]
fn fp24_long_replies_utf8_bare_codes_and_trailing_blanks() {
    let long = format!("250-mx1.example.net Grüße {}\r\n250-STARTTLS \r\n250\r\n", "x".repeat(2000));
    silent_after(&honest_history(9), &tls(greeted().s(long).c("STARTTLS\r\n").s("220 \r\n")).close());
}

#[test]
fn fp25_octets_typed_by_a_person_are_not_scored() {
    let talk = quit(Dialogue::new(25).s(GREETING).c("XXXX mail.example.org\r\n").s("500 what?\r\n")).seen_by_server();
    assert_eq!(hear(&talk, Vec::new()).kinds(), [Kind::CommandRewritten]);
    silent(&typed(&talk, 20));
    let mut last = typed(&talk, 90);
    let line_end = last.packets.iter().position(|packet| packet.payload == b"\r").expect("typed");
    // The Enter key sends two bytes.
    last.packets[line_end].payload.push(b'\n');
    last.packets.remove(line_end + 2);
    silent(&last);
}

#[test]
fn fp25_bytes_sent_one_by_one_are_not_typed_by_a_person() {
    let talk = quit(Dialogue::new(25).s(GREETING).c("XXXX mail.example.org\r\n").s("500 what?\r\n")).seen_by_server();
    for milliseconds in [0, 1, 19] {
        assert_eq!(
            hear(&typed(&talk, milliseconds), Vec::new()).kinds(),
            [Kind::CommandRewritten],
            "{milliseconds} ms"
        );
    }
    // Some keystrokes, then a verb in one segment.
    let mut keys = Dialogue::new(25).s(GREETING).c("XXXX mail.example.org\r\n").s("500 what?\r\n").seen_by_server();
    for key in b"NOOP " {
        keys = keys.pause(1).c([*key]);
    }
    for _ in 0..5 {
        keys = keys.c("\r\n").s("250 ok\r\n").c("NOOP");
    }
    assert_eq!(hear(&quit(keys.c("\r\n").s("250 ok\r\n")), Vec::new()).kinds(), [Kind::CommandRewritten]);
}

#[test]
fn fp25_a_client_that_is_known_to_use_tls_is_not_taken_for_a_person() {
    let before: Vec<_> = (0..9).map(|hour| honest().seen_by_server().at((hour - 1000) * 3600)).collect();
    let talk = quit(Dialogue::new(25).s(GREETING).c("XXXX gw.example.org\r\n").s("500 what?\r\n")).seen_by_server();
    let heard = hear_after(&before, &typed(&talk, 50), Vec::new());
    assert!(heard.kinds().contains(&Kind::CommandRewritten), "{:?}", heard.kinds());
}

/// The client's bytes arrive one by one, this many milliseconds apart.
fn typed(talk: &Dialogue, milliseconds: i64) -> Dialogue {
    let mut talk = talk.cut(1);
    let mut late = 0;
    for packet in &mut talk.packets {
        if packet.from == Side::Client && !packet.payload.is_empty() {
            late += milliseconds * 1_000_000;
        }
        packet.at += late;
    }
    talk
}

#[test]
fn a_server_that_writes_starttls_in_its_own_way() {
    for line in ["starttls", "StartTLS", "STARTTLS REQUIRED", " STARTTLS"] {
        let reply = OFFER.replace("STARTTLS", line);
        let session = || tls(greeted().s(&reply).c("STARTTLS\r\n").s("220 2.0.0 go\r\n")).close();
        let before: Vec<_> = (0..9).map(|hour| session().at((hour - 1000) * 3600)).collect();
        silent_after(&before, &session());
        silent(&session());
    }
    let all_lower = "250-mx1.example.net\r\n250-pipelining\r\n250-size 1000\r\n250 starttls\r\n";
    silent(&deliver(greeted().s(all_lower)));
}

#[test]
fn a_mask_of_another_length_is_not_called_starttls() {
    let heard = hear(&deliver(greeted().s(STRIPPED.replace("250-ETRN", "250-XXXA"))), Vec::new());
    assert_eq!((heard.kinds(), heard.findings[0].severity), (vec![Kind::StarttlsMasked], Severity::Low));
    assert_eq!(heard.findings[0].observed.starttls, StarttlsState::Masked);
    assert!(heard.findings[0].indicators[0].contains("not STARTTLS"), "{:?}", heard.findings[0].indicators);
}

#[test]
fn fp26_a_mask_of_eight_letters_need_not_be_starttls() {
    let exchange = "250-mail.example.com Hello\r\n250-TURN\r\n250-SIZE\r\n250-BINARYMIME\r\n250-XXXXXXXB\r\n250-XXXC\r\n250-XXXXXXXXXXXE\r\n250 OK\r\n";
    let heard = hear(&deliver(greeted().s(exchange)), Vec::new());
    assert_eq!((heard.kinds(), heard.findings[0].severity), (vec![Kind::StarttlsMasked], Severity::Medium));
    assert_eq!(heard.findings[0].observed.starttls, StarttlsState::Masked);
    assert!(heard.findings[0].indicators[0].contains("possibly STARTTLS"));
}

#[test]
fn fp27_one_segment_for_each_line_of_the_reply() {
    for size in [1, 3, 14, 30] {
        let talk = tls(greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n")).close().cut(size);
        let heard = hear_after(&honest_history(9), &talk, Vec::new());
        assert!(heard.findings.is_empty(), "{size}: {:?}", heard.findings);
    }
}

#[test]
fn fp28_offered_unused_and_nobody_to_blame() {
    silent(&deliver(greeted().s(OFFER)));
    silent(&deliver(greeted().s(OFFER)).seen_by_server());
}

#[test]
fn an_early_client_hello_is_no_injection() {
    let talk = greeted().s(OFFER).c([b"STARTTLS\r\n".to_vec(), client_hello(0x0304)].concat());
    let heard = hear(&tls_after_early_hello(talk), Vec::new());
    assert!(heard.findings.is_empty(), "{:?}", heard.findings);
}

fn tls_after_early_hello(talk: Dialogue) -> Dialogue {
    talk.s("220 2.0.0 go\r\n").s(server_hello(0x0304, 0x1301, b"")).c(sealed(53)).s(sealed(80)).close()
}

#[test]
fn commands_after_a_refusal_that_was_seen_are_no_injection() {
    let heard = hear(&deliver(greeted().s(OFFER).c("STARTTLS\r\n").s("454 4.7.0 not now\r\n")), Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsRefused]);
}
