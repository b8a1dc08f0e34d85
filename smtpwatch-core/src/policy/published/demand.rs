//! Which published policy speaks for a session, and what it demands.
//!
//! A session is known by the recipient domains that crossed in clear, by the names that the server gave, and by its address,
//! which the index leads to mail hosts and to the domains whose mail they take. A name alone is the server's word: it counts
//! once DNS says that the address is that host's.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    DomainFacts, HostFacts, Published, Wanted, domain_name, hosts,
    sts::{StsMode, StsPolicy},
    tlsa::Tlsa,
};
use crate::Timestamp;

/// What a policy is found by.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// The server's address.
    pub address: IpAddr,
    /// The names that it gave: EHLO reply, greeting, SNI.
    pub names: &'a [&'a str],
    /// Domains of recipients in clear, U-labels or A-labels.
    pub recipients: &'a BTreeSet<String>,
}

/// The sources of published policies, the strongest first (RFC 8461 §2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// TLSA records that DNSSEC proves.
    Dane,
    /// MTA-STS.
    MtaSts,
    /// The STARTTLS-Everywhere list.
    List,
}

impl Source {
    /// Every source, the strongest first.
    pub const ALL: [Self; 3] = [Self::Dane, Self::MtaSts, Self::List];

    /// The name in a finding's `expected`, and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dane => "dane",
            Self::MtaSts => "mta-sts",
            Self::List => "list",
        }
    }
}

/// How much a demand weighs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weight {
    /// The owner wants mail in clear not to be sent at all.
    Enforce,
    /// The owner wants to hear of it.
    Testing,
    /// It is not certain that the policy speaks for this server, or it held once.
    Hint,
}

/// One policy that wants TLS for a session.
#[derive(Clone, PartialEq, Debug)]
pub struct Demand {
    /// Who says so.
    pub source: Source,
    /// How much that weighs.
    pub weight: Weight,
    /// The recipient domain, or of DANE the TLSA base domain.
    pub subject: String,
    /// The policy, quoted.
    pub detail: String,
}

/// What the index makes of a session.
#[derive(Debug, Default)]
pub struct Identity {
    /// Mail hosts that the server is, as DNS says.
    pub hosts: Vec<(String, Arc<HostFacts>)>,
    /// Recipient domains with what is known of them; without recipients those whose mail the hosts take.
    pub domains: Vec<(String, Option<Arc<DomainFacts>>)>,
    /// The domains are those of recipients: nothing was inferred.
    pub certain: bool,
}

impl Published {
    /// Everything that a session's policy depends on.
    pub fn subjects(&self, called: Called<'_>) -> Vec<Wanted> {
        let mut subjects = Vec::new();
        for domain in called.recipients.iter().filter_map(|domain| domain_name(domain)) {
            let hosts = self.domain(&domain).into_iter().flat_map(|facts| hosts(facts));
            subjects.extend(hosts.filter_map(|host| domain_name(host)).map(Wanted::Host));
            subjects.push(Wanted::Domain(domain));
        }
        subjects.extend(called.names.iter().filter_map(|name| domain_name(name)).map(Wanted::Host));
        subjects
    }

    /// Which mail host this is, and of which domains.
    #[must_use]
    pub fn identify(&self, called: Called<'_>) -> Identity {
        let address = called.address.to_canonical();
        let named = called.names.iter().filter_map(|name| domain_name(name));
        let mut names: Vec<String> = self.hosts_at(address).map(str::to_owned).collect();
        names.extend(named.filter(|name| self.host(name).is_some_and(|facts| facts.is_at(address))));
        names.sort_unstable();
        names.dedup();
        let recipients: Vec<_> = called.recipients.iter().filter_map(|domain| domain_name(domain)).collect();
        let certain = !recipients.is_empty();
        let taken = |name: &String| {
            // Other names of the same address may have other policies: what the recipients' domains name comes first.
            recipients
                .iter()
                .any(|domain| self.domain(domain).is_some_and(|facts| hosts(facts).any(|host| host == name)))
        };
        if names.iter().any(&taken) {
            names.retain(taken);
        }
        let domains = if certain {
            recipients
        } else {
            let domains: BTreeSet<_> = names.iter().flat_map(|host| self.domains_of(host)).map(str::to_owned).collect();
            domains.into_iter().collect()
        };
        Identity {
            hosts: names.into_iter().filter_map(|name| Some((name.clone(), self.host(&name)?.clone()))).collect(),
            domains: domains.into_iter().map(|name| (name.clone(), self.domain(&name).cloned())).collect(),
            certain,
        }
    }

