//! `smtpwatch policy` on the command line.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use smtpwatch_core::{
    Timestamp,
    policy::{
        known::{Known, KnownDomain, KnownHost},
        memory::{Kept, Memory},
        published::{Answer, DomainFacts, HostFacts, MxSet, State, sts::StsPolicy},
    },
};
use smtpwatch_store::{Store, Writer, WriterSettings};

use crate::{
    dns::{Delegation, NameServer, Zone},
    https::PolicyHost,
    states::now,
};

const POLICY: &str = "version: STSv1\nmode: enforce\nmx: mx1.sts.example\nmx: *.mx.sts.example\nmax_age: 604800\n";
const LIST: &str = r#"{"version":"0.1","timestamp":1700000000,"expires":4000000000,"policy-aliases":{},"policies":{
    "listed.example":{"mode":"enforce","mxs":[".listed.example"]},"tried.example":{"mode":"testing","mxs":["a.example"]}}}"#;

fn smtpwatch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smtpwatch")).env_clear().args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn source<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut sources = report["sources"].as_array().unwrap().iter();
    sources.find(|source| source["source"] == name).unwrap()
}

/// The files that a daemon has written: a store, a list and a configuration.
struct Left {
    directory: tempfile::TempDir,
}

impl Left {
    fn new() -> Self {
        Self::with(Vec::new(), "")
    }

