//! DNS with DNSSEC. Every query of this program goes through [`Resolver`], and [`Reply::read`] evaluates every
//! answer.
//!
//! smtpwatch validates itself (RFC 4035 §5), through the configured name servers: no host on the path to them has to be
//! trusted. The name servers must pass signatures on; [`Resolver::start`] tests that.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hickory_resolver::{
    NameServerPool, PoolContext, TlsConfig,
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    net::{
        DnsError, NetError,
        dnssec::DnssecDnsHandle,
        runtime::TokioRuntimeProvider,
        xfer::{DnsHandle as _, FirstAnswer as _},
    },
    proto::{
        dnssec::{Proof, TrustAnchors},
        op::{DnsRequest, DnsRequestOptions, Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
    system_conf::read_system_conf,
};
use smtpwatch_core::{
    Timestamp,
    policy::published::{domain_name, tlsa::Tlsa},
};

use super::{
    anchors::Anchors,
    denial::{MAX_ALIASES, MAX_ITERATIONS, Reply, ReplyContent},
};

/// Maximum number of addresses of one host, MX records of one domain, and TLSA records of one host; more are left
/// out.
pub const MAX_RECORDS: usize = 32;
/// Limits of the lifetime of an answer, whatever its TTL.
const TTL_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(86_400);
/// Lifetime of an answer without a TTL (RFC 2308 §5 leaves it to the resolver).
const DEFAULT_TTL: Duration = Duration::from_secs(300);
/// Remedy if DNSSEC validation fails.
pub const REMEDY: &str = "the name server must pass DNSSEC records on, and the clock must be right; name one that does \
                          in [policy] resolver, such as a local Unbound, or set dane = false";

/// Result of a query.
#[derive(Clone, Debug)]
pub enum QueryResult<T> {
    /// The records exist.
    Present {
        /// The records.
        value: T,
        /// DNSSEC proves the records and every alias on the path to them.
        secure: bool,
        /// Lifetime.
        ttl: Duration,
    },
    /// The records do not exist.
    Absent {
        /// DNSSEC proves the absence.
        secure: bool,
        /// The name itself does not exist.
        no_name: bool,
        /// Lifetime.
        ttl: Duration,
    },
    /// DNSSEC validation failed: the answer is forged, or its zone is misconfigured.
    Bogus(String),
    /// No answer, or an error code. Never equivalent to [`QueryResult::Absent`] (RFC 7672 §2.1).
    Error(String),
}

impl<T> QueryResult<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> QueryResult<U> {
        match self {
            Self::Present { value, secure, ttl } => QueryResult::Present { value: f(value), secure, ttl },
            Self::Absent { secure, no_name, ttl } => QueryResult::Absent { secure, no_name, ttl },
            Self::Bogus(why) => QueryResult::Bogus(why),
            Self::Error(why) => QueryResult::Error(why),
        }
    }
}

/// State of DNSSEC validation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dnssec {
    /// Answers are validated.
    On,
    /// Disabled by the configuration (`dane = false`).
    Off,
    /// Validation is impossible, for this reason. See [`REMEDY`].
    Broken(String),
}

impl std::fmt::Display for Dnssec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::On => f.write_str("on"),
            Self::Off => f.write_str("off"),
            Self::Broken(why) => write!(f, "broken: {why}"),
        }
    }
}

/// The name servers are unknown.
#[derive(Debug, thiserror::Error)]
#[error("no name servers: {0}: mend /etc/resolv.conf, or name one in [policy] resolver")]
pub struct NoResolver(String);

/// MX records of a domain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mx {
    /// Host names, the most preferred first.
    pub hosts: Vec<String>,
    /// The domain accepts no mail (RFC 7505).
    pub null: bool,
}

/// Addresses of a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    /// The addresses.
    pub list: Vec<IpAddr>,
    /// The names to query for TLSA records, in this order (RFC 7672 §2.2.2); empty if DNSSEC does not prove the
    /// addresses.
    pub tlsa_bases: Vec<String>,
}

