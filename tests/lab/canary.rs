//! A cleartext password is stored nowhere in any form: no file, page, response, metric, log or export. Mechanism and
//! length do appear.

use std::net::SocketAddr;
use std::path::Path as FilePath;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use smtpwatch_tests::attacker::Attacker;
use smtpwatch_tests::command;
use smtpwatch_tests::daemon::{Daemon, Options, WEB, get};
use smtpwatch_tests::exim::{Auth, Exim};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{FINDING, Home, text};

const USER: &str = "anna.canary";
const PASSWORD: &str = "C4nary-P4ssw0rd-zq7Xk2";
/// Export forms: letter, capture file, and formats for other programs.
const EXPORTS: [&str; 5] = ["", "/pcapng", "/text", "/ecs", "/eve"];

#[test]
fn a_canary_is_nowhere() {
    scenario("a_canary_is_nowhere", || {
        let path = Path::create()?;
        let attacker = Attacker::start(&path.router)?;
        let identity = Identity::generate("mail.example.org")?;
        let _server = Exim::start(&path.exchanger, &identity, Auth::Always, &[])?;
        let home = Home::create("canary")?;
        let mut daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
        let server = SocketAddr::new(Family::V4.exchanger(), 587);
        let mut sessions = 0.0;
        for cut in [false, true] {
            // docs/threats.md EV-1: each byte in its own segment.
            attacker.cut_every_octet(cut);
            for shape in shapes() {
                path.gateway.run(|| talk(server, &shape))?.with_context(|| format!("{shape:?}"))?;
                sessions += 1.0;
            }
        }
        for mechanism in ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"] {
            daemon.finding("auth-plaintext", FINDING, |finding| finding["observed"]["mechanism"] == mechanism)?;
        }
        daemon.metric_reaches("smtpwatch_sessions_total", &[("port", "587")], sessions, FINDING)?;
        let findings = daemon.findings();
        let places = served(&path.gateway, &findings)?;
        for (place, octets) in &places {
            leaks(place, octets)?;
        }
        leaks("journal", Value::from(findings.clone()).to_string().as_bytes())?;
        leaks("log", daemon.log().as_bytes())?;
        ensure!(daemon.terminate()?, "the daemon ended with an error: {}", daemon.log());
        let files = files(&home.0)?;
        println!("looked at {} answers, {files} files, {} findings", places.len(), findings.len());

        // What is recorded of the secret: its presence, its mechanism and its length.
        let plain = BASE64_STANDARD.encode(format!("\0{USER}\0{PASSWORD}")).len();
        let blanked = format!("AUTH PLAIN {}\r\n", "*".repeat(plain));
        ensure!(
            places.iter().any(|(place, octets)| place.ends_with("/pcapng") && contains(octets, blanked.as_bytes())),
            "the capture files do not show how long it was"
        );
        Ok(())
    });
}

/// The client's lines after EHLO, in every form in which a password is sent (docs/threats.md F1 to F9), and in some
/// invalid ones.
fn shapes() -> Vec<Vec<String>> {
    let encode = |text: &str| BASE64_STANDARD.encode(text);
    let plain = encode(&format!("\0{USER}\0{PASSWORD}"));
    let bearer = encode(&format!("user={USER}\x01auth=Bearer {PASSWORD}\x01\x01"));
    let (user, password) = (encode(USER), encode(PASSWORD));
    let shapes: [&[&str]; 11] = [
        &[&format!("AUTH PLAIN {plain}")],
        &[&format!("auth plain   {plain}")],
        &["AUTH PLAIN", &plain],
        &["AUTH LOGIN", &user, &password],
        &[&format!("AUTH LOGIN {user}"), &password],
        &[&format!("AUTH XOAUTH2 {bearer}")],
        &[&format!("AUTH OAUTHBEARER {bearer}")],
        &[&format!("AUTH {PASSWORD}"), &format!("AUTH PLAIN {plain}")],
        &[&format!("XXXX PLAIN {plain}"), &format!("AUTH PLAIN {plain}")],
        &[PASSWORD, &format!("AUTH PLAIN {plain}")],
        &[&format!("MAIL FROM:<{PASSWORD}@example.org> AUTH={PASSWORD}"), &format!("AUTH PLAIN {plain}")],
    ];
    shapes.iter().map(|lines| lines.iter().map(|&line| line.to_owned()).collect()).collect()
}