    fn with(more: Vec<Known>, rules: &str) -> Self {
        let left = Self { directory: tempfile::tempdir().unwrap() };
        let (writer, _) = Writer::start(&left.path("smtpwatch.db"), WriterSettings::default()).unwrap();
        let handle = writer.handle().unwrap();
        handle.policy(domain("sts.example", &["mx1.sts.example"], false, Some(POLICY)));
        handle.policy(domain("dane.example", &["mx.dane.example"], true, None));
        handle.policy(domain("plain.example", &["mx.plain.example"], false, None));
        handle.policy(host("mx1.sts.example", "192.0.2.1", None));
        handle.policy(host("mx.dane.example", "192.0.2.2", Some("3 1 1")));
        handle.policy(host("mx.plain.example", "192.0.2.3", None));
        handle.policy(host("mx.alone.example", "192.0.2.4", None));
        more.into_iter().for_each(|known| handle.policy(known));
        drop(handle);
        assert_eq!(writer.finish(), 0);
        std::fs::write(left.path("list.json"), LIST).unwrap();
        let config = format!(
            "[store]\npath = \"{}\"\n[policy]\nstarttls_everywhere = \"{}\"\n[[rule]]\n\
             peer = [\"mx.ruled.example\", \"m*.wild.example\"]\nstarttls = \"required\"\n{rules}",
            left.path("smtpwatch.db").display(),
            left.path("list.json").display()
        );
        std::fs::write(left.path("smtpwatch.toml"), config).unwrap();
        left
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn policy(&self, arguments: &[&str]) -> Output {
        let config = self.path("smtpwatch.toml");
        smtpwatch(&[&["policy"], arguments, &["--config", config.to_str().unwrap()]].concat())
    }
}

fn answer<T>(state: State, value: Option<T>) -> Answer<T> {
    let at = Timestamp(now().0 - 60_000_000_000);
    Answer { state, value, detail: "as it was".to_owned(), at, until: at + Duration::from_secs(86_400) }
}

fn domain(name: &str, hosts: &[&str], secure: bool, policy: Option<&str>) -> Known {
    let mx = MxSet { hosts: hosts.iter().map(ToString::to_string).collect(), secure };
    let kept = policy.map(|body| Kept {
        policy: StsPolicy::parse(body.as_bytes(), "1").unwrap(),
        body: body.to_owned(),
        fetched_at: now(),
    });
    let state = if kept.is_some() { State::Valid } else { State::Absent };
    let sts = answer(state, kept.as_ref().map(|kept| kept.policy.clone()));
    let facts = Arc::new(DomainFacts { mx: answer(State::Valid, Some(mx)), sts });
    Known::Domain(KnownDomain { name: name.to_owned(), facts, memory: Memory { kept, failed: None } })
}

fn host(name: &str, address: &str, tlsa: Option<&str>) -> Known {
    let tlsa = tlsa.map(|tlsa| vec![format!("{tlsa} {}", "ab".repeat(32)).parse().unwrap()]);
    let dane = answer(if tlsa.is_some() { State::Valid } else { State::Insecure }, tlsa);
    let addresses = answer(State::Valid, Some(vec![address.parse().unwrap()]));
    let facts = Arc::new(HostFacts { addresses, dane, base: name.to_owned() });
    Known::Host(KnownHost { name: name.to_owned(), facts })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_asks_everybody_and_says_who_wins() {
    let digest = "ab".repeat(32);
    let records = format!(
        "@ MX 10 mx\n@ MX 20 bare\nmx A 127.0.0.1\n_25._tcp.mx TLSA 3 1 1 {digest}\n\
         bare A 127.0.0.1\n_x._tcp.bare TXT x\n\
         mta-sts A 127.0.0.1\n_mta-sts TXT \"v=STSv1; id=1;\"\n"
    );
    let zone = Zone { origin: "example.test.", delegation: Delegation::Secure, records };
    let (dns, policies) =
        (NameServer::start(vec![zone], false).await, PolicyHost::start(&["mta-sts.example.test"]).await);
    policies
        .policy("mta-sts.example.test", "version: STSv1\r\nmode: enforce\r\nmx: mx.example.test\r\nmax_age: 86400\r\n");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("smtpwatch.toml");
    let content = format!(
        "[store]\npath = \"{}\"\n[policy]\nresolver = \"{}\"\ntrust_anchor = \"{}\"\n\
         allow_private = true\nca_file = \"{}\"\nhttps_port = {}\n",
        directory.path().join("none.db").display(),
        dns.address,
        dns.digests[0],
        policies.ca().display(),
        policies.address.port()
    );
    std::fs::write(&config, content).unwrap();
    let arguments = ["policy", "check", "Example.TEST.", "--config", config.to_str().unwrap(), "--format"];
    let ask = |format: &'static str| {
        let arguments = arguments.map(ToOwned::to_owned);
        tokio::task::spawn_blocking(move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain([format]).collect();
            smtpwatch(&arguments)
        })
    };
    let report = json(&ask("json").await.unwrap());
    assert_eq!((&report["subject"], &report["dnssec"]), (&json!("example.test"), &json!("on")));
    assert_eq!(report["effective"], json!({"starttls": "required", "source": "mta-sts"}));
    let names: Vec<_> = report["sources"].as_array().unwrap().iter().map(|found| &found["source"]).collect();
    assert_eq!(names, ["rule", "dane", "mta-sts", "list", "history"]);
    // One of two hosts has TLSA records: that binds the host, not the domain.
    assert_eq!(source(&report, "dane")["state"], "absent");
    assert_eq!(source(&report, "mta-sts")["mode"], "enforce");
    let [mx, bare] = report["hosts"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!(
        (&mx["host"], &mx["effective"]["source"], &mx["mta_sts_allows"]),
        (&json!("mx.example.test"), &json!("dane"), &json!(true))
    );
    assert_eq!((&bare["effective"]["source"], &bare["mta_sts_allows"]), (&json!("mta-sts"), &json!(false)));
    assert_eq!(mx["tlsa"][0], format!("3 1 1 {digest}"));
    let text = text(&ask("text").await.unwrap());
    assert!(text.starts_with("example.test: STARTTLS required (by mta-sts)\n"), "{text}");
    assert!(text.contains("does not allow this host"), "{text}");
    assert!(!directory.path().join("none.db").exists(), "it leaves nothing behind");
}

#[test]
fn what_the_daemon_left_is_shown_source_by_source() {
    let left = Left::new();
    let show = |subject: &str| json(&left.policy(&["show", subject, "--format", "json"]));
    let report = show("sts.example");
    assert_eq!(report["effective"], json!({"starttls": "required", "source": "mta-sts"}));
    assert_eq!(source(&report, "dane")["state"], "insecure");
    let age = source(&report, "dane")["age_seconds"].as_u64().unwrap();
    assert!((60..120).contains(&age), "{age}");
    assert_eq!(show("DANE.example")["effective"]["source"], "dane");
    for (subject, starttls, source) in [
        ("plain.example", "opportunistic", "none"),
        ("listed.example", "required", "list"),
        ("tried.example", "expected", "list"),
        ("unheard-of.example", "opportunistic", "none"),
        // Mail hosts and addresses, with the domains whose mail they receive.
        ("mx1.sts.example", "required", "mta-sts"),
        ("192.0.2.1", "required", "mta-sts"),
        ("::ffff:192.0.2.2", "required", "dane"),
        ("mx.ruled.example", "opportunistic", "none"),
    ] {
        assert_eq!(show(subject)["effective"], json!({"starttls": starttls, "source": source}), "{subject}");
    }
    assert_eq!(show("192.0.2.1")["domains"], json!(["sts.example"]));
    let lines = text(&left.policy(&["list", "--format", "json"]));
    let subjects: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["subject"].clone()).collect();
    assert_eq!((subjects.len(), subjects.last()), (4, Some(&json!("mx.alone.example"))));
}

