//! The answer of a source of published policies, and how long it is valid.

use serde::Serialize;

use crate::Timestamp;

/// The state of an answer. Only [`State::Valid`] accuses anyone: what is not known for certain is not a policy, and is not the
/// absence of one either (RFC 7672 §2.1; RFC 8461 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A policy that holds. Of DANE: TLSA records, and every link of the way to them secure.
    Valid,
    /// It is certain that there is none.
    Absent,
    /// There may be one, without DNSSEC: it proves nothing.
    Insecure,
    /// DNSSEC says that someone forged the answer, or that its owner broke it.
    Bogus,
    /// No one answered, or not in a way that can be used.
    Error,
    /// It held once.
    Expired,
    /// What is published is not a policy, or contradicts itself.
    Invalid,
}

impl State {
    /// Every state, in order.
    pub const ALL: [Self; 7] =
        [Self::Valid, Self::Absent, Self::Insecure, Self::Bogus, Self::Error, Self::Expired, Self::Invalid];

    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Absent => "absent",
            Self::Insecure => "insecure",
            Self::Bogus => "bogus",
            Self::Error => "error",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
        }
    }
}

/// One answer of one source.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer<T> {
    /// How it came out.
    pub state: State,
    /// What was found: always there when `state` is [`State::Valid`]; else, where there is something to show.
    pub value: Option<T>,
    /// Why, in words, and the remedy where there is one.
    pub detail: String,
    /// When it was obtained.
    pub at: Timestamp,
    /// Until when it holds: the time to live, `max_age`, or when a failure may be tried again.
    pub until: Timestamp,
}

impl<T> Answer<T> {
    /// What was found, if it holds.
    #[must_use]
    pub fn valid(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.state == State::Valid)
    }
}
