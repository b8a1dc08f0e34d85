//! How surprising a session without a property is, such as one without an offer of STARTTLS.
//!
//! Model: a peer shows the property in a share p of its sessions. p has the prior Beta(α, β), which is learnt from the
//! peers of this host ([`Population`]). After sessions of weight y with the property and n without it, p has the posterior
//! Beta(α + y, β + n). The probability that the next r sessions all lack the property is then
//!
//! ```text
//!   ∏ (β + n + i) / (α + β + y + n + i)     for i = 0 … r − 1
//! ```
//!
//! (the beta-binomial distribution: Gelman et al., Bayesian Data Analysis, 3rd edition, §2.1 and §2.4). Weights are those of
//! [`Spread`](super::Spread): days count more than sessions. An interruption that ended counts in n, so that a peer
//! whose offers come and go surprises less each time.

use super::Rate;
use crate::Timestamp;

/// Longest run that is computed, in weighted sessions.
const LONGEST_RUN: f64 = 64.0;
/// Weight of a run of regressions that ended, beside a session that was counted as one without the property: it may have been
/// an attack, and was reported when it happened.
const LAPSE: f64 = 0.1;
/// Smallest probability that is returned.
const SMALLEST: f64 = 1e-12;

/// Prior of the share of sessions in which a peer shows a property: Beta(α, β).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Prior {
    /// α: weight of sessions with the property.
    pub with: f64,
    /// β: weight of sessions without it.
    pub without: f64,
}

/// The priors of the two rates of a record. Each is computed when it is needed: most judgements need none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Priors {
    pub(super) offered: Population,
    pub(super) used: Population,
}

impl Priors {
    /// Of the offer.
    #[must_use]
    pub fn offered(&self) -> Prior {
        self.offered.prior()
    }

    /// Of its use.
    #[must_use]
    pub fn used(&self) -> Prior {
        self.used.prior()
    }
}

impl Default for Prior {
    /// Most peers always or never show it, and four of five always do.
    fn default() -> Self {
        Self { with: 0.4, without: 0.1 }
    }
}

impl Prior {
    /// Probability that the next session of a peer with this record lacks the property.
    #[must_use]
    pub fn of_next(self, rate: &Rate) -> f64 {
        self.of_run(rate, 1.0)
    }

    /// Probability of the current run of sessions without the property, including the one at `at`.
    #[must_use]
    pub fn of_current_run(self, rate: &Rate, at: Timestamp) -> f64 {
        self.of_run(rate, rate.spread.run.with(at).sessions())
    }

    fn of_run(self, rate: &Rate, length: f64) -> f64 {
        let (with, without) = weights(rate);
        let without = self.without + without;
        let total = self.with + with + without;
        let mut probability = 1.0;
        let (mut i, mut left) = (0.0, length.min(LONGEST_RUN));
        while left > 0.0 {
            let factor = (without + i) / (total + i);
            // The last factor counts by its fraction.
            probability *= if left < 1.0 { factor.powf(left) } else { factor };
            i += 1.0;
            left -= 1.0;
        }
        probability.max(SMALLEST)
    }
}

/// Weights of the sessions with and without the property.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn weights(rate: &Rate) -> (f64, f64) {
    let with = rate.spread.with.sessions();
    // Sessions without the property have no weight of their own; they are scaled as those with it.
    let scale = if rate.yes == 0 { 1.0 } else { (with / rate.yes as f64).min(1.0) };
    (with, rate.no as f64 * scale + LAPSE * rate.spread.lapses.sessions())
}

/// The shares of all peers of this host, for the [`Prior`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Population {
    peers: u64,
    /// Sum of the shares, and of their squares, in thousandths.
    sum: u64,
    squares: u64,
}

