//! Published policies in the form in which the store keeps them: [`Known`] for one change, [`Kept`] for everything at
//! start-up.

use std::sync::Arc;

use crate::{
    Timestamp,
    policy::published::{DomainFacts, HostFacts, LookupRequest},
};

use super::memory::Memory;

/// One change to store.
#[derive(Clone, PartialEq, Debug)]
pub enum Known {
    /// A domain was looked up.
    Domain(KnownDomain),
    /// A mail host was looked up.
    Host(KnownHost),
    /// A list was fetched.
    List(KnownList),
    /// A subject was evicted and must be deleted.
    Forgotten(LookupRequest),
}

/// A domain with its policies.
#[derive(Clone, PartialEq, Debug)]
pub struct KnownDomain {
    /// Name of the domain.
    pub name: String,
    /// Result of the look-up.
    pub facts: Arc<DomainFacts>,
    /// State of its MTA-STS policy: trust on first use must survive a restart (RFC 8461 §10.2).
    pub memory: Memory,
}

/// A mail host with its policies.
#[derive(Clone, PartialEq, Debug)]
pub struct KnownHost {
    /// Name of the host.
    pub name: String,
    /// Result of the look-up.
    pub facts: Arc<HostFacts>,
}

/// A STARTTLS-Everywhere list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownList {
    /// URL from which the list was fetched.
    pub url: String,
    /// Text of the list, as fetched.
    pub text: Vec<u8>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}

/// Everything that was stored.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Kept {
    /// Domains, the newest first.
    pub domains: Vec<KnownDomain>,
    /// Mail hosts, the newest first.
    pub hosts: Vec<KnownHost>,
}
