//! Exported tables, enforced by the servers that read them: real Postfix and Exim deliver or defer as the policies
//! require, over a path that passes STARTTLS and over one that strips it.

use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use smtpwatch_tests::attacker::{Attacker, Mode};
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::daemon::{self, Daemon, Options};
use smtpwatch_tests::exim::{self, Exim};
use smtpwatch_tests::netns::{GATEWAY_INTERFACE, Path};
use smtpwatch_tests::postfix::{self, Postfix};
use smtpwatch_tests::resolver::Dnssec;
use smtpwatch_tests::root::Packages;
use smtpwatch_tests::{scenario, smtp};

use crate::policies::starttls_everywhere;
use crate::policy_world::{
    CONTRADICTION, DANE, DUAL, ENFORCE, INSECURE, LISTED, NONE, NOTHING, OTHER_KEY, TESTING, UNUSABLE, World, exchanger,
};
use crate::set_up::{Home, SENDER};

/// Time limit for all look-ups.
const LEARNT: Duration = Duration::from_secs(60);
/// Time limit for every message to be delivered or deferred.
const DECIDED: Duration = Duration::from_secs(90);
/// Time limit for one run of the program.
const RUN: Duration = Duration::from_secs(60);

/// A domain, and whether its mail is delivered over an unaltered path and over one that strips STARTTLS: first by
/// Postfix, then by Exim, which only requires TLS.
const MATRIX: [(&str, [bool; 2], [bool; 2]); 11] = [
    (DANE, [true, false], [true, false]),
    // No TLSA record matches the certificate.
    (OTHER_KEY, [false, false], [true, false]),
    (UNUSABLE, [true, false], [true, false]),
    (NOTHING, [true, true], [true, true]),
    (INSECURE, [true, true], [true, true]),
    (ENFORCE, [true, false], [true, false]),
    (TESTING, [true, true], [true, true]),
    (NONE, [true, true], [true, true]),
    (CONTRADICTION, [true, true], [true, true]),
    (LISTED, [true, false], [true, false]),
    // Unsigned MX records that name a host with TLSA records.
    (DUAL, [true, false], [true, false]),
];

/// Expected lines of the Postfix table.
const LINES: [&str; 6] = [
    "dane.example dane-only\n",
    "other.example dane-only\n",
    "unusable.example encrypt\n",
    "enforce.example.net secure match=.enforce.example.net servername=hostname\n",
    "listed.example.net secure match=.listed.example.net\n",
    "dual.example.net secure match=mx.dane.example servername=hostname\n",
];

/// Exports the table for a server once every policy is known.
fn table(path: &Path, home: &Home, config: &FilePath, server: &str, complete: impl Fn(&str) -> bool) -> Result<String> {
    let (config, file) = (config.to_str().context("path")?, home.0.join(server));
    let output = file.to_str().context("path")?;
    let arguments = ["policy", "export", server, "--config", config, "--output", output];
    let mut said = String::new();
    let found = eventually(LEARNT, "the whole table", || {
        let out = daemon::smtpwatch_in(&path.gateway, &arguments, RUN)?;
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        said = format!("{}{text}", out.stderr);
        Ok((out.status.success() && complete(&text)).then_some(text))
    });
    found.with_context(|| said)
}

