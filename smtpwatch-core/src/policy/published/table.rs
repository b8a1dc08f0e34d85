//! [`Published`]: bounded table of known policies, with the index from addresses to mail hosts and from hosts to
//! domains. The engine requests look-ups from it and applies their results.

use std::{net::IpAddr, sync::Arc, time::Duration};

use slab::Slab;

use super::{DomainFacts, HostFacts, LookupRequest, LookupResult, demand::PeerQuery, list::StarttlsList};
use crate::{Timestamp, hash::HashMap, lru::LruList};

/// Maximum number of domains, and of hosts; the least recently updated one is evicted.
pub const SUBJECTS: usize = 10_000;
/// Maximum number of outstanding look-ups; further requests are dropped.
const ASKED: usize = 4_096;
/// Mail hosts of one domain that are examined, the most preferred first: more do not fit into one answer.
pub const HOSTS_PER_DOMAIN: usize = 16;
/// Names stored for one address, and domains for one host: a large provider has any number.
const PER_KEY: usize = 64;
/// Time after which a verdict does not wait for an outstanding answer.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// All known published policies, bounded.
#[derive(Debug, Default)]
pub struct Published {
    /// Look-ups are executed by the caller.
    answered: bool,
    list: Option<Arc<StarttlsList>>,
    domains: Subjects<DomainFacts>,
    hosts: Subjects<HostFacts>,
    /// Hosts by address.
    at_address: HashMap<IpAddr, Vec<Arc<str>>>,
    /// Domains whose mail a host receives.
    of_host: HashMap<String, Vec<Arc<str>>>,
    /// Outstanding look-ups, with the time of the request.
    asked: HashMap<LookupRequest, Timestamp>,
}

impl Published {
    /// Creates an empty table. `answered`: the caller executes the look-ups that [`Published::request`] requests.
    #[must_use]
    pub fn new(answered: bool) -> Self {
        Self { answered, ..Self::default() }
    }

    /// Whether nothing is known and no look-ups are executed.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        !self.answered && self.list.is_none() && self.domains.is_empty() && self.hosts.is_empty()
    }

    /// Applies the result of a look-up.
    pub fn apply(&mut self, result: LookupResult) {
        match result {
            LookupResult::List(list) => self.list = Some(list),
            LookupResult::Domain(name, facts) => {
                let (name, before) = self.domains.insert(&name, facts.clone());
                self.unlink_domain(before);
                for host in hosts(&facts) {
                    link(self.of_host.entry(host.clone()).or_default(), &name);
                }
                self.asked.remove(&LookupRequest::Domain(name.to_string()));
            }
            LookupResult::Host(name, facts) => {
                let (name, before) = self.hosts.insert(&name, facts.clone());
                self.unlink_host(before);
                for address in addresses(&facts) {
                    link(self.at_address.entry(*address).or_default(), &name);
                }
                self.asked.remove(&LookupRequest::Host(name.to_string()));
            }
        }
    }

    /// Whether to request this look-up at `now`: the answer is unknown or expired, and no request is outstanding.
    /// Records the request.
    pub fn request(&mut self, subject: &LookupRequest, now: Timestamp) -> bool {
        if !self.answered || self.is_fresh(subject, now) {
            return false;
        }
        if self.asked.get(subject).is_some_and(|asked| now.since(*asked) < LOOKUP_TIMEOUT) {
            return false;
        }
        if self.asked.len() >= ASKED {
            self.asked.retain(|_, asked| now.since(*asked) < LOOKUP_TIMEOUT);
        }
        if self.asked.len() >= ASKED {
            return false;
        }
        self.asked.insert(subject.clone(), now);
        true
    }

    /// Whether the answer is outstanding and may still be waited for.
    #[must_use]
    pub fn is_pending(&self, subject: &LookupRequest, now: Timestamp) -> bool {
        self.asked.get(subject).is_some_and(|asked| now.since(*asked) < LOOKUP_TIMEOUT)
    }

    /// Whether a look-up that a session's policy depends on was requested and is not answered.
    #[must_use]
    pub fn is_unanswered(&self, query: PeerQuery<'_>) -> bool {
        self.lookups(query).iter().any(|subject| self.asked.contains_key(subject))
    }

    /// The answer for a recipient domain.
    #[must_use]
    pub fn domain(&self, name: &str) -> Option<&Arc<DomainFacts>> {
        self.domains.get(name)
    }

    /// The answer for a mail host.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&Arc<HostFacts>> {
        self.hosts.get(name)
    }

    /// The list, expired or not.
    #[must_use]
    pub fn list(&self) -> Option<&StarttlsList> {
        self.list.as_deref()
    }

    /// Mail hosts that are known to have this address.
    pub fn hosts_at(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.at_address.get(&address.to_canonical()).into_iter().flatten().map(|name| &**name)
    }

    /// Domains for which a host is known to receive mail.
    pub fn domains_of(&self, host: &str) -> impl Iterator<Item = &str> {
        self.of_host.get(host).into_iter().flatten().map(|name| &**name)
    }

    /// Number of known domains and hosts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.domains.rows.len() + self.hosts.rows.len()
    }

    /// Whether no domain and no host is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_fresh(&self, subject: &LookupRequest, now: Timestamp) -> bool {
        match subject {
            LookupRequest::Domain(name) => {
                self.domains.get(name).is_some_and(|facts| now < facts.mx.until && now < facts.sts.until)
            }
            LookupRequest::Host(name) => {
                self.hosts.get(name).is_some_and(|facts| now < facts.addresses.until && now < facts.dane.until)
            }
        }
    }

    fn unlink_domain(&mut self, gone: Vec<Row<DomainFacts>>) {
        for (name, facts) in gone {
            for host in hosts(&facts) {
                unlink(&mut self.of_host, host, &name);
            }
        }
    }

    fn unlink_host(&mut self, gone: Vec<Row<HostFacts>>) {
        for (name, facts) in gone {
            for address in addresses(&facts) {
                unlink(&mut self.at_address, address, &name);
            }
        }
    }
}