/// Shares are counted in thousandths.
const WHOLE: u64 = 1000;
/// Minimum number of sessions of a peer that counts.
const SESSIONS: u64 = 5;
/// Number of peers that the default prior is worth: a young history says little about other peers.
const DEFAULT_PEERS: f64 = 50.0;
/// Range of α + β. A prior outside it would outweigh the record of a peer, or trust its first sessions too much.
const CONCENTRATION: (f64, f64) = (0.2, 1.0);
/// Range of β. The lower end keeps the first interruption of a peer from being taken for certain: honest peers have
/// them too. The upper end limits what an attacker who strips many new peers can do to the prior.
const WITHOUT: (f64, f64) = (0.08, 0.3);

impl Population {
    /// Adds the share of a peer.
    pub(super) fn add(&mut self, rate: &Rate) {
        let Some((share, square)) = share(rate) else { return };
        self.peers += 1;
        self.sum += share;
        self.squares += square;
    }

    /// Removes the share of a peer, as it was added.
    pub(super) fn remove(&mut self, rate: &Rate) {
        let Some((share, square)) = share(rate) else { return };
        self.peers = self.peers.saturating_sub(1);
        self.sum = self.sum.saturating_sub(share);
        self.squares = self.squares.saturating_sub(square);
    }

    /// The prior, by the method of moments: mean m and variance v of the shares give α + β = m(1 − m)/v − 1.
    #[expect(clippy::cast_precision_loss, reason = "sums of thousandths far below 2^52")]
    pub(super) fn prior(&self) -> Prior {
        let default = Prior::default();
        let strength = default.with + default.without;
        let mean = default.with / strength;
        let square = mean * mean + mean * (1.0 - mean) / (strength + 1.0);
        let (peers, whole) = (self.peers as f64 + DEFAULT_PEERS, WHOLE as f64);
        let mean = (self.sum as f64 / whole + DEFAULT_PEERS * mean) / peers;
        let variance = (self.squares as f64 / whole + DEFAULT_PEERS * square) / peers - mean * mean;
        let concentration = mean * (1.0 - mean) / variance.max(f64::EPSILON) - 1.0;
        let concentration = concentration.clamp(CONCENTRATION.0, CONCENTRATION.1);
        let without = (concentration * (1.0 - mean)).clamp(WITHOUT.0, WITHOUT.1);
        Prior { with: (concentration - without).max(WITHOUT.0), without }
    }
}

/// Share of the sessions with the property and its square, in thousandths; `None` for too few sessions.
fn share(rate: &Rate) -> Option<(u64, u64)> {
    let sessions = rate.yes.saturating_add(rate.no);
    if sessions < SESSIONS {
        return None;
    }
    let share = rate.yes.saturating_mul(WHOLE) / sessions;
    Some((share, share * share / WHOLE))
}

/// Probability that at least `seen` of many rare and independent events happen when `expected` are expected: the upper
/// tail of the Poisson distribution.
#[must_use]
pub fn poisson_tail(seen: usize, expected: f64) -> f64 {
    let (mut term, mut below) = ((-expected).exp(), 0.0);
    for k in 0..seen.min(1000) {
        below += term;
        #[expect(clippy::cast_precision_loss, reason = "at most 1,000")]
        let next = (k + 1) as f64;
        term *= expected / next;
    }
    // The first term of the tail is a lower bound, where the subtraction has no digits left.
    (1.0 - below).max(term).clamp(SMALLEST, 1.0)
}

/// A probability in words: `1 in 400`, with one or two significant digits, rounded towards the larger probability.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10^12")]
pub fn one_in(probability: f64) -> String {
    let times = (1.0 / probability.clamp(SMALLEST, 1.0)) as u64;
    let mut unit = 1;
    while times / unit >= 100 {
        unit *= 10;
    }
    format!("1 in {}", grouped(times / unit * unit))
}

