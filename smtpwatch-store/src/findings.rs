//! Stored findings: the original documents, grouped into incidents, and chained by hash. `retention.rs` removes them.
//!
//! An incident is a group of findings of one cause ([`Cause`]): one kind about one peer and port, each within the window
//! of the next; what this host itself does, for as long as it lasts; or the passwords that unknown clients guess on one
//! day. The chain reveals later edits: the hash of a finding covers its document, its evidence, and the hash of the previous
//! finding. A removed finding leaves its hash, so that the chain continues.

use std::{net::SocketAddr, time::Duration};

use rusqlite::{OptionalExtension, Row, Transaction, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};
use smtpwatch_core::{
    Finding, Timestamp,
    cause::{About, Cause},
    day::Day,
};

use super::{
    Store, StoreError,
    retention::{self, Worth},
    signed,
};

/// Maximum number of findings of one incident that are stored with their evidence; the first ones are chosen. A finding
/// that repeats for days must not evict the evidence of other incidents. The document of every finding is stored, with
/// its transcript and indicators.
pub const EXHIBITS_PER_INCIDENT: i64 = 32;
/// The same for password guessing: a bounded sample, because one guess shows no more than another.
pub const EXHIBITS_OF_GUESSING: i64 = 8;
/// Maximum number of client addresses that are recorded for one incident; findings of further addresses are counted.
pub const ADDRESSES_PER_INCIDENT: i64 = 1_000;
/// Maximum number of mechanisms that are recorded for one incident.
pub const MECHANISMS_PER_INCIDENT: i64 = 16;
/// Minimum gap after which another finding of this host's own doing is another incident: longer than a day, because a
/// client that comes once a day shows that it lasts.
const WINDOW_OF_THIS_HOST: Duration = Duration::from_secs(25 * 3_600);
/// Minimum time between two announcements of an incident that is not about a peer.
const ANNOUNCED_EVERY: i64 = 24 * 3_600 * 1_000_000_000;
/// The previous hash that the first finding's hash covers.
pub(super) const ORIGIN: [u8; 32] = [0; 32];

pub(super) const CREATE: &str = "
    CREATE TABLE incident (
        number    INTEGER PRIMARY KEY AUTOINCREMENT,
        id        TEXT NOT NULL UNIQUE,              -- that of its first finding
        kind      TEXT NOT NULL,
        role      TEXT NOT NULL,                     -- which end this host is
        peer      TEXT NOT NULL,                     -- its address
        port      INTEGER NOT NULL,                  -- of the server
        name      TEXT NOT NULL,                     -- newest name that the peer gave
        severity  INTEGER NOT NULL,                  -- the worst, as a rank from 0
        evidence  INTEGER NOT NULL,                  -- the strongest, likewise
        outcome   INTEGER NOT NULL,                  -- the worst, likewise
        findings  INTEGER NOT NULL,                  -- how many, those that retention has removed among them
        exhibits  INTEGER NOT NULL,                  -- to how many of them evidence was kept
        first_seen INTEGER NOT NULL,                 -- nanoseconds since the epoch
        last_seen INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX incident_seen ON incident (last_seen, number);
    CREATE INDEX incident_peer ON incident (peer, last_seen);
    CREATE TABLE finding (
        number    INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice
        id        TEXT NOT NULL UNIQUE,              -- UUIDv7
        incident  INTEGER NOT NULL REFERENCES incident (number),
        time      INTEGER NOT NULL,                  -- nanoseconds since the epoch
        kept      INTEGER NOT NULL,                  -- when it came into this store, likewise
        document  TEXT NOT NULL,                     -- JSON, as it was made
        exhibit   TEXT,                              -- JSON; none where the incident has enough of them
        chain     BLOB NOT NULL                      -- SHA-256; see chain_start
    ) STRICT;
    CREATE INDEX finding_incident ON finding (incident, number);
    CREATE TABLE chain_start (                       -- the newest finding that retention had removed before schema 5
        number    INTEGER NOT NULL,                  -- its number; zero: none
        chain     BLOB NOT NULL                      -- its hash: the next one continues it
    ) STRICT;
    INSERT INTO chain_start VALUES (0, zeroblob(32));
";

/// Findings that the journal has not written. In a store of an earlier version every finding counts as reported.
pub(super) const UNREPORTED: &str = "
    CREATE TABLE unreported (
        number INTEGER PRIMARY KEY                   -- of the finding
    ) STRICT;
";

/// How a finding is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredAs {
    /// The identifier of its incident.
    pub incident: String,
    /// Number of findings of that incident, this one included.
    pub findings: u64,
    /// Distinct addresses of the clients of that incident; 1 if it is about a peer.
    pub addresses: u64,
    /// Whether an alert is due. Every finding about a peer is announced. Other incidents are announced at their first
    /// finding, once a day after it, and at a higher severity.
    pub is_announced: bool,
}

