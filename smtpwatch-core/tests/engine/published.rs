//! Published policies: which look-ups are requested, what an answer proves, and what is reported without one.

use std::{sync::Arc, time::Duration};

use smtpwatch_core::{
    Engine, Finding, Settings, Side, Timestamp,
    engine::{PolicyType, ResultType},
    finding::{Evidence, Kind, Outcome, Severity},
    judge::certificate::Verdict,
    policy::{
        history::History,
        published::{
            Answer, DomainFacts, HostFacts, LookupRequest, LookupResult, MxSet, State,
            demand::Source,
            list::{ListPolicy, StarttlsList},
            sts::{StsMode, StsPolicy},
            tlsa::Tlsa,
        },
    },
};

use crate::scenario::{
    Dialogue, GREETING, OFFER, Recorded, STRIPPED, certificate, client_hello, finished, greeted, honest, sealed,
    server_hello, tls,
};

const DOMAIN: &str = "example.net";
const HOST: &str = "mx1.example.net";

fn answer<T>(state: State, value: Option<T>) -> Answer<T> {
    let (at, until) = (Timestamp::default(), Timestamp(i64::MAX));
    Answer { state, value, detail: String::new(), at, until }
}

fn mx() -> Answer<MxSet> {
    answer(State::Valid, Some(MxSet { hosts: vec![HOST.to_owned()], secure: true }))
}

fn domain(state: State, mode: StsMode) -> LookupResult {
    let policy = StsPolicy {
        id: "20261126".to_owned(),
        mode,
        mx: vec!["*.example.net".to_owned()],
        max_age: Duration::from_secs(86_400),
    };
    LookupResult::Domain(DOMAIN.to_owned(), Arc::new(DomainFacts { mx: mx(), sts: answer(state, Some(policy)) }))
}

fn no_sts() -> LookupResult {
    LookupResult::Domain(DOMAIN.to_owned(), Arc::new(DomainFacts { mx: mx(), sts: answer(State::Absent, None) }))
}

fn host(address: [u8; 4], state: State) -> LookupResult {
    host_with(address, state, vec![7; 32])
}

fn host_with(address: [u8; 4], state: State, digest: Vec<u8>) -> LookupResult {
    let records = vec![Tlsa { usage: 3, selector: 1, matching: 1, data: digest }];
    let facts = HostFacts {
        addresses: answer(State::Valid, Some(vec![address.into()])),
        dane: answer(state, Some(records)),
        base: HOST.to_owned(),
    };
    LookupResult::Host(HOST.to_owned(), Arc::new(facts))
}

const HERE: [u8; 4] = [198, 51, 100, 25];
const ELSEWHERE: [u8; 4] = [203, 0, 113, 25];

fn engine(lookups: bool) -> Engine {
    Engine::new(Settings { lookups, ..Settings::default() }, Vec::new(), History::new(1000))
}

fn mail(greeting: &str, reply: &str) -> Dialogue {
    accepted(greeting, reply).c("QUIT\r\n").s("221 bye\r\n").leave()
}

/// A session up to the acceptance of the message.
fn accepted(greeting: &str, reply: &str) -> Dialogue {
    Dialogue::new(25)
        .s(greeting)
        .c("EHLO out.example.org\r\n")
        .s(reply)
        .c("MAIL FROM:<a@example.org>\r\n")
        .s("250 ok\r\n")
        .c("RCPT TO:<b@example.net>\r\n")
        .s("250 ok\r\n")
        .c("DATA\r\n")
        .s("354 go\r\n")
        .c("Subject: x\r\n\r\nx\r\n.\r\n")
        .s("250 queued\r\n")
}

fn stripped() -> Dialogue {
    mail(GREETING, STRIPPED)
}

fn end(talk: &Dialogue) -> Timestamp {
    Timestamp(talk.packets.last().expect("packets").at)
}

/// The findings about a first session that is stripped, with an engine that has these look-up results.
fn first_contact(learned: impl IntoIterator<Item = LookupResult>, talk: &Dialogue) -> Recorded {
    let mut engine = engine(false);
    learned.into_iter().for_each(|result| engine.apply(result));
    let mut heard = Recorded::default();
    talk.play(&mut engine, &mut heard);
    engine.finish(end(talk));
    heard.drain(&mut engine);
    heard
}

