//! The policy of one subject (domain, mail host or address), by source, for people and programs. [`Knowledge`] collects
//! the inputs and builds a [`Report`], which `smtpwatch policy` prints.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use serde::Serialize;
use smtpwatch_core::{
    Role, Timestamp,
    policy::{
        effective::{Effective, Mode, Source, Statement, effective},
        history::{HistoryKey, HistoryRecord, Strength, is_peer},
        known::KnownDomain,
        published::{Answer, DomainFacts, HostFacts, State, list::StarttlsList, sts::StsMode},
        rule::{Rule, StarttlsRule},
    },
};

use super::text::printable;

/// The port of SMTP between servers, to which published policies apply.
const SMTP: u16 = 25;

/// The inputs of a report.
pub struct Knowledge<'a> {
    /// Local rules, in order.
    pub rules: &'a [Rule],
    /// The STARTTLS-Everywhere list, or the reason why there is none.
    pub list: Result<&'a StarttlsList, String>,
    /// The history of peers.
    pub history: &'a [(HistoryKey, HistoryRecord)],
    /// When the history counts as strong enough.
    pub strength: Strength,
    /// The time of the report.
    pub now: Timestamp,
}

/// A mail host, and its look-up results if there are any.
pub type Host = (String, Option<HostFacts>);

/// The output of `policy check` and `policy show`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The domain, mail host or address.
    pub subject: String,
    /// The statement of each source.
    pub sources: Vec<Statement>,
    /// The resulting policy.
    pub effective: Effective,
    /// Whether DNSSEC could be validated: `on`, `off`, or the reason why not; absent if nothing was looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnssec: Option<String>,
    /// How the mail hosts are known; absent for a mail host or an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mx: Option<Mx>,
    /// Known domains with this mail host; empty for a domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// The mail hosts, each with its sources.
    pub hosts: Vec<HostReport>,
}

/// The state of a domain's MX look-up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Mx {
    /// The state of the look-up.
    pub state: State,
    /// Whether DNSSEC validates it.
    pub secure: bool,
    /// A description.
    pub detail: String,
}

/// One mail host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct HostReport {
    /// Its name.
    pub host: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The name at which its TLSA records are (RFC 7672 §2.2.2).
    pub tlsa_base: String,
    /// TLSA records in zone-file form.
    pub tlsa: Vec<String>,
    /// Whether the MTA-STS policy of the domain allows it; absent without such a policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mta_sts_allows: Option<bool>,
    /// The statement of each source.
    pub sources: Vec<Statement>,
    /// The resulting policy.
    pub effective: Effective,
}

