//! Compares the verdicts of smtpwatch's DNSSEC validator with Unbound's: the same names in zones signed with
//! ldns-signzone.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use smtpwatch_core::Timestamp;
use smtpwatch_policy::{
    anchors::Anchors,
    resolver::{Dnssec as Validation, QueryResult, Resolver as Ours},
};
use smtpwatch_tests::names::{Names, Signing, Zone};
use smtpwatch_tests::netns::Path;
use smtpwatch_tests::resolver::{Dnssec, Resolver};
use smtpwatch_tests::scenario;

/// Address of the authoritative name server.
const NAMES: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 53));
/// Time limit for an answer of either resolver.
const PATIENCE: Duration = Duration::from_secs(10);
/// Queries per run of `dig`: its start costs more than a hundred queries.
const BATCH: usize = 2000;
/// Concurrent queries of smtpwatch's resolver.
const AT_ONCE: usize = 16;
const DIGEST: &str = "abababababababababababababababababababababababababababababababab";

/// Host names, wildcards at several depths, empty non-terminals, aliases to each of them inside and outside the zone,
/// and subtrees redirected by DNAME records (RFC 6672).
fn records(zone: &str, wildcard: bool) -> String {
    let apex = if wildcard { "* TXT \"v=spf1 -all\"\n" } else { "" };
    format!(
        "{apex}@ MX 10 mx\nmx A 198.51.100.7\n_25._tcp.mx TLSA 3 1 1 {DIGEST}\nhost A 198.51.100.8\n\
         under.host A 198.51.100.9\n_mta-sts.host TXT \"v=STSv1; id=1;\"\n*._tcp.any TLSA 3 1 1 {DIGEST}\n\
         any A 198.51.100.8\n*.wild A 198.51.100.7\n*.wild MX 10 mx\n*.deep.wild A 198.51.100.7\n\
         x.deep.wild A 198.51.100.7\n*.alias CNAME host\n*.far CNAME mx.plain.{zone}.\n*.near CNAME mx.sub.{zone}.\n\
         *.gone CNAME none.host\n*.chain CNAME q.wild\na.ent.b A 198.51.100.8\nc1 CNAME c2\nc2 CNAME host\n\
         c3 CNAME none.host\nc4 CNAME q.wild\nc5 CNAME mx.sub.{zone}.\nc6 CNAME mx.plain.{zone}.\nc7 CNAME q.alias\n\
         c8 CNAME none.sub.{zone}.\nc9 CNAME ent.b\n_mta-sts CNAME gone\n_25._tcp.c1 CNAME _25._tcp.mx\n\
         _25._tcp.c2 CNAME _25._tcp.mx.plain.{zone}.\n\
         tree DNAME wild\ntree MX 10 mx\ntree.mx DNAME mx\ntree.sub2 DNAME sub.{zone}.\ntree.plain2 DNAME plain.{zone}.\n\
         tree.gone2 DNAME none\ntree.twice DNAME tree\nc10 CNAME q.tree\nc11 CNAME none.tree.gone2\n"
    )
}

/// Query names, relative to a zone.
const NAMED: [&str; 75] = [
    "",
    "mx",
    "host",
    "any",
    "missing",
    "a.missing",
    "q.wild",
    "a.b.wild",
    "wild",
    "x.deep.wild",
    "y.deep.wild",
    "z.y.deep.wild",
    "deep.wild",
    "z.x.deep.wild",
    "q.alias",
    "a.q.alias",
    "alias",
    "q.far",
    "a.q.far",
    "q.near",
    "q.gone",
    "a.q.gone",
    "q.chain",
    "a.ent.b",
    "ent.b",
    "b",
    "z.b",
    "z.ent.b",
    "z.a.ent.b",
    "c1",
    "c2",
    "c3",
    "c4",
    "c5",
    "c6",
    "c7",
    "c8",
    "c9",
    "z.c1",
    "under.host",
    "none.host",
    "a.none.host",
    "_mta-sts",
    "_mta-sts.host",
    "_mta-sts.wild",
    "sub",
    "mx.sub",
    "none.sub",
    "q.wild.sub",
    "plain",
    "mx.plain",
    "none.plain",
    "_tcp.mx",
    "_26._tcp.any",
    "_25._tcp.any",
    "tree",
    "q.tree",
    "a.b.tree",
    "deep.tree",
    "x.deep.tree",
    "z.x.deep.tree",
    "tree.mx",
    "q.tree.mx",
    "sub2",
    "mx.tree.sub2",
    "none.tree.sub2",
    "q.wild.tree.sub2",
    "tree.plain2",
    "mx.tree.plain2",
    "none.tree.plain2",
    "q.tree.gone2",
    "q.tree.twice",
    "x.deep.tree.twice",
    "c10",
    "c11",
];

/// The outcome of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Present { secure: bool },
    Absent { secure: bool, no_name: bool },
    Bogus,
}

impl Verdict {
    fn of<T>(found: &QueryResult<T>) -> Result<Self> {
        Ok(match found {
            QueryResult::Present { secure, .. } => Self::Present { secure: *secure },
            QueryResult::Absent { secure, no_name, .. } => Self::Absent { secure: *secure, no_name: *no_name },
            QueryResult::Bogus(_) => Self::Bogus,
            QueryResult::Error(why) => return Err(anyhow!("{why}")),
        })
    }

