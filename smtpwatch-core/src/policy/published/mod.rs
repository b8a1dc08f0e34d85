//! Policies that domains and mail hosts publish about TLS, as plain data, and the index from a server address to the
//! domains that it receives mail for. [`Published`] is the main type. The look-up code is in another crate: it executes
//! each [`LookupRequest`] and returns a [`LookupResult`].
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

/// A look-up that the caller must execute.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LookupRequest {
    /// A recipient domain: its MX records and its MTA-STS policy. In lower case, A-labels, without the final dot.
    Domain(String),
    /// A mail host: its addresses and its TLSA records. In the same form.
    Host(String),
}

/// Result of a look-up.
#[derive(Clone, PartialEq, Debug)]
pub enum LookupResult {
    /// For a recipient domain.
    Domain(String, Arc<DomainFacts>),
    /// For a mail host.
    Host(String, Arc<HostFacts>),
    /// The STARTTLS-Everywhere list.
    List(Arc<StarttlsList>),
}

/// What a recipient domain publishes.
#[derive(Clone, PartialEq, Debug)]
pub struct DomainFacts {
    /// Mail hosts, the most preferred first; without MX records the domain itself (RFC 5321 §5.1).
    pub mx: Answer<MxSet>,
    /// MTA-STS policy of the domain.
    pub sts: Answer<StsPolicy>,
}

/// The mail hosts of a domain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MxSet {
    /// Names in the form of [`LookupRequest::Host`].
    pub hosts: Vec<String>,
    /// DNSSEC proves the MX records. Otherwise it is uncertain that the hosts belong to the domain (RFC 7672 §2.2.1).
    pub secure: bool,
}

/// What a mail host publishes.
#[derive(Clone, PartialEq, Debug)]
pub struct HostFacts {
    /// Addresses of the host.
    pub addresses: Answer<Vec<IpAddr>>,
    /// TLSA records of the host for port 25. Also [`State::Valid`] if no record is usable: then TLS is demanded, and
    /// the server cannot be authenticated (RFC 7672 §2.2).
    pub dane: Answer<Vec<Tlsa>>,
    /// The name at which the TLSA records were found (RFC 7672 §2.2.2): the host itself, or the target of its CNAME.
    pub base: String,
}