impl Knowledge<'_> {
    /// The report on a recipient domain and its mail hosts, the most preferred first.
    #[must_use]
    pub fn domain(&self, domain: &str, facts: Option<&DomainFacts>, hosts: &[Host]) -> Report {
        let sts = match facts {
            Some(facts) => self.sts(facts),
            None => unknown(Source::MtaSts, "it was not looked up yet"),
        };
        let list = self.list(domain);
        let reports: Vec<HostReport> = hosts
            .iter()
            .map(|host| {
                let mut report = self.host(host);
                if let Some(policy) = facts.and_then(|facts| facts.sts.valid())
                    && policy.mode != StsMode::None
                {
                    report.mta_sts_allows = Some(policy.matches(&report.host));
                }
                let of_host = |source: Source| report.sources.iter().filter(move |found| found.source == source);
                let (rule, dane) = (of_host(Source::Rule), of_host(Source::Dane));
                let of_domain = [sts.clone(), list.clone()];
                report.sources = rule.chain(dane).chain(&of_domain).chain(of_host(Source::History)).cloned().collect();
                report.effective = effective(&report.sources);
                report
            })
            .collect();
        let secure = facts.and_then(|facts| facts.mx.valid()).is_some_and(|mx| mx.secure);
        let reached = reached(hosts, &reports);
        let mut dane = dane_of_all(facts, &reached, secure);
        let away = reports.len() - reached.len();
        if away > 0 {
            dane.detail += &format!("; {away} of {} mail hosts cannot be reached", reports.len());
        }
        let sources = vec![of_all(Source::Rule, &reached), dane, sts, list, of_all(Source::History, &reached)];
        let mx = facts.map(|facts| Mx { state: facts.mx.state, secure, detail: facts.mx.detail.clone() });
        Report {
            subject: domain.to_owned(),
            effective: effective(&sources),
            sources,
            dnssec: None,
            mx,
            domains: Vec::new(),
            hosts: reports,
        }
    }

    /// The report on a single mail host.
    #[must_use]
    pub fn host(&self, (host, facts): &Host) -> HostReport {
        let addresses = facts.as_ref().and_then(|facts| facts.addresses.valid()).cloned().unwrap_or_default();
        let dane = facts.as_ref().map_or_else(
            || unknown(Source::Dane, "it was not looked up yet"),
            |facts| self.statement(Source::Dane, &facts.dane, Mode::Enforce),
        );
        let sources = vec![self.rule(&addresses, Some(host)), dane, self.seen(&addresses, Some(host))];
        let tlsa = facts.iter().flat_map(|facts| facts.dane.value.iter().flatten()).map(ToString::to_string).collect();
        HostReport {
            host: host.clone(),
            addresses,
            tlsa_base: facts.as_ref().map_or_else(|| host.clone(), |facts| facts.base.clone()),
            tlsa,
            mta_sts_allows: None,
            effective: effective(&sources),
            sources,
        }
    }

    /// The report on a mail host and the domains that use it.
    #[must_use]
    pub fn mail_host(&self, host: &Host, domains: &[KnownDomain]) -> Report {
        let HostReport { host: subject, sources, .. } = self.host(host);
        let mut report = self.of_domains(subject, sources, domains);
        report.hosts = vec![self.host(host)];
        report
    }

    /// The report on an address, the mail hosts with that address, and the domains that use them.
    #[must_use]
    pub fn address(&self, address: IpAddr, hosts: &[Host], domains: &[KnownDomain]) -> Report {
        let reports: Vec<HostReport> = hosts.iter().map(|host| self.host(host)).collect();
        let rule = self.rule(&[address], hosts.first().map(|(name, _)| name.as_str()));
        let sources =
            vec![rule, of_all(Source::Dane, &reports.iter().collect::<Vec<_>>()), self.seen(&[address], None)];
        let mut report = self.of_domains(address.to_string(), sources, domains);
        report.hosts = reports;
        report
    }

    /// Adds the statements of the domains' policies. The mildest is used: without a known recipient, only what all of
    /// them require can be required.
    fn of_domains(&self, subject: String, own: Vec<Statement>, domains: &[KnownDomain]) -> Report {
        let mildest = |source: Source, says: &dyn Fn(&KnownDomain) -> Statement| {
            let rank = |found: &Statement| (found.mode == Mode::Enforce, found.mode == Mode::Testing);
            let found = domains.iter().map(|domain| (domain, says(domain))).min_by_key(|(_, found)| rank(found));
            match found {
                Some((domain, found)) => Statement { detail: format!("{}: {}", domain.name, found.detail), ..found },
                None => unknown(source, "no known domain receives its mail there"),
            }
        };
        let sts = mildest(Source::MtaSts, &|domain| self.sts(&domain.facts));
        let list = mildest(Source::List, &|domain| self.list(&domain.name));
        let of = |source: Source| own.iter().filter(move |found| found.source == source).cloned();
        let mut sources: Vec<Statement> = of(Source::Rule).chain(of(Source::Dane)).collect();
        sources.extend([sts, list]);
        sources.extend(of(Source::History));
        let domains = domains.iter().map(|domain| domain.name.clone()).collect();
        let effective = effective(&sources);
        Report { subject, sources, effective, dnssec: None, mx: None, domains, hosts: Vec::new() }
    }

    fn statement<T>(&self, source: Source, answer: &Answer<T>, mode: Mode) -> Statement {
        let (state, detail) = if answer.state == State::Valid && answer.until <= self.now {
            (State::Expired, format!("{}; it was valid until {}", answer.detail, answer.until))
        } else {
            (answer.state, answer.detail.clone())
        };
        let mode = if state == State::Valid { mode } else { Mode::None };
        Statement { source, state, mode, detail, age_seconds: self.now.since(answer.at).as_secs() }
    }

    fn sts(&self, facts: &DomainFacts) -> Statement {
        let mode = match facts.sts.value.as_ref().map(|policy| policy.mode) {
            Some(StsMode::Enforce) => Mode::Enforce,
            Some(StsMode::Testing) => Mode::Testing,
            Some(StsMode::None) | None => Mode::None,
        };
        let mut statement = self.statement(Source::MtaSts, &facts.sts, mode);
        if let Some(policy) = facts.sts.valid() {
            statement.detail = format!("mx {}; {}", policy.mx.join(", "), statement.detail);
        }
        statement
    }

    fn list(&self, domain: &str) -> Statement {
        let list = match &self.list {
            Ok(list) => list,
            Err(why) => return unknown(Source::List, why),
        };
        let Some(policy) = list.get(domain) else { return unknown(Source::List, "the list does not name it") };
        let expired = list.is_expired(self.now);
        let detail = match expired {
            true => format!("names {}; the list expired {}", policy.mxs.join(", "), list.expires.date()),
            false => format!("names {}", policy.mxs.join(", ")),
        };
        let (state, mode) = match (expired, policy.enforce) {
            (true, _) => (State::Expired, Mode::None),
            (false, true) => (State::Valid, Mode::Enforce),
            (false, false) => (State::Valid, Mode::Testing),
        };
        let age_seconds = self.now.since(list.timestamp).as_secs();
        Statement { source: Source::List, state, mode, detail, age_seconds }
    }

    /// The first local rule that applies to deliveries to this peer.
    fn rule(&self, addresses: &[IpAddr], name: Option<&str>) -> Statement {
        // A rule without a peer matches any address; the unspecified address stands for an unknown one.
        let unknown_address = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        let addresses = if addresses.is_empty() { &unknown_address } else { addresses };
        let names: Vec<&str> = name.into_iter().collect();
        let speaks = |rule: &Rule| {
            rule.is_in_force(self.now) && addresses.iter().any(|at| rule.matches(*at, SMTP, Role::Client, &names))
        };
        let Some((place, rule)) = (1..).zip(self.rules).find(|(_, rule)| speaks(rule)) else {
            return unknown(Source::Rule, "no local rule speaks for it");
        };
        let (mode, demand) = match rule.starttls {
            Some(StarttlsRule::Required) => (Mode::Enforce, "required"),
            Some(StarttlsRule::Expected) => (Mode::Testing, "expected"),
            Some(StarttlsRule::Ignore) => (Mode::None, "ignore"),
            None => return unknown(Source::Rule, &format!("rule {place} matches it and has no starttls")),
        };
        let detail = format!("rule {place}: starttls = \"{demand}\"");
        Statement { source: Source::Rule, state: State::Valid, mode, detail, age_seconds: 0 }
    }

    /// The statement of this host's history about a server.
    fn seen(&self, addresses: &[IpAddr], name: Option<&str>) -> Statement {
        let peers: Vec<String> = addresses.iter().map(ToString::to_string).chain(name.map(ToOwned::to_owned)).collect();
        let rows = self.history.iter().filter(|(key, _)| key.role == Role::Client && key.port == SMTP);
        let rows = rows.filter(|(key, _)| peers.iter().any(|peer| is_peer(key, peer)));
        let Some((_, record)) =
            rows.max_by_key(|(_, record)| (record.offered.is_strong(self.strength), record.sessions))
        else {
            return unknown(Source::History, "it was not seen yet");
        };
        let strong = record.offered.is_strong(self.strength);
        let state = if strong { State::Valid } else { State::Absent };
        let weak = if strong { "" } else { ": too little to go by" };
        let (offered, sessions) = (record.offered.yes, record.sessions);
        let detail = format!("offered in {offered} of {sessions} sessions since {}{weak}", record.first_seen.date());
        let age_seconds = self.now.since(record.last_seen).as_secs();
        Statement { source: Source::History, state, mode: Mode::None, detail, age_seconds }
    }
}