/// A stored finding that the journal has not written.
pub(super) struct Unreported {
    pub number: i64,
    /// `None` if its document cannot be parsed.
    pub finding: Option<Box<Finding>>,
    pub stored: StoredAs,
}

/// Totals that are compared with the retention limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Totals {
    pub findings: u64,
    pub bytes: u64,
    /// Findings of the cause that has most of those that the quota limits. Zero after a check that found no excess.
    pub most_of_a_cause: u64,
}

/// The hash of a finding: SHA-256 over the previous finding's hash (32 bytes), the finding's number (8 bytes,
/// big-endian), the SHA-256 of its document, and the SHA-256 of its evidence (of the empty string, if it has none).
pub(super) fn link(before: &[u8], number: i64, document: &str, exhibit: Option<&str>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(number.to_be_bytes());
    hash.update(Sha256::digest(document));
    hash.update(Sha256::digest(exhibit.unwrap_or_default()));
    hash.finalize().into()
}

/// The cause as columns of `incident`: whose doing it is, address and port. Empty if the finding's endpoints cannot be
/// parsed.
pub(super) fn cause_of(finding: &Finding) -> (About, String, u16) {
    Cause::of(finding)
        .map_or((About::Peer, String::new(), 0), |cause| (cause.about, cause.address.to_string(), cause.port))
}

/// The address of the client; empty if it cannot be parsed.
fn client_of(finding: &Finding) -> String {
    let client = finding.flow.client.parse::<SocketAddr>();
    client.map(|client| client.ip().to_canonical().to_string()).unwrap_or_default()
}

impl Store {
    /// Stores findings, in order, in one transaction that is synced to disk when this returns: evidence survives a
    /// power failure. The flag of each finding says whether the journal has still to write it. Returns the number of
    /// each finding, and how it is stored.
    pub fn keep_findings<'a>(
        &mut self,
        findings: impl Iterator<Item = (&'a Finding, bool)>,
        window: Duration,
        now: Timestamp,
    ) -> Result<Vec<(i64, StoredAs)>, StoreError> {
        let (stored, totals) = self.sqlite(|connection| {
            connection.pragma_update(None, "synchronous", "full")?;
            let written = (|| {
                // Other processes store findings too: the end of the chain must be read under the lock.
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let mut totals = Totals::default();
                let mut stored = Vec::new();
                for (finding, unreported) in findings {
                    let (number, as_what) = match on_record(&transaction, &finding.id)? {
                        // A commit that reported an error may have succeeded.
                        Some(before) => before,
                        None => keep(&transaction, finding, window, now, &mut totals)?,
                    };
                    if unreported {
                        transaction
                            .prepare_cached("INSERT OR IGNORE INTO unreported VALUES (?1)")?
                            .execute([number])?;
                    }
                    stored.push((number, as_what));
                }
                transaction.commit()?;
                Ok((stored, totals))
            })();
            connection.pragma_update(None, "synchronous", "normal")?;
            written
        })?;
        self.totals.findings += totals.findings;
        self.totals.bytes += totals.bytes;
        self.totals.most_of_a_cause = self.totals.most_of_a_cause.max(totals.most_of_a_cause);
        Ok(stored)
    }

