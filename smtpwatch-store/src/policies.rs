//! Known published policies, stored so that a restart does not lose a policy that was once found (RFC 8461 §10.2), and
//! so that other processes can print them. The writer thread stores what the look-ups of `smtpwatch-policy` find.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use smtpwatch_core::{
    Timestamp,
    policy::{
        known::{Kept, Known, KnownDomain, KnownHost, KnownList},
        memory::{self, FetchError, Memory},
        published::{Answer, DomainFacts, HostFacts, LookupRequest, MxSet, State, sts::StsPolicy, tlsa::Tlsa},
    },
};
use smtpwatch_system::clock::now;

use super::{Store, StoreError};

/// Maximum number of stored domains, and of stored mail hosts. The oldest are evicted first; domains whose policy
/// protects are evicted last.
pub const ROWS: i64 = 10_000;

pub(super) const CREATE: &str = "
    CREATE TABLE policy_domain (
        domain     TEXT PRIMARY KEY,
        at         INTEGER NOT NULL,                 -- when it was looked up; nanoseconds since the epoch
        mx         TEXT NOT NULL,                    -- JSON: its mail hosts, and how sure they are
        sts        TEXT NOT NULL,                    -- JSON: how its MTA-STS policy stands
        id         TEXT,                             -- the policy that was fetched last
        mode       TEXT,
        body       TEXT,
        fetched_at INTEGER,
        expires    INTEGER,
        failed_id  TEXT,                             -- the newest fetch, if it failed
        failed_at  INTEGER,
        failed_by  TEXT,
        error      TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX policy_domain_age ON policy_domain (at);
    CREATE TABLE policy_host (
        host      TEXT PRIMARY KEY,
        at        INTEGER NOT NULL,
        addresses TEXT NOT NULL,                     -- JSON
        dane      TEXT NOT NULL,                     -- JSON: its TLSA records, and how sure they are
        base      TEXT NOT NULL                      -- the name that they were found at
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX policy_host_age ON policy_host (at);
    CREATE TABLE policy_list (
        url        TEXT PRIMARY KEY,
        text       BLOB NOT NULL,
        fetched_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// The stored form of an answer, as JSON.
#[derive(Serialize, Deserialize)]
struct Saved<T> {
    state: String,
    #[serde(default = "none")]
    value: Option<T>,
    detail: String,
    at: i64,
    until: i64,
}

const fn none<T>() -> Option<T> {
    None
}

#[derive(Serialize, Deserialize)]
struct SavedMx {
    hosts: Vec<String>,
    secure: bool,
}

/// Changes that wait to be written; the newest of each subject.
#[derive(Default)]
pub(super) struct Pending {
    domains: HashMap<String, Option<KnownDomain>>,
    hosts: HashMap<String, Option<KnownHost>>,
    list: Option<KnownList>,
}

impl Pending {
    pub(super) fn add(&mut self, known: Known) {
        match known {
            Known::Domain(domain) => _ = self.domains.insert(domain.name.clone(), Some(domain)),
            Known::Host(host) => _ = self.hosts.insert(host.name.clone(), Some(host)),
            Known::List(list) => self.list = Some(list),
            Known::Forgotten(LookupRequest::Domain(name)) => _ = self.domains.insert(name, None),
            Known::Forgotten(LookupRequest::Host(name)) => _ = self.hosts.insert(name, None),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.domains.len() + self.hosts.len() + usize::from(self.list.is_some())
    }

    fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        for (name, domain) in &self.domains {
            match domain {
                Some(domain) => write_domain(transaction, domain)?,
                None => _ = transaction.execute("DELETE FROM policy_domain WHERE domain = ?1", [name])?,
            }
        }
        for (name, host) in &self.hosts {
            match host {
                Some(host) => write_host(transaction, host)?,
                None => _ = transaction.execute("DELETE FROM policy_host WHERE host = ?1", [name])?,
            }
        }
        if let Some(list) = &self.list {
            // Only one list is in use; the list of another URL is obsolete.
            transaction.execute("DELETE FROM policy_list", [])?;
            transaction.execute(
                "INSERT INTO policy_list VALUES (?1, ?2, ?3)",
                params![list.url, list.text, list.fetched_at.0],
            )?;
        }
        if !self.domains.is_empty() {
            // A policy that protects is evicted last (`Memory::protects`).
            let protects = format!("mode IS NOT NULL AND mode <> 'none' AND expires > {}", now().0);
            trim(transaction, "policy_domain", "domain", &format!("{protects}, at"))?;
        }
        if !self.hosts.is_empty() {
            trim(transaction, "policy_host", "host", "at")?;
        }
        Ok(())
    }
}

impl Store {
    /// Writes learnt policies; writing them twice has no further effect.
    pub(super) fn write_policies(&mut self, pending: &Pending) -> Result<(), StoreError> {
        if pending.rows() == 0 {
            return Ok(());
        }
        self.sqlite(|connection| {
            let transaction = connection.transaction()?;
            pending.write(&transaction)?;
            transaction.commit()
        })
    }

    /// All known domains and mail hosts, newest first.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn policies(&mut self) -> Result<Kept, StoreError> {
        self.sqlite(|connection| {
            let mut query = connection.prepare("SELECT * FROM policy_domain ORDER BY at DESC, domain")?;
            // A row that cannot be parsed, for example after an edit by another program, is skipped.
            let domains = query.query_map([], domain)?.filter_map(Result::transpose).collect::<Result<_, _>>()?;
            let mut query = connection.prepare("SELECT * FROM policy_host ORDER BY at DESC, host")?;
            let hosts = query.query_map([], host)?.filter_map(Result::transpose).collect::<Result<_, _>>()?;
            Ok(Kept { domains, hosts })
        })
    }

    /// The list last fetched from this URL.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn policy_list(&mut self, url: &str) -> Result<Option<KnownList>, StoreError> {
        let list = |row: &Row<'_>| {
            Ok(KnownList { url: url.to_owned(), text: row.get(0)?, fetched_at: Timestamp(row.get(1)?) })
        };
        self.sqlite(|connection| {
            connection.query_row("SELECT text, fetched_at FROM policy_list WHERE url = ?1", [url], list).optional()
        })
    }
}

