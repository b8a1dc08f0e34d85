//! The policy hosts that a third party can make the daemon connect to: the recipient domain of a mail determines the
//! name of a policy host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use smtpwatch_tests::attacker::Mode;
use smtpwatch_tests::command;
use smtpwatch_tests::daemon::{self, Daemon, Options};
use smtpwatch_tests::netns::{GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::policy_host::PORT;
use smtpwatch_tests::postfix::Postfix;
use smtpwatch_tests::resolver::Dnssec;
use smtpwatch_tests::scenario;

use crate::policies::Mail;
use crate::policy_world::{ENFORCE, PRIVATE, World};
use crate::set_up::Home;

const CHECK: Duration = Duration::from_secs(60);

#[test]
fn no_private_address_is_connected_to() {
    scenario("no_private_address_is_connected_to", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        let gateway = &path.gateway;
        // Count the first packet of every attempt, whether a server listens or not, also towards the host itself.
        gateway.nft(&format!(
            "table inet watch {{\ncounter fetches {{ }}\nchain output {{\ntype filter hook output priority 0;\n\
             tcp dport {{ 80, 443, {PORT} }} tcp flags syn counter name fetches\n}}\n}}\n"
        ))?;
        for address in ["10.9.9.9/32", "169.254.9.9/32"] {
            path.exchanger.ip(&["addr", "add", address, "dev", "mx0"])?;
        }
        // The mail host of this domain has a documentation address, from which no policy is fetched.
        let domains: Vec<&str> = PRIVATE.iter().map(|(domain, _)| *domain).chain([ENFORCE]).collect();

        let home = Home::create("public")?;
        let policy = world.table(&home, Dnssec::Validates.address(), "allow_private = false")?;
        let options = Options { policy: &policy, ..Options::default() };
        let config = daemon::configure(GATEWAY_INTERFACE, &home.0, options)?;
        for domain in &domains {
            let (state, told) = sts(gateway, config.to_str().context("path")?, domain)?;
            ensure!(state == "error" && told.contains("private"), "{domain}: {told}");
        }
        ensure!(fetches(gateway)? == 0, "policy check went out");

        let daemon = Daemon::start(gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let _receiver = Postfix::receiver_as(&path.exchanger, &world.mail, "mail.example.org", "")?;
        let mail = Mail::start(&path)?;
        mail.attacker.set_mode(Mode::Delete);
        for domain in &domains {
            mail.deliver(domain)?;
        }
        let failed = f64::from(u32::try_from(domains.len())?);
        daemon.metric_reaches("smtpwatch_policy_refresh_failures_total", &[("source", "mta-sts")], failed, CHECK)?;
        ensure!(fetches(gateway)? == 0, "the daemon went out:\n{}", daemon.log());
        drop(daemon);

        // Control: with `allow_private` connections are made, so only the setting prevented them above.
        let home = Home::create("private")?;
        let policy = world.table(&home, Dnssec::Validates.address(), "allow_private = true")?;
        let config = daemon::configure(GATEWAY_INTERFACE, &home.0, Options { policy: &policy, ..Options::default() })?;
        let config = config.to_str().context("path")?;
        ensure!(sts(gateway, config, ENFORCE)?.0 == "valid", "a policy that may be fetched");
        let before = fetches(gateway)?;
        ensure!(before > 0, "a fetch is not counted");
        let (state, told) = sts(gateway, config, "loopback.example.net")?;
        ensure!(state == "error" && fetches(gateway)? > before, "the loopback, as configured: {told}");
        Ok(())
    });
}

/// State of MTA-STS, and the whole answer of `policy check`.
fn sts(gateway: &Namespace, config: &str, domain: &str) -> Result<(String, String)> {
    let out =
        daemon::smtpwatch_in(gateway, &["policy", "check", domain, "--config", config, "--format", "json"], CHECK)?;
    ensure!(out.status.success(), "{domain}: {} {}{}", out.status, out.stdout, out.stderr);
    let answer: Value = serde_json::from_str(&out.stdout).with_context(|| out.stdout.clone())?;
    let source = answer["sources"].as_array().into_iter().flatten().find(|source| source["source"] == "mta-sts");
    let state = source.and_then(|source| source["state"].as_str()).context("no state of MTA-STS")?.to_owned();
    Ok((state, out.stdout))
}

/// Number of connections to policy hosts that were begun in `namespace`.
fn fetches(namespace: &Namespace) -> Result<u64> {
    let mut command = namespace.command("nft");
    let told = command::run(command.args(["list", "counter", "inet", "watch", "fetches"]), Duration::from_secs(10))?;
    let mut words = told.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|count| count.parse().ok()).with_context(|| told.clone())
}