fn said(heard: &Recorded) -> Vec<(Kind, &str, &str, Evidence, Severity)> {
    let findings = heard.findings.iter();
    findings.map(|f| (f.kind, &*f.rule, &*f.expected.source, f.evidence, f.severity)).collect()
}

/// Findings of the rows that need a published policy: MTA-STS in mode testing, DANE, the list (in force and expired), and
/// a certificate that contradicts DANE.
pub fn raised() -> Vec<Finding> {
    let policy = ListPolicy { enforce: true, mxs: vec![".example.net".to_owned()] };
    let policies = [(DOMAIN.to_owned(), policy)].into_iter().collect();
    let list = StarttlsList { timestamp: Timestamp::default(), expires: Timestamp(i64::MAX), policies };
    let expired = Arc::new(StarttlsList { expires: Timestamp::from_secs(1_591_142_400), ..list.clone() });
    let by_helo = mail(GREETING, "502 5.5.2 no\r\n");
    let key = rcgen::KeyPair::generate().expect("key");
    let parameters = rcgen::CertificateParams::new(vec![HOST.to_owned()]).expect("name");
    let der = parameters.self_signed(&key).expect("certificate").der().to_vec();
    [
        first_contact([domain(State::Valid, StsMode::Testing), host(HERE, State::Absent)], &stripped()).findings,
        first_contact([no_sts(), host(HERE, State::Valid)], &stripped()).findings,
        first_contact([LookupResult::List(Arc::new(list))], &stripped()).findings,
        first_contact([LookupResult::List(Arc::clone(&expired))], &mail(GREETING, OFFER)).findings,
        first_contact([LookupResult::List(expired)], &by_helo).findings,
        first_contact([no_sts(), host(HERE, State::Valid)], &under_tls_1_2(&der)).findings,
    ]
    .concat()
}

#[test]
fn a_policy_proves_the_first_stripped_session() {
    use Kind::{PolicyViolation, StarttlsStripped};
    let sts = first_contact([domain(State::Valid, StsMode::Enforce), host(HERE, State::Absent)], &stripped());
    let critical = |kind, rule, source| (kind, rule, source, Evidence::Policy, Severity::Critical);
    assert_eq!(said(&sts), [critical(StarttlsStripped, "A1", "mta-sts"), critical(PolicyViolation, "G1", "mta-sts")]);
    assert_eq!(sts.findings[0].expected.mode.as_deref(), Some("enforce"));
    let dane = first_contact([no_sts(), host(HERE, State::Valid)], &stripped());
    assert_eq!(said(&dane), [critical(StarttlsStripped, "A1", "dane"), critical(PolicyViolation, "G3", "dane")]);
    assert!(dane.findings[0].expected.detail.contains("3 1 1 07"), "{:?}", dane.findings[0].expected);
    let both = first_contact([domain(State::Valid, StsMode::Enforce), host(HERE, State::Valid)], &stripped());
    assert_eq!(both.findings[1].expected.source, "dane");
    assert!(
        both.findings[1].indicators.iter().any(|line| line.starts_with("also: MTA-STS")),
        "{:?}",
        both.findings[1].indicators
    );
}

#[test]
fn a_policy_in_testing_is_told_more_quietly() {
    let heard = first_contact([domain(State::Valid, StsMode::Testing), host(HERE, State::Absent)], &stripped());
    let medium = |kind, rule| (kind, rule, "mta-sts", Evidence::Policy, Severity::Medium);
    assert_eq!(said(&heard), [medium(Kind::StarttlsStripped, "A1"), medium(Kind::PolicyViolation, "G2")]);
    assert_eq!(heard.findings[0].expected.mode.as_deref(), Some("testing"));
}