fn write_domain(transaction: &Transaction<'_>, domain: &KnownDomain) -> rusqlite::Result<()> {
    let KnownDomain { name, facts, memory } = domain;
    let mx = saved(&facts.mx, |mx| SavedMx { hosts: mx.hosts.clone(), secure: mx.secure });
    // The policy itself is stored in columns of its own.
    let sts = saved(&facts.sts, |_| true);
    let (kept, failed) = (memory.kept.as_ref(), memory.failed.as_ref());
    let (by, error) = failed.map(|failed| failed_by(&failed.error)).unzip();
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO policy_domain VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            name,
            facts.mx.at.0,
            mx,
            sts,
            kept.map(|kept| &kept.policy.id),
            kept.map(|kept| kept.policy.mode.as_str()),
            kept.map(|kept| &kept.body),
            kept.map(|kept| kept.fetched_at.0),
            kept.map(|kept| kept.expires().0),
            failed.map(|failed| &failed.id),
            failed.map(|failed| failed.at.0),
            by,
            error
        ])?;
    Ok(())
}

fn write_host(transaction: &Transaction<'_>, host: &KnownHost) -> rusqlite::Result<()> {
    let KnownHost { name, facts } = host;
    let addresses = saved(&facts.addresses, Clone::clone);
    let dane = saved(&facts.dane, |tlsa| tlsa.iter().map(ToString::to_string).collect::<Vec<_>>());
    transaction.prepare_cached("INSERT OR REPLACE INTO policy_host VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        name,
        facts.addresses.at.0,
        addresses,
        dane,
        facts.base
    ])?;
    Ok(())
}

