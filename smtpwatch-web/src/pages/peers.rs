//! The list of peers: who still talks in cleartext, and what would have waited if TLS had been required.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use maud::{Markup, html};
use smtpwatch_core::Role;
use smtpwatch_store::peers::{DAYS, PeerCursor, PeerPage, PeerSort, PeerUse, Trend};

use super::{
    filter::FilterQuery,
    format::{count, escaped, grouped, moment},
    layout::{Failure, Page},
};
use crate::{
    api::{self, Problem},
    app_state::AppState,
};

/// Maximum number of peers on a page.
const ON_A_PAGE: usize = 50;
/// Width of a day in the picture, and the part of it that its bar takes, in units of the SVG.
const STEP: u64 = 4;
const BAR: u64 = 3;
/// Height of the picture.
const HEIGHT: u64 = 24;
/// Minimum height of a day with a message.
const LEAST: u64 = 2;

pub(super) async fn show(
    State(app): State<Arc<AppState>>,
    RawQuery(query): RawQuery,
) -> Result<Page<'static>, Failure> {
    let form = FilterQuery::read(query.as_deref().unwrap_or_default());
    let found = match api::peer_query(form.pairs()) {
        Ok(query) => {
            let query = smtpwatch_store::peers::PeerQuery { limit: ON_A_PAGE, ..query };
            Ok(app.with_store(move |store| Ok(store.peers(&query)?)).await?)
        }
        Err(Problem { detail, .. }) => Err(detail),
    };
    let body = html! {
        h1 { "Peers" }
        (self::form(&form))
        @match &found {
            Err(wrong) => p.bad role="alert" { (escaped(wrong)) },
            Ok(page) => div #peers data-live { (list(page, &form)) },
        }
    };
    Ok(Page { title: "Peers", under: "/peers", incident: None, body })
}

fn form(query: &FilterQuery) -> Markup {
    let meaning = |sort: PeerSort| match sort {
        PeerSort::Affected => "what would be affected",
        PeerSort::Last => "last in cleartext",
        PeerSort::Sessions => "sessions",
    };
    html! {
        form.filter method="get" action="/peers" role="search" aria-label="Peers" {
            label { "This host is the"
                select name="role" {
                    option value="" { "client or server" }
                    @for role in Role::ALL {
                        option value=(role.as_str()) selected[query.has("role", role.as_str())] { (role.as_str()) }
                    }
                }
            }
            label { "Port"
                input type="text" name="port" value=(query.text("port")) placeholder="25" inputmode="numeric"
                    autocomplete="off" maxlength="5";
            }
            label { "Sorted by"
                select name="sort" {
                    @for sort in PeerSort::ALL {
                        option value=(sort.as_str()) selected[query.has("sort", sort.as_str())] { (meaning(sort)) }
                    }
                }
            }
            div.do {
                button type="submit" { "Show" }
                @if !query.is_everything() { a href="/peers" { "Show all" } }
            }
        }
    }
}

fn list(page: &PeerPage, query: &FilterQuery) -> Markup {
    let (peers, total) = (&page.peers, &page.total);
    if peers.is_empty() {
        return html! { p { "No sessions in the last " (DAYS) " days." } };
    }
    let below = peers.iter().fold(0_u64, |sum, peer| sum.saturating_add(peer.cleartext_messages));
    html! {
        p.lead {
            "If TLS were required of the peers below, " strong { (count(below, "delivery", "deliveries")) }
            " of the last " (DAYS) " days would have waited."
        }
        @if peers.len() as u64 != total.peers {
            p { "Of all " (count(total.peers, "peer", "peers")) " together: " (grouped(total.affected_messages)) "." }
        }
        p.note {
            "A delivery is a message that was accepted in cleartext. Sessions that were not seen whole are not counted. "
            a href=(query.address("/api/v1/peers", &[("format", "csv"), ("limit", "1000")])) { "The same as CSV" }
        }
        (table(peers))
        @if let Some(next) = page.next { p { a rel="next" href=(further(query, next)) { "More peers" } } }
    }
}

fn further(query: &FilterQuery, cursor: PeerCursor) -> String {
    query.address("/peers", &[("cursor", &cursor.to_string())])
}

