//! Pairs of runs without and with the daemon, in direct succession, so that a slow moment of the machine affects
//! both.

use anyhow::Result;

/// A figure of every run; more is better.
#[derive(Debug)]
pub struct Pairs {
    without: Vec<f64>,
    with: Vec<f64>,
}

/// The middle of some figures, and their ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Pairs {
    /// Runs `count` pairs after one run that only warms up; `run` is told whether the daemon is to watch.
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

    /// The runs without it.
    pub fn without(&self) -> Spread {
        Spread::of(self.without.clone())
    }

    /// The runs with it.
    pub fn with(&self) -> Spread {
        Spread::of(self.with.clone())
    }

    /// With beside without, pair by pair.
    pub fn ratio(&self) -> Spread {
        Spread::of(self.with.iter().zip(&self.without).map(|(with, without)| with / without).collect())
    }

    /// One run without it beside the one before: what the ratios would be if the daemon cost nothing.
    pub fn noise(&self) -> Spread {
        Spread::of(self.without.windows(2).map(|runs| runs[1] / runs[0]).collect())
    }
}

impl Spread {
    /// Of at least one figure; of none it is zero.
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