    /// Parses the outcome from what `dig` prints of one reply.
    fn read(reply: &str, kind: &str) -> Result<Self> {
        let field = |name: &str| {
            let rest = reply.split_once(name).map(|(_, rest)| rest.trim_start());
            rest.with_context(|| format!("no {name} in {reply}"))
        };
        let status = field("status: ")?.split(',').next().unwrap_or_default();
        let secure = field("flags:")?.split(';').next().unwrap_or_default().split(' ').any(|flag| flag == "ad");
        let answer = reply.split_once(";; ANSWER SECTION:").map_or("", |(_, rest)| rest);
        let answer = answer.split("\n\n").next().unwrap_or_default();
        let present = answer.lines().any(|line| line.split_whitespace().nth(3) == Some(kind));
        match status {
            "SERVFAIL" => Ok(Self::Bogus),
            "NOERROR" if present => Ok(Self::Present { secure }),
            "NOERROR" | "NXDOMAIN" => Ok(Self::Absent { secure, no_name: status == "NXDOMAIN" }),
            other => Err(anyhow!("{other}: {reply}")),
        }
    }
}

/// One query: the absolute name and the type.
type Question = (String, &'static str);

fn zones() -> (Vec<Zone>, Vec<Question>) {
    let zone = |name: &str, signing, records: String| Zone { name: name.to_owned(), records, signing };
    let mut zones = vec![zone("", Signing::Nsec, String::new()), zone("example", Signing::Nsec3, String::new())];
    let mut questions = Vec::new();
    let mut ask = |zone: &str, names: &[&str]| {
        for name in names {
            let name = if name.is_empty() { zone.to_owned() } else { format!("{name}.{zone}") };
            questions.extend([(name.clone(), "MX"), (name.clone(), "TXT"), (format!("_25._tcp.{name}"), "TLSA")]);
        }
    };
    for (name, signing, wildcard) in [
        ("nsec.example", Signing::Nsec, false),
        ("nsec3.example", Signing::Nsec3, false),
        ("nsec-all.example", Signing::Nsec, true),
        ("nsec3-all.example", Signing::Nsec3, true),
        ("opt-out.example", Signing::OptOut, false),
        ("expired.example", Signing::Expired, false),
    ] {
        zones.push(zone(name, signing, records(name, wildcard)));
        let child = "mx A 198.51.100.7\n*.wild TXT x\n*.wild MX 10 mx\n_25._tcp.mx TLSA 3 1 1 ".to_owned() + DIGEST;
        let below = if signing == Signing::Nsec { Signing::Nsec3 } else { Signing::Nsec };
        zones.push(zone(&format!("sub.{name}"), below, child.clone()));
        zones.push(zone(&format!("plain.{name}"), Signing::Unsigned, child));
        ask(name, if signing == Signing::Expired { &NAMED[..12] } else { &NAMED });
    }
    (zones, questions)
}

/// The zones of the recorded cases, each signed with NSEC and with NSEC3.
fn cases() -> Result<Vec<Zone>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/policy/dns");
    if !directory.exists() {
        println!("skipped: the zones of the cases are not beside this repository");
        return Ok(Vec::new());
    }
    let mut zones = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let kept = text.lines().filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            !(line.starts_with([';', '$']) || words.get(1).is_some_and(|word| ["SOA", "NS"].contains(word)))
        });
        let records: String = kept.fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        });
        let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a name")?;
        for (signing, name) in [(Signing::Nsec, "n"), (Signing::Nsec3, "h")] {
            zones.push(Zone { name: format!("{name}-{stem}.example"), records: records.clone(), signing });
        }
    }
    Ok(zones)
}

fn ours(server: SocketAddr, anchor: &str, questions: &[Question]) -> Result<Vec<Verdict>> {
    // The runtime's threads start in the namespace of this thread.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let anchors = Anchors::load(anchor)?;
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let now = Timestamp::from_secs(i64::try_from(elapsed.as_secs())?);
        let server = smtpwatch_config::Resolver::Address(server);
        let resolver = Ours::start(server, anchors.as_ref(), true, PATIENCE, now).await?;
        ensure!(*resolver.dnssec() == Validation::On, "{}", resolver.dnssec());
        let resolver = Arc::new(resolver);
        let parts: Vec<_> = questions
            .chunks(questions.len().div_ceil(AT_ONCE))
            .map(|part| {
                let (resolver, part) = (resolver.clone(), part.to_vec());
                tokio::spawn(async move { verdicts(&resolver, &part).await })
            })
            .collect();
        let mut verdicts = Vec::new();
        for part in parts {
            verdicts.extend(part.await??);
        }
        Ok(verdicts)
    })
}

async fn verdicts(resolver: &Ours, questions: &[Question]) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for (name, kind) in questions {
        let verdict = match *kind {
            "MX" => Verdict::of(&resolver.mx(name).await),
            "TXT" => Verdict::of(&resolver.txt(name).await),
            _ => Verdict::of(&resolver.tlsa(name.strip_prefix("_25._tcp.").unwrap_or(name)).await),
        };
        verdicts.push(verdict.with_context(|| format!("{kind} of {name}"))?);
    }
    Ok(verdicts)
}

