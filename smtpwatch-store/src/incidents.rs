//! Reads incidents: lists, single items, and the verification of the hash chain. [`Store`] has the queries; the command
//! line (`smtpwatch incidents`) and the web server call them.

use std::{fmt::Write as _, net::IpAddr, str::FromStr};

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params, params_from_iter};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smtpwatch_config::Network;
use smtpwatch_core::{
    Finding, Role, Timestamp,
    cause::{About, Cause},
    day::Day,
    evidence::EvidenceBundle,
    finding::{Evidence, Kind, Outcome, Severity},
    hash::hex,
    offers::Offers,
    policy::history::normal_peer,
};

use super::{
    Store, StoreError,
    findings::{ORIGIN, head, limit, link, unsigned},
    offers,
    retention::{TOMBSTONE, Tombstone},
};

/// Maximum number of incidents or findings in one result.
pub const PAGE: usize = 1_000;
/// Maximum number of tombstones that the check of the chain lists.
const LISTED_MISSING: usize = 100;
/// Maximum number of identifiers that an error lists for an ambiguous prefix.
const CANDIDATES: usize = 5;
/// Minimum length of an identifier prefix.
const SHORTEST_ID: usize = 4;

/// Findings of one cause, as one case.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Incident {
    /// The identifier of its first finding (UUIDv7).
    pub id: String,
    /// What happened.
    pub kind: Kind,
    /// Which end this host is.
    pub role: Role,
    /// Whose doing it is: the peer's, or that of the path to it; this host's own; or clients that guess passwords.
    pub about: About,
    /// Identifier of the cause: the same for every incident of this kind about this address and port, on every host.
    pub cause: String,
    /// The peer's address; this host's own address if `about` is not `peer`.
    pub peer: String,
    /// The server's port.
    pub port: u16,
    /// The newest name that the peer gave; empty where it gave none.
    pub name: String,
    /// The worst.
    pub severity: Severity,
    /// The strongest.
    pub evidence: Evidence,
    /// The worst.
    pub outcome: Outcome,
    /// How many findings, those that retention has removed among them.
    pub findings: u64,
    /// How many of them are stored.
    pub kept: u64,
    /// Distinct addresses of the clients: 1 if it is about a peer; at most 1,000.
    pub addresses: u64,
    /// Findings of clients beyond those addresses.
    pub unlisted: u64,
    /// SASL mechanisms of the findings, the most frequent first; at most 16.
    pub mechanisms: Vec<Mechanism>,
    /// The first one.
    pub first_seen: Timestamp,
    /// The newest one.
    pub last_seen: Timestamp,
    /// Its place in the order of the list.
    #[serde(skip)]
    number: i64,
}

/// A SASL mechanism of an incident.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Mechanism {
    /// Its name.
    pub name: String,
    /// Findings that name it, those that retention has removed among them.
    pub findings: u64,
}

/// A stored finding.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredFinding {
    /// Its position in the chain, starting at 1.
    pub number: u64,
    /// The identifier of its incident.
    pub incident: String,
    /// The JSON document as it was written.
    pub document: String,
    /// The parsed document, with its evidence.
    pub finding: Finding,
    /// Its hash in the chain, in hexadecimal.
    pub chain: String,
}

/// How far the same thing reaches: of one server, of its network, or of many (docs/threats.md FO-13).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Reach {
    /// Peers with an incident of this kind and role at the same time, this one included; this host's own addresses, if it is
    /// not about a peer.
    pub peers: u64,
    /// Those of them in the same network (IPv4 /24, IPv6 /48).
    pub network: u64,
}

/// Selects incidents; every condition that is set must match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Last seen at this time or later.
    pub since: Option<Timestamp>,
    /// First seen before this time.
    pub until: Option<Timestamp>,
    /// One of these kinds; empty matches all.
    pub kinds: Vec<Kind>,
    /// This severity or a higher one.
    pub severity: Option<Severity>,
    /// Evidence of this strength or a greater one.
    pub evidence: Option<Evidence>,
    /// The role of this host.
    pub role: Option<Role>,
    /// The peer.
    pub peer: Option<PeerFilter>,
    /// The order of the list.
    pub sort: Sort,
    /// After this position of the list.
    pub after: Option<Cursor>,
    /// Maximum number of results, at most [`PAGE`]; zero means [`PAGE`].
    pub limit: usize,
}

