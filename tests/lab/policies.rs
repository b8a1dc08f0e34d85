//! First contact: these domains have no history, and only their published policy shows that STARTTLS was removed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use smtpwatch_core::limits::VERDICT_DEADLINE;
use smtpwatch_tests::attacker::{Attacker, Mode};
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{GATEWAY_INTERFACE, Path};
use smtpwatch_tests::postfix::{self, Postfix};
use smtpwatch_tests::resolver::Dnssec;
use smtpwatch_tests::{scenario, smtp};

use crate::policy_world::{
    BOGUS, CONTRADICTION, DANE, ENFORCE, INSECURE, LISTED, MAIL, NONE, NOTHING, OTHER_KEY, PRIVATE, REDIRECT, SILENT,
    SLOW, TESTING, TORN, UNUSABLE, World, exchanger,
};
use crate::set_up::{DELIVERIES, Home, SENDER, check, text};

/// Time limit for a finding, including the wait for a look-up.
const FINDING: Duration = Duration::from_secs(60);
/// Results of a certificate comparison.
const RESULTS: [&str; 3] = ["match", "mismatch", "not_observable"];
/// Longest interval between commits of the store.
const COMMIT: Duration = Duration::from_millis(2500);

/// A mail server on the gateway with a route to every domain, and the attacker on its path.
pub struct Mail<'a> {
    path: &'a Path,
    sender: Postfix,
    /// The attacker on the path.
    pub attacker: Attacker,
}

impl<'a> Mail<'a> {
    /// Starts with the attacker in pass mode.
    pub fn start(path: &'a Path) -> Result<Self> {
        let attacker = Attacker::start(&path.router)?;
        let domains = MAIL.into_iter().chain(PRIVATE.map(|(domain, _)| domain)).chain([SILENT]);
        let routes: Vec<_> = domains.map(|domain| (domain, SocketAddr::new(exchanger(domain), 25))).collect();
        Ok(Self { path, sender: Postfix::sender(&path.gateway, &routes)?, attacker })
    }

    /// Delivers one message to a recipient at `domain` through Postfix.
    pub fn deliver(&self, domain: &str) -> Result<()> {
        let before = self.sender.sent();
        let recipient = format!("bob@{domain}");
        self.path.gateway.run(|| smtp::send(postfix::SUBMISSION, None, SENDER, &recipient))??;
        let sent = || Ok((self.sender.sent() > before).then_some(()));
        eventually(DELIVERIES, &format!("the delivery to {domain}"), sent).with_context(|| self.sender.log())
    }
}

