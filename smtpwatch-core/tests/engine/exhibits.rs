//! The evidence of findings: exact to the byte, and without secrets.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use smtpwatch_core::{
    Finding, Side,
    evidence::EvidenceBundle,
    limits::{EXHIBIT_OCTETS, EXHIBIT_PACKETS},
    policy::rule::{AuthRule, Rule, StarttlsRule},
};

use crate::scenario::{self, Dialogue, OFFER, STRIPPED, deliver, greeted, hear, hear_after, honest_history, tls};

fn exhibit(finding: &Finding) -> &EvidenceBundle {
    finding.exhibit.as_deref().expect("evidence")
}

/// All bytes of one side.
fn said(exhibit: &EvidenceBundle, side: Side) -> Vec<u8> {
    exhibit.octets.iter().filter(|piece| piece.from == side).flat_map(|piece| piece.octets.iter().copied()).collect()
}

#[test]
fn a_strip_is_proven_by_octets_packets_and_history() {
    let talk = deliver(greeted().s(STRIPPED));
    let heard = hear_after(&honest_history(5), &talk, Vec::new());
    let exhibit = exhibit(&heard.findings[0]);
    let server = String::from_utf8(said(exhibit, Side::Server)).expect("text");
    assert!(server.contains(STRIPPED) && !server.contains("STARTTLS"), "{server}");
    let client = String::from_utf8(said(exhibit, Side::Client)).expect("text");
    assert!(client.starts_with("EHLO ") && client.contains("MAIL FROM:<") && client.contains("DATA\r\n"), "{client}");
    assert!(!client.contains("Subject"), "no message");

    // Every byte is at the offset that the packets show.
    for packet in exhibit.packets.iter().filter(|packet| packet.length > 0) {
        let piece = exhibit.octets.iter().find(|piece| {
            piece.from == packet.from
                && packet.seq.wrapping_sub(piece.seq) < u32::try_from(piece.octets.len()).expect("short")
        });
        let Some(piece) = piece else {
            // A packet without retained bytes: the message content.
            assert_eq!(packet.from, Side::Client);
            continue;
        };
        let at = packet.seq.wrapping_sub(piece.seq) as usize;
        assert!(at == 0 || piece.octets[at - 1] == b'\n', "a line begins with its packet");
    }
    let before = talk.packets.iter().filter(|packet| packet.at <= heard.findings[0].time.0).count();
    assert_eq!(exhibit.packets.len(), before, "each packet up to the verdict");
    assert_eq!((exhibit.packets_left_out, exhibit.octets_left_out), (0, 0));
    let known = exhibit.history.as_ref().expect("history");
    assert_eq!((known.record.sessions, known.record.offered.yes), (5, 5));
    let profile = known.record.profile.as_ref().expect("its look");
    assert!(profile.keywords.iter().any(|keyword| keyword == "STARTTLS"), "{profile:?}");
    assert!(exhibit.policies.is_empty());

    let rule = vec![Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }];
    let heard = hear(&deliver(greeted().s(STRIPPED)), rule);
    let exhibit = self::exhibit(&heard.findings[0]);
    assert_eq!((exhibit.policies[0].source.as_str(), exhibit.policies[0].mode.as_str()), ("rule", "enforce"));
}

#[test]
fn a_long_dialogue_is_bounded_and_says_what_was_left_out() {
    let mut talk = greeted().s(STRIPPED);
    for _ in 0..EXHIBIT_OCTETS / 1_000 + 20 {
        talk = talk.c(format!("NOOP {}\r\n", "x".repeat(1_000))).s("250 ok\r\n");
    }
    let rule = vec![Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }];
    let heard = hear(&deliver(talk), rule);
    let exhibit = exhibit(&heard.findings[0]);
    assert_eq!(said(exhibit, Side::Client).len(), EXHIBIT_OCTETS);
    assert!(exhibit.octets_left_out > 10_000, "{}", exhibit.octets_left_out);
    assert!(exhibit.packets.len() <= EXHIBIT_PACKETS);
}

