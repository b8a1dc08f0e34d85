//! Peers by what they use: what each one offered, or was offered, which versions of TLS it negotiated, and how much mail
//! still goes to it, or comes from it, in cleartext. Made from the daily counts of [`offers`].

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr, str::FromStr};

use rusqlite::params;
use schemars::JsonSchema;
use serde::Serialize;
use smtpwatch_core::{
    Role, Timestamp,
    day::Day,
    offers::{Offers, Usage, Versions},
    policy::history::KnownName,
};

use super::{Store, StoreError, incidents::PAGE, offers};

/// Number of days that are counted, the current one included.
pub const DAYS: usize = 30;
/// Number of the newest days that the trend compares with the days before.
pub const RECENT: usize = 7;
/// Maximum number of names of one peer.
const NAMES: usize = 6;

smtpwatch_system::vocabulary! {
    /// The order of the list; the largest value comes first.
    pub enum PeerSort {
        /// By messages that were accepted in cleartext.
        Affected = "affected",
        /// By the newest session in cleartext.
        Last = "last",
        /// By sessions.
        Sessions = "sessions",
    }
}

/// Selects peers; every condition that is set must match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerQuery {
    /// The role of this host.
    pub role: Option<Role>,
    /// The server's port.
    pub port: Option<u16>,
    /// The order.
    pub sort: PeerSort,
    /// After this position of the list.
    pub after: Option<PeerCursor>,
    /// Maximum number of results, at most [`PAGE`]; zero means [`PAGE`].
    pub limit: usize,
    /// The newest day that is counted.
    pub today: Day,
}

/// A position in the list of peers. The order of positions is the order of the list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PeerCursor {
    value: Reverse<u64>,
    role: Role,
    peer: IpAddr,
    port: u16,
}

/// One page of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerPage {
    /// The peers, in the requested order.
    pub peers: Vec<PeerUse>,
    /// All peers that match, on all pages.
    pub total: PeerTotals,
    /// Where the next page begins; `None`: this is the last one.
    pub next: Option<PeerCursor>,
}

/// Sums over all peers that match.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
pub struct PeerTotals {
    /// Peers with a session in the last 30 days.
    pub peers: u64,
    /// Those of them with a message that was accepted in cleartext.
    pub affected_peers: u64,
    /// Messages that were accepted in cleartext: they would have waited if TLS had been required.
    pub affected_messages: u64,
}

/// What one peer used in the last 30 days (UTC), the current one included.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct PeerUse {
    /// The peer's address.
    #[schemars(with = "String")]
    pub peer: IpAddr,
    /// The names that the peer gave itself, the most recent first: claims, which anyone on the path can write.
    pub names: Vec<String>,
    /// Which end this host is.
    pub role: Role,
    /// The server's port.
    pub port: u16,
    /// All sessions.
    pub sessions: u64,
    /// Sessions in which STARTTLS was offered.
    pub offered: u64,
    /// Sessions in which it was not offered, or was refused.
    pub withheld: u64,
    /// Sessions in which TLS began.
    pub used: u64,
    /// Sessions that were not seen whole: nothing is said about them.
    pub unknown: u64,
    /// Sessions in which TLS began, by version.
    pub versions: Versions,
    /// Sessions with mail or credentials in cleartext.
    pub cleartext_sessions: u64,
    /// Messages that were accepted in cleartext: they would have waited if TLS had been required of this peer.
    pub cleartext_messages: u64,
    /// End of the newest session with mail or credentials in cleartext; null: there was none.
    pub last_cleartext: Option<Timestamp>,
    /// How the number of sessions in cleartext per day changes.
    pub trend: Trend,
    /// The last 7 days, the current one included.
    pub last_7_days: Period,
    /// The 23 days before them.
    pub before_23_days: Period,
    /// Messages that were accepted in cleartext, by day, the oldest first.
    pub cleartext_messages_by_day: [u64; DAYS],
}

/// Counts of several days.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
pub struct Period {
    /// All sessions.
    pub sessions: u64,
    /// Sessions with mail or credentials in cleartext.
    pub cleartext_sessions: u64,
    /// Messages that were accepted in cleartext.
    pub cleartext_messages: u64,
}

/// How the number of sessions in cleartext per day changes: the last 7 days beside the 23 before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Trend {
    /// None in 30 days.
    None,
    /// None before the last 7 days.
    Began,
    /// None in the last 7 days.
    Stopped,
    /// More by over a quarter.
    Rising,
    /// Fewer by over a quarter.
    Falling,
    /// Neither.
    Steady,
}

impl Trend {
    /// The name in JSON and CSV.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Began => "began",
            Self::Stopped => "stopped",
            Self::Rising => "rising",
            Self::Falling => "falling",
            Self::Steady => "steady",
        }
    }

    /// The trend from the sessions of the last 7 days and of the 23 days before.
    fn of(recent: u64, before: u64) -> Self {
        // Sessions per day, both multiplied by the product of the numbers of days.
        let recent_rate = recent.saturating_mul((DAYS - RECENT) as u64);
        let before_rate = before.saturating_mul(RECENT as u64);
        match (recent, before) {
            (0, 0) => Self::None,
            (_, 0) => Self::Began,
            (0, _) => Self::Stopped,
            _ if recent_rate.saturating_mul(4) > before_rate.saturating_mul(5) => Self::Rising,
            _ if recent_rate.saturating_mul(4) < before_rate.saturating_mul(3) => Self::Falling,
            _ => Self::Steady,
        }
    }
}