#[test]
fn first_contact_is_judged_by_what_is_published() {
    scenario("first_contact_is_judged_by_what_is_published", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        let home = Home::create("policies")?;
        let list = home.0.join("list.json");
        std::fs::write(&list, starttls_everywhere())?;
        let further = format!("allow_private = true\nstarttls_everywhere = \"{}\"", list.display());
        let policy = world.table(&home, Dnssec::Validates.address(), &further)?;
        let options = Options { policy: &policy, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let _receiver = Postfix::receiver_as(&path.exchanger, &world.mail, "mail.example.org", "")?;
        let mail = Mail::start(&path)?;
        mail.attacker.set_mode(Mode::Delete);

        // The domains whose hosts must not be accused come first.
        let innocent = [NOTHING, INSECURE, BOGUS, TORN, SILENT, NONE, CONTRADICTION, REDIRECT, SLOW];
        for domain in innocent {
            mail.deliver(domain)?;
        }
        let accused = [
            (DANE, "dane", "3 1 1"),
            (UNUSABLE, "dane", "0 0 1"),
            (ENFORCE, "mta-sts", "mode: enforce"),
            (LISTED, "list", "mode enforce"),
        ];
        for (domain, source, quoted) in accused {
            mail.deliver(domain)?;
            for kind in ["starttls-stripped", "policy-violation"] {
                let found = daemon.finding(kind, FINDING, |finding| is_of(finding, domain))?;
                check(
                    &found,
                    &[
                        ("/evidence", json!("policy")),
                        ("/severity", json!("critical")),
                        ("/outcome", json!("content")),
                        ("/role", json!("client")),
                        ("/expected/starttls", json!(true)),
                        ("/expected/source", json!(source)),
                    ],
                )?;
                let detail = text(&found, "/expected/detail")?;
                ensure!(detail.contains(quoted), "{domain}: the policy is not quoted: {found}");
            }
        }
        mail.deliver(TESTING)?;
        let reported = daemon.finding("starttls-stripped", FINDING, |finding| is_of(finding, TESTING))?;
        check(&reported, &[("/expected/source", json!("mta-sts")), ("/expected/starttls", json!(true))])?;
        ensure!(text(&reported, "/expected/detail")?.contains("mode: testing"), "{reported}");
        let severity = text(&reported, "/severity")?;
        ensure!(["low", "medium", "high"].contains(&severity), "report-only is no less: {reported}");

        // A verdict waits for a look-up for a bounded time: no finding comes later.
        let sessions = f64::from(u32::try_from(innocent.len() + accused.len() + 1)?);
        daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "plaintext")], sessions, FINDING)?;
        std::thread::sleep(VERDICT_DEADLINE + Duration::from_secs(2));
        for domain in innocent {
            let wrong = daemon.findings().into_iter().find(|finding| is_of(finding, domain) && by_policy(finding));
            ensure!(wrong.is_none(), "{domain} is accused: {wrong:?}");
        }
        for source in ["dane", "mta-sts"] {
            daemon.metric_reaches("smtpwatch_policy_refresh_failures_total", &[("source", source)], 1.0, FINDING)?;
        }
        Ok(())
    });
}

/// A resolver without DNSSEC can neither cause an accusation nor hide that DANE is inactive.
#[test]
fn without_dnssec_dane_is_off_and_says_so() {
    scenario("without_dnssec_dane_is_off_and_says_so", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        let home = Home::create("stripped")?;
        let policy = world.table(&home, Dnssec::Stripped.address(), "allow_private = true")?;
        let options = Options { policy: &policy, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let _receiver = Postfix::receiver_as(&path.exchanger, &world.mail, "mail.example.org", "")?;
        let mail = Mail::start(&path)?;
        mail.attacker.set_mode(Mode::Delete);
        mail.deliver(OTHER_KEY)?;
        mail.deliver(DANE)?;
        let found = daemon.finding("starttls-stripped", FINDING, |finding| is_of(finding, DANE))?;
        check(&found, &[("/evidence", json!("policy")), ("/expected/source", json!("mta-sts"))])?;
        let wrong = daemon.findings().into_iter().find(|finding| is_of(finding, OTHER_KEY) && by_policy(finding));
        ensure!(wrong.is_none(), "accused without proof: {wrong:?}");
        let log = daemon.log();
        let loud = |line: &&str| line.contains("DNSSEC") && line.to_ascii_lowercase().contains("warn");
        ensure!(log.lines().find(loud).is_some(), "not a word about DNSSEC:\n{log}");
        daemon.metric_reaches("smtpwatch_policy_refresh_failures_total", &[("source", "dane")], 1.0, FINDING)
    });
}

