//! MTA-STS (RFC 8461): the TXT record, the policy, and which mail hosts it allows.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a sender does with mail that the policy does not allow (RFC 8461 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StsMode {
    /// It is not delivered.
    Enforce,
    /// It is delivered and reported.
    Testing,
    /// As if there were no policy.
    None,
}

/// A policy (RFC 8461 §3.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StsPolicy {
    /// The `id` of the TXT record that it was fetched for.
    pub id: String,
    /// What to do.
    pub mode: StsMode,
    /// Patterns of mail hosts, in lower case: a name, or `*.` and a name.
    pub mx: Vec<String>,
    /// How long it may be kept after it was fetched.
    pub max_age: Duration,
}
