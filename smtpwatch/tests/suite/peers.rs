//! Who still talks in cleartext: the same answer from the API, as CSV, on the page and on the command line.

use std::{
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use smtpwatch::output::metrics::Metrics;
use smtpwatch_core::{
    FlowKey, Role, Timestamp,
    engine::{SessionResult, SessionSummary},
    finding::StarttlsState,
    policy::history::{HistoryKey, HistoryPeer, HistoryRecord, KnownName},
    smtp::TlsVersion,
};
use smtpwatch_store::{Writer, WriterSettings, peers::PeerUse};
use smtpwatch_system::clock::now;
use smtpwatch_web::{
    api,
    app_state::{AppState, EventBus},
    pages,
    server::Health,
};

use crate::web::{Answer, request};

const CLEARTEXT: &str = "198.51.100.7";
const ENCRYPTED: &str = "203.0.113.9";
/// A name that a spreadsheet would evaluate, with markup.
const HOSTILE: &str = "=1+1<script>";

fn session(role: Role, peer: &str, port: u16, messages: u32) -> SessionSummary {
    let (client, server) = match role {
        Role::Client => ("192.0.2.25:40000".to_owned(), format!("{peer}:{port}")),
        Role::Server => (format!("{peer}:40000"), format!("192.0.2.25:{port}")),
    };
    SessionSummary {
        flow: FlowKey { client: client.parse().unwrap(), server: server.parse().unwrap() },
        role,
        result: SessionResult::Plaintext,
        starttls: StarttlsState::Offered,
        starttls_sent: false,
        messages,
        auth: Vec::new(),
        smtp: true,
        gaps: 0,
        certificate: None,
        exempted: Vec::new(),
        tls_version: None,
    }
}

fn encrypted(session: SessionSummary) -> SessionSummary {
    let tls_version = Some(TlsVersion::V1_3);
    SessionSummary { result: SessionResult::Tls, starttls_sent: true, messages: 0, tls_version, ..session }
}

/// A store with a client in cleartext, on two days of the month, and a server with TLS.
fn filled() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    let handle = writer.handle().unwrap().blocking();
    let (today, before) = (now(), Timestamp(now().0 - 20 * 86_400 * 1_000_000_000));
    handle.offer(session(Role::Server, CLEARTEXT, 25, 3), before);
    handle.offer(session(Role::Server, CLEARTEXT, 25, 2), today);
    handle.offer(encrypted(session(Role::Client, ENCRYPTED, 25, 0)), today);
    let names = vec![KnownName { name: HOSTILE.to_owned(), first_seen: before, last_seen: today }];
    let own = "192.0.2.25".parse().unwrap();
    let key = HistoryKey { role: Role::Server, own, peer: HistoryPeer::Address(CLEARTEXT.parse().unwrap()), port: 25 };
    handle.keep(key, HistoryRecord { names, ..HistoryRecord::default() });
    drop(handle);
    assert_eq!(writer.finish(), 0);
    (directory, path)
}

/// A server over a store; dropping it stops it.
struct Server {
    _runtime: tokio::runtime::Runtime,
    address: SocketAddr,
}

impl Server {
    fn start(path: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::new(&[25]).unwrap().web;
        let app = Arc::new(AppState::new(path.to_owned(), metrics, Arc::new(Health::default()), EventBus::new()));
        runtime.spawn(async move { axum::serve(listener, pages::router(app.clone()).merge(api::router(app))).await });
        Self { _runtime: runtime, address }
    }

    fn get(&self, path: &str, headers: &str) -> Answer {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        request(stream, path, &format!("Host: x\r\n{headers}")).unwrap()
    }

    fn json(&self, query: &str) -> Value {
        let answer = self.get(&format!("/api/v1/peers{query}"), "");
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }
}

fn peers(list: &Value) -> Vec<&str> {
    list["peers"].as_array().unwrap().iter().map(|peer| peer["peer"].as_str().unwrap()).collect()
}

#[test]
fn the_api_lists_who_is_affected() {
    let (_directory, path) = filled();
    let server = Server::start(&path);
    let all = server.json("");
    assert_eq!(peers(&all), [CLEARTEXT, ENCRYPTED]);
    assert_eq!(all["total"], json!({ "peers": 2, "affected_peers": 1, "affected_messages": 5 }));
    assert_eq!(all["next"], Value::Null);
    let one = &all["peers"][0];
    for (member, expected) in [
        ("names", json!([HOSTILE])),
        ("role", json!("server")),
        ("port", json!(25)),
        ("sessions", json!(2)),
        ("offered", json!(2)),
        ("used", json!(0)),
        ("cleartext_sessions", json!(2)),
        ("cleartext_messages", json!(5)),
        ("trend", json!("rising")),
        ("last_7_days", json!({ "sessions": 1, "cleartext_sessions": 1, "cleartext_messages": 2 })),
        ("before_23_days", json!({ "sessions": 1, "cleartext_sessions": 1, "cleartext_messages": 3 })),
    ] {
        assert_eq!(one[member], expected, "{member}: {one}");
    }
    assert!(one["last_cleartext"].is_string(), "{one}");
    assert_eq!(one["cleartext_messages_by_day"].as_array().map(Vec::len), Some(30));
    let other = &all["peers"][1];
    assert_eq!((&other["versions"]["1.3"], &other["last_cleartext"]), (&json!(1), &Value::Null), "{other}");

    assert_eq!(peers(&server.json("?role=client")), [ENCRYPTED]);
    assert!(peers(&server.json("?port=587")).is_empty());
    for sort in ["affected", "last", "sessions"] {
        let first = server.json(&format!("?sort={sort}&limit=1"));
        assert_eq!((peers(&first), &first["total"]), (vec![CLEARTEXT], &all["total"]));
        let next = first["next"].as_str().unwrap();
        let second = server.json(&format!("?sort={sort}&limit=1&cursor={next}"));
        assert_eq!((peers(&second), &second["next"]), (vec![ENCRYPTED], &Value::Null));
    }
}