/// Client of the name servers.
pub struct Resolver {
    servers: NameServerPool<TokioRuntimeProvider>,
    /// Validates the signatures of answers, if enabled.
    validator: Option<DnssecDnsHandle<NameServerPool<TokioRuntimeProvider>>>,
    dnssec: Dnssec,
    /// Timeout of one query.
    timeout: Duration,
}

impl Resolver {
    /// Finds the name servers and tests whether DNSSEC works through them: the keys of the anchored zones must
    /// validate.
    ///
    /// # Errors
    ///
    /// There are no name servers. Failed validation is not an error: see [`Self::dnssec`].
    pub async fn start(
        server: smtpwatch_config::Resolver,
        anchors: Option<&Anchors>,
        validate: bool,
        timeout: Duration,
        now: Timestamp,
    ) -> Result<Self, NoResolver> {
        let config = name_servers(server)?;
        let failed = |error: NetError| NoResolver(error.to_string());
        let options = options(timeout);
        let context = PoolContext::new(options, TlsConfig::new().map_err(failed)?);
        let servers = NameServerPool::from_config(
            config.name_servers().to_vec(),
            context.into(),
            TokioRuntimeProvider::default(),
        );
        let plain = Self { servers, validator: None, dnssec: Dnssec::Off, timeout };
        if !validate {
            return Ok(plain);
        }
        let (keys, zones) = match anchors {
            None => (TrustAnchors::default(), vec![Name::root()]),
            Some(anchors) => {
                let zones = anchors.zones();
                let mut published = Vec::new();
                for zone in &zones {
                    published.extend(plain.unvalidated(zone.clone(), RecordType::DNSKEY).await.unwrap_or_default());
                }
                (anchors.keys(&published, now), zones)
            }
        };
        let validator = DnssecDnsHandle::with_trust_anchor(plain.servers.clone(), Arc::new(keys));
        let validator = Some(validator.nsec3_iteration_limits(Some(MAX_ITERATIONS), None));
        let dnssec = Self { servers: plain.servers.clone(), validator, dnssec: Dnssec::On, timeout };
        for zone in zones {
            // Anchored keys are trusted without a signature: the records that they sign show whether signatures
            // arrive.
            let why = match dnssec.query(zone.clone(), RecordType::SOA).await {
                QueryResult::Present { secure: true, .. } => continue,
                QueryResult::Present { secure: false, .. } => "its SOA record is not proved".to_owned(),
                QueryResult::Absent { .. } => "it shows no SOA record".to_owned(),
                QueryResult::Bogus(why) | QueryResult::Error(why) => why,
            };
            let dnssec =
                Dnssec::Broken(format!("the zone \"{zone}\" cannot be validated through the name server ({why})"));
            return Ok(Self { dnssec, ..plain });
        }
        Ok(dnssec)
    }

    /// State of DNSSEC validation. Without validation, no answer is secure.
    #[must_use]
    pub const fn dnssec(&self) -> &Dnssec {
        &self.dnssec
    }

    /// The MX records of a domain. Targets that are not host names, such as addresses, are left out.
    pub async fn mx(&self, domain: &str) -> QueryResult<Mx> {
        self.query_name(domain, RecordType::MX).await.map(|records| {
            let mut exchanges: Vec<(u16, String)> = records
                .iter()
                .filter_map(|record| match &record.data {
                    RData::MX(mx) => Some((mx.preference, mx.exchange.to_ascii())),
                    _ => None,
                })
                .collect();
            exchanges.sort();
            exchanges.truncate(MAX_RECORDS);
            let null = exchanges.len() == 1 && exchanges[0].1 == ".";
            let mut hosts: Vec<String> = exchanges.iter().filter_map(|(_, name)| domain_name(name)).collect();
            let mut seen = std::collections::HashSet::new();
            hosts.retain(|host| seen.insert(host.clone()));
            Mx { hosts, null }
        })
    }

