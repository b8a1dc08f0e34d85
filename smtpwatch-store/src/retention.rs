//! Retention: which finding is removed first, and what it leaves behind.
//!
//! The least worth goes first, so that nobody can displace evidence with noise. Worth is the severity, and within a
//! severity whether the finding has evidence. What an unknown client did in vain is noise and has the worth of `info`,
//! whatever its severity. Findings of one kind about one address are one *cause*: a quota limits what one cause holds. The
//! address is the peer's, or this host's own where that is what the findings are about ([`About`]): passwords that many
//! addresses guess share one quota.
//!
//! A removed finding leaves a tombstone with its number and its hash, so that the chain can still be verified and shows
//! what is missing. Old tombstones of consecutive numbers are merged into one, which keeps the hash of the last number and
//! totals. A hash in the chain covers the hash before it, so the last one is enough to continue.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};
use smtpwatch_config::Retention;
use smtpwatch_core::{
    Finding, Timestamp,
    cause::{About, Cause},
    finding::Severity,
};

use super::{
    Store, StoreError,
    findings::{Totals, unsigned},
    signed,
};

#[cfg(test)]
mod tests;

/// The quota of one cause is this part of `max_findings`.
pub const QUOTA_DIVISOR: u64 = 50;
/// The quota of one cause is at least this many findings.
pub const MINIMUM_QUOTA: u64 = 20;
/// Maximum number of findings removed in one transaction, so that the writer is not blocked. More than arrive in one
/// batch: a flood does not outrun retention.
const REMOVED_AT_ONCE: usize = 2_048;
/// Maximum number of tombstones merged in one transaction.
const MERGED_AT_ONCE: usize = 2 * REMOVED_AT_ONCE;

/// The worth of findings with evidence that only age, or a full store, removes.
const PROTECTED: [i64; 2] = [2 * Severity::High as i64 + 1, 2 * Severity::Critical as i64 + 1];
/// Their severities, in this order.
pub const PROTECTED_SEVERITIES: [Severity; 2] = [Severity::High, Severity::Critical];

