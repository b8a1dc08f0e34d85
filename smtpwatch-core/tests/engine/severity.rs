//! The severity of a finding by who could have caused it and by what came of it (docs/severity.md).

use std::net::IpAddr;

use smtpwatch_core::{
    Engine, Settings,
    cause::{About, Cause},
    finding::{Finding, Kind, Severity},
    policy::history::History,
};

use crate::scenario::{Dialogue, GREETING, OFFER, Recorded, deliver, greeted, hear, hear_after, hear_by, honest};

const PASSWORD: &str = "AUTH PLAIN AHVzZXIAcGFzc3dvcmQ=\r\n";
const ACCEPTED: &str = "235 2.7.0 Authentication successful\r\n";
const REFUSED: &str = "535 5.7.8 authentication failed\r\n";
const WITH_AUTH: &str = "250-mx1.example.net\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN\r\n";
const WITHOUT_AUTH: &str = "250-mx1.example.net\r\n250 STARTTLS\r\n";

fn login(offer: &str, reply: &str) -> Dialogue {
    greeted().s(offer).c(PASSWORD).s(reply).c("QUIT\r\n").s("221 Bye\r\n").close()
}

fn about_login(findings: &[Finding]) -> &Finding {
    findings.iter().find(|finding| finding.kind == Kind::AuthPlaintext).expect("a password in cleartext")
}

#[test]
fn a_password_in_cleartext_by_role_reply_and_client() {
    let known = [honest().seen_by_server().at(-86_400)];
    let trusting = |client: IpAddr| {
        let networks = vec![format!("{client}/32").parse().expect("a network")];
        Engine::new(Settings { trusted_clients: networks, ..Settings::default() }, Vec::new(), History::new(100))
    };
    let server = |offer, reply| login(offer, reply).seen_by_server();
    let as_stranger = |talk: &Dialogue| hear(talk, Vec::new());
    for (what, heard, severity) in [
        ("a program here, accepted", hear(&login(WITH_AUTH, ACCEPTED), Vec::new()), Severity::Critical),
        ("a program here, refused", hear(&login(WITH_AUTH, REFUSED), Vec::new()), Severity::High),
        ("a program here, no reply seen", hear(&login(WITH_AUTH, ""), Vec::new()), Severity::Critical),
        ("a stranger, accepted", as_stranger(&server(WITH_AUTH, ACCEPTED)), Severity::Critical),
        ("a stranger, refused", as_stranger(&server(WITH_AUTH, REFUSED)), Severity::Low),
        (
            "a stranger, 530",
            as_stranger(&server(WITH_AUTH, "530 5.7.0 Must issue a STARTTLS command first\r\n")),
            Severity::Low,
        ),
        ("a stranger, 454", as_stranger(&server(WITH_AUTH, "454 4.7.0 Temporary failure\r\n")), Severity::Low),
        ("a stranger, no reply seen", as_stranger(&server(WITH_AUTH, "")), Severity::Low),
        ("a known client, refused", hear_after(&known, &server(WITH_AUTH, REFUSED), Vec::new()), Severity::High),
        ("a known client, accepted", hear_after(&known, &server(WITH_AUTH, ACCEPTED), Vec::new()), Severity::Critical),
        (
            "a known client, AUTH not supported",
            hear_after(&known, &server(WITHOUT_AUTH, "503 5.5.1 AUTH not available\r\n"), Vec::new()),
            Severity::Low,
        ),
        (
            "a known client, 502",
            hear_after(&known, &server(WITHOUT_AUTH, "502 5.5.1 not implemented\r\n"), Vec::new()),
            Severity::Low,
        ),
        (
            "a trusted client, refused",
            hear_by(trusting(login(OFFER, "").flow.client.ip()), &[], &server(WITH_AUTH, REFUSED)),
            Severity::High,
        ),
    ] {
        let finding = about_login(&heard.findings);
        assert_eq!(finding.severity, severity, "{what}: {finding:?}");
    }
}

/// Anyone can send these to a public port: a test tool, a scanner, a person.
#[test]
fn what_a_stranger_sends_stays_low() {
    let asked = || greeted().s(OFFER).c("STARTTLS\r\n");
    let quit = |talk: Dialogue| talk.c("QUIT\r\n").s("221 Bye\r\n").close();
    let guess = |talk: Dialogue| deliver(talk.c(PASSWORD).s(REFUSED));
    for (what, talk) in [
        ("commands after STARTTLS", asked().c("MAIL FROM:<a@example.org>\r\n").s("220 go\r\n").close()),
        ("AUTH after STARTTLS", asked().c(PASSWORD).s("220 go\r\n").close()),
        (
            "a verb that no client sends",
            quit(Dialogue::new(25).s(GREETING).c("XXXX mail.example.org\r\n").s("500 what?\r\n")),
        ),
        ("a handshake that fails", asked().s("220 go\r\n").c("GET / HTTP/1.0\r\n").s("500 what?\r\n").close()),
        ("a guessed password, then mail", guess(greeted().s(WITH_AUTH))),
        ("the same on the submission port", guess(Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s(WITHOUT_AUTH))),
        (
            "a challenge-response exchange",
            quit(greeted().s(OFFER).c("AUTH CRAM-MD5\r\n").s("334 PDE+\r\n").c("dXNlciAwMTIzNDU2Nzg5\r\n").s(REFUSED)),
        ),
    ] {
        let heard = hear(&talk.seen_by_server(), Vec::new());
        assert!(!heard.findings.is_empty(), "{what}: nothing was raised");
        for finding in &heard.findings {
            // An offer of AUTH before TLS is this host's own mistake.
            if finding.kind != Kind::AuthOfferedPlaintext {
                assert!(finding.severity <= Severity::Low, "{what}: {finding:?}");
                assert!(finding.peer.stranger, "{what}");
            }
        }
    }
}

#[test]
fn guesses_are_one_cause_and_this_hosts_own_offer_is_another() {
    let guess = |client: &str| {
        let mut talk = login(WITH_AUTH, REFUSED).seen_by_server();
        talk.flow.client = client.parse().expect("an end point");
        let mut heard: Recorded = hear(&talk, Vec::new());
        heard.findings.sort_by_key(|finding| finding.kind);
        heard.findings.iter().map(|finding| Cause::of(finding).expect("endpoints")).collect::<Vec<_>>()
    };
    let (one, other) = (guess("203.0.113.7:41234"), guess("203.0.113.8:41234"));
    assert_eq!(one, other, "of two strangers");
    assert_eq!(one.iter().map(|cause| cause.about).collect::<Vec<_>>(), [About::Guessing, About::ThisHost]);
    let of_peer = |server: &str| {
        let mut talk = login(WITH_AUTH, REFUSED);
        talk.flow.server = server.parse().expect("an end point");
        Cause::of(about_login(&hear(&talk, Vec::new()).findings)).expect("endpoints")
    };
    assert_ne!(of_peer("198.51.100.25:25").id(), of_peer("198.51.100.26:25").id());
    assert_ne!(of_peer("198.51.100.25:25").id(), of_peer("198.51.100.25:587").id());
    assert_eq!(of_peer("198.51.100.25:25").id().len(), 16);
}