/// The order of a list of incidents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sort {
    /// By the newest finding.
    #[default]
    Time,
    /// By severity, then by the newest finding.
    Worth,
}

impl Sort {
    /// Every order.
    pub const ALL: [Self; 2] = [Self::Time, Self::Worth];

    /// The name in queries.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Worth => "worth",
        }
    }
}

impl FromStr for Sort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|sort| sort.as_str() == text).ok_or_else(|| "expected time or worth".to_owned())
    }
}

/// A peer: an address, a network, or a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerFilter {
    /// An address or a network.
    Network(Network),
    /// A host name, or with the prefix `*.` every name below a domain.
    Name(String),
}

/// A position in a list of incidents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// Rank of the severity, in a list sorted by worth.
    severity: Option<i64>,
    last_seen: i64,
    number: i64,
}

/// What the check of the chain says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Verified {
    /// Findings that were checked.
    pub findings: u64,
    /// Findings that retention has removed.
    pub removed: u64,
    /// The same by reason.
    pub removed_for: RemovedFor,
    /// The same by severity.
    pub removed_severity: RemovedSeverity,
    /// Which ones, those with the highest severity first; at most 100 entries.
    pub missing: Vec<Missing>,
    /// Hash of the newest finding, in hexadecimal. A copy of it in another place shows later whether the end of the chain
    /// was removed.
    pub head: String,
    /// What is wrong; empty: nothing.
    pub broken: Vec<String>,
}

/// Removed findings by the bound that was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct RemovedFor {
    /// `max_age_days`.
    pub age: u64,
    /// `max_findings`.
    pub count: u64,
    /// `max_megabytes`.
    pub bytes: u64,
    /// The quota of their kind and peer.
    pub quota: u64,
    /// Not recorded: an earlier version of the store removed them, the oldest first.
    pub unknown: u64,
}

/// Removed findings by severity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct RemovedSeverity {
    /// `critical`.
    pub critical: u64,
    /// `high`.
    pub high: u64,
    /// `medium`.
    pub medium: u64,
    /// `low`.
    pub low: u64,
    /// `info`.
    pub info: u64,
    /// Not recorded: an earlier version of the store removed them.
    pub unknown: u64,
}

/// Removed findings of consecutive numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Missing {
    /// Number of the first one.
    pub first: u64,
    /// Number of the last one.
    pub last: u64,
    /// The earliest time of these findings.
    pub begins: Timestamp,
    /// The latest time.
    pub ends: Timestamp,
    /// Why they were removed.
    pub removed_for: RemovedFor,
    /// Their severities.
    pub severity: RemovedSeverity,
    /// The identifier, if it is one finding and was removed not long ago.
    pub id: Option<String>,
    /// The kind, likewise.
    pub kind: Option<String>,
    /// Hash of the last one in the chain, in hexadecimal.
    pub chain: String,
}

impl RemovedFor {
    fn add(&mut self, reasons: [i64; 4]) {
        let [age, count, bytes, quota] = reasons.map(unsigned);
        self.age += age;
        self.count += count;
        self.bytes += bytes;
        self.quota += quota;
    }
}

impl RemovedSeverity {
    fn add(&mut self, severities: [i64; 5]) {
        let [info, low, medium, high, critical] = severities.map(unsigned);
        self.info += info;
        self.low += low;
        self.medium += medium;
        self.high += high;
        self.critical += critical;
    }
}