/// The mail hosts of a domain that are examined: at most [`HOSTS_PER_DOMAIN`].
pub fn hosts(facts: &DomainFacts) -> impl Iterator<Item = &String> {
    facts.mx.valid().into_iter().flat_map(|mx| mx.hosts.iter().take(HOSTS_PER_DOMAIN))
}

fn addresses(facts: &HostFacts) -> impl Iterator<Item = &IpAddr> {
    // As many as a UDP answer holds; a host with more addresses is found by these only.
    facts.addresses.value.iter().flatten().take(PER_KEY)
}

fn link(names: &mut Vec<Arc<str>>, name: &Arc<str>) {
    if !names.contains(name) {
        if names.len() >= PER_KEY {
            names.remove(0);
        }
        names.push(name.clone());
    }
}

fn unlink<K: std::hash::Hash + Eq>(index: &mut HashMap<K, Vec<Arc<str>>>, key: &K, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.retain(|held| **held != *name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

type Row<T> = (Arc<str>, Arc<T>);

/// Answers by name, bounded by [`SUBJECTS`].
#[derive(Debug)]
struct Subjects<T> {
    places: HashMap<Arc<str>, usize>,
    rows: Slab<Row<T>>,
    ages: LruList,
}

impl<T> Default for Subjects<T> {
    fn default() -> Self {
        Self { places: HashMap::default(), rows: Slab::new(), ages: LruList::default() }
    }
}

impl<T> Subjects<T> {
    fn get(&self, name: &str) -> Option<&Arc<T>> {
        self.places.get(name).map(|place| &self.rows[*place].1)
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Inserts an answer. Returns the shared name, and the rows that were replaced or evicted.
    fn insert(&mut self, name: &str, facts: Arc<T>) -> (Arc<str>, Vec<Row<T>>) {
        let mut gone = Vec::new();
        if let Some(&place) = self.places.get(name) {
            self.ages.touch(place);
            let (name, before) = &mut self.rows[place];
            gone.push((name.clone(), std::mem::replace(before, facts)));
            return (name.clone(), gone);
        }
        while self.rows.len() >= SUBJECTS
            && let Some(oldest) = self.ages.oldest()
        {
            self.ages.unlink(oldest);
            let row = self.rows.remove(oldest);
            self.places.remove(&row.0);
            gone.push(row);
        }
        let name: Arc<str> = name.into();
        let place = self.rows.insert((name.clone(), facts));
        self.places.insert(name.clone(), place);
        self.ages.touch(place);
        (name, gone)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{
        super::{
            MxSet,
            answer::{Answer, State},
            sts::{StsMode, StsPolicy},
        },
        *,
    };

    pub(crate) fn answer<T>(state: State, value: Option<T>) -> Answer<T> {
        let (at, until) = (Timestamp::from_secs(0), Timestamp::from_secs(3600));
        Answer { state, value, detail: "test".to_owned(), at, until }
    }

    pub(crate) fn domain(hosts: &[&str], mode: Option<StsMode>) -> Arc<DomainFacts> {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let policy = mode.map(|mode| StsPolicy {
            id: "1".to_owned(),
            mode,
            mx: hosts.clone(),
            max_age: Duration::from_secs(86_400),
        });
        let state = if policy.is_some() { State::Valid } else { State::Absent };
        Arc::new(DomainFacts {
            mx: answer(State::Valid, Some(MxSet { hosts, secure: false })),
            sts: answer(state, policy),
        })
    }

    pub(crate) fn host(address: [u8; 4], tlsa: Option<&[super::super::tlsa::Tlsa]>) -> Arc<HostFacts> {
        let state = if tlsa.is_some() { State::Valid } else { State::Insecure };
        Arc::new(HostFacts {
            addresses: answer(State::Valid, Some(vec![address.into()])),
            dane: answer(state, tlsa.map(<[_]>::to_vec)),
            base: "mx.example.net".to_owned(),
        })
    }

    #[test]
    fn an_address_leads_to_hosts_and_domains_for_as_long_as_they_are_known() {
        let mut known = Published::new(true);
        known.apply(LookupResult::Domain("example.net".to_owned(), domain(&["mx.example.net"], None)));
        known.apply(LookupResult::Host("mx.example.net".to_owned(), host([192, 0, 2, 1], None)));
        let at =
            |known: &Published, last| known.hosts_at([192, 0, 2, last].into()).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(at(&known, 1), ["mx.example.net"]);
        assert_eq!(known.domains_of("mx.example.net").collect::<Vec<_>>(), ["example.net"]);
        known.apply(LookupResult::Host("mx.example.net".to_owned(), host([192, 0, 2, 2], None)));
        assert_eq!((at(&known, 1), at(&known, 2)), (vec![], vec!["mx.example.net".to_owned()]));
    }

    #[test]
    fn what_is_under_way_is_asked_for_once_and_again_when_it_is_late_or_old() {
        let mut known = Published::new(true);
        let subject = LookupRequest::Host("mx.example.net".to_owned());
        let at = Timestamp::from_secs;
        assert!(known.request(&subject, at(0)) && !known.request(&subject, at(1)) && known.is_pending(&subject, at(1)));
        assert!(!known.is_pending(&subject, at(11)) && known.request(&subject, at(11)));
        known.apply(LookupResult::Host("mx.example.net".to_owned(), host([192, 0, 2, 1], None)));
        assert!(
            !known.is_pending(&subject, at(11))
                && !known.request(&subject, at(12))
                && known.request(&subject, at(3600))
        );
        assert!(!Published::new(false).request(&subject, at(0)));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut known = Published::new(true);
        for number in 0..SUBJECTS + 100 {
            let name = format!("d{number}.example.net");
            known.request(&LookupRequest::Host(format!("x{name}")), Timestamp::from_secs(0));
            known.apply(LookupResult::Domain(name, domain(&[&format!("mx{number}.example.net")], None)));
        }
        assert_eq!(known.domains.rows.len(), SUBJECTS);
        assert_eq!(known.of_host.len(), SUBJECTS);
        assert_eq!(known.asked.len(), ASKED);
    }
}