    /// The next findings that the journal has not written, with numbers above `after` and up to `end`, in order.
    pub(super) fn unreported(&mut self, after: i64, end: i64, most: usize) -> Result<Vec<Unreported>, StoreError> {
        self.sqlite(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT finding.number, document, incident.id, findings, addresses, about = 'peer' OR announced = time
                 FROM unreported JOIN finding USING (number) JOIN incident ON incident.number = finding.incident
                 WHERE unreported.number > ?1 AND unreported.number <= ?2 ORDER BY unreported.number LIMIT ?3",
            )?;
            let rows = query.query_map(params![after, end, limit(most)], |row| {
                Ok(Unreported {
                    number: row.get(0)?,
                    finding: serde_json::from_str(row.get_ref(1)?.as_str()?).ok(),
                    stored: StoredAs::read(row, 2)?,
                })
            })?;
            rows.collect()
        })
    }

    /// The highest number of a finding that the journal has not written.
    pub(super) fn last_unreported(&mut self) -> Result<Option<i64>, StoreError> {
        self.sqlite(|connection| connection.query_row("SELECT max(number) FROM unreported", [], |row| row.get(0)))
    }
}

fn keep(
    transaction: &Transaction<'_>,
    finding: &Finding,
    window: Duration,
    now: Timestamp,
    totals: &mut Totals,
) -> rusqlite::Result<(i64, StoredAs)> {
    // Serialising types with string keys cannot fail.
    let document = serde_json::to_string(finding).unwrap_or_default();
    let (about, address, port) = cause_of(finding);
    let (kind, role, time) = (finding.kind.as_str(), finding.role.as_str(), finding.time.0);
    let (since, until) = span(about, finding.time, window);
    let ranks = [finding.severity as i64, finding.evidence as i64, finding.outcome as i64];
    let [severity, evidence, outcome] = ranks;
    let open: Option<Open> = transaction
        .prepare_cached(
            "SELECT number, id, findings, exhibits, addresses, severity, announced FROM incident
             WHERE peer = ?1 AND last_seen >= ?2 AND first_seen <= ?3 AND kind = ?4 AND role = ?5 AND port = ?6
                AND about = ?7
             ORDER BY last_seen DESC LIMIT 1",
        )?
        .query_row(params![address, since, until, kind, role, port, about.as_str()], Open::read)
        .optional()?;
    let has_room = open.as_ref().is_none_or(|open| open.exhibits < exhibits_of(about));
    let exhibit = finding.exhibit.as_ref().filter(|_| has_room);
    let exhibit = exhibit.map(|exhibit| serde_json::to_string(exhibit).unwrap_or_default());
    let with = i64::from(exhibit.is_some());
    // The names of many clients say nothing about an incident of this host.
    let name = if about == About::Peer { finding.peer.name.as_str() } else { "" };
    let (incident, stored) = match open {
        Some(open) => {
            let is_announced = open.is_announced(about, finding);
            let announced = if is_announced { time } else { open.announced };
            transaction
                .prepare_cached(
                    "UPDATE incident SET findings = findings + 1, kept = kept + 1, exhibits = exhibits + ?2, severity = max(severity, ?3),
                        evidence = max(evidence, ?4), outcome = max(outcome, ?5), first_seen = min(first_seen, ?6),
                        last_seen = max(last_seen, ?6), name = iif(?7 = '', name, ?7), announced = ?8
                     WHERE number = ?1",
                )?
                .execute(params![open.number, with, severity, evidence, outcome, time, name, announced])?;
            let addresses = add_client(transaction, about, &open, finding)?;
            let findings = unsigned(open.findings) + 1;
            (open.number, StoredAs { incident: open.id, findings, addresses, is_announced })
        }
        None => {
            transaction
                .prepare_cached(
                    "INSERT INTO incident (id, kind, role, peer, port, name, severity, evidence, outcome, findings, kept,
                        exhibits, first_seen, last_seen, about, addresses, announced)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1, 1, ?10, ?11, ?11, ?12, ?13, ?11)",
                )?
                .execute(params![
                    finding.id,
                    kind,
                    role,
                    address,
                    port,
                    name,
                    severity,
                    evidence,
                    outcome,
                    with,
                    time,
                    about.as_str(),
                    i64::from(about == About::Peer),
                ])?;
            let number = transaction.last_insert_rowid();
            let addresses = add_client(transaction, about, &Open { number, ..Open::default() }, finding)?;
            (number, StoredAs { incident: finding.id.clone(), findings: 1, addresses, is_announced: true })
        }
    };
    add_mechanism(transaction, incident, finding)?;
    let (before, chain) = head(transaction)?;
    let number = before.saturating_add(1);
    transaction.prepare_cached("INSERT INTO finding VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(params![
        number,
        finding.id,
        incident,
        time,
        now.0,
        document,
        exhibit,
        link(&chain, number, &document, exhibit.as_deref())
    ])?;
    let worth = Worth::of(finding, exhibit.is_some());
    let [plain, high, critical] = worth.as_counts();
    let (cause, of_cause): (i64, i64) = transaction
        .prepare_cached(
            "INSERT INTO cause (kind, peer, plain, high, critical) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (kind, peer) DO UPDATE
                SET plain = plain + excluded.plain, high = high + excluded.high, critical = critical + excluded.critical
             RETURNING number, plain",
        )?
        .query_row(params![kind, address, plain, high, critical], |row| Ok((row.get(0)?, row.get(1)?)))?;
    transaction
        .prepare_cached("INSERT INTO worth (number, worth, severity, cause) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![number, worth.0, severity, cause])?;
    totals.most_of_a_cause = totals.most_of_a_cause.max(unsigned(of_cause));
    totals.findings += 1;
    totals.bytes += (document.len() + exhibit.map_or(0, |exhibit| exhibit.len())) as u64;
    Ok((number, stored))
}

