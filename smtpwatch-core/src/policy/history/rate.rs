//! [`Rate`]: how often a property held, when that is strong enough to raise findings, and what weakens it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Strength,
    days::{Spread, Tally},
};
use crate::Timestamp;

/// Number of counted interruptions that are forgiven: one outage, one strip that ended. A farm whose members answer
/// differently soon has more of them.
const FORGIVEN: u64 = 2;
/// An interruption is counted if this part of the record's age has passed since the last counted one. Interruptions in
/// quick succession count once, however many there are: an attacker can cause many in an hour, while a farm whose
/// members differ shows them during its whole life.
const SPREAD: u32 = 4;
/// Sessions after which a rate can be established.
const ESTABLISHED_SESSIONS: u64 = 20;
/// Age of the record after which a rate can be established.
const ESTABLISHED_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often a property held, such as "STARTTLS was offered": a rate, not a bit (docs/threats.md FP-1).
///
/// What weakens a rate:
///
/// 1. A session without the property does not weaken a rate that is strong enough to raise findings. It counts in
///    `run`.
/// 2. When the property holds again, the interruption is counted in `returns`. It counts against the rate
///    (`wear.counted`) only if a quarter of the record's age has passed since the last one that did. The first two that
///    count are forgiven.
/// 3. A rate is established after 20 sessions with the property, over 7 days, with at most two interruptions. It stays
///    established. An interruption of an established rate counts only if one of its sessions looked like another host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rate {
    /// Sessions with the property.
    pub yes: u64,
    /// Sessions without it, while the rate was too weak to call them a regression.
    pub no: u64,
    /// Number of times that the property held again after a regression.
    pub returns: u64,
    /// Length of the current run of regressions. They do not weaken the rate: otherwise a lasting strip would become
    /// the norm and raise nothing.
    pub run: u64,
    /// How much interruptions have weakened the rate.
    #[serde(default)]
    pub wear: Wear,
    /// Over how many days the sessions are spread. All zero in a record of a version without it.
    #[serde(default)]
    pub spread: Spread,
}

/// Effect of interruptions on a rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Wear {
    /// The rate is established: many sessions over several days had the property.
    pub established: bool,
    /// Interruptions that count against the rate.
    pub counted: u64,
    /// End of the latest interruption that counts; the epoch if there was none.
    pub at: Timestamp,
    /// A session of the current run looked like another host.
    pub unlike: bool,
}

/// One session, as input of a rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sighting {
    pub at: Timestamp,
    /// Age of the record at that time.
    pub age: Duration,
    /// The profile of the peer matched.
    pub alike: bool,
}

impl Rate {
    /// Share of sessions with the property among those that count, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        let counted = self.yes + self.no + self.wear.counted.saturating_sub(FORGIVEN);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts far below 2^52")]
        if counted == 0 { 0.0 } else { self.yes as f64 / counted as f64 }
    }

    /// Number of sessions that count.
    #[must_use]
    pub const fn sessions(&self) -> u64 {
        self.yes + self.no
    }

    /// Whether the rate is strong enough to call a session without the property a regression.
    #[must_use]
    pub fn is_strong(&self, strength: Strength) -> bool {
        self.sessions() >= strength.min_sessions && self.share() >= strength.min_offer_ratio
    }

    /// All forgiven interruptions are used up and the rate is not established: a farm whose members differ may look
    /// like this after a lucky start (FP-1).
    #[must_use]
    pub const fn is_wavering(&self) -> bool {
        !self.wear.established && self.wear.counted >= FORGIVEN
    }

    pub(super) fn note(&mut self, so: bool, strength: Strength, sighting: Sighting) {
        let strong = self.is_strong(strength);
        if !so {
            if strong {
                self.run += 1;
                self.spread.run.add(sighting.at);
                self.wear.unlike |= !sighting.alike;
            } else {
                self.no += 1;
            }
            return;
        }
        self.yes += 1;
        self.spread.with.add(sighting.at);
        if self.run > 0 {
            self.run = 0;
            self.spread.run = Tally::default();
            self.spread.lapses.add(sighting.at);
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