/// Tables of schema 5, filled from a store of schema 4. The worth of a finding is a table of its own: a new column of
/// `finding` would rewrite every row with its evidence.
pub(super) const CREATE: &str = "
    ALTER TABLE incident ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;  -- how many of its findings are stored
    UPDATE incident SET kept = (SELECT count(*) FROM finding WHERE finding.incident = incident.number);
    ALTER TABLE incident ADD COLUMN about TEXT NOT NULL DEFAULT 'peer';  -- or this-host, or guessing: peer is then an own address
    ALTER TABLE incident ADD COLUMN addresses INTEGER NOT NULL DEFAULT 1;  -- distinct addresses of its clients
    ALTER TABLE incident ADD COLUMN unlisted INTEGER NOT NULL DEFAULT 0;  -- findings of clients beyond the bound
    ALTER TABLE incident ADD COLUMN announced INTEGER NOT NULL DEFAULT 0;  -- time of the finding that was announced last
    CREATE INDEX incident_worth ON incident (severity, last_seen, number);
    CREATE TABLE incident_client (                   -- of an incident that is not about a peer
        incident  INTEGER NOT NULL REFERENCES incident (number),
        address   TEXT NOT NULL,
        findings  INTEGER NOT NULL,
        PRIMARY KEY (incident, address)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE incident_mechanism (                -- SASL mechanisms of its findings
        incident  INTEGER NOT NULL REFERENCES incident (number),
        mechanism TEXT NOT NULL,
        findings  INTEGER NOT NULL,
        PRIMARY KEY (incident, mechanism)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE cause (                             -- findings of one kind about one address
        number    INTEGER PRIMARY KEY,
        kind      TEXT NOT NULL,
        peer      TEXT NOT NULL,
        plain     INTEGER NOT NULL,                  -- stored findings that its quota limits
        high      INTEGER NOT NULL,                  -- stored findings of severity high with evidence
        critical  INTEGER NOT NULL,                  -- the same, critical
        UNIQUE (kind, peer)
    ) STRICT;
    CREATE INDEX cause_plain ON cause (plain);
    CREATE INDEX cause_high ON cause (high);
    CREATE INDEX cause_critical ON cause (critical);
    CREATE TABLE worth (                             -- of each stored finding
        number    INTEGER PRIMARY KEY,               -- of the finding
        worth     INTEGER NOT NULL,                  -- the lowest is removed first
        severity  INTEGER NOT NULL,                  -- as a rank from 0
        cause     INTEGER NOT NULL REFERENCES cause (number)
    ) STRICT;
    INSERT INTO cause (kind, peer, plain, high, critical) SELECT DISTINCT kind, peer, 0, 0, 0 FROM incident;
    INSERT INTO worth (number, worth, severity, cause)
        WITH
        parsed AS (
            SELECT finding.number AS number, incident.severity AS worst, exhibit IS NOT NULL AS evidence,
                incident.kind AS kind, incident.peer AS peer, incident.role AS role,
                CASE WHEN json_valid(document) THEN document ->> '$.severity' END AS severity,
                CASE WHEN json_valid(document) THEN document ->> '$.observed.reply' END AS reply
            FROM finding JOIN incident ON incident.number = finding.incident
        ),
        ranked AS (
            SELECT *, CASE severity WHEN 'info' THEN 0 WHEN 'low' THEN 1 WHEN 'medium' THEN 2 WHEN 'high' THEN 3
                WHEN 'critical' THEN 4 ELSE worst END AS rank
            FROM parsed
        )
        SELECT ranked.number,
            2 * iif(ranked.kind = 'auth-plaintext' AND role = 'server' AND coalesce(reply, 0) >= 400, 0, rank) + evidence,
            rank, cause.number
        FROM ranked JOIN cause ON cause.kind = ranked.kind AND cause.peer = ranked.peer;
    CREATE INDEX worth_order ON worth (worth, number);
    CREATE INDEX worth_cause ON worth (cause, worth, number);
    UPDATE cause SET
        plain = (SELECT count(*) FROM worth WHERE worth.cause = cause.number AND worth NOT IN (7, 9)),
        high = (SELECT count(*) FROM worth WHERE worth.cause = cause.number AND worth = 7),
        critical = (SELECT count(*) FROM worth WHERE worth.cause = cause.number AND worth = 9);
    CREATE TABLE tombstone (                         -- what removed findings leave
        first     INTEGER PRIMARY KEY,               -- number of the first finding
        last      INTEGER NOT NULL,                  -- of the last; the same: of one finding
        chain     BLOB NOT NULL,                     -- hash of the last
        begins    INTEGER NOT NULL,                  -- earliest time of the findings
        ends      INTEGER NOT NULL,                  -- latest time
        info      INTEGER NOT NULL,                  -- how many findings of this severity
        low       INTEGER NOT NULL,
        medium    INTEGER NOT NULL,
        high      INTEGER NOT NULL,
        critical  INTEGER NOT NULL,
        by_age    INTEGER NOT NULL,                  -- how many were removed for this reason
        by_count  INTEGER NOT NULL,
        by_bytes  INTEGER NOT NULL,
        by_quota  INTEGER NOT NULL,
        removal   INTEGER,                           -- order of removal; none: merged, or ready to be merged
        id        TEXT,                              -- of the finding; none in a merged one
        kind      TEXT,                              -- likewise
        incident  INTEGER,                           -- likewise; it may be gone
        seal      BLOB NOT NULL                      -- SHA-256 of the columns above
    ) STRICT;
    CREATE UNIQUE INDEX tombstone_removal ON tombstone (removal) WHERE removal IS NOT NULL;
    CREATE INDEX tombstone_id ON tombstone (id) WHERE id IS NOT NULL;
";

/// Why retention removes a finding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// It is older than `max_age_days`.
    Age,
    /// The store has more than `max_findings`.
    Count,
    /// Documents and evidence take more than `max_megabytes`.
    Bytes,
    /// Its cause has more findings than the quota.
    Quota,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Age, Self::Count, Self::Bytes, Self::Quota];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Quota => "quota",
        }
    }
}

/// How many findings retention has removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removals {
    /// One total for each of [`Reason::ALL`], in that order.
    pub reasons: [u64; Reason::ALL.len()],
    /// Findings with evidence that were removed before their age demands it, one total for each of
    /// [`PROTECTED_SEVERITIES`]: the store was full of such findings.
    pub evidence: [u64; PROTECTED_SEVERITIES.len()],
}

impl Removals {
    /// How many findings.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.reasons.iter().sum()
    }

    /// Adds these totals.
    pub(super) fn add(&mut self, other: &Self) {
        self.reasons.iter_mut().zip(other.reasons).for_each(|(total, more)| *total += more);
        self.evidence.iter_mut().zip(other.evidence).for_each(|(total, more)| *total += more);
    }
}