    /// The TXT records at a name, with the strings of each record concatenated (RFC 8461 §3.1).
    pub async fn txt(&self, name: &str) -> QueryResult<Vec<Vec<u8>>> {
        self.query_name(name, RecordType::TXT).await.map(|records| {
            let text = |record: &Record| match &record.data {
                RData::TXT(txt) => Some(txt.txt_data.concat()),
                _ => None,
            };
            records.iter().filter_map(text).take(MAX_RECORDS).collect()
        })
    }

    /// The addresses of a host, of both families. A failed query for one family does not hide the other.
    pub async fn addresses(&self, host: &str) -> QueryResult<Addresses> {
        let (v4, v6) = tokio::join!(self.query_name(host, RecordType::A), self.query_name(host, RecordType::AAAA));
        let (one, other) = (self.family(host, v4), self.family(host, v6));
        match (one, other) {
            (
                QueryResult::Present { value: a, secure: a_secure, ttl: a_ttl },
                QueryResult::Present { value: b, secure: b_secure, ttl: b_ttl },
            ) => {
                let mut list: Vec<IpAddr> = a.list.into_iter().chain(b.list).collect();
                list.truncate(MAX_RECORDS);
                // A host is proved only if the answers of both families are.
                let tlsa_bases = a.tlsa_bases.into_iter().filter(|base| b.tlsa_bases.contains(base)).collect();
                let value = Addresses { list, tlsa_bases };
                QueryResult::Present { value, secure: a_secure && b_secure, ttl: a_ttl.min(b_ttl) }
            }
            (found @ QueryResult::Present { .. }, _) | (_, found @ QueryResult::Present { .. }) => found,
            (bogus @ QueryResult::Bogus(_), _) | (_, bogus @ QueryResult::Bogus(_)) => bogus,
            (error @ QueryResult::Error(_), _) | (_, error @ QueryResult::Error(_)) => error,
            (
                QueryResult::Absent { secure: a_secure, no_name, ttl: a_ttl },
                QueryResult::Absent { secure: b_secure, ttl: b_ttl, .. },
            ) => QueryResult::Absent { secure: a_secure && b_secure, no_name, ttl: a_ttl.min(b_ttl) },
        }
    }

    /// The TLSA records for port 25 at a base domain (RFC 7672 §2.2.3). A CNAME at that name is followed, and the
    /// base does not change.
    pub async fn tlsa(&self, base: &str) -> QueryResult<Vec<Tlsa>> {
        self.query_name(&format!("_25._tcp.{base}"), RecordType::TLSA).await.map(|records| {
            let tlsa = |record: &Record| match &record.data {
                RData::TLSA(tlsa) => Some(Tlsa {
                    usage: tlsa.cert_usage.into(),
                    selector: tlsa.selector.into(),
                    matching: tlsa.matching.into(),
                    data: tlsa.cert_data.clone(),
                }),
                _ => None,
            };
            let mut found: Vec<Tlsa> = records.iter().filter_map(tlsa).collect();
            found.sort();
            found.truncate(MAX_RECORDS);
            found
        })
    }

    /// The addresses of one family, and the TLSA base domains that the path to them permits.
    fn family(&self, host: &str, found: QueryResult<Vec<Record>>) -> QueryResult<Addresses> {
        let (records, secure, ttl) = match found {
            QueryResult::Present { value, secure, ttl } => (value, secure, ttl),
            other => return other.map(|_| Addresses::default()),
        };
        let list = records.iter().filter_map(|record| record.data.ip_addr()).take(MAX_RECORDS).collect();
        let chain = chain(host, &records);
        let first_is_secure =
            self.dnssec == Dnssec::On && chain.first().is_some_and(|link| link.proof == Proof::Secure);
        let target = chain.last().and_then(|link| match &link.data {
            RData::CNAME(target) => domain_name(&target.0.to_ascii()),
            _ => None,
        });
        let tlsa_bases = match (secure, target) {
            (true, Some(target)) => vec![target, host.to_owned()],
            (true, None) => vec![host.to_owned()],
            // The alias is proved but its target is not: TLSA records at the original name cannot be forged.
            (false, _) if first_is_secure => vec![host.to_owned()],
            (false, _) => Vec::new(),
        };
        QueryResult::Present { value: Addresses { list, tlsa_bases }, secure, ttl }
    }