#[test]
fn what_is_not_certain_accuses_nobody() {
    for state in State::ALL.into_iter().filter(|state| *state != State::Valid) {
        let heard = first_contact([domain(state, StsMode::Enforce), host(HERE, state)], &stripped());
        assert_eq!(said(&heard), [], "{state:?}");
    }
    let none = first_contact([domain(State::Valid, StsMode::None), host(HERE, State::Insecure)], &stripped());
    assert_eq!(said(&none), []);
}

/// An attacker on the path can write greeting and EHLO reply.
#[test]
fn another_name_leads_away_from_no_policy() {
    let renamed = mail("220 mail.example.com ESMTP\r\n", &STRIPPED.replace(HOST, "mail.example.com"));
    assert_eq!(said(&first_contact([host(HERE, State::Valid)], &renamed)), [], "of a first contact nothing is known");
    let mut engine = engine(false);
    engine.apply(host(HERE, State::Valid));
    honest().at(-7200).play(&mut engine, &mut Recorded::default());
    let mut heard = Recorded::default();
    renamed.play(&mut engine, &mut heard);
    engine.finish(end(&renamed));
    heard.drain(&mut engine);
    let critical = |kind, rule| (kind, rule, "dane", Evidence::Policy, Severity::Critical);
    assert_eq!(said(&heard), [critical(Kind::StarttlsStripped, "A4"), critical(Kind::PolicyViolation, "G3")]);
}

#[test]
fn a_smart_host_is_not_the_domain() {
    let by_relay = mail("220 relay.example.org ESMTP\r\n", &STRIPPED.replace(HOST, "relay.example.org"));
    let heard = first_contact([domain(State::Valid, StsMode::Enforce), host(ELSEWHERE, State::Valid)], &by_relay);
    assert_eq!(said(&heard), []);
    // The same if the addresses of the domain's mail hosts are unknown.
    let heard = first_contact(
        [domain(State::Valid, StsMode::Enforce)],
        &mail("220 relay.example.org ESMTP\r\n", &STRIPPED.replace(HOST, "relay.example.org")),
    );
    assert_eq!(said(&heard), []);
}

#[test]
fn a_name_that_the_server_gives_itself_is_believed_with_its_address_only() {
    let heard = first_contact([no_sts(), host(ELSEWHERE, State::Valid)], &stripped());
    assert_eq!(said(&heard), [], "DANE of the name binds its own addresses only");
}

#[test]
fn the_list_speaks_until_it_expires() {
    let list = |expires, enforce| {
        let policy = ListPolicy { enforce, mxs: vec![".example.net".to_owned()] };
        let policies = [(DOMAIN.to_owned(), policy)].into_iter().collect();
        LookupResult::List(Arc::new(StarttlsList { timestamp: Timestamp::default(), expires, policies }))
    };
    let enforced = first_contact([list(Timestamp(i64::MAX), true)], &stripped());
    assert_eq!(said(&enforced)[1], (Kind::PolicyViolation, "G4", "list", Evidence::Policy, Severity::Critical));
    let tested = first_contact([list(Timestamp(i64::MAX), false)], &stripped());
    let medium = |kind, rule| (kind, rule, "list", Evidence::Policy, Severity::Medium);
    assert_eq!(said(&tested), [medium(Kind::StarttlsStripped, "A1"), medium(Kind::PolicyViolation, "G4")]);
    let expired = first_contact([list(Timestamp::from_secs(1_591_142_400), true)], &stripped());
    let hint = (Kind::StarttlsStripped, "A1", "list", Evidence::Suspicious, Severity::Medium);
    assert_eq!(said(&expired), [hint]);
    assert!(expired.findings[0].expected.detail.contains("2020-06-03"));
}

#[test]
fn a_verdict_waits_for_the_answer_and_is_complete_when_it_comes() {
    let (mut engine, mut heard, talk) = (engine(true), Recorded::default(), stripped());
    talk.play(&mut engine, &mut heard);
    assert!(heard.wanted.contains(&LookupRequest::Domain(DOMAIN.to_owned())), "{:?}", heard.wanted);
    assert!(heard.wanted.contains(&LookupRequest::Host(HOST.to_owned())), "{:?}", heard.wanted);
    assert!(heard.findings.is_empty() && heard.sessions.is_empty(), "{heard:?}");
    engine.apply(domain(State::Valid, StsMode::Enforce));
    heard.drain(&mut engine);
    assert!(heard.findings.is_empty(), "where the mail host is, is not known yet");
    engine.apply(host(HERE, State::Absent));
    heard.drain(&mut engine);
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped, Kind::PolicyViolation]);
    assert_eq!(heard.findings[0].outcome, Outcome::Content);
    assert_eq!(heard.sessions.len(), 1);
    assert_eq!(engine.flows(), 0);
}