/// Maximum number of findings of one cause. Findings of high and critical severity with evidence do not
/// count.
pub(super) fn quota(retention: &Retention) -> u64 {
    (retention.findings / QUOTA_DIVISOR).max(MINIMUM_QUOTA)
}

/// A rank: the finding with the lowest is removed first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Worth(pub i64);

impl Worth {
    pub(super) fn of(finding: &Finding, with_evidence: bool) -> Self {
        let severity = if is_noise(finding) { Severity::Info } else { finding.severity };
        Self(2 * severity as i64 + i64::from(with_evidence))
    }

    /// The position in [`PROTECTED_SEVERITIES`]; `None` if the quota applies.
    pub(super) fn protected(self) -> Option<usize> {
        PROTECTED.iter().position(|worth| *worth == self.0)
    }

    /// One finding, in the column of `cause` that counts this worth: plain, high, critical.
    pub(super) fn as_counts(self) -> [i64; 3] {
        let at = |which| i64::from(self.protected() == which);
        [at(None), at(Some(0)), at(Some(1))]
    }
}

/// Whether a finding is about an attempt of an unknown client that failed: every mail server on the Internet gets
/// thousands of guesses. What this host does itself is never noise.
fn is_noise(finding: &Finding) -> bool {
    match Cause::of(finding).map_or(About::Peer, |cause| cause.about) {
        About::Guessing => true,
        About::ThisHost => false,
        // Above `low`, this host's own server has accepted what a rule forbids.
        About::Peer => finding.is_by_stranger() && finding.severity <= Severity::Low,
    }
}

/// What one removed finding leaves, or several of consecutive numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tombstone {
    pub first: i64,
    pub last: i64,
    pub chain: Vec<u8>,
    pub begins: i64,
    pub ends: i64,
    /// By severity, from the lowest.
    pub severities: [i64; 5],
    /// By reason, in the order of [`Reason::ALL`].
    pub reasons: [i64; 4],
    removal: Option<i64>,
    pub id: Option<String>,
    pub kind: Option<String>,
    incident: Option<i64>,
}

pub(super) const TOMBSTONE: &str = "first, last, chain, begins, ends, info, low, medium, high, critical, by_age, by_count, \
                                    by_bytes, by_quota, removal, id, kind, incident, seal";

impl Tombstone {
    /// Reads the columns of [`TOMBSTONE`]. The flag says whether the seal is intact.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<(Self, bool)> {
        let tombstone = Self {
            first: row.get(0)?,
            last: row.get(1)?,
            chain: row.get(2)?,
            begins: row.get(3)?,
            ends: row.get(4)?,
            severities: [row.get(5)?, row.get(6)?, row.get(7)?, row.get(8)?, row.get(9)?],
            reasons: [row.get(10)?, row.get(11)?, row.get(12)?, row.get(13)?],
            removal: row.get(14)?,
            id: row.get(15)?,
            kind: row.get(16)?,
            incident: row.get(17)?,
        };
        let seal: Vec<u8> = row.get(18)?;
        let findings = tombstone.findings();
        let adds_up =
            tombstone.severities.iter().sum::<i64>() == findings && tombstone.reasons.iter().sum::<i64>() == findings;
        let is_intact = adds_up && seal == tombstone.seal();
        Ok((tombstone, is_intact))
    }

    /// How many findings it stands for.
    pub(super) const fn findings(&self) -> i64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    fn seal(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let numbers = [self.first, self.last, self.begins, self.ends];
        let options = [self.removal, self.incident].map(|number| number.unwrap_or(-1));
        for number in numbers.iter().chain(&self.severities).chain(&self.reasons).chain(&options) {
            hash.update(number.to_be_bytes());
        }
        for text in [&self.id, &self.kind] {
            hash.update(Sha256::digest(text.as_deref().unwrap_or_default()));
        }
        hash.update(&self.chain);
        hash.finalize().into()
    }

    fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let [info, low, medium, high, critical] = self.severities;
        let [by_age, by_count, by_bytes, by_quota] = self.reasons;
        transaction
            .prepare_cached(
                "INSERT INTO tombstone VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
            )?
            .execute(params![
                self.first,
                self.last,
                self.chain,
                self.begins,
                self.ends,
                info,
                low,
                medium,
                high,
                critical,
                by_age,
                by_count,
                by_bytes,
                by_quota,
                self.removal,
                self.id,
                self.kind,
                self.incident,
                self.seal()
            ])
            .map(drop)
    }

    /// Extends this one by another, which follows it.
    fn join(self, next: Self) -> Self {
        let mut severities = self.severities;
        severities.iter_mut().zip(next.severities).for_each(|(total, more)| *total += more);
        let mut reasons = self.reasons;
        reasons.iter_mut().zip(next.reasons).for_each(|(total, more)| *total += more);
        Self {
            first: self.first,
            last: next.last,
            chain: next.chain,
            begins: self.begins.min(next.begins),
            ends: self.ends.max(next.ends),
            severities,
            reasons,
            removal: None,
            id: None,
            kind: None,
            incident: None,
        }
    }
}

