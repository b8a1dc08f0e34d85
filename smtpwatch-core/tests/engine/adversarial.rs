//! Peers that try to evade the monitor, and peers that only seem to: one test per known way.

use smtpwatch_core::{
    Segment, Side, Timestamp,
    engine::{GateAction, LossCause, SessionResult},
    finding::{Evidence, Kind, Outcome},
    policy::rule::{Rule, StarttlsRule},
};

use crate::scenario::{
    Dialogue, GREETING, OFFER, Recorded, STRIPPED, client_hello, deliver, engine, greeted, hear, hear_after, honest,
    honest_history, server_hello, tls,
};

const PLAIN: &str = "AUTH PLAIN AHVzZXIAcGFzcw==\r\n";

fn required() -> Vec<Rule> {
    vec![Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }]
}

fn submission() -> Dialogue {
    Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s("250 mx1.example.net\r\n")
}

/// AUTH in two steps: undetected as soon as commands and replies are out of step.
fn two_steps(talk: Dialogue) -> Dialogue {
    talk.c("AUTH PLAIN\r\n").s("334 \r\n").c("AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close()
}

fn finds(kind: Kind, talk: &Dialogue) {
    let heard = hear(talk, Vec::new());
    assert!(heard.kinds().contains(&kind), "{kind}: {:?} {:?}", heard.kinds(), heard.sessions);
}

/// Omits the message's bytes as the gate does.
fn muted(mut talk: Dialogue, message: &str) -> Dialogue {
    let at = talk.packets.len();
    talk = talk.c(message);
    talk.packets[at].payload = Vec::new();
    talk
}

#[test]
fn a_refused_message_does_not_swallow_what_follows() {
    let data = || greeted().s(STRIPPED).c("MAIL FROM:<a@b.example>\r\n").s("250 ok\r\n").c("DATA\r\n").s("354 go\r\n");
    let refused = || muted(data(), "x\r\n.\r\n").s("550 5.7.1 spam\r\n");
    finds(Kind::AuthPlaintext, &refused().c(PLAIN).s("235 ok\r\n").close());
    finds(Kind::AuthPlaintext, &two_steps(refused()));
    assert_eq!(hear(&two_steps(refused()), Vec::new()).gaps, 0);
}

#[test]
fn a_handshake_of_tls_1_2_is_not_done_before_the_server_says_so() {
    let go = || greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    let cut = go().c(client_hello(0x0303)).s(server_hello(0x0303, 0xc02f, b"")).c([0x16, 3, 3, 0, 4, 16, 0, 0, 0]);
    let cut = cut.ack(Side::Server).reset(Side::Server);
    assert_eq!(hear(&cut, Vec::new()).kinds(), [Kind::TlsHandshakeFailed]);
    // The retry begins before the reset is trusted.
    let mut retry = deliver(greeted().s(OFFER)).at(1);
    retry.flow.client.set_port(50_000);
    let heard = hear_after(&[cut], &retry, Vec::new());
    assert!(heard.kinds().contains(&Kind::DowngradeRetry), "{:?}", heard.kinds());
}

#[test]
fn a_hello_that_nobody_asked_for_forgives_nothing() {
    let failed = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n").c(client_hello(0x0304)).ack(Side::Server);
    let failed = failed.reset(Side::Server).at(-7200);
    let bare = Dialogue::new(25).c(client_hello(0x0304)).ack(Side::Server).reset(Side::Client).at(-3600);
    let heard = hear_after(&[failed, bare], &deliver(greeted().s(OFFER)), Vec::new());
    assert!(heard.kinds().contains(&Kind::DowngradeRetry), "{:?}", heard.kinds());
}

#[test]
fn a_probe_that_leaves_after_the_go_ahead_explains_no_mail_in_clear() {
    let probe = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n").leave().at(-3600);
    assert!(!hear_after(&[probe], &deliver(greeted().s(OFFER)), Vec::new()).kinds().contains(&Kind::DowngradeRetry));
}

#[test]
fn a_stray_line_before_a_reply_shifts_nothing() {
    for stray in ["junk\r\n", "\r\n", "25\r\n"] {
        let heard = hear_after(&honest_history(9), &deliver(greeted().s(format!("{stray}{STRIPPED}"))), Vec::new());
        assert_eq!(heard.kinds(), [Kind::StarttlsStripped], "{stray:?}");
        let talk = submission().c("AUTH PLAIN\r\n").s(format!("{stray}334 \r\n")).c("AHVzZXIAcGFzcw==\r\n");
        finds(Kind::AuthPlaintext, &talk.s("235 ok\r\n").close());
    }
}

#[test]
fn a_name_in_the_reply_in_question_is_no_alibi() {
    let renamed = |reply: &str| reply.replace("mx1.example.net", "x.example.test");
    let mut before = honest_history(9);
    for hour in 1..7 {
        let talk = Dialogue::new(25).s(renamed(GREETING)).c("EHLO gw\r\n").s(renamed(STRIPPED));
        let mut other = deliver(talk).at(-hour * 3600);
        other.flow.server = "203.0.113.9:25".parse().expect("address");
        before.push(other);
    }
    let heard = hear_after(&before, &deliver(greeted().s(renamed(STRIPPED))), Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
}

#[test]
fn a_claim_that_was_held_back_survives_a_hole() {
    let talk = greeted().s(STRIPPED).c("MAIL FROM:<a@b.example>\r\n").s("250 ok\r\n");
    let lost = talk.packets.len();
    let mut talk = talk.c("RCPT TO:<a@b.example>\r\n").s("250 ok\r\n").c("QUIT\r\n").s("221 Bye\r\n").close();
    talk.packets.remove(lost);
    let heard = hear(&talk, required());
    assert_eq!((heard.kinds(), heard.gaps), (vec![Kind::StarttlsStripped], 1));
}

#[test]
fn a_claim_that_the_session_disproves_is_withdrawn() {
    // The first reply has no offer, MAIL is rejected for it, and the second try is under TLS (FP-6).
    let talk =
        greeted().s(STRIPPED).c("MAIL FROM:<a@b.example>\r\n").s("530 5.7.0 Must issue a STARTTLS command first\r\n");
    let talk = talk.c("EHLO gw.example.org\r\n").s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    assert_eq!(hear_after(&honest_history(9), &tls(talk).close(), Vec::new()).kinds(), []);
    let unused = greeted().s(OFFER).c("MAIL FROM:<a@b.example>\r\n").s("530 5.7.0 TLS first\r\n");
    let unused = unused.c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    assert_eq!(hear_after(&honest_history(9), &tls(unused).close(), Vec::new()).kinds(), []);
}

#[test]
fn a_chunk_that_the_server_does_not_know_hides_no_command() {
    let refused = |reply: &str| two_steps(submission().c("BDAT 1000000\r\n").s(reply));
    finds(Kind::AuthPlaintext, &refused("502 5.5.2 not recognized\r\n"));
    finds(Kind::AuthPlaintext, &two_steps(submission().c("BDAT x\r\n").s("501 what?\r\n")));
}

#[test]
fn an_empty_first_line_shifts_nothing() {
    let talk = Dialogue::new(587).s(GREETING).c("\r\n").s("500 5.5.2 bad syntax\r\n").c("EHLO gw\r\n");
    finds(Kind::AuthPlaintext, &two_steps(talk.s("250 mx1.example.net\r\n")));
}

#[test]
fn a_first_octet_of_tls_hides_no_command() {
    let talk = Dialogue::new(587).s(GREETING).c("\x16\r\nEHLO gw\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n");
    finds(Kind::AuthPlaintext, &talk.s("500 what?\r\n250 mx1.example.net\r\n235 ok\r\n").close());
}

#[test]
fn an_offer_that_comes_after_the_question_was_an_offer() {
    let talk = Dialogue::new(25).s(GREETING).c("EHLO gw\r\nSTARTTLS\r\n").s(format!("{OFFER}454 4.7.0 not now\r\n"));
    finds(Kind::StarttlsRefused, &deliver(talk));
}

#[test]
fn a_response_behind_a_refused_auth_has_crossed_the_wire() {
    finds(
        Kind::AuthPlaintext,
        &submission().c("AUTH PLAIN\r\nAHVzZXIAcGFzcw==\r\n").s("530 5.7.0 TLS first\r\n").close(),
    );
}

#[test]
fn no_echo_shows_a_secret() {
    let token = format!("dXNlcj1{}", "c2VjcmV0".repeat(200));
    let talk = submission().c(format!("AUTH XOAUTH2 {token}\r\n")).s(format!("500 too long: {}\r\n", &token[..600]));
    let heard = hear(&talk.s(format!("250 AUTH XOAUTH2 {}\r\n", &token[..40])).close(), Vec::new());
    let json = serde_json::to_string(&heard.findings[0]).expect("serialises");
    assert!(!json.contains("c2VjcmV0c2Vj"), "{json}");
}

#[test]
fn a_local_part_in_quotes_is_one_too() {
    let talk = greeted()
        .s(STRIPPED)
        .c("MAIL FROM:<\"bob smith@home\"@example.org> SIZE=9 AUTH=bob\r\n")
        .s("250 ok\r\n")
        .close();
    let heard = hear(&talk, required());
    let json = serde_json::to_string(&heard.findings[0]).expect("serialises");
    assert!(json.contains("MAIL FROM:<*@example.org> SIZE=9 AUTH=*") && !json.contains("bob"), "{json}");
}

#[test]
fn a_hello_in_the_form_of_ssl_2_is_neither_injection_nor_failure() {
    let hello = [&[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10][..], &[7; 37]].concat();
    let talk = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n").c(hello).s(server_hello(0x0301, 0x002f, b""));
    assert_eq!(hear(&talk.close(), Vec::new()).kinds(), []);
}

#[test]
fn blank_lines_behind_starttls_inject_nothing() {
    let talk = greeted().s(OFFER).c("STARTTLS\r\n\r\n").s("220 2.0.0 go\r\n");
    assert_eq!(hear(&tls(talk).close(), Vec::new()).kinds(), []);
}

#[test]
fn one_credential_is_one_finding() {
    let talk = Dialogue::new(25).s(GREETING).c("EHLO gw\r\n").s(OFFER).c(format!("STARTTLS\r\n{PLAIN}"));
    let heard = hear(&talk.s("454 4.7.0 not now\r\n530 5.7.0 no\r\n").close(), Vec::new());
    assert_eq!(heard.kinds().iter().filter(|kind| **kind == Kind::AuthPlaintext).count(), 1, "{:?}", heard.kinds());
}

#[test]
fn a_strip_on_587_is_a_strip_and_no_unused_offer() {
    let before: Vec<_> = (0..6)
        .map(|hour| {
            let talk = Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
            tls(talk).close().at((hour - 1000) * 3600)
        })
        .collect();
    let heard = hear_after(&before, &deliver(Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s(STRIPPED)), Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
}

#[test]
fn an_ehlo_reply_without_end_is_bounded() {
    let endless = format!("{OFFER}{}", "250 X\r\n".repeat(5000));
    let heard = hear_after(&[honest().at(-9)], &deliver(greeted().s(endless)), required());
    assert!(!heard.findings.is_empty(), "{:?}", heard.sessions);
    for finding in &heard.findings {
        assert!(finding.observed.capabilities.len() <= 128, "{:?}", finding.observed.capabilities);
    }
}

/// What follows the end of a message in the same segment is omitted with it.
#[test]
fn commands_that_were_left_out_with_a_message_are_known_by_their_replies() {
    let data = || greeted().s(STRIPPED).c("MAIL FROM:<a@b.example>\r\n").s("250 ok\r\n").c("DATA\r\n").s("354 go\r\n");
    let behind = |commands: &str, replies: &str| {
        muted(data(), &format!("x\r\n.\r\n{commands}")).s(format!("250 queued\r\n{replies}"))
    };
    // Another message: no part of it is parsed as commands.
    let next = behind("MAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n", "250 ok\r\n250 ok\r\n354 go\r\n");
    let heard = hear(&next.c(format!("{PLAIN}.\r\n")).s("250 queued\r\n").close(), Vec::new());
    assert_eq!((heard.kinds(), heard.sessions[0].messages), (vec![], 2));
    assert_eq!(heard.gate.iter().filter(|action| matches!(action, GateAction::MuteBody)).count(), 2);
    // A credential that only the replies show.
    for talk in [behind(PLAIN, "235 ok\r\n").close(), two_steps_unseen(behind("AUTH PLAIN\r\n", "334 \r\n"))] {
        let heard = hear(&talk, Vec::new());
        assert_eq!(heard.kinds(), [Kind::AuthExchangePlaintext], "{:?}", heard.sessions);
        assert!(!serde_json::to_string(&heard.findings[0]).expect("serialises").contains("AHVzZXIA"));
    }
    let heard = hear(&behind("STARTTLS\r\n", "220 go\r\n").close(), required());
    assert_eq!(heard.lost, [LossCause::OutOfStep]);
}

fn two_steps_unseen(talk: Dialogue) -> Dialogue {
    talk.c("AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close()
}

#[test]
fn commands_without_end_hide_none() {
    let noops = "NOOP\r\n".repeat(5000);
    let replies = "250 ok\r\n".repeat(5000);
    finds(Kind::AuthPlaintext, &two_steps(submission().c(noops).s(replies)));
    let mixed = "NOOP\r\nRSET\r\n".repeat(400);
    finds(Kind::AuthPlaintext, &two_steps(submission().c(mixed).s("250 ok\r\n".repeat(800))));
    let heard = hear(&submission().c("EHLO x\r\nNOOP\r\n".repeat(400)).close(), Vec::new());
    assert_eq!(heard.lost, [LossCause::OutOfStep]);
}

#[test]
fn replies_out_of_step_end_the_verdict() {
    // Two replies are missing, then comes 354: a message follows, whatever the count of replies.
    let talk = greeted().s(STRIPPED).c("NOOP\r\nNOOP\r\nDATA\r\n").s("354 go\r\n");
    let heard = hear(&talk.c(format!("{PLAIN}.\r\n")).s("250 ok\r\n").close(), Vec::new());
    assert_eq!((heard.kinds(), heard.lost), (vec![], vec![LossCause::OutOfStep]));
}

#[test]
fn a_dialogue_beyond_the_gates_budget_is_unknown() {
    let talk = submission().c("NOOP\r\n").s("250 ok\r\n").c(PLAIN);
    let mut engine = engine(required());
    let mut heard = Recorded::default();
    for (place, packet) in talk.packets.iter().enumerate() {
        let spent = place >= 6;
        let payload = if spent { &[][..] } else { &packet.payload };
        engine.handle(&Segment { budget_spent: place == 6, payload, ..talk.segment(packet) });
        heard.drain(&mut engine);
    }
    engine.finish(Timestamp(i64::MAX));
    heard.drain(&mut engine);
    assert_eq!((heard.kinds(), heard.lost), (vec![], vec![LossCause::Budget]));
}

#[test]
fn a_reply_too_many_does_not_make_commands_of_a_message() {
    let pipelined = || greeted().s(STRIPPED).c("MAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n");
    for replies in ["250 ok\r\n354 go\r\n", "250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n"] {
        let talk = pipelined().s(replies).c(format!("EHLO x\r\n{PLAIN}.\r\n")).s("250 ok\r\n").close();
        for talk in [talk.clone(), talk.cut(1)] {
            let heard = hear(&talk, Vec::new());
            assert_eq!((heard.kinds(), heard.lost), (vec![], vec![LossCause::OutOfStep]), "{replies:?}");
        }
    }
}

#[test]
fn no_echo_shows_the_password_itself() {
    let talk = submission().c(PLAIN).s("535 5.7.8 user user, password pass: no\r\n").close();
    let finding = hear(&talk, Vec::new()).findings.remove(0);
    let json = serde_json::to_string(&finding.transcript).expect("serialises");
    assert!(!json.contains("password pass:") && json.contains("[secret]"), "{json}");
}

#[test]
fn what_begins_like_tls_and_goes_on_in_clear_is_clear() {
    let go = || greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n");
    let ssl2 = [&[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10][..], &[7; 37]].concat();
    let short = [0x16, 3, 1, 2, 0, 1].to_vec();
    let alert = [0x15, 3, 1, 0, 2, 2, 40].to_vec();
    for (octets, answered, how) in [
        (ssl2, true, "a hello of SSL 2.0"),
        (short, true, "the start of a record"),
        (client_hello(0x0304), true, "a whole hello"),
        (client_hello(0x0304), false, "a whole hello, and no answer"),
        (alert.clone(), true, "an alert"),
        (alert, false, "an alert, and no answer"),
    ] {
        let begun = go().c(octets);
        let begun = if answered { begun.s("500 5.5.2 bad syntax\r\n") } else { begun.ack(Side::Server) };
        let heard = hear(&deliver(begun.clone()), Vec::new());
        assert_eq!(heard.kinds(), [Kind::TlsHandshakeFailed], "{how}: {:?}", heard.sessions);
        let finding = &heard.findings[0];
        assert_eq!(
            (&*finding.rule, finding.evidence, finding.outcome),
            ("C6", Evidence::Tamper, Outcome::Content),
            "{how}"
        );
        assert_eq!(heard.sessions[0].result, SessionResult::Plaintext, "{how}");
        finds(Kind::AuthPlaintext, &begun.c(PLAIN).s("235 ok\r\n").close());
    }
    let failed = go().c(client_hello(0x0304)).ack(Side::Server).reset(Side::Server);
    assert_eq!(hear(&failed, Vec::new()).sessions[0].result, SessionResult::Rejected);
}

#[test]
fn a_password_behind_sixteen_attempts_is_one_too() {
    let mut talk = submission();
    for _ in 0..20 {
        talk = talk.c("AUTH FOO\r\n").s("504 5.5.4 no\r\n");
    }
    finds(Kind::AuthPlaintext, &talk.clone().c(PLAIN).s("235 ok\r\n").close());
    for _ in 0..20 {
        talk = talk.c("AUTH CRAM-MD5\r\n").s("334 x\r\n").c("dXNlciAwMTIz\r\n").s("535 no\r\n");
    }
    let heard = hear(&talk.c(PLAIN).s("235 ok\r\n").close(), Vec::new());
    assert_eq!(heard.kinds().iter().filter(|kind| **kind == Kind::AuthPlaintext).count(), 1);
    assert_eq!(heard.findings.len(), 17, "sixteen exchanges and the password");
}

#[test]
fn an_ehlo_that_is_answered_with_anything_else_is_refused() {
    for reply in ["538 no\r\n", "100 x\r\n", "600 x\r\n", "334 x\r\n", "25\r\n", "ABC no\r\n", "-250\r\n"] {
        let heard = hear_after(&honest_history(9), &deliver(greeted().s(reply)), Vec::new());
        assert_eq!(heard.kinds(), [Kind::EhloDowngraded], "{reply:?} {:?}", heard.sessions);
    }
    for (ehlo, helo) in [("ABC no\r\n", "250 mx1\r\n"), ("500 no\r\n", "538 no\r\n"), ("500 no\r\n", "ABC\r\n")] {
        let talk = deliver(greeted().s(ehlo).c("HELO gw.example.org\r\n").s(helo));
        assert_eq!(
            hear_after(&honest_history(9), &talk, Vec::new()).kinds(),
            [Kind::EhloDowngraded],
            "{ehlo:?} {helo:?}"
        );
    }
    for banner in ["25 mx1.example.net\r\n", "ABC hello\r\n", "000 x\r\n"] {
        let talk = deliver(Dialogue::new(25).s(banner).c("EHLO gw.example.org\r\n").s(STRIPPED));
        assert_eq!(hear_after(&honest_history(9), &talk, Vec::new()).kinds(), [Kind::StarttlsStripped], "{banner:?}");
    }
}

#[test]
fn a_chunk_that_the_server_reads_as_commands_ends_the_verdict() {
    let offer = OFFER.replace("250 8BITMIME", "250 CHUNKING");
    let talk = greeted().s(&offer).c("BDAT 2147483648\r\n").s("552 5.3.4 too big\r\n").c(PLAIN).s("235 ok\r\n");
    let heard = hear(&talk.close(), Vec::new());
    assert_eq!((heard.kinds(), heard.lost), (vec![], vec![LossCause::OutOfStep]));
}

#[test]
fn lines_beyond_those_that_are_kept_count_where_they_tell_of_starttls() {
    let long = || format!("250-mx1.example.net\r\n{}", "250-X-FEATURE\r\n".repeat(2500));
    let kinds = |line: &str| {
        let reply =
            greeted().s(long()).ack(Side::Client).s("250-X-FEATURE\r\n".repeat(2500)).s(format!("250 {line}\r\n"));
        hear_after(&honest_history(9), &deliver(reply), Vec::new()).kinds()
    };
    assert_eq!(kinds("STARTTLS"), [Kind::StarttlsUnused]);
    assert_eq!(kinds("XXXXXXXA"), [Kind::StarttlsMasked]);
    assert_eq!(kinds("HELP"), [Kind::StarttlsStripped]);
}

#[test]
fn a_session_of_which_all_was_lost_is_counted() {
    let mut talk = deliver(greeted().s(STRIPPED));
    talk.packets.retain(|packet| packet.payload.is_empty());
    let heard = hear(&talk, Vec::new());
    assert_eq!((heard.sessions.len(), heard.sessions[0].result), (1, SessionResult::Unknown));
}

#[test]
fn what_the_server_may_quote_is_not_shown() {
    let secret = "AHVzZXIAcGFzcw==";
    let shows = |talk: Dialogue| {
        let heard = hear(&talk.close(), Vec::new());
        heard.findings.iter().any(|finding| serde_json::to_string(finding).expect("serialises").contains(secret))
    };
    let auth = || submission().c(PLAIN).s("535 no\r\n");
    let mut flushed = auth();
    for number in 0..9 {
        flushed = flushed.c(format!("FROB word-number-{number}\r\n")).s("500 what?\r\n");
    }
    assert!(!shows(flushed.c("NOOP\r\n").s(format!("250 {secret}\r\n"))));
    assert!(!shows(
        submission().c(format!("EHLO x\rAUTH PLAIN {secret}\r\n")).s("250 ok\r\n").c(PLAIN).s("235 ok\r\n")
    ));
    assert!(!shows(
        auth().c(format!("MAIL FROM:<a@b.example> {secret}\r\nQUIT {secret}\r\n")).s("250 ok\r\n221 Bye\r\n")
    ));
    // Lines of a message after a rejected DATA; the server quotes them one by one.
    let body = greeted().s(STRIPPED).c("DATA\r\n").s("503 no\r\n").c("Dear Bob, the code is 4711\r\n");
    let heard = hear(
        &body.s("500 unrecognized: \"Dear Bob, the code is 4711\"\r\n").c(PLAIN).s("235 ok\r\n").close(),
        required(),
    );
    assert!(heard.kinds().contains(&Kind::AuthPlaintext), "{:?}", heard.kinds());
    for finding in &heard.findings {
        assert!(!serde_json::to_string(finding).expect("serialises").contains("Bob"), "{finding:?}");
    }
}

#[test]
fn a_message_behind_a_refused_data_is_not_shown() {
    let talk = greeted().s(STRIPPED).c("DATA\r\n").s("503 5.5.1 no\r\n");
    let talk = talk.c("Ab cd ef\r\nxyzzy\r\n").s("500 what is Ab cd ef?\r\n500 what is xyzzy?\r\n");
    let heard = hear(&talk.c(PLAIN).s("235 ok\r\n").close(), required());
    for finding in heard.findings {
        let json = serde_json::to_string(&finding).expect("serialises");
        assert!(!json.contains("Ab cd") && !json.contains("xyzzy?"), "{json}");
    }
}

#[test]
fn a_reply_that_answers_nothing_is_no_message() {
    finds(Kind::AuthPlaintext, &submission().s("354 what?\r\n").c(PLAIN).s("235 ok\r\n").close());
}
