//! What domains and mail hosts publish about TLS, as plain data, and the index from an address to the domains that it
//! receives mail for. The code that looks policies up is elsewhere and gets requests from here.
//!
//! DANE applies to a mail host (RFC 7672), MTA-STS (RFC 8461) and the STARTTLS-Everywhere list to a recipient domain.

pub mod answer;
pub mod certificate;
pub mod demand;
pub mod list;
mod names;
pub mod sts;
mod syntax;
mod table;
pub mod tlsa;

use std::{net::IpAddr, sync::Arc};

pub use self::{
    answer::{Answer, State},
    names::domain_name,
    table::{HOSTS_PER_DOMAIN, LOOKUP_TIMEOUT, Published, SUBJECTS, hosts},
};
use self::{list::StarttlsList, sts::StsPolicy, tlsa::Tlsa};

/// What someone is to look up.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LookupRequest {
    /// A recipient domain: its MX records and its MTA-STS policy. In lower case, A-labels, without the final dot.
    Domain(String),
    /// A mail host: its addresses and its TLSA records. In the same form.
    Host(String),
}

/// What was found.
#[derive(Clone, PartialEq, Debug)]
pub enum LookupResult {
    /// Of a recipient domain.
    Domain(String, Arc<DomainFacts>),
    /// Of a mail host.
    Host(String, Arc<HostFacts>),
    /// The STARTTLS-Everywhere list.
    List(Arc<StarttlsList>),
}

/// What a recipient domain publishes.
#[derive(Clone, PartialEq, Debug)]
pub struct DomainFacts {
    /// Its mail hosts, the most preferred first; without MX records the domain itself (RFC 5321 §5.1).
    pub mx: Answer<MxSet>,
    /// Its MTA-STS policy.
    pub sts: Answer<StsPolicy>,
}

/// The mail hosts of a domain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MxSet {
    /// In the form of [`LookupRequest::Host`].
    pub hosts: Vec<String>,
    /// DNSSEC proves them: without that a host is known, but not that it is the domain's (RFC 7672 §2.2.1).
    pub secure: bool,
}

/// What a mail host publishes.
#[derive(Clone, PartialEq, Debug)]
pub struct HostFacts {
    /// Its addresses.
    pub addresses: Answer<Vec<IpAddr>>,
    /// Its TLSA records for port 25. [`State::Valid`] also where none of them is usable: then TLS is demanded, and no one can be
    /// authenticated (RFC 7672 §2.2).
    pub dane: Answer<Vec<Tlsa>>,
    /// The name that the TLSA records were found at (RFC 7672 §2.2.2): the host itself, or what its CNAME leads to.
    pub base: String,
}