impl Store {
    /// Whether a bound is exceeded that [`Self::expire`] enforces; the age is checked there.
    pub(super) fn is_over(&self, retention: &Retention) -> bool {
        self.totals.findings > retention.findings
            || self.totals.bytes > retention.bytes
            || self.totals.most_of_a_cause > quota(retention)
    }

    /// Removes findings beyond the retention limits, the least worth first, at most [`REMOVED_AT_ONCE`] per call.
    pub(super) fn expire(&mut self, retention: &Retention, now: Timestamp) -> Result<Removals, StoreError> {
        let mut totals = self.totals;
        let (totals, removals) = self.sqlite(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut removals = Removals::default();
            let bounds = Bounds::new(retention, now);
            for _ in 0..REMOVED_AT_ONCE {
                let Some((number, reason)) = bounds.next(&transaction, &totals)? else {
                    totals.most_of_a_cause = 0;
                    break;
                };
                remove(&transaction, number, reason, &mut totals, &mut removals)?;
            }
            merge_oldest(&transaction, signed(retention.findings))?;
            transaction.commit()?;
            Ok((totals, removals))
        })?;
        self.totals = totals;
        Ok(removals)
    }

    /// Counts the stored findings and their size.
    pub(super) fn count_held(&mut self) -> Result<(), StoreError> {
        self.totals = self.sqlite(|connection| {
            connection.query_row(
                "SELECT count(*), coalesce(sum(octet_length(document) + coalesce(octet_length(exhibit), 0)), 0),
                    (SELECT coalesce(max(plain), 0) FROM cause)
                 FROM finding",
                [],
                |row| {
                    Ok(Totals {
                        findings: unsigned(row.get(0)?),
                        bytes: unsigned(row.get(1)?),
                        most_of_a_cause: unsigned(row.get(2)?),
                    })
                },
            )
        })?;
        Ok(())
    }
}

/// The limits of one call.
struct Bounds {
    findings: u64,
    bytes: u64,
    quota: i64,
    /// Findings stored before this time are too old.
    since: i64,
}

impl Bounds {
    fn new(retention: &Retention, now: Timestamp) -> Self {
        let age = i64::from(retention.age_days).saturating_mul(86_400_000_000_000);
        Self {
            findings: retention.findings,
            bytes: retention.bytes,
            quota: signed(quota(retention)),
            since: now.0.saturating_sub(age),
        }
    }

