//! Outbound sessions, counted for TLS reports by day (UTC), policy domain and policy (RFC 8460 §4), and the reports
//! that were sent, so that no report is sent twice.
//!
//! The writer thread fills the counts; the sender of TLS reports and `smtpwatch tlsrpt report` read them.

use std::{collections::HashMap, net::IpAddr};

use rusqlite::{OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use smtpwatch_core::{
    Timestamp,
    day::Day,
    engine::{Delivery, PolicyType, ResultType},
};

use super::{Store, StoreError, signed};

/// Maximum number of policy domains per day; sessions to further domains are dropped and counted.
pub const DOMAINS_PER_DAY: i64 = 10_000;
/// Maximum number of policies per domain and day: a policy changes rarely, and a mail host has one.
pub const POLICIES_PER_DOMAIN: i64 = 8;
/// Maximum number of distinct failure details per policy, domain and day; further failures only add to the total, and
/// are counted.
pub const FAILURES_PER_POLICY: i64 = 100;
/// Maximum size of the quoted policy text, in bytes; only whole strings are kept, in order.
pub const POLICY_BYTES: usize = 32 * 1024;
/// Days after which counts and sent reports are removed.
pub const RETENTION_DAYS: i64 = 90;
/// Maximum length of a name or reason, in bytes: the limit of a domain name (RFC 1035 §2.3.4).
const NAME_BYTES: usize = 255;

pub(super) const CREATE: &str = "
    CREATE TABLE delivery (                          -- outbound sessions, for TLS reports
        id         INTEGER PRIMARY KEY,
        day        TEXT NOT NULL,                    -- of UTC
        domain     TEXT NOT NULL,                    -- the domain whose policy it is
        policy     TEXT NOT NULL,                    -- JSON: its type and what a report quotes of it
        successful INTEGER NOT NULL,
        failed     INTEGER NOT NULL,
        untold     INTEGER NOT NULL,                 -- failed ones whose details found no room
        UNIQUE (day, domain, policy)
    ) STRICT;
    CREATE TABLE delivery_failure (
        delivery INTEGER NOT NULL REFERENCES delivery (id),
        detail   TEXT NOT NULL,                      -- JSON
        sessions INTEGER NOT NULL,
        PRIMARY KEY (delivery, detail)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE report (                            -- reports that are done with
        day     TEXT NOT NULL,
        domain  TEXT NOT NULL,
        target  TEXT NOT NULL,                       -- 'file', or where it was to be sent to
        outcome TEXT NOT NULL,                       -- in words
        at      INTEGER NOT NULL,                    -- nanoseconds since the epoch
        PRIMARY KEY (day, domain, target)
    ) STRICT, WITHOUT ROWID;
";

/// A policy as a TLS report quotes it (RFC 8460 §4.4).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct QuotedPolicy {
    /// The type of the policy.
    pub kind: PolicyType,
    /// The lines of an MTA-STS policy, or the TLSA records.
    pub strings: Vec<String>,
    /// The MX host patterns of the policy.
    pub mx_hosts: Vec<String>,
}

/// One kind of failure between two hosts, as a TLS report lists it (RFC 8460 §4.4).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The result type.
    pub result: ResultType,
    /// Additional detail about the failure.
    pub reason: Option<String>,
    /// Address of this host, the sending MTA.
    pub sending: IpAddr,
    /// Address of the receiving mail host.
    pub receiving: IpAddr,
    /// Name of the receiving mail host.
    pub receiving_host: String,
    /// The name in the receiving host's HELO or EHLO reply; empty if there was none.
    pub receiving_helo: String,
}

/// The sessions of one day to one domain under one policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicySessions {
    /// The policy that applied.
    pub policy: QuotedPolicy,
    /// Sessions in which TLS was established.
    pub successful: u64,
    /// Sessions in which TLS failed.
    pub failed: u64,
    /// Failed sessions without details, because [`FAILURES_PER_POLICY`] was reached.
    pub untold: u64,
    /// Failed sessions with details: number of sessions for each failure.
    pub failures: Vec<(Failure, u64)>,
}

/// A report that needs no further delivery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SentReport {
    /// The day that the report covers.
    pub day: Day,
    /// The policy domain that the report covers.
    pub domain: String,
    /// Where the report was sent.
    pub target: String,
    /// The result of the delivery, as text.
    pub outcome: String,
    /// Time of the delivery.
    pub at: Timestamp,
}