#[test]
fn without_an_answer_it_goes_out_as_it_stands_and_says_so() {
    let mut engine = engine(true);
    let mut heard = Recorded::default();
    for before in crate::scenario::honest_history(10) {
        before.play(&mut engine, &mut Recorded::default());
    }
    let talk = stripped();
    talk.play(&mut engine, &mut heard);
    assert!(heard.findings.is_empty());
    engine.tick(end(&talk) + Duration::from_secs(11));
    heard.drain(&mut engine);
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
    assert_eq!(heard.findings[0].evidence, Evidence::Regression);
    let indicators = &heard.findings[0].indicators;
    assert!(indicators.iter().any(|line| line.starts_with("pending-policy: no")), "{indicators:?}");
    assert!(heard.findings[0].time <= end(&talk), "what was found was decided by the session, not by the wait");
    assert_eq!((heard.sessions.len(), engine.flows()), (1, 0));
}

#[test]
fn what_waits_is_bounded_and_another_connection_may_have_its_name() {
    let (mut engine, mut heard, talk) = (engine(true), Recorded::default(), stripped());
    // One four-tuple repeatedly; each session starts before the look-up of the previous one is answered.
    for _ in 0..1_500 {
        talk.play(&mut engine, &mut heard);
    }
    assert_eq!(engine.flows(), 1_024);
    assert_eq!(heard.sessions.len(), 1_500 - 1_024);
    engine.finish(end(&talk));
    heard.drain(&mut engine);
    assert_eq!((heard.sessions.len(), engine.flows()), (1_500, 0));
}

#[test]
fn users_that_hand_in_their_mail_are_not_the_domain() {
    let mut talk = stripped();
    talk.flow.server.set_port(587);
    let heard = first_contact([domain(State::Valid, StsMode::Enforce), host(HERE, State::Valid)], &talk);
    let standard = (Kind::StarttlsUnused, "G8", "standard", Evidence::Suspicious, Severity::Medium);
    assert_eq!(
        said(&heard),
        [standard],
        "submission is judged by RFC 8314, not by the policy of the recipient's domain"
    );
}

#[test]
fn a_session_counts_for_each_policy_in_a_report() {
    let heard = first_contact([domain(State::Valid, StsMode::Enforce), host(HERE, State::Valid)], &stripped());
    let counted: Vec<_> = heard.deliveries.iter().map(|d| (d.domain.as_str(), d.policy, d.failure)).collect();
    let failure = Some(ResultType::StarttlsNotSupported);
    assert_eq!(counted, [(HOST, PolicyType::Tlsa, failure), (DOMAIN, PolicyType::Sts, failure)]);
    assert_eq!(heard.deliveries[1].receiving_host, HOST);
    // The client's own choice is not a fault of the peer.
    let unused =
        first_contact([domain(State::Valid, StsMode::Enforce), host(HERE, State::Absent)], &mail(GREETING, OFFER));
    assert_eq!(unused.deliveries, []);
    assert_eq!(unused.kinds(), [Kind::StarttlsUnused, Kind::PolicyViolation]);
    let none = first_contact([no_sts(), host(HERE, State::Absent)], &stripped());
    assert_eq!(none.deliveries[0].policy, PolicyType::NoPolicyFound);
}

/// A session under TLS 1.2 with a server that presents this certificate.
fn under_tls_1_2(der: &[u8]) -> Dialogue {
    greeted()
        .s(OFFER)
        .c("STARTTLS\r\n")
        .s("220 go\r\n")
        .c(client_hello(0x0303))
        .s([server_hello(0x0303, 0xc02f, b""), certificate(der)].concat())
        .c(finished())
        .s(finished())
        .c(sealed(40))
        .close()
}