    /// The finding to remove next. Each query reads one row of an index.
    fn next(&self, transaction: &Transaction<'_>, totals: &Totals) -> rusqlite::Result<Option<(i64, Reason)>> {
        let oldest = one(
            transaction,
            "SELECT number FROM (SELECT number, kept FROM finding ORDER BY number LIMIT 1) WHERE kept < ?1",
            [self.since],
        )?;
        if let Some(number) = oldest {
            return Ok(Some((number, Reason::Age)));
        }
        while let Some(cause) = self.fullest(transaction, "plain")? {
            match least_of(transaction, cause)? {
                Some(number) => return Ok(Some((number, Reason::Quota))),
                // Another program has edited the store.
                None => transaction.execute("UPDATE cause SET plain = 0 WHERE number = ?1", [cause])?,
            };
        }
        let reason = if totals.findings > self.findings {
            Reason::Count
        } else if totals.bytes > self.bytes {
            Reason::Bytes
        } else {
            return Ok(None);
        };
        let least: Option<(i64, i64)> = transaction
            .prepare_cached("SELECT worth, number FROM worth ORDER BY worth, number LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((worth, oldest)) = least else { return Ok(None) };
        // Only these are not subject to the quota while there is room.
        let column = match Worth(worth).protected() {
            Some(0) => "high",
            Some(_) => "critical",
            None => return Ok(Some((oldest, reason))),
        };
        let of_fullest = match self.fullest(transaction, column)? {
            Some(cause) => one(
                transaction,
                "SELECT number FROM worth WHERE cause = ?1 AND worth = ?2 ORDER BY number LIMIT 1",
                [cause, worth],
            )?,
            None => None,
        };
        Ok(Some((of_fullest.unwrap_or(oldest), reason)))
    }

    /// The cause that has the most findings beyond the quota.
    fn fullest(&self, transaction: &Transaction<'_>, column: &str) -> rusqlite::Result<Option<i64>> {
        let query = format!("SELECT number FROM cause WHERE {column} > ?1 ORDER BY {column} DESC LIMIT 1");
        one(transaction, &query, [self.quota])
    }
}

/// The least worth finding of a cause among those that the quota limits, the oldest first.
fn least_of(transaction: &Transaction<'_>, cause: i64) -> rusqlite::Result<Option<i64>> {
    // Two ranges, because the worth between them is protected.
    let [high, critical] = PROTECTED;
    let below = one(
        transaction,
        "SELECT number FROM worth WHERE cause = ?1 AND worth < ?2 ORDER BY worth, number LIMIT 1",
        [cause, high],
    )?;
    if below.is_some() {
        return Ok(below);
    }
    one(
        transaction,
        "SELECT number FROM worth WHERE cause = ?1 AND worth > ?2 AND worth < ?3 ORDER BY worth, number LIMIT 1",
        [cause, high, critical],
    )
}

fn one(transaction: &Transaction<'_>, query: &str, values: impl rusqlite::Params) -> rusqlite::Result<Option<i64>> {
    transaction.prepare_cached(query)?.query_row(values, |row| row.get(0)).optional()
}

/// Removes a finding and leaves a tombstone.
fn remove(
    transaction: &Transaction<'_>,
    number: i64,
    reason: Reason,
    totals: &mut Totals,
    removals: &mut Removals,
) -> rusqlite::Result<()> {
    let worth: Option<(i64, i64, i64)> = transaction
        .prepare_cached("DELETE FROM worth WHERE number = ?1 RETURNING worth, severity, cause")?
        .query_row([number], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    if let Some((worth, _, cause)) = worth {
        let [plain, high, critical] = Worth(worth).as_counts();
        transaction
            .prepare_cached(
                "UPDATE cause SET plain = plain - ?2, high = high - ?3, critical = critical - ?4 WHERE number = ?1",
            )?
            .execute([cause, plain, high, critical])?;
        transaction
            .prepare_cached("DELETE FROM cause WHERE number = ?1 AND plain <= 0 AND high <= 0 AND critical <= 0")?
            .execute([cause])?;
    }
    let gone: Option<(Tombstone, u64)> = transaction
        .prepare_cached(
            "SELECT finding.chain, finding.time, finding.id, incident.kind, finding.incident,
                octet_length(document) + coalesce(octet_length(exhibit), 0),
                coalesce(incident.severity, 0)
             FROM finding LEFT JOIN incident ON incident.number = finding.incident WHERE finding.number = ?1",
        )?
        .query_row([number], |row| {
            let time = row.get(1)?;
            // Another program may have deleted the row of its worth.
            let severity = worth.map_or(row.get::<_, i64>(6)?, |(_, severity, _)| severity).clamp(0, 4);
            let tombstone = Tombstone {
                first: number,
                last: number,
                chain: row.get(0)?,
                begins: time,
                ends: time,
                severities: [0, 1, 2, 3, 4].map(|rank| i64::from(rank == severity)),
                reasons: Reason::ALL.map(|one| i64::from(one == reason)),
                removal: None,
                id: row.get(2)?,
                kind: row.get(3)?,
                incident: row.get(4)?,
            };
            Ok((tombstone, unsigned(row.get(5)?)))
        })
        .optional()?;
    // Another program has deleted it: no tombstone hides that.
    let Some((mut tombstone, bytes)) = gone else { return Ok(()) };
    tombstone.removal = Some(one(transaction, NEWEST_REMOVAL, [])?.unwrap_or(0).saturating_add(1));
    tombstone.write(transaction)?;
    for statement in ["DELETE FROM finding WHERE number = ?1", "DELETE FROM unreported WHERE number = ?1"] {
        transaction.prepare_cached(statement)?.execute([number])?;
    }
    for statement in [
        "UPDATE incident SET kept = kept - 1 WHERE number = ?1",
        "DELETE FROM incident_client WHERE incident = (SELECT number FROM incident WHERE number = ?1 AND kept <= 0)",
        "DELETE FROM incident_mechanism WHERE incident = (SELECT number FROM incident WHERE number = ?1 AND kept <= 0)",
        "DELETE FROM incident WHERE number = ?1 AND kept <= 0",
    ] {
        transaction.prepare_cached(statement)?.execute([tombstone.incident])?;
    }
    totals.findings = totals.findings.saturating_sub(1);
    totals.bytes = totals.bytes.saturating_sub(bytes);
    let protected = worth.and_then(|(worth, ..)| Worth(worth).protected());
    removals.count(reason, protected);
    Ok(())
}

impl Removals {
    fn count(&mut self, reason: Reason, protected: Option<usize>) {
        for (total, one) in self.reasons.iter_mut().zip(Reason::ALL) {
            *total += u64::from(one == reason);
        }
        let is_early = reason != Reason::Age;
        for (at, total) in self.evidence.iter_mut().enumerate() {
            *total += u64::from(is_early && protected == Some(at));
        }
    }
}

const NEWEST_REMOVAL: &str = "SELECT removal FROM tombstone WHERE removal IS NOT NULL ORDER BY removal DESC LIMIT 1";
const OLDEST_REMOVAL: &str = "SELECT removal FROM tombstone WHERE removal IS NOT NULL ORDER BY removal LIMIT 1";

/// Merges the tombstones of the oldest removals, so that at most `most` are left that describe one finding. Numbers of
/// removals are consecutive, because only the oldest is ever merged.
fn merge_oldest(transaction: &Transaction<'_>, most: i64) -> rusqlite::Result<()> {
    let Some(newest) = one(transaction, NEWEST_REMOVAL, [])? else { return Ok(()) };
    for _ in 0..MERGED_AT_ONCE {
        let Some(oldest) = one(transaction, OLDEST_REMOVAL, [])? else { return Ok(()) };
        if newest.saturating_sub(oldest) < most {
            return Ok(());
        }
        merge(transaction, oldest)?;
    }
    Ok(())
}

/// Drops the details of one tombstone, and joins it with its neighbours that have none either.
fn merge(transaction: &Transaction<'_>, removal: i64) -> rusqlite::Result<()> {
    let Some(single) = take(transaction, "removal = ?1", removal)? else { return Ok(()) };
    let mut merged = Tombstone { removal: None, id: None, kind: None, incident: None, ..single };
    let before = one(
        transaction,
        "SELECT first FROM (SELECT first, last, removal FROM tombstone WHERE first < ?1 ORDER BY first DESC LIMIT 1)
         WHERE last = ?1 - 1 AND removal IS NULL",
        [merged.first],
    )?;
    if let Some(before) = before
        && let Some(before) = take(transaction, "first = ?1", before)?
    {
        merged = before.join(merged);
    }
    if let Some(next) = take(transaction, "first = ?1 AND removal IS NULL", merged.last.saturating_add(1))? {
        merged = merged.join(next);
    }
    merged.write(transaction)
}

/// Deletes a tombstone and returns it. One with a broken seal stays as it is, and is never merged.
fn take(transaction: &Transaction<'_>, which: &str, value: i64) -> rusqlite::Result<Option<Tombstone>> {
    let found = transaction
        .prepare_cached(&format!("SELECT {TOMBSTONE} FROM tombstone WHERE {which}"))?
        .query_row([value], Tombstone::read)
        .optional()?;
    let Some((tombstone, is_intact)) = found else { return Ok(None) };
    if !is_intact {
        if tombstone.removal.is_some() {
            transaction.execute("UPDATE tombstone SET removal = NULL WHERE first = ?1", [tombstone.first])?;
        }
        return Ok(None);
    }
    transaction.prepare_cached("DELETE FROM tombstone WHERE first = ?1")?.execute([tombstone.first])?;
    Ok(Some(tombstone))
}

/// Number and hash of the newest finding that was removed since schema 5.
pub(super) fn newest_removed(connection: &Connection) -> rusqlite::Result<Option<(i64, Vec<u8>)>> {
    connection
        .prepare_cached("SELECT last, chain FROM tombstone ORDER BY first DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}
