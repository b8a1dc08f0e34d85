//! Offers of STARTTLS by day (UTC) and peer: what this host offered to clients, which is compared with TLS reports
//! about its own domains (docs/threats.md G9), and what servers offered to this host.

use std::{collections::HashMap, net::IpAddr};

use rusqlite::{Row, Transaction, params};
use smtpwatch_core::{
    Role, Timestamp,
    day::Day,
    engine::{SessionResult, SessionSummary},
    finding::StarttlsState,
    offers::{Offers, Usage, Versions},
};

use super::{Store, StoreError, signed};

/// Maximum number of rows per day and role, one for each peer, own address and port; sessions beyond it are dropped and
/// counted.
pub const OFFERS_PER_DAY: i64 = 50_000;
/// Days after which rows are removed.
pub const RETENTION_DAYS: i64 = 30;

pub(super) const CREATE: &str = "
    CREATE TABLE offer (                             -- what this host offered to clients
        day      TEXT NOT NULL,                      -- of UTC
        client   TEXT NOT NULL,                      -- its address
        own      TEXT NOT NULL,                      -- this host's address
        port     INTEGER NOT NULL,                   -- this host's port
        sessions INTEGER NOT NULL,
        offered  INTEGER NOT NULL,
        withheld INTEGER NOT NULL,
        tls      INTEGER NOT NULL,
        unused   INTEGER NOT NULL,
        content  INTEGER NOT NULL,
        unknown  INTEGER NOT NULL,
        last_unused INTEGER NOT NULL,                -- nanoseconds since the epoch
        PRIMARY KEY (day, client, own, port)
    ) STRICT, WITHOUT ROWID;
