//! [`Answer`]: the answer of one source of published policies, its state, and how long it is valid.

use serde::Serialize;

use crate::Timestamp;

/// State of an answer. Only [`State::Valid`] is evidence against a session: an uncertain answer proves neither that a
/// policy exists nor that none exists (RFC 7672 §2.1; RFC 8461 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A policy in force. For DANE: TLSA records for which every look-up step is secure.
    Valid,
    /// It is certain that no policy exists.
    Absent,
    /// A policy may exist, but without DNSSEC the answer proves nothing.
    Insecure,
    /// DNSSEC validation failed: the answer was forged, or the zone is broken.
    Bogus,
    /// No answer, or an unusable one.
    Error,
    /// The policy was valid and has expired.
    Expired,
    /// The published text is not a policy, or contradicts itself.
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
    /// State of the answer.
    pub state: State,
    /// The content. Always present if `state` is [`State::Valid`]; otherwise present if there is content to show.
    pub value: Option<T>,
    /// The reason in words, with a remedy if there is one.
    pub detail: String,
    /// When the answer was obtained.
    pub at: Timestamp,
    /// When the answer expires: by TTL, by `max_age`, or when a failed look-up may be repeated.
    pub until: Timestamp,
}

impl<T> Answer<T> {
    /// The content, if the state is [`State::Valid`].
    #[must_use]
    pub fn valid(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.state == State::Valid)
    }
}