    async fn query_name(&self, name: &str, kind: RecordType) -> QueryResult<Vec<Record>> {
        match Name::from_ascii(format!("{name}.")) {
            Ok(name) => self.query(name, kind).await,
            Err(error) => QueryResult::Error(format!("{name} is no name that can be queried: {error}")),
        }
    }

    async fn query(&self, name: Name, kind: RecordType) -> QueryResult<Vec<Record>> {
        let validated = self.validator.is_some();
        // A validated answer needs queries for each zone on the path: the total timeout is longer than that of one
        // query.
        let time = self.timeout * if validated { 4 } else { 2 };
        let answer = match tokio::time::timeout(time, self.follow(&name, kind)).await {
            // Either the library or this function timed out first.
            Err(_) | Ok(Err(NetError::Timeout)) => {
                return QueryResult::Error(format!("{kind} of {name}: no answer within {} s", time.as_secs_f32()));
            }
            Ok(answer) => answer,
        };
        match answer {
            Ok(found) => found,
            // A validating name server reports a forgery with this code; with checking disabled it returns the data.
            Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)))
                if validated && self.unvalidated(name.clone(), kind).await.is_some() =>
            {
                QueryResult::Bogus(format!("{kind} of {name}: the name server reports invalid signatures"))
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => {
                QueryResult::Error(format!("{kind} of {name}: the name server answers {code}"))
            }
            Err(error) => QueryResult::Error(format!("{kind} of {name}: {error}")),
        }
    }

    /// Queries the records, and those of each alias target that the previous reply does not answer. The result has
    /// the weakest proof among all records of the type and all aliases on the path to them (RFC 4035 §4.3; RFC 7672
    /// §2.1).
    async fn follow(&self, name: &Name, kind: RecordType) -> Result<QueryResult<Vec<Record>>, NetError> {
        let (mut at, mut least, mut records) = (name.clone(), Proof::Secure, Vec::<Record>::new());
        let holds = |records: &[Record], denial: Option<Option<u32>>| {
            let denial =
                denial.map(|seconds| seconds.map_or(DEFAULT_TTL, |seconds| Duration::from_secs(seconds.into())));
            let found = records.iter().map(|record| Duration::from_secs(record.ttl.into()));
            found.chain(denial).min().unwrap_or(DEFAULT_TTL).clamp(*TTL_RANGE.start(), *TTL_RANGE.end())
        };
        while records.len() <= MAX_ALIASES {
            let reply = self.exchange(at.clone(), kind).await?;
            match reply.read(&at, kind) {
                ReplyContent::Records(found, proof) => {
                    records.extend(found);
                    let ttl = holds(&records, None);
                    let secure = least.min(proof) == Proof::Secure;
                    return Ok(QueryResult::Present { value: records, secure, ttl });
                }
                ReplyContent::Denied { aliases, proof, no_name } => {
                    records.extend(aliases);
                    let ttl = holds(&records, Some(reply.negative_ttl));
                    return Ok(QueryResult::Absent { secure: least.min(proof) == Proof::Secure, no_name, ttl });
                }
                ReplyContent::Aliased(aliases, target, proof) => {
                    records.extend(aliases);
                    (at, least) = (target, least.min(proof));
                }
                ReplyContent::Bogus(why) => {
                    let reason = format!("{kind} of {name}: by DNSSEC the answer is forged or broken: {why}");
                    return Ok(QueryResult::Bogus(reason));
                }
            }
        }
        Ok(QueryResult::Error(format!("{kind} of {name}: more than {MAX_ALIASES} aliases")))
    }

    /// One query; each record of the reply carries the proof given by its signatures.
    async fn exchange(&self, name: Name, kind: RecordType) -> Result<Reply, NetError> {
        let mut options = DnsRequestOptions::default();
        options.use_edns = true;
        options.edns_set_dnssec_ok = self.validator.is_some();
        let request = DnsRequest::from_query(Query::query(name, kind), options);
        let answer = match &self.validator {
            Some(validator) => validator.send(request).first_answer().await,
            None => self.servers.send(request).first_answer().await,
        };
        let (response, unsigned) = match answer {
            Ok(response) => (response, true),
            // The library's verdict on the denial; the records are evaluated anyway.
            Err(NetError::Dns(DnsError::Nsec { response, proof, .. })) => (*response, proof == Proof::Insecure),
            // Occurs only without a validator.
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let soa_ttl = none.soa.as_ref().map(|soa| soa.ttl.min(soa.data.minimum));
                let negative_ttl = none.negative_ttl.or(soa_ttl);
                let (answers, authorities, code) = (Vec::new(), Vec::new(), none.response_code);
                return Ok(Reply { answers, authorities, code, negative_ttl, unsigned: true });
            }
            Err(error) => return Err(error),
        };
        let negative_ttl = response.negative_ttl();
        let (mut answers, mut authorities) = (response.answers.clone(), response.authorities.clone());
        if self.validator.is_none() {
            answers.iter_mut().for_each(|record| record.proof = Proof::Insecure);
            // Without validation, the zones of the records are irrelevant.
            authorities.clear();
        }
        Ok(Reply { answers, authorities, code: response.response_code, negative_ttl, unsigned })
    }

    /// The answer without validation, with signatures, even if the name server considers it bogus (RFC 4035 §3.2.2).
    async fn unvalidated(&self, name: Name, kind: RecordType) -> Option<Vec<Record>> {
        let mut options = DnsRequestOptions::default();
        options.use_edns = true;
        options.edns_set_dnssec_ok = true;
        let mut request = DnsRequest::from_query(Query::query(name, kind), options);
        request.metadata.checking_disabled = true;
        let answer = tokio::time::timeout(self.timeout * 2, self.servers.send(request).first_answer()).await;
        match answer.ok()? {
            Ok(answer) if answer.response_code == ResponseCode::NoError => Some(answer.answers.clone()),
            // A denial is an answer too.
            Err(NetError::Dns(DnsError::NoRecordsFound(_))) => Some(Vec::new()),
            _ => None,
        }
    }
}