";
/// Schema step that puts both roles into one table.
pub(super) const BOTH_ROLES: &str = "
    ALTER TABLE offer RENAME TO offer_of_server;
    CREATE TABLE offer (
        role     TEXT NOT NULL,                      -- which end this host is
        day      TEXT NOT NULL,                      -- of UTC
        peer     TEXT NOT NULL,                      -- its address
        own      TEXT NOT NULL,                      -- this host's address
        port     INTEGER NOT NULL,                   -- of the server
        sessions INTEGER NOT NULL,
        offered  INTEGER NOT NULL,
        withheld INTEGER NOT NULL,
        tls      INTEGER NOT NULL,
        unused   INTEGER NOT NULL,
        content  INTEGER NOT NULL,
        unknown  INTEGER NOT NULL,
        last_unused INTEGER NOT NULL,                -- nanoseconds since the epoch
        PRIMARY KEY (role, peer, day, own, port)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX offer_day ON offer (day);
    INSERT INTO offer SELECT 'server', * FROM offer_of_server;
    DROP TABLE offer_of_server;
";

/// Schema step that adds what sessions used: cleartext, and versions of TLS. The counts of earlier days stay zero.
pub(super) const CLEARTEXT: &str = "
    ALTER TABLE offer ADD COLUMN cleartext INTEGER NOT NULL DEFAULT 0;       -- sessions with mail or credentials in cleartext
    ALTER TABLE offer ADD COLUMN messages INTEGER NOT NULL DEFAULT 0;        -- accepted in cleartext
    ALTER TABLE offer ADD COLUMN last_cleartext INTEGER NOT NULL DEFAULT 0;  -- nanoseconds since the epoch
    ALTER TABLE offer ADD COLUMN tls_1_0 INTEGER NOT NULL DEFAULT 0;         -- sessions by version; the others of tls: unknown
    ALTER TABLE offer ADD COLUMN tls_1_1 INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE offer ADD COLUMN tls_1_2 INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE offer ADD COLUMN tls_1_3 INTEGER NOT NULL DEFAULT 0;
";

/// What one session that ended at this time used. A session that was not seen whole says nothing, as in [`of_session`].
fn used_by(session: &SessionSummary, at: Timestamp) -> Usage {
    if session.gaps > 0 || session.result == SessionResult::Unknown {
        return Usage::default();
    }
    let mut usage = Usage { messages: u64::from(session.messages), ..Usage::default() };
    if session.result == SessionResult::Plaintext || session.messages > 0 {
        usage.cleartext = 1;
        usage.last_cleartext = at;
    }
    if let Some(version) = session.tls_version {
        usage.versions = Versions::one(version);
    }
    usage
}

/// The counts of one session that ended at this time.
fn of_session(session: &SessionSummary, at: Timestamp) -> Offers {
    let mut offers = Offers { sessions: 1, ..Offers::default() };
    if session.gaps > 0 || session.result == SessionResult::Unknown {
        offers.unknown = 1;
        return offers;
    }
    offers.tls = u64::from(session.result == SessionResult::Tls);
    match session.starttls {
        StarttlsState::Offered => offers.offered = 1,
        StarttlsState::Absent | StarttlsState::Masked | StarttlsState::Refused => offers.withheld = 1,
        // The client never sent EHLO: it received no offer and cannot report a missing one.
        StarttlsState::Unknown => {}
    }
    if offers.offered > offers.tls && !session.starttls_sent {
        offers.unused = 1;
        offers.content = u64::from(session.messages > 0);
        offers.last_unused = at;
    }
    offers
}

/// Reads the counts from the columns of a row, starting at column `first`, in the order of the table.
pub(super) fn read(row: &Row<'_>, first: usize) -> rusqlite::Result<Offers> {
    let count = |column| row.get::<_, i64>(first + column).map(|count| u64::try_from(count).unwrap_or(0));
    Ok(Offers {
        sessions: count(0)?,
        offered: count(1)?,
        withheld: count(2)?,
        tls: count(3)?,
        unused: count(4)?,
        content: count(5)?,
        unknown: count(6)?,
        last_unused: row.get(first + 7).map(Timestamp)?,
    })
}

/// The columns that [`read_usage`] reads.
pub(super) const USAGE: &str = "cleartext, messages, last_cleartext, tls_1_0, tls_1_1, tls_1_2, tls_1_3";

/// Reads what the sessions of a row used from [`USAGE`], starting at column `first`; `tls` are those in which TLS began.
pub(super) fn read_usage(row: &Row<'_>, first: usize, tls: u64) -> rusqlite::Result<Usage> {
    let count = |column| row.get::<_, i64>(first + column).map(|count| u64::try_from(count).unwrap_or(0));
    let (v1_0, v1_1, v1_2, v1_3) = (count(3)?, count(4)?, count(5)?, count(6)?);
    let known = [v1_0, v1_1, v1_2, v1_3].into_iter().fold(0, u64::saturating_add);
    Ok(Usage {
        cleartext: count(0)?,
        messages: count(1)?,
        last_cleartext: row.get(first + 2).map(Timestamp)?,
        versions: Versions { v1_0, v1_1, v1_2, v1_3, unknown: tls.saturating_sub(known) },
    })
}

/// Role of this host, day, peer, own address, and port of the server.
type Key = (Role, Day, IpAddr, IpAddr, u16);

/// Counts that wait to be written.
#[derive(Default)]
pub(super) struct Pending {
    rows: HashMap<Key, (Offers, Usage)>,
}

impl Pending {
    pub(super) fn add(&mut self, session: &SessionSummary, at: Timestamp) {
        let (client, server) = (session.flow.client.ip().to_canonical(), session.flow.server.ip().to_canonical());
        let (peer, own) = match session.role {
            Role::Client => (server, client),
            Role::Server => (client, server),
        };
        let key = (session.role, Day::of(at), peer, own, session.flow.server.port());
        let (offers, usage) = self.rows.entry(key).or_default();
        *offers = offers.and(of_session(session, at));
        *usage = usage.and(used_by(session, at));
    }

    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Writes the counts; returns how many sessions exceeded the bound.
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
        let mut update = transaction.prepare_cached(
            "UPDATE offer SET sessions = sessions + ?6, offered = offered + ?7, withheld = withheld + ?8,
                tls = tls + ?9, unused = unused + ?10, content = content + ?11, unknown = unknown + ?12,
                last_unused = max(last_unused, ?13), cleartext = cleartext + ?14, messages = messages + ?15,
                last_cleartext = max(last_cleartext, ?16), tls_1_0 = tls_1_0 + ?17, tls_1_1 = tls_1_1 + ?18,
                tls_1_2 = tls_1_2 + ?19, tls_1_3 = tls_1_3 + ?20
             WHERE role = ?1 AND day = ?2 AND peer = ?3 AND own = ?4 AND port = ?5",
        )?;
        let mut insert = transaction.prepare_cached(
            "INSERT INTO offer VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19,
                ?20)",
        )?;
        let mut count = transaction.prepare_cached("SELECT count(*) FROM offer WHERE day = ?1 AND role = ?2")?;
        // The rows are counted once per batch: a flood of new clients must not cost a scan of the table each.
        let mut taken: HashMap<(Role, Day), i64> = HashMap::new();
        let mut full = 0;
        for ((of, on, peer, own, port), (row, usage)) in &self.rows {
            let (role, day) = (of.as_str(), on.to_string());
            let (peer, own) = (peer.to_string(), own.to_string());
            let counts =
                [row.sessions, row.offered, row.withheld, row.tls, row.unused, row.content, row.unknown].map(signed);
            let [a, b, c, d, e, f, g] = counts;
            let versions = &usage.versions;
            let used = [usage.cleartext, usage.messages, versions.v1_0, versions.v1_1, versions.v1_2, versions.v1_3];
            let [h, i, k, l, m, n] = used.map(signed);
            let (unused, cleartext) = (row.last_unused.0, usage.last_cleartext.0);
            let values = params![role, day, peer, own, port, a, b, c, d, e, f, g, unused, h, i, cleartext, k, l, m, n];
            let known = update.execute(values)?;
            if known > 0 {
                continue;
            }
            let taken = match taken.get_mut(&(*of, *on)) {
                Some(taken) => taken,
                None => taken.entry((*of, *on)).or_insert(count.query_row([&*day, role], |row| row.get(0))?),
            };
            if *taken >= OFFERS_PER_DAY {
                full += row.sessions;
                continue;
            }
            insert.execute(values)?;
            *taken += 1;
        }
        if let Some(newest) = self.rows.keys().map(|(_, day, ..)| *day).max() {
            let before = newest.plus(-RETENTION_DAYS).to_string();
            transaction.prepare_cached("DELETE FROM offer WHERE day < ?1")?.execute([before])?;
        }
        Ok(full)
    }
}