/// Must not occur in any form: whole, in base64 at each of its three alignments, or the longer half of it.
const USER: &str = "anna.canary@example.org";
const PASSWORD: &str = "C4nary-P4ssw0rd-zq7Xk2";

fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned()];
    for before in ["", "\0", "\0\0", "user\0"] {
        let encoded = STANDARD.encode(format!("{before}{secret}"));
        // Without the ends, which depend on the bytes next to it.
        forms.push(encoded.trim_end_matches('=')[(before.len() * 4).div_ceil(3)..].trim_end_matches('=').to_owned());
    }
    let halves: Vec<_> = forms.iter().map(|form| form[form.len() / 4..form.len() * 3 / 4].to_owned()).collect();
    forms.extend(halves);
    forms
}

fn leaks(what: &str, octets: &[u8]) {
    let text = String::from_utf8_lossy(octets).to_lowercase();
    for form in forms(PASSWORD) {
        assert!(!text.contains(&form.to_lowercase()), "{what}: {form} in {text}");
    }
}

/// Every form in which a client sends a password (docs/threats.md F1 to F9), and some invalid ones.
fn shapes() -> Vec<Dialogue> {
    let encode = |text: &str| STANDARD.encode(text);
    let plain = encode(&format!("\0{USER}\0{PASSWORD}"));
    let bearer = encode(&format!("user={USER}\x01auth=Bearer {PASSWORD}\x01\x01"));
    let (user, password) = (encode(USER), encode(PASSWORD));
    let begin = || Dialogue::new(587).s(scenario::GREETING).c("EHLO gw\r\n").s(OFFER);
    let end = |talk: Dialogue| talk.s("535 5.7.8 no\r\n").c("QUIT\r\n").s("221 bye\r\n").close();
    let echo = |talk: Dialogue| talk.s(format!("535 5.7.8 {PASSWORD} is wrong: {plain}\r\n")).c("QUIT\r\n").close();
    vec![
        end(begin().c(format!("AUTH PLAIN {plain}\r\n"))),
        end(begin().c(format!("auth plain   {plain}  \r\n"))),
        echo(begin().c(format!("AUTH PLAIN {plain}\r\n"))),
        end(begin().c("AUTH PLAIN\r\n").s("334 \r\n").c(format!("{plain}\r\n"))),
        end(begin()
            .c("AUTH LOGIN\r\n")
            .s("334 VXNlcm5hbWU6\r\n")
            .c(format!("{user}\r\n"))
            .s("334 UGFzc3dvcmQ6\r\n")
            .c(format!("{password}\r\n"))),
        end(begin().c(format!("AUTH LOGIN {user}\r\n")).s("334 UGFzc3dvcmQ6\r\n").c(format!("{password}\r\n"))),
        end(begin().c(format!("AUTH LOGIN\r\n{user}\r\n{password}\r\n"))),
        end(begin().c(format!("AUTH XOAUTH2 {bearer}\r\n"))),
        end(begin().c(format!("AUTH OAUTHBEARER {bearer}\r\n"))),
        end(begin().c(format!("X-EXPS LOGIN {user}\r\n")).s("334 UGFzc3dvcmQ6\r\n").c(format!("{password}\r\n"))),
        // Rejected before the challenge, with a wrong verb, in the wrong place, without an end.
        end(begin().c(format!("AUTH {plain}\r\n")).s("504 no\r\n").c(format!("AUTH PLAIN {plain}\r\n"))),
        end(begin().c(format!("AUTH {PASSWORD}\r\n")).s("504 no\r\n").c(format!("AUTH PLAIN {plain}\r\n"))),
        end(begin()
            .c(format!("XXXX PLAIN {plain}\r\n"))
            .s(format!("500 unknown: \"XXXX PLAIN {plain}\"\r\n"))
            .c(format!("AUTH PLAIN {plain}\r\n"))),
        end(begin()
            .c(format!("{PASSWORD}\r\n"))
            .s(format!("500 {PASSWORD}?\r\n"))
            .c(format!("AUTH PLAIN {plain}\r\n"))),
        end(begin()
            .c(format!("MAIL {PASSWORD} FROM:<{PASSWORD}@example.org> AUTH={PASSWORD} X={PASSWORD}\r\n"))
            .s("501 no\r\n")
            .c(format!("AUTH PLAIN {plain}\r\n"))),
        end(begin().c(format!("STARTTLS {PASSWORD}\r\n")).s("454 no\r\n").c(format!("AUTH PLAIN {plain}\r\n"))),
        end(begin().c("STARTTLS\r\n").s("220 go\r\n").c(format!("AUTH PLAIN {plain}\r\n"))),
        // Where TLS should begin: the server may execute it under TLS as if it had been protected (E3).
        tls(begin()
            .c(format!("STARTTLS\r\nAUTH PLAIN {plain}\r\nAUTH LOGIN\r\n{user}\r\n{password}\r\n"))
            .s("220 go\r\n"))
        .close(),
        tls(begin()
            .c("STARTTLS\r\n")
            .s("220 go\r\n")
            .c(format!("MAIL FROM:<a@example.org>\r\nDATA\r\nMAIL {PASSWORD}\r\n{PASSWORD} is it\r\n.\r\n")))
        .close(),
        // After a refusal or a line without a code, with a client that continues.
        end(begin()
            .c("AUTH LOGIN\r\n")
            .s("503 no\r\n")
            .c(format!("{user}\r\n"))
            .s("500 what?\r\n")
            .c(format!("{password}\r\n"))),
        end(begin()
            .c("AUTH LOGIN\r\n")
            .s("334 x\r\n")
            .c(format!("{user}\r\n"))
            .s("535 no\r\n")
            .c(format!("{PASSWORD}\r\n"))),
        end(begin()
            .c("AUTH LOGIN\r\n")
            .s("no code\r\n")
            .c(format!("{user}\r\n"))
            .s("500 what?\r\n")
            .c(format!("{password}\r\n"))),
        end(begin().c(format!("AUTH {USER} {PASSWORD}\r\n"))),
        begin().c(format!("AUTH PLAIN {plain}")).close(),
        begin()
            .c("AUTH LOGIN\r\n")
            .s("334 VXNlcm5hbWU6\r\n")
            .c(format!("{user}\r\n"))
            .s("334 UGFzc3dvcmQ6\r\n")
            .c(password)
            .close(),
    ]
}

