//! Dialogues from public reports, each in many equivalent forms: the same findings must hold for all forms.

use smtpwatch_core::{finding::Kind, policy::rule::Rule};

use crate::scenario::{Dialogue, GREETING, OFFER, STRIPPED, hear, hear_after, honest_history};

/// One write of one side.
#[derive(Clone)]
enum Says {
    C(String),
    S(String),
}

use Says::{C, S};

impl Says {
    fn text(&self) -> &str {
        match self {
            C(text) | S(text) => text,
        }
    }

    fn with(&self, text: String) -> Self {
        match self {
            C(_) => C(text),
            S(_) => S(text),
        }
    }
}

/// Parses a script: `>` marks what the client sends, `<` what the server sends; `|` ends a line within a write.
fn script(text: &str) -> Vec<Says> {
    let line = |line: &str| {
        let said = format!("{}\r\n", line[1..].trim_start().replace('|', "\r\n"));
        if line.starts_with('>') { C(said) } else { S(said) }
    };
    // If the client speaks first, the script contains the greeting.
    let greeting = (!text.contains("< 220 mx")).then(|| S(GREETING.to_owned()));
    greeting.into_iter().chain(text.lines().map(str::trim).filter(|text| !text.is_empty()).map(line)).collect()
}

/// Turns a one-line reply into two lines with the same code.
fn in_two_lines(said: &Says) -> Says {
    let S(text) = said else { return said.clone() };
    let lines = text.split_inclusive("\r\n").map(|line| match (line.get(..3), line.get(3..4)) {
        (Some(code), Some(" ")) if code.bytes().all(|byte| byte.is_ascii_digit()) => format!("{code}-more\r\n{line}"),
        _ => line.to_owned(),
    });
    S(lines.collect())
}

fn in_lower_case(said: &Says) -> Says {
    let C(text) = said else { return said.clone() };
    // Lines that may be base64 stay unchanged.
    let lines =
        text.split_inclusive("\r\n").map(|line| if line.contains('=') { line.to_owned() } else { line.to_lowercase() });
    C(lines.collect())
}

fn with_bare_line_ends(said: &Says) -> Says {
    said.with(said.text().replace("\r\n", "\n"))
}

fn talk(port: u16, script: &[Says]) -> Dialogue {
    let say = |talk: Dialogue, said: &Says| match said {
        C(text) => talk.c(text),
        S(text) => talk.s(text),
    };
    script.iter().fold(Dialogue::new(port), say).close()
}

fn over_ipv6(mut talk: Dialogue) -> Dialogue {
    talk.flow.client.set_ip("2001:db8::10".parse().expect("address"));
    talk.flow.server.set_ip("2001:db8:1::25".parse().expect("address"));
    talk
}

/// Every form of a script, with both roles.
fn forms(port: u16, script: &[Says]) -> Vec<(String, Dialogue)> {
    let map = |change: fn(&Says) -> Says| script.iter().map(change).collect::<Vec<_>>();
    let mut all = Vec::new();
    for (how, script) in [
        ("as it is", script.to_vec()),
        ("bare line ends", map(with_bare_line_ends)),
        ("lower case", map(in_lower_case)),
        ("replies of two lines", map(in_two_lines)),
    ] {
        let talk = talk(port, &script);
        all.push((how.to_owned(), talk.clone()));
        all.push((format!("{how}, byte by byte, over IPv6"), over_ipv6(talk.cut(1))));
        all.push((format!("{how}, seen by the server"), talk.seen_by_server()));
    }
    all
}

fn compare(port: u16, text: &str, wanted: &[(Kind, &str)], wrong: &mut Vec<String>) {
    for (form, talk) in forms(port, &script(text)) {
        let heard = hear(&talk, Vec::<Rule>::new());
        let found: Vec<_> = heard.findings.iter().map(|finding| (finding.kind, &*finding.rule)).collect();
        if found != wanted {
            wrong.push(format!("{text}\n{form}: {found:?}, not {wanted:?}"));
        }
    }
}

fn offer() -> String {
    OFFER.trim_end().replace("\r\n", "|")
}

fn stripped() -> String {
    STRIPPED.trim_end().replace("\r\n", "|")
}