impl From<Tombstone> for Missing {
    fn from(tombstone: Tombstone) -> Self {
        let mut missing = Self {
            first: unsigned(tombstone.first),
            last: unsigned(tombstone.last),
            begins: Timestamp(tombstone.begins),
            ends: Timestamp(tombstone.ends),
            removed_for: RemovedFor::default(),
            severity: RemovedSeverity::default(),
            id: tombstone.id,
            kind: tombstone.kind,
            chain: hex(&tombstone.chain),
        };
        missing.removed_for.add(tombstone.reasons);
        missing.severity.add(tombstone.severities);
        missing
    }
}

/// Why an incident or finding cannot be returned.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// No identifier has this prefix.
    #[error("{0}: no such incident or finding; see `smtpwatch incidents list`")]
    Unknown(String),
    /// Several identifiers have this prefix.
    #[error("{0} is ambiguous: {list}", list = .1.join(", "))]
    Ambiguous(String, Vec<String>),
    /// A document cannot be parsed.
    #[error("finding {id}: its document cannot be read: {source}")]
    Document {
        /// The identifier of the finding.
        id: String,
        /// The parse error.
        source: serde_json::Error,
    },
    /// SQLite failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FromStr for PeerFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '*');
        match text.parse() {
            Ok(network) => Ok(Self::Network(network)),
            Err(_) if !text.is_empty() && text.len() <= 255 && text.chars().all(name) => {
                Ok(Self::Name(text.trim_end_matches('.').to_lowercase()))
            }
            Err(_) => Err("expected an address, a network such as 192.0.2.0/24, or a name".to_owned()),
        }
    }
}

impl Incident {
    /// The position after this incident, where the next page of a list in this order begins.
    #[must_use]
    pub const fn cursor(&self, sort: Sort) -> Cursor {
        let severity = match sort {
            Sort::Time => None,
            Sort::Worth => Some(self.severity as i64),
        };
        Cursor { severity, last_seen: self.last_seen.0, number: self.number }
    }

    /// The number of distinct addresses, in words.
    #[must_use]
    pub fn address_count(&self) -> String {
        let at_least = if self.unlisted > 0 { "at least " } else { "" };
        format!("{at_least}{} {}", self.addresses, if self.addresses == 1 { "address" } else { "addresses" })
    }
}

impl Cursor {
    /// Whether this position is after the other one in their list.
    fn is_after(self, other: Self) -> bool {
        let key = |cursor: Self| (cursor.severity, cursor.last_seen, cursor.number);
        key(self) < key(other)
    }

    /// The same position in a list of this order. A position of a list by time has no severity: by worth, it counts as one of
    /// the highest severity.
    #[must_use]
    pub const fn in_order(self, sort: Sort) -> Self {
        let severity = match (sort, self.severity) {
            (Sort::Time, _) => None,
            (Sort::Worth, None) => Some(Severity::Critical as i64),
            (Sort::Worth, severity) => severity,
        };
        Self { severity, ..self }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.last_seen, self.number)?;
        self.severity.map_or(Ok(()), |severity| write!(f, "-{severity}"))
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
        let parts: Result<Vec<i64>, _> = digits.split('-').map(str::parse).collect();
        let (last_seen, number, severity) = match parts.as_deref() {
            Ok(&[at, number]) => (at, number, None),
            Ok(&[at, number, severity]) if (0..5).contains(&severity) => (at, number, Some(severity)),
            Ok(_) | Err(_) => return Err("expected a cursor from an earlier response".to_owned()),
        };
        Ok(Self { severity, last_seen: sign * last_seen, number })
    }
}

const COLUMNS: &str = "number, id, kind, role, peer, port, name, severity, evidence, outcome, findings, first_seen, last_seen, \
                       kept, about, addresses, unlisted, \
                       (SELECT json_group_array(json_object('name', mechanism, 'findings', findings)) FROM \
                       (SELECT mechanism, findings FROM incident_mechanism WHERE incident = incident.number \
                       ORDER BY findings DESC, mechanism))";

