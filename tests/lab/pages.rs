//! From the attack to the evidence, in a real browser and on the command line: mail from Postfix to Postfix through the
//! attacker, then every step of an investigator who handles the incident.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path as FilePath;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use smtpwatch_tests::attacker::Mode;
use smtpwatch_tests::command::{self, Guard};
use smtpwatch_tests::daemon::{Daemon, Options, WEB, get};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::root::lab_directory;
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{Skip, python, scenario, smtp};

use crate::set_up::{DELIVERIES, FINDING, Home, Relay, SENDER, replay_evidence, script, smtpwatch, text};

/// Time limit for the browser to examine every page in all sizes and colour schemes.
const LOOK: Duration = Duration::from_secs(180);
/// Time limit for one command.
const SOON: Duration = Duration::from_secs(60);
const BROWSER: &str = "/usr/bin/chromium";

/// The script that drives the browser, inside the namespace.
fn reader(namespace: &Namespace, verb: &str) -> Result<Command> {
    if !FilePath::new(BROWSER).exists() {
        return Err(Skip("chromium is not installed".to_owned()).into());
    }
    let mut command = namespace.command(python::pages_interpreter()?.to_str().context("a path in UTF-8")?);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/lab/pages.py")).arg(verb).arg(format!("http://{WEB}"));
    Ok(command)
}

#[test]
fn from_the_strip_to_the_proof() {
    scenario("from_the_strip_to_the_proof", || {
        let relay = Relay::create(Family::V4)?;
        let gateway = &relay.path.gateway;
        let home = Home::create("pages")?;
        // No server publishes policies here: with look-ups enabled, the finding would wait for one.
        let options = Options { policy: "[policy]\nmta_sts = false\ndane = false\n", ..Options::default() };
        let daemon = Daemon::start(gateway, GATEWAY_INTERFACE, &home.0, options)?;
        relay.deliver(6)?;
        let under_tls = [("role", "client"), ("port", "25"), ("result", "tls")];
        daemon.metric_reaches("smtpwatch_sessions_total", &under_tls, 6.0, DELIVERIES)?;

        // A page that is already open shows the finding.
        let mut live = reader(gateway, "live")?;
        live.arg("starttls-stripped").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut live = Guard(live.spawn()?);
        let mut open = String::new();
        BufReader::new(live.0.stdout.take().context("it is piped")?).read_line(&mut open)?;
        ensure!(open.trim() == "open", "the page did not open: {open:?}");
        relay.attacker.set_mode(Mode::Delete);
        relay.deliver(1)?;
        let stripped = daemon.finding("starttls-stripped", FINDING, |_| true)?;
        let seen = command::eventually(SOON, "the page to tell of it", || Ok(live.0.try_wait()?))?;
        ensure!(seen.success(), "the open page did not tell of it: {seen}");

        let id = text(&stripped, "/id")?;
        let pictures = lab_directory().join("pictures");
        let look = command::run(reader(gateway, "look")?.arg(id).arg(&pictures), LOOK)?;
        let look: Value = serde_json::from_str(&look)?;
        println!("pictures of the pages: {}", pictures.display());
        let rows = look["difference"].as_array().context("rows")?;
        let missing: Vec<&Value> = rows.iter().filter(|row| row[0] != "same").collect();
        ensure!(missing == [&json!(["missing", "STARTTLS", "", "missing"])], "{rows:?}");
        ensure!(rows.iter().any(|row| row[0] == "same" && row[2] == "PIPELINING"), "{rows:?}");
        ensure!(look["bars"].as_u64() >= Some(2), "offered and withheld are in the picture: {look}");
        ensure!(text(&look, "/dialogue")?.contains("MAIL FROM:"), "{look}");

        by_command(&home.0, id, &stripped)
    });
}

/// The same on a terminal. A replay of the capture file with the peer's history yields the same finding.
fn by_command(home: &FilePath, id: &str, stripped: &Value) -> Result<()> {
    let shown = smtpwatch(home, &["incidents", "show", id, "--format", "text"])?;
    ensure!(shown.lines().any(|line| line.starts_with("-  STARTTLS") && line.contains("<- missing")), "{shown}");
    let again = replay_evidence(home, id)?;
    let same = again.iter().find(|finding| finding["kind"] == "starttls-stripped").context("no such finding again")?;
    for member in ["rule", "evidence", "outcome", "role", "severity", "time", "expected", "observed", "peer"] {
        ensure!(same[member] == stripped[member], "{member}: {same}\nis not\n{stripped}");
    }
    // What followed the message was in packets that are not retained.
    let before = |finding: &Value| -> Option<Vec<Value>> {
        let lines = finding["transcript"].as_array()?;
        Some(lines.iter().take_while(|line| line["text"] != "[message]").cloned().collect())
    };
    ensure!(
        before(same).is_some_and(|lines| lines.len() > 10) && before(same) == before(stripped),
        "{same}\n{stripped}"
    );
    ensure!(smtpwatch(home, &["incidents", "verify", "--format", "text"])?.starts_with("the chain is whole"));
    Ok(())
}