#[test]
fn a_password_is_in_no_finding_and_no_evidence_and_its_length_is() {
    let rules = || {
        vec![Rule { starttls: Some(StarttlsRule::Required), auth_plaintext: Some(AuthRule::Forbid), ..Rule::default() }]
    };
    for (number, talk) in shapes().into_iter().enumerate() {
        for (cut, talk) in [("whole", talk.clone()), ("octet by octet", talk.cut(1)), ("in sevens", talk.cut(7))] {
            let heard = hear(&talk, rules());
            assert!(!heard.findings.is_empty(), "shape {number} {cut}");
            for finding in &heard.findings {
                let what = format!("shape {number} {cut}, {}", finding.kind);
                leaks(&what, &serde_json::to_vec(finding).expect("JSON"));
                leaks(&what, format!("{finding:?}").as_bytes());
                let exhibit = exhibit(finding);
                leaks(&what, &serde_json::to_vec(exhibit).expect("JSON"));
                for side in [Side::Client, Side::Server] {
                    leaks(&what, &said(exhibit, side));
                }
                // Every packet has the length that it had on the wire.
                let sent: u64 = exhibit.packets.iter().map(|packet| u64::from(packet.length)).sum();
                let kept: usize = exhibit.octets.iter().map(|piece| piece.octets.len()).sum();
                assert!(kept as u64 <= sent || exhibit.packets_left_out > 0, "{what}");
            }
        }
    }
    let heard = hear(&shapes()[0], rules());
    let exhibit = exhibit(&heard.findings[0]);
    let client = String::from_utf8(said(exhibit, Side::Client)).expect("text");
    let octets = STANDARD.encode(format!("\0{USER}\0{PASSWORD}")).len();
    assert!(client.contains(&format!("AUTH PLAIN {}\r\n", "*".repeat(octets))), "{client}");
    assert_eq!(heard.findings[0].observed.mechanism.as_deref(), Some("PLAIN"));
}

