//! `smtpwatch policy check` on every domain of the policy world: the result of each source, and the effective policy
//! for a sender.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use smtpwatch_tests::daemon::{self, Options};
use smtpwatch_tests::netns::{GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::resolver::Dnssec;
use smtpwatch_tests::scenario;

use crate::policy_world::{
    BOGUS, CONTRADICTION, DANE, ENDLESS, ENFORCE, EXPIRED, HTML, INSECURE, MISSING, NONE, NOTHING, OTHER_KEY,
    OVERSIZED, REDIRECT, SILENT, SLOW, TESTING, TORN, UNTRUSTED, UNUSABLE, WRONG_NAME, World,
};
use crate::set_up::Home;

/// Time limit of a check; the time-outs for the slowest policy host and name server are shorter.
const CHECK: Duration = Duration::from_secs(90);
/// Number of concurrent checks.
const AT_ONCE: usize = 7;

/// The expected result of a check.
struct Row {
    domain: &'static str,
    /// Expected state of DANE.
    dane: &'static str,
    /// Expected state of MTA-STS.
    sts: &'static str,
    /// Expected mode of MTA-STS.
    mode: &'static str,
    /// Expected effective policy and its source; empty: any.
    effective: (&'static str, &'static str),
    /// A part of the detail of the source that has a fault.
    why: &'static str,
}

const fn row(
    domain: &'static str,
    dane: &'static str,
    (sts, mode): (&'static str, &'static str),
    effective: (&'static str, &'static str),
    why: &'static str,
) -> Row {
    Row { domain, dane, sts, mode, effective, why }
}

const FREE: (&str, &str) = ("opportunistic", "");

/// Sorted so that the two slowest checks run first and concurrently.
const VALIDATED: [Row; 20] = [
    row(SLOW, "insecure", ("error", "none"), FREE, "long"),
    row(SILENT, "error", ("error", "none"), FREE, ""),
    row(DANE, "valid", ("valid", "enforce"), ("required", "dane"), ""),
    row(OTHER_KEY, "valid", ("absent", "none"), ("required", "dane"), ""),
    row(UNUSABLE, "valid", ("absent", "none"), ("required", "dane"), "usable"),
    row(NOTHING, "absent", ("absent", "none"), FREE, ""),
    row(INSECURE, "insecure", ("absent", "none"), FREE, ""),
    row(BOGUS, "bogus", ("bogus", "none"), FREE, "signatures"),
    row(TORN, "bogus", ("absent", "none"), FREE, "TLSA"),
    row(ENFORCE, "insecure", ("valid", "enforce"), ("required", "mta-sts"), ""),
    row(TESTING, "insecure", ("valid", "testing"), ("expected", "mta-sts"), ""),
    row(NONE, "insecure", ("valid", "none"), FREE, ""),
    row(CONTRADICTION, "insecure", ("invalid", "none"), FREE, "elsewhere"),
    row(WRONG_NAME, "insecure", ("error", "none"), FREE, "certificate"),
    row(REDIRECT, "insecure", ("error", "none"), FREE, "301"),
    row(OVERSIZED, "insecure", ("invalid", "none"), FREE, "long"),
    row(HTML, "insecure", ("invalid", "none"), FREE, "text/html"),
    row(EXPIRED, "insecure", ("error", "none"), FREE, "expired"),
    row(UNTRUSTED, "insecure", ("error", "none"), FREE, "certificate"),
    row(MISSING, "insecure", ("error", "none"), FREE, "404"),
];

/// Without DNSSEC the result of DANE is unknown, never "no DANE".
const STRIPPED: [Row; 5] = [
    row(DANE, "error", ("valid", "enforce"), ("required", "mta-sts"), "DNSSEC"),
    row(OTHER_KEY, "error", ("absent", "none"), FREE, "DNSSEC"),
    row(BOGUS, "error", ("absent", "none"), FREE, "DNSSEC"),
    row(ENFORCE, "error", ("valid", "enforce"), ("required", "mta-sts"), "DNSSEC"),
    row(ENDLESS, "error", ("invalid", "none"), FREE, "DNSSEC"),
];

/// If look-ups fail, nothing is known: neither a policy nor its absence.
const UNREACHABLE: [Row; 2] = [
    row(DANE, "error", ("error", "none"), FREE, "no answer"),
    row(ENFORCE, "error", ("error", "none"), FREE, "no answer"),
];

#[test]
fn check_through_a_validating_resolver() {
    scenario("check_through_a_validating_resolver", || checks(Dnssec::Validates.address(), &VALIDATED));
}

#[test]
fn check_through_a_resolver_without_dnssec() {
    scenario("check_through_a_resolver_without_dnssec", || checks(Dnssec::Stripped.address(), &STRIPPED));
}

#[test]
fn check_without_a_resolver() {
    let nobody = SocketAddr::from(([127, 0, 0, 9], 53));
    scenario("check_without_a_resolver", || checks(nobody, &UNREACHABLE));
}

/// `probe` reports whether DANE is usable on this host.
#[test]
fn probe_tells_whether_dnssec_comes_through() {
    scenario("probe_tells_whether_dnssec_comes_through", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        for (dnssec, status) in [(Dnssec::Validates, "PASS"), (Dnssec::Stripped, "WARN")] {
            let home = Home::create("probe")?;
            let policy = world.table(&home, dnssec.address(), "allow_private = true")?;
            let config =
                daemon::configure(GATEWAY_INTERFACE, &home.0, Options { policy: &policy, ..Options::default() })?;
            let config = config.to_str().context("path")?;
            let out = daemon::smtpwatch_in(&path.gateway, &["probe", "--config", config, "--format", "json"], CHECK)?;
            let rows = out.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let said: Vec<_> = rows.filter(|row| row["name"] == "dnssec").collect();
            let told = said.len() == 1 && said[0]["status"] == status && (status == "PASS" || said[0]["remedy"] != "");
            ensure!(told, "{dnssec:?}: {said:?}\n{}{}", out.stdout, out.stderr);
        }
        Ok(())
    });
}

