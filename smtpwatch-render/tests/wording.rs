//! What people read of each row of the catalogue, as snapshots: this is the one test that fails at every other wording.
//! Each finding comes from the engine, which heard a dialogue.
//!
//! Read the sentences beside the transcript below them. A sentence that the transcript does not bear out is a fault,
//! also in an accepted snapshot. `INSTA_UPDATE=always cargo test -p smtpwatch-render` accepts what is rendered.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc};

use smtpwatch_core::{
    Engine, Finding, Role, Settings, Timestamp,
    cause::{About, Cause},
    finding::{Evidence, Kind, Outcome, Provenance},
    judge::catalogue::ROWS,
    policy::{
        history::History,
        published::{
            Answer, DomainFacts, HostFacts, LookupResult, MxSet, State,
            list::{ListPolicy, StarttlsList},
            sts::{StsMode, StsPolicy},
            tlsa::Tlsa,
        },
    },
};
use smtpwatch_render::{export, text, words};
use smtpwatch_testkit::{
    scenario::{STRIPPED, deliver, greeted, hear_by},
    threats::{Known, a8, a9, d1, g9, heard_as, known_client, threats},
};

/// Rows and roles without a snapshot, each with its reason.
const WITHOUT: &[(&str, Role, &str)] = &[("D5", Role::Client, "its certificate is another one in each run")];

#[test]
fn findings_of_each_area() {
    let findings = findings();
    // FO-1 is in the file of the area F.
    let areas: BTreeSet<_> = ROWS.iter().filter_map(|row| row.id.as_str().get(..1)).collect();
    let mut shown = BTreeSet::new();
    for area in areas {
        let mut rendered = String::new();
        for row in ROWS.iter().filter(|row| row.id.as_str().starts_with(area)) {
            for finding in findings.iter().filter(|finding| finding.rule == row.id.as_str()) {
                let of = (&*finding.rule, finding.role.as_str(), finding.kind);
                if shown.insert(of) {
                    let _ = writeln!(rendered, "{}\n{}", lead(finding), text::finding(finding));
                }
            }
        }
        snapshot(&format!("area_{area}"), &rendered);
    }
    for row in ROWS.iter().filter(|row| row.kind().is_some()) {
        for role in [Role::Client, Role::Server].into_iter().filter(|role| row.seen_from.includes(*role)) {
            let without = WITHOUT.iter().any(|(id, of, _)| *id == row.id.as_str() && *of == role);
            let any = shown.iter().any(|(id, of, ..)| *id == row.id.as_str() && *of == role.as_str());
            assert_ne!(any, without, "{} as the {}", row.id, role.as_str());
        }
    }
}

#[test]
fn sentences_and_next_steps_of_each_kind() {
    let mut rendered = String::new();
    let own = [Kind::AuthOfferedPlaintext, Kind::StarttlsRefused].map(|kind| (kind, About::ThisHost));
    let guessing = [(Kind::AuthPlaintext, About::Guessing)];
    for (kind, about) in Kind::ALL.iter().map(|kind| (*kind, About::Peer)).chain(own).chain(guessing) {
        let _ = writeln!(rendered, "{kind}, about {about}: {}.", words::happened(kind, about));
        if let Some(headline) = words::headline(kind, about, 2, "1 address") {
            let _ = writeln!(rendered, "  headline: {headline}");
        }
        let _ = writeln!(rendered, "  next: {}\n", words::next(kind, about));
    }
    for evidence in Evidence::ALL {
        let _ = writeln!(rendered, "evidence {evidence}: {}", words::how_sure(*evidence));
    }
    for outcome in Outcome::ALL {
        let _ = writeln!(rendered, "outcome {outcome}: {}", words::cost(*outcome));
    }
    snapshot("words", &rendered);
}