#[test]
fn what_stands_where_tls_should_begin_is_kept_with_the_hello_behind_it() {
    let asked = || Dialogue::new(25).s(scenario::GREETING).c("EHLO gw\r\n").s(OFFER).c("STARTTLS\r\n");
    let injected = "EHLO anna@example.org\r\nAUTH PLAIN AGEAYg==\r\nnobody knows\r\n";
    let blanked = "EHLO ****@example.org\r\nAUTH PLAIN ********\r\n************\r\n";
    let hello = scenario::client_hello(0x0304);
    let commands = asked()
        .s("220 go\r\n")
        .c([injected.as_bytes(), &hello].concat())
        .s(scenario::server_hello(0x0304, 0x1301, b""));
    let heard = hear(&commands.close(), Vec::new());
    let client = said(exhibit(&heard.findings[0]), Side::Client);
    assert!(client.ends_with(&[b"STARTTLS\r\n", blanked.as_bytes(), &hello].concat()), "{}", client.escape_ascii());

    let replies = tls(asked().s("220 go\r\n250-evil <anna@example.org>\r\n250 AUTH LOGIN\r\n")).close();
    let heard = hear(&replies, Vec::new());
    let server = said(exhibit(&heard.findings[0]), Side::Server);
    assert!(
        server.ends_with(b"220 go\r\n250-evil <****@example.org>\r\n250 AUTH LOGIN\r\n"),
        "{}",
        server.escape_ascii()
    );
}

/// A word as used in passwords; none that the product prints by itself or that is a verb.
fn word() -> impl Strategy<Value = String> {
    "[bcdfghjklmnpqrvwz]{3,11}"
}