/// A number with commas between groups of three digits.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::history::{Spread, Tally};

    const DAY: i64 = 86_400;

    /// A rate of `daily` sessions with the property on each of `days`.
    fn rate(days: i64, daily: i64) -> Rate {
        let mut with = Tally::default();
        for n in 0..days * daily {
            with.add(Timestamp::from_secs(n * DAY / daily));
        }
        Rate {
            yes: u64::try_from(days * daily).expect("positive"),
            spread: Spread { with, ..Spread::default() },
            ..Rate::default()
        }
    }

    fn run(rate: &mut Rate, sessions: i64, day: i64) -> f64 {
        let at = |n| Timestamp::from_secs(day * DAY + n);
        (0..sessions - 1).for_each(|n| rate.spread.run.add(at(n)));
        Prior::default().of_current_run(rate, at(sessions))
    }

    #[test]
    fn what_is_known_for_longer_surprises_more() {
        let next = |days, daily| Prior::default().of_next(&rate(days, daily));
        assert!(next(1, 5) > 0.02, "five sessions of one day");
        assert!(next(50, 8) < 1.0 / 400.0, "412 sessions on 50 days");
        assert!(next(50, 1) < next(1, 50), "days count more than sessions");
    }

    #[test]
    fn a_run_surprises_more_and_one_of_many_days_most() {
        let one = run(&mut rate(50, 8), 1, 60);
        let three = run(&mut rate(50, 8), 3, 60);
        assert!(three < one / 2.0, "{one} {three}");
        let mut spread = rate(50, 8);
        spread.spread.run.add(Timestamp::from_secs(60 * DAY));
        spread.spread.run.add(Timestamp::from_secs(61 * DAY));
        assert!(Prior::default().of_current_run(&spread, Timestamp::from_secs(62 * DAY)) < three / 100.0);
    }

    #[test]
    fn what_came_and_went_surprises_less() {
        let steady = rate(50, 8);
        let mut flapping = steady;
        (60..63).for_each(|day| flapping.spread.lapses.add(Timestamp::from_secs(day * DAY)));
        assert!(Prior::default().of_next(&flapping) > 3.0 * Prior::default().of_next(&steady));
    }

    #[test]
    fn the_prior_is_learnt_from_the_peers() {
        let population = |rates: &[(u64, u64)]| {
            let mut population = Population::default();
            for (yes, no) in rates {
                population.add(&Rate { yes: *yes, no: *no, ..Rate::default() });
            }
            population
        };
        assert_eq!(population(&[]).prior().without.to_bits(), Population::default().prior().without.to_bits());
        let close = |one: f64, other: f64| (one - other).abs() < 0.02;
        let empty = population(&[]).prior();
        assert!(close(empty.with, 0.4) && close(empty.without, 0.1), "{empty:?}");
        let always = population(&[(100, 0); 1000]).prior();
        let farms = population(&[(60, 40); 1000]).prior();
        assert!(always.without < empty.without && farms.without > empty.without, "{always:?} {farms:?}");
        // A peer that is removed leaves nothing behind.
        let mut population = population(&[(60, 40); 3]);
        for _ in 0..3 {
            population.remove(&Rate { yes: 60, no: 40, ..Rate::default() });
        }
        assert_eq!(population, Population::default());
    }

    #[test]
    fn many_rare_events_at_once_are_rarer() {
        assert!((poisson_tail(0, 3.0) - 1.0).abs() < 1e-9);
        assert!((poisson_tail(1, 0.1) - 0.095_163).abs() < 1e-5);
        assert!(poisson_tail(4, 0.03) < 1e-7 && poisson_tail(4, 0.03) > 1e-9);
        assert!(poisson_tail(100, 200.0) > 0.99);
    }

    #[test]
    fn probabilities_in_words() {
        assert_eq!(one_in(1.0 / 437.0), "1 in 430");
        assert_eq!(one_in(0.5), "1 in 2");
        assert_eq!(one_in(1.0 / 12_345.0), "1 in 12,000");
        assert_eq!(one_in(0.0), "1 in 990,000,000,000".replace("990,000,000,000", "1,000,000,000,000"));
    }
}
