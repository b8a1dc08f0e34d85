//! Rules with an end: they apply to sessions that begin before it, and what they suppress is counted.

use crate::scenario::{
    Dialogue, OFFER, Recorded, STRIPPED, deliver, engine, greeted, hear, hear_after, hear_by, honest_history,
};
use smtpwatch_core::{
    Timestamp,
    finding::Kind,
    policy::{
        history::Strength,
        rule::{AuthRule, Rule, StarttlsRule},
    },
};

/// A stripped delivery, which is a violation by [`rules`] without its exception.
fn stripped() -> Dialogue {
    deliver(greeted().s(STRIPPED))
}

fn begin(dialogue: &Dialogue) -> i64 {
    dialogue.packets.first().expect("a packet").at
}

/// An exception for every peer, and behind it the rule that it suspends.
fn rules(until: Option<i64>) -> Vec<Rule> {
    let exception = Rule {
        starttls: Some(StarttlsRule::Ignore),
        until: until.map(Timestamp),
        reason: "the peer renews its certificate".to_owned(),
        ..Rule::default()
    };
    vec![exception, Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }]
}

const SUPPRESSED: [Kind; 2] = [Kind::StarttlsStripped, Kind::PolicyViolation];

#[test]
fn a_rule_applies_to_sessions_that_begin_before_its_end() {
    let dialogue = stripped();
    for (until, expected) in [
        (begin(&dialogue) - 1, &SUPPRESSED[..]),
        (begin(&dialogue), &SUPPRESSED),
        (begin(&dialogue) + 1, &[]),
        (i64::MAX, &[]),
    ] {
        let recorded = hear(&dialogue, rules(Some(until)));
        assert_eq!(recorded.kinds(), expected, "until {until}");
        let exempted = if expected.is_empty() { &SUPPRESSED[..] } else { &[] };
        assert_eq!(recorded.sessions[0].exempted, exempted, "until {until}");
    }
    // The number of a rule is its position, also after an earlier one has ended.
    let recorded = hear(&dialogue, rules(Some(begin(&dialogue))));
    assert!(
        recorded.findings[0].expected.detail.starts_with("rule 2 of the configuration"),
        "{:?}",
        recorded.findings[0]
    );
}

/// The verdict does not depend on how far the session got when the rule ended.
#[test]
fn the_end_of_a_rule_does_not_split_a_session() {
    let dialogue = stripped();
    for packet in &dialogue.packets {
        let recorded = hear(&dialogue, rules(Some(packet.at + 1)));
        assert_eq!((recorded.kinds(), &recorded.sessions[0].exempted[..]), (vec![], &SUPPRESSED[..]), "{}", packet.at);
    }
}

#[test]
fn a_session_counts_when_the_rule_suppressed_something() {
    // A rule without an end is no exception.
    let lasting = hear(&stripped(), rules(None));
    assert_eq!((lasting.kinds(), &lasting.sessions[0].exempted[..]), (vec![], &[][..]));
    // Nothing would have been found.
    let exception = |auth| vec![Rule { auth_plaintext: auth, ..rules(Some(i64::MAX)).remove(0) }];
    let honest = hear(&deliver(greeted().s(OFFER)), exception(None));
    assert_eq!((honest.kinds(), &honest.sessions[0].exempted[..]), (vec![], &[][..]));
    // History is a source too.
    let known = hear_after(&honest_history(9), &stripped(), exception(None));
    assert_eq!((known.kinds(), &known.sessions[0].exempted[..]), (vec![], &[Kind::StarttlsStripped][..]));
    // What the rule does not suppress is raised, and is not counted.
    let password = greeted().s("250-mx1.example.net\r\n250 AUTH PLAIN\r\n");
    let password = password.c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 2.7.0 Ok\r\n").c("QUIT\r\n").s("221 Bye\r\n");
    let recorded = hear(&password.clone().close(), exception(None));
    assert!(
        recorded.kinds().contains(&Kind::AuthPlaintext) && recorded.sessions[0].exempted.is_empty(),
        "{recorded:?}"
    );
    let allowed = hear(&password.close(), exception(Some(AuthRule::Allow)));
    assert!(!allowed.kinds().contains(&Kind::AuthPlaintext), "{allowed:?}");
    assert!(allowed.sessions[0].exempted.contains(&Kind::AuthPlaintext), "{allowed:?}");
}

/// An exception that the configuration gets after the verdict has suppressed nothing of this session.
#[test]
fn what_was_raised_before_is_not_counted() {
    let dialogue = stripped();
    let (mut engine, mut recorded) = (engine(rules(None).split_off(1)), Recorded::default());
    for packet in &dialogue.packets {
        engine.handle(&dialogue.segment(packet));
        recorded.drain(&mut engine);
        if recorded.kinds() == SUPPRESSED && recorded.sessions.is_empty() {
            engine.reconfigure(Strength::default(), rules(Some(i64::MAX)), Vec::new(), Vec::new());
        }
    }
    engine.finish(Timestamp(i64::MAX));
    recorded.drain(&mut engine);
    assert_eq!((recorded.kinds(), recorded.sessions.len()), (SUPPRESSED.to_vec(), 1));
    assert_eq!(recorded.sessions[0].exempted, []);
}

/// The exception suspends the rule behind it for its own peer only.
#[test]
fn an_exception_holds_for_its_peer() {
    let mut rules = rules(Some(i64::MAX));
    rules[0].peer = vec!["203.0.113.9".parse().expect("an address")];
    let recorded = hear_by(engine(rules), &[], &stripped());
    assert_eq!((recorded.kinds(), &recorded.sessions[0].exempted[..]), (SUPPRESSED.to_vec(), &[][..]));
}