/// Every place of a session where a confused client might send a password: alone or as an argument, raw or in base64,
/// before AUTH, after it, after its refusal, instead of a response, in a message, where TLS should begin.
fn confused(word: &str, place: usize) -> Dialogue {
    let sent = match place % 3 {
        0 => word.to_owned(),
        1 => STANDARD.encode(word),
        _ => word.to_uppercase(),
    };
    let begin = || Dialogue::new(587).s(scenario::GREETING).c("EHLO gw\r\n").s(OFFER);
    let quoted = format!("500 5.5.1 unknown: \"{sent}\" ({word})\r\n");
    let refused = |talk: Dialogue| talk.s("535 5.7.8 no\r\n");
    let middle = match place / 3 {
        0 => refused(begin().c("AUTH LOGIN\r\n").s("334 x\r\n").c("dXNlcg==\r\n")).c(format!("{sent}\r\n")).s(quoted),
        1 => begin().c("AUTH PLAIN\r\n").s("503 no\r\n").c(format!("{sent}\r\n")).s(quoted),
        2 => begin().c(format!("AUTH {sent}\r\n")).s(quoted),
        3 => begin().c(format!("AUTH {sent} {word}\r\n")).s(format!("504 {word}?\r\n")),
        4 => begin().c(format!("AUTH LOGIN\r\n{sent}\r\n{word}\r\n")).s(format!("503 no\r\n{quoted}{quoted}")),
        5 => begin().c(format!("{sent}\r\n")).s(quoted),
        6 => begin().c("AUTH LOGIN\r\n").s("junk\r\n").c(format!("{sent}\r\n")).s(quoted),
        7 => begin().c("AUTH CRAM-MD5\r\n").s("334 x\r\n").c(format!("{sent}\r\n")).s(format!("535 no {sent}\r\n")),
        8 => begin().c(format!("LOGIN {word} {sent}\r\n")).s(quoted),
        9 => begin().c(format!("STARTTLS {sent}\r\n")).s("501 no\r\n"),
        10 => begin().c(format!("NOOP {sent}\r\n")).s("250 ok\r\n"),
        11 => begin().c(format!("DATA {sent}\r\n")).s(quoted),
        12 => begin().c("DATA\r\n").s("503 no\r\n").c(format!("{sent}\r\n")).s(quoted),
        13 => begin().c("DATA\r\n").s("350 go\r\n").c(format!("{sent}\r\n.\r\n")).s("250 ok\r\n"),
        14 => begin().c(format!("BDAT 40 LAST\r\n{sent}\r\n{word}\r\n")).s(format!("500 no\r\n{quoted}{quoted}")),
        15 => begin().c(format!("VRFY {sent}\r\n")).s(quoted),
        16 => begin().c(format!("MAIL FROM:<{word}@example.org> AUTH={sent}\r\n")).s("501 no\r\n"),
        17 => begin().c(format!("QUIT {sent}\r\n")).s("500 no\r\n"),
        18 => begin().c(format!("AUTH PLAIN {sent}\r\n*\r\n{word}\r\n")).s(format!("501 no\r\n{quoted}")),
        19 => tls(begin().c(format!("STARTTLS\r\n{sent}\r\n")).s("220 go\r\n")),
        20 => begin().c("STARTTLS\r\n").s("220 go\r\n").c(format!("{sent}\r\n")).s(quoted),
        21 => begin()
            .c("AUTH LOGIN\r\n")
            .s("334 x\r\n")
            .c("dXNlcg==\r\n")
            .s("junk\r\n")
            .c(format!("{sent}\r\n"))
            .s(quoted),
        22 => begin().c(format!("\r\n{sent} {word}\r\n")).s(format!("500 what?\r\n{quoted}")),
        _ => begin().c(format!("XCLIENT LOGIN={sent}\r\n")).s("550 no\r\n"),
    };
    // A finding that quotes the whole session, and one more reply in which the server may quote the word. Message
    // content is not recorded.
    let plain = STANDARD.encode("\0someone\0something");
    let quoted = if place / 3 == 13 { String::new() } else { format!("{word} {sent}") };
    let middle = middle.c(format!("AUTH PLAIN {plain}\r\n")).s(format!("535 5.7.8 {quoted}\r\n"));
    middle.c("QUIT\r\n").s("221 bye\r\n").close()
}

/// An NTLM message ([MS-NLMP] §2.2.1.3) with these names, in UTF-16 or in a code page, and a response of the client.
fn ntlm(domain: &str, user: &str, response: &[u8], unicode: bool) -> Vec<u8> {
    let name = |text: &str| match unicode {
        true => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        false => text.as_bytes().to_vec(),
    };
    let (mut head, mut payload) = (b"NTLMSSP\0\x03\0\0\0".to_vec(), Vec::new());
    for part in [response.to_vec(), response.to_vec(), name(domain), name(user), name("WS1"), Vec::new()] {
        let length = u16::try_from(part.len()).expect("short").to_le_bytes();
        head.extend([length, length].concat());
        head.extend(u32::try_from(64 + payload.len()).expect("short").to_le_bytes());
        payload.extend(part);
    }
    [head, vec![u8::from(unicode), 2, 8, 0xa2], payload].concat()
}