fn unbound(resolver: &Resolver<'_>, questions: &[Question]) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for some in questions.chunks(BATCH) {
        let words = some.iter().flat_map(|(name, kind)| [name.as_str(), *kind]);
        let words: Vec<&str> = ["+dnssec"].into_iter().chain(words).collect();
        let text = resolver.dig(&words)?;
        let replies: Vec<&str> = text.split(";; ->>HEADER<<-").skip(1).collect();
        ensure!(replies.len() == some.len(), "{} replies to {} questions: {text}", replies.len(), some.len());
        for (reply, (name, kind)) in replies.iter().zip(some) {
            verdicts.push(Verdict::read(reply, kind).with_context(|| format!("{kind} of {name}"))?);
        }
    }
    Ok(verdicts)
}

/// Wildcards, aliases, empty non-terminals and delegations, denied by NSEC, NSEC3 and NSEC3 with opt-out: the
/// validator's verdicts equal Unbound's, whether the replies come from Unbound or from the authoritative name server.
#[test]
fn denials_are_those_of_unbound() {
    scenario("denials_are_those_of_unbound", || {
        let path = Path::create()?;
        path.exchanger.ip(&["addr", "add", &format!("{NAMES}/24"), "dev", "mx0"])?;
        let (mut zones, questions) = zones();
        zones.extend(cases()?);
        let names = Names::start(&path.exchanger, NAMES, &zones, &[])?;
        let resolver = Resolver::start(&path.gateway, &names, Dnssec::Validates)?;
        let second = unbound(&resolver, &questions)?;
        let mut wrong = Vec::new();
        // Unbound forwards the authoritative data: a sample of the queries is enough to check that.
        for (server, step) in [(names.server(), 1), (Dnssec::Validates.address(), 3)] {
            let questions: Vec<Question> = questions.iter().step_by(step).cloned().collect();
            let first = path.gateway.run(|| ours(server, &names.anchor, &questions))??;
            for (((name, kind), ours), unbound) in questions.iter().zip(&first).zip(second.iter().step_by(step)) {
                if ours != unbound {
                    wrong.push(format!("{kind} of {name} from {server}: {ours:?}, Unbound: {unbound:?}"));
                }
            }
        }
        ensure!(wrong.is_empty(), "{} verdicts differ:\n{}", wrong.len(), wrong.join("\n"));
        let count = |wanted: fn(&Verdict) -> bool| second.iter().filter(|verdict| wanted(verdict)).count();
        let secure = count(|verdict| matches!(verdict, Verdict::Present { secure: true }));
        let denied = count(|verdict| matches!(verdict, Verdict::Absent { secure: true, .. }));
        let insecure = count(|verdict| matches!(verdict, Verdict::Absent { secure: false, .. }));
        let bogus = count(|verdict| *verdict == Verdict::Bogus);
        println!(
            "{} questions: {secure} proved, {denied} denied, {insecure} not denied for sure, {bogus} bogus",
            second.len()
        );
        ensure!(secure > 50 && denied > 200 && insecure > 10 && bogus > 10, "the world is not as it was made");

        // The recorded cases, each with its fixed expected value.
        if zones.iter().any(|zone| zone.name == "n-wildcard-nsec.example") {
            let present = Verdict::Present { secure: true };
            let none = |no_name| Verdict::Absent { secure: true, no_name };
            let case = |zone: &str, name: &str, kind, verdict| {
                ["n", "h"].map(|kinds| ((format!("{name}{kinds}-{zone}.example"), kind), verdict))
            };
            let wanted: Vec<(Question, Verdict)> = [
                case("wildcard-nsec", "_25._tcp.mx.", "TLSA", present),
                case("wildcard-nsec", "_mta-sts.", "TXT", present),
                case("wildcard-policy-host-nsec", "_mta-sts.", "TXT", present),
                case("cname-to-nothing", "_25._tcp.mx.", "TLSA", none(false)),
                case("cname-to-nothing", "_mta-sts.", "TXT", none(true)),
                case("cname-to-nothing", "alias.", "MX", none(false)),
                case("cname-to-nothing", "_25._tcp.host.", "TLSA", present),
                case("unusable-tlsa", "_25._tcp.mx.", "TLSA", present),
                case("dead-second-mx", "_25._tcp.gone.", "TLSA", none(true)),
            ]
            .concat();
            let questions: Vec<Question> = wanted.iter().map(|(question, _)| question.clone()).collect();
            for round in 0..3 {
                let found = path.gateway.run(|| ours(names.server(), &names.anchor, &questions))??;
                for ((question, wanted), found) in wanted.iter().zip(found) {
                    ensure!(found == *wanted, "{question:?}, round {round}: {found:?}, not {wanted:?}");
                }
            }
            ensure!(unbound(&resolver, &questions)? == wanted.iter().map(|(_, wanted)| *wanted).collect::<Vec<_>>());
        }
        Ok(())
    });
}
