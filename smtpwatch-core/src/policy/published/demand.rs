//! Decides which published policies apply to a session, and what they demand. [`Published::demands`] returns the
//! [`Demand`]s, [`Published::identify`] the mail hosts and domains of a server address.
//!
//! A session is identified by the recipient domains that were sent in cleartext, by the names that the server gave, and
//! by its address, from which the index leads to mail hosts and their domains. A name is only a claim of the server: it
//! counts if DNS gives the server's address for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    DomainFacts, HOSTS_PER_DOMAIN, HostFacts, LookupRequest, Published, State, domain_name, hosts,
    sts::{StsMode, StsPolicy},
    tlsa::Tlsa,
};
use crate::Timestamp;

/// How long an address counts after its answer has expired, while the look-up is repeated.
const GRACE: Duration = Duration::from_secs(3600);

/// The keys by which the policies of a session are found.
#[derive(Clone, Copy, Debug)]
pub struct PeerQuery<'a> {
    /// The server's address.
    pub address: IpAddr,
    /// The names that the server gave: EHLO reply, greeting, SNI.
    pub names: &'a [&'a str],
    /// Domains of the recipients sent in cleartext, as U-labels or A-labels.
    pub recipients: &'a BTreeSet<String>,
}

/// The sources of published policies, the strongest first (RFC 8461 §2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// TLSA records proven by DNSSEC.
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

/// Weight of a demand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weight {
    /// The owner demands that mail is not sent in cleartext.
    Enforce,
    /// The owner demands a report.
    Testing,
    /// The owner demanded it once: by its schema an expired list is a seed for history.
    Hint,
}

/// One policy that demands TLS for a session.
#[derive(Clone, PartialEq, Debug)]
pub struct Demand {
    /// Source of the policy.
    pub source: Source,
    /// Weight of the demand.
    pub weight: Weight,
    /// The recipient domain, or for DANE the TLSA base domain.
    pub subject: String,
    /// The policy, quoted.
    pub detail: String,
}

/// Mail hosts and domains of a session, according to DNS.
#[derive(Debug, Default)]
pub struct Identity {
    /// Mail hosts that have the server's address.
    pub hosts: Vec<MailHost>,
    /// Recipient domains; without recipients, the domains whose mail the hosts receive.
    pub domains: Vec<Recipient>,
}

/// A mail host that has the server's address, according to DNS.
#[derive(Debug)]
pub struct MailHost {
    /// Name of the host.
    pub name: String,
    /// What the host publishes.
    pub facts: Arc<HostFacts>,
    /// The session itself refers to this name: the server or the client uses it, or a recipient's domain has it as MX.
    /// For other names that is unknown, because any domain owner may point a name at this address.
    pub meant: bool,
}

/// A domain whose mail a session may carry.
#[derive(Debug)]
pub struct Recipient {
    /// Name of the domain.
    pub domain: String,
    /// What the domain publishes, if known.
    pub facts: Option<Arc<DomainFacts>>,
    /// Whether this server receives mail for the domain.
    pub standing: DomainBinding,
}

/// Whether a server receives mail for a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainBinding {
    /// A recipient was seen, and the server is one of the domain's mail hosts, by address or by name.
    Here,
    /// No recipient was seen; the host is one of the domain's mail hosts, and its name is within the domain.
    Own,
    /// No recipient was seen; the host receives mail for this domain, and perhaps for others.
    Inferred,
    /// A recipient was seen, and the server is not one of its mail hosts, whose addresses are all known: a smart host,
    /// or D7.
    Elsewhere,
    /// A recipient was seen, and its mail hosts are not sufficiently known.
    Unknown,
}

impl DomainBinding {
    /// The domain's policy applies to this session.
    #[must_use]
    pub const fn is_sure(self) -> bool {
        matches!(self, Self::Here | Self::Own)
    }

    /// A recipient of the domain was seen.
    #[must_use]
    pub const fn has_recipient(self) -> bool {
        matches!(self, Self::Here | Self::Elsewhere | Self::Unknown)
    }
}

impl Published {
    /// All look-ups that a session's policy depends on.
    pub fn lookups(&self, query: PeerQuery<'_>) -> Vec<LookupRequest> {
        let mut lookups = Vec::new();
        for domain in query.recipients.iter().filter_map(|domain| domain_name(domain)) {
            lookups.extend(
                self.domain(&domain).into_iter().flat_map(|facts| hosts(facts)).cloned().map(LookupRequest::Host),
            );
            lookups.push(LookupRequest::Domain(domain));
        }
        lookups.extend(query.names.iter().filter_map(|name| domain_name(name)).map(LookupRequest::Host));
        lookups
    }

