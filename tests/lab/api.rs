//! The API of the real daemon with real findings: its OpenAPI document is valid, and every valid or invalid request
//! gets a response that the document describes.

use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smtpwatch_tests::command::{self, Output};
use smtpwatch_tests::daemon::{Daemon, Options, WEB, get};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{python, scenario, smtp};

use crate::set_up::{FINDING, Home, SENDER, script};

/// A rule by which this peer has to offer STARTTLS.
const RULE: &str = "[[rule]]\npeer = [\"198.51.100.0/24\"]\nstarttls = \"required\"\n";
/// Number of messages in cleartext, each a finding.
const MESSAGES: usize = 5;
/// Generated requests per operation, in addition to the boundary values of every parameter.
const EXAMPLES: &str = "60";
/// A fixed seed: every run sends the same requests.
const SEED: &str = "1";
/// Time limit for the whole run of the tool.
const LIMIT: Duration = Duration::from_secs(180);
/// Number of operations that are tested.
const OPERATIONS: usize = 14;
/// An endless stream is left out: the tool waits for the end of a response.
const LEFT_OUT: &str = "/events$";

fn fetch(namespace: &Namespace, path: &str) -> Result<(u16, String)> {
    namespace.run(|| get(WEB, path))?
}

/// Checks the OpenAPI document with an independent validator.
fn document(namespace: &Namespace, home: &FilePath, python: &FilePath) -> Result<()> {
    let (status, text) = fetch(namespace, "/api/v1/openapi.json")?;
    ensure!(status == 200, "{status}: {text}");
    let file = home.join("openapi.json");
    std::fs::write(&file, &text)?;
    let mut validator = Command::new(python);
    command::run(validator.args(["-m", "openapi_spec_validator", "--schema", "3.1"]).arg(&file), LIMIT)?;
    // The validator rejects an invalid document.
    let broken = home.join("broken.json");
    std::fs::write(
        &broken,
        text.replace("\"operationId\"", "\"operation\"").replace("\"in\":\"query\"", "\"in\":\"x\""),
    )?;
    let mut validator = Command::new(python);
    let refused = validator.args(["-m", "openapi_spec_validator", "--schema", "3.1"]).arg(&broken);
    ensure!(!command::output(refused, LIMIT)?.status.success(), "a broken document is taken");
    Ok(())
}

/// Sends requests that the document allows and requests that it does not allow.
fn ask(namespace: &Namespace, home: &FilePath, python: &FilePath, settings: &str) -> Result<Output> {
    let file = home.join("schemathesis.toml");
    std::fs::write(&file, settings)?;
    let tool = python.with_file_name("schemathesis");
    let mut command = namespace.command(tool.to_str().context("a path in UTF-8")?);
    command.current_dir(home).env("NO_COLOR", "1").arg("--config-file").arg(file);
    command.args(["run", &format!("http://{WEB}/api/v1/openapi.json"), "--workers", "1", "--checks", "all"]);
    command.args(["--max-examples", EXAMPLES, "--seed", SEED, "--exclude-path-regex", LEFT_OUT]);
    command.args(["--continue-on-failure", "--request-timeout", "10"]);
    command::output(&mut command, LIMIT)
}

#[test]
fn the_api_keeps_what_its_document_says() {
    scenario("the_api_keeps_what_its_document_says", || {
        let python = python::api_interpreter()?;
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let script = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000", "8BITMIME"]);
        let _server = Server::start(&path.exchanger, address, &identity, script)?;
        let home = Home::create("api")?;
        let options = Options { rules: RULE, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        for _ in 0..MESSAGES {
            path.gateway.run(|| smtp::send(address, Some(&identity), SENDER, "bob@example.net"))??;
        }
        let finding = daemon.finding("starttls-stripped", FINDING, |_| true)?;
        let id = finding["id"].as_str().context("an identifier")?;
        let kept = command::eventually(FINDING, "the finding in the API", || {
            let (status, text) = fetch(&path.gateway, &format!("/api/v1/findings/{id}"))?;
            Ok((status == 200).then_some(text))
        })?;
        let kept: Value = serde_json::from_str(&kept)?;
        ensure!(kept["finding"] == finding, "{kept:#}\nis not\n{finding:#}");
        ensure!(kept["exhibit"].is_object(), "{kept:#}");
        document(&path.gateway, &home.0, python)?;
        // Identifiers and addresses that the tool generates only reach a 404: run once with those, once with real ones.
        let real = format!("[parameters]\n\"path.id\" = \"{id}\"\n\"path.peer\" = \"{}\"\n", address.ip());
        for settings in ["", &real] {
            let asked = ask(&path.gateway, &home.0, python, settings)?;
            ensure!(asked.status.success(), "{}{}\nlog:\n{}", asked.stdout, asked.stderr, daemon.log());
            // A run that tests nothing also succeeds, so count what was tested.
            let selected = asked.stdout.lines().find_map(|line| line.trim().strip_prefix("Tested: ")?.parse().ok());
            ensure!(selected == Some(OPERATIONS), "{}", asked.stdout);
        }
        let (status, text) = fetch(&path.gateway, "/-/healthy")?;
        ensure!(status == 200, "{text}");
        Ok(())
    });
}