impl PeerUse {
    /// The columns of the CSV form.
    pub const COLUMNS: [&str; 21] = [
        "peer",
        "names",
        "role",
        "port",
        "sessions",
        "offered",
        "withheld",
        "used",
        "unknown",
        "tls_1_0",
        "tls_1_1",
        "tls_1_2",
        "tls_1_3",
        "tls_unknown",
        "cleartext_sessions",
        "cleartext_messages",
        "last_cleartext",
        "trend",
        "sessions_last_7_days",
        "cleartext_messages_last_7_days",
        "cleartext_messages_before_23_days",
    ];

    /// The values of [`Self::COLUMNS`].
    #[must_use]
    pub fn cells(&self) -> [String; 21] {
        let [v1_0, v1_1, v1_2, v1_3, tls_unknown] = self.versions.counts().map(|(_, count)| count.to_string());
        [
            self.peer.to_string(),
            self.names.join(" "),
            self.role.as_str().to_owned(),
            self.port.to_string(),
            self.sessions.to_string(),
            self.offered.to_string(),
            self.withheld.to_string(),
            self.used.to_string(),
            self.unknown.to_string(),
            v1_0,
            v1_1,
            v1_2,
            v1_3,
            tls_unknown,
            self.cleartext_sessions.to_string(),
            self.cleartext_messages.to_string(),
            self.last_cleartext.map(|at| at.to_string()).unwrap_or_default(),
            self.trend.as_str().to_owned(),
            self.last_7_days.sessions.to_string(),
            self.last_7_days.cleartext_messages.to_string(),
            self.before_23_days.cleartext_messages.to_string(),
        ]
    }
}

/// Hexadecimal digits of each part of a cursor: value, role, port, address.
const CURSOR_DIGITS: [usize; 4] = [16, 1, 4, 32];

/// 53 hexadecimal digits in lower case.
impl std::fmt::Display for PeerCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = match self.peer {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let role = u8::from(self.role == Role::Server);
        write!(f, "{:016x}{role:x}{:04x}{:032x}", self.value.0, self.port, address.to_bits())
    }
}

impl FromStr for PeerCursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected a cursor from an earlier response".to_owned();
        let digits = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != CURSOR_DIGITS.iter().sum::<usize>() || !text.bytes().all(digits) {
            return Err(wrong());
        }
        let mut rest = text;
        let mut part = |length| {
            let (part, after) = rest.split_at_checked(length)?;
            rest = after;
            u128::from_str_radix(part, 16).ok()
        };
        let [Some(value), Some(role), Some(port), Some(address)] = CURSOR_DIGITS.map(&mut part) else {
            return Err(wrong());
        };
        let role = match role {
            0 => Role::Client,
            1 => Role::Server,
            _ => return Err(wrong()),
        };
        let value = Reverse(u64::try_from(value).map_err(|_| wrong())?);
        let port = u16::try_from(port).map_err(|_| wrong())?;
        let peer = IpAddr::V6(std::net::Ipv6Addr::from_bits(address)).to_canonical();
        Ok(Self { value, role, peer, port })
    }
}

/// The counts of one peer and port.
#[derive(Clone, Default)]
struct Counts {
    offers: Offers,
    usage: Usage,
    recent: Period,
    before: Period,
    messages: [u64; DAYS],
}

impl Counts {
    /// Adds a row; `age` is the number of days before the newest one.
    fn add(&mut self, age: usize, offers: Offers, usage: Usage) {
        self.offers = self.offers.and(offers);
        self.usage = self.usage.and(usage);
        let period = if age < RECENT { &mut self.recent } else { &mut self.before };
        period.sessions = period.sessions.saturating_add(offers.sessions);
        period.cleartext_sessions = period.cleartext_sessions.saturating_add(usage.cleartext);
        period.cleartext_messages = period.cleartext_messages.saturating_add(usage.messages);
        if let Some(messages) = self.messages.iter_mut().nth_back(age) {
            *messages = messages.saturating_add(usage.messages);
        }
    }

    fn value(&self, sort: PeerSort) -> u64 {
        match sort {
            PeerSort::Affected => self.usage.messages,
            PeerSort::Last => u64::try_from(self.usage.last_cleartext.0).unwrap_or(0),
            PeerSort::Sessions => self.offers.sessions,
        }
    }

