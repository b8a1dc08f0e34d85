//! Attacks on the history: lowering a rate step by step, evicting rows, and using another name.

use std::net::SocketAddr;

use smtpwatch_core::{
    Engine, FlowKey, Role, Settings,
    finding::{Evidence, Finding, Kind, Outcome, Severity},
    policy::{
        history::{History, HistoryKey, HistoryPeer},
        rule::{Rule, StarttlsRule},
    },
};

use crate::scenario::{
    Dialogue, GREETING, OFFER, Recorded, STRIPPED, citing, daily_history, deliver, engine, greeted, hear_after,
    hear_by, honest, honest_history, tls,
};

/// A session under TLS whose EHLO reply has no offer.
fn unoffered() -> Dialogue {
    tls(greeted().s(STRIPPED).c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n")).close()
}

fn stripped() -> Dialogue {
    deliver(greeted().s(STRIPPED))
}

/// The findings of each session in order.
fn each(before: &[Dialogue]) -> Vec<Vec<Finding>> {
    let mut engine = engine(Vec::new());
    let heard = |talk: &Dialogue| {
        let mut heard = Recorded::default();
        talk.play(&mut engine, &mut heard);
        heard.findings
    };
    before.iter().map(heard).collect()
}

#[test]
fn a_session_under_tls_without_an_offer_is_a_finding() {
    assert!(hear_after(&[], &unoffered(), Vec::new()).findings.is_empty(), "of a peer of which nothing is known");
    let heard = hear_after(&honest_history(9), &unoffered(), Vec::new());
    let [finding] = &heard.findings[..] else { panic!("{:?}", heard.kinds()) };
    assert_eq!((finding.kind, &*finding.rule), (Kind::StarttlsStripped, "A1"));
    assert_eq!((finding.evidence, finding.outcome), (Evidence::Regression, Outcome::Attempt));
    assert_eq!(finding.severity, Severity::Low);
    assert!(finding.indicators[0].contains("requested it anyway"), "{:?}", finding.indicators);
    let required = vec![Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }];
    let heard = hear_after(&[], &unoffered(), required);
    assert_eq!((heard.kinds(), heard.findings[0].severity), (vec![Kind::StarttlsStripped], Severity::Medium));
}

/// The severity follows from how improbable the session is without interference (docs/severity.md).
#[test]
fn history_accuses_as_loudly_as_it_is_certain() {
    let again = |minute: i64| stripped().at(minute * 60 - 7200);
    let days = daily_history(50);
    for (what, before, severity) in [
        ("five sessions within hours", honest_history(5), Severity::Low),
        ("fifty days", days.clone(), Severity::Medium),
        ("thirty days, second in a row", [daily_history(30), vec![again(0)]].concat(), Severity::Medium),
        ("thirty days, third in a row", [daily_history(30), vec![again(0), again(1)]].concat(), Severity::High),
    ] {
        let heard = hear_after(&before, &stripped(), Vec::new());
        let [finding] = &heard.findings[..] else { panic!("{what}: {:?}", heard.kinds()) };
        assert_eq!((finding.evidence, finding.severity), (Evidence::Regression, severity), "{what}: {finding:?}");
    }
    // Turns within a day make a peer of long standing less certain, and not silent.
    let turns: Vec<_> = (0..6).flat_map(|hour| [again(hour * 10), honest().at(hour * 600 - 6900)]).collect();
    let before = [daily_history(90), turns, vec![again(61), again(62)]].concat();
    let heard = hear_after(&before, &stripped(), Vec::new());
    assert!(heard.findings[0].severity >= Severity::Medium, "an established peer is not worn down");
}

/// The same symptom at several peers within an hour is no chance (FO-13).
#[test]
fn a_strip_of_the_uplink_is_loud_from_the_fourth_peer_on() {
    for (sessions, loud_from) in [(daily_history(30), 4), (honest_history(6), 8)] {
        let mut engine = Engine::new(Settings::default(), Vec::new(), History::new(1000));
        let at = |mut talk: Dialogue, peer: u8| {
            talk.flow.server = socket(&format!("198.51.100.{peer}:25"));
            talk
        };
        for peer in 1..=8 {
            for session in &sessions {
                at(session.clone(), peer).play(&mut engine, &mut Recorded::default());
            }
        }
        let severities: Vec<_> = (1..=8)
            .map(|peer| {
                let mut heard = Recorded::default();
                at(stripped().at(i64::from(peer) * 60), peer).play(&mut engine, &mut heard);
                heard.drain(&mut engine);
                heard.findings[0].severity
            })
            .collect();
        let first = severities.iter().position(|severity| *severity == Severity::High).expect("loud at last") + 1;
        assert!(first > 1 && first <= loud_from, "{severities:?}");
        assert!(severities[first - 1..].iter().all(|severity| *severity == Severity::High), "{severities:?}");
    }
}