impl Store {
    /// Incidents, in the order that the filter demands.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn incidents(&mut self, filter: &Filter) -> Result<Vec<Incident>, StoreError> {
        let mut condition = String::from("1");
        let mut values: Vec<Box<dyn ToSql>> = Vec::new();
        let mut demand = |clause: &str, value: Box<dyn ToSql>| {
            values.push(value);
            // Writing to a String cannot fail.
            let _ = write!(condition, " AND {}", clause.replace('?', &format!("?{}", values.len())));
        };
        if let Some(since) = filter.since {
            demand("last_seen >= ?", Box::new(since.0));
        }
        if let Some(until) = filter.until {
            demand("first_seen < ?", Box::new(until.0));
        }
        if let Some(severity) = filter.severity {
            demand("severity >= ?", Box::new(severity as i64));
        }
        if let Some(evidence) = filter.evidence {
            demand("evidence >= ?", Box::new(evidence as i64));
        }
        if let Some(role) = filter.role {
            demand("role = ?", Box::new(role.as_str()));
        }
        if let Some(cursor) = filter.after {
            // A bound that the index can use; the exact position is compared below.
            match filter.sort {
                Sort::Time => demand("last_seen <= ?", Box::new(cursor.last_seen)),
                Sort::Worth => demand("severity <= ?", Box::new(cursor.severity.unwrap_or(i64::MAX))),
            }
        }
        if !filter.kinds.is_empty() {
            let kinds: Vec<_> = filter.kinds.iter().map(|kind| kind.as_str()).collect();
            demand("instr(?, ' ' || kind || ' ') > 0", Box::new(format!(" {} ", kinds.join(" "))));
        }
        let most = if filter.limit == 0 { PAGE } else { filter.limit.min(PAGE) };
        let order = match filter.sort {
            Sort::Time => "last_seen DESC, number DESC",
            Sort::Worth => "severity DESC, last_seen DESC, number DESC",
        };
        self.sqlite(|connection| {
            let mut query =
                connection.prepare(&format!("SELECT {COLUMNS} FROM incident WHERE {condition} ORDER BY {order}"))?;
            let mut rows = query.query(params_from_iter(values.iter()))?;
            let mut found = Vec::new();
            while found.len() < most
                && let Some(row) = rows.next()?
            {
                // A row with invalid values, for example after an edit by another program, is skipped.
                let Some(incident) = incident(row)? else { continue };
                let is_after = filter.after.is_none_or(|after| incident.cursor(filter.sort).is_after(after));
                if !is_after {
                    continue;
                }
                let is_wanted = match &filter.peer {
                    None => true,
                    Some(peer) => peer.is(&incident) || has_client(connection, peer, &incident)?,
                };
                if is_wanted {
                    found.push(incident);
                }
            }
            Ok(found)
        })
    }

    /// One incident, by its identifier, by the identifier of one of its findings, or by a prefix that only one of them
    /// has.
    ///
    /// # Errors
    ///
    /// No or several incidents match, or SQLite failed.
    pub fn incident(&mut self, id: &str) -> Result<Incident, LookupError> {
        let finding = self.find(id, INCIDENT_IDS)?;
        let found = self.sqlite(|connection| {
            connection
                .query_row(
                    &format!(
                        "SELECT {COLUMNS} FROM incident WHERE number = coalesce(
                            (SELECT incident FROM finding WHERE id = ?1),
                            (SELECT number FROM incident WHERE id = ?1),
                            (SELECT incident FROM tombstone WHERE id = ?1)
                         )"
                    ),
                    [&finding],
                    incident,
                )
                .optional()
        })?;
        found.flatten().ok_or_else(|| LookupError::Unknown(id.to_owned()))
    }

    /// The findings of an incident, newest first, starting before the one with number `before`.
    ///
    /// # Errors
    ///
    /// SQLite failed, or a document cannot be parsed.
    pub fn findings(
        &mut self,
        incident: &Incident,
        before: Option<u64>,
        most: usize,
    ) -> Result<Vec<StoredFinding>, LookupError> {
        let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
        let rows = self.sqlite(|connection| {
            let mut query = connection.prepare_cached(&format!(
                "{KEPT} WHERE finding.incident = ?1 AND finding.number < ?2 ORDER BY finding.number DESC LIMIT ?3"
            ))?;
            let rows = query.query_map(params![incident.number, before, limit(most.min(PAGE))], RawFinding::read)?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(RawFinding::parse).collect()
    }

    /// The first findings of an incident, oldest first: evidence is stored with these.
    ///
    /// # Errors
    ///
    /// SQLite failed, or a document cannot be parsed.
    pub fn first_findings(&mut self, incident: &Incident, most: usize) -> Result<Vec<StoredFinding>, LookupError> {
        let rows = self.sqlite(|connection| {
            let mut query = connection
                .prepare_cached(&format!("{KEPT} WHERE finding.incident = ?1 ORDER BY finding.number LIMIT ?2"))?;
            let rows = query.query_map(params![incident.number, limit(most.min(PAGE))], RawFinding::read)?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(RawFinding::parse).collect()
    }

    /// The most informative finding of an incident: with evidence if possible, then with the highest severity, then the
    /// oldest.
    ///
    /// # Errors
    ///
    /// SQLite failed, or its document cannot be parsed.
    pub fn best_finding(&mut self, incident: &Incident) -> Result<Option<StoredFinding>, LookupError> {
        let row = self.sqlite(|connection| {
            let query = format!(
                "{KEPT} WHERE finding.incident = ?1
                 ORDER BY finding.exhibit IS NULL, document ->> 'severity' <> ?2, finding.number LIMIT 1"
            );
            connection
                .query_row(&query, params![incident.number, incident.severity.as_str()], RawFinding::read)
                .optional()
        })?;
        row.map(RawFinding::parse).transpose()
    }

    /// One finding, by its identifier or by a prefix that no other finding has.
    ///
    /// # Errors
    ///
    /// No or several findings match, SQLite failed, or the document cannot be parsed.
    pub fn finding(&mut self, id: &str) -> Result<StoredFinding, LookupError> {
        let found = self.find(id, FINDING_IDS)?;
        let row = self.sqlite(|connection| {
            connection.query_row(&format!("{KEPT} WHERE finding.id = ?1"), [&found], RawFinding::read).optional()
        })?;
        row.map(RawFinding::parse).transpose()?.ok_or_else(|| LookupError::Unknown(id.to_owned()))
    }

    /// How many peers have the same kind of incident at the same time.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn reach(&mut self, of: &Incident) -> Result<Reach, StoreError> {
        let network = of.peer.parse::<IpAddr>().ok().map(Network::around);
        self.sqlite(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT DISTINCT peer FROM incident
                 WHERE kind = ?1 AND role = ?2 AND last_seen >= ?3 AND first_seen <= ?4 AND about = ?5",
            )?;
            let mut rows = query.query(params![
                of.kind.as_str(),
                of.role.as_str(),
                of.first_seen.0,
                of.last_seen.0,
                of.about.as_str()
            ])?;
            let mut reach = Reach { peers: 0, network: 0 };
            while let Some(row) = rows.next()? {
                reach.peers += 1;
                let peer = row.get_ref(0)?.as_str()?.parse::<IpAddr>();
                let near = peer.is_ok_and(|peer| network.as_ref().is_some_and(|network| network.contains(peer)));
                reach.network += u64::from(near);
            }
            Ok(reach)
        })
    }

    /// Offers of STARTTLS by day, oldest first. Role `client`: what the peer offered to this host; role `server`: what
    /// this host offered to the peer.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn offer_days(&mut self, role: Role, peer: &str, port: u16) -> Result<Vec<(Day, Offers)>, StoreError> {
        let peer = normal_peer(peer);
        self.sqlite(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT day, sum(sessions), sum(offered), sum(withheld), sum(tls), sum(unused), sum(content), sum(unknown),
                    max(last_unused)
                 FROM offer WHERE role = ?1 AND peer = ?2 AND port = ?3 GROUP BY day ORDER BY day",
            )?;
            let rows = query.query_map(params![role.as_str(), peer, port], |row| {
                let day = row.get_ref(0)?.as_str()?.parse::<Day>().ok();
                Ok(day.zip(Some(offers::read(row, 1)?)))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Number of stored findings and incidents, and the size of the file.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn counts(&mut self) -> Result<StoreCounts, StoreError> {
        self.sqlite(|connection| {
            let count = |table: &str| {
                connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).map(unsigned)
            };
            let pragma = |name| connection.pragma_query_value(None, name, |row| row.get(0)).map(unsigned);
            Ok(StoreCounts {
                findings: count("finding")?,
                incidents: count("incident")?,
                bytes: pragma("page_count")? * pragma("page_size")?,
            })
        })
    }

    /// Checks the hash of every finding, and its link to the previous finding. Findings that retention has removed are
    /// counted: their hash is in a tombstone, and the next finding continues it.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn verify(&mut self) -> Result<Verified, StoreError> {
        self.sqlite(|connection| {
            // One transaction reads a consistent snapshot while the daemon writes.
            let transaction = connection.transaction()?;
            let (before, start): (i64, Vec<u8>) =
                transaction
                    .query_row("SELECT number, chain FROM chain_start", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut walk = Walk { number: before, chain: start, verified: Verified::default() };
            walk.verified.removed = unsigned(before);
            walk.verified.removed_for.unknown = unsigned(before);
            walk.verified.removed_severity.unknown = unsigned(before);
            if before == 0 && walk.chain != ORIGIN {
                walk.verified.broken.push("the start of the chain was changed".to_owned());
            }
            {
                let mut findings =
                    transaction.prepare("SELECT number, id, document, exhibit, chain FROM finding ORDER BY number")?;
                let mut findings = findings.query([])?;
                let mut removed = transaction.prepare(&format!("SELECT {TOMBSTONE} FROM tombstone ORDER BY first"))?;
                let mut removed = removed.query_map([], Tombstone::read)?;
                let mut tombstone = removed.next().transpose()?;
                while !walk.is_hopeless() {
                    let finding = findings.next()?;
                    let number: Option<i64> = finding.map(|row| row.get(0)).transpose()?;
                    while let Some((next, is_intact)) =
                        tombstone.take_if(|(next, _)| number.is_none_or(|number| next.first <= number))
                    {
                        walk.skip(next, is_intact);
                        tombstone = removed.next().transpose()?;
                    }
                    let Some(row) = finding else { break };
                    walk.check(row)?;
                }
                if walk.is_hopeless() {
                    walk.verified.broken.push("and perhaps more".to_owned());
                }
                let mut worst = transaction.prepare(&format!(
                    "SELECT {TOMBSTONE} FROM tombstone
                     ORDER BY critical > 0 DESC, high > 0 DESC, medium > 0 DESC, low > 0 DESC, first DESC LIMIT ?1"
                ))?;
                for row in worst.query_map([limit(LISTED_MISSING)], Tombstone::read)? {
                    walk.verified.missing.push(row?.0.into());
                }
            }
            let Walk { number, mut verified, .. } = walk;
            let newest: Option<i64> = transaction
                .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'finding'", [], |row| row.get(0))
                .optional()?;
            if verified.broken.is_empty() && newest.is_some_and(|newest| newest > number) {
                verified.broken.push(format!("findings after number {number} were removed"));
            }
            let (_, head) = head(&transaction)?;
            verified.head = hex(&head);
            Ok(verified)
        })
    }

    /// Whether the chain contains a hash that was recorded earlier.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn has_chain(&mut self, hash: &[u8]) -> Result<bool, StoreError> {
        self.sqlite(|connection| {
            connection.query_row(
                "SELECT EXISTS (SELECT 1 FROM finding WHERE chain = ?1) OR EXISTS (SELECT 1 FROM chain_start WHERE chain = ?1)
                    OR EXISTS (SELECT 1 FROM tombstone WHERE chain = ?1)",
                [hash],
                |row| row.get(0),
            )
        })
    }

    /// The full identifier, by its prefix.
    fn find(&mut self, id: &str, query: &str) -> Result<String, LookupError> {
        let beginning = id.trim().to_ascii_lowercase();
        let may_be = beginning.len() >= SHORTEST_ID && beginning.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
        if !may_be {
            return Err(LookupError::Unknown(id.to_owned()));
        }
        let found: Vec<String> = self.sqlite(|connection| {
            let mut query = connection.prepare_cached(query)?;
            let rows = query.query_map(params![beginning, limit(CANDIDATES)], |row| row.get(0))?;
            rows.collect()
        })?;
        match &found[..] {
            [] => Err(LookupError::Unknown(id.to_owned())),
            [one] => Ok(one.clone()),
            [one, ..] if *one == beginning => Ok(beginning),
            _ => Err(LookupError::Ambiguous(id.to_owned(), found)),
        }
    }
}

