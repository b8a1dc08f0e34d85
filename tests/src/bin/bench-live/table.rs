//! Markdown tables of the figures, and the verdict on each aim.

use super::pairs::{Pairs, Spread};

/// Head of the tables of pairs.
pub const PAIRS_HEAD: &str = "\
| traffic | mail goes | without | with | with / without: median (least to greatest) | two runs without | aim | |
|---|---|---:|---:|---:|---:|---:|---|
";

/// One row of a table of pairs; `loss` is the greatest allowed loss, as a fraction.
pub fn pairs_row(what: &str, place: &str, unit: &str, pairs: &Pairs, loss: f64) -> String {
    let ratio = pairs.ratio();
    let noise = pairs.noise();
    let mut verdict = verdict(1.0 - ratio.median, loss, |missed| format!("{:.1} points", missed * 100.0));
    // If the runs differ among themselves by more than this, they can neither show so small a loss nor exclude it.
    if noise.greatest - noise.least > 2.0 * loss {
        verdict.push_str("; the noise is wider than the aim");
    }
    format!(
        "| {what} | {place} | {} {unit} | {} {unit} | {} | {} | loss ≤ {:.0} % | {verdict} |\n",
        short(pairs.without().median),
        short(pairs.with().median),
        spread(ratio),
        range(noise),
        loss * 100.0
    )
}

/// Whether `found` meets `aim`, or by how much it misses; less is better.
pub fn verdict(found: f64, aim: f64, difference: impl FnOnce(f64) -> String) -> String {
    if found <= aim { "met".to_owned() } else { format!("**missed** by {}", difference(found - aim)) }
}

/// Formats the median and the range of ratios.
fn spread(ratio: Spread) -> String {
    format!("{:.3} ({:.3} to {:.3})", ratio.median, ratio.least, ratio.greatest)
}

fn range(ratio: Spread) -> String {
    format!("{:.3} to {:.3}", ratio.least, ratio.greatest)
}

/// Formats a figure: whole with thousands separators from 100 on, else with one decimal.
pub fn short(figure: f64) -> String {
    if figure >= 100.0 { thousands(figure) } else { format!("{figure:.1}") }
}

/// Formats a whole number with thousands separators.
pub fn thousands(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(thousands(7.0), "7");
        assert_eq!(thousands(123_456.4), "123,456");
        assert_eq!(thousands(1_000.0), "1,000");
    }

    #[test]
    fn an_aim_is_met_at_its_very_value() {
        assert_eq!(verdict(1.0, 1.0, |_| unreachable!()), "met");
        assert_eq!(verdict(3.0, 1.0, |by| format!("{by}")), "**missed** by 2");
    }
}
