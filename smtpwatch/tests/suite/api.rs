//! The JSON API over a real connection and a real store.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rusqlite::Connection;
use serde_json::{Value, json};
use smtpwatch::output::metrics::Metrics;
use smtpwatch_config::Retention;
use smtpwatch_core::{
    Finding, Role, Timestamp,
    finding::{Kind, Severity},
};
use smtpwatch_pipeline::incident;
use smtpwatch_store::Store;
use smtpwatch_web::{
    api,
    app_state::{AppState, EventBus},
    pages,
    server::Health,
};

use crate::incidents::{credential, keep, later, store};

/// A server over the store at `path`; dropping it stops it.
struct Server {
    _runtime: tokio::runtime::Runtime,
    address: SocketAddr,
}

/// An HTTP response.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Asserts a problem document of this status in the required form.
    fn is_problem(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self.header("cache-control"), "no-store", "{self:?}");
        let problem = self.json();
        assert_eq!((&problem["type"], &problem["status"]), (&json!("about:blank"), &json!(status)), "{problem}");
        assert!(problem["title"].is_string() && problem["detail"].as_str().is_some_and(|text| text.len() > 10));
        self.is_harmless();
    }

    fn is_harmless(&self) {
        let text = self.body.trim_end_matches('\n');
        assert!(!text.contains(|c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}')), "{text:?}");
    }
}

impl Server {
    fn start(path: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::new(&[25]).unwrap().web;
        let app = Arc::new(AppState::new(path.to_owned(), metrics, Arc::new(Health::default()), EventBus::new()));
        let routes = pages::router(app.clone()).merge(api::router(app));
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Self { _runtime: runtime, address }
    }

    fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        // A capture file is binary.
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Answer { status, headers, body: body.to_owned() }
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", &format!("/api/v1{path}"), "")
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.is_harmless();
        answer.json()
    }
}

/// Stores seven incidents, one of them with five findings, of two kinds and three peers.
fn filled(path: &Path) -> Vec<Finding> {
    let one = credential();
    let mut made: Vec<_> = [("198.51.100.25:587", 0), ("198.51.100.26:587", 10), ("203.0.113.7:587", 20)]
        .into_iter()
        .flat_map(|(server, from)| [(server, from), (server, from + 100_000)])
        .chain((1..5).map(|n| ("198.51.100.25:587", n)))
        .map(|(server, seconds)| later(&one, server, seconds))
        .collect();
    let mut stripped = later(&one, "198.51.100.25:587", 200_000);
    stripped.kind = Kind::StarttlsStripped;
    stripped.severity = Severity::High;
    stripped.evidence = smtpwatch_core::finding::Evidence::Policy;
    // Characters that a terminal interprets, including a right-to-left override.
    stripped.peer.greeting = "220 \u{9b}31m\u{202e}\u{7f}\u{1b}[2J <script>".to_owned();
    made.push(stripped);
    keep(path, Retention::default(), &made);
    made
}

/// The path of a documented operation, with existing values.
fn with_values(path: &str, id: &str) -> String {
    let parameters = if path.ends_with("/offers") { "?role=client&port=587" } else { "" };
    format!("{}{parameters}", path.replace("{id}", id).replace("{peer}", "198.51.100.25"))
}