    /// The policies that want TLS for a session, the one that speaks for it first.
    #[must_use]
    pub fn demands(&self, called: Called<'_>, now: Timestamp) -> Vec<Demand> {
        let identity = self.identify(called);
        let mut demands = Vec::new();
        for (host, facts) in &identity.hosts {
            if let Some(records) = facts.dane.valid().filter(|_| now < facts.dane.until) {
                demands.push(of_tlsa(host, facts, records));
            }
        }
        // Of several names at one address any may be meant: without a recipient only what all of them demand is demanded.
        if !identity.certain && demands.len() < identity.hosts.len() {
            demands.iter_mut().for_each(|demand| demand.weight = Weight::Hint);
        }
        let mut of_domains = Vec::new();
        for (domain, facts) in &identity.domains {
            let elsewhere =
                identity.certain && facts.as_ref().is_some_and(|facts| self.is_elsewhere(&identity, facts, called));
            let sts = facts.as_ref().filter(|facts| now < facts.sts.until).and_then(|facts| facts.sts.valid());
            let before = of_domains.len();
            of_domains.extend(sts.and_then(|policy| of_sts(domain, policy)));
            of_domains.extend(self.of_list(domain, now));
            for demand in &mut of_domains[before..] {
                if elsewhere {
                    demand.weight = Weight::Hint;
                    demand.detail.push_str(
                        "; but this address is none of the domain's mail hosts: a smart host, or mail led astray (D7)",
                    );
                }
            }
        }
        let all_want = identity.domains.iter().all(|(name, _)| of_domains.iter().any(|demand| demand.subject == *name));
        if !identity.certain && !all_want {
            of_domains.iter_mut().for_each(|demand| demand.weight = Weight::Hint);
        }
        demands.extend(of_domains);
        demands.sort_by_key(|demand| (demand.weight, demand.source));
        demands
    }

    /// DNS tells every address of the domain's mail hosts, and none is the server's; nor does any name that it gave fit.
    fn is_elsewhere(&self, identity: &Identity, facts: &DomainFacts, called: Called<'_>) -> bool {
        let ours = |host: &String| identity.hosts.iter().any(|(name, _)| name == host);
        let mut all = hosts(facts).peekable();
        if all.peek().is_none() || facts.mx.valid().is_none() {
            return false;
        }
        let known = |host: &String| self.host(host).is_some_and(|facts| facts.addresses.valid().is_some());
        let named = called.names.iter().filter_map(|name| domain_name(name));
        let fits = named.into_iter().any(|name| {
            hosts(facts).any(|host| *host == name) || facts.sts.valid().is_some_and(|policy| policy.matches(&name))
        });
        !fits && all.all(|host| known(host) && !ours(host))
    }

    fn of_list(&self, domain: &str, now: Timestamp) -> Option<Demand> {
        let list = self.list()?;
        let policy = list.get(domain)?;
        let mode = if policy.enforce { "enforce" } else { "testing" };
        let mut detail =
            format!("{domain} on the STARTTLS-Everywhere list: mode {mode}, mxs {}", policy.mxs.join(", "));
        let weight = if list.is_expired(now) {
            detail.push_str(&format!("; the list expired on {} and is a hint only", list.expires.date()));
            Weight::Hint
        } else if policy.enforce {
            Weight::Enforce
        } else {
            Weight::Testing
        };
        Some(Demand { source: Source::List, weight, subject: domain.to_owned(), detail })
    }
}

impl HostFacts {
    /// DNS says that the host is at this address.
    #[must_use]
    pub fn is_at(&self, address: IpAddr) -> bool {
        let known = self.addresses.value.iter().flatten();
        known.into_iter().any(|known| known.to_canonical() == address.to_canonical())
    }
}

fn of_tlsa(host: &str, facts: &HostFacts, records: &[Tlsa]) -> Demand {
    /// Records quoted.
    const QUOTED: usize = 4;
    let quoted: Vec<_> = records.iter().take(QUOTED).map(ToString::to_string).collect();
    let usable =
        if records.iter().any(Tlsa::is_usable) { "" } else { ", none of them usable: TLS is demanded all the same" };
    let detail = format!(
        "TLSA {} at _25._tcp.{}, secure by DNSSEC{usable} (RFC 7672 §2.2); the mail host is {host}",
        quoted.join(", "),
        facts.base
    );
    Demand { source: Source::Dane, weight: Weight::Enforce, subject: facts.base.clone(), detail }
}

fn of_sts(domain: &str, policy: &StsPolicy) -> Option<Demand> {
    let weight = match policy.mode {
        StsMode::Enforce => Weight::Enforce,
        StsMode::Testing => Weight::Testing,
        StsMode::None => return None,
    };
    let detail = format!("MTA-STS policy of {domain}, id {}: {}", policy.id, policy.lines().join("; "));
    Some(Demand { source: Source::MtaSts, weight, subject: domain.to_owned(), detail })
}

impl Weight {
    /// `mode` of a finding's `expected`.
    #[must_use]
    pub const fn mode(self) -> Option<&'static str> {
        match self {
            Self::Enforce => Some("enforce"),
            Self::Testing => Some("testing"),
            Self::Hint => None,
        }
    }
}
