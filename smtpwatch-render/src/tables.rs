//! Known policies as a table that a mail server can enforce: [`Export`] has the policies, and writes a [`Table`] for
//! Postfix or Exim. `smtpwatch policy export` calls it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv4Addr,
};

use smtpwatch_core::{
    Role, Timestamp,
    policy::{
        effective::{Mode, Source, Starttls},
        published::{State, list::StarttlsList, sts::StsPolicy, tlsa::Tlsa},
        rule::{PeerPattern, Rule, StarttlsRule, in_network, name_matches},
    },
};

use super::policy::{HostReport, Report};

/// The port to which the tables apply: SMTP between servers.
const SMTP: u16 = 25;
/// Maximum number of domains and hosts that one message names.
const NAMED: usize = 5;

/// One domain with its policies.
pub struct DomainRow<'a> {
    /// The report on the domain.
    pub report: Report,
    /// Its MTA-STS policy, if it is valid.
    pub sts: Option<&'a StsPolicy>,
}

/// The policies to export.
pub struct Export<'a> {
    /// Local rules, in order.
    pub rules: &'a [Rule],
    /// The STARTTLS-Everywhere list, unless it has expired.
    pub list: Option<&'a StarttlsList>,
    /// The domains; each occurs once.
    pub rows: Vec<DomainRow<'a>>,
    /// Whether TLS is also required where only the history expects it.
    pub learned: bool,
    /// The time of the export.
    pub now: Timestamp,
}

/// A table, and what its format cannot express.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    /// The content of the file.
    pub text: String,
    /// Policies that this format cannot express, one line each.
    pub warnings: Vec<String>,
}

impl Table {
    /// Adds a comment line.
    fn comment(&mut self, text: &str) {
        let _ = writeln!(self.text, "# {text}");
    }

    /// Adds a warning, both as a comment in the table and for the administrator.
    fn warn(&mut self, text: String) {
        self.comment(&text);
        self.warnings.push(text);
    }
}