/// Text that hostile peers send is plain text on every page, on terminals, and in JSON.
#[test]
fn hostile_peers_write_text() {
    scenario("hostile_peers_write_text", || {
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let hostile = "<script>window.ran=1</script><img src=x onerror=window.ran=1>\u{1b}[2J\u{202e}\0\u{9b}31m";
        let long = "A".repeat(60_000);
        let greeting = format!("220 {hostile} ESMTP");
        let ehlo = [hostile, "SIZE 1000", "\"><svg onload=window.ran=1>", "'; DROP TABLE finding; --", &long];
        let _server = Server::start(&path.exchanger, address, &identity, script(&greeting, &ehlo))?;
        let home = Home::create("hostile")?;
        let rules = "[[rule]]\npeer = [\"198.51.100.0/24\"]\nstarttls = \"required\"\n";
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options { rules, ..Options::default() })?;
        path.gateway.run(|| smtp::send(address, None, SENDER, "bob@example.net"))??;
        let finding = daemon.finding("starttls-stripped", FINDING, |_| true)?;
        let id = text(&finding, "/id")?;
        let pages = is_text(&path.gateway, &home.0, id)?;
        let incident = text(&pages, &format!("/~1incidents~1{id}/text"))?;
        ensure!(incident.contains("onload=window.ran") && incident.contains("DROP TABLE finding"), "{incident}");

        let login = SocketAddr::new(Family::V4.exchanger(), 587);
        let listener = path.exchanger.run(|| TcpListener::bind(login))??;
        let server = std::thread::spawn(move || no_text(&listener));
        path.gateway.run(|| log_in(login))??;
        server.join().map_err(|_| anyhow!("the server panicked"))??;
        let finding = daemon.finding("auth-plaintext", FINDING, |_| true)?;
        let id = text(&finding, "/id")?;
        let pages = is_text(&path.gateway, &home.0, id)?;
        let incident = text(&pages, &format!("/~1incidents~1{id}/text"))?;
        ensure!(incident.contains("\\xff\\xfe<b>"), "{incident}");
        Ok(())
    });
}

/// Bytes that are not UTF-8, and NUL.
fn no_text(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"220 \xff\xfe<b>\xc3( ESMTP\r\n")?;
    for reply in [&b"250-\x80\0\xed\xa0\x80\r\n250 AUTH PLAIN\r\n"[..], b"535 \xf8\x88\r\n", b"221 \xc0\xaf\r\n"] {
        ensure!(stream.read(&mut [0; 512])? > 0, "the client has gone");
        stream.write_all(reply)?;
    }
    Ok(())
}

fn log_in(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    for line in [&b"EHLO \xfe\xff.example\r\n"[..], b"AUTH PLAIN AGFubmEAc2VjcmV0\r\n", b"QUIT\r\n"] {
        ensure!(stream.read(&mut [0; 512])? > 0, "the server has gone");
        stream.write_all(line)?;
    }
    ensure!(stream.read(&mut [0; 512])? > 0, "the server has gone");
    Ok(())
}

/// Checks that every form of an incident is plain text; returns the content of its pages.
fn is_text(gateway: &Namespace, home: &FilePath, id: &str) -> Result<Value> {
    command::eventually(FINDING, "the finding on record", || {
        let (status, _) = gateway.run(|| get(WEB, &format!("/api/v1/findings/{id}")))??;
        Ok((status == 200).then_some(()))
    })?;
    let harmful = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    for arguments in [
        &["incidents", "list", "--format", "text"][..],
        &["incidents", "list", "--format", "json"],
        &["incidents", "show", id, "--format", "text"],
        &["incidents", "show", id, "--format", "json"],
        &["incidents", "export", id, "--format", "text"],
        &["incidents", "export", id, "--format", "ecs"],
        &["incidents", "export", id, "--format", "eve"],
    ] {
        let said = smtpwatch(home, arguments)?;
        // The replacement character would stand for bytes that are not UTF-8.
        ensure!(!said.contains(harmful) && !said.contains('\u{fffd}'), "{arguments:?}: {said:?}");
        if !arguments.contains(&"text") {
            said.lines().try_for_each(|line| serde_json::from_str::<Value>(line).map(drop))?;
        }
    }
    let pages = command::run(reader(gateway, "text")?.arg(id), LOOK)?;
    let pages: Value = serde_json::from_str(&pages)?;
    for (page, told) in pages.as_object().context("pages")? {
        ensure!(told["ran"].is_null() && told["handlers"] == 0, "{page}: {told}");
        let elements = told["elements"].to_string();
        let foreign = ["\"img\"", "\"object\"", "\"b\""].iter().any(|element| elements.contains(element));
        ensure!(!foreign, "{page}: {elements}");
        ensure!(!text(told, "/text")?.contains(harmful), "{page}: {told}");
    }
    Ok(pages)
}