/// The earliest newest finding, and the latest first finding, of an incident that a finding of this time belongs to.
fn span(about: About, time: Timestamp, window: Duration) -> (i64, i64) {
    let around = |window: Duration| {
        let window = i64::try_from(window.as_nanos()).unwrap_or(i64::MAX);
        (time.0.saturating_sub(window), time.0.saturating_add(window))
    };
    match about {
        About::Peer => around(window),
        About::ThisHost => around(window.max(WINDOW_OF_THIS_HOST)),
        About::Guessing => {
            let day = Day::of(time);
            (day.begin().0, day.plus(1).begin().0.saturating_sub(1))
        }
    }
}

const fn exhibits_of(about: About) -> i64 {
    match about {
        About::Peer | About::ThisHost => EXHIBITS_PER_INCIDENT,
        About::Guessing => EXHIBITS_OF_GUESSING,
    }
}

/// The incident that a finding is added to.
#[derive(Default)]
struct Open {
    number: i64,
    id: String,
    findings: i64,
    exhibits: i64,
    addresses: i64,
    severity: i64,
    /// Time of the finding that was announced last.
    announced: i64,
}

impl Open {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            id: row.get(1)?,
            findings: row.get(2)?,
            exhibits: row.get(3)?,
            addresses: row.get(4)?,
            severity: row.get(5)?,
            announced: row.get(6)?,
        })
    }

    /// Whether this further finding is announced.
    fn is_announced(&self, about: About, finding: &Finding) -> bool {
        match about {
            About::Peer => true,
            About::ThisHost | About::Guessing => {
                finding.severity as i64 > self.severity
                    || finding.time.0.saturating_sub(self.announced) >= ANNOUNCED_EVERY
            }
        }
    }
}

