//! The expected EHLO reply beside the observed one; part of the page of a finding.

use maud::{Markup, html};
use smtpwatch_core::Finding;
use smtpwatch_render::difference::{Change, DifferenceRow, difference};

use super::format::escaped;

pub(super) fn section(finding: &Finding) -> Markup {
    let rows = difference(finding);
    if rows.is_empty() {
        return html! {};
    }
    let compared = rows.iter().any(|row| !row.expected.is_empty());
    html! {
        section aria-labelledby="difference" {
            h2 #difference { (if compared { "Expected and observed reply" } else { "The server's reply to EHLO" }) }
            table.difference {
                @if compared {
                    caption { "According to " (escaped(&finding.expected.source)) ": " (escaped(&finding.expected.detail)) }
                    thead { tr { th scope="col" { "Expected" } th scope="col" { "Observed" } th scope="col" { "Difference" } } }
                }
                tbody { @for row in &rows { (line(row, compared)) } }
            }
        }
    }
}

fn line(row: &DifferenceRow, compared: bool) -> Markup {
    let (class, mark) = match row.change {
        Change::Same => ("same", ""),
        Change::Missing => ("missing", "missing"),
        Change::Masked => ("masked", "overwritten in place"),
        Change::Added => ("added", "not expected"),
    };
    html! {
        tr class=(class) {
            @if compared {
                td { @if row.change == Change::Missing || row.change == Change::Masked {
                    del { code { (escaped(&row.expected)) } }
                } @else { code { (escaped(&row.expected)) } } }
            }
            td { @if row.change == Change::Added || row.change == Change::Masked {
                ins { code { (escaped(&row.came)) } }
            } @else { code { (escaped(&row.came)) } } }
            @if compared { td.mark { (mark) } }
        }
    }
}