#[test]
fn a_certificate_in_sight_is_compared_and_one_out_of_sight_is_not_called_good() {
    let key = rcgen::KeyPair::generate().expect("key");
    let names = |name: &str| rcgen::CertificateParams::new(vec![name.to_owned()]).expect("name");
    let der = names(HOST).self_signed(&key).expect("certificate").der().to_vec();
    let digest = |octets: &[u8]| {
        use sha2::Digest as _;
        sha2::Sha256::digest(octets).to_vec()
    };
    let public_key = x509_parser::parse_x509_certificate(&der).expect("certificate").1.public_key().raw.to_vec();
    let talk = under_tls_1_2(&der);
    let certificates = |heard: &Recorded| heard.sessions.iter().map(|session| session.certificate).collect::<Vec<_>>();
    let right = first_contact([no_sts(), host_with(HERE, State::Valid, digest(&public_key))], &talk);
    assert_eq!((right.kinds(), certificates(&right)), (vec![], vec![Some((Source::Dane, Verdict::Match))]));
    assert_eq!(right.deliveries[0].failure, None);
    let wrong = first_contact([no_sts(), host(HERE, State::Valid)], &talk);
    assert_eq!(said(&wrong)[0].0, Kind::CertificateMismatch);
    assert_eq!((&*wrong.findings[0].rule, wrong.findings[0].evidence), ("D5", Evidence::Policy));
    assert_eq!(wrong.deliveries[0].failure, Some(ResultType::TlsaInvalid));
    let encrypted = tls(greeted().s(OFFER).c("STARTTLS\r\n").s("220 go\r\n")).close();
    let unseen = first_contact([no_sts(), host(HERE, State::Valid)], &encrypted);
    assert_eq!((unseen.kinds(), certificates(&unseen)), (vec![], vec![Some((Source::Dane, Verdict::NotObservable))]));

    let other = names("mail.example.org").self_signed(&key).expect("certificate").der().to_vec();
    let enforce = || [domain(State::Valid, StsMode::Enforce), host(HERE, State::Absent)];
    let named = first_contact(enforce(), &under_tls_1_2(&other));
    assert_eq!(named.kinds(), [Kind::CertificateMismatch]);
    assert!(named.findings[0].indicators[0].contains("mail.example.org"), "{:?}", named.findings[0].indicators);
    assert_eq!(first_contact(enforce(), &talk).kinds(), []);
}

#[test]
fn one_octet_per_segment_changes_nothing() {
    let known = || [domain(State::Valid, StsMode::Enforce), host(HERE, State::Valid)];
    let whole = first_contact(known(), &stripped());
    let cut = first_contact(known(), &stripped().cut(1));
    assert_eq!(said(&cut), said(&whole));
    assert_eq!(cut.deliveries.len(), whole.deliveries.len());
}

#[test]
fn other_names_of_an_address_bind_nobody_without_a_recipient() {
    // Two mail hosts at one address, one of them with TLSA records, and a session that ends before any recipient.
    let other = HostFacts {
        addresses: answer(State::Valid, Some(vec![HERE.into()])),
        dane: answer(State::Insecure, None),
        base: "mx.example.org".to_owned(),
    };
    let begun = Dialogue::new(25)
        .s("220 mail.example.com ESMTP\r\n")
        .c("EHLO out.example.org\r\n")
        .s(STRIPPED.replace(HOST, "mail.example.com"))
        .c("MAIL FROM:<a@example.org>\r\n")
        .s("250 ok\r\n")
        .c("QUIT\r\n")
        .s("221 bye\r\n")
        .leave();
    let other = LookupResult::Host("mx.example.org".to_owned(), Arc::new(other));
    let heard = first_contact([no_sts(), host(HERE, State::Valid), other], &begun);
    assert_eq!(said(&heard), []);
    // The same if it is the only known name: any domain owner can let a name point to this address.
    let alone = first_contact([no_sts(), host(HERE, State::Valid)], &begun);
    assert_eq!(said(&alone), []);
}