/// The mail hosts that a sender can use. A host without an address, or with an address or TLSA look-up that failed or
/// is bogus, gets no mail (RFC 7672 §2.2), so its statements do not count. If none can be used, all are returned.
fn reached<'a>(hosts: &[Host], reports: &'a [HostReport]) -> Vec<&'a HostReport> {
    let away = |state: State| matches!(state, State::Absent | State::Error | State::Bogus);
    let is_away =
        |facts: &HostFacts| away(facts.addresses.state) || matches!(facts.dane.state, State::Error | State::Bogus);
    let reached: Vec<&HostReport> = hosts
        .iter()
        .zip(reports)
        .filter(|((_, facts), _)| !facts.as_ref().is_some_and(is_away))
        .map(|(_, report)| report)
        .collect();
    if reached.is_empty() { reports.iter().collect() } else { reached }
}

/// The common statement of all mail hosts of a domain about one source.
fn of_all(source: Source, hosts: &[&HostReport]) -> Statement {
    let found: Vec<&Statement> =
        hosts.iter().flat_map(|host| host.sources.iter()).filter(|found| found.source == source).collect();
    let Some(first) = found.first() else { return unknown(source, "no mail host is known") };
    if found.iter().all(|other| (other.state, other.mode) == (first.state, first.mode)) {
        return (*first).clone();
    }
    // If they differ, the worst one counts, because a sender may use any host.
    let worst = found.iter().max_by_key(|statement| statement.state).copied().unwrap_or(first);
    let valid = found.iter().filter(|statement| statement.state == State::Valid).count();
    let detail = format!("{valid} of {} mail hosts; {}", found.len(), worst.detail);
    let (state, mode) =
        if worst.state == State::Valid { (State::Absent, Mode::None) } else { (worst.state, worst.mode) };
    Statement { state, mode, detail, ..worst.clone() }
}