/// The check of the chain, on its way from the first number to the last.
struct Walk {
    /// The number that was checked last, and its hash.
    number: i64,
    chain: Vec<u8>,
    verified: Verified,
}

impl Walk {
    /// Enough is wrong.
    const fn is_hopeless(&self) -> bool {
        self.verified.broken.len() >= CANDIDATES
    }

    /// Checks that a number follows the last one. `what` follows the number in the message.
    fn follows(&mut self, number: i64, what: &str) {
        let missing = number.saturating_sub(self.number).saturating_sub(1);
        if missing < 0 {
            self.verified.broken.push(format!("number {number}{what} is in the chain twice"));
        } else if missing > 0 {
            self.verified.broken.push(format!("{missing} findings are missing before number {number}{what}"));
        }
    }

    /// Takes over what removed findings have left.
    fn skip(&mut self, tombstone: Tombstone, is_intact: bool) {
        self.follows(tombstone.first, " (removed)");
        let Tombstone { first, last, severities, reasons, chain, .. } = tombstone;
        if !is_intact {
            self.verified.broken.push(format!("the record of the removed numbers {first} to {last} was changed"));
        }
        self.verified.removed =
            self.verified.removed.saturating_add(unsigned(last.saturating_sub(first).saturating_add(1)));
        self.verified.removed_for.add(reasons);
        self.verified.removed_severity.add(severities);
        (self.number, self.chain) = (last, chain);
    }