/// A mail host by its name; if `bound`, with TLSA records that match no certificate.
fn host_called(name: &str, address: [u8; 4], bound: bool) -> LookupResult {
    let records = vec![Tlsa { usage: 3, selector: 1, matching: 1, data: vec![9; 32] }];
    let facts = HostFacts {
        addresses: answer(State::Valid, Some(vec![address.into()])),
        dane: answer(if bound { State::Valid } else { State::Absent }, Some(records)),
        base: name.to_owned(),
    };
    LookupResult::Host(name.to_owned(), Arc::new(facts))
}

fn domain_called(name: &str, hosts: &[&str], mode: Option<StsMode>) -> LookupResult {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let policy = mode.map(|mode| StsPolicy {
        id: "1".to_owned(),
        mode,
        mx: hosts.iter().take(4).cloned().collect(),
        max_age: Duration::from_secs(86_400),
    });
    let sts = answer(if policy.is_some() { State::Valid } else { State::Absent }, policy);
    let mx = answer(State::Valid, Some(MxSet { hosts, secure: true }));
    LookupResult::Domain(name.to_owned(), Arc::new(DomainFacts { mx, sts }))
}

fn listed() -> LookupResult {
    let policy = ListPolicy { enforce: true, mxs: vec![".example.net".to_owned()] };
    let policies = [(DOMAIN.to_owned(), policy)].into_iter().collect();
    LookupResult::List(Arc::new(StarttlsList {
        timestamp: Timestamp::default(),
        expires: Timestamp(i64::MAX),
        policies,
    }))
}

/// The strip as a client sees it, of a server with this name.
fn stripped_by(name: &str) -> Dialogue {
    mail(&format!("220 {name} ESMTP\r\n"), &STRIPPED.replace(HOST, name))
}

fn is_accused(heard: &Recorded) -> bool {
    heard.findings.iter().any(|finding| finding.evidence >= Evidence::Policy)
}

#[test]
fn a_stranger_who_points_a_name_of_his_own_to_an_address_accuses_nobody() {
    let key = rcgen::KeyPair::generate().expect("key");
    let params = rcgen::CertificateParams::new(vec![HOST.to_owned()]).expect("name");
    let talk = under_tls_1_2(params.self_signed(&key).expect("certificate").der());
    let dane = [host_called(HOST, HERE, false), host_called("mx.evil.example", HERE, true)];
    let sts = [
        domain_called(DOMAIN, &[HOST], None),
        host_called(HOST, HERE, false),
        domain_called("evil.example", &["mx.evil.example", HOST], Some(StsMode::Enforce)),
        host_called("mx.evil.example", HERE, false),
    ];
    for known in [dane.to_vec(), sts.to_vec()] {
        let heard = first_contact(known, &talk);
        assert_eq!(heard.kinds(), []);
        assert_eq!(heard.deliveries, [], "a domain that nothing binds to this host has no delivery in a report");
    }
    let relay = [
        domain_called(DOMAIN, &[HOST], None),
        host_called(HOST, ELSEWHERE, false),
        host_called("relay.example.org", HERE, false),
        host_called("mx.evil.example", HERE, true),
    ];
    assert!(!is_accused(&first_contact(relay, &stripped_by("relay.example.org"))));
}

#[test]
fn a_smart_host_is_none_also_where_little_is_known() {
    let dead = HostFacts {
        addresses: answer(State::Absent, None),
        dane: answer(State::Absent, None),
        base: "dead.example.net".to_owned(),
    };
    let known = [
        domain_called(DOMAIN, &[HOST, "dead.example.net"], Some(StsMode::Enforce)),
        host_called(HOST, ELSEWHERE, false),
        LookupResult::Host("dead.example.net".to_owned(), Arc::new(dead)),
    ];
    assert!(!is_accused(&first_contact(known, &stripped_by("relay.example.org"))));
    assert!(!is_accused(&first_contact([listed()], &stripped_by("relay.example.org"))));
    assert!(is_accused(&first_contact([listed()], &stripped_by("mx7.example.net"))));
    // Nothing is known of the mail hosts, and the server has a name that the policy allows.
    let alone = || [domain_called(DOMAIN, &[HOST], Some(StsMode::Enforce))];
    assert!(is_accused(&first_contact(alone(), &stripped())));
    assert!(!is_accused(&first_contact(alone(), &stripped_by("relay.example.org"))));
}

