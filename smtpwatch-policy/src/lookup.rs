//! Looks up what a domain or a mail host publishes: queries in the order of the RFCs, answers as plain data. The
//! entry points are [`Sources::domain`] and [`Sources::host`].

use std::{sync::Arc, time::Duration};

use smtpwatch_config::PolicySettings;
use smtpwatch_core::{
    Timestamp,
    policy::{
        memory::{BACK_OFF, DELIVERY, Failed, FetchError, Memory},
        published::{
            Answer, DomainFacts, HostFacts, MxSet, State,
            sts::{StsMode, StsPolicy, StsRecord},
            tlsa::Tlsa,
        },
    },
};

use super::{
    anchors::{AnchorError, Anchors},
    fetch::{Authorities, Fetcher, FetcherError},
    resolver::{Addresses, Dnssec, Mx, NoResolver, QueryResult, REMEDY, Resolver},
};

/// Interval after a failure until the next attempt.
const RETRY: Duration = BACK_OFF;

/// Timeouts of the sources.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// One query to one name server.
    pub dns: Duration,
    /// One complete fetch (RFC 8461 §3.3 suggests at most a minute).
    pub fetch: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { dns: Duration::from_secs(3), fetch: Duration::from_secs(30) }
    }
}

/// Trust material that is read from files before the first look-up.
#[derive(Clone)]
pub struct Trust {
    anchors: Option<Anchors>,
    authorities: Authorities,
}

