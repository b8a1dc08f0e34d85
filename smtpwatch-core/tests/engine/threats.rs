//! Every row A to G of docs/threats.md as a dialogue: the finding that it raises, its evidence and its outcome. The
//! dialogues are in `smtpwatch_testkit::threats`.

use std::collections::BTreeSet;

use smtpwatch_core::{
    Finding, Role, Side, TcpFlags,
    finding::{Evidence, Kind, Outcome, Severity},
    judge::catalogue,
    policy::rule::{AuthRule, Rule, StarttlsRule},
};
use smtpwatch_testkit::threats::{Known, Threat, a8, a9, d1, g9, heard, known_client, row, rules, threats};

use crate::evasions::late_copy;
use crate::scenario::{
    Dialogue, GREETING, OFFER, OwnedSegment, STRIPPED, citing, client_hello, deliver, greeted, hear, hear_after,
    honest, honest_history, server_hello, tls,
};

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
    [a8(&known_client()), a9(Known::History), a9(Known::Required), d1(Role::Client), crate::published::raised(), g9()]
        .concat()
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

#[test]
fn a8_a_known_client_that_stops_using_tls() {
    let findings = a8(&known_client());
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.kind, &*finding.rule, finding.evidence), (Kind::StarttlsUnused, "A8", Evidence::Regression));
    assert!(citing(finding, "FO-14").iter().any(|line| line.contains("SIZE")), "{:?}", finding.indicators);
    assert_eq!(a8(&[]), [], "nothing is known of the client");
}

#[test]
fn a9_a_strip_that_comes_back() {
    let findings = a9(Known::History);
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.kind, &*finding.rule), (Kind::StarttlsStripped, "A9"));
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
    let expected = &heard.findings[0].expected;
    assert_eq!((&*expected.source, expected.starttls), ("history", false));
    assert!(expected.detail.contains("6 sessions"), "{expected:?}");
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
    let finding = hear(&talk, Vec::new()).findings.remove(0);
    let [line] = citing(&finding, "FO-4")[..] else { panic!("{:?}", finding.indicators) };
    assert!(line.contains("TTL 41") && line.contains("64 to 64"), "{line}");
}

#[test]
fn fo8_a_reply_that_is_faster_than_the_handshake() {
    let mut talk = deliver(greeted().s(OFFER).c("STARTTLS\r\n").s("454 4.7.0 not now\r\n"));
    for packet in talk.packets.iter_mut().skip(1) {
        packet.at += 40_000_000;
    }
    let finding = hear(&talk, Vec::new()).findings.remove(0);
    let [ehlo, starttls] = citing(&finding, "FO-8")[..] else { panic!("{:?}", finding.indicators) };
    assert!(ehlo.contains("EHLO") && starttls.contains("STARTTLS"), "{ehlo}; {starttls}");
    assert!(ehlo.contains("41.00 ms") && starttls.contains("41.00 ms"), "{ehlo}; {starttls}");
}

#[test]
fn fo11_words_that_no_server_writes() {
    let forged = greeted().s("502 Error: command \"EHLO\" not implemented\r\n").c("HELO gw\r\n");
    let heard = hear_after(&honest_history(6), &deliver(forged.s("250 mx1\r\n")), Vec::new());
    let finding = &heard.findings[0];
    assert_eq!((finding.kind, finding.observed.reply), (Kind::EhloDowngraded, Some(502)));
    let [code, text] = citing(finding, "FO-11")[..] else { panic!("{:?}", finding.indicators) };
    assert!(code.contains("502") && code.contains("ENHANCEDSTATUSCODES") && text.contains("word for word"));
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
    let [line] = citing(&heard.findings[0], "FO-2")[..] else { panic!("{:?}", heard.findings[0].indicators) };
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
    let [ehlo, starttls] = citing(&heard.findings[0], "FO-8")[..] else { panic!("{indicators:?}") };
    assert!(ehlo.contains("EHLO") && starttls.contains("STARTTLS"), "{indicators:?}");
    let [code, text] = citing(&heard.findings[0], "FO-11")[..] else { panic!("{indicators:?}") };
    assert!(code.contains("ENHANCEDSTATUSCODES") && text.contains("word for word"), "{indicators:?}");
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
    let unlike = ["FO-4", "FO-6"].map(|id| citing(&same.findings[0], id));
    assert_eq!(unlike.concat(), Vec::<&str>::new());
}