fn checks(resolver: SocketAddr, rows: &[Row]) -> Result<()> {
    let path = Path::create()?;
    let world = World::create(&path)?;
    let home = Home::create("check")?;
    let policy = world.table(&home, resolver, "allow_private = true")?;
    let config = daemon::configure(GATEWAY_INTERFACE, &home.0, Options { policy: &policy, ..Options::default() })?;
    let config = config.to_str().context("path")?;
    let mut wrong = Vec::new();
    for some in rows.chunks(AT_ONCE) {
        let found = std::thread::scope(|scope| {
            let check = |row: &Row| compare(&path.gateway, config, row).err().map(|error| format!("{error:#}"));
            let threads: Vec<_> = some.iter().map(|row| scope.spawn(move || check(row))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a check panicked")))
                .collect::<Result<Vec<_>>>()
        })?;
        wrong.extend(found.into_iter().flatten());
    }
    ensure!(wrong.is_empty(), "{} of {} domains:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    Ok(())
}

fn compare(gateway: &Namespace, config: &str, row: &Row) -> Result<()> {
    let arguments = ["policy", "check", row.domain, "--config", config, "--format", "json"];
    let out = daemon::smtpwatch_in(gateway, &arguments, CHECK)?;
    let told = || format!("{}: {} {}{}", row.domain, out.status, out.stdout, out.stderr);
    ensure!(out.status.success(), told());
    let answer: Value = serde_json::from_str(&out.stdout).with_context(told)?;
    ensure!(answer["subject"] == row.domain, told());
    // What a third party publishes must not fill the log: the answer reports the fault.
    ensure!(out.stderr.is_empty(), "the log speaks: {}", told());
    // A published policy that is invalid may be reported with its mode.
    let mode = (row.sts != "invalid").then_some(row.mode);
    for (name, state, mode) in [("dane", row.dane, None), ("mta-sts", row.sts, mode)] {
        let source = source(&answer, name).with_context(told)?;
        ensure!(source["state"] == state, "{name} is not {state}: {}", told());
        if let Some(mode) = mode {
            ensure!(source["mode"] == mode, "{name}: mode is not {mode}: {}", told());
        }
        ensure!(source["detail"].is_string() && source["age_seconds"].is_u64(), "{name}: {}", told());
    }
    let details = answer["sources"].as_array().into_iter().flatten().filter_map(|source| source["detail"].as_str());
    let why = details.collect::<Vec<_>>().join("; ").to_ascii_lowercase();
    ensure!(why.contains(&row.why.to_ascii_lowercase()), "no \"{}\" in the details: {}", row.why, told());
    let (starttls, source) = row.effective;
    ensure!(answer["effective"]["starttls"] == starttls, "effective is not {starttls}: {}", told());
    ensure!(source.is_empty() || answer["effective"]["source"] == source, "effective is not by {source}: {}", told());
    Ok(())
}

/// The entry of one source; each source has exactly one.
fn source<'a>(answer: &'a Value, name: &str) -> Result<&'a Value> {
    let mut of_it = answer["sources"].as_array().into_iter().flatten().filter(|source| source["source"] == name);
    let first = of_it.next().with_context(|| format!("nothing of {name}"))?;
    ensure!(of_it.next().is_none(), "{name} speaks twice");
    Ok(first)
}
