//! The daemon is killed repeatedly while it writes: the store stays intact, every finding in the journal is in the
//! store, and every stored finding reaches the journal at the next start at the latest.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use rusqlite::Connection;
use smtpwatch_store::Store;
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::daemon::{Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Namespace, Path};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{Home, SENDER, script, text};

/// By this rule each message in cleartext is a finding.
const RULE: &str = "[[rule]]\npeer = [\"198.51.100.0/24\"]\nstarttls = \"required\"\n";
/// Number of kills.
const ROUNDS: u64 = 100;
/// Shortest and longest life of a daemon, ms.
const LIFE: (u64, u64) = (50, 600);
/// Time limit for the next finding.
const NEXT: Duration = Duration::from_millis(500);
/// Pause between two messages.
const PACE: Duration = Duration::from_millis(15);
/// Time limit for reporting stored findings after a start.
const REPORTED: Duration = Duration::from_secs(60);
/// Minimum number of stored findings; with fewer the test shows nothing.
const FEWEST: usize = 1_000;
/// Environment variable with the seed of the lifetimes, to repeat a run.
const SEED: &str = "SMTPWATCH_LAB_SEED";

/// Sends messages in cleartext, one after the other.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

impl Traffic {
    fn start(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = namespace.spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            move || {
                while !stop.load(Ordering::SeqCst) {
                    smtp::send(to, None, SENDER, "bob@example.net")?;
                    sent.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(PACE);
                }
                Ok(())
            }
        })?;
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// Ends the traffic; returns the number of messages sent, or the error of a failed one.
    fn end(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("it runs")?;
        thread.join().map_err(|_| anyhow!("the traffic panicked"))???;
        Ok(self.sent.load(Ordering::SeqCst))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn killed_while_it_writes() {
    scenario("killed_while_it_writes", || {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.subsec_nanos().into());
        let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).map_or_else(clock, Ok)?;
        println!("{SEED}={seed}");
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let ehlo = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000"]);
        let _server = Server::start(&path.exchanger, address, &identity, ehlo)?;
        let home = Home::create("killed")?;
        let traffic = Traffic::start(&path.gateway, address)?;
        let (mut told, mut lines, mut kept) = (HashSet::new(), 0, HashSet::new());
        for round in 0..ROUNDS {
            let options = Options { rules: RULE, ..Options::default() };
            // Every fourth daemon is killed during its start or shortly after.
            let start = if round % 4 == 3 { Daemon::launch } else { Daemon::start };
            let mut daemon = start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
            std::thread::sleep(life(seed, round));
            // Every other one is killed while it prints a finding: a finding printed too early would not be in the
            // store.
            if round % 2 == 0 {
                let (before, end) = (daemon.findings().len(), Instant::now() + NEXT);
                while daemon.findings().len() == before && Instant::now() < end {
                    std::thread::yield_now();
                }
            }
            daemon.kill()?;
            // A line truncated by the kill is not JSON and reports nothing.
            for finding in daemon.findings().iter().filter(|finding| finding.is_object()) {
                told.insert(text(finding, "/id")?.to_owned());
                lines += 1;
            }
            kept = examine(&home.0).with_context(|| format!("death {round}, seed {seed}"))?;
            let lost: Vec<_> = told.difference(&kept).collect();
            ensure!(lost.is_empty(), "death {round}, seed {seed}: told and not on record: {lost:?}");
        }
        let sent = traffic.end()?;
        // The last daemon runs until it has reported what the others left.
        let options = Options { rules: RULE, ..Options::default() };
        let before = kept.difference(&told).count();
        let last = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, options)?;
        let report = eventually(REPORTED, "every finding on record in the journal", || {
            let now = last.findings();
            told.extend(now.iter().filter_map(|finding| finding["id"].as_str()).map(str::to_owned));
            Ok(kept.is_subset(&told).then_some(now.len()))
        });
        lines += report.with_context(|| format!("seed {seed}: {:?}", kept.difference(&told).collect::<Vec<_>>()))?;
        // A line written directly before a kill is repeated if it cannot be read back.
        let twice = lines.saturating_sub(told.len());
        println!("{before} findings were left to the last one; {twice} of {lines} lines came twice");
        ensure!(twice * 4 <= lines, "{twice} of {lines} lines came twice");
        println!("{ROUNDS} deaths, {} findings told and on record, {sent} messages", told.len());
        ensure!(told.len() >= FEWEST, "{} findings show nothing", told.len());
        Ok(())
    });
}

/// Lifetime of the daemon in this round: SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
fn life(seed: u64, round: u64) -> Duration {
    let mut z = seed.wrapping_add((round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let (least, most) = LIFE;
    Duration::from_millis(least + (z ^ (z >> 31)) % (most - least))
}

/// Examines a copy of the files that the killed daemon left, and returns the findings in it: the next daemon gets the
/// unchanged originals.
fn examine(home: &FilePath) -> Result<HashSet<String>> {
    let copy = home.join("copy");
    std::fs::create_dir_all(&copy)?;
    for entry in std::fs::read_dir(home)? {
        let entry = entry?;
        let name = entry.file_name();
        ensure!(!name.to_string_lossy().contains(".damaged-"), "a store was set aside as damaged: {name:?}");
        // SQLite recreates the index of the log (-shm).
        if name == "smtpwatch.db" || name == "smtpwatch.db-wal" {
            std::fs::copy(entry.path(), copy.join(&name))?;
        }
    }
    let store = copy.join("smtpwatch.db");
    let verified = Store::open_existing(&store)?.verify()?;
    ensure!(verified.broken.is_empty(), "the chain is broken: {:?}", verified.broken);
    let connection = Connection::open(&store)?;
    let found: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(found == "ok", "the store is damaged: {found}");
    let kept =
        connection.prepare("SELECT id FROM finding")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    drop(connection);
    std::fs::remove_dir_all(&copy)?;
    Ok(kept)
}