#[test]
fn every_route_answers_what_it_says() {
    let (_directory, path) = store();
    let made = filled(&path);
    let server = Server::start(&path);
    let document = server.json("/openapi.json");
    assert_eq!(document["openapi"], "3.1.0");
    let under = |schema: &Value| {
        let mut schema = schema.clone();
        schema["components"] = document["components"].clone();
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{error}: {schema}"))
    };
    let valid = |schema: &Value, value: &Value, what: &str| {
        let wrong: Vec<_> = under(schema).iter_errors(value).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{what}: {wrong:?}");
    };
    let problem = json!({ "$ref": "#/components/schemas/Problem" });
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 16, "{:?}", paths.keys());
    for (path, item) in paths {
        let (target, responses) = (with_values(path, &made[0].id), &item["get"]["responses"]);
        let refused = server.ask("POST", &target, "Content-Length: 0\r\n");
        refused.is_problem(405);
        assert_eq!(refused.header("allow").replace(' ', ""), "GET,HEAD", "{refused:?}");
        let wrong = server.ask("GET", &format!("{target}{}x%1B=1", if target.contains('?') { '&' } else { '?' }), "");
        wrong.is_problem(400);
        assert_eq!(wrong.json()["parameter"], "x\u{1b}");
        valid(&problem, &wrong.json(), path);
        if path.ends_with("/events") {
            continue;
        }
        let answer = server.ask("GET", &target, "");
        let documented = &responses[answer.status.to_string()];
        let media =
            documented["content"].as_object().unwrap_or_else(|| panic!("{path}: {} is not documented", answer.status));
        let (media, content) = media.iter().next().unwrap();
        assert_eq!(answer.header("content-type"), media, "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        if media.contains("json") && !media.contains("ndjson") {
            answer.is_harmless();
            valid(&content["schema"], &answer.json(), path);
        }
        let head = server.ask("HEAD", &target, "");
        assert_eq!((head.status, head.body.as_str()), (answer.status, ""), "{path}");
        assert_eq!(head.header("content-type"), media, "{path}");
    }
    // Control: a schema that accepts every document would pass all of the above.
    assert!(!under(&problem).is_valid(&json!({ "status": 400 })));
    let incident = json!({ "$ref": "#/components/schemas/IncidentInFull" });
    let mut found = server.json(&format!("/incidents/{}", made[0].id));
    valid(&incident, &found, "an incident");
    found["best"]["finding"]["kind"] = json!("something");
    assert!(!under(&incident).is_valid(&found));
    server.ask("GET", "/api/v1/nothing", "").is_problem(404);
    server.ask("GET", "/api/v1/", "").is_problem(404);
    server.ask("GET", "/api/v1", "").is_problem(404);
    server.ask("DELETE", "/api/v1/nothing", "").is_problem(404);
}