impl Export<'_> {
    /// A TLS policy table of Postfix (`TLS_README`, "Client TLS security levels").
    #[must_use]
    pub fn postfix(&self) -> Table {
        let mut lines = Table::default();
        self.postfix_rules(&mut lines);
        let mut used = BTreeSet::new();
        for row in &self.rows {
            let domain = &row.report.subject;
            match self.postfix_level(row) {
                Level::Nothing => {}
                // A level in this table replaces the global one, which may be stricter.
                Level::Expected => {
                    lines
                        .comment(&format!("{domain}: TLS is expected, not required ({})", row.report.effective.source));
                }
                Level::Line(level) => {
                    used.extend(["dane", "secure"].into_iter().filter(|used| level.starts_with(used)));
                    let _ = writeln!(lines.text, "{domain} {level}");
                }
                Level::NoName(level) => {
                    lines.warn(format!(
                        "{domain}: its policy allows no host by name, and an address matches no certificate"
                    ));
                    let _ = writeln!(lines.text, "{domain} {level}");
                }
            }
        }
        // Without these settings, Postfix enforces less than the line says, or defers legitimate mail.
        let mut settings =
            "smtp_tls_policy_maps = hash:/etc/postfix/tls_policy (then: postmap /etc/postfix/tls_policy)".to_owned();
        if used.contains("dane") {
            settings += "; smtp_dns_support_level = dnssec, and a resolver on this host that validates";
        }
        if used.contains("secure") {
            settings += "; smtp_tls_CAfile = /etc/ssl/certs/ca-certificates.crt";
        }
        lines.text.insert_str(0, &self.head(&settings));
        lines
    }

    fn postfix_rules(&self, lines: &mut Table) {
        for (at, (place, rule)) in self.rules().enumerate() {
            let Some(demand) = rule.starttls else { continue };
            let later =
                || self.rules().skip(at + 1).filter(|(_, later)| later.starttls == Some(StarttlsRule::Required));
            if rule.peer.is_empty() {
                if demand == StarttlsRule::Required {
                    lines.warn(format!(
                        "rule {place}: TLS is required of every peer, which is no line of this table: \
                         smtp_tls_security_level = encrypt"
                    ));
                }
                // The rule matches every peer: later rules have no effect.
                return;
            }
            for peer in &rule.peer {
                let earlier = self.rules().take(at).any(|(_, earlier)| covers(earlier, peer));
                match peer {
                    _ if earlier => {}
                    PeerPattern::Name(name) if !name.contains('*') => match demand {
                        StarttlsRule::Required => _ = writeln!(lines.text, "[{name}] encrypt"),
                        StarttlsRule::Expected => {
                            lines.comment(&format!("[{name}]: TLS is expected, not required (rule {place})"));
                        }
                        StarttlsRule::Ignore if later().any(|(_, later)| overlaps(later, peer)) => {
                            lines.warn(format!(
                                "[{name}]: nothing is required (rule {place}); where the server itself requires TLS, \
                                 only a line \"[{name}] may\" exempts it"
                            ));
                        }
                        StarttlsRule::Ignore => {}
                    },
                    other => {
                        let text = format!("rule {place}: {} is no next hop that can be named here", shown(other));
                        match demand {
                            StarttlsRule::Required => lines.warn(text),
                            StarttlsRule::Expected => lines.comment(&text),
                            StarttlsRule::Ignore => {}
                        }
                    }
                }
            }
        }
    }

    fn postfix_level(&self, DomainRow { report, sts }: &DomainRow<'_>) -> Level {
        match report.effective.starttls {
            Starttls::Opportunistic => return Level::Nothing,
            Starttls::Expected if self.learned && report.effective.source == Source::History.as_str() => {
                return Level::Line("encrypt".to_owned());
            }
            Starttls::Expected => return Level::Expected,
            Starttls::Required => {}
        }
        // Sources that require TLS come first: the strictest line that a source supports resists an active attacker.
        let secure = report.mx.as_ref().is_some_and(|mx| mx.secure);
        let dane = demands(report, Source::Dane);
        let bound = report.hosts.iter().filter(|host| is_enforced(host, Source::Dane));
        let (usable, unusable): (Vec<_>, Vec<_>) = bound.partition(|host| has_usable(host));
        // Without validated MX records, it is not certain that the host is the domain's (RFC 7672 §2.2.1), and Postfix
        // treats `dane` under such records as smtp_tls_dane_insecure_mx_policy says.
        if dane && secure && !usable.is_empty() {
            // `dane-only` defers mail to a host without usable records until it expires; `dane` encrypts (RFC 7672
            // §2.2).
            return Level::Line(if unusable.is_empty() { "dane-only" } else { "dane" }.to_owned());
        }
        let names = match sts {
            Some(policy) if demands(report, Source::MtaSts) => {
                Some((postfix_names(&policy.mx), " servername=hostname"))
            }
            _ if demands(report, Source::List) => {
                self.list.and_then(|list| list.get(&report.subject)).map(|policy| (postfix_names(&policy.mxs), ""))
            }
            _ => None,
        };
        match names {
            Some((names, _)) if names.is_empty() => Level::NoName("encrypt".to_owned()),
            Some((names, server_name)) => Level::Line(format!("secure match={names}{server_name}")),
            None => Level::Line("encrypt".to_owned()),
        }
    }

    /// A host list of Exim (specification, chapter "Domain, host, address, and local part lists"), for a file that
    /// `hosts_require_tls` of the smtp transport names.
    #[must_use]
    pub fn exim(&self) -> Table {
        let mut table =
            Table { text: self.head("hosts_require_tls = /etc/exim4/hosts_require_tls"), ..Table::default() };
        let (items, catch_all) = self.exim_rules(&mut table);
        let mut hosts = if catch_all { BTreeSet::new() } else { self.exim_hosts() };
        // The first matching item decides, like the first matching rule. An exception is needed only if a later item
        // could match the excepted peer.
        let mut kept: Vec<(bool, String)> = Vec::new();
        for (at, (required, peer)) in items.iter().enumerate() {
            let needed = *required
                || items[at + 1..].iter().any(|(required, later)| *required && meet(peer.as_ref(), later.as_ref()))
                || hosts.iter().any(|host| meets_item(peer.as_ref(), host));
            if needed {
                kept.push((*required, peer.as_ref().map_or_else(|| "*".to_owned(), shown)));
            }
        }
        if kept.iter().all(|(required, _)| *required) && !catch_all {
            hosts.extend(kept.drain(..).map(|(_, item)| item));
        }
        let mut seen = BTreeSet::new();
        let mut lines: Vec<String> = kept
            .into_iter()
            .map(|(required, item)| if required { item } else { format!("!{item}") })
            .chain(hosts)
            .filter(|line| seen.insert(line.clone()))
            .collect();
        // A list whose last item is an exception matches everything else.
        while lines.last().is_some_and(|line| line.starts_with('!')) {
            lines.pop();
        }
        for line in lines {
            let _ = writeln!(table.text, "{line}");
        }
        table
    }

    /// The rules in order: whether the rule requires TLS, and its peer (`None`: every peer). The second value: whether a
    /// rule matches every peer.
    fn exim_rules(&self, table: &mut Table) -> (Vec<(bool, Option<PeerPattern>)>, bool) {
        let mut items = Vec::new();
        for (at, (place, rule)) in self.rules().enumerate() {
            let Some(demand) = rule.starttls else {
                let next = self.rules().skip(at + 1).find(|(_, later)| {
                    later.starttls == Some(StarttlsRule::Required)
                        && (rule.peer.is_empty() || rule.peer.iter().any(|peer| overlaps(later, peer)))
                });
                if let Some((next, _)) = next {
                    table.warn(format!(
                        "rule {place} has no starttls and precedes rule {next}: a host list cannot express that"
                    ));
                }
                if rule.peer.is_empty() {
                    return (items, false);
                }
                continue;
            };
            let required = demand == StarttlsRule::Required;
            if rule.peer.is_empty() {
                items.push((required, None));
                return (items, true);
            }
            for peer in &rule.peer {
                match peer {
                    // Exim supports an asterisk only at the start.
                    PeerPattern::Name(name) if name.trim_start_matches("*.").contains('*') => {
                        let text = format!("rule {place}: {name} cannot be written in a host list");
                        let later = self.rules().skip(at + 1).map(|(_, later)| later);
                        let mut later = later.filter(|later| later.starttls == Some(StarttlsRule::Required));
                        if required || later.any(|later| overlaps(later, peer)) {
                            table.warn(text);
                        }
                    }
                    other => items.push((required, Some(other.clone()))),
                }
            }
        }
        (items, false)
    }

    /// The mail hosts that published policies require TLS for. A requirement on a host applies to all mail to it;
    /// therefore it must come from the host itself (TLSA records), from a local rule, or from every known domain that
    /// uses the host. Otherwise any domain could impose it on all others. A host that a domain's policy does not allow
    /// gets no mail for that domain, and the domain requires nothing of it.
    fn exim_hosts(&self) -> BTreeSet<String> {
        // Per host: whether the host or a rule requires TLS, and whether all domains do.
        let mut found: BTreeMap<String, (bool, bool)> = BTreeMap::new();
        for row in &self.rows {
            for host in &row.report.hosts {
                let allowed = host.mta_sts_allows != Some(false);
                let required = allowed && self.is_required(host.effective.starttls, host.effective.source);
                let (own, all) = found.entry(host.host.clone()).or_insert((false, true));
                *own |= required && matches!(host.effective.source, "dane" | "rule");
                *all &= required;
            }
            // Hosts are unknown: the patterns of the policies replace them.
            if row.report.hosts.is_empty() {
                let required = self.is_required(row.report.effective.starttls, row.report.effective.source);
                let listed = self.list.and_then(|list| list.get(&row.report.subject));
                let sts = row.sts.iter().filter(|_| !required).flat_map(|policy| &policy.mx);
                for pattern in listed.iter().flat_map(|policy| &policy.mxs).chain(sts) {
                    let item = if pattern.starts_with('.') { format!("*{pattern}") } else { pattern.clone() };
                    found.entry(item).or_insert((false, true)).1 &= required;
                }
            }
        }
        let others: Vec<&String> = found.iter().filter(|(_, (own, all))| !own && !all).map(|(item, _)| item).collect();
        let free = |item: &str| !others.iter().any(|other| same_host(item, other));
        found
            .iter()
            .filter(|(item, (own, all))| !is_address(item) && (*own || *all && free(item)))
            .map(|(item, _)| item.clone())
            .collect()
    }

    fn is_required(&self, starttls: Starttls, source: &str) -> bool {
        match starttls {
            Starttls::Required => true,
            Starttls::Expected => self.learned && source == Source::History.as_str(),
            Starttls::Opportunistic => false,
        }
    }

    /// Lines of an earlier table that this one lacks although no source has withdrawn the policy: it was forgotten, or
    /// the look-up failed. Each with its reason.
    #[must_use]
    pub fn lost(&self, before: &str, table: &str) -> Vec<String> {
        let lines = |text: &str| -> Vec<String> {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines.map(ToOwned::to_owned).collect()
        };
        let key = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
        let present: BTreeSet<String> = lines(table).into_iter().collect();
        let keys: BTreeSet<String> = present.iter().map(|line| key(line)).collect();
        let mut lost = Vec::new();
        for line in lines(before).into_iter().filter(|line| !present.contains(line)) {
            let key = key(&line);
            // These lines come from local rules, which only the administrator changes.
            if key.starts_with(['[', '!', '*']) || key.contains('/') || is_address(&key) || key.contains(':') {
                continue;
            }
            let row = self.rows.iter().find(|row| row.report.subject == key);
            let hosts = || self.rows.iter().flat_map(|row| &row.report.hosts).filter(|host| host.host == key);
            let ruled = self.rules.iter().any(|rule| {
                rule.peer.iter().any(|peer| matches!(peer, PeerPattern::Name(name) if name_matches(name, &key)))
            });
            let uncertain = |state: State| matches!(state, State::Error | State::Bogus | State::Expired);
            let reason = match row {
                Some(row) => {
                    let hosts = row.report.hosts.iter().flat_map(|host| &host.sources);
                    let mut sources = row.report.sources.iter().chain(hosts);
                    let failed = sources.find(|found| uncertain(found.state));
                    let mx = row.report.mx.as_ref().filter(|mx| uncertain(mx.state));
                    failed
                        .map(|found| format!("{} {}", found.source.as_str(), found.state.as_str()))
                        .or_else(|| mx.map(|mx| format!("MX records {}", mx.state.as_str())))
                }
                None if hosts().next().is_some() => hosts()
                    .flat_map(|host| &host.sources)
                    .find(|found| uncertain(found.state))
                    .map(|found| format!("{} {}", found.source.as_str(), found.state.as_str())),
                None if ruled || keys.contains(&key) => None,
                None => Some("nothing is known of it".to_owned()),
            };
            lost.extend(reason.map(|reason| format!("{key} ({reason})")));
        }
        let more = lost.len().saturating_sub(NAMED);
        lost.truncate(NAMED);
        if more > 0 {
            lost.push(format!("{more} more"));
        }
        lost
    }

    fn head(&self, used: &str) -> String {
        format!("# Written {} by smtpwatch {} from what it knows; use:\n# {used}\n", self.now, smtpwatch_core::VERSION)
    }

    /// The local rules in force that apply to mail from this host to port 25.
    fn rules(&self) -> impl Iterator<Item = (usize, &Rule)> {
        (1..).zip(self.rules).filter(|(_, rule)| {
            rule.is_in_force(self.now)
                && rule.role.is_none_or(|role| role == Role::Client)
                && (rule.port.is_empty() || rule.port.contains(&SMTP))
        })
    }
}

