//! The start page: the state of the daemon, and what must be looked at: incidents by severity, then the newest first.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::State;
use maud::{Markup, html};
use smtpwatch_core::Timestamp;
use smtpwatch_store::{
    Store, StoreError,
    incidents::{Filter, Incident, Sort},
};
use smtpwatch_system::clock::now;

use super::{
    format::{count, escaped, grouped, moment},
    layout::{Failure, Page},
    list,
};
use crate::app_state::{AppState, Status};

/// Maximum number of incidents in each list.
const LISTED: usize = 10;
/// In nanoseconds.
const DAY: i64 = 86_400 * 1_000_000_000;
const MONTH: i64 = 30 * DAY;

pub(super) async fn show(State(app): State<Arc<AppState>>) -> Result<Page<'static>, Failure> {
    let status = app.status().await;
    // What is looked at without a daemon is an old store, whose days end with its newest incident.
    let is_old = app.no_capture().is_some();
    let incidents = app.with_store(move |store| Ok(by_worth(store, is_old)?)).await;
    let body = html! {
        h1 { "Now" }
        div #now data-live {
            @if let Some(why) = app.no_capture() {
                div.watch.even { p { "No traffic is watched: " (why) "." } }
                div.tiles { (store(&status)) }
            } @else {
                (watch(&status))
                div.tiles {
                    (sessions(&status.sessions))
                    (numbers(&status))
                    (losses(&status.losses))
                    (store(&status))
                }
            }
        }
        div #incidents data-live {
            @match &incidents {
                Ok(incidents) => {
                    section aria-labelledby="day" {
                        h2 #day { "Incidents of the last 24 hours, the most severe first" }
                        @if incidents.day.is_empty() { p { "None." } } @else { (list::table(&incidents.day)) }
                    }
                    section aria-labelledby="month" {
                        h2 #month { "Further incidents of the last 30 days" }
                        @if incidents.month.is_empty() { p { "None." } } @else { (list::table(&incidents.month)) }
                        p {
                            a href="/incidents?sort=worth" { "All incidents, the most severe first" } ", or "
                            a href="/incidents" { "the newest first" }
                        }
                    }
                },
                Err(error) => p.bad { (escaped(&error.to_string())) },
            }
        }
    };
    Ok(Page { title: "Now", under: "/", incident: None, body })
}

/// The incidents of the page.
struct ByWorth {
    day: Vec<Incident>,
    /// Those of the last 30 days that are not in `day`.
    month: Vec<Incident>,
}

fn by_worth(store: &mut Store, is_old: bool) -> Result<ByWorth, StoreError> {
    let newest = store.incidents(&Filter { limit: 1, ..Filter::default() })?;
    let end = newest.first().filter(|_| is_old).map_or_else(now, |incident| incident.last_seen);
    let mut since = |age: i64, limit| {
        let since = Some(Timestamp(end.0.saturating_sub(age)));
        store.incidents(&Filter { since, sort: Sort::Worth, limit, ..Filter::default() })
    };
    let day = since(DAY, LISTED)?;
    // Enough to fill the list if all of the others are among them.
    let mut month = since(MONTH, 2 * LISTED)?;
    month.retain(|incident| day.iter().all(|shown| shown.id != incident.id));
    month.truncate(LISTED);
    Ok(ByWorth { day, month })
}

fn watch(status: &Status) -> Markup {
    html! {
        div class={ "watch " (if status.not_watching.is_empty() { "good" } else { "bad" }) } {
            @if status.not_watching.is_empty() {
                p { strong { "Watching" } " since " (moment(status.started)) }
            } @else {
                p { strong { "Not watching" } }
                ul { @for reason in &status.not_watching { li { (escaped(reason)) } } }
            }
            @if !status.attached.is_empty() {
                ul.attached { @for line in &status.attached { li { (escaped(line)) } } }
            }
            @if !status.missing.is_empty() {
                p { strong { "Missing" } }
                ul { @for line in &status.missing { li { (escaped(line)) } } }
            }
            @if !status.degraded.is_empty() {
                p { strong { "Degraded" } }
                ul { @for line in &status.degraded { li { (escaped(line)) } } }
            }
        }
    }
}

/// Results of sessions: name, meaning, and colour of the bar.
const RESULTS: [(&str, &str, &str); 4] = [
    ("tls", "encrypted with TLS", "good"),
    ("plaintext", "mail in cleartext", "bad"),
    ("rejected", "ended without mail", "even"),
    ("unknown", "not seen completely", "dim"),
];

fn sessions(sessions: &BTreeMap<String, u64>) -> Markup {
    let of = |name: &str| sessions.get(name).copied().unwrap_or_default();
    let all: u64 = RESULTS.iter().map(|(name, ..)| of(name)).sum();
    html! {
        section.tile aria-labelledby="sessions" {
            h2 #sessions { "Sessions" }
            table.bars {
                caption { (count(all, "session", "sessions")) " since the start" }
                tbody {
                    @for (name, meaning, colour) in RESULTS {
                        tr {
                            th scope="row" { (name) small { (meaning) } }
                            td.number { (grouped(of(name))) }
                            td.bar aria-hidden="true" {
                                svg viewBox="0 0 100 8" preserveAspectRatio="none" {
                                    rect.back width="100" height="8" {}
                                    rect class=(colour) width=(share(of(name), all)) height="8" {}
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The share in percent; at least 1 if the part is not zero.
fn share(part: u64, all: u64) -> u64 {
    if part == 0 { 0 } else { (part.saturating_mul(100) / all.max(1)).clamp(1, 100) }
}

fn numbers(status: &Status) -> Markup {
    html! {
        section.tile aria-labelledby="numbers" {
            h2 #numbers { "Findings" }
            dl {
                dt { "since the start" } dd { (grouped(status.findings.values().sum())) }
                @for (severity, number) in status.findings.iter().filter(|(_, number)| **number > 0) {
                    dt { (severity) } dd { (grouped(*number)) }
                }
                dt { "connections followed" } dd { (grouped(status.flows)) }
                dt { "peers known" } dd { (grouped(status.peers)) }
            }
        }
    }
}

fn store(status: &Status) -> Markup {
    html! {
        section.tile aria-labelledby="store" {
            h2 #store { "Stored" }
            @match &status.store {
                Some(store) => dl {
                    dt { "incidents" } dd { (grouped(store.incidents)) }
                    dt { "findings" } dd { (grouped(store.findings)) }
                    dt { "size of the store" } dd { (grouped(store.bytes.div_ceil(1024))) " KiB" }
                },
                None => p.bad { "The store cannot be read." },
            }
        }
    }
}

fn losses(losses: &BTreeMap<String, u64>) -> Markup {
    html! {
        section.tile aria-labelledby="losses" {
            h2 #losses { "Losses" }
            @if losses.is_empty() {
                p { "No losses since the start." }
            } @else {
                dl { @for (reason, number) in losses { dt { (escaped(reason)) } dd.bad { (grouped(*number)) } } }
                p { "Sessions affected by a loss are " em { "unknown" } ", never stripped." }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_nothing_is_seen() {
        assert_eq!(
            [(0, 0), (0, 9), (1, 1_000), (1, 2), (5, 5)].map(|(part, all)| share(part, all)),
            [0, 0, 1, 50, 100]
        );
    }
}