/// Counts that wait to be written.
#[derive(Default)]
pub(super) struct Pending {
    sessions: HashMap<(Day, String, String), Counts>,
    reported: Vec<SentReport>,
    newest: Option<Day>,
    rows: usize,
}

#[derive(Default)]
struct Counts {
    successful: u64,
    failed: u64,
    failures: HashMap<String, u64>,
}

impl Pending {
    pub(super) fn add(&mut self, delivery: Delivery) {
        let day = Day::of(delivery.at);
        self.newest = self.newest.max(Some(day));
        let policy = QuotedPolicy {
            kind: delivery.policy,
            strings: within(delivery.policy_strings, POLICY_BYTES),
            mx_hosts: within(delivery.mx_hosts, POLICY_BYTES),
        };
        let counts = self.sessions.entry((day, cut(delivery.domain), json(&policy))).or_insert_with(|| {
            self.rows += 1;
            Counts::default()
        });
        let Some(result) = delivery.failure else {
            counts.successful += 1;
            return;
        };
        let failure = Failure {
            result,
            reason: delivery.reason.map(cut),
            sending: delivery.sending.to_canonical(),
            receiving: delivery.receiving.to_canonical(),
            receiving_host: cut(delivery.receiving_host),
            receiving_helo: cut(delivery.receiving_helo),
        };
        counts.failed += 1;
        *counts.failures.entry(json(&failure)).or_insert_with(|| {
            self.rows += 1;
            0
        }) += 1;
    }

    pub(super) fn reported(&mut self, reported: SentReport) {
        self.rows += 1;
        self.reported.push(reported);
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Writes the counts; returns how many sessions or failure details exceeded the bounds.
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
        // The row counts are read once per batch: a new domain must not cost a scan of the table.
        let mut domains: HashMap<Day, i64> = HashMap::new();
        let mut full = 0;
        for ((on, domain, policy), counts) in &self.sessions {
            let day = on.to_string();
            let domains = match domains.get_mut(on) {
                Some(domains) => domains,
                None => domains.entry(*on).or_insert(count_domains(transaction, &day)?),
            };
            let Some(id) = delivery_row(transaction, &day, domain, policy, domains)? else {
                full += counts.successful + counts.failed;
                continue;
            };
            let mut untold = 0;
            for (detail, sessions) in &counts.failures {
                if !add_failure(transaction, id, detail, *sessions)? {
                    untold += sessions;
                }
            }
            full += untold;
            transaction
                .prepare_cached(
                    "UPDATE delivery SET successful = successful + ?2, failed = failed + ?3, untold = untold + ?4
                     WHERE id = ?1",
                )?
                .execute(params![id, signed(counts.successful), signed(counts.failed), signed(untold)])?;
        }
        for SentReport { day, domain, target, outcome, at } in &self.reported {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO report VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![day.to_string(), domain, target, outcome, at.0])?;
        }
        if let Some(newest) = self.newest {
            expire(transaction, newest.plus(-RETENTION_DAYS))?;
        }
        Ok(full)
    }
}

