//! Runs a measurement in pairs, without and with the daemon in direct succession, so that a slow moment of the machine
//! affects both runs of a pair.

use anyhow::Result;

/// One figure per run; more is better.
#[derive(Debug)]
pub struct Pairs {
    without: Vec<f64>,
    with: Vec<f64>,
}

/// Median and range of a set of figures.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The minimum.
    pub least: f64,
    /// The maximum.
    pub greatest: f64,
}

impl Pairs {
    /// Runs `count` pairs after one warm-up run; the argument of `run` is whether the daemon watches.
    pub fn measure(count: usize, what: &str, mut run: impl FnMut(bool) -> Result<f64>) -> Result<Self> {
        run(false)?;
        let mut pairs = Self { without: Vec::new(), with: Vec::new() };
        for at in 1..=count {
            let (without, with) = (run(false)?, run(true)?);
            eprintln!("bench-live: {what}, pair {at} of {count}: {without:.1} without, {with:.1} with");
            pairs.without.push(without);
            pairs.with.push(with);
        }
        Ok(pairs)
    }

    /// Spread of the runs without the daemon.
    pub fn without(&self) -> Spread {
        Spread::of(self.without.clone())
    }

    /// Spread of the runs with the daemon.
    pub fn with(&self) -> Spread {
        Spread::of(self.with.clone())
    }

    /// Ratio of the run with the daemon to the run without it, per pair.
    pub fn ratio(&self) -> Spread {
        Spread::of(self.with.iter().zip(&self.without).map(|(with, without)| with / without).collect())
    }

    /// Ratio of successive runs without the daemon: the measurement noise.
    pub fn noise(&self) -> Spread {
        Spread::of(self.without.windows(2).map(|runs| runs[1] / runs[0]).collect())
    }
}

impl Spread {
    /// Computes the spread of the figures; zero for an empty set.
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let at = |index: usize| figures.get(index).copied().unwrap_or_default();
        let (half, last) = (figures.len() / 2, figures.len().saturating_sub(1));
        let median =
            if figures.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.saturating_sub(1)), at(half)) };
        Self { median, least: at(0), greatest: at(last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_even_and_odd_numbers_of_figures() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, greatest: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, least: 1.0, greatest: 4.0 });
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let mut figures = [9.0, 10.0, 9.0, 20.0, 10.0].into_iter();
        let pairs = Pairs::measure(2, "a test", |_| Ok(figures.next().unwrap_or_default())).expect("figures");
        assert_eq!(pairs.ratio(), Spread { median: 0.7, least: 0.5, greatest: 0.9 });
        assert_eq!(pairs.noise(), Spread { median: 2.0, least: 2.0, greatest: 2.0 });
    }
}