/// A certificate that contradicts a TLSA record is detected up to TLS 1.2, and never claimed under TLS 1.3.
#[test]
fn certificates_are_compared_with_tlsa_where_they_can_be_seen() {
    scenario("certificates_are_compared_with_tlsa_where_they_can_be_seen", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        let home = Home::create("certificates")?;
        let policy = world.table(&home, Dnssec::Validates.address(), "allow_private = true")?;
        let options = Options { policy: &policy, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let mail = Mail::start(&path)?;
        let mut sessions = 0.0;
        let checks = |result: &str| {
            daemon.metric("smtpwatch_certificate_checks_total", &[("source", "dane"), ("result", result)])
        };
        // Postfix uses an anonymous cipher with a client that does not verify certificates, unless those ciphers are
        // excluded.
        let (anonymous, seen) = ("<=TLSv1.2", "<=TLSv1.2\nsmtpd_tls_exclude_ciphers = aNULL");
        for (domain, version, protocols, result) in [
            (OTHER_KEY, "TLSv1.2", anonymous, "not_observable"),
            (DANE, "TLSv1.2", seen, "match"),
            (OTHER_KEY, "TLSv1.2", seen, "mismatch"),
            (OTHER_KEY, "TLSv1.3", ">=TLSv1.3", "not_observable"),
            (DANE, "TLSv1.3", ">=TLSv1.3", "not_observable"),
        ] {
            let settings = format!("smtpd_tls_protocols = {protocols}\nsmtpd_tls_loglevel = 1\n");
            let receiver = Postfix::receiver_as(&path.exchanger, &world.mail, &format!("mx.{domain}"), &settings)?;
            let before: Vec<f64> = RESULTS.iter().map(|result| checks(result)).collect::<Result<_>>()?;
            let mismatches = || daemon.findings().into_iter().filter(|found| found["kind"] == "certificate-mismatch");
            let accused = mismatches().count();
            // Which domain the mail host serves may be unknown before the first session.
            for _ in 0..2 {
                mail.deliver(domain)?;
                sessions += 1.0;
                daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "tls")], sessions, FINDING)?;
            }
            ensure!(receiver.log().contains(version), "not {version}: {}", receiver.log());
            if result == "mismatch" {
                let found = daemon.finding("certificate-mismatch", FINDING, |_| true)?;
                check(&found, &[("/evidence", json!("policy")), ("/expected/source", json!("dane"))])?;
                ensure!(is_of(&found, OTHER_KEY), "{found}");
                ensure!(text(&found, "/expected/detail")?.contains("3 1 1"), "no record is quoted: {found}");
            } else {
                std::thread::sleep(Duration::from_secs(2));
                ensure!(mismatches().count() == accused, "{domain} under {version}: {:?}", mismatches().next_back());
            }
            let case = format!("{domain} under {version} {protocols}");
            let (_, was) = RESULTS.iter().zip(&before).find(|(known, _)| **known == result).context("a result")?;
            let counted = [("source", "dane"), ("result", result)];
            daemon.metric_reaches("smtpwatch_certificate_checks_total", &counted, was + 1.0, FINDING)?;
            for (known, before) in RESULTS.iter().zip(before) {
                let now = checks(known)?;
                ensure!((now > before) == (*known == result), "{case}: {known} went from {before} to {now}");
            }
        }
        Ok(())
    });
}