#[test]
fn tables_for_mail_servers() {
    let left = Left::new();
    let table = text(&left.policy(&["export", "postfix"]));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("# Written 20") && lines[0].contains("by smtpwatch"), "{table}");
    assert_eq!(
        lines[2..],
        [
            "[mx.ruled.example] encrypt",
            "# rule 1: m*.wild.example is no next hop that can be named here",
            "dane.example dane-only",
            "listed.example secure match=.listed.example",
            "sts.example secure match=mx1.sts.example:.mx.sts.example servername=hostname",
            "# tried.example: TLS is expected, not required (list)",
        ]
    );
    let table = text(&left.policy(&["export", "exim"]));
    assert_eq!(
        table.lines().skip(2).collect::<Vec<_>>(),
        [
            "# rule 1: m*.wild.example cannot be written in a host list",
            "*.listed.example",
            "mx.dane.example",
            "mx.ruled.example",
            "mx1.sts.example",
        ]
    );
}

#[test]
fn a_table_neither_weakens_the_server_nor_binds_the_mail_of_others() {
    let policy = |mode: &str, mx: &str| format!("version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: 604800\n");
    let of = |name: &str, hosts: &[&str], policy: &str| domain(name, hosts, false, Some(policy));
    let more = vec![
        of("testing.example", &["mx.testing.example"], &policy("testing", "mx.testing.example")),
        // A domain owner names the hosts of others in a policy.
        of("evil.example", &["mx.plain.example", "mx.dane.example"], &policy("enforce", "mx.plain.example")),
        of("led.example", &["mx.astray.example", "mx.both.example"], &policy("enforce", "mx.both.example")),
        of("too.example", &["mx.both.example"], &policy("enforce", "mx.both.example")),
        // One of two hosts has TLSA records: they apply to it, whatever other domains use it.
        domain("half.example", &["mx.half.example", "mx.bare.example"], true, None),
        host("mx.half.example", "192.0.2.10", Some("3 1 1")),
        // A name of the list belongs to a host that receives another domain's mail in cleartext.
        domain("shared.example", &["mail.listed.example"], false, None),
    ];
    let left = Left::with(more, "[[rule]]\npeer = [\"mx.hoped.example\"]\nstarttls = \"expected\"\n");
    let table = text(&left.policy(&["export", "postfix"]));
    assert!(!table.contains(" may\n"), "{table}");
    for line in [
        "# [mx.hoped.example]: TLS is expected, not required (rule 2)\n",
        "# testing.example: TLS is expected, not required (mta-sts)\n",
    ] {
        assert!(table.contains(line), "{table}");
    }
    let table = text(&left.policy(&["export", "exim"]));
    assert_eq!(
        table.lines().skip(3).collect::<Vec<_>>(),
        ["mx.both.example", "mx.dane.example", "mx.half.example", "mx.ruled.example", "mx1.sts.example"]
    );
}