/// Deletes the rows beyond the bound, in this order.
fn trim(transaction: &Transaction<'_>, table: &str, key: &str, order: &str) -> rusqlite::Result<()> {
    let rows: i64 = transaction.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
    if rows > ROWS {
        let oldest =
            format!("DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} ORDER BY {order} LIMIT ?1)");
        transaction.execute(&oldest, [rows - ROWS])?;
    }
    Ok(())
}

fn saved<T, S: Serialize>(answer: &Answer<T>, value: impl FnOnce(&T) -> S) -> String {
    let saved = Saved {
        state: answer.state.as_str().to_owned(),
        value: answer.value.as_ref().map(value),
        detail: answer.detail.clone(),
        at: answer.at.0,
        until: answer.until.0,
    };
    // Serialising types with string keys to a string cannot fail.
    serde_json::to_string(&saved).unwrap_or_default()
}

fn restored<S: DeserializeOwned, T>(text: &str, value: impl FnOnce(S) -> Option<T>) -> Option<Answer<T>> {
    let saved: Saved<S> = serde_json::from_str(text).ok()?;
    let state = State::ALL.into_iter().find(|state| state.as_str() == saved.state)?;
    let value = saved.value.and_then(value);
    // A valid answer needs its policy. It can be missing after a change of the policy parser, or after an edit by
    // another program.
    if state == State::Valid && value.is_none() {
        return None;
    }
    let (at, until) = (Timestamp(saved.at), Timestamp(saved.until));
    Some(Answer { state, value, detail: saved.detail, at, until })
}

fn domain(row: &Row<'_>) -> rusqlite::Result<Option<KnownDomain>> {
    let text = |column: &str| row.get::<_, Option<String>>(column);
    let time = |column: &str| row.get::<_, Option<i64>>(column).map(|at| at.map(Timestamp));
    let kept = match (text("id")?, text("body")?, time("fetched_at")?) {
        (Some(id), Some(body), Some(fetched_at)) => {
            let policy = StsPolicy::parse(body.as_bytes(), &id).ok();
            policy.map(|policy| memory::Kept { policy, body, fetched_at })
        }
        _ => None,
    };
    let failed = match (text("failed_id")?, time("failed_at")?, text("failed_by")?, text("error")?) {
        (Some(id), Some(at), Some(by), Some(error)) => Some(memory::Failed { id, at, error: failed_as(&by, error) }),
        _ => None,
    };
    let name: String = row.get("domain")?;
    let mx = restored(row.get_ref("mx")?.as_str()?, |mx: SavedMx| Some(MxSet { hosts: mx.hosts, secure: mx.secure }));
    let policy = kept.as_ref().map(|kept| kept.policy.clone());
    let sts = restored(row.get_ref("sts")?.as_str()?, |held: bool| policy.filter(|_| held));
    let (Some(mx), Some(sts)) = (mx, sts) else { return Ok(None) };
    Ok(Some(KnownDomain { name, facts: Arc::new(DomainFacts { mx, sts }), memory: Memory { kept, failed } }))
}

fn host(row: &Row<'_>) -> rusqlite::Result<Option<KnownHost>> {
    let addresses = restored(row.get_ref("addresses")?.as_str()?, |addresses: Vec<IpAddr>| Some(addresses));
    let dane = restored(row.get_ref("dane")?.as_str()?, |records: Vec<String>| {
        records.iter().map(|record| record.parse::<Tlsa>().ok()).collect()
    });
    let (Some(addresses), Some(dane)) = (addresses, dane) else { return Ok(None) };
    let facts = Arc::new(HostFacts { addresses, dane, base: row.get("base")? });
    Ok(Some(KnownHost { name: row.get("host")?, facts }))
}

fn failed_by(error: &FetchError) -> (&'static str, &str) {
    match error {
        FetchError::Fetch(why) => ("fetch", why),
        FetchError::Invalid(why) => ("policy", why),
        FetchError::WebPki(why) => ("certificate", why),
    }
}

fn failed_as(by: &str, why: String) -> FetchError {
    match by {
        "policy" => FetchError::Invalid(why),
        "certificate" => FetchError::WebPki(why),
        _ => FetchError::Fetch(why),
    }
}