fn talk(server: SocketAddr, lines: &[String]) -> Result<()> {
    let mut stream = smtp::connect(server)?;
    smtp::ask(&mut stream, "EHLO gw.example.org")?;
    for line in lines {
        smtp::ask(&mut stream, line)?;
    }
    smtp::ask(&mut stream, "QUIT").map(drop)
}

/// Every response that the daemon serves about these findings.
fn served(namespace: &Namespace, findings: &[Value]) -> Result<Vec<(String, Vec<u8>)>> {
    let fetch = |path: &str| -> Result<(String, Vec<u8>)> {
        let (status, body) = namespace.run(|| get(WEB, path))??;
        ensure!(status == 200, "{path}: {status}: {body}");
        Ok((path.to_owned(), body.into_bytes()))
    };
    let last = text(findings.last().context("findings")?, "/id")?;
    command::eventually(FINDING, "the last finding on record", || {
        let (status, _) = namespace.run(|| get(WEB, &format!("/api/v1/findings/{last}")))??;
        Ok((status == 200).then_some(()))
    })?;
    let mut places = Vec::new();
    for path in ["/", "/incidents", "/metrics", "/-/ready", "/api/v1/status", "/api/v1/incidents?limit=1000"] {
        places.push(fetch(path)?);
    }
    for finding in findings {
        let id = text(finding, "/id")?;
        places.push(fetch(&format!("/findings/{id}"))?);
        places.push(fetch(&format!("/api/v1/findings/{id}"))?);
    }
    let list: Value = serde_json::from_slice(&places[5].1)?;
    for incident in list["incidents"].as_array().context("incidents")? {
        let id = text(incident, "/id")?;
        places.push(fetch(&format!("/incidents/{id}"))?);
        places.push(fetch(&format!("/api/v1/incidents/{id}/findings"))?);
        for form in EXPORTS {
            places.push(fetch(&format!("/api/v1/incidents/{id}{form}"))?);
        }
    }
    Ok(places)
}

/// Every file that the daemon wrote, with all its bytes: unused pages of the store included.
fn files(home: &FilePath) -> Result<usize> {
    let mut seen = 0;
    for entry in std::fs::read_dir(home)? {
        let path = entry?.path();
        if path.is_file() {
            leaks(&path.display().to_string(), &std::fs::read(&path)?)?;
            seen += 1;
        }
    }
    ensure!(seen >= 3, "configuration, log and store are {seen} files");
    Ok(seen)
}

/// The password in base64 at each of its three alignments, in hexadecimal, and the middle half of each form.
fn forms() -> Vec<String> {
    let mut forms = vec![PASSWORD.to_owned(), PASSWORD.bytes().map(|octet| format!("{octet:02x}")).collect()];
    for before in ["", "\0", "\0\0"] {
        let encoded = BASE64_STANDARD.encode(format!("{before}{PASSWORD}"));
        // Without the ends, which depend on the bytes next to it.
        forms.push(encoded.trim_end_matches('=')[(before.len() * 4).div_ceil(3)..].to_owned());
    }
    let halves: Vec<_> = forms.iter().map(|form| form[form.len() / 4..form.len() * 3 / 4].to_owned()).collect();
    forms.extend(halves);
    forms.into_iter().map(|form| form.to_lowercase()).collect()
}

fn leaks(place: &str, octets: &[u8]) -> Result<()> {
    let lower = octets.to_ascii_lowercase();
    for form in forms() {
        ensure!(!contains(&lower, form.as_bytes()), "{place} has {form}");
    }
    // Evidence is base64 in JSON: search the decoded bytes too.
    for piece in lower_base64(octets) {
        for form in forms() {
            ensure!(!contains(&piece, form.as_bytes()), "{place} has {form}, in base64");
        }
    }
    Ok(())
}

/// Decodes long runs of base64 in a text; the result is in lower case.
fn lower_base64(octets: &[u8]) -> Vec<Vec<u8>> {
    let is_part = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'+' | b'/' | b'=');
    let runs = octets.split(|octet| !is_part(octet)).filter(|run| run.len() >= 16 && run.len() % 4 == 0);
    runs.filter_map(|run| BASE64_STANDARD.decode(run).ok()).map(|decoded| decoded.to_ascii_lowercase()).collect()
}

fn contains(octets: &[u8], what: &[u8]) -> bool {
    octets.windows(what.len()).any(|window| window == what)
}
