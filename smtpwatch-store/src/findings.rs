//! Stored findings: the original documents, grouped into incidents, and chained by hash. `retention.rs` removes them.
//!
//! An incident is a group of findings of one kind about one peer and port, each within the window of the next. The
//! chain reveals later edits: the hash of a finding covers its document, its evidence, and the hash of the previous
//! finding. A removed finding leaves its hash, so that the chain continues.

use std::{net::SocketAddr, time::Duration};

use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};
use smtpwatch_core::{Finding, Role, Timestamp};

use super::{
    Store, StoreError,
    retention::{self, Worth},
    signed,
};

/// Maximum number of findings of one incident that are stored with their evidence; the first ones are chosen. A finding
/// that repeats for days must not evict the evidence of other incidents. The document of every finding is stored, with
/// its transcript and indicators.
pub const EXHIBITS_PER_INCIDENT: i64 = 32;
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

/// The peer's address and the server's port; `None` if the finding's endpoints cannot be parsed.
pub(super) fn peer_of(finding: &Finding) -> Option<(String, u16)> {
    let client: SocketAddr = finding.flow.client.parse().ok()?;
    let server: SocketAddr = finding.flow.server.parse().ok()?;
    let peer = match finding.role {
        Role::Client => server,
        Role::Server => client,
    };
    Some((peer.ip().to_canonical().to_string(), server.port()))
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
                "SELECT finding.number, document, incident.id, findings
                 FROM unreported JOIN finding USING (number) JOIN incident ON incident.number = finding.incident
                 WHERE unreported.number > ?1 AND unreported.number <= ?2 ORDER BY unreported.number LIMIT ?3",
            )?;
            let rows = query.query_map(params![after, end, limit(most)], |row| {
                Ok(Unreported {
                    number: row.get(0)?,
                    finding: serde_json::from_str(row.get_ref(1)?.as_str()?).ok(),
                    stored: StoredAs { incident: row.get(2)?, findings: unsigned(row.get(3)?) },
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
    let (peer, port) = peer_of(finding).unwrap_or_default();
    let (kind, role, time) = (finding.kind.as_str(), finding.role.as_str(), finding.time.0);
    let window = i64::try_from(window.as_nanos()).unwrap_or(i64::MAX);
    let ranks = [finding.severity as i64, finding.evidence as i64, finding.outcome as i64];
    let [severity, evidence, outcome] = ranks;
    let open: Option<(i64, String, i64, i64)> = transaction
        .prepare_cached(
            "SELECT number, id, findings, exhibits FROM incident
             WHERE peer = ?1 AND last_seen >= ?2 AND first_seen <= ?3 AND kind = ?4 AND role = ?5 AND port = ?6
             ORDER BY last_seen DESC LIMIT 1",
        )?
        .query_row(params![peer, time.saturating_sub(window), time.saturating_add(window), kind, role, port], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let has_room = open.as_ref().is_none_or(|(.., exhibits)| *exhibits < EXHIBITS_PER_INCIDENT);
    let exhibit = finding.exhibit.as_ref().filter(|_| has_room);
    let exhibit = exhibit.map(|exhibit| serde_json::to_string(exhibit).unwrap_or_default());
    let with = i64::from(exhibit.is_some());
    let (incident, stored) = match open {
        Some((number, id, findings, _)) => {
            transaction
                .prepare_cached(
                    "UPDATE incident SET findings = findings + 1, kept = kept + 1, exhibits = exhibits + ?2, severity = max(severity, ?3),
                        evidence = max(evidence, ?4), outcome = max(outcome, ?5), first_seen = min(first_seen, ?6),
                        last_seen = max(last_seen, ?6), name = iif(?7 = '', name, ?7)
                     WHERE number = ?1",
                )?
                .execute(params![number, with, severity, evidence, outcome, time, finding.peer.name])?;
            (number, StoredAs { incident: id, findings: unsigned(findings) + 1 })
        }
        None => {
            transaction
                .prepare_cached(
                    "INSERT INTO incident (id, kind, role, peer, port, name, severity, evidence, outcome, findings, kept,
                        exhibits, first_seen, last_seen)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1, 1, ?10, ?11, ?11)",
                )?
                .execute(params![
                    finding.id,
                    kind,
                    role,
                    peer,
                    port,
                    finding.peer.name,
                    severity,
                    evidence,
                    outcome,
                    with,
                    time
                ])?;
            (transaction.last_insert_rowid(), StoredAs { incident: finding.id.clone(), findings: 1 })
        }
    };
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
        .query_row(params![kind, peer, plain, high, critical], |row| Ok((row.get(0)?, row.get(1)?)))?;
    transaction
        .prepare_cached("INSERT INTO worth (number, worth, severity, cause) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![number, worth.0, severity, cause])?;
    totals.most_of_a_cause = totals.most_of_a_cause.max(unsigned(of_cause));
    totals.findings += 1;
    totals.bytes += (document.len() + exhibit.map_or(0, |exhibit| exhibit.len())) as u64;
    Ok((number, stored))
}

/// The number of a finding that is already stored, and how it is stored.
fn on_record(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<Option<(i64, StoredAs)>> {
    transaction
        .prepare_cached(
            "SELECT finding.number, incident.id, findings FROM finding JOIN incident ON incident.number = incident
             WHERE finding.id = ?1",
        )?
        .query_row([id], |row| Ok((row.get(0)?, StoredAs { incident: row.get(1)?, findings: unsigned(row.get(2)?) })))
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