#[test]
fn lines_without_a_code_in_every_form() {
    let mut wrong = Vec::new();
    for line in ["", "4.7.0 no", "45", "4540 no", "<html>", "no: 454 is it"] {
        let begin = format!("> EHLO gw.example.org\n< {}\n> STARTTLS\n< {line}", offer());
        let refused = [(Kind::StarttlsRefused, "C3")];
        compare(25, &format!("{begin}\n> QUIT\n< 221 bye"), &refused, &mut wrong);
        compare(25, &format!("{begin}\n> RSET\n< 250 ok\n> QUIT\n< 221 bye"), &refused, &mut wrong);
        compare(25, &format!("{begin}\n< {line}\n> QUIT\n< 221 bye"), &refused, &mut wrong);
        for command in ["NOOP", "RSET", "MAIL FROM:<a@example.org>", "VRFY postmaster"] {
            let talk = format!("> EHLO gw.example.org\n< {}\n> {command}\n< {line}\n> QUIT\n< 221 bye", stripped());
            compare(25, &talk, &[], &mut wrong);
            let talk =
                format!("> EHLO gw.example.org\n< {}\n> {command}\n< {line}\n< 250 ok\n> QUIT\n< 221 bye", stripped());
            compare(25, &talk, &[], &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_follows_a_go_ahead_in_every_form() {
    let mut wrong = Vec::new();
    for said in
        ["421 4.4.2 timeout", "454 4.7.0 no", "550 no", "554 5.7.0 no", "451 try later", "220 ready", "500 what?"]
    {
        // A code other than 220 is a go-ahead if TLS follows.
        for (go, finding) in [
            ("220 go", (Kind::TlsHandshakeFailed, "C6")),
            ("220 2.0.0 Ready to start TLS", (Kind::TlsHandshakeFailed, "C6")),
            ("250 ok", (Kind::StarttlsRefused, "C3")),
        ] {
            let talk = format!("> EHLO gw.example.org\n< {}\n> STARTTLS\n< {go}\n< {said}", offer());
            compare(25, &talk, &[finding], &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_a_refusal_quotes_in_every_form() {
    let mut wrong = Vec::new();
    for refusal in
        ["550 call +1 800 555 XXXX", "552 quota of XXXX is full", "450 \"XXXX\" not now", "501 bad XXXX", "554 <XXXX>"]
    {
        for command in
            ["MAIL FROM:<a@example.org>", "RCPT TO:<b@example.net>", "VRFY XXXX", "EXPN XXXX", "ETRN example.org"]
        {
            let talk = format!("> EHLO gw.example.org\n< {}\n> {command}\n< {refusal}\n> QUIT\n< 221 bye", stripped());
            compare(25, &talk, &[], &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn credentials_after_a_refusal_in_every_form() {
    let mut wrong = Vec::new();
    let credential = [(Kind::AuthPlaintext, "F7")];
    for refusal in ["503 no", "535 5.7.8 no", "454 4.7.0 not now", "530 5.7.0 no", "504 what?", "421 bye"] {
        for verb in ["AUTH", "X-EXPS"] {
            let begin = format!("> EHLO gw.example.org\n< 250 mx1.example.net\n> {verb}");
            for talk in [
                format!(
                    "{begin} LOGIN\n< {refusal}\n> dXNlcg==\n< 500 what?\n> cGFzcw==\n< 500 what?\n> QUIT\n< 221 bye"
                ),
                format!("{begin} LOGIN\n< 334 x\n> dXNlcg==\n< {refusal}\n> cGFzcw==\n< 500 what?\n> QUIT\n< 221 bye"),
                format!("{begin} LOGIN|dXNlcg==|cGFzcw==|QUIT\n< {refusal}|500 what?|500 what?|221 bye"),
                format!("{begin} LOGIN|dXNlcg==|cGFzcw==|QUIT\n< {refusal}|221 bye"),
                format!("{begin} PLAIN\n< {refusal}\n> AHVzZXIAcGFzcw==\n< 500 what?\n> QUIT\n< 221 bye"),
                format!("{begin} PLAIN AHVzZXIAcGFzcw==\n< {refusal}\n> QUIT\n< 221 bye"),
            ] {
                compare(587, &talk, &credential, &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_session_that_is_refused_as_a_whole_in_every_form() {
    let mut wrong = Vec::new();
    for early in ["STARTTLS", "MAIL FROM:<a@example.org>", "NOOP|STARTTLS", "RSET|MAIL FROM:<a@example.org>"] {
        for refusal in ["554 synchronization error", "550 no", "421 bye", "521 no mail here", "571 no"] {
            let text = format!("> EHLO gw.example.org|{early}\n< {refusal}");
            for (form, talk) in forms(25, &script(&text)) {
                let found = hear_after(&honest_history(9), &talk, Vec::new()).kinds();
                if !found.is_empty() {
                    wrong.push(format!("{text}\n{form}: {found:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_proxy_header_in_every_form() {
    let mut wrong = Vec::new();
    for header in
        ["PROXY UNKNOWN", "PROXY TCP4 203.0.113.7 192.0.2.1 50000 25", "PROXY TCP6 2001:db8::7 2001:db8::1 50000 25"]
    {
        let rest = format!("> EHLO gw.example.org\n< {}\n> QUIT\n< 221 bye", stripped());
        for answer in ["500 what?", "502 5.5.2 not implemented", "501 no", "554 5.5.1 no"] {
            compare(25, &format!("> {header}\n< 220 mx1.example.net ESMTP\n< {answer}\n{rest}"), &[], &mut wrong);
            compare(25, &format!("> {header}\n< 220 mx1.example.net ESMTP|{answer}\n{rest}"), &[], &mut wrong);
        }
        compare(25, &format!("> {header}\n< 220 mx1.example.net ESMTP\n{rest}"), &[], &mut wrong);
        compare(
            25,
            &format!("> {header}|EHLO gw.example.org\n< 220 mx1.example.net ESMTP|{}\n> QUIT\n< 221 bye", stripped()),
            &[],
            &mut wrong,
        );
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_chunk_that_was_not_offered_in_every_form() {
    let mut wrong = Vec::new();
    let begin = format!(
        "> EHLO gw.example.org\n< {}\n> MAIL FROM:<a@example.org>\n< 250 ok\n> RCPT TO:<b@example.net>\n< 250 ok",
        stripped()
    );
    let chunk = "Subject: x||STARTTLS|AUTH PLAIN AHV6|QUITE";
    for code in ["500", "501", "502", "503", "504"] {
        let errors = vec![format!("{code} what?"); 5].join("|");
        for talk in [
            format!("{begin}\n> BDAT 999 LAST|{chunk}\n< {code} what?|{errors}"),
            format!("{begin}\n> BDAT 999 LAST\n< {code} what?\n> {chunk}\n< {errors}"),
            format!("{begin}\n> BDAT 999 LAST\n< {code} what?\n> RSET\n< 250 ok\n> QUIT\n< 221 bye"),
        ] {
            compare(25, &talk, &[], &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn names_and_secrets_in_every_form() {
    let mut wrong = Vec::new();
    for (client, server) in [
        ("AUTH PLAIN AGNhbmFyeQBrYW5hcmllbg==", "535 5.7.8 no user canary"),
        ("AUTH LOGIN Y2FuYXJ5MQ==", "535 5.7.8 CANARY1 is locked"),
        ("AUTH canary kanarien", "504 5.5.4 canary is no mechanism"),
        ("AUTH XOAUTH2 dXNlcj1jYW5hcnkBYXV0aD1CZWFyZXIga2FuYXJpZW4BAQ==", "535 5.7.8 <canary> denied"),
        ("AUTH SCRAM-SHA-1 bixhPWNhbmFyeSxuPWNhbmFyeSxyPWthbmFyaWVuMQ==", "535 5.7.8 canary: mechanism too weak"),
        ("AUTH CRAM-MD5", "535 5.7.8 no"),
        ("kanarien", "500 5.5.2 unrecognized: \"kanarien\""),
        ("LOGIN canary kanarien", "500 5.5.2 unrecognized: \"LOGIN canary kanarien\""),
    ] {
        let text = format!(
            "> EHLO gw.example.org\n< 250 mx1.example.net\n> {client}\n< {server}\n> AUTH PLAIN AHgAeXl5eQ==\n< 535 no\n> QUIT\n< 221 bye"
        );
        for (form, talk) in forms(587, &script(&text)) {
            let heard = hear(&talk, Vec::<Rule>::new());
            let said = format!("{:?}", heard.findings).to_lowercase();
            if heard.findings.is_empty() || said.contains("canary") || said.contains("kanarien") {
                wrong.push(format!("{text}\n{form}: {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