/// What a client sends in cleartext with each mechanism: its name, its responses before base64, and the parts that a
/// server may quote.
fn exchanges(user: &str, domain: &str, secret: &str) -> Vec<(&'static str, Vec<Vec<u8>>, String)> {
    let response: Vec<u8> =
        secret.bytes().cycle().zip(0..24).map(|(byte, turn)| byte.wrapping_mul(turn | 129)).collect();
    let hex: String = response.iter().map(|byte| format!("{byte:02x}")).collect();
    let encoded = STANDARD.encode(&response);
    let negotiate = [&b"NTLMSSP\0\x01\0\0\0\x07\x32\0\0"[..], &[0; 16]].concat();
    let spnego = [&[0x60, 0x48, 6, 6, 0x2b, 6, 1, 5, 5, 2][..], &ntlm(domain, user, &response, true)].concat();
    let digest = format!(
        "username=\"{user}\",realm=\"{domain}\",nonce=\"OA6MG9tE\",nc=00000001,cnonce=\"{secret}\",qop=auth,response={hex}"
    );
    let text = |text: String| text.into_bytes();
    let quoted = |proof: &str| format!("{user} ({domain}\\{user}, {user}@{domain}) {proof}");
    vec![
        ("PLAIN", vec![text(format!("{user}\0{user}\0{secret}"))], format!("{user} {secret}")),
        ("LOGIN", vec![text(user.to_owned()), text(secret.to_owned())], format!("{user} {secret}")),
        ("XOAUTH2", vec![text(format!("user={user}\x01auth=Bearer {secret}\x01\x01"))], format!("{user} {secret}")),
        (
            "OAUTHBEARER",
            vec![text(format!("n,a={user},\x01host={domain}\x01port=587\x01auth=Bearer {secret}\x01\x01"))],
            quoted(secret),
        ),
        ("CRAM-MD5", vec![text(format!("{user} {hex}"))], format!("{user} {hex}")),
        ("DIGEST-MD5", vec![text(digest), Vec::new()], format!("{user} {domain} {hex}")),
        (
            "SCRAM-SHA-256",
            vec![
                text(format!("n,a={domain},n={user},r={secret}")),
                text(format!("c=biws,r={secret}3rfcNHYJY1ZV,p={encoded}")),
            ],
            format!("{domain} {user} {secret} {encoded}"),
        ),
        ("NTLM", vec![negotiate.clone(), ntlm(domain, user, &response, true)], quoted(&hex)),
        ("NTLM", vec![negotiate, ntlm(domain, user, &response, false)], quoted(&hex)),
        ("GSS-SPNEGO", vec![spnego], quoted(&hex)),
    ]
}