/// A configured file is unusable.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The trust anchors file.
    #[error(transparent)]
    Anchors(#[from] AnchorError),
    /// The certificate authorities file.
    #[error(transparent)]
    Authorities(#[from] FetcherError),
}

impl Trust {
    /// Reads the files of `trust_anchor` and `ca_file`.
    ///
    /// # Errors
    ///
    /// A file cannot be read or has invalid content.
    pub fn load(settings: &PolicySettings) -> Result<Self, TrustError> {
        let anchors = Anchors::load(&settings.trust_anchor)?;
        Ok(Self { anchors, authorities: Authorities::load(&settings.ca_file)? })
    }
}

/// Clients of the name servers and policy hosts.
pub struct Sources {
    resolver: Arc<Resolver>,
    /// The HTTPS client, or the reason why there is none.
    fetcher: Result<Fetcher, String>,
    mta_sts: bool,
    dane: bool,
}

/// Result of the look-up of a domain.
#[derive(Clone, PartialEq, Debug)]
pub struct DomainLookup {
    /// The answers.
    pub facts: DomainFacts,
    /// Data to remember for the next look-up.
    pub memory: Memory,
    /// Fetching or refreshing its MTA-STS policy failed.
    pub failed: bool,
}

impl Sources {
    /// Finds the name servers and tests DNSSEC.
    ///
    /// # Errors
    ///
    /// There are no name servers.
    pub async fn start(
        settings: &PolicySettings,
        trust: &Trust,
        timeouts: Timeouts,
        now: Timestamp,
    ) -> Result<Self, NoResolver> {
        let (server, dane) = (*settings.resolver, *settings.dane);
        let resolver = Arc::new(Resolver::start(server, trust.anchors.as_ref(), dane, timeouts.dns, now).await?);
        let (port, private) = (settings.https_port.0.0, *settings.allow_private);
        let fetcher = Fetcher::new(resolver.clone(), &trust.authorities, port, private, timeouts.fetch);
        let fetcher = fetcher.map_err(|error| error.to_string());
        Ok(Self { resolver, fetcher, mta_sts: *settings.mta_sts, dane })
    }

    /// State of DNSSEC validation.
    #[must_use]
    pub fn dnssec(&self) -> &Dnssec {
        self.resolver.dnssec()
    }

    /// Fetches a list by its URL.
    ///
    /// # Errors
    ///
    /// The fetch failed.
    pub async fn list(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        match &self.fetcher {
            Ok(fetcher) => fetcher.list(url).await,
            Err(why) => Err(FetchError::Fetch(why.clone())),
        }
    }

    /// The TXT records at a name.
    pub async fn txt(&self, name: &str) -> QueryResult<Vec<Vec<u8>>> {
        self.resolver.txt(name).await
    }

    /// Sends a body by POST; returns the HTTP status.
    ///
    /// # Errors
    ///
    /// The request failed.
    pub async fn post(&self, url: &str, media: &'static str, body: Vec<u8>) -> Result<u16, FetchError> {
        match &self.fetcher {
            Ok(fetcher) => fetcher.post(url, media, body).await,
            Err(why) => Err(FetchError::Fetch(why.clone())),
        }
    }

    /// Looks up a recipient domain: its mail hosts and its MTA-STS policy.
    pub async fn domain(&self, domain: &str, memory: Memory, now: Timestamp) -> DomainLookup {
        let held = memory.holding(now).is_some();
        let (mx, (sts, mut memory, mut failed)) = tokio::join!(self.mx(domain, now), self.sts(domain, memory, now));
        let sts = match contradiction(&sts, &mx) {
            None => sts,
            // MX records are not authenticated, but the policy is: a change of records under a cached policy does not
            // revoke it (RFC 8461 §4.1, §5, §10.2).
            Some(why) if held => Answer { detail: format!("{}; {why}", sts.detail), ..sts },
            // A policy that never matched its domain protects no mail: it is not cached, and is fetched again.
            Some(why) => {
                let error = FetchError::Invalid(why);
                let detail = error.to_string();
                if let Some(kept) = memory.kept.take() {
                    memory.failed = Some(Failed { id: kept.policy.id, at: now, error });
                }
                failed = true;
                Answer { state: State::Invalid, detail, until: now + BACK_OFF, ..sts }
            }
        };
        DomainLookup { facts: DomainFacts { mx, sts }, memory, failed }
    }

    /// Looks up a mail host: its addresses and its TLSA records.
    pub async fn host(&self, host: &str, now: Timestamp) -> HostFacts {
        let addresses = self.resolver.addresses(host).await;
        let (dane, base) = self.dane(host, &addresses, now).await;
        HostFacts { addresses: addresses_answer(host, addresses, now), dane, base }
    }

    /// The MX records, or the domain itself as the implicit MX (RFC 5321 §5.1).
    async fn mx(&self, domain: &str, now: Timestamp) -> Answer<MxSet> {
        match self.resolver.mx(domain).await {
            QueryResult::Present { value: Mx { null: true, .. }, secure, ttl } => {
                let value = MxSet { hosts: Vec::new(), secure };
                answer(State::Valid, Some(value), "it takes no mail (null MX, RFC 7505)".to_owned(), now, ttl)
            }
            QueryResult::Present { value: Mx { hosts, .. }, secure, ttl } if !hosts.is_empty() => {
                let detail = format!("{} MX hosts, {}", hosts.len(), proved(secure));
                answer(State::Valid, Some(MxSet { hosts, secure }), detail, now, ttl)
            }
            QueryResult::Present { ttl, .. } => {
                answer(State::Invalid, None, "no MX record names a host".to_owned(), now, ttl)
            }
            QueryResult::Absent { no_name: true, ttl, secure } => {
                answer(State::Absent, None, format!("there is no such domain, {}", proved(secure)), now, ttl)
            }
            QueryResult::Absent { secure, ttl, .. } => {
                let value = MxSet { hosts: vec![domain.to_owned()], secure };
                let detail = format!("no MX records, {}: the domain itself takes its mail", proved(secure));
                answer(State::Valid, Some(value), detail, now, ttl)
            }
            QueryResult::Bogus(why) => answer(State::Bogus, None, why, now, RETRY),
            QueryResult::Error(why) => answer(State::Error, None, why, now, RETRY),
        }
    }

    /// The MTA-STS policy, remembered or fetched (RFC 8461 §3, §5.1). The flag is true if a refresh failed.
    async fn sts(&self, domain: &str, mut memory: Memory, now: Timestamp) -> (Answer<StsPolicy>, Memory, bool) {
        if !self.mta_sts {
            let off = "MTA-STS is switched off ([policy] mta_sts)".to_owned();
            return (answer(State::Absent, None, off, now, RETRY), memory, false);
        }
        let mut failed = false;
        // Why there is no new policy, in case none is remembered either.
        let (state, why, ttl) = match self.resolver.txt(&format!("_mta-sts.{domain}")).await {
            QueryResult::Present { value, ttl, .. } => match StsRecord::find(&value) {
                Ok(Some(record)) => {
                    if memory.is_due(&record.id, now) {
                        let fetched = match &self.fetcher {
                            Ok(fetcher) => fetcher.policy(domain, &record.id).await,
                            Err(why) => Err(FetchError::Fetch(why.clone())),
                        };
                        failed = fetched.is_err();
                        memory.note(&record.id, fetched, now);
                    }
                    match &memory.failed {
                        Some(last) if matches!(last.error, FetchError::Invalid(_)) => {
                            (State::Invalid, last.error.to_string(), BACK_OFF)
                        }
                        Some(last) => (State::Error, last.error.to_string(), BACK_OFF),
                        None => (State::Valid, String::new(), ttl),
                    }
                }
                Ok(None) => (State::Absent, "no TXT record that begins with v=STSv1".to_owned(), ttl),
                Err(error) => (State::Invalid, format!("TXT record: {error}"), ttl),
            },
            QueryResult::Absent { ttl, .. } => (State::Absent, "no TXT record".to_owned(), ttl),
            // A failed query does not mean "no policy".
            QueryResult::Bogus(why) => (State::Bogus, why, RETRY),
            QueryResult::Error(why) => (State::Error, why, RETRY),
        };
        // An attacker who can make DNS or HTTPS fail must not be able to remove the policy.
        failed |= matches!(state, State::Error | State::Bogus) && memory.failed.is_none();
        failed |= matches!(state, State::Absent | State::Invalid) && memory.protects(now) && memory.failed.is_none();
        let result = match (memory.holding(now), &memory.kept) {
            (Some(kept), _) => {
                let policy = kept.policy.clone();
                let note = if why.is_empty() { String::new() } else { format!("; kept, although: {why}") };
                let detail = format!(
                    "id {}, fetched {}, holds until {}{note}",
                    policy.id,
                    kept.fetched_at.date(),
                    kept.expires().date()
                );
                let until = kept.expires().max(kept.fetched_at + DELIVERY);
                Answer { state: State::Valid, value: Some(policy), detail, at: kept.fetched_at, until }
            }
            // A policy may forbid caching; it is valid for the delivery that it was fetched for.
            (None, Some(kept)) if now < kept.fetched_at + DELIVERY => {
                let policy = kept.policy.clone();
                let seconds = policy.max_age.as_secs();
                let detail =
                    format!("id {}, max_age {seconds}: it holds for this delivery, and is not cached", policy.id);
                let until = kept.fetched_at + DELIVERY;
                Answer { state: State::Valid, value: Some(policy), detail, at: kept.fetched_at, until }
            }
            (None, Some(kept)) if matches!(state, State::Error | State::Bogus) => {
                let detail = format!("expired {}, and cannot be refreshed: {why}", kept.expires().date());
                answer(State::Expired, Some(kept.policy.clone()), detail, now, ttl)
            }
            (None, _) => {
                // Forgets an expired policy whose domain has ceased to publish one.
                if state == State::Absent {
                    memory = Memory::default();
                }
                answer(state, None, why, now, ttl)
            }
        };
        (result, memory, failed)
    }

    /// The TLSA records at their possible names (RFC 7672 §2.2), and the name where they were found.
    async fn dane(
        &self,
        host: &str,
        addresses: &QueryResult<Addresses>,
        now: Timestamp,
    ) -> (Answer<Vec<Tlsa>>, String) {
        let nowhere = |state, detail: &str, ttl| (answer(state, None, detail.to_owned(), now, ttl), host.to_owned());
        match self.dnssec() {
            Dnssec::On => {}
            Dnssec::Off if self.dane => return nowhere(State::Error, "DNSSEC is not validated", RETRY),
            Dnssec::Off => return nowhere(State::Absent, "DANE is switched off ([policy] dane)", RETRY),
            Dnssec::Broken(why) => {
                return nowhere(State::Error, &format!("DANE is switched off: {why}: {REMEDY}"), RETRY);
            }
        }
        let (bases, ttl) = match addresses {
            QueryResult::Present { value, ttl, .. } => (&value.tlsa_bases, *ttl),
            QueryResult::Absent { ttl, .. } => return nowhere(State::Absent, "the host has no address", *ttl),
            QueryResult::Bogus(why) => return nowhere(State::Bogus, why, RETRY),
            QueryResult::Error(why) => return nowhere(State::Error, why, RETRY),
        };
        let mut last = nowhere(
            State::Insecure,
            "DNSSEC does not prove the addresses of the host: TLSA records are not queried (RFC 7672 §2.2.2)",
            ttl,
        );
        for base in bases {
            match self.resolver.tlsa(base).await {
                QueryResult::Present { value, secure: true, ttl: own } => {
                    let usable = value.iter().filter(|tlsa| tlsa.is_usable()).count();
                    let detail = match usable {
                        0 => "none of the TLSA records is usable: TLS is demanded, of any certificate".to_owned(),
                        1 => format!("1 TLSA record for {base}"),
                        count => format!("{count} TLSA records for {base}"),
                    };
                    return (answer(State::Valid, Some(value), detail, now, ttl.min(own)), base.clone());
                }
                QueryResult::Present { value, secure: false, ttl: own } => {
                    let detail = "there are TLSA records, but DNSSEC does not prove them".to_owned();
                    last = (answer(State::Insecure, Some(value), detail, now, ttl.min(own)), host.to_owned());
                }
                QueryResult::Absent { secure, ttl: own, .. } => {
                    let detail = format!("no TLSA records, {}", proved(secure));
                    last = (answer(State::Absent, None, detail, now, ttl.min(own)), host.to_owned());
                }
                // A failed query ends the search: the next name must not decide in place of a suppressed answer.
                QueryResult::Bogus(why) => return (answer(State::Bogus, None, why, now, RETRY), base.clone()),
                QueryResult::Error(why) => return (answer(State::Error, None, why, now, RETRY), base.clone()),
            }
        }
        last
    }
}

/// Why a policy and the MX records of its domain contradict each other: the policy allows none of the domain's mail
/// hosts.
fn contradiction(sts: &Answer<StsPolicy>, mx: &Answer<MxSet>) -> Option<String> {
    let (policy, mx) = (sts.valid()?, mx.valid()?);
    let fits = policy.mode == StsMode::None || mx.hosts.is_empty() || mx.hosts.iter().any(|host| policy.matches(host));
    (!fits).then(|| {
        format!("it allows {}, and none of the domain's own mail hosts ({})", policy.mx.join(", "), mx.hosts.join(", "))
    })
}

fn addresses_answer(host: &str, found: QueryResult<Addresses>, now: Timestamp) -> Answer<Vec<std::net::IpAddr>> {
    match found {
        QueryResult::Present { value, secure, ttl } => {
            answer(State::Valid, Some(value.list), proved(secure).to_owned(), now, ttl)
        }
        QueryResult::Absent { secure, ttl, .. } => {
            answer(State::Absent, None, format!("{host} has no address, {}", proved(secure)), now, ttl)
        }
        QueryResult::Bogus(why) => answer(State::Bogus, None, why, now, RETRY),
        QueryResult::Error(why) => answer(State::Error, None, why, now, RETRY),
    }
}

const fn proved(secure: bool) -> &'static str {
    if secure { "proved by DNSSEC" } else { "not proved by DNSSEC" }
}

fn answer<T>(state: State, value: Option<T>, detail: String, now: Timestamp, ttl: Duration) -> Answer<T> {
    Answer { state, value, detail, at: now, until: now + ttl }
}