#[test]
fn the_list_is_also_csv() {
    let (_directory, path) = filled();
    let server = Server::start(&path);
    let by_name = server.get("/api/v1/peers?format=csv", "");
    let by_header = server.get("/api/v1/peers", "Accept: text/csv\r\n");
    assert_eq!((by_name.status, &by_name.body), (200, &by_header.body));
    for head in
        ["content-type: text/csv; charset=utf-8; header=present", "x-content-type-options: nosniff", "vary: accept"]
    {
        assert!(by_header.head.contains(head), "{}", by_header.head);
    }
    assert!(!by_header.head.contains("smtpwatch-next"), "{}", by_header.head);
    let lines: Vec<_> = by_name.body.split_terminator("\r\n").collect();
    assert_eq!((lines.len(), lines[0]), (3, PeerUse::COLUMNS.join(",").as_str()));
    assert!(lines[1].starts_with(&format!("{CLEARTEXT},'{HOSTILE},server,25,2,2,0,0,")), "{}", lines[1]);
    for cell in lines.iter().flat_map(|line| line.split(',')) {
        assert!(!cell.trim_matches('"').starts_with(['=', '+', '-', '@']), "{cell}");
    }
    let json = server.get("/api/v1/peers?format=json", "Accept: text/csv\r\n");
    assert!(json.head.contains("content-type: application/json") && json.body.starts_with('{'), "{json:?}");
    let first = server.get("/api/v1/peers?format=csv&limit=1", "");
    let next = first.head.lines().find_map(|line| line.strip_prefix("smtpwatch-next: ")).unwrap();
    let second = server.get(&format!("/api/v1/peers?format=csv&limit=1&cursor={next}"), "");
    assert!(second.body.contains(ENCRYPTED) && !second.body.contains(CLEARTEXT), "{}", second.body);
}

#[test]
fn the_page_says_what_would_have_waited() {
    let (_directory, path) = filled();
    let server = Server::start(&path);
    let page = server.get("/peers", "");
    assert_eq!(page.status, 200, "{page:?}");
    let text = &page.body;
    let sentence =
        "If TLS were required of the peers below, <strong>5 deliveries</strong> of the last 30 days would have waited.";
    assert!(text.contains(sentence), "{text}");
    assert!(text.find(CLEARTEXT) < text.find(ENCRYPTED) && text.contains(ENCRYPTED), "sorted by what is affected");
    assert!(text.contains("aria-current=\"page\">Peers<"), "{text}");
    assert!(text.contains(&format!("href=\"/incidents?peer={CLEARTEXT}\"")), "{text}");
    let picture = "role=\"img\" aria-label=\"Messages in cleartext by day: 2 in the last 7 days, 3 in the 23 days before, at most 3 on a day\"";
    assert!(text.contains(picture), "{text}");
    assert_eq!(text.matches("rect class=\"bad\"").count(), 2, "one bar for each day with a message");
    assert!(text.contains("=1+1&lt;script&gt;") && !text.contains("=1+1<script"), "{text}");
    assert!(!text.contains("style=") && !text.contains("<style") && !text.contains(" onclick"), "{text}");
    assert!(server.get("/peers?role=client&sort=last", "").body.contains("<strong>0 deliveries</strong>"));
    assert!(server.get("/peers?port=x", "").body.contains("role=\"alert\""));
    assert!(server.get("/peers?port=587", "").body.contains("No sessions in the last 30 days."));
    let answer = server.get(&format!("/incidents?peer={CLEARTEXT}"), "");
    assert!(answer.status == 200 && answer.body.contains("None match."), "the link leads to a page");
}

fn run(arguments: &[&str], store: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smtpwatch"))
        .env_clear()
        .arg("peers")
        .args(arguments)
        .arg("--store")
        .arg(store)
        .output()
        .unwrap()
}

fn stdout(arguments: &[&str], store: &Path) -> String {
    let output = run(arguments, store);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_command_line_says_the_same() {
    let (_directory, path) = filled();
    let server = Server::start(&path);
    let lines = stdout(&[], &path);
    let found: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json!(found), server.json("")["peers"], "JSON is the default of a pipe");
    assert_eq!(stdout(&["--format", "csv"], &path), server.get("/api/v1/peers?format=csv", "").body);
    let text = stdout(&["--format", "text"], &path);
    let first = "If TLS were required of the peers below, 5 deliveries of the last 30 days would have waited.";
    assert_eq!(text.lines().next(), Some(first));
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains(&format!("server {CLEARTEXT}:25 ({HOSTILE})")), "{text}");
    let only = stdout(&["--role", "client", "--port", "25", "--sort", "last", "--format", "csv"], &path);
    assert!(only.lines().count() == 2 && only.contains(ENCRYPTED), "{only}");
    let limited = stdout(&["--limit", "1", "--format", "text"], &path);
    assert!(limited.contains("Of all 2 peers together: 5.") && !limited.contains(ENCRYPTED), "{limited}");
    assert_eq!(stdout(&["--port", "587", "--format", "text"], &path), "no sessions in the last 30 days\n");
    let missing = run(&[], Path::new("/nonexistent/smtpwatch.db"));
    assert_eq!((missing.status.code(), missing.stdout.is_empty()), (Some(1), true));
}
