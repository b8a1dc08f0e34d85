//! Decides which published policy applies to a session, and what it demands.
//!
//! A session is identified by the recipient domains that were sent in cleartext, by the names that the server gave,
//! and by its address, from which the index leads to mail hosts and their domains. A name is only the claim of the
//! server: it counts if DNS gives the server's address for it.

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

/// An address that holds no more is believed for this long: it is being asked for again.
const GRACE: Duration = Duration::from_secs(3600);

/// What a policy is found by.
#[derive(Clone, Copy, Debug)]
pub struct PeerQuery<'a> {
    /// The server's address.
    pub address: IpAddr,
    /// The names that it gave: EHLO reply, greeting, SNI.
    pub names: &'a [&'a str],
    /// Domains of recipients in cleartext, U-labels or A-labels.
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
    /// The owner wants mail in cleartext not to be sent at all.
    Enforce,
    /// The owner wants to hear of it.
    Testing,
    /// The owner wanted so once: a list that has expired is a seed for history (its schema).
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

/// What DNS makes of a session.
#[derive(Debug, Default)]
pub struct Identity {
    /// Mail hosts that the server is.
    pub hosts: Vec<MailHost>,
    /// Recipient domains; without recipients those whose mail the hosts take.
    pub domains: Vec<Recipient>,
}

/// A mail host that the server is, as DNS says.
#[derive(Debug)]
pub struct MailHost {
    /// Its name.
    pub name: String,
    /// What it publishes.
    pub facts: Arc<HostFacts>,
    /// The session itself leads to it: the server or the client calls it by this name, or a recipient's domain does. Of other
    /// names no one knows whether they are meant: anyone may let a name of his own point to an address.
    pub meant: bool,
}

/// A domain whose mail a session may carry.
#[derive(Debug)]
pub struct Recipient {
    /// Its name.
    pub domain: String,
    /// What it publishes, where that is known.
    pub facts: Option<Arc<DomainFacts>>,
    /// How sure it is that this server takes its mail.
    pub standing: DomainBinding,
}

/// Whether a server takes the mail of a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainBinding {
    /// A recipient is there, and the server is one of its mail hosts, by address or by name.
    Here,
    /// There is no recipient in sight; the mail host is one of the domain's, and its name lies within the domain.
    Own,
    /// There is no recipient in sight; the mail host is that of this domain and may be that of others.
    Inferred,
    /// A recipient is there, and the server is none of its mail hosts, whose addresses are all known: a smart host, or D7.
    Elsewhere,
    /// A recipient is there, and not enough is known of its mail hosts.
    Unknown,
}

impl DomainBinding {
    /// The domain's policy speaks for this session.
    #[must_use]
    pub const fn is_sure(self) -> bool {
        matches!(self, Self::Here | Self::Own)
    }

    /// There is a recipient of the domain.
    #[must_use]
    pub const fn has_recipient(self) -> bool {
        matches!(self, Self::Here | Self::Elsewhere | Self::Unknown)
    }
}

impl Published {
    /// Everything that a session's policy depends on.
    pub fn subjects(&self, called: PeerQuery<'_>) -> Vec<LookupRequest> {
        let mut subjects = Vec::new();
        for domain in called.recipients.iter().filter_map(|domain| domain_name(domain)) {
            subjects.extend(
                self.domain(&domain).into_iter().flat_map(|facts| hosts(facts)).cloned().map(LookupRequest::Host),
            );
            subjects.push(LookupRequest::Domain(domain));
        }
        subjects.extend(called.names.iter().filter_map(|name| domain_name(name)).map(LookupRequest::Host));
        subjects
    }

    /// Which mail host this is, and of which domains.
    #[must_use]
    pub fn identify(&self, called: PeerQuery<'_>, now: Timestamp) -> Identity {
        let named: Vec<_> = called.names.iter().filter_map(|name| domain_name(name)).collect();
        let recipients: Vec<_> = called.recipients.iter().filter_map(|domain| domain_name(domain)).collect();
        // Directly, and not by the index of addresses, which strangers may fill.
        let of_recipients = recipients.iter().filter_map(|domain| self.domain(domain)).flat_map(|facts| hosts(facts));
        let meant: BTreeSet<&str> = named.iter().chain(of_recipients).map(String::as_str).collect();
        let others = self.hosts_at(called.address).filter(|name| !meant.contains(name)).map(|name| (name, false));
        let candidates = meant.iter().map(|name| (*name, true)).chain(others);
        let mut hosts: Vec<_> = candidates
            .filter_map(|(name, meant)| {
                Some(MailHost { name: name.to_owned(), facts: self.host(name)?.clone(), meant })
            })
            .filter(|host| host.facts.is_at(called.address, now))
            .collect();
        // A name that the server gives itself says less than one that a recipient leads to.
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
                let standing = self.standing(&domain, facts.as_deref(), called.address, &named, now);
                Recipient { domain, facts, standing }
            };
            recipients.into_iter().map(recipient).collect()
        };
        Identity { hosts, domains }
    }

    /// The policies that want TLS for a session, the one that speaks for it first.
    #[must_use]
    pub fn demands(&self, called: PeerQuery<'_>, now: Timestamp) -> Vec<Demand> {
        let identity = self.identify(called, now);
        let mut demands = Vec::new();
        // What may not be meant for this server is not said at all: by a smart host most mail leaves a network.
        for host in identity.hosts.iter().filter(|host| host.meant) {
            if let Some(records) = host.facts.dane.valid().filter(|_| now < host.facts.dane.until) {
                demands.push(of_tlsa(&host.name, &host.facts, records));
            }
        }
        for Recipient { domain, facts, .. } in identity.domains.iter().filter(|recipient| recipient.standing.is_sure())
        {
            let sts = facts.as_ref().filter(|facts| now < facts.sts.until).and_then(|facts| facts.sts.valid());
            demands.extend(sts.and_then(|policy| of_sts(domain, policy)));
            demands.extend(self.of_list(domain, now));
        }
        demands.sort_by_key(|demand| (demand.weight, demand.source));
        demands
    }

    /// Domains whose mail the hosts of a session take, where no recipient is in sight.
    fn inferred(&self, hosts: &[MailHost]) -> Vec<Recipient> {
        let mut domains = BTreeMap::new();
        for host in hosts {
            for domain in self.domains_of(&host.name) {
                // A stranger may name any host as his own; whose name lies within the domain is that of its owner.
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
    /// DNS says that the host is at this address, or said so until lately: an address gets other tenants.
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