    /// The mail hosts at the server's address, and their domains.
    #[must_use]
    pub fn identify(&self, query: PeerQuery<'_>, now: Timestamp) -> Identity {
        let named: Vec<_> = query.names.iter().filter_map(|name| domain_name(name)).collect();
        let recipients: Vec<_> = query.recipients.iter().filter_map(|domain| domain_name(domain)).collect();
        // Taken from the answer for the domain, not from the address index, into which strangers can put entries.
        let of_recipients = recipients.iter().filter_map(|domain| self.domain(domain)).flat_map(|facts| hosts(facts));
        let meant: BTreeSet<&str> = named.iter().chain(of_recipients).map(String::as_str).collect();
        let others = self.hosts_at(query.address).filter(|name| !meant.contains(name)).map(|name| (name, false));
        let candidates = meant.iter().map(|name| (*name, true)).chain(others);
        let mut hosts: Vec<_> = candidates
            .filter_map(|(name, meant)| {
                Some(MailHost { name: name.to_owned(), facts: self.host(name)?.clone(), meant })
            })
            .filter(|host| host.facts.is_at(query.address, now))
            .collect();
        // A host found through a recipient is more certain than one found by the name that the server gave.
        let of_recipient = |host: &MailHost| {
            recipients.iter().any(|domain| self.domain(domain).is_some_and(|facts| hosts_of(facts, &host.name)))
        };
        if hosts.iter().any(of_recipient) {
            hosts.retain(of_recipient);
        }
        let domains = if recipients.is_empty() {
            self.inferred(&hosts)
        } else {
            let recipient = |domain: String| {
                let facts = self.domain(&domain).cloned();
                let standing = self.standing(&domain, facts.as_deref(), query.address, &named, now);
                Recipient { domain, facts, standing }
            };
            recipients.into_iter().map(recipient).collect()
        };
        Identity { hosts, domains }
    }

    /// The policies that demand TLS for a session with this peer, in order of precedence.
    #[must_use]
    pub fn demands(&self, peer: &Identity, now: Timestamp) -> Vec<Demand> {
        let mut demands = Vec::new();
        // Hosts to which the session does not refer are omitted: most mail leaves a network through a smart host.
        for host in peer.hosts.iter().filter(|host| host.meant) {
            if let Some(records) = host.facts.dane.valid().filter(|_| now < host.facts.dane.until) {
                demands.push(of_tlsa(&host.name, &host.facts, records));
            }
        }
        for Recipient { domain, facts, .. } in peer.domains.iter().filter(|recipient| recipient.standing.is_sure()) {
            let sts = facts.as_ref().filter(|facts| now < facts.sts.until).and_then(|facts| facts.sts.valid());
            demands.extend(sts.and_then(|policy| of_sts(domain, policy)));
            demands.extend(self.of_list(domain, now));
        }
        demands.sort_by_key(|demand| (demand.weight, demand.source));
        demands
    }

    /// Domains whose mail the hosts of a session receive, if no recipient was seen.
    fn inferred(&self, hosts: &[MailHost]) -> Vec<Recipient> {
        let mut domains = BTreeMap::new();
        for host in hosts {
            for domain in self.domains_of(&host.name) {
                // Any domain owner may name any host as MX; a host whose name is within the domain belongs to its
                // owner.
                let own = host.meant && (host.name == domain || host.name.ends_with(&format!(".{domain}")));
                *domains.entry(domain).or_insert(false) |= own;
            }
        }
        let recipient = |(domain, own): (&str, bool)| Recipient {
            domain: domain.to_owned(),
            facts: self.domain(domain).cloned(),
            standing: if own { DomainBinding::Own } else { DomainBinding::Inferred },
        };
        domains.into_iter().map(recipient).collect()
    }

    fn standing(
        &self,
        domain: &str,
        facts: Option<&DomainFacts>,
        address: IpAddr,
        named: &[String],
        now: Timestamp,
    ) -> DomainBinding {
        let listed = self.list().and_then(|list| list.get(domain));
        let mx = facts.and_then(|facts| facts.mx.value.as_ref()).map_or(&[][..], |mx| &mx.hosts);
        let policy = facts.and_then(|facts| facts.sts.value.as_ref());
        let fits = named.iter().any(|name| {
            mx.contains(name)
                || policy.is_some_and(|policy| policy.matches(name))
                || listed.is_some_and(|listed| listed.matches(name))
        });
        let looked_at = || facts.into_iter().flat_map(hosts);
        if fits || looked_at().any(|host| self.host(host).is_some_and(|facts| facts.is_at(address, now))) {
            return DomainBinding::Here;
        }
        let known = |host: &String| {
            self.host(host).is_some_and(|facts| matches!(facts.addresses.state, State::Valid | State::Absent))
        };
        let all = !mx.is_empty() && mx.len() <= HOSTS_PER_DOMAIN && looked_at().count() == mx.len();
        if all && looked_at().all(known) { DomainBinding::Elsewhere } else { DomainBinding::Unknown }
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
    /// The host has this address according to DNS, or had it until recently: an address may get another tenant.
    #[must_use]
    pub fn is_at(&self, address: IpAddr, now: Timestamp) -> bool {
        let mut known = self.addresses.value.iter().flatten();
        now < self.addresses.until + GRACE && known.any(|known| known.to_canonical() == address.to_canonical())
    }
}

fn hosts_of(facts: &DomainFacts, name: &str) -> bool {
    hosts(facts).any(|host| host == name)
}

fn of_tlsa(host: &str, facts: &HostFacts, records: &[Tlsa]) -> Demand {
    /// Maximum number of records quoted.
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
    /// The value of `mode` in a finding's `expected`.
    #[must_use]
    pub const fn mode(self) -> Option<&'static str> {
        match self {
            Self::Enforce => Some("enforce"),
            Self::Testing => Some("testing"),
            Self::Hint => None,
        }
    }
}