#[test]
fn the_letter_about_a_peer_this_host_and_a_stranger() {
    let findings = findings();
    let of = |id, role| findings.iter().find(|finding| finding.rule == id && finding.role == role);
    let letters = [
        ("peer", About::Peer, of("A1", Role::Client)),
        ("this_host", About::ThisHost, of("F6", Role::Server)),
        ("guessing", About::Guessing, of("F7", Role::Server)),
    ];
    for (name, about, finding) in letters {
        let mut finding = finding.expect(name).clone();
        assert_eq!(Cause::of(&finding).map(|cause| cause.about), Some(about), "{name}");
        // As the incident stage completes it.
        finding.id = "(finding)".to_owned();
        finding.flow.community_id = "(community)".to_owned();
        finding.provenance = Provenance {
            version: "(version)".to_owned(),
            config_sha256: "(configuration)".to_owned(),
            policy_sha256: "(policies)".to_owned(),
        };
        snapshot(&format!("letter_{name}"), &export::text("(incident)", &[finding]));
    }
}

/// Compares with the file `tests/snapshots/NAME.snap`.
fn snapshot(name: &str, rendered: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, rendered));
}

/// What the page of an incident says of the finding.
fn lead(finding: &Finding) -> String {
    let about = Cause::of(finding).map_or(About::Peer, |cause| cause.about);
    let Finding { rule, role, kind, evidence, outcome, .. } = finding;
    let (happened, sure, cost) = (words::happened(*kind, about), words::how_sure(*evidence), words::cost(*outcome));
    format!("# {rule} as the {}: {happened}.\n# {evidence}: {sure}; {outcome}: {cost}.", role.as_str())
}

/// Findings of every row that the engine raises, seen from both ends; those of a row's own dialogues first.
fn findings() -> Vec<Finding> {
    let ends = [Role::Client, Role::Server];
    let mut own =
        [a8(&known_client()), a9(Known::History), d1(Role::Client), d1(Role::Server), published(), g9()].concat();
    let mut other = Vec::new();
    for threat in threats() {
        let both = ends.into_iter().flat_map(|role| heard_as(&threat, role));
        let (mine, rest): (Vec<_>, Vec<_>) = both.partition(|finding| finding.rule == threat.id);
        own.extend(mine);
        other.extend(rest);
    }
    own.extend(other);
    own
}

/// Findings about a stripped delivery against MTA-STS in mode testing, DANE, and the STARTTLS-Everywhere list.
fn published() -> Vec<Finding> {
    const DOMAIN: &str = "example.net";
    const HOST: &str = "mx1.example.net";
    fn answer<T>(value: Option<T>) -> Answer<T> {
        let state = if value.is_some() { State::Valid } else { State::Absent };
        Answer { state, value, detail: String::new(), at: Timestamp::default(), until: Timestamp(i64::MAX) }
    }
    let mx = || answer(Some(MxSet { hosts: vec![HOST.to_owned()], secure: true }));
    let domain = |sts| LookupResult::Domain(DOMAIN.to_owned(), Arc::new(DomainFacts { mx: mx(), sts: answer(sts) }));
    let host = |dane| {
        let addresses = answer(Some(vec![[198, 51, 100, 25].into()]));
        let facts = HostFacts { addresses, dane: answer(dane), base: HOST.to_owned() };
        LookupResult::Host(HOST.to_owned(), Arc::new(facts))
    };
    let sts = StsPolicy {
        id: "20261126".to_owned(),
        mode: StsMode::Testing,
        mx: vec!["*.example.net".to_owned()],
        max_age: std::time::Duration::from_secs(86_400),
    };
    let tlsa = Tlsa { usage: 3, selector: 1, matching: 1, data: vec![7; 32] };
    let policy = ListPolicy { enforce: true, mxs: vec![".example.net".to_owned()] };
    let policies = [(DOMAIN.to_owned(), policy)].into_iter().collect();
    let list = StarttlsList { timestamp: Timestamp::default(), expires: Timestamp(i64::MAX), policies };
    let known = [
        vec![domain(Some(sts)), host(None)],
        vec![domain(None), host(Some(vec![tlsa]))],
        vec![LookupResult::List(Arc::new(list))],
    ];
    let raised = |results: Vec<LookupResult>| {
        let mut engine = Engine::new(Settings::default(), Vec::new(), History::new(1000));
        results.into_iter().for_each(|result| engine.apply(result));
        hear_by(engine, &[], &deliver(greeted().s(STRIPPED))).findings
    };
    known.into_iter().flat_map(raised).collect()
}