#[test]
fn history_is_not_worn_down_by_turns() {
    let mut before = honest_history(9);
    for minute in 0..16 {
        let talk = if minute % 2 == 0 { unoffered() } else { honest() };
        before.push(talk.at(minute * 60 - 86_400));
    }
    let findings = each(&before);
    assert!(findings[..9].iter().all(Vec::is_empty));
    for (number, findings) in findings[9..].iter().enumerate() {
        assert_eq!(findings.len(), usize::from(number % 2 == 0), "session {number}: {findings:?}");
    }
    let heard = hear_after(&before, &stripped(), Vec::new());
    let [finding] = &heard.findings[..] else { panic!("{:?}", heard.kinds()) };
    assert_eq!((finding.kind, &*finding.rule), (Kind::StarttlsStripped, "A9"));
    assert_eq!((finding.evidence, finding.severity), (Evidence::Regression, Severity::Low));
}

/// FP-1: two of three members offer STARTTLS, and the first sessions reached those two.
fn farm() -> Vec<Dialogue> {
    let mut before = honest_history(6);
    for hour in 0..60 {
        let talk = if hour % 3 == 0 { stripped() } else { honest() };
        before.push(talk.at((hour - 990) * 3600));
    }
    before
}

/// Findings until history classifies a peer as a farm, the one that says so, and one by the history of a name.
pub fn raised() -> Vec<Finding> {
    each(&farm()).into_iter().flatten().chain(known_by_name().findings).collect()
}

#[test]
fn a_farm_is_named_once_and_then_left_alone() {
    let findings: Vec<_> = each(&farm()).into_iter().flatten().collect();
    let named: Vec<_> =
        findings.iter().filter(|finding| finding.indicators[0].contains("farm whose members differ")).collect();
    let [named] = named[..] else { panic!("{} findings", named.len()) };
    assert_eq!((named.kind, &*named.rule, named.severity), (Kind::StarttlsStripped, "A9", Severity::Low));
    assert_eq!(named.outcome, Outcome::Attempt);
    assert!(findings.len() <= 6, "{} findings", findings.len());
    assert!(hear_after(&farm(), &stripped(), Vec::new()).findings.is_empty());
}

#[test]
fn a_short_history_that_was_interrupted_is_less_loud() {
    let mut before = honest_history(24);
    for turn in 0..2 {
        before.push(stripped().at((turn * 90 - 800) * 3600));
        before.push(honest().at((turn * 90 - 790) * 3600));
    }
    let heard = hear_after(&before, &stripped(), Vec::new());
    assert_eq!((heard.kinds(), heard.findings[0].severity), (vec![Kind::StarttlsStripped], Severity::Low));
    assert!(
        heard.findings[0].indicators.iter().any(|line| line.contains("short")),
        "{:?}",
        heard.findings[0].indicators
    );
}