/// The entry of a domain in the Postfix table.
enum Level {
    /// No entry.
    Nothing,
    /// TLS is expected; a comment only.
    Expected,
    /// A TLS level with its attributes.
    Line(String),
    /// A TLS level without names, because the names that the policy allows match no certificate.
    NoName(String),
}

/// Whether a valid statement of this source requires TLS.
fn demands(report: &Report, source: Source) -> bool {
    report.sources.iter().any(|found| (found.source, found.state, found.mode) == (source, State::Valid, Mode::Enforce))
}

fn is_enforced(host: &HostReport, source: Source) -> bool {
    host.sources.iter().any(|found| (found.source, found.state, found.mode) == (source, State::Valid, Mode::Enforce))
}

/// Whether the host can be authenticated by a TLSA record.
fn has_usable(host: &HostReport) -> bool {
    host.tlsa.iter().any(|tlsa| tlsa.parse::<Tlsa>().is_ok_and(|tlsa| tlsa.is_usable()))
}

/// Name patterns in Postfix syntax: `*.example.net` becomes `.example.net`. Addresses are left out, because
/// certificates name hosts.
fn postfix_names(patterns: &[String]) -> String {
    let names = patterns.iter().filter(|pattern| !is_address(pattern));
    let names: Vec<&str> = names.map(|pattern| pattern.strip_prefix('*').unwrap_or(pattern)).collect();
    names.join(":")
}