/// The exchange in each form: after a challenge, at once, with `=`, rejected permanently or temporarily and continued,
/// after a line without a code, without waiting, rejected in the middle. `quoted` is in the server's last reply.
fn exchange_shapes(mechanism: &str, responses: &[Vec<u8>], quoted: &str) -> Vec<(&'static str, Dialogue)> {
    let lines: Vec<String> = responses.iter().map(|response| format!("{}\r\n", STANDARD.encode(response))).collect();
    let begin = || Dialogue::new(587).s(scenario::GREETING).c("EHLO gw\r\n").s(OFFER);
    let auth = format!("AUTH {mechanism}\r\n");
    let at_once = format!("AUTH {mechanism} {}", lines[0]);
    // Nothing can be quoted before it was sent.
    let each = |talk: Dialogue, lines: &[String], reply: &str| match lines.split_last() {
        Some((last, others)) => others.iter().fold(talk, |talk, line| talk.c(line).s("334 x\r\n")).c(last).s(reply),
        None => talk,
    };
    let echo = STANDARD.encode(quoted);
    let mut shapes = vec![
        ("asked for", each(begin().c(&auth).s("334 \r\n"), &lines, &format!("334 {echo}\r\n"))),
        ("at once", each(begin().c(&at_once).s("334 x\r\n"), &lines[1..], "334 x\r\n")),
        ("an empty response", each(begin().c(format!("AUTH {mechanism} =\r\n")).s("334 x\r\n"), &lines, "334 x\r\n")),
        ("without waiting", begin().c(format!("{auth}{}", lines.concat())).s(format!("503 no\r\n500 {quoted}?\r\n"))),
    ];
    for refusal in ["454 4.7.0 not at the moment\r\n", "535 5.7.8 no\r\n", "junk\r\n"] {
        let what = format!("500 5.5.2 {quoted}?\r\n");
        shapes.push((refusal, each(begin().c(&auth).s(refusal), &lines, &what)));
        shapes.push((refusal, each(begin().c(&at_once).s(refusal), &lines[1..], &what)));
        let middle = begin().c(&auth).s("334 x\r\n").c(&lines[0]).s(refusal);
        shapes.push((refusal, each(middle, &lines[1..], &what)));
    }
    // The last exchange ends, a finding quotes the whole session, and the server has one more reply in which it may
    // quote.
    let end = |talk: Dialogue| {
        let talk =
            talk.c("*\r\n").s("501 cancelled\r\n").c(format!("AUTH PLAIN {}\r\n", STANDARD.encode("\0some\0thing")));
        talk.s(format!("535-5.7.8 {quoted}\r\n535 5.7.8 {echo}\r\n")).c("QUIT\r\n").s("221 bye\r\n").close()
    };
    shapes.into_iter().map(|(shape, talk)| (shape, end(talk))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2, ..ProptestConfig::default() })]

    #[test]
    fn names_and_proofs_of_every_mechanism_are_in_no_finding(user in word(), domain in word(), secret in "[a-z]{4}[0-9]{4}[A-Z]{6}") {
        let rule = Rule { auth_plaintext: Some(AuthRule::Forbid), ..Rule::default() };
        for (mechanism, responses, quoted) in exchanges(&user, &domain, &secret) {
            let hidden: Vec<String> = quoted.split([' ', '(', ')', '\\', '@', ',']).map(str::to_lowercase).filter(|word| word.len() > 2).collect();
            let encoded: Vec<String> = responses.iter().chain([&quoted.clone().into_bytes()]).map(|response| STANDARD.encode(response).to_lowercase()).filter(|text| !text.is_empty()).collect();
            for (shape, talk) in exchange_shapes(mechanism, &responses, &quoted) {
                for talk in [talk.clone(), talk.cut(5), talk.seen_by_server()] {
                    let findings = hear(&talk, vec![rule.clone()]).findings;
                    prop_assert!(!findings.is_empty(), "{mechanism} {shape}");
                    for finding in findings {
                        let exhibit = exhibit(&finding);
                        let said = [said(exhibit, Side::Client), said(exhibit, Side::Server)].concat();
                        let text = [serde_json::to_vec(&finding).expect("JSON"), format!("{finding:?}").into_bytes(), said].concat();
                        let text = String::from_utf8_lossy(&text).to_lowercase();
                        for word in hidden.iter().chain(&encoded) {
                            prop_assert!(!text.contains(word), "{mechanism} {shape:?}: {word} in {text}");
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2, ..ProptestConfig::default() })]

    #[test]
    fn a_word_that_a_confused_client_sends_is_in_no_finding(word in word()) {
        let rule = Rule { starttls: Some(StarttlsRule::Required), auth_plaintext: Some(AuthRule::Forbid), ..Rule::default() };
        for place in 0..24 * 3 {
            for talk in [confused(&word, place), confused(&word, place).cut(5), confused(&word, place).seen_by_server()] {
                for finding in hear(&talk, vec![rule.clone()]).findings {
                    let exhibit = exhibit(&finding);
                    let said = [said(exhibit, Side::Client), said(exhibit, Side::Server)].concat();
                    let text = [serde_json::to_vec(&finding).expect("JSON"), format!("{finding:?}").into_bytes(), said].concat();
                    let text = String::from_utf8_lossy(&text).to_lowercase();
                    for form in [word.clone(), STANDARD.encode(&word).to_lowercase(), STANDARD.encode(word.to_uppercase()).to_lowercase()] {
                        let form = form.trim_end_matches('=');
                        prop_assert!(!text.contains(form), "place {}: {form} in {text}", place / 3);
                    }
                }
            }
        }
    }
}