/// The connecting clients have the other role and are in one network.
#[test]
fn strangers_push_out_no_mail_exchanger() {
    let mut before = honest_history(6);
    for number in 1..3000_u32 {
        let mut talk = honest().seen_by_server().at(i64::from(number) - 86_400);
        let [.., a, b] = number.to_be_bytes();
        let client = socket(&format!("[2001:db8:bad::{a:x}:{b:x}]:41234"));
        talk.flow = FlowKey { client, server: socket("[2001:db8:1::25]:25") };
        before.push(talk);
    }
    let engine = Engine::new(Settings::default(), Vec::new(), History::new(100));
    let heard = hear_by(engine, &before, &stripped());
    assert_eq!((heard.kinds(), heard.findings[0].evidence), (vec![Kind::StarttlsStripped], Evidence::Regression));
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A server may use any name, and a different one in each session.
#[test]
fn a_server_does_not_fill_the_history_with_names() {
    let mut engine = engine(Vec::new());
    for number in 0..200 {
        let name = format!("mx{number}.example.org");
        let talk = Dialogue::new(25).s(format!("220 {name} ESMTP\r\n")).c("EHLO gw.example.org\r\n");
        let talk = talk.s(OFFER.replace("mx1.example.net", &name)).c("STARTTLS\r\n").s("220 go\r\n");
        tls(talk).close().at(i64::from(number) * 60 - 86_400).play(&mut engine, &mut Recorded::default());
    }
    assert!(engine.history().len() < 10, "{} rows", engine.history().len());
}

fn as_server(count: i64) -> Vec<Dialogue> {
    honest_history(count).into_iter().map(Dialogue::seen_by_server).collect()
}

fn daily_as_server(count: i64) -> Vec<Dialogue> {
    daily_history(count).into_iter().map(Dialogue::seen_by_server).collect()
}

fn in_clear(talk: Dialogue, name: &str) -> Dialogue {
    deliver(talk.c(format!("EHLO {name}\r\n")).s(OFFER)).seen_by_server()
}

/// What a client writes before and instead of STARTTLS does not give it another identity (A8).
#[test]
fn a_client_that_stops_using_tls_is_known_by_its_address() {
    let xclient = |reply: &str| greeted().s(OFFER).c("XCLIENT ADDR=203.0.113.7\r\n").s(reply);
    let proxy = || Dialogue::new(25).c("PROXY TCP4 203.0.113.77 192.0.2.1 50000 25\r\n").s(GREETING);
    let binary = || {
        Dialogue::new(25).c(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\xc0\0\x02\x01\xc3\x50\0\x19").s(GREETING)
    };
    for (what, talk, severity) in [
        ("another name", in_clear(Dialogue::new(25).s(GREETING), "other.example.org"), Severity::Low),
        ("XCLIENT that is refused", in_clear(xclient("550 5.7.0 no\r\n"), "gw.example.org"), Severity::Medium),
        ("a PROXY header", in_clear(proxy(), "gw.example.org"), Severity::Medium),
        ("a binary PROXY header", in_clear(binary(), "gw.example.org"), Severity::Medium),
    ] {
        let heard = hear_after(&daily_as_server(50), &talk, Vec::new());
        let [finding] = &heard.findings[..] else { panic!("{what}: {:?}", heard.kinds()) };
        assert_eq!(
            (&*finding.rule, finding.evidence, finding.severity),
            ("A8", Evidence::Regression, severity),
            "{what}"
        );
    }
    let granted = in_clear(xclient("220 mx1.example.net ESMTP\r\n"), "gw.example.org");
    assert!(hear_after(&as_server(9), &granted, Vec::new()).findings.is_empty(), "XCLIENT that is granted");
    let trusting = |network: &str| {
        let trusted_proxies = vec![network.parse().expect("a network")];
        Engine::new(Settings { trusted_proxies, ..Settings::default() }, Vec::new(), History::new(100))
    };
    let by_proxy = in_clear(proxy(), "gw.example.org");
    assert!(hear_by(trusting("192.0.2.0/24"), &as_server(9), &by_proxy).findings.is_empty(), "a trusted proxy");
    let heard = hear_by(trusting("203.0.113.0/24"), &as_server(9), &by_proxy);
    assert_eq!(heard.kinds(), [Kind::StarttlsUnused], "the address in the header is not the proxy's");
    assert!(heard.findings[0].indicators.iter().any(|line| line.contains("trusted_proxies")));
    let mut changed = engine(Vec::new());
    changed.reconfigure(Default::default(), Vec::new(), vec!["192.0.2.10".parse().expect("an address")], Vec::new());
    assert!(hear_by(changed, &as_server(9), &by_proxy).findings.is_empty(), "trusted from a reload on");
}

/// A client that has used TLS for weeks raises a more severe finding, whatever name it uses.
#[test]
fn another_name_at_an_address_of_long_standing() {
    let before: Vec<_> = (0..30).map(|day| honest().seen_by_server().at((day - 40) * 86_400)).collect();
    let heard = hear_after(&before, &in_clear(Dialogue::new(25).s(GREETING), "other.example.org"), Vec::new());
    assert_eq!((heard.kinds(), heard.findings[0].severity), (vec![Kind::StarttlsUnused], Severity::Low));
    let [names] = citing(&heard.findings[0], "FP-21")[..] else { panic!("{:?}", heard.findings[0].indicators) };
    assert!(names.contains("other.example.org") && names.contains("gw.example.org"), "{names}");
}

/// A session of a server that uses another name.
fn renamed(name: &str, reply: &str) -> Dialogue {
    let greeting = format!("220 {name} ESMTP\r\n");
    deliver(Dialogue::new(25).s(greeting).c("EHLO gw.example.org\r\n").s(reply.replace("mx1.example.net", name)))
}

fn rule(peer: &str, starttls: StarttlsRule) -> Rule {
    Rule { peer: vec![peer.parse().expect("a name")], starttls: Some(starttls), ..Rule::default() }
}

/// A rule by name applies to the host that had the name before, not to the line that states the name (A4).
#[test]
fn another_name_leads_away_from_no_rule() {
    let rules = || vec![rule("printer.lan", StarttlsRule::Ignore), rule("mx*.example.net", StarttlsRule::Required)];
    for name in ["mail.example.com", "printer.lan"] {
        // One session: too few for an accusation by history alone.
        let heard = hear_after(&honest_history(1), &renamed(name, STRIPPED), rules());
        assert_eq!(heard.kinds(), [Kind::StarttlsStripped, Kind::PolicyViolation], "{name}");
        assert_eq!(heard.findings[0].evidence, Evidence::Policy);
    }
    // A name that the path forges in some sessions first, and one of two names seen for weeks.
    let other = |day: i64| {
        let talk = Dialogue::new(25).s("220 printer.lan ESMTP\r\n").c("EHLO gw.example.org\r\n");
        let talk = talk.s(OFFER.replace("mx1.example.net", "printer.lan")).c("STARTTLS\r\n").s("220 go\r\n");
        tls(talk).close().at((day - 30) * 86_400)
    };
    let taught = [honest_history(1), (0..6).map(other).collect()].concat();
    let heard = hear_after(&taught, &renamed("printer.lan", STRIPPED), rules());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped, Kind::PolicyViolation], "taught in six days");
    let both = [honest_history(1), (0..9).map(other).collect()].concat();
    assert!(hear_after(&both, &renamed("printer.lan", STRIPPED), rules()).findings.is_empty());
    // A claimed name may require more, never less.
    let claimed = hear_after(
        &honest_history(1),
        &renamed("mail.example.com", STRIPPED),
        vec![rule("mail.example.com", StarttlsRule::Required), rule("mx1.example.net", StarttlsRule::Ignore)],
    );
    assert!(claimed.kinds().contains(&Kind::PolicyViolation), "{:?}", claimed.kinds());
}

