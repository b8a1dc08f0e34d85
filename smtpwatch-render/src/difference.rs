//! Compares the expected EHLO reply with the observed one, line by line. The pages, the command line and the plain-text
//! export show the rows that [`difference()`] returns.

use schemars::JsonSchema;
use serde::Serialize;
use smtpwatch_core::Finding;

/// How a line differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is there, as expected.
    Same,
    /// It was expected, and did not come.
    Missing,
    /// Another line stands in its place, of the form that an overwritten one has.
    Masked,
    /// It came, and was not expected.
    Added,
}

/// One row of the comparison.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct DifferenceRow {
    /// How the two differ.
    pub change: Change,
    /// The keyword that was expected; empty: none.
    pub expected: String,
    /// The line that came; empty: none.
    pub came: String,
}

/// The expected reply beside the observed one. Expected are the keywords of the last session under TLS; for an unknown
/// peer in a session in which STARTTLS was required, the observed keywords and STARTTLS.
#[must_use]
pub fn difference(finding: &Finding) -> Vec<DifferenceRow> {
    let came: Vec<&str> = finding.observed.capabilities.iter().map(String::as_str).collect();
    let profile = finding
        .exhibit
        .as_ref()
        .and_then(|exhibit| exhibit.history.as_ref())
        .and_then(|known| known.record.profile.as_ref());
    let mut expected: Vec<String> = profile.map(|profile| profile.keywords.clone()).unwrap_or_default();
    if expected.is_empty() && finding.expected.starttls && !came.is_empty() {
        expected = came.iter().filter(|line| !is_masked(line)).map(|line| keyword(line)).collect();
        if !expected.iter().any(|keyword| keyword == STARTTLS) {
            let place = came.iter().position(|line| is_masked(line)).unwrap_or(expected.len());
            expected.insert(place.min(expected.len()), STARTTLS.to_owned());
        }
    }
    if expected.is_empty() {
        return came.iter().map(|line| row(Change::Same, "", line)).collect();
    }
    align(&expected, &came)
}

const STARTTLS: &str = "STARTTLS";

/// Aligns both lists along their longest common subsequence of keywords. Unmatched entries at the same position become
/// one row if the observed line looks overwritten.
fn align(expected: &[String], came: &[&str]) -> Vec<DifferenceRow> {
    let keywords: Vec<String> = came.iter().map(|line| keyword(line)).collect();
    let (n, m) = (expected.len(), came.len());
    let mut longest = vec![vec![0_usize; m + 1]; n + 1];
    for i in (0..n).rev() {
        for j in (0..m).rev() {
            longest[i][j] = if expected[i] == keywords[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut rows, mut i, mut j) = (Vec::new(), 0, 0);
    while i < n || j < m {
        if i < n && j < m && expected[i] == keywords[j] {
            rows.push(row(Change::Same, &expected[i], came[j]));
            (i, j) = (i + 1, j + 1);
        } else if i < n && j < m && is_masked(came[j]) && longest[i + 1][j + 1] == longest[i][j] {
            rows.push(row(Change::Masked, &expected[i], came[j]));
            (i, j) = (i + 1, j + 1);
        } else if j >= m || i < n && longest[i + 1][j] >= longest[i][j + 1] {
            rows.push(row(Change::Missing, &expected[i], ""));
            i += 1;
        } else {
            rows.push(row(Change::Added, "", came[j]));
            j += 1;
        }
    }
    rows
}

fn row(change: Change, expected: &str, came: &str) -> DifferenceRow {
    DifferenceRow { change, expected: expected.to_owned(), came: came.to_owned() }
}

fn keyword(line: &str) -> String {
    line.split([' ', '=']).next().unwrap_or_default().to_ascii_uppercase()
}

/// Whether a line looks overwritten by a middlebox: only X (and a last letter), or one repeated character.
fn is_masked(line: &str) -> bool {
    let word = line.split(' ').next().unwrap_or_default();
    let mut characters = word.chars();
    let Some(first) = characters.next().filter(|_| word.len() >= 4) else { return false };
    let same = characters.filter(|c| *c == first).count() + 1;
    !first.is_ascii_digit() && same + 1 >= word.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(expected: &[&str], came: &[&str]) -> Vec<(Change, String, String)> {
        let expected: Vec<String> = expected.iter().map(|&keyword| keyword.to_owned()).collect();
        align(&expected, came).into_iter().map(|row| (row.change, row.expected, row.came)).collect()
    }

    fn changes(expected: &[&str], came: &[&str]) -> Vec<Change> {
        rows(expected, came).into_iter().map(|(change, ..)| change).collect()
    }

    #[test]
    fn a_missing_line_is_marked_in_its_place() {
        use Change::{Added, Masked, Missing, Same};
        let usual = ["PIPELINING", "SIZE", "STARTTLS", "8BITMIME"];
        assert_eq!(changes(&usual, &["PIPELINING", "SIZE 9", "8BITMIME"]), [Same, Same, Missing, Same]);
        assert_eq!(changes(&usual, &["PIPELINING", "SIZE 9", "XXXXXXXA", "8BITMIME"]), [Same, Same, Masked, Same]);
        assert_eq!(
            changes(&usual, &["PIPELINING", "SIZE 9", "STARTTLS", "8BITMIME", "DSN"]),
            [Same, Same, Same, Same, Added]
        );
        assert_eq!(changes(&usual, &[]), [Missing; 4]);
        assert_eq!(changes(&[], &["SIZE"]), [Added]);
        assert_eq!(rows(&usual, &["PIPELINING", "SIZE 9", "XXXXXXXA", "8BITMIME"])[2].1, "STARTTLS");
        assert!(!is_masked("8BITMIME") && !is_masked("SIZE") && is_masked("XXXXXXXX") && is_masked("********"));
    }
}