impl Store {
    /// What this host offered to one client on a day, at a port, by own address.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn offers(&mut self, client: IpAddr, port: u16, day: Day) -> Result<Vec<(IpAddr, Offers)>, StoreError> {
        self.sqlite(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT own, sessions, offered, withheld, tls, unused, content, unknown, last_unused
                 FROM offer WHERE role = 'server' AND day = ?1 AND peer = ?2 AND port = ?3 ORDER BY own",
            )?;
            let client = client.to_canonical().to_string();
            let rows = query.query_map(params![day.to_string(), client, port], |row| {
                // A row with an invalid address, for example after an edit by another program, is skipped.
                let Ok(own) = row.get_ref(0)?.as_str()?.parse() else { return Ok(None) };
                Ok(Some((own, read(row, 1)?)))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use smtpwatch_core::{FlowKey, smtp::TlsVersion};

    use super::*;
    use crate::deliveries;

    const AT: Timestamp = Timestamp::from_secs(1_795_392_000);

    fn session(client: &str) -> SessionSummary {
        SessionSummary {
            flow: FlowKey {
                client: client.parse().expect("an end point"),
                server: "192.0.2.25:25".parse().expect("an end point"),
            },
            role: Role::Server,
            result: SessionResult::Plaintext,
            starttls: StarttlsState::Offered,
            starttls_sent: false,
            messages: 1,
            auth: Vec::new(),
            smtp: true,
            gaps: 0,
            certificate: None,
            exempted: Vec::new(),
            tls_version: None,
        }
    }

    #[test]
    fn sessions_are_distinguished() {
        let plain = session("198.51.100.7:40000");
        let unused = Offers { sessions: 1, offered: 1, unused: 1, content: 1, last_unused: AT, ..Offers::default() };
        assert_eq!(of_session(&plain, AT), unused);
        let tls = SessionSummary { result: SessionResult::Tls, starttls_sent: true, messages: 0, ..plain.clone() };
        assert_eq!(of_session(&tls, AT), Offers { sessions: 1, offered: 1, tls: 1, ..Offers::default() });
        let gone = SessionSummary { result: SessionResult::Rejected, messages: 0, ..plain.clone() };
        assert_eq!(of_session(&gone, AT), Offers { content: 0, ..unused });
        for starttls in [StarttlsState::Absent, StarttlsState::Masked, StarttlsState::Refused] {
            let withheld = SessionSummary { starttls, ..plain.clone() };
            assert_eq!(of_session(&withheld, AT), Offers { sessions: 1, withheld: 1, ..Offers::default() });
        }
        let asked = SessionSummary { starttls_sent: true, result: SessionResult::Rejected, ..plain.clone() };
        assert_eq!(of_session(&asked, AT), Offers { sessions: 1, offered: 1, ..Offers::default() });
        for unknown in [
            SessionSummary { gaps: 1, ..plain.clone() },
            SessionSummary { result: SessionResult::Unknown, ..plain.clone() },
        ] {
            assert_eq!(of_session(&unknown, AT), Offers { sessions: 1, unknown: 1, ..Offers::default() });
        }
    }

    #[test]
    fn cleartext_and_versions_are_distinguished() {
        let plain = session("198.51.100.7:40000");
        let cleartext = Usage { cleartext: 1, messages: 3, last_cleartext: AT, ..Usage::default() };
        assert_eq!(used_by(&SessionSummary { messages: 3, ..plain.clone() }, AT), cleartext);
        // Credentials alone.
        assert_eq!(used_by(&SessionSummary { messages: 0, ..plain.clone() }, AT), Usage { messages: 0, ..cleartext });
        let gone = SessionSummary { result: SessionResult::Rejected, messages: 0, ..plain.clone() };
        assert_eq!(used_by(&gone, AT), Usage::default());
        let tls = SessionSummary {
            result: SessionResult::Tls,
            messages: 0,
            tls_version: Some(TlsVersion::V1_2),
            ..plain.clone()
        };
        let encrypted = Usage { versions: Versions { v1_2: 1, ..Versions::default() }, ..Usage::default() };
        assert_eq!(used_by(&tls, AT), encrypted);
        // A message before STARTTLS.
        assert_eq!(used_by(&SessionSummary { messages: 3, ..tls }, AT), encrypted.and(cleartext));
        for unknown in [
            SessionSummary { gaps: 1, ..plain.clone() },
            SessionSummary { result: SessionResult::Unknown, ..plain.clone() },
        ] {
            assert_eq!(used_by(&unknown, AT), Usage::default());
        }
    }

    #[test]
    fn they_add_up_by_client_and_are_bounded() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(&directory.path().join("smtpwatch.db")).expect("a store");
        let none = deliveries::Pending::default();
        let day = Day::of(AT);
        for _ in 0..2 {
            let mut pending = Pending::default();
            pending.add(&session("198.51.100.7:40000"), AT);
            pending.add(&session("[::ffff:198.51.100.7]:40001"), AT);
            assert_eq!(store.write(&HashMap::new(), &[], &none, &pending, &[]).expect("written"), 0);
        }
        let client = "198.51.100.7".parse().expect("an address");
        let found = store.offers(client, 25, day).expect("read");
        let [(own, offers)] = &found[..] else { panic!("{found:?}") };
        assert_eq!((own.to_string().as_str(), offers.sessions, offers.unused), ("192.0.2.25", 4, 4));
        assert!(store.offers(client, 587, day).expect("read").is_empty());
        assert!(store.offers(client, 25, day.plus(1)).expect("read").is_empty());

        let mut pending = Pending::default();
        for n in 0..OFFERS_PER_DAY {
            let address = std::net::Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::try_from(n).expect("positive"));
            pending.add(&session(&format!("[{address}]:40000")), AT);
        }
        assert_eq!(
            store.write(&HashMap::new(), &[], &none, &pending, &[]).expect("written"),
            1,
            "one was there before"
        );
        let later = Timestamp::from_secs(AT.as_secs() + (RETENTION_DAYS + 1) * 86_400);
        let mut pending = Pending::default();
        pending.add(&session("198.51.100.8:40000"), later);
        store.write(&HashMap::new(), &[], &none, &pending, &[]).expect("written");
        assert!(store.offers(client, 25, day).expect("read").is_empty(), "old days go");
    }
}
