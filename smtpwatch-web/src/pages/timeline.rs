//! The offers of a peer by day, as an SVG chart and as a table; part of the page of an incident.

use maud::{Markup, html};
use smtpwatch_core::{day::Day, offers::Offers};
use smtpwatch_store::incidents::Incident;

use super::format::{count, grouped};

/// The days of a peer in the store, oldest first.
pub(super) type Days = Vec<(Day, Offers)>;

/// Maximum number of days shown; the newest ones are chosen.
const SHOWN: i64 = 90;
/// Width of a day, and the part of it that its bar takes, in units of the SVG.
const STEP: u64 = 10;
const BAR: u64 = 8;
/// Height of the day with the most sessions.
const HEIGHT: u64 = 120;
/// Height of the area below the bars, for marks and dates.
const FOOT: u64 = 40;
/// Minimum height of a part with sessions.
const LEAST: u64 = 3;

/// The sessions of a day, from the bottom to the top: label, CSS class, and count.
fn parts(offers: &Offers) -> [(&'static str, &'static str, u64); 4] {
    let known = offers.offered + offers.withheld;
    let other = offers.sessions.saturating_sub(known);
    [
        ("offered, and TLS began", "tls", offers.tls.min(offers.offered)),
        ("offered, without TLS", "offered", offers.offered.saturating_sub(offers.tls)),
        ("not offered, or refused", "withheld", offers.withheld),
        ("not seen completely, or without EHLO", "unknown", other),
    ]
}

pub(super) fn picture(days: &Days, incident: &Incident) -> Markup {
    let Some((newest, _)) = days.last() else { return html! {} };
    let mut first = newest.plus(1 - SHOWN);
    if let Some((oldest, _)) = days.first() {
        first = first.max(*oldest);
    }
    let shown: Vec<_> = days.iter().filter(|(day, _)| *day >= first).collect();
    let most = shown.iter().map(|(_, offers)| offers.sessions).max().unwrap_or(0).max(1);
    let width = days_between(first, *newest).saturating_add(1).saturating_mul(STEP).max(30 * STEP);
    let withheld = shown.iter().filter(|(_, offers)| offers.withheld > 0).count();
    let summary = format!(
        "{} with sessions from {first} to {newest}; on {withheld} of them STARTTLS was not offered or refused",
        count(shown.len() as u64, "day", "days")
    );
    html! {
        section aria-labelledby="timeline" {
            h2 #timeline { "What this peer " (if incident.role == smtpwatch_core::Role::Client { "offered" } else { "was offered" }) ", by day" }
            figure {
                svg.timeline role="img" preserveAspectRatio="xMinYMid meet" aria-labelledby="timeline-says" viewBox={ "0 0 " (width) " " (HEIGHT + FOOT) } {
                    title #timeline-says { (summary) }
                    line.axis x1="0" x2=(width) y1=(HEIGHT) y2=(HEIGHT) {}
                    @for (day, offers) in &shown { (bar(*day, offers, days_between(first, *day) * STEP, most)) }
                    (mark(first, *newest, incident))
                    text.date x="0" y=(HEIGHT + FOOT - 6) { (first) }
                    @if *newest > first { text.date.end x=(width) y=(HEIGHT + FOOT - 6) { (newest) } }
                }
                figcaption {
                    @for (meaning, class, _) in parts(&Offers::default()) { span.key { span class={ "swatch " (class) } {} (meaning) } }
                    span.key { span.swatch.incident {} "this incident" }
                    " The busiest day has " (count(most, "session", "sessions")) "."
                }
            }
            details {
                summary { "The same as a table" }
                div.wide tabindex="0" role="region" aria-label="Table of offers" { (table(&shown)) }
            }
        }
    }
}

fn bar(day: Day, offers: &Offers, x: u64, most: u64) -> Markup {
    let mut top = HEIGHT;
    let pieces = parts(offers).map(|(_, class, number)| {
        let height = if number == 0 { 0 } else { (number.saturating_mul(HEIGHT) / most).max(LEAST) };
        top = top.saturating_sub(height);
        (class, top, height)
    });
    html! {
        g {
            title { (day) ": " (count(offers.sessions, "session", "sessions")) ", " (offers.withheld) " without the offer" }
            @for (class, y, height) in pieces {
                @if height > 0 { rect class=(class) x=(x) y=(y) width=(BAR) height=(height) {} }
            }
        }
    }
}

/// Marks the days of the incident below the axis.
fn mark(first: Day, newest: Day, incident: &Incident) -> Markup {
    let (from, to) = (Day::of(incident.first_seen).max(first), Day::of(incident.last_seen).min(newest));
    if to < from {
        return html! {};
    }
    let (x, width) = (days_between(first, from) * STEP, (days_between(from, to) + 1) * STEP);
    html! { rect.incident x=(x) y=(HEIGHT + 5) width=(width) height="6" { title { "this incident" } } }
}

fn days_between(from: Day, to: Day) -> u64 {
    to.since(from).try_into().unwrap_or(0)
}

fn table(days: &[&(Day, Offers)]) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "Day" }
                    th.number scope="col" { "Sessions" }
                    @for (meaning, ..) in parts(&Offers::default()) { th.number scope="col" { (meaning) } }
                }
            }
            tbody {
                @for (day, offers) in days.iter().rev() {
                    tr {
                        th scope="row" { (day) }
                        td.number { (grouped(offers.sessions)) }
                        @for (_, _, number) in parts(offers) { td.number { (grouped(number)) } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_day_are_its_sessions() {
        let offers = Offers { sessions: 10, offered: 6, withheld: 3, tls: 4, unknown: 1, ..Offers::default() };
        assert_eq!(parts(&offers).map(|(.., number)| number), [4, 2, 3, 1]);
    }

    #[test]
    fn rows_are_counted_in_a_full_day() {
        let offers = Offers { sessions: 1, withheld: 1, ..Offers::default() };
        let day: Day = "2026-11-23".parse().expect("a day");
        let page = bar(day, &offers, 30, 1_000_000).into_string();
        assert!(page.contains("class=\"withheld\" x=\"30\" y=\"117\" width=\"8\" height=\"3\""), "{page}");
    }
}