#[test]
fn mistakes_have_their_codes() {
    for arguments in [
        ["policy", "check", "localhost"].as_slice(),
        &["policy", "check", "[192.0.2.1]"],
        &["policy", "show", "a b"],
        &["policy", "export", "sendmail"],
        &["policy"],
    ] {
        assert_eq!(smtpwatch(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    for (keys, words) in [
        ("trust_anchor = \"/no/such/anchor\"", "[policy] trust_anchor: cannot read /no/such/anchor"),
        ("ca_file = \"/no/such/ca\"", "[policy] ca_file: cannot read /no/such/ca"),
        ("resolver = \"dns.example\"", "smtpwatch.toml:2: resolver"),
    ] {
        let config = directory.path().join("smtpwatch.toml");
        std::fs::write(&config, format!("[policy]\n{keys}\n")).unwrap();
        let output = smtpwatch(&["policy", "check", "example.net", "--config", config.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78), "{keys}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Hostile rows do no harm, and the most recent ones are retained.
#[test]
fn the_store_of_policies_is_bounded_and_forgiving() {
    let left = Left::new();
    let path = left.path("smtpwatch.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute("UPDATE policy_domain SET mx = '{' WHERE domain = 'plain.example'", []).unwrap();
    connection.execute("UPDATE policy_domain SET body = 'no policy' WHERE domain = 'sts.example'", []).unwrap();
    connection
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10010)
             INSERT INTO policy_host SELECT 'mx' || i, i, '{}', '{}', 'mx' || i FROM n",
            [],
        )
        .unwrap();
    drop(connection);
    assert_eq!(hosts(&path), 4, "what cannot be read is left out");
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    writer.handle().unwrap().policy(host("mx9.example", "192.0.2.9", None));
    assert_eq!(writer.finish(), 0);
    assert_eq!(hosts(&path), 5);
    let rows = rusqlite::Connection::open(&path).unwrap();
    let rows: i64 = rows.query_row("SELECT count(*) FROM policy_host", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, smtpwatch_store::policies::ROWS);
    let kept = Store::open_existing(&path).unwrap().policies().unwrap();
    let domains: Vec<&str> = kept.domains.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!(domains, ["dane.example"]);
}

#[test]
fn the_store_keeps_policies_that_protect_before_newer_names() {
    let left = Left::new();
    let path = left.path("smtpwatch.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10010)
             INSERT INTO policy_domain (domain, at, mx, sts) SELECT 'd' || i, ?1 + i, '{}', '{}' FROM n",
            [now().0],
        )
        .unwrap();
    drop(connection);
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    writer.handle().unwrap().policy(domain("new.example", &[], false, None));
    assert_eq!(writer.finish(), 0);
    let kept = Store::open_existing(&path).unwrap().policies().unwrap();
    assert_eq!(kept.domains.iter().map(|domain| domain.name.as_str()).collect::<Vec<_>>(), ["sts.example"]);
}

fn hosts(path: &Path) -> usize {
    Store::open_existing(path).unwrap().policies().unwrap().hosts.len()
}

/// The input of a case; if it is missing, the reason is printed and the test skips the case.
fn case(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/policy").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no {name} beside this repository");
    None
}

/// The lines that a server parses.
fn lines(table: &str) -> Vec<&str> {
    table.lines().filter(|line| !line.starts_with('#')).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Exports the table of these files, without comments.
fn exported(more: Vec<Known>, rules: &str, server: &str) -> Vec<String> {
    let left = Left::with(more, rules);
    let table = text(&left.policy(&["export", server]));
    lines(&table).into_iter().map(ToOwned::to_owned).collect()
}

/// At its default Postfix treats `dane` with insecure MX records as `may`; `dane-only` defers mail indefinitely to a
/// host whose records are unusable; an address matches no certificate.
#[test]
fn a_line_of_postfix_is_what_postfix_makes_of_it() {
    let policy = |mx: &str| format!("version: STSv1\nmode: enforce\n{mx}max_age: 604800\n");
    let sts = |name: &str, hosts: &[&str], secure, mx: &str| domain(name, hosts, secure, Some(&policy(mx)));
    let mixed = |name: &str| {
        let Known::Host(mut known) = host(name, "192.0.2.30", Some("3 1 1")) else { panic!() };
        let facts = Arc::make_mut(&mut known.facts);
        facts.dane.value.as_mut().unwrap().push(format!("1 1 1 {}", "ab".repeat(32)).parse().unwrap());
        Known::Host(known)
    };
    let more = vec![
        // sts/dane-under-insecure-mx.txt and its siblings.
        sts("insecure-mx.example", &["mx.signed.example"], false, "mx: mx.signed.example\n"),
        domain("insecure-alone.example", &["mx.signed.example"], false, None),
        sts("secure-mx.example", &["mx.signed.example"], true, "mx: mx.signed.example\n"),
        host("mx.signed.example", "192.0.2.20", Some("3 1 1")),
        // dns/unusable-tlsa.zone and its siblings.
        domain("unusable.example", &["mx.unusable.example"], true, None),
        sts("unusable-sts.example", &["mx.unusable.example"], true, "mx: mx.unusable.example\n"),
        domain("half-usable.example", &["mx.unusable.example", "mx.signed.example"], true, None),
        domain("mixed.example", &["mx.mixed.example"], true, None),
        host("mx.unusable.example", "192.0.2.21", Some("1 1 1")),
        mixed("mx.mixed.example"),
        // An address as the value of `mx:`.
        sts("address.example", &["mx.address.example"], false, "mx: 192.0.2.40\nmx: mx.address.example\n"),
        sts("addresses.example", &["mx.address.example"], false, "mx: 192.0.2.40\n"),
    ];
    let left = Left::with(more, "");
    let output = left.policy(&["export", "postfix"]);
    let table = text(&output);
    let lines = lines(&table);
    for line in [
        "insecure-mx.example secure match=mx.signed.example servername=hostname",
        "insecure-alone.example encrypt",
        "secure-mx.example dane-only",
        "unusable.example encrypt",
        "unusable-sts.example secure match=mx.unusable.example servername=hostname",
        "half-usable.example dane",
        "mixed.example dane-only",
        "address.example secure match=mx.address.example servername=hostname",
        "addresses.example encrypt",
    ] {
        assert!(lines.contains(&line), "{line} is missing in {table}");
    }
    for setting in ["smtp_dns_support_level = dnssec", "smtp_tls_CAfile"] {
        assert!(table.lines().nth(1).unwrap().contains(setting), "{table}");
    }
    assert!(stderr(&output).contains("warning: addresses.example"), "{}", stderr(&output));
    assert!(table.contains("# addresses.example: its policy allows no host by name"), "{table}");
}

/// A host without an address receives no mail: the others decide. The same holds for a host whose look-up fails (RFC
/// 7672 §2.2).
#[test]
fn a_dead_mail_host_does_not_speak_for_its_domain() {
    let without = |name: &str, addresses: State, dane: State| {
        let facts = HostFacts { addresses: answer(addresses, None), dane: answer(dane, None), base: name.to_owned() };
        Known::Host(KnownHost { name: name.to_owned(), facts: Arc::new(facts) })
    };
    for (addresses, dane) in
        [(State::Absent, State::Absent), (State::Error, State::Error), (State::Bogus, State::Bogus)]
    {
        let more = vec![
            domain("two.example", &["mx.two.example", "gone.two.example"], true, None),
            host("mx.two.example", "192.0.2.50", Some("3 1 1")),
            without("gone.two.example", addresses, dane),
            domain("all-dead.example", &["gone.two.example"], true, None),
        ];
        let left = Left::with(more, "");
        let report = json(&left.policy(&["show", "two.example", "--format", "json"]));
        assert_eq!(report["effective"], json!({"starttls": "required", "source": "dane"}), "{addresses:?}");
        let detail = source(&report, "dane")["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("1 of 2 mail hosts cannot be reached"), "{detail}");
        let report = json(&left.policy(&["show", "all-dead.example", "--format", "json"]));
        assert_eq!(report["effective"]["starttls"], "opportunistic", "{addresses:?}");
    }
    // A reachable host without TLSA records does count.
    let more = vec![
        domain("two.example", &["mx.two.example", "bare.two.example"], true, None),
        host("mx.two.example", "192.0.2.50", Some("3 1 1")),
        host("bare.two.example", "192.0.2.51", None),
    ];
    assert!(!exported(more, "", "postfix").iter().any(|line| line.starts_with("two.example")));
}

/// The first rule that matches a peer decides: order, catch-all and exceptions are preserved, or their loss is
/// reported.
#[test]
fn rules_keep_their_order_in_tables() {
    let rules = |rules: &[(&str, &str)]| -> String {
        let rule = |(peers, starttls): &(&str, &str)| {
            let starttls = if starttls.is_empty() { String::new() } else { format!("starttls = \"{starttls}\"\n") };
            format!("[[rule]]\npeer = [{peers}]\n{starttls}")
        };
        rules.iter().map(rule).collect()
    };
    let config = |rules: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("smtpwatch.toml");
        let store = directory.path().join("none.db");
        std::fs::write(&path, format!("[store]\npath = \"{}\"\n{rules}", store.display())).unwrap();
        (directory, path)
    };
    let export = |rules: &str, server: &str| {
        let (_directory, path) = config(rules);
        let output = smtpwatch(&["policy", "export", server, "--config", path.to_str().unwrap()]);
        let table = text(&output);
        (lines(&table).join(" "), table.clone(), stderr(&output))
    };
    for (given, exim, postfix, warned) in [
        (rules(&[("", "required")]), "*", "", "rule 1: TLS is required of every peer"),
        (
            rules(&[("\"mx.legacy.example\", \"192.0.2.7\"", "ignore"), ("", "required")]),
            "!mx.legacy.example !192.0.2.7 *",
            "",
            "[mx.legacy.example]: nothing is required (rule 1)",
        ),
        (
            rules(&[("\"old.example.net\"", "ignore"), ("\"*.example.net\"", "required")]),
            "!old.example.net *.example.net",
            "",
            "rule 2: *.example.net is no next hop",
        ),
        (
            rules(&[("\"192.0.2.7\"", "expected"), ("\"192.0.2.0/24\"", "required")]),
            "!192.0.2.7 192.0.2.0/24",
            "",
            "rule 2: 192.0.2.0/24 is no next hop",
        ),
        (
            rules(&[("\"a.example.net\"", "ignore"), ("\"a.example.net\", \"b.example.net\"", "required")]),
            "!a.example.net a.example.net b.example.net",
            "[b.example.net] encrypt",
            "[a.example.net]: nothing is required",
        ),
        // An exception after the wider rule has no effect, nor has one with no rule after it; and Exim would apply a
        // list that ends with an exception to every other host.
        (rules(&[("\"*.example.net\"", "required"), ("\"a.example.net\"", "ignore")]), "*.example.net", "", "rule 1"),
        (rules(&[("\"a.example.net\"", "ignore")]), "", "", ""),
        (rules(&[("", "ignore"), ("\"a.example.net\"", "required")]), "", "", ""),
    ] {
        let (found, table, errors) = export(&given, "exim");
        assert_eq!(found, exim, "{given}{table}{errors}");
        let (found, table, errors) = export(&given, "postfix");
        assert_eq!(found, postfix, "{given}{table}{errors}");
        assert!(errors.contains(warned) && table.contains(warned), "{given}{table}{errors}");
    }
    // A rule without starttls precedes one that has it.
    let silent = rules(&[("\"mx.example.net\"", ""), ("\"*.example.net\"", "required")]);
    let (found, table, errors) = export(&silent.replacen("\n[[", "\nmin_tls = \"1.2\"\n[[", 1), "exim");
    assert_eq!(found, "*.example.net", "{table}");
    assert!(errors.contains("rule 1 has no starttls and precedes rule 2"), "{errors}");
    if let Some(input) = case("rules/catch-all.toml") {
        let (found, ..) =
            export(&std::fs::read_to_string(input).unwrap().replace("[store]\npath = \"none.db\"\n", ""), "exim");
        assert_eq!(found, "*");
    }
}

/// A host is bound only if every domain that uses it, known by DNS or by a list alone, requires it.
#[test]
fn a_host_that_a_testing_domain_uses_too_is_left_out() {
    let shared = |first: &str, other: &str| {
        format!(
            r#"{{"version":"0.1","timestamp":1700000000,"expires":4000000000,"policy-aliases":{{}},"policies":{{
            "a.test":{{"mode":"enforce","mxs":["{first}"]}},"b.test":{{"mode":"testing","mxs":["{other}"]}}}}}}"#
        )
    };
    let mut lists = vec![
        shared("mx.shared.test", "mx.shared.test"),
        shared(".shared.test", "mx.shared.test"),
        shared("mx.shared.test", ".shared.test"),
    ];
    lists.extend(case("lists/shared-host.json").map(|path| std::fs::read_to_string(path).unwrap()));
    for list in lists {
        let left = Left::new();
        std::fs::write(left.path("list.json"), &list).unwrap();
        let table = text(&left.policy(&["export", "exim"]));
        assert!(!table.contains("shared.test"), "{list}: {table}");
        assert!(text(&left.policy(&["export", "postfix"])).contains("\na.test secure match="), "{list}");
    }
    let left = Left::new();
    std::fs::write(left.path("list.json"), shared("mx.one.test", "mx.other.test")).unwrap();
    let table = text(&left.policy(&["export", "exim"]));
    assert!(table.contains("\nmx.one.test\n") && !table.contains("mx.other.test"), "{table}");
}

/// A table with fewer entries than the previous one is not written, and the reason is reported.
#[test]
fn a_table_that_knows_less_replaces_nothing() {
    let mut broken = vec![
        ("expired".to_owned(), LIST.replace("4000000000", "1700000001"), "the STARTTLS-Everywhere list expired on"),
        ("comma".to_owned(), LIST.replace("]}}}", "]},}}"), "cannot be used"),
        ("missing".to_owned(), String::new(), "cannot read"),
        ("cut off".to_owned(), LIST[..100].to_owned(), "cannot be used"),
    ];
    for (name, words) in [("expired.json", "list expired on"), ("trailing-comma.json", "cannot be used")] {
        let read = case(&format!("lists/{name}")).map(|path| std::fs::read_to_string(path).unwrap());
        broken.extend(read.map(|text| (name.to_owned(), text, words)));
    }
    for server in ["postfix", "exim"] {
        for (name, list, words) in &broken {
            let left = Left::new();
            let table = left.path("table");
            let to = |left: &Left, more: &[&str]| {
                left.policy(&[&["export", server, "--output", table.to_str().unwrap()], more].concat())
            };
            let output = to(&left, &[]);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{}", stderr(&output));
            let good = std::fs::read_to_string(&table).unwrap();
            assert!(good.contains("listed.example") && good.contains("dane.example"), "{good}");
            match list.as_str() {
                "" => std::fs::remove_file(left.path("list.json")).unwrap(),
                list => std::fs::write(left.path("list.json"), list).unwrap(),
            }
            for (output, where_to) in [(to(&left, &[]), "file"), (left.policy(&["export", server]), "stdout")] {
                assert_eq!(output.status.code(), Some(1), "{name} {where_to}");
                assert!(stderr(&output).contains(words), "{name} {where_to}: {}", stderr(&output));
                assert!(output.stdout.is_empty(), "{name} {where_to}");
            }
            assert_eq!(std::fs::read_to_string(&table).unwrap(), good, "{name}");
            let output = to(&left, &["--force"]);
            assert_eq!(output.status.code(), Some(1), "it says so all the same");
            let less = std::fs::read_to_string(&table).unwrap();
            assert!(!less.contains("listed.example") && less.contains("dane.example"), "{less}");
            let names: Vec<_> =
                std::fs::read_dir(left.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(!names.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{names:?}");
        }
    }
}

/// An entry that the store has lost, or that cannot be looked up, is not dropped silently from a table; a withdrawn
/// policy is.
#[test]
fn a_table_loses_a_line_only_with_a_reason() {
    let before = Left::new();
    let table = before.path("table");
    let to = |left: &Left| left.policy(&["export", "postfix", "--output", table.to_str().unwrap()]);
    assert_eq!(to(&before).status.code(), Some(0));
    let good = std::fs::read_to_string(&table).unwrap();
    // The owner withdrew it.
    let none =
        domain("sts.example", &["mx1.sts.example"], false, Some("version: STSv1\nmode: none\nmax_age: 604800\n"));
    let output = to(&Left::with(vec![none], ""));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!std::fs::read_to_string(&table).unwrap().contains("sts.example"));
    std::fs::write(&table, &good).unwrap();
    // DNS fails.
    for state in [State::Error, State::Bogus, State::Expired] {
        let facts = HostFacts {
            addresses: answer(State::Valid, Some(vec!["192.0.2.2".parse().unwrap()])),
            dane: answer(state, None),
            base: "mx.dane.example".to_owned(),
        };
        let failing = Known::Host(KnownHost { name: "mx.dane.example".to_owned(), facts: Arc::new(facts) });
        let output = to(&Left::with(vec![failing], ""));
        assert_eq!(output.status.code(), Some(1), "{state:?}");
        assert!(stderr(&output).contains("dane.example (dane "), "{}", stderr(&output));
        assert_eq!(std::fs::read_to_string(&table).unwrap(), good);
    }
    // The store is lost.
    let empty = Left::new();
    std::fs::remove_file(empty.path("smtpwatch.db")).unwrap();
    let output = to(&empty);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("sts.example (nothing is known of it)"), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(&table).unwrap(), good);
    // A path that is not a regular file is not replaced, and a symbolic link is followed.
    let output = before.policy(&["export", "postfix", "--output", before.directory.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let link = before.path("link");
    std::os::unix::fs::symlink(&table, &link).unwrap();
    assert_eq!(before.policy(&["export", "postfix", "--output", link.to_str().unwrap()]).status.code(), Some(0));
    assert!(link.is_symlink());
}