/// Rows of peers. On a narrow screen each row becomes a card; the ARIA roles keep it a table for screen readers.
fn table(peers: &[PeerUse]) -> Markup {
    html! {
        p #days { "The last " (DAYS) " days, in UTC" }
        table.cards.peers role="table" aria-describedby="days" {
            thead role="rowgroup" {
                tr role="row" {
                    th scope="col" role="columnheader" { "Peer" }
                    th.number scope="col" role="columnheader" { "Would have waited" }
                    th scope="col" role="columnheader" { "By day" }
                    th scope="col" role="columnheader" { "Trend" }
                    th scope="col" role="columnheader" { "Last in cleartext" }
                    th.number scope="col" role="columnheader" { "Sessions" }
                    th.number scope="col" role="columnheader" { "In cleartext" }
                    th.number scope="col" role="columnheader" { "Offered" }
                    th.number scope="col" role="columnheader" { "TLS" }
                    th scope="col" role="columnheader" { "Versions" }
                }
            }
            tbody role="rowgroup" { @for peer in peers { (row(peer)) } }
        }
    }
}

fn row(peer: &PeerUse) -> Markup {
    let number = |number: u64, unit: &str| {
        html! { td.number role="cell" { (grouped(number)) span.unit { " " (unit) } } }
    };
    html! {
        tr role="row" {
            td.peer role="cell" {
                @for name in &peer.names { (escaped(name)) " " }
                a.address href={ "/incidents?peer=" (peer.peer) } title="Its incidents" { (peer.peer) }
                span.address { " port " (peer.port) }
                small {
                    (match peer.role {
                        Role::Client => "this host sends to it",
                        Role::Server => "it sends to this host",
                    })
                    ", "
                    a href={ "/api/v1/peers/" (peer.peer) "/offers?role=" (peer.role.as_str()) "&port=" (peer.port) } { "by day" }
                }
            }
            (number(peer.cleartext_messages, "would have waited"))
            td role="cell" { (picture(peer)) }
            td role="cell" { (trend(peer.trend)) }
            td.when role="cell" {
                @match peer.last_cleartext { Some(at) => { span.unit { "in cleartext " } (moment(at)) }, None => "never in cleartext" }
            }
            (number(peer.sessions, "sessions"))
            (number(peer.cleartext_sessions, "in cleartext"))
            (number(peer.offered, "offered"))
            (number(peer.used, "with TLS"))
            td.more role="cell" { (versions(peer)) }
        }
    }
}

const fn trend(trend: Trend) -> &'static str {
    match trend {
        Trend::None => "none in cleartext",
        Trend::Began => "began in the last 7 days",
        Trend::Stopped => "stopped 7 days ago or before",
        Trend::Rising => "rising",
        Trend::Falling => "falling",
        Trend::Steady => "steady",
    }
}

fn versions(peer: &PeerUse) -> String {
    let used = peer.versions.counts().into_iter().filter(|(_, count)| *count > 0);
    used.map(|(version, count)| format!("{}: {}", version.as_str(), grouped(count))).collect::<Vec<_>>().join(", ")
}

/// The messages of each day as bars, with a text for those who do not see them.
fn picture(peer: &PeerUse) -> Markup {
    let days = &peer.cleartext_messages_by_day;
    let most = days.iter().max().copied().unwrap_or(0);
    let says = format!(
        "Messages in cleartext by day: {} in the last 7 days, {} in the 23 days before, at most {} on a day",
        peer.last_7_days.cleartext_messages, peer.before_23_days.cleartext_messages, most
    );
    html! {
        svg.spark role="img" aria-label=(says) viewBox={ "0 0 " (STEP * DAYS as u64) " " (HEIGHT) } {
            title { (says) }
            line.axis x1="0" x2=(STEP * DAYS as u64) y1=(HEIGHT) y2=(HEIGHT) {}
            @for (day, messages) in (0_u64..).zip(days) {
                @let height = height(*messages, most);
                @if height > 0 {
                    rect.bad x=(day * STEP) y=(HEIGHT - height) width=(BAR) height=(height) {}
                }
            }
        }
    }
}

/// The height of a bar, at most [`HEIGHT`]; a day with a message is seen.
fn height(messages: u64, most: u64) -> u64 {
    if messages == 0 { 0 } else { (messages.saturating_mul(HEIGHT) / most.max(1)).clamp(LEAST, HEIGHT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stay_in_the_picture() {
        let heights = [(0, 0), (0, 9), (1, 1_000), (500, 1_000), (9, 9), (u64::MAX, u64::MAX)];
        assert_eq!(heights.map(|(messages, most)| height(messages, most)), [0, 0, 2, 12, 24, 2]);
    }

    #[test]
    fn the_next_page_and_the_file_keep_the_form() {
        let form = FilterQuery::read("role=server&port=&sort=last&cursor=x");
        assert_eq!(form.address("/peers", &[("cursor", "y")]), "/peers?role=server&sort=last&cursor=y");
        assert_eq!(
            form.address("/api/v1/peers", &[("format", "csv")]),
            "/api/v1/peers?role=server&sort=last&format=csv"
        );
    }
}