/// The domain is learnt from a session in cleartext; from then on the address and name of its mail host identify the
/// policy.
#[test]
fn certificates_are_compared_with_an_mta_sts_policy() {
    scenario("certificates_are_compared_with_an_mta_sts_policy", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        let home = Home::create("names")?;
        let policy = world.table(&home, Dnssec::Validates.address(), "allow_private = true")?;
        let options = Options { policy: &policy, ..Options::default() };
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let mail = Mail::start(&path)?;
        let host = format!("mx.{ENFORCE}");
        let settings = "smtpd_tls_protocols = <=TLSv1.2\nsmtpd_tls_exclude_ciphers = aNULL\n";
        let other = world.authority.issue(&["mail.elsewhere.example.org"])?;
        let expired = world.authority.issue_expired(&[&host])?;
        // A server name that this host has not used before does not replace a policy: an attacker on the path can write
        // it.
        for (turn, identity, name, accused) in [
            (0, &world.mail, host.as_str(), ""),
            (1, &other, "mail.example.org", "elsewhere"),
            (2, &other, host.as_str(), "elsewhere"),
            (3, &expired, host.as_str(), "expired"),
        ] {
            let _receiver = Postfix::receiver_as(&path.exchanger, identity, name, settings)?;
            if turn == 0 {
                mail.attacker.set_mode(Mode::Delete);
                mail.deliver(ENFORCE)?;
                daemon.finding("starttls-stripped", FINDING, |finding| is_of(finding, ENFORCE))?;
                mail.attacker.set_mode(Mode::Pass);
            }
            mail.deliver(ENFORCE)?;
            daemon.metric_reaches("smtpwatch_sessions_total", &[("result", "tls")], f64::from(turn + 1), FINDING)?;
            let said = |finding: &Value| finding["proof"].to_string().contains(accused);
            if accused.is_empty() {
                std::thread::sleep(Duration::from_secs(2));
                let wrong = daemon.findings().into_iter().find(|finding| finding["kind"] == "certificate-mismatch");
                ensure!(wrong.is_none(), "turn {turn}: {wrong:?}");
            } else {
                let found = daemon.finding("certificate-mismatch", FINDING, said)?;
                check(&found, &[("/evidence", json!("policy")), ("/expected/source", json!("mta-sts"))])?;
                ensure!(is_of(&found, ENFORCE) && text(&found, "/expected/detail")?.contains(ENFORCE), "{found}");
            }
        }
        Ok(())
    });
}

/// Trust on first use: an attacker who blocks DNS and HTTPS cannot remove a policy (RFC 8461 §5.1, §10.2).
#[test]
fn a_policy_outlives_dns_https_and_the_daemon() {
    scenario("a_policy_outlives_dns_https_and_the_daemon", || {
        let path = Path::create()?;
        let mut world = World::create(&path)?;
        let home = Home::create("tofu")?;
        let policy = world.table(&home, Dnssec::Validates.address(), "allow_private = true")?;
        let options = Options { policy: &policy, ..Options::default() };
        let mut first = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let _receiver = Postfix::receiver_as(&path.exchanger, &world.mail, &format!("mx.{ENFORCE}"), "")?;
        let mail = Mail::start(&path)?;
        mail.attacker.set_mode(Mode::Delete);
        let stripped = |daemon: &Daemon<'_>| {
            mail.deliver(ENFORCE)?;
            let found = daemon.finding("starttls-stripped", FINDING, |finding| is_of(finding, ENFORCE))?;
            check(&found, &[("/evidence", json!("policy")), ("/expected/source", json!("mta-sts"))])?;
            ensure!(text(&found, "/expected/detail")?.contains("mode: enforce"), "{found}");
            Ok(())
        };
        stripped(&first)?;
        std::thread::sleep(COMMIT);
        ensure!(first.terminate()?, "the daemon did not end well:\n{}", first.log());

        (world.names, world.web) = (None, None);
        world.resolvers.clear();
        let second = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        stripped(&second)?;
        second.metric_reaches("smtpwatch_policy_refresh_failures_total", &[("source", "mta-sts")], 1.0, FINDING)
    });
}

/// Whether a finding is about a session with the mail host of `domain`.
fn is_of(finding: &Value, domain: &str) -> bool {
    finding["flow"]["server"] == SocketAddr::new(exchanger(domain), 25).to_string()
}

fn by_policy(finding: &Value) -> bool {
    finding["evidence"] == "policy"
        || ["dane", "mta-sts", "list"].iter().any(|source| finding["expected"]["source"] == *source)
}

/// A list with an entry for one domain, by a policy alias.
pub fn starttls_everywhere() -> String {
    json!({
        "timestamp": "2026-11-01T00:00:00Z",
        "expires": "2099-01-01T00:00:00Z",
        "version": "0.1",
        "policy-aliases": { "lab": { "mode": "enforce", "mxs": [format!(".{LISTED}")] } },
        "policies": { LISTED: { "policy-alias": "lab" } },
    })
    .to_string()
}
