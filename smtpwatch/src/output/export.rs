//! What is known, as a table that a mail server can enforce.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use smtpwatch_core::{
    Timestamp,
    policy::{
        published::{list::StarttlsList, sts::StsPolicy},
        rule::{PeerPattern, Rule, StarttlsRule},
    },
};

use super::policy::Report;
use crate::{policy::effective::Starttls, version};

/// One domain, with the policies that can be written down.
pub struct Row<'a> {
    /// What is known of it.
    pub report: Report,
    /// Its MTA-STS policy, if that holds.
    pub sts: Option<&'a StsPolicy>,
}

/// What is exported.
pub struct Export<'a> {
    /// Local rules, in order.
    pub rules: &'a [Rule],
    /// The list, unless it has expired.
    pub list: Option<&'a StarttlsList>,
    /// Domains, each once.
    pub rows: Vec<Row<'a>>,
    /// Now.
    pub now: Timestamp,
}

impl Export<'_> {
    /// A TLS policy table of Postfix (`TLS_README`, "Client TLS security levels").
    #[must_use]
    pub fn postfix(&self) -> String {
        let mut text =
            self.head("smtp_tls_policy_maps = hash:/etc/postfix/tls_policy (then: postmap /etc/postfix/tls_policy)");
        for (place, rule, demand) in self.rules() {
            for peer in &rule.peer {
                match peer {
                    PeerPattern::Name(name) if !name.contains('*') && demand == StarttlsRule::Required => {
                        let _ = writeln!(text, "[{name}] encrypt");
                    }
                    PeerPattern::Name(name) if !name.contains('*') => {
                        let _ = writeln!(text, "# [{name}]: TLS is expected, not required (rule {place})");
                    }
                    other => {
                        let _ =
                            writeln!(text, "# rule {place}: {} is no next hop that can be named here", shown(other));
                    }
                }
            }
        }
        for Row { report, sts } in &self.rows {
            let domain = &report.subject;
            let secure = report.mx.as_ref().is_some_and(|mx| mx.secure);
            let level = match (report.effective.starttls, report.effective.source, sts) {
                (Starttls::Opportunistic, ..) => continue,
                // A level here replaces that of the whole server, which may be a stricter one.
                (Starttls::Expected, source, _) => {
                    let _ = writeln!(text, "# {domain}: TLS is expected, not required ({source})");
                    continue;
                }
                // Without a proof of the MX records there is none that the host is the domain's (RFC 7672 §2.2.1).
                (Starttls::Required, "dane", _) if secure => "dane-only".to_owned(),
                (Starttls::Required, "dane", _) => "dane".to_owned(),
                (Starttls::Required, "mta-sts", Some(policy)) => {
                    format!("secure match={} servername=hostname", postfix_names(&policy.mx))
                }
                (Starttls::Required, "list", _) => match self.list.and_then(|list| list.get(domain)) {
                    Some(policy) => format!("secure match={}", postfix_names(&policy.mxs)),
                    None => "encrypt".to_owned(),
                },
                (Starttls::Required, ..) => "encrypt".to_owned(),
            };
            let _ = writeln!(text, "{domain} {level}");
        }
        text
    }

    /// A host list of Exim (`spec`, chapter "Domain, host, address, and local part lists"), to be named by file in
    /// `hosts_require_tls` of the smtp transport.
    #[must_use]
    pub fn exim(&self) -> String {
        let mut text = self.head("hosts_require_tls = /etc/exim4/hosts_require_tls");
        let mut hosts = BTreeSet::new();
        for (place, rule, demand) in self.rules() {
            if demand != StarttlsRule::Required {
                continue;
            }
            for peer in &rule.peer {
                match peer {
                    // An asterisk is understood at the beginning only.
                    PeerPattern::Name(name) if name.trim_start_matches("*.").contains('*') => {
                        let _ = writeln!(text, "# rule {place}: {name} cannot be written in a host list");
                    }
                    other => _ = hosts.insert(shown(other)),
                }
            }
        }
        let (demanded, others): (Vec<_>, Vec<_>) = self.hosts().into_iter().partition(|(_, demanded)| *demanded);
        hosts.extend(demanded.into_iter().map(|(host, _)| host.to_owned()));
        let required = |row: &&Row<'_>| row.report.effective.starttls == Starttls::Required;
        for Row { report, .. } in self.rows.iter().filter(required).filter(|row| row.report.hosts.is_empty()) {
            let Some(policy) = self.list.and_then(|list| list.get(&report.subject)) else { continue };
            for name in &policy.mxs {
                let names = |host: &str| if name.starts_with('.') { host.ends_with(name) } else { host == name };
                if others.iter().any(|(host, _)| names(host)) {
                    continue;
                }
                hosts.insert(if name.starts_with('.') { format!("*{name}") } else { name.clone() });
            }
        }
        for host in hosts {
            let _ = writeln!(text, "{host}");
        }
        text
    }

    /// The mail hosts of all domains, and whether TLS may be required of each. What is required of a host is required of
    /// all mail to it: the host says so itself (TLSA records), or a local rule, or every domain that is known to use
    /// it. Else anybody's domain could require it for everybody. A host that the policy of a domain does not allow gets
    /// no mail for that domain: nothing is required on its behalf.
    fn hosts(&self) -> BTreeMap<&str, bool> {
        // Whether the host or a rule demands it; whether all domains do.
        let mut found: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        for host in self.rows.iter().flat_map(|row| &row.report.hosts) {
            let allowed = host.mta_sts_allows != Some(false);
            let required = allowed && host.effective.starttls == Starttls::Required;
            let (own, all) = found.entry(&host.host).or_insert((false, true));
            *own |= required && matches!(host.effective.source, "dane" | "rule");
            *all &= required;
        }
        found.into_iter().map(|(host, (own, all))| (host, own || all)).collect()
    }

    fn head(&self, used: &str) -> String {
        format!("# Written {} by smtpwatch {} from what it knows; use:\n# {used}\n", self.now, version::VERSION)
    }

    /// Rules that name peers and say something of STARTTLS to port 25.
    fn rules(&self) -> impl Iterator<Item = (usize, &Rule, StarttlsRule)> {
        (1..).zip(self.rules).filter_map(|(place, rule)| {
            let applies = rule.role.is_none_or(|role| role == smtpwatch_core::Role::Client)
                && (rule.port.is_empty() || rule.port.contains(&25));
            let demand = rule.starttls.filter(|demand| applies && *demand != StarttlsRule::Ignore)?;
            Some((place, rule, demand))
        })
    }
}

/// `*.example.net` is `.example.net` to Postfix.
fn postfix_names(patterns: &[String]) -> String {
    let names: Vec<&str> = patterns.iter().map(|pattern| pattern.strip_prefix('*').unwrap_or(pattern)).collect();
    names.join(":")
}

fn shown(peer: &PeerPattern) -> String {
    match peer {
        PeerPattern::Net(address, prefix) if *prefix == if address.is_ipv4() { 32 } else { 128 } => address.to_string(),
        PeerPattern::Net(address, prefix) => format!("{address}/{prefix}"),
        PeerPattern::Name(name) => name.clone(),
    }
}
