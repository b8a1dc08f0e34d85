//! An attacker on the path who sends any frame, in the name of either end, at any moment.
//!
//! Every row combines an attack with a real strip or a cleartext password, which must be found, and the same attack
//! with a legitimate session, which must raise nothing. The attacks target one principle: packets that leave through
//! this host's own egress hook are trusted, packets that arrive are not. docs/security.md lists what the attacker still
//! gains.

mod bench;
mod classics;
mod decoys;
mod dialogue;
mod inbound;
mod outbound;

use smtpwatch_tests::netns::Family;
use smtpwatch_tests::scenario;

use bench::Bench;

/// Whether to test every combination of attack and flaw instead of each once: `cargo xtask adversary`.
fn thorough() -> bool {
    std::env::var_os("SMTPWATCH_ADVERSARY").is_some()
}

#[test]
fn tcx_v4() {
    scenario("tcx_v4", || run("tcx", Family::V4));
}

#[test]
fn tcx_v6() {
    scenario("tcx_v6", || run("tcx", Family::V6));
}

#[test]
fn xdp_v4() {
    scenario("xdp_v4", || run("xdp", Family::V4));
}

#[test]
fn xdp_v6() {
    scenario("xdp_v6", || run("xdp", Family::V6));
}

/// Runs every row with one hook and one address family, on one daemon.
fn run(hook: &'static str, family: Family) -> anyhow::Result<()> {
    let ground = bench::Ground::create()?;
    let mut bench = Bench::start(&ground, hook, family, "")?;
    let _servers = bench.servers()?;
    outbound::controls(&mut bench);
    outbound::counted(&mut bench);
    outbound::decoys(&mut bench);
    outbound::forged_sessions(&mut bench);
    inbound::controls(&mut bench);
    inbound::decoys(&mut bench);
    inbound::forged_sessions(&mut bench);
    inbound::reuse(&mut bench);
    inbound::watched_ports(&mut bench);
    inbound::known_clients(&mut bench);
    classics::tricks(&mut bench);
    classics::bodies(&mut bench);
    classics::floods(&mut bench);
    bench.verdict()
}

#[test]
fn history_under_a_flood() {
    scenario("history_under_a_flood", || {
        let ground = bench::Ground::create()?;
        for family in Family::ALL {
            let mut bench = Bench::start(&ground, "tcx", family, "[limits]\npeers = 1000\n")?;
            let _servers = bench.servers()?;
            classics::history_flood(&mut bench);
            bench.verdict()?;
        }
        Ok(())
    });
}
