//! Tests of the session alone, where the engine does not show the difference.

use super::{Oddity, Session};
use crate::{Side, Timestamp};

const GREETING: &str = "< 220 mx.example.org ESMTP\r\n";
const EHLO: &str = "> EHLO mail.example.net\r\n";
const OFFER: &str = "< 250-mx.example.org\r\n250 STARTTLS\r\n";

/// A session after these segments; `>` marks those of the client, `<` those of the server.
fn session(segments: &[&str]) -> (Session, u64) {
    let mut session = Session::new(false);
    let (mut client, mut server) = (0, 0);
    for (number, segment) in (1..).zip(segments) {
        let (from, offset) = match segment.split_at(2).0 {
            "> " => (Side::Client, &mut client),
            _ => (Side::Server, &mut server),
        };
        let bytes = &segment.as_bytes()[2..];
        session.data(from, Timestamp(number), *offset, bytes);
        *offset += bytes.len() as u64;
        while session.poll().is_some() {}
    }
    (session, server)
}

fn text(session: &Session) -> String {
    let kept = session.kept();
    String::from_utf8_lossy(&kept.iter().flat_map(|(.., bytes)| bytes.clone()).collect::<Vec<_>>()).into_owned()
}

#[test]
fn a_dropped_reply_is_counted() {
    let message = ["> MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n", "< 250 ok\r\n250 ok\r\n354 go\r\n"];
    for (expected, segments) in [
        (vec![], &[GREETING, EHLO, OFFER][..]),
        (vec![(Oddity::GreetingWithoutCode, 2)], &["< busy\r\n", "< wait\r\n", GREETING, EHLO, OFFER]),
        (vec![(Oddity::CommandsBeforeGreeting, 1)], &["> GET / HTTP/1.1\r\nHost: x\r\n", GREETING, EHLO, OFFER]),
        (vec![(Oddity::LineWithoutCode, 2)], &[GREETING, EHLO, "< wait\r\nwait\r\n", OFFER]),
        (vec![(Oddity::UnsolicitedLineWithoutCode, 1)], &[GREETING, "< wait\r\n", EHLO, OFFER]),
        (vec![(Oddity::SkippedLine, 1)], &[GREETING, "> \r\n", EHLO, OFFER]),
        (
            vec![(Oddity::LineWithoutCode, 1), (Oddity::LateReply, 1)],
            &[GREETING, EHLO, "< wait\r\n", "> STARTTLS\r\n", "< 250 mx\r\n"],
        ),
        (
            vec![(Oddity::LineWithoutCode, 1), (Oddity::Resynchronised, 1)],
            &[GREETING, "> NOOP\r\nDATA\r\n", "< wait\r\n", "< 354 go\r\n"],
        ),
        (
            vec![(Oddity::LineWithoutCode, 1), (Oddity::SurplusReply, 1)],
            &[GREETING, "> NOOP\r\n", "< wait\r\n", "> NOOP\r\n", "< 250 ok\r\n", "< 250 ok\r\n"],
        ),
        (vec![(Oddity::UnsolicitedError, 2)], &[GREETING, "< 421 4.4.2 timeout\r\n", "< 199 x\r\n"]),
        (
            vec![(Oddity::UnseenCommand, 1), (Oddity::RefusalWithinMessage, 1)],
            &[GREETING, message[0], message[1], "> text", "< 550 no\r\n", "< 250 ok\r\n", "< 250 ok\r\n"],
        ),
    ] {
        let (session, _) = session(segments);
        assert_eq!(session.oddities().iter().collect::<Vec<_>>(), expected, "{segments:?}");
        assert!(session.seen.doubt.is_none(), "{segments:?}");
    }
    let (mut session, _) = session(&[GREETING]);
    session.one_sided();
    session.data(Side::Server, Timestamp(9), 100, b"250 ok\r\n");
    assert_eq!(session.oddities().count(Oddity::UnsolicitedInDoubt), 1);
}

#[test]
fn a_count_stops_and_identifiers_are_distinct() {
    let (mut session, mut offset) = session(&[GREETING]);
    for _ in 0..300 {
        session.data(Side::Server, Timestamp(9), offset, b"421 x\r\n");
        offset += 7;
    }
    assert_eq!(session.oddities().iter().collect::<Vec<_>>(), [(Oddity::UnsolicitedError, u8::MAX)]);
    let mut ids = Oddity::ALL.map(Oddity::id);
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
}

#[test]
fn cleartext_after_a_second_go_ahead_is_in_the_transcript() {
    let (session, _) = session(&[
        GREETING,
        EHLO,
        OFFER,
        "> STARTTLS\r\n",
        "< 220 go\r\n",
        "< 454 4.7.0 TLS not available, try again later\r\n",
        "> \x16\x03\x01\0\x01\x01NOOP\r\n",
        "< 250 ok\r\n",
        "> STARTTLS\r\n",
        "< 220 go\r\n",
        "< 454 4.7.0 no\r\n",
    ]);
    let lines = session.seen.transcript();
    assert_eq!(lines.last().map(|line| line.text.as_str()), Some("454 4.7.0 no"), "{lines:?}");
}

#[test]
fn evidence_quotes_no_secret_after_parsing_stops() {
    let (mut session, server) = session(&[
        GREETING,
        EHLO,
        OFFER,
        "> AUTH PLAIN AGFubmEATjB0LWEtczNjcmV0\r\n",
        "< 535 no\r\n",
        "> STARTTLS\r\n",
        "< 220 go\r\n",
        "< 535 wrong password N0t-a-s3cret\r\n",
    ]);
    assert!(!text(&session).contains("s3cret"), "{}", text(&session));
    session.gap(Side::Server, 10);
    session.data(Side::Server, Timestamp(99), server + 10, b"x");
    assert!(session.seen.doubt.is_some());
    assert!(text(&session).contains("535 "), "the line is evidence");
    assert!(!text(&session).contains("s3cret"), "{}", text(&session));
}

#[test]
fn copies_stay_hidden_after_parsing_stops() {
    let (mut session, _) = session(&[GREETING, "> hunter2hunter2\r\n"]);
    session.gap(Side::Server, 10);
    assert!(session.seen.doubt.is_some() && session.seen.auth.is_empty());
    assert!(!session.quotable.is_unused(), "either copy may quote the word");
}
