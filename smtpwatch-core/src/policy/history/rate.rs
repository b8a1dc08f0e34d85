//! How often something was so, and how sure that is: the rule by which a rate accuses, and by which it can be eroded.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Strength;
use crate::Timestamp;

/// Interruptions that came back, are counted against the rate, and are forgiven all the same: one outage, one strip that ended.
/// A farm whose members answer differently soon shows more of them.
const FORGIVEN: u64 = 2;
/// An interruption is counted when this part of the row's age has passed since the one that was counted before it. Interruptions
/// that follow one another quickly are one sign, however many they are: an attacker can make many in an hour, and a farm whose
/// members differ shows its own for as long as it is known.
const SPREAD: u32 = 4;
/// Sessions after which a rate can be established.
const ESTABLISHED_SESSIONS: u64 = 20;
/// Age of the row after which a rate can be established.
const ESTABLISHED_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often something was so: a rate, not a bit (docs/threats.md FP-1).
///
/// The rule for what erodes it:
///
/// 1. A session in which it was not so does not weaken a rate that is strong enough to accuse. It counts in `run`.
/// 2. When it is so again, the interruption is counted in `returns`. It is counted against the rate (`wear.counted`) only when a
///    quarter of the row's age has passed since the last one that was. The first two that are counted are forgiven.
/// 3. A rate is established after 20 sessions in which it was so, over 7 days, with at most two interruptions. It stays
///    established. An interruption of an established rate is counted only where a session of it looked like another host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rate {
    /// Sessions in which it was so.
    pub yes: u64,
    /// Sessions in which it was not, while the rate was too weak to call that a regression.
    pub no: u64,
    /// Times it came back after a regression.
    pub returns: u64,
    /// The newest sessions in a row that were a regression. They do not weaken the rate: otherwise a strip that lasts
    /// would become the norm and accuse itself of nothing.
    pub run: u64,
    /// How far interruptions have eroded the rate.
    #[serde(default)]
    pub wear: Wear,
}

/// What interruptions did to a rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Wear {
    /// The rate is established: it was so in many sessions over days.
    pub established: bool,
    /// Interruptions that count against the rate.
    pub counted: u64,
    /// When the newest of these ended; the epoch where there was none.
    pub at: Timestamp,
    /// A session of the run that lasts looked like another host.
    pub unlike: bool,
}

/// One session, as far as it matters to a rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sighting {
    pub at: Timestamp,
    /// Age of the row then.
    pub age: Duration,
    /// The peer looked as it is known.
    pub alike: bool,
}

impl Rate {
    /// Share of sessions in which it was so, as far as they speak of the peer itself: 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        let counted = self.yes + self.no + self.wear.counted.saturating_sub(FORGIVEN);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts far below 2^52")]
        if counted == 0 { 0.0 } else { self.yes as f64 / counted as f64 }
    }

    /// Sessions that count.
    #[must_use]
    pub const fn sessions(&self) -> u64 {
        self.yes + self.no
    }

    /// Whether the rate is strong enough to call the opposite a regression.
    #[must_use]
    pub fn is_strong(&self, strength: Strength) -> bool {
        self.sessions() >= strength.min_sessions && self.share() >= strength.min_offer_ratio
    }

    /// Interruptions count against the rate as far as they are forgiven, and it is not established: a farm whose members differ
    /// may look like this after a lucky start (FP-1).
    #[must_use]
    pub const fn is_wavering(&self) -> bool {
        !self.wear.established && self.wear.counted >= FORGIVEN
    }

    pub(super) fn note(&mut self, so: bool, strength: Strength, sighting: Sighting) {
        let strong = self.is_strong(strength);
        if !so {
            if strong {
                self.run += 1;
                self.wear.unlike |= !sighting.alike;
            } else {
                self.no += 1;
            }
            return;
        }
        self.yes += 1;
        if self.run > 0 {
            self.run = 0;
            self.returns += 1;
            let of_another = std::mem::take(&mut self.wear.unlike);
            let spread = sighting.at.since(self.wear.at) >= sighting.age / SPREAD;
            if spread && (of_another || !self.wear.established) {
                self.wear.counted += 1;
                self.wear.at = sighting.at;
            }
        } else if self.yes >= ESTABLISHED_SESSIONS && sighting.age >= ESTABLISHED_AGE && self.returns <= FORGIVEN {
            self.wear.established |= strong;
        }
    }
}