#[test]
fn incidents_are_listed_filtered_and_paged() {
    let (_directory, path) = store();
    let made = filled(&path);
    let server = Server::start(&path);
    let ids = |list: &Value| -> Vec<String> {
        let list = list["incidents"].as_array().unwrap();
        list.iter().map(|incident| incident["id"].as_str().unwrap().to_owned()).collect()
    };
    let all = server.json("/incidents");
    assert_eq!((ids(&all).len(), &all["next"]), (7, &Value::Null), "{all}");
    for size in [1, 2, 3, 7, 1000] {
        let (mut paged, mut cursor, mut requests) = (Vec::new(), String::new(), 0);
        loop {
            let page = server.json(&format!("/incidents?limit={size}{cursor}"));
            assert!(ids(&page).len() <= size);
            paged.extend(ids(&page));
            requests += 1;
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
            assert!(requests < 20, "it ends");
        }
        assert_eq!(paged, ids(&all), "by {size}");
    }
    let count = |query: &str| ids(&server.json(&format!("/incidents?{query}"))).len();
    for (query, expected) in [
        ("kind=auth-plaintext", 6),
        ("kind=auth-plaintext&kind=starttls-stripped", 7),
        ("severity=critical", 6),
        ("severity=high", 7),
        ("evidence=tamper", 0),
        ("role=server", 0),
        ("role=client", 7),
        ("peer=198.51.100.0/24", 5),
        ("peer=198.51.100.0%2F24", 5),
        ("peer=203.0.113.7", 2),
        ("peer=2001:db8::/32", 0),
        ("peer=*.EXAMPLE.net", 7),
        ("peer=example.net", 0),
        ("since=2026-11-24T15:00:00Z", 4),
        ("until=2026-11-24T16:00:00%2B01:00", 3),
        ("since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z", 7),
        ("until=9999w", 0),
        ("", 7),
    ] {
        assert_eq!(count(query), expected, "{query}");
    }
    let more = format!("/incidents/{}/findings", made[0].id);
    let numbers = |list: &Value| -> Vec<u64> {
        list["findings"].as_array().unwrap().iter().map(|stored| stored["number"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&server.json(&more)), [10, 9, 8, 7, 1]);
    let first = server.json(&format!("{more}?limit=2"));
    assert_eq!((numbers(&first), first["next"].as_u64()), (vec![10, 9], Some(9)));
    let rest = server.json(&format!("{more}?limit=1000&before=9"));
    assert_eq!((numbers(&rest), &rest["next"]), (vec![8, 7, 1], &Value::Null));
    assert_eq!(first["findings"][0]["has_exhibit"], true);
}

/// Guesses of many clients, an offer of this host's own, and one strip that is older than all of them.
#[test]
fn what_must_be_looked_at_comes_first() {
    let (_directory, path) = store();
    let one = credential();
    let now = smtpwatch_system::clock::now();
    let at = |server: &str, seconds_ago: i64| {
        let mut finding = later(&one, server, 0);
        finding.time = Timestamp(now.0 - seconds_ago * 1_000_000_000);
        incident::name(&mut finding, "none");
        finding
    };
    let by_client = |kind, number: i64| {
        let mut finding = at("192.0.2.10:587", 0);
        finding.kind = kind;
        finding.severity = Severity::Low;
        finding.role = Role::Server;
        finding.flow.client = format!("203.0.113.{number}:40000");
        finding.observed.reply = Some(535);
        finding.peer.stranger = true;
        finding
    };
    let strip = |server, seconds_ago| {
        let mut strip = at(server, seconds_ago);
        strip.kind = Kind::StarttlsStripped;
        strip.severity = Severity::High;
        strip
    };
    const DAY: i64 = 86_400;
    let mut made: Vec<_> = (0..40).map(|number| by_client(Kind::AuthPlaintext, number)).collect();
    made.extend((0..3).map(|number| by_client(Kind::AuthOfferedPlaintext, number)));
    made.push(strip("198.51.100.25:25", 3_600));
    made.push(strip("198.51.100.26:25", 3 * DAY));
    made.push(strip("198.51.100.27:25", 31 * DAY));
    keep(&path, Retention::default(), &made);
    let server = Server::start(&path);
    let list = |query: &str| server.json(&format!("/incidents?{query}"))["incidents"].as_array().unwrap().clone();
    let of = |about: &str| list("").into_iter().find(|incident| incident["about"] == about).unwrap();
    let guessing = of("guessing");
    assert_eq!(
        (&guessing["findings"], &guessing["addresses"], &guessing["unlisted"]),
        (&40.into(), &40.into(), &0.into())
    );
    assert_eq!(guessing["mechanisms"], json!([{ "name": "PLAIN", "findings": 40 }]));
    assert_eq!((&guessing["peer"], guessing["cause"].as_str().unwrap().len()), (&"192.0.2.10".into(), 16));
    let own = of("this-host");
    assert_eq!((&own["findings"], &own["addresses"]), (&3.into(), &3.into()));
    assert_eq!(of("peer")["addresses"], 1);
    assert_eq!(list("peer=203.0.113.39")[0]["id"], guessing["id"], "by the address of a client");
    let peers = |query| list(query).iter().map(|one| one["peer"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let strips = ["198.51.100.25", "198.51.100.26", "198.51.100.27"];
    assert_eq!(peers("sort=worth")[..3], strips);
    assert_eq!(peers("sort=time")[2..], strips, "the newest first");
    assert_eq!(peers("sort=time"), peers(""));
    let first = server.json("/incidents?sort=worth&limit=2");
    let next = first["next"].as_str().unwrap();
    assert_eq!(peers(&format!("sort=worth&limit=1&cursor={next}")), strips[2..]);
    // A position of one order is one of the other too: every request that the document allows has an answer.
    assert_eq!(server.get(&format!("/incidents?cursor={next}")).status, 200);
    server.get("/incidents?sort=severity").is_problem(400);

    let page = |path: &str| {
        let answer = server.ask("GET", path, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    };
    let start = page("/");
    let place = |text: &str| start.find(text).unwrap_or_else(|| panic!("{text} is not in {start}"));
    let (headline, offer) =
        ("password guessing in cleartext: 40 attempts from 40 addresses", "this host offers AUTH before TLS");
    assert!(place("last 24 hours") < place(strips[0]) && place(strips[0]) < place(headline), "{start}");
    assert!(place(headline) < place("last 30 days") && place("last 30 days") < place(strips[1]), "{start}");
    assert!(place(offer) < place("last 30 days"));
    assert!(!start.contains(strips[2]) && start.matches(strips[0]).count() == 1, "{start}");
    let link = |list: &str| (list.find(headline), list.find(strips[0]));
    assert!(link(&page("/incidents")).0 < link(&page("/incidents")).1);
    assert!(link(&page("/incidents?sort=worth")).0 > link(&page("/incidents?sort=worth")).1);
    let shown = page(&format!("/incidents/{}", guessing["id"].as_str().unwrap()));
    for expected in [
        headline,
        "clients from 40 addresses",
        "<bdi>PLAIN</bdi> 40",
        "Report as text",
        "None of these logins was accepted",
    ] {
        assert!(shown.contains(expected), "{expected} is not in {shown}");
    }
    let shown = page(&format!("/incidents/{}", own["id"].as_str().unwrap()));
    assert!(shown.contains(offer) && !shown.contains("carrier"), "{shown}");
}

#[test]
fn a_finding_is_shown_as_stored() {
    let (_directory, path) = store();
    let made = filled(&path);
    let server = Server::start(&path);
    let stored = Store::open_existing(&path).unwrap().finding(&made[0].id).unwrap();
    let target = format!("/findings/{}", made[0].id);
    let answer = server.get(&target);
    answer.is_harmless();
    assert!(answer.body.contains(&format!("\"finding\":{},", stored.document)), "{}", answer.body);
    let document = answer.json();
    assert_eq!(
        (&document["number"], &document["chain"], &document["incident"]),
        (&json!(1), &json!(stored.chain), &json!(made[0].id))
    );
    assert_eq!(document["exhibit"], serde_json::to_value(&made[0].exhibit).unwrap());
    assert!(document["exhibit"].is_object());

    let tag = answer.header("etag").to_owned();
    assert_eq!(answer.header("cache-control"), "private, no-cache");
    for (held, status) in [
        (tag.clone(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"other\", {tag}"), 304),
        ("*".to_owned(), 304),
        ("\"other\"".to_owned(), 200),
        ("\u{fc}".to_owned(), 200),
    ] {
        let again = server.ask("GET", &format!("/api/v1{target}"), &format!("If-None-Match: {held}\r\n"));
        assert_eq!(
            (again.status, again.header("etag"), again.body.is_empty()),
            (status, &*tag, status == 304),
            "{held}"
        );
    }

    let hostile = server.json(&format!("/findings/{}", made[10].id));
    assert_eq!(hostile["finding"]["peer"]["greeting"], made[10].peer.greeting);
    let beginning = &made[0].id[..8];
    let several = server.get(&format!("/incidents/{beginning}"));
    several.is_problem(409);
    let candidates = several.json()["candidates"].as_array().unwrap().clone();
    assert!(candidates.len() > 1 && candidates.iter().all(|id| id.as_str().unwrap().starts_with(beginning)));
}

#[test]
fn hostile_questions_get_a_problem() {
    let (_directory, path) = store();
    let made = filled(&path);
    let server = Server::start(&path);
    let id = &made[0].id;
    let long = "a".repeat(60_000);
    for (target, parameter) in [
        ("/incidents?limit=0".to_owned(), "limit"),
        ("/incidents?limit=1001".to_owned(), "limit"),
        ("/incidents?limit=-1".to_owned(), "limit"),
        ("/incidents?limit=+1".to_owned(), "limit"),
        ("/incidents?limit=99999999999999999999999999".to_owned(), "limit"),
        ("/incidents?limit=1&limit=2".to_owned(), "limit"),
        ("/incidents?cursor=".to_owned(), "cursor"),
        ("/incidents?cursor=1-2-5".to_owned(), "cursor"),
        ("/incidents?cursor=99999999999999999999-1".to_owned(), "cursor"),
        ("/incidents?cursor=1%00-1".to_owned(), "cursor"),
        ("/incidents?kind=nothing".to_owned(), "kind"),
        (format!("/incidents?{}", "kind=auth-plaintext&".repeat(18)), "kind"),
        ("/incidents?severity=HIGH".to_owned(), "severity"),
        ("/incidents?evidence=".to_owned(), "evidence"),
        ("/incidents?role=both".to_owned(), "role"),
        ("/incidents?peer=a%00b".to_owned(), "peer"),
        ("/incidents?peer=%ff%fe".to_owned(), "peer"),
        ("/incidents?peer='%20OR%201=1".to_owned(), "peer"),
        (format!("/incidents?peer={long}"), "peer"),
        ("/incidents?since=yesterday".to_owned(), "since"),
        ("/incidents?until=%E2%80%AE".to_owned(), "until"),
        ("/incidents?Limit=1".to_owned(), "Limit"),
        ("/incidents/%00%00%00%00".to_owned(), "id"),
        ("/incidents/..%2F..%2Fetc".to_owned(), "id"),
        (format!("/incidents/{long}"), "id"),
        ("/findings/abc".to_owned(), "id"),
        ("/findings/%25%25%25%25".to_owned(), "id"),
        (format!("/incidents/{id}/findings?before=0"), "before"),
        (format!("/incidents/{id}/findings?before=9223372036854775808"), "before"),
        (format!("/incidents/{id}/pcapng?x"), "x"),
        ("/peers?sort=name".to_owned(), "sort"),
        ("/peers?port=0".to_owned(), "port"),
        ("/peers?format=xml".to_owned(), "format"),
        ("/peers?cursor=1-2".to_owned(), "cursor"),
        ("/peers?peer=192.0.2.1".to_owned(), "peer"),
        ("/peers/mx.example.net/offers?role=client&port=25".to_owned(), "peer"),
        ("/peers/198.51.100.25/offers?port=25".to_owned(), "role"),
        ("/peers/198.51.100.25/offers?role=client".to_owned(), "port"),
        ("/peers/198.51.100.25/offers?role=client&port=65536".to_owned(), "port"),
        ("/verify?deep=1".to_owned(), "deep"),
    ] {
        let answer = server.get(&target);
        answer.is_problem(400);
        assert_eq!(answer.json()["parameter"], parameter, "{target:.80}");
        assert!(answer.body.len() < 2_000, "{target:.80}");
    }
    server.get("/findings/%ff%ff").is_problem(400);
    for unknown in ["/findings/0000", "/incidents/------------------------------------", "/incidents/ffff/pcapng"] {
        server.get(unknown).is_problem(404);
    }
    let shown = server.get(&format!("/verify?{long}\u{e4}=1"));
    assert_eq!(shown.status, 400);
    assert_eq!(shown.json()["parameter"].as_str().map(str::len), Some(64));
}

#[test]
fn days_of_offers_come_from_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let (path, capture) = (directory.path().join("smtpwatch.db"), directory.path().join("capture"));
    std::fs::write(&capture, crate::traffic::pcap(&crate::traffic::password(), 1, false, false)).unwrap();
    let replay = std::process::Command::new(env!("CARGO_BIN_EXE_smtpwatch"))
        .env_clear()
        .args(["replay", "--store"])
        .args([&path, &capture])
        .output()
        .unwrap();
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    let server = Server::start(&path);
    let known = server.json("/peers/::ffff:198.51.100.25/offers?role=client&port=587");
    assert_eq!((&known["peer"], &known["days"][0]["day"]), (&json!("198.51.100.25"), &json!("2026-11-23")), "{known}");
    assert_eq!((&known["days"][0]["sessions"], &known["days"][0]["offered"]), (&json!(1), &json!(1)));
    assert_eq!(server.json("/peers/198.51.100.25/offers?role=server&port=587")["days"], json!([]));
    assert_eq!(server.json("/peers/2001:db8::1/offers?role=client&port=25")["days"], json!([]));
    assert!(server.json("/status")["store"]["findings"].as_u64().is_some_and(|count| count > 0));
}

#[test]
fn the_chain_is_checked_once_at_a_time() {
    let (_directory, path) = store();
    filled(&path);
    let server = Server::start(&path);
    let whole = server.json("/verify");
    assert_eq!((&whole["findings"], &whole["broken"]), (&json!(11), &json!([])), "{whole}");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("UPDATE finding SET document = replace(document, 'critical', 'info') WHERE number = 2")
        .unwrap();
    assert!(server.json("/verify")["broken"][0].as_str().unwrap().contains("number 2"));
    drop(connection);
    // Another process locks the file: the first check waits for it, and the second is rejected.
    drop(server);
    let server = Server::start(&path);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "locking_mode", "exclusive").unwrap();
    connection.execute_batch("BEGIN EXCLUSIVE; UPDATE finding SET kept = kept;").unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.get("/verify"));
        std::thread::sleep(Duration::from_millis(300));
        let second = server.get("/verify");
        second.is_problem(503);
        assert_eq!(second.header("retry-after"), "10");
        assert!(second.body.contains("another request is verifying"), "{}", second.body);
        let first = first.join().unwrap();
        first.is_problem(503);
        assert!(first.body.contains("the store cannot be read"), "{}", first.body);
    });
    connection.execute_batch("ROLLBACK").unwrap();
    drop(connection);
    assert_eq!(server.json("/verify")["findings"], 11, "the turn was given back");
}

#[test]
fn a_missing_store_is_reported() {
    let (_directory, path) = store();
    let server = Server::start(&path);
    for target in [
        "/incidents",
        "/incidents/0000",
        "/findings/0000",
        "/verify",
        "/peers",
        "/peers/::1/offers?role=client&port=25",
    ] {
        let answer = server.get(target);
        answer.is_problem(503);
        assert_eq!(answer.header("retry-after"), "10", "{target}");
    }
    assert_eq!(server.json("/status")["store"], Value::Null);
    // A document that another process made unreadable is reported without being quoted.
    let made = filled(&path);
    let edit = "UPDATE finding SET document = '{\"id\":\"hunter2\",\"gaps\":\"hunter2\"}' WHERE number = 1";
    Connection::open(&path).unwrap().execute_batch(edit).unwrap();
    let answer = server.get(&format!("/findings/{}", made[0].id));
    answer.is_problem(500);
    assert!(answer.body.contains(&made[0].id) && !answer.body.contains("hunter2"), "{}", answer.body);
    assert_eq!(server.get("/incidents").status, 200, "the others are still told");
}