/// History by address applies whatever the greeting contains, and the changed text is an indicator (A4).
/// The name used so far leads to the history of other hosts with that name; the address was seen once.
fn known_by_name() -> Recorded {
    let mut before = honest_history(9);
    let elsewhere = |mut talk: Dialogue| {
        talk.flow.server = socket("198.51.100.99:25");
        talk
    };
    before.push(elsewhere(honest().at(-86_400)));
    hear_after(&before, &elsewhere(renamed("mail.example.com", STRIPPED)), Vec::new())
}

#[test]
fn another_name_leads_away_from_no_history() {
    let heard = hear_after(&daily_history(50), &renamed("mail.example.com", STRIPPED), Vec::new());
    let finding = &heard.findings[0];
    assert_eq!((finding.kind, &*finding.rule, finding.severity), (Kind::StarttlsStripped, "A4", Severity::Medium));
    let heard = known_by_name();
    assert_eq!((heard.kinds(), heard.findings[0].evidence), (vec![Kind::StarttlsStripped], Evidence::Suspicious));
}

#[test]
fn a_session_that_is_stripped_teaches_no_name() {
    let mut engine = engine(Vec::new());
    for talk in honest_history(2).iter().chain([&renamed("mail.example.com", STRIPPED)]) {
        talk.play(&mut engine, &mut Recorded::default());
    }
    let key = HistoryKey {
        role: Role::Client,
        own: [192, 0, 2, 10].into(),
        peer: HistoryPeer::Address([198, 51, 100, 25].into()),
        port: 25,
    };
    let names = &engine.history().get(&key).expect("a row").names;
    assert_eq!(names.iter().map(|known| &*known.name).collect::<Vec<_>>(), ["mx1.example.net"]);
}