/// The chain of aliases that begins at `host`, in order.
fn chain<'a>(host: &str, records: &'a [Record]) -> Vec<&'a Record> {
    let mut links: Vec<&Record> = Vec::new();
    let mut at = Name::from_ascii(format!("{host}.")).unwrap_or_default();
    while links.len() < MAX_ALIASES
        && let Some(link) = records.iter().find(|record| record.record_type() == RecordType::CNAME && record.name == at)
        && let RData::CNAME(target) = &link.data
    {
        links.push(link);
        at = target.0.clone();
    }
    links
}

fn options(timeout: Duration) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = timeout;
    options.attempts = 1;
    options.try_tcp_on_error = true;
    options
}

fn name_servers(server: smtpwatch_config::Resolver) -> Result<ResolverConfig, NoResolver> {
    match server {
        smtpwatch_config::Resolver::System => {
            let (config, _) = read_system_conf().map_err(|error| NoResolver(error.to_string()))?;
            // Search lists are for interactive use; every query here has a complete name.
            Ok(ResolverConfig::from_parts(None, Vec::new(), config.name_servers().to_vec()))
        }
        smtpwatch_config::Resolver::Address(address) => {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = address.port());
            Ok(ResolverConfig::from_parts(None, Vec::new(), vec![server]))
        }
    }
}