    /// Checks a stored finding.
    fn check(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let (number, id): (i64, String) = (row.get(0)?, row.get(1)?);
        let (document, exhibit): (String, Option<String>) = (row.get(2)?, row.get(3)?);
        let chain: Vec<u8> = row.get(4)?;
        self.follows(number, &format!(" ({id})"));
        if link(&self.chain, number, &document, exhibit.as_deref())[..] != chain {
            self.verified.broken.push(format!("number {number} ({id}) or the one before it was changed"));
        }
        self.verified.findings += 1;
        (self.number, self.chain) = (number, chain);
        Ok(())
    }
}

/// What a store holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
pub struct StoreCounts {
    /// Findings.
    pub findings: u64,
    /// Incidents.
    pub incidents: u64,
    /// Bytes of the whole file, other tables included.
    #[serde(rename = "octets")]
    pub bytes: u64,
}

impl PeerFilter {
    fn is(&self, incident: &Incident) -> bool {
        match self {
            Self::Network(network) => incident.peer.parse().is_ok_and(|address| network.contains(address)),
            Self::Name(name) => {
                let found = incident.name.trim_end_matches('.').to_lowercase();
                match name.strip_prefix("*.") {
                    Some(domain) => found.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
                    None => found == *name,
                }
            }
        }
    }
}