fn is_address(text: &str) -> bool {
    text.parse::<Ipv4Addr>().is_ok()
}

/// Whether a rule matches every peer that the pattern matches.
fn covers(rule: &Rule, peer: &PeerPattern) -> bool {
    let covers = |own: &PeerPattern| match (own, peer) {
        (PeerPattern::Net(own, prefix), PeerPattern::Net(address, bits)) => {
            bits >= prefix && in_network(*address, *own, *prefix)
        }
        (PeerPattern::Name(own), PeerPattern::Name(name)) => own == name || name_matches(own, name),
        (PeerPattern::Net(..), PeerPattern::Name(_)) | (PeerPattern::Name(_), PeerPattern::Net(..)) => false,
    };
    rule.peer.is_empty() || rule.peer.iter().any(covers)
}

/// Whether a rule may match some peer that the pattern matches.
fn overlaps(rule: &Rule, peer: &PeerPattern) -> bool {
    rule.peer.is_empty() || rule.peer.iter().any(|own| meet(Some(own), Some(peer)))
}

/// Whether some peer may match both patterns; `None` matches every peer. The addresses of a name are unknown here.
fn meet(one: Option<&PeerPattern>, other: Option<&PeerPattern>) -> bool {
    match (one, other) {
        (Some(PeerPattern::Net(one, bits)), Some(PeerPattern::Net(other, other_bits))) => {
            in_network(*one, *other, *other_bits) || in_network(*other, *one, *bits)
        }
        (Some(PeerPattern::Name(one)), Some(PeerPattern::Name(other))) => {
            one == other
                || name_matches(one, other)
                || name_matches(other, one)
                || one.contains('*') && other.contains('*')
                // For Exim, a leading asterisk matches any number of labels.
                || same_host(one, other)
        }
        _ => true,
    }
}

/// Whether some peer may match both a pattern and an item that names a mail host.
fn meets_item(peer: Option<&PeerPattern>, item: &str) -> bool {
    match peer {
        Some(PeerPattern::Name(name)) => {
            name_matches(name, item) || item.starts_with('*') && (name.contains('*') || same_host(item, name))
        }
        Some(PeerPattern::Net(..)) | None => true,
    }
}

/// Whether two items of a host list may match the same host. A leading asterisk matches any number of labels.
fn same_host(one: &str, other: &str) -> bool {
    let within = |wild: &str, name: &str| wild.strip_prefix('*').is_some_and(|suffix| name.ends_with(suffix));
    one == other || within(one, other) || within(other, one)
}

fn shown(peer: &PeerPattern) -> String {
    match peer {
        PeerPattern::Net(address, prefix) if *prefix == if address.is_ipv4() { 32 } else { 128 } => address.to_string(),
        PeerPattern::Net(address, prefix) => format!("{address}/{prefix}"),
        PeerPattern::Name(name) => name.clone(),
    }
}