#[test]
fn strangers_names_hide_no_strip() {
    let mut known = vec![domain_called(DOMAIN, &[HOST], Some(StsMode::Enforce)), host_called(HOST, HERE, true)];
    known.extend((0..100).map(|number| host_called(&format!("mx{number}.evil.example"), HERE, false)));
    let heard = first_contact(known, &stripped_by("internal.example.com"));
    assert_eq!(said(&heard)[1], (Kind::PolicyViolation, "G3", "dane", Evidence::Policy, Severity::Critical));
    // More mail hosts than are examined: the name decides.
    let names: Vec<_> = (0..17).map(|number| format!("m{number}.example.net")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut many = vec![domain_called(DOMAIN, &names, Some(StsMode::Enforce))];
    many.extend(names[..16].iter().map(|name| host_called(name, ELSEWHERE, false)));
    assert!(is_accused(&first_contact(many, &stripped_by("m16.example.net"))));
}

#[test]
fn an_address_that_held_once_binds_its_next_tenant_to_nothing() {
    let old = HostFacts {
        addresses: Answer { until: Timestamp::from_secs(3600), ..answer(State::Valid, Some(vec![HERE.into()])) },
        dane: answer(State::Valid, Some(vec![Tlsa { usage: 3, selector: 1, matching: 1, data: vec![9; 32] }])),
        base: HOST.to_owned(),
    };
    let heard = first_contact([LookupResult::Host(HOST.to_owned(), Arc::new(old))], &stripped());
    assert!(!is_accused(&heard), "{:?}", said(&heard));
}

#[test]
fn a_connection_that_is_reset_waits_for_its_policy_too() {
    let (mut engine, mut heard) = (engine(true), Recorded::default());
    let talk = accepted(GREETING, STRIPPED).reset(Side::Server);
    talk.play(&mut engine, &mut heard);
    for second in 1..=6 {
        if second == 5 {
            engine.apply(domain(State::Valid, StsMode::Enforce));
            engine.apply(host(HERE, State::Absent));
        }
        engine.tick(end(&talk) + Duration::from_secs(second));
        heard.drain(&mut engine);
    }
    engine.tick(end(&talk) + Duration::from_secs(20));
    heard.drain(&mut engine);
    assert!(is_accused(&heard), "{:?}", said(&heard));
    let counted: Vec<_> = heard.deliveries.iter().map(|delivery| delivery.policy).collect();
    assert_eq!((counted, heard.sessions.len()), (vec![PolicyType::Sts], 1));
}

/// The retry begins while the reset is not yet trusted, and its verdict is pending beyond that time.
#[test]
fn a_retry_that_waits_for_its_policy_is_held_against_the_failure_before_it() {
    let failed = |secs: i64, port: u16| {
        let go = greeted().s(OFFER).c("STARTTLS\r\n").s("220 2.0.0 go\r\n").c(client_hello(0x0304));
        let mut talk = go.ack(Side::Server).reset(Side::Server).at(secs);
        talk.flow.client.set_port(port);
        talk
    };
    let retry = mail(GREETING, OFFER).at(1);
    for (talks, how) in [
        (vec![failed(0, 50_000), retry.clone()], "the failure is concluded after the retry"),
        (vec![failed(0, 50_000), retry.clone(), failed(2, 50_001)], "another handshake fails after the retry"),
    ] {
        let (mut engine, mut heard) = (engine(true), Recorded::default());
        talks.iter().for_each(|talk| talk.play(&mut engine, &mut heard));
        for second in 1..=30 {
            engine.tick(end(&retry) + Duration::from_secs(second));
            heard.drain(&mut engine);
        }
        let found = heard.findings.iter().find(|finding| finding.kind == Kind::DowngradeRetry).expect(how);
        assert!(found.indicators[0].contains("192.0.2.10:50000"), "{how}: {:?}", found.indicators);
    }
}
