//! The start page: the state of the daemon and the newest incidents.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::State;
use maud::{Markup, html};
use smtpwatch_store::incidents::Filter;

use super::{
    format::{count, escaped, grouped, moment},
    layout::{Failure, Page},
    list,
};
use crate::app_state::{AppState, Status};

/// Maximum number of incidents on the page.
const NEWEST: usize = 10;

pub(super) async fn show(State(app): State<Arc<AppState>>) -> Result<Page<'static>, Failure> {
    let status = app.status().await;
    let filter = Filter { limit: NEWEST, ..Filter::default() };
    let incidents = app.with_store(move |store| Ok(store.incidents(&filter)?)).await;
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
        section aria-labelledby="newest" {
            h2 #newest { "Newest incidents" }
            div #incidents data-live {
                @match &incidents {
                    Ok(incidents) if incidents.is_empty() => p { "None stored." },
                    Ok(incidents) => {
                        (list::table(incidents))
                        p { a href="/incidents" { "All incidents" } }
                    },
                    Err(error) => p.bad { (escaped(&error.to_string())) },
                }
            }
        }
    };
    Ok(Page { title: "Now", under: "/", incident: None, body })
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
