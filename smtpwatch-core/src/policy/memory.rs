//! MTA-STS state of a domain between look-ups: the policy that was fetched, and the last attempt that failed (RFC 8461
//! §3.3, §5.1). [`Memory`] decides when to fetch again.

use std::time::Duration;

use crate::{
    Timestamp,
    engine::ResultType,
    policy::published::sts::{StsMode, StsPolicy},
};

/// Time after a failed fetch during which the same policy is not fetched again (RFC 8461 §3.3: five minutes).
pub const BACK_OFF: Duration = Duration::from_secs(300);

/// Minimum validity of a policy after its fetch, even with a `max_age` of 0: the delivery for which it was fetched is
/// judged within this time.
pub const DELIVERY: Duration = Duration::from_secs(60);

/// MTA-STS state of one domain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// The policy fetched last.
    pub kept: Option<Kept>,
    /// The latest attempt, if it failed.
    pub failed: Option<Failed>,
}

/// A fetched policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The policy.
    pub policy: StsPolicy,
    /// Text of the policy.
    pub body: String,
    /// When it was fetched by HTTPS. `max_age` counts from here, regardless of later TXT records.
    pub fetched_at: Timestamp,
}

/// A failed fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failed {
    /// The `id` of the TXT record for which it was fetched.
    pub id: String,
    /// When the fetch failed.
    pub at: Timestamp,
    /// Why the fetch failed.
    pub error: FetchError,
}

/// Reason for a failed fetch, as TLS reports distinguish them (RFC 8460 §4.3.2.2).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// The policy could not be fetched.
    #[error("fetch error: {0}")]
    Fetch(String),
    /// The fetched text is not a policy.
    #[error("policy invalid: {0}")]
    Invalid(String),
    /// The certificate of the policy host is not valid.
    #[error("certificate of the policy host: {0}")]
    WebPki(String),
}

impl FetchError {
    /// The result type in a TLS report.
    #[must_use]
    pub const fn result_type(&self) -> ResultType {
        match self {
            Self::Fetch(_) => ResultType::StsPolicyFetchError,
            Self::Invalid(_) => ResultType::StsPolicyInvalid,
            Self::WebPki(_) => ResultType::StsWebpkiInvalid,
        }
    }
}

impl Kept {
    /// When the policy expires.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.fetched_at + self.policy.max_age
    }

    /// Whether to fetch the policy again although its `id` is unchanged: in the second half of its lifetime, which
    /// leaves time for failed attempts (RFC 8461 §3.3).
    fn is_ageing(&self, now: Timestamp) -> bool {
        now >= self.fetched_at + self.policy.max_age / 2
    }
}

impl Memory {
    /// The policy, unless it has expired.
    #[must_use]
    pub fn holding(&self, now: Timestamp) -> Option<&Kept> {
        self.kept.as_ref().filter(|kept| now < kept.expires())
    }

    /// Whether losing the policy would matter: its mode is not `none` and it has not expired (RFC 8461 §3.3, §10.3).
    #[must_use]
    pub fn protects(&self, now: Timestamp) -> bool {
        self.protects_until(now).is_some()
    }

    /// Until when [`Self::protects`] remains true if nothing changes.
    #[must_use]
    pub fn protects_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.holding(now).filter(|kept| kept.policy.mode != StsMode::None).map(Kept::expires)
    }

    /// Whether to fetch the policy of a TXT record with this `id` at `now`.
    #[must_use]
    pub fn is_due(&self, id: &str, now: Timestamp) -> bool {
        let current = self.holding(now).is_some_and(|kept| kept.policy.id == id && !kept.is_ageing(now));
        let backing_off = self.failed.as_ref().is_some_and(|failed| failed.id == id && now < failed.at + BACK_OFF);
        !current && !backing_off
    }

    /// Records the result of a fetch.
    pub fn note(&mut self, id: &str, fetched: Result<(StsPolicy, String), FetchError>, now: Timestamp) {
        match fetched {
            Ok((policy, body)) => *self = Self { kept: Some(Kept { policy, body, fetched_at: now }), failed: None },
            Err(error) => self.failed = Some(Failed { id: id.to_owned(), at: now, error }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(id: &str, mode: StsMode) -> (StsPolicy, String) {
        let policy = StsPolicy {
            id: id.to_owned(),
            mode,
            mx: vec!["mx.example.net".to_owned()],
            max_age: Duration::from_secs(10_000),
        };
        (policy, "text".to_owned())
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn a_policy_is_fetched_for_a_new_id_and_in_the_second_half_of_its_life() {
        let mut memory = Memory::default();
        assert!(memory.is_due("1", at(0)));
        memory.note("1", Ok(policy("1", StsMode::Enforce)), at(0));
        assert!(!memory.is_due("1", at(4_999)) && memory.is_due("2", at(1)) && memory.is_due("1", at(5_000)));
        // The age counts from the fetch, not from the TXT record seen since.
        assert!(memory.holding(at(9_999)).is_some() && memory.holding(at(10_000)).is_none());
    }

    #[test]
    fn a_failed_fetch_keeps_the_policy_and_backs_off_for_its_id() {
        let mut memory = Memory::default();
        memory.note("1", Ok(policy("1", StsMode::Enforce)), at(0));
        memory.note("2", Err(FetchError::Fetch("down".to_owned())), at(100));
        assert!(memory.protects(at(100)));
        assert!(!memory.is_due("2", at(399)) && memory.is_due("2", at(400)) && memory.is_due("3", at(101)));
        memory.note("2", Ok(policy("2", StsMode::None)), at(400));
        assert!(memory.holding(at(401)).is_some() && !memory.protects(at(401)), "none takes the policy away");
        assert_eq!(memory.failed, None);
    }
}