/// Sends to every domain of the matrix over both paths and compares the outcome; `decided` returns the outcome for a
/// recipient.
fn compare(
    attacker: &Attacker,
    submit: impl Fn(&str) -> Result<()>,
    decided: impl Fn(&str) -> Option<bool>,
    log: impl Fn() -> String,
    wanted: impl Fn(usize) -> [bool; 2],
) -> Result<()> {
    let mut wrong = Vec::new();
    for (turn, mode) in [Mode::Pass, Mode::Delete].into_iter().enumerate() {
        attacker.set_mode(mode);
        let recipient = |domain: &str| format!("u{turn}@{domain}");
        for (domain, ..) in MATRIX {
            submit(&recipient(domain))?;
        }
        for (place, (domain, ..)) in MATRIX.into_iter().enumerate() {
            let recipient = recipient(domain);
            let delivered = eventually(DECIDED, &recipient, || Ok(decided(&recipient))).with_context(&log)?;
            if delivered != wanted(place)[turn] {
                wrong.push(format!("{recipient}: delivered: {delivered}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), log());
    Ok(())
}

#[test]
fn tables_are_enforced_by_postfix_and_exim() {
    scenario("tables_are_enforced_by_postfix_and_exim", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        let home = Home::create("tables")?;
        let list = home.0.join("list.json");
        std::fs::write(&list, starttls_everywhere())?;
        let domains: Vec<String> = MATRIX.iter().map(|(domain, ..)| format!("\"{domain}\"")).collect();
        let further = format!(
            "allow_private = true\nstarttls_everywhere = \"{}\"\ndomains = [{}]",
            list.display(),
            domains.join(", ")
        );
        let policy = world.table(&home, Dnssec::Validates.address(), &further)?;
        let options = Options { policy: &policy, ..Options::default() };
        let _daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let config = home.0.join("smtpwatch.toml");
        let postfix_table =
            table(&path, &home, &config, "postfix", |text| LINES.iter().all(|line| text.contains(line)))?;
        for domain in [NOTHING, INSECURE, TESTING, NONE, CONTRADICTION] {
            ensure!(!postfix_table.contains(&format!("\n{domain} ")), "{domain}: {postfix_table}");
        }
        let bound = [DANE, OTHER_KEY, UNUSABLE, ENFORCE, LISTED].map(|domain| format!("\nmx.{domain}\n"));
        let exim_table =
            table(&path, &home, &config, "exim", |text| bound.iter().all(|line| text.contains(line.as_str())))?;

        let _receiver = Postfix::receiver_as(&path.exchanger, &world.mail, "mail.example.org", "")?;
        let attacker = Attacker::start(&path.router)?;
        let (resolver, authority) = (Dnssec::Validates.address().ip(), &world.authority.certificate_pem);
        let enforced_by_postfix = |packages, version: &str| {
            let sender = Postfix::enforcing(packages, &path.gateway, resolver, authority, &postfix_table)?;
            let submit = |recipient: &str| {
                path.gateway.run(|| smtp::send(postfix::SUBMISSION, None, SENDER, recipient))?.map(drop)
            };
            compare(&attacker, submit, |to| sender.delivered(to), || sender.log(), |place| MATRIX[place].1)?;
            // Postfix skipped no line.
            ensure!(!sender.log().contains("warning: TLS policy table"), "{}", sender.log());
            ensure!(sender.log().contains(version), "{}", sender.log());
            anyhow::Ok(())
        };
        enforced_by_postfix(Packages::Postfix, "version 3.7.")?;
        let sender = Exim::enforcing(&path.gateway, resolver, &exim_table)?;
        let submit =
            |recipient: &str| path.gateway.run(|| smtp::send(exim::SUBMISSION, None, SENDER, recipient))?.map(drop);
        compare(&attacker, submit, |to| sender.delivered(to), || sender.log(), |place| MATRIX[place].2)?;
        drop(sender);
        // Last: if these packages are not available, the tables are already tested with the servers above.
        enforced_by_postfix(Packages::PostfixTrixie, "version 3.10.")
    });
}

/// Rules for Exim: exceptions before wider rules, networks, a rule for every peer, and a list that would end with an
/// exception.
#[test]
fn rules_are_enforced_by_exim_in_their_order() {
    scenario("rules_are_enforced_by_exim_in_their_order", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        let _receiver = Postfix::receiver_as(&path.exchanger, &world.mail, "mail.example.org", "")?;
        let attacker = Attacker::start(&path.router)?;
        attacker.set_mode(Mode::Delete);
        let home = Home::create("rules")?;
        let of = |domain: &str| exchanger(domain).to_string();
        for (rules, list, delivered) in [
            (
                rule(&format!("\"mx.{NOTHING}\""), "ignore") + &rule("", "required"),
                format!("!mx.{NOTHING} *"),
                [true, false, false],
            ),
            (
                rule(&format!("\"{}\"", of(NOTHING)), "expected") + &rule("\"198.51.100.0/24\"", "required"),
                format!("!{} 198.51.100.0/24", of(NOTHING)),
                [true, false, false],
            ),
            (
                rule(&format!("\"mx.{ENFORCE}\""), "ignore") + &rule(&format!("\"*.{ENFORCE}\""), "required"),
                format!("!mx.{ENFORCE} *.{ENFORCE}"),
                [true, true, true],
            ),
            (
                rule(&format!("\"*.{ENFORCE}\""), "required") + &rule(&format!("\"mx.{ENFORCE}\""), "ignore"),
                format!("*.{ENFORCE}"),
                [true, false, true],
            ),
            (rule(&format!("\"mx.{ENFORCE}\""), "ignore"), String::new(), [true, true, true]),
        ] {
            let options = Options { rules: &rules, ..Options::default() };
            let config = daemon::configure(GATEWAY_INTERFACE, &home.0, options)?;
            let config = config.to_str().context("path")?;
            let out = daemon::smtpwatch_in(&path.gateway, &["policy", "export", "exim", "--config", config], RUN)?;
            let lines: Vec<&str> = out.stdout.lines().filter(|line| !line.starts_with('#')).collect();
            ensure!(out.status.success() && lines.join(" ") == list, "{rules}{}{}", out.stdout, out.stderr);
            let sender = Exim::enforcing(&path.gateway, Dnssec::Validates.address().ip(), &out.stdout)?;
            for (domain, wanted) in [NOTHING, ENFORCE, TESTING].into_iter().zip(delivered) {
                let recipient = format!("anna@{domain}");
                path.gateway.run(|| smtp::send(exim::SUBMISSION, None, SENDER, &recipient))??;
                let found = eventually(DECIDED, &recipient, || Ok(sender.delivered(&recipient)));
                let found = found.with_context(|| sender.log())?;
                ensure!(found == wanted, "{recipient} under {list:?}: delivered: {found}\n{}", sender.log());
            }
        }
        Ok(())
    });
}

fn rule(peers: &str, starttls: &str) -> String {
    format!("[[rule]]\npeer = [{peers}]\nstarttls = \"{starttls}\"\n")
}