    fn named(&self, cursor: PeerCursor, names: Vec<String>) -> PeerUse {
        let Self { offers, usage, recent, before, messages } = self;
        PeerUse {
            peer: cursor.peer,
            names,
            role: cursor.role,
            port: cursor.port,
            sessions: offers.sessions,
            offered: offers.offered,
            withheld: offers.withheld,
            used: offers.tls,
            unknown: offers.unknown,
            versions: usage.versions,
            cleartext_sessions: usage.cleartext,
            cleartext_messages: usage.messages,
            last_cleartext: (usage.last_cleartext > Timestamp::default()).then_some(usage.last_cleartext),
            trend: Trend::of(recent.cleartext_sessions, before.cleartext_sessions),
            last_7_days: *recent,
            before_23_days: *before,
            cleartext_messages_by_day: *messages,
        }
    }
}

/// The best rows of a scan, at most one more than a page has.
struct Best<'a> {
    query: &'a PeerQuery,
    most: usize,
    rows: BTreeMap<PeerCursor, Counts>,
    total: PeerTotals,
}

impl Best<'_> {
    /// Takes all ports of one peer.
    fn take(&mut self, role: Role, peer: IpAddr, ports: &mut BTreeMap<u16, Counts>) {
        for (port, counts) in std::mem::take(ports) {
            self.total.peers += 1;
            self.total.affected_peers += u64::from(counts.usage.messages > 0);
            self.total.affected_messages = self.total.affected_messages.saturating_add(counts.usage.messages);
            let cursor = PeerCursor { value: Reverse(counts.value(self.query.sort)), role, peer, port };
            if self.query.after.is_none_or(|after| cursor > after) {
                self.rows.insert(cursor, counts);
                if self.rows.len() > self.most {
                    self.rows.pop_last();
                }
            }
        }
    }
}

impl Store {
    /// Peers with a session in the last [`DAYS`] days. Every count is read once, in the order of the table; at most one
    /// page is held in memory.
    ///
    /// # Errors
    ///
    /// SQLite failed.
    pub fn peers(&mut self, query: &PeerQuery) -> Result<PeerPage, StoreError> {
        let limit = if query.limit == 0 { PAGE } else { query.limit.min(PAGE) };
        let roles = Role::ALL.into_iter().filter(|role| query.role.is_none_or(|only| only == *role));
        let days = i64::try_from(DAYS).unwrap_or(i64::MAX);
        let (first, last) = (query.today.plus(1 - days).to_string(), query.today.to_string());
        self.sqlite(|connection| {
            let mut best =
                Best { query, most: limit.saturating_add(1), rows: BTreeMap::new(), total: PeerTotals::default() };
            {
                // The unary plus keeps SQLite from the index by day, which would have to be sorted by peer.
                let mut select = connection.prepare_cached(&format!(
                    "SELECT peer, port, day, sessions, offered, withheld, tls, unused, content, unknown, last_unused, {}
                     FROM offer WHERE role = ?1 AND +day BETWEEN ?2 AND ?3 AND (?4 IS NULL OR port = ?4) ORDER BY peer",
                    offers::USAGE
                ))?;
                for role in roles {
                    let mut rows = select.query(params![role.as_str(), first, last, query.port])?;
                    let mut current: Option<IpAddr> = None;
                    let mut ports: BTreeMap<u16, Counts> = BTreeMap::new();
                    while let Some(row) = rows.next()? {
                        // A row with an invalid value, for example after an edit by another program, is skipped.
                        let Ok(peer) = row.get_ref(0)?.as_str()?.parse::<IpAddr>() else { continue };
                        let Ok(day) = row.get_ref(2)?.as_str()?.parse::<Day>() else { continue };
                        let Ok(age) = usize::try_from(query.today.since(day)) else { continue };
                        if let Some(done) = current.filter(|known| *known != peer) {
                            best.take(role, done, &mut ports);
                        }
                        current = Some(peer);
                        let offers = offers::read(row, 3)?;
                        let usage = offers::read_usage(row, 11, offers.tls)?;
                        ports.entry(row.get(1)?).or_default().add(age, offers, usage);
                    }
                    if let Some(done) = current {
                        best.take(role, done, &mut ports);
                    }
                }
            }
            let Best { mut rows, total, .. } = best;
            let more = rows.len() > limit;
            if more {
                rows.pop_last();
            }
            let next = rows.keys().next_back().copied().filter(|_| more);
            let mut names = connection.prepare_cached(
                "SELECT names FROM baseline
                 WHERE role = ?1 AND peer_kind = 'address' AND peer = ?2 AND port = ?3 AND names IS NOT NULL",
            )?;
            let mut peers = Vec::with_capacity(rows.len());
            for (cursor, counts) in rows {
                let mut known: Vec<KnownName> = Vec::new();
                let of = params![cursor.role.as_str(), cursor.peer.to_string(), cursor.port];
                for text in names.query_map(of, |row| row.get::<_, String>(0))? {
                    known.extend(serde_json::from_str::<Vec<KnownName>>(&text?).unwrap_or_default());
                }
                known.sort_by_key(|name| Reverse(name.last_seen));
                let mut given: Vec<String> = Vec::new();
                for known in known {
                    if given.len() < NAMES && !given.contains(&known.name) {
                        given.push(known.name);
                    }
                }
                peers.push(counts.named(cursor, given));
            }
            Ok(PeerPage { peers, total, next })
        })
    }
}

#[cfg(test)]
mod tests;