impl Store {
    /// The domains with sessions on a day, in alphabetical order.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn delivery_domains(&mut self, day: Day) -> Result<Vec<String>, StoreError> {
        self.sqlite(|connection| {
            let mut query =
                connection.prepare_cached("SELECT DISTINCT domain FROM delivery WHERE day = ?1 ORDER BY domain")?;
            query.query_map([day.to_string()], |row| row.get(0))?.collect()
        })
    }

    /// The sessions of a day and domain, by policy. The order is fixed, so that a regenerated report is identical.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn deliveries(&mut self, day: Day, domain: &str) -> Result<Vec<PolicySessions>, StoreError> {
        self.sqlite(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT id, policy, successful, failed, untold FROM delivery
                 WHERE day = ?1 AND domain = ?2 ORDER BY policy",
            )?;
            let mut details = connection.prepare_cached(
                "SELECT detail, sessions FROM delivery_failure WHERE delivery = ?1 ORDER BY sessions DESC, detail",
            )?;
            let mut rows = query.query(params![day.to_string(), domain])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let count = |column| row.get::<_, i64>(column).map(|count| u64::try_from(count).unwrap_or(0));
                let failures = details.query_map([row.get::<_, i64>(0)?], |row| {
                    let detail: Option<Failure> = serde_json::from_str(row.get_ref(0)?.as_str()?).ok();
                    Ok(detail.zip(row.get::<_, i64>(1).map(|count| u64::try_from(count).ok())?))
                })?;
                // A policy that cannot be parsed, for example after an edit by another program, is skipped.
                let Ok(policy) = serde_json::from_str(row.get_ref(1)?.as_str()?) else { continue };
                found.push(PolicySessions {
                    policy,
                    successful: count(2)?,
                    failed: count(3)?,
                    untold: count(4)?,
                    failures: failures.filter_map(Result::transpose).collect::<Result<_, _>>()?,
                });
            }
            Ok(found)
        })
    }

    /// The delivered reports of a day: domain and target.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn reported(&mut self, day: Day) -> Result<Vec<(String, String)>, StoreError> {
        self.sqlite(|connection| {
            let mut query = connection.prepare_cached("SELECT domain, target FROM report WHERE day = ?1")?;
            query.query_map([day.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }
}

fn count_domains(transaction: &Transaction<'_>, day: &str) -> rusqlite::Result<i64> {
    let mut count = transaction.prepare_cached("SELECT count(DISTINCT domain) FROM delivery WHERE day = ?1")?;
    count.query_row([day], |row| row.get(0))
}

/// The ID of a policy's row. Inserts the row if the bounds allow it.
fn delivery_row(
    transaction: &Transaction<'_>,
    day: &str,
    domain: &str,
    policy: &str,
    domains: &mut i64,
) -> rusqlite::Result<Option<i64>> {
    let mut find =
        transaction.prepare_cached("SELECT id FROM delivery WHERE day = ?1 AND domain = ?2 AND policy = ?3")?;
    if let Some(id) = find.query_row(params![day, domain, policy], |row| row.get(0)).optional()? {
        return Ok(Some(id));
    }
    let mut policies = transaction.prepare_cached("SELECT count(*) FROM delivery WHERE day = ?1 AND domain = ?2")?;
    let policies: i64 = policies.query_row(params![day, domain], |row| row.get(0))?;
    let has_room = if policies == 0 { *domains < DOMAINS_PER_DAY } else { policies < POLICIES_PER_DOMAIN };
    if !has_room {
        return Ok(None);
    }
    let mut insert = transaction.prepare_cached(
        "INSERT INTO delivery (day, domain, policy, successful, failed, untold) VALUES (?1, ?2, ?3, 0, 0, 0)",
    )?;
    *domains += i64::from(policies == 0);
    insert.insert(params![day, domain, policy]).map(Some)
}

/// Counts a failure under its details; false if there is no room for another row.
fn add_failure(transaction: &Transaction<'_>, id: i64, detail: &str, sessions: u64) -> rusqlite::Result<bool> {
    let mut update = transaction
        .prepare_cached("UPDATE delivery_failure SET sessions = sessions + ?3 WHERE delivery = ?1 AND detail = ?2")?;
    if update.execute(params![id, detail, signed(sessions)])? > 0 {
        return Ok(true);
    }
    let mut count = transaction.prepare_cached("SELECT count(*) FROM delivery_failure WHERE delivery = ?1")?;
    if count.query_row([id], |row| row.get::<_, i64>(0))? >= FAILURES_PER_POLICY {
        return Ok(false);
    }
    let mut insert = transaction.prepare_cached("INSERT INTO delivery_failure VALUES (?1, ?2, ?3)")?;
    insert.execute(params![id, detail, signed(sessions)]).map(|_| true)
}

fn expire(transaction: &Transaction<'_>, before: Day) -> rusqlite::Result<()> {
    let before = before.to_string();
    transaction
        .prepare_cached("DELETE FROM delivery_failure WHERE delivery IN (SELECT id FROM delivery WHERE day < ?1)")?
        .execute([&before])?;
    transaction.prepare_cached("DELETE FROM delivery WHERE day < ?1")?.execute([&before])?;
    transaction.prepare_cached("DELETE FROM report WHERE day < ?1")?.execute([&before])?;
    Ok(())
}

/// The leading strings whose total length is within `most` bytes.
fn within(strings: Vec<String>, most: usize) -> Vec<String> {
    let mut bytes = 0;
    let fits = |string: &String| {
        bytes += string.len();
        bytes <= most
    };
    strings.into_iter().take_while(fits).collect()
}

fn cut(mut name: String) -> String {
    name.truncate(name.floor_char_boundary(NAME_BYTES));
    name
}

fn json(value: &impl Serialize) -> String {
    // Serialising types with string keys to a string cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offers;

    fn delivery(domain: &str, at: Timestamp, failure: Option<ResultType>) -> Delivery {
        Delivery {
            at,
            domain: domain.to_owned(),
            policy: PolicyType::Sts,
            policy_strings: vec!["version: STSv1".to_owned()],
            mx_hosts: vec!["mx1.example.net".to_owned()],
            failure,
            reason: None,
            sending: "192.0.2.10".parse().expect("an address"),
            receiving: "198.51.100.25".parse().expect("an address"),
            receiving_host: "mx1.example.net".to_owned(),
            receiving_helo: String::new(),
        }
    }

    struct Book(Store, #[expect(dead_code, reason = "removed with it")] tempfile::TempDir);

    impl Book {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            Self(Store::open(&directory.path().join("smtpwatch.db")).expect("a store"), directory)
        }

        fn write(&mut self, deliveries: impl IntoIterator<Item = Delivery>) -> u64 {
            let mut pending = Pending::default();
            deliveries.into_iter().for_each(|delivery| pending.add(delivery));
            self.0.write(&HashMap::new(), &[], &pending, &offers::Pending::default(), &[]).expect("written")
        }
    }

    const DAY: Timestamp = Timestamp::from_secs(1_795_392_000);

    #[test]
    fn sessions_of_a_day_add_up_over_batches() {
        let mut book = Book::new();
        let failed = Some(ResultType::StarttlsNotSupported);
        for _ in 0..2 {
            let deliveries = [None, failed, None, failed].map(|failure| delivery("example.net", DAY, failure));
            assert_eq!(book.write(deliveries), 0);
        }
        let next_day = Timestamp::from_secs(DAY.as_secs() + 86_400);
        book.write([delivery("example.net", next_day, None), delivery("example.org", DAY, None)]);
        let day = Day::of(DAY);
        assert_eq!(book.0.delivery_domains(day).expect("read"), ["example.net", "example.org"]);
        let found = book.0.deliveries(day, "example.net").expect("read");
        let [sessions] = &found[..] else { panic!("{found:?}") };
        assert_eq!((sessions.successful, sessions.failed, sessions.untold), (4, 4, 0));
        let [(failure, 4)] = &sessions.failures[..] else { panic!("{sessions:?}") };
        assert_eq!(failure.receiving_host, "mx1.example.net");
        assert_eq!(sessions.policy.strings, ["version: STSv1"]);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let mut book = Book::new();
        let hosts = (0..FAILURES_PER_POLICY + 3).map(|n| Delivery {
            receiving_host: format!("mx{n}.example.net"),
            ..delivery("example.net", DAY, Some(ResultType::ValidationFailure))
        });
        assert_eq!(book.write(hosts), 3);
        let found = book.0.deliveries(Day::of(DAY), "example.net").expect("read");
        assert_eq!((found[0].failed, found[0].untold), (103, 3));
        assert_eq!(found[0].failures.len(), 100);
        let policies = (0..POLICIES_PER_DOMAIN + 2).map(|n| Delivery {
            policy_strings: vec![format!("mx: mx{n}.example.net")],
            ..delivery("example.org", DAY, None)
        });
        assert_eq!(book.write(policies), 2);
        let domains = (0..DOMAINS_PER_DAY).map(|n| delivery(&format!("d{n}.example.com"), DAY, None));
        assert_eq!(book.write(domains), 2, "two domains were there before");
    }

    #[test]
    fn old_days_go() {
        let mut book = Book::new();
        book.write([delivery("example.net", DAY, Some(ResultType::ValidationFailure))]);
        let later = Timestamp::from_secs(DAY.as_secs() + (RETENTION_DAYS + 1) * 86_400);
        book.write([delivery("example.net", later, None)]);
        assert!(book.0.deliveries(Day::of(DAY), "example.net").expect("read").is_empty());
        assert_eq!(book.0.deliveries(Day::of(later), "example.net").expect("read").len(), 1);
    }

    #[test]
    fn a_policy_is_quoted_in_whole_strings() {
        assert_eq!(within(vec!["ab".to_owned(), "cd".to_owned(), "e".to_owned()], 4), ["ab", "cd"]);
        assert!(cut("ä".repeat(200)).len() <= NAME_BYTES);
    }
}
