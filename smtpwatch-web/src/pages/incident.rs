//! The page of an incident: what happened, the difference, the evidence, and the history of the peer.

use std::sync::Arc;

use axum::{
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use smtpwatch_core::cause::About;
use smtpwatch_render::words;
use smtpwatch_store::{
    Store,
    incidents::{Incident, LookupError, Reach, StoredFinding},
};

use super::{
    finding,
    format::{count, escaped, grouped, moment, severity},
    layout::{Failure, Page},
    list::{headline, peer},
    timeline,
};
use crate::app_state::AppState;

/// Maximum number of findings in the list.
const LISTED: usize = 50;

/// The data of the page.
struct IncidentData {
    incident: Incident,
    reach: Reach,
    best: Option<StoredFinding>,
    listed: Vec<StoredFinding>,
    days: timeline::Days,
}

pub(super) async fn show(
    State(app): State<Arc<AppState>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let before = form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes())
        .find_map(|(name, value)| (name == "before").then(|| value.parse().ok())?);
    let found = app.with_store(move |store| find(store, &id, before)).await?;
    let incident = &found.incident;
    let title = match headline(incident) {
        None => format!("{} with {}", incident.kind, incident.peer),
        Some(_) => format!("{} at {}", incident.kind, incident.peer),
    };
    let body = html! {
        (head(&found))
        @match &found.best {
            Some(best) => (finding::parts(best)),
            None => p { "Retention has removed the findings of this incident." },
        }
        (timeline::picture(&found.days, incident))
        (findings(&found))
    };
    Ok(Page { title: &title, under: "/incidents", incident: Some(&incident.id), body }.into_response())
}

fn find(store: &mut Store, id: &str, before: Option<u64>) -> Result<IncidentData, LookupError> {
    let incident = store.incident(id)?;
    Ok(IncidentData {
        reach: store.reach(&incident)?,
        best: store.best_finding(&incident)?,
        listed: store.findings(&incident, before, LISTED)?,
        days: store.offer_days(incident.role, &incident.peer, incident.port)?,
        incident,
    })
}

fn head(found: &IncidentData) -> Markup {
    let IncidentData { incident, reach, .. } = found;
    html! {
        h1 { (incident.kind) " " (severity(incident.severity)) }
        p.lead {
            @match headline(incident) {
                None => {
                    "In mail " (if incident.role == smtpwatch_core::Role::Client { "to " } else { "from " }) (peer(incident)) ", "
                    (words::happened(incident.kind, incident.about)) "."
                }
                Some(headline) => { "At " (peer(incident)) ", " (headline) "." }
            }
        }
        dl.facts {
            dt { "Certainty" } dd { strong { (incident.evidence) } ": " (words::how_sure(incident.evidence)) }
            dt { "Result" } dd { strong { (incident.outcome) } ": " (words::cost(incident.outcome)) }
            dt { "Seen" }
            dd #seen data-live {
                (count(incident.findings, "time", "times"))
                @if incident.kept < incident.findings { " (" (grouped(incident.findings)) " findings, " (grouped(incident.kept)) " kept)" }
                ", first " (moment(incident.first_seen)) ", last "
                (moment(incident.last_seen))
            }
            dt { "Scope" }
            @if incident.about == About::Peer {
                dd { (count(reach.peers, "peer", "peers")) " with the same at that time, " (reach.network) " of this network" }
            } @else {
                dd #clients data-live { "clients from " (incident.address_count()) }
            }
            @if !incident.mechanisms.is_empty() {
                dt { "Mechanisms" }
                dd #mechanisms data-live {
                    @for (at, mechanism) in incident.mechanisms.iter().enumerate() {
                        @if at > 0 { ", " }
                        (escaped(&mechanism.name)) " " (grouped(mechanism.findings))
                    }
                }
            }
        }
        section aria-labelledby="next" {
            h2 #next { "What to do next" }
            p { (words::next(incident.kind, incident.about)) }
        }
        (hand_over(incident))
    }
}

/// Links to the evidence in other formats.
fn hand_over(incident: &Incident) -> Markup {
    let api = format!("/api/v1/incidents/{}", incident.id);
    let text = if incident.about == About::Peer { "Letter to the carrier" } else { "Report as text" };
    html! {
        p.buttons {
            a.button href={ (api) "/pcapng" } download { "Capture file (pcapng)" }
            a.button href=(api) { "JSON" }
            a.button href={ (api) "/text" } { (text) }
            a.button href={ (api) "/ecs" } { "ECS" }
            a.button href={ (api) "/eve" } { "EVE" }
        }
    }
}

fn findings(found: &IncidentData) -> Markup {
    html! {
        section aria-labelledby="findings" {
            h2 #findings { "Findings" }
            div #listed data-live {
                ul.listed {
                    @for stored in &found.listed {
                        li {
                            a href={ "/findings/" (stored.finding.id) } { (moment(stored.finding.time)) } " "
                            (severity(stored.finding.severity)) " [" (stored.finding.rule) "] " (stored.finding.evidence) ", "
                            (stored.finding.outcome)
                            @if stored.finding.exhibit.is_none() { ", without further evidence" }
                        }
                    }
                }
                @if let Some(last) = found.listed.last().filter(|_| found.listed.len() == LISTED) {
                    p { a rel="next" href={ "/incidents/" (found.incident.id) "?before=" (last.number) "#findings" } { "Earlier findings" } }
                }
            }
        }
    }
}