impl StoredAs {
    /// Reads the columns from this one on: identifier, findings, addresses, whether it is announced.
    fn read(row: &Row<'_>, first: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            incident: row.get(first)?,
            findings: unsigned(row.get(first + 1)?),
            addresses: unsigned(row.get(first + 2)?),
            is_announced: row.get(first + 3)?,
        })
    }
}

/// Counts the client of a finding in its incident. Returns the number of distinct addresses.
fn add_client(
    transaction: &Transaction<'_>,
    about: About,
    incident: &Open,
    finding: &Finding,
) -> rusqlite::Result<u64> {
    if about == About::Peer {
        return Ok(1);
    }
    let (number, client) = (incident.number, client_of(finding));
    let known = transaction
        .prepare_cached("UPDATE incident_client SET findings = findings + 1 WHERE incident = ?1 AND address = ?2")?
        .execute(params![number, client])?;
    if known > 0 {
        return Ok(unsigned(incident.addresses));
    }
    if incident.addresses >= ADDRESSES_PER_INCIDENT {
        transaction
            .prepare_cached("UPDATE incident SET unlisted = unlisted + 1 WHERE number = ?1")?
            .execute([number])?;
        return Ok(unsigned(incident.addresses));
    }
    transaction
        .prepare_cached("INSERT INTO incident_client (incident, address, findings) VALUES (?1, ?2, 1)")?
        .execute(params![number, client])?;
    transaction.prepare_cached("UPDATE incident SET addresses = addresses + 1 WHERE number = ?1")?.execute([number])?;
    Ok(unsigned(incident.addresses) + 1)
}

/// Counts the mechanism of a finding in its incident; beyond [`MECHANISMS_PER_INCIDENT`], a further one is left out.
fn add_mechanism(transaction: &Transaction<'_>, incident: i64, finding: &Finding) -> rusqlite::Result<()> {
    let Some(mechanism) = &finding.observed.mechanism else { return Ok(()) };
    let known = transaction
        .prepare_cached("UPDATE incident_mechanism SET findings = findings + 1 WHERE incident = ?1 AND mechanism = ?2")?
        .execute(params![incident, mechanism])?;
    if known > 0 {
        return Ok(());
    }
    transaction
        .prepare_cached(
            "INSERT INTO incident_mechanism (incident, mechanism, findings)
             SELECT ?1, ?2, 1 WHERE (SELECT count(*) FROM incident_mechanism WHERE incident = ?1) < ?3",
        )?
        .execute(params![incident, mechanism, MECHANISMS_PER_INCIDENT])
        .map(drop)
}

/// The number of a finding that is already stored, and how it is stored.
fn on_record(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<Option<(i64, StoredAs)>> {
    transaction
        .prepare_cached(
            "SELECT finding.number, incident.id, findings, addresses, about = 'peer' OR announced = time
             FROM finding JOIN incident ON incident.number = incident WHERE finding.id = ?1",
        )?
        .query_row([id], |row| Ok((row.get(0)?, StoredAs::read(row, 1)?)))
        .optional()
}

/// Marks findings that the journal has written.
pub(super) fn mark_reported(transaction: &Transaction<'_>, numbers: &[i64]) -> rusqlite::Result<()> {
    let mut delete = transaction.prepare_cached("DELETE FROM unreported WHERE number = ?1")?;
    numbers.iter().try_for_each(|number| delete.execute([number]).map(drop))
}

/// Number and hash of the newest finding, stored or removed.
pub(super) fn head(connection: &rusqlite::Connection) -> rusqlite::Result<(i64, Vec<u8>)> {
    let stored: Option<(i64, Vec<u8>)> = connection
        .prepare_cached("SELECT number, chain FROM finding ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let newest = stored.into_iter().chain(retention::newest_removed(connection)?).max_by_key(|(number, _)| *number);
    match newest {
        Some(newest) => Ok(newest),
        None => connection
            .prepare_cached("SELECT number, chain FROM chain_start")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?))),
    }
}

pub(super) fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// Converts a limit to SQLite's signed integer.
pub(super) fn limit(count: usize) -> i64 {
    signed(count as u64)
}
