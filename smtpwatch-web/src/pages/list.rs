//! The list of incidents, the most recent first, or the most severe first.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use maud::{Markup, html};
use smtpwatch_core::cause::About;
use smtpwatch_render::words;
use smtpwatch_store::incidents::Incident;

use super::{
    filter::{self, FilterQuery},
    format::{escaped, grouped, moment, severity},
    layout::{Failure, Page},
};
use crate::app_state::AppState;

/// Maximum number of incidents on a page.
const ON_A_PAGE: usize = 50;

pub(super) async fn show(
    State(app): State<Arc<AppState>>,
    RawQuery(query): RawQuery,
) -> Result<Page<'static>, Failure> {
    let filter_query = FilterQuery::read(query.as_deref().unwrap_or_default());
    let found = match filter_query.filter(ON_A_PAGE) {
        Ok(filter) => {
            let sort = filter.sort;
            Ok((app.with_store(move |store| Ok(store.incidents(&filter)?)).await?, sort))
        }
        Err(problem) => Err(problem.detail),
    };
    let body = html! {
        h1 { "Incidents" }
        (filter::form(&filter_query))
        @match &found {
            Err(wrong) => p.bad role="alert" { (escaped(wrong)) },
            Ok((found, sort)) => div #incidents data-live {
                @if found.is_empty() {
                    p { (if filter_query.is_everything() { "None stored." } else { "None match." }) }
                } @else {
                    (table(found))
                }
                @if let Some(last) = found.last().filter(|_| found.len() == ON_A_PAGE) {
                    p { a rel="next" href=(filter_query.further(&last.cursor(*sort))) { "Further incidents" } }
                }
            },
        }
    };
    Ok(Page { title: "Incidents", under: "/incidents", incident: None, body })
}

/// Rows of incidents. On a narrow screen each row becomes a card; the ARIA roles keep it a table for screen readers.
pub(super) fn table(incidents: &[Incident]) -> Markup {
    const HEADS: [&str; 6] = ["Last seen", "Severity", "What", "Peer", "Evidence", "Outcome"];
    html! {
        table.cards role="table" {
            thead role="rowgroup" {
                tr role="row" {
                    @for head in HEADS { th scope="col" role="columnheader" { (head) } }
                    th.number scope="col" role="columnheader" { "Findings" }
                }
            }
            tbody role="rowgroup" {
                @for incident in incidents {
                    tr role="row" {
                        td.when role="cell" { (moment(incident.last_seen)) }
                        td role="cell" { (severity(incident.severity)) }
                        td role="cell" {
                            a href={ "/incidents/" (incident.id) } { (incident.kind) }
                            @if let Some(headline) = headline(incident) { br; (headline) }
                        }
                        td role="cell" { (peer(incident)) }
                        td.more role="cell" { (incident.evidence) }
                        td.more role="cell" { (incident.outcome) }
                        td.number role="cell" { (grouped(incident.findings)) span.unit { (if incident.findings == 1 { " finding" } else { " findings" }) }
                            @if incident.kept < incident.findings { " (" (grouped(incident.kept)) " kept)" }
                        }
                    }
                }
            }
        }
    }
}

/// The title of an incident that is not about a peer.
pub(super) fn headline(incident: &Incident) -> Option<String> {
    words::headline(incident.kind, incident.about, incident.findings, &incident.address_count())
}

/// The peer: its name if it has one, otherwise its address; or this host.
pub(super) fn peer(incident: &Incident) -> Markup {
    html! {
        @if incident.about != About::Peer { "this host, " }
        @if !incident.name.is_empty() { (escaped(&incident.name)) " " }
        span.address { (escaped(&incident.peer)) " port " (incident.port) }
    }
}
