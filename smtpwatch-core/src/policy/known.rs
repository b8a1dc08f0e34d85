//! What is known of published policies, as it is handed to anyone who keeps it.

use std::sync::Arc;

use crate::{
    Timestamp,
    policy::published::{DomainFacts, HostFacts, LookupRequest},
};

use super::memory::Memory;

/// One thing to keep.
#[derive(Clone, PartialEq, Debug)]
pub enum Known {
    /// A domain was looked up.
    Domain(KnownDomain),
    /// A mail host was looked up.
    Host(KnownHost),
    /// A list was fetched.
    List(KnownList),
    /// A subject had to make room.
    Forgotten(LookupRequest),
}

/// A domain.
#[derive(Clone, PartialEq, Debug)]
pub struct KnownDomain {
    /// Its name.
    pub name: String,
    /// What was found.
    pub facts: Arc<DomainFacts>,
    /// Its MTA-STS policy: trust on first use has to outlive the process (RFC 8461 §10.2).
    pub memory: Memory,
}

/// A mail host.
#[derive(Clone, PartialEq, Debug)]
pub struct KnownHost {
    /// Its name.
    pub name: String,
    /// What was found.
    pub facts: Arc<HostFacts>,
}

/// A STARTTLS-Everywhere list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownList {
    /// Its URL.
    pub url: String,
    /// Its text.
    pub text: Vec<u8>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}

/// Everything that was kept.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Kept {
    /// Domains, the newest first.
    pub domains: Vec<KnownDomain>,
    /// Mail hosts, likewise.
    pub hosts: Vec<KnownHost>,
}
