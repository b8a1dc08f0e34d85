//! What is kept to prove a finding: true to the octet, and without a secret.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use smtpwatch_core::{
    Finding, Side,
    exhibit::Exhibit,
    limits::{EXHIBIT_OCTETS, EXHIBIT_PACKETS},
    policy::rule::{AuthRule, Rule, StarttlsRule},
};

use crate::talk::{self, OFFER, STRIPPED, Talk, deliver, greeted, hear, hear_after, honest_history, tls};

fn exhibit(finding: &Finding) -> &Exhibit {
    finding.exhibit.as_deref().expect("evidence")
}

/// All octets of one side.
fn said(exhibit: &Exhibit, side: Side) -> Vec<u8> {
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

    // Every octet stands where the packets say that it stood.
    for packet in exhibit.packets.iter().filter(|packet| packet.length > 0) {
        let piece = exhibit.octets.iter().find(|piece| {
            piece.from == packet.from
                && packet.seq.wrapping_sub(piece.seq) < u32::try_from(piece.octets.len()).expect("short")
        });
        let Some(piece) = piece else {
            // The message itself.
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

/// Nothing of these in any form: whole, in base64 at each of its three places in a group, or the longer half of it.
const USER: &str = "anna.canary@example.org";
const PASSWORD: &str = "C4nary-P4ssw0rd-zq7Xk2";

fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned()];
    for before in ["", "\0", "\0\0", "user\0"] {
        let encoded = STANDARD.encode(format!("{before}{secret}"));
        // Without the ends, which depend on what stands beside it.
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

/// Every way in which a client sends a password (THREATS F1 to F9), and some in which it should not.
fn shapes() -> Vec<Talk> {
    let encode = |text: &str| STANDARD.encode(text);
    let plain = encode(&format!("\0{USER}\0{PASSWORD}"));
    let bearer = encode(&format!("user={USER}\x01auth=Bearer {PASSWORD}\x01\x01"));
    let (user, password) = (encode(USER), encode(PASSWORD));
    let begin = || Talk::new(587).s(talk::GREETING).c("EHLO gw\r\n").s(OFFER);
    let end = |talk: Talk| talk.s("535 5.7.8 no\r\n").c("QUIT\r\n").s("221 bye\r\n").close();
    let echo = |talk: Talk| talk.s(format!("535 5.7.8 {PASSWORD} is wrong: {plain}\r\n")).c("QUIT\r\n").close();
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
        // Refused before it was asked for, with a wrong verb, in the wrong place, without an end.
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
        // Where TLS should begin: it may run under TLS as if that had protected it (E3).
        tls(begin()
            .c(format!("STARTTLS\r\nAUTH PLAIN {plain}\r\nAUTH LOGIN\r\n{user}\r\n{password}\r\n"))
            .s("220 go\r\n"))
        .close(),
        tls(begin()
            .c("STARTTLS\r\n")
            .s("220 go\r\n")
            .c(format!("MAIL FROM:<a@example.org>\r\nDATA\r\nMAIL {PASSWORD}\r\n{PASSWORD} is it\r\n.\r\n")))
        .close(),
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
                // Nothing is longer or shorter than it was on the wire.
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
    let asked = || Talk::new(25).s(talk::GREETING).c("EHLO gw\r\n").s(OFFER).c("STARTTLS\r\n");
    let injected = "EHLO anna@example.org\r\nAUTH PLAIN AGEAYg==\r\nnobody knows\r\n";
    let blanked = "EHLO ****@example.org\r\nAUTH PLAIN ********\r\n************\r\n";
    let hello = talk::client_hello(0x0304);
    let commands =
        asked().s("220 go\r\n").c([injected.as_bytes(), &hello].concat()).s(talk::server_hello(0x0304, 0x1301, b""));
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