/// Whether a client of an incident that is not about a peer is in the network.
fn has_client(connection: &Connection, peer: &PeerFilter, incident: &Incident) -> rusqlite::Result<bool> {
    let network = match (incident.about, peer) {
        (About::ThisHost | About::Guessing, PeerFilter::Network(network)) => network,
        (About::Peer, _) | (_, PeerFilter::Name(_)) => return Ok(false),
    };
    let mut query = connection.prepare_cached("SELECT address FROM incident_client WHERE incident = ?1")?;
    let mut rows = query.query([incident.number])?;
    while let Some(row) = rows.next()? {
        if row.get_ref(0)?.as_str()?.parse().is_ok_and(|address| network.contains(address)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Parses a row of [`COLUMNS`]; `None` if a value is invalid.
fn incident(row: &Row<'_>) -> rusqlite::Result<Option<Incident>> {
    let text = |column| row.get_ref(column).and_then(|value| Ok(value.as_str()?));
    fn ranked<T: Copy>(all: &[T], rank: i64) -> Option<T> {
        usize::try_from(rank).ok().and_then(|rank| all.get(rank)).copied()
    }
    let role = Role::ALL.into_iter().find(|role| text(3).is_ok_and(|text| text == role.as_str()));
    let (Ok(kind), Some(role)) = (text(2)?.parse(), role) else { return Ok(None) };
    let (severity, evidence) = (ranked(Severity::ALL, row.get(7)?), ranked(Evidence::ALL, row.get(8)?));
    let (Some(severity), Some(evidence), Some(outcome)) = (severity, evidence, ranked(Outcome::ALL, row.get(9)?))
    else {
        return Ok(None);
    };
    let Ok(about) = text(14)?.parse() else { return Ok(None) };
    let (peer, port): (String, u16) = (row.get(4)?, row.get(5)?);
    let cause = peer.parse().ok().map(|address| Cause { kind, role, about, address, port }.id());
    Ok(Some(Incident {
        id: row.get(1)?,
        kind,
        role,
        about,
        cause: cause.unwrap_or_default(),
        peer,
        port,
        name: row.get(6)?,
        severity,
        evidence,
        outcome,
        findings: unsigned(row.get(10)?),
        first_seen: Timestamp(row.get(11)?),
        last_seen: Timestamp(row.get(12)?),
        kept: unsigned(row.get(13)?),
        addresses: unsigned(row.get(15)?),
        unlisted: unsigned(row.get(16)?),
        // SQLite has made it.
        mechanisms: serde_json::from_str(text(17)?).unwrap_or_default(),
        number: row.get(0)?,
    }))
}

/// Identifiers of findings that begin with a prefix.
const FINDING_IDS: &str = "SELECT id FROM finding WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT ?2";
/// Identifiers that lead to an incident: its own, and those of its findings. Retention may have removed these.
const INCIDENT_IDS: &str = "
    SELECT id FROM finding WHERE id >= ?1 AND id < ?1 || 'g'
    UNION SELECT id FROM incident WHERE id >= ?1 AND id < ?1 || 'g'
    UNION SELECT tombstone.id FROM tombstone JOIN incident ON incident.number = tombstone.incident
        WHERE tombstone.id >= ?1 AND tombstone.id < ?1 || 'g'
    ORDER BY id LIMIT ?2";

const KEPT: &str = "SELECT finding.number, finding.id, incident.id, document, exhibit, chain
                    FROM finding JOIN incident ON incident.number = finding.incident";

/// A row of [`KEPT`], not parsed.
struct RawFinding {
    number: i64,
    id: String,
    incident: String,
    document: String,
    exhibit: Option<String>,
    chain: Vec<u8>,
}

impl RawFinding {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            id: row.get(1)?,
            incident: row.get(2)?,
            document: row.get(3)?,
            exhibit: row.get(4)?,
            chain: row.get(5)?,
        })
    }

    fn parse(self) -> Result<StoredFinding, LookupError> {
        let wrong = |source| LookupError::Document { id: self.id.clone(), source };
        let mut finding: Finding = serde_json::from_str(&self.document).map_err(wrong)?;
        let exhibit = self.exhibit.as_deref().map(serde_json::from_str::<EvidenceBundle>);
        finding.exhibit = exhibit.transpose().map_err(wrong)?.map(Box::new);
        Ok(StoredFinding {
            number: unsigned(self.number),
            incident: self.incident,
            document: self.document,
            finding,
            chain: hex(&self.chain),
        })
    }
}
