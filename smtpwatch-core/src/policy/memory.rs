//! What is remembered of MTA-STS between look-ups: the policy that was fetched, and the last attempt that failed
//! (RFC 8461 §3.3, §5.1).

use std::time::Duration;

use crate::{
    Timestamp,
    engine::ResultType,
    policy::published::sts::{StsMode, StsPolicy},
};

/// After a fetch that failed the same policy is not asked for again within this time (RFC 8461 §3.3: five minutes).
pub const BACK_OFF: Duration = Duration::from_secs(300);

/// A policy holds for at least this long after its fetch, also with a `max_age` of 0: the delivery that it was fetched for
/// is judged within this time.
pub const DELIVERY: Duration = Duration::from_secs(60);

/// What is remembered of one domain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// The policy that was fetched last.
    pub kept: Option<Kept>,
    /// The newest attempt, if it failed.
    pub failed: Option<Failed>,
}

/// A policy that was fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The policy.
    pub policy: StsPolicy,
    /// Its text.
    pub body: String,
    /// When it was fetched by HTTPS: `max_age` counts from here, whatever TXT records say since.
    pub fetched_at: Timestamp,
}

/// A fetch that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failed {
    /// The `id` that it was for.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub error: FetchError,
}

/// Why a policy could not be had, as TLS reports tell it apart (RFC 8460 §4.3.2.2).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// It could not be fetched.
    #[error("fetch error: {0}")]
    Fetch(String),
    /// What was fetched is not a policy.
    #[error("policy invalid: {0}")]
    Invalid(String),
    /// The certificate of its host is not right.
    #[error("certificate of the policy host: {0}")]
    WebPki(String),
}

impl FetchError {
    /// As a TLS report calls it.
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
    /// When it ceases to hold.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.fetched_at + self.policy.max_age
    }

    /// Whether it is to be fetched again although nothing has changed: in the second half of its life, so that there is
    /// time for attempts that fail (RFC 8461 §3.3).
    fn is_ageing(&self, now: Timestamp) -> bool {
        now >= self.fetched_at + self.policy.max_age / 2
    }
}

impl Memory {
    /// The policy that still holds.
    #[must_use]
    pub fn holding(&self, now: Timestamp) -> Option<&Kept> {
        self.kept.as_ref().filter(|kept| now < kept.expires())
    }

    /// Whether losing the policy would matter: one with another mode than `none` is held (RFC 8461 §3.3, §10.3).
    #[must_use]
    pub fn protects(&self, now: Timestamp) -> bool {
        self.protects_until(now).is_some()
    }

    /// Until when it [`Self::protects`], if nothing changes.
    #[must_use]
    pub fn protects_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.holding(now).filter(|kept| kept.policy.mode != StsMode::None).map(Kept::expires)
    }

    /// Whether the policy of a TXT record with this `id` is to be fetched now.
    #[must_use]
    pub fn is_due(&self, id: &str, now: Timestamp) -> bool {
        let current = self.holding(now).is_some_and(|kept| kept.policy.id == id && !kept.is_ageing(now));
        let backing_off = self.failed.as_ref().is_some_and(|failed| failed.id == id && now < failed.at + BACK_OFF);
        !current && !backing_off
    }

    /// A fetch came out.
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
        // It counts from the fetch: that the TXT record was seen in between changes nothing.
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