/// DANE binds a domain if it binds all of its hosts.
fn dane_of_all(facts: Option<&DomainFacts>, hosts: &[&HostReport], secure: bool) -> Statement {
    let mut statement = of_all(Source::Dane, hosts);
    match facts.map(|facts| &facts.mx) {
        Some(mx) if hosts.is_empty() => {
            statement.detail.clone_from(&mx.detail);
            // A domain that accepts no mail or does not exist has no TLSA records.
            statement.state = if mx.state == State::Valid { State::Absent } else { mx.state };
        }
        Some(_) if !secure && statement.state == State::Valid => {
            // TLS is required for each host anyway (RFC 7672 §2.2.1).
            statement.detail += "; the MX records are not proved by DNSSEC: it binds the hosts, not the domain";
        }
        _ => {}
    }
    statement
}

fn unknown(source: Source, why: &str) -> Statement {
    Statement { source, state: State::Absent, mode: Mode::None, detail: why.to_owned(), age_seconds: 0 }
}

impl Report {
    /// The report as text for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Effective { starttls, source } = self.effective;
        let _ = writeln!(text, "{}: STARTTLS {} (by {source})", self.subject, starttls.as_str());
        statements(&mut text, "  ", &self.sources);
        if let Some(dnssec) = &self.dnssec {
            let _ = writeln!(text, "  {:<8} {dnssec}", "dnssec");
        }
        if !self.domains.is_empty() {
            let _ = writeln!(text, "  {:<8} {}", "for", self.domains.join(", "));
        }
        if let Some(mx) = &self.mx {
            let _ = writeln!(text, "  {:<8} {:<9} {:<8} {}", "mx", mx.state.as_str(), "", mx.detail);
        }
        for host in &self.hosts {
            let addresses: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
            let Effective { starttls, source } = host.effective;
            let starttls = starttls.as_str();
            let _ = writeln!(text, "  {} [{}]: STARTTLS {starttls} (by {source})", host.host, addresses.join(", "));
            if host.mta_sts_allows == Some(false) {
                let _ = writeln!(text, "    the MTA-STS policy of the domain does not allow this host: no mail to it");
            }
            statements(&mut text, "    ", &host.sources);
            for tlsa in &host.tlsa {
                let _ = writeln!(text, "    _25._tcp.{} TLSA {tlsa}", host.tlsa_base);
            }
        }
        text.lines().map(|line| format!("{}\n", printable(line))).collect()
    }
}

fn statements(text: &mut String, indent: &str, statements: &[Statement]) {
    for Statement { source, state, mode, detail, .. } in statements {
        let (source, state, mode) = (source.as_str(), state.as_str(), mode.as_str());
        let _ = writeln!(text, "{indent}{source:<8} {state:<9} {mode:<8} {detail}");
    }
}
