//! The operations on peers: the list with what each one used, and offers of STARTTLS by day.

use std::net::IpAddr;

use axum::{
    http::{HeaderValue, header},
    response::Response,
};
use schemars::JsonSchema;
use serde::Serialize;
use smtpwatch_core::{Role, day::Day, offers::Offers};
use smtpwatch_render::csv;
use smtpwatch_store::peers::{PeerPage, PeerQuery, PeerSort, PeerTotals, PeerUse};
use smtpwatch_system::clock::now;

use super::{
    incidents::role,
    parameter::{self as p, Location, PAGE_BY_DEFAULT, Parameter},
    problem::Problem,
    request::Request,
    response,
    state::Api,
};

/// Media type of the list in CSV (RFC 4180, RFC 7111).
pub(super) const CSV: &str = "text/csv; charset=utf-8; header=present";
/// Header with the `cursor` of the next page, in a response without a place for it; absent: this is the last page.
const NEXT: &str = "smtpwatch-next";

/// One page of peers.
#[derive(Serialize, JsonSchema)]
pub(super) struct Peers {
    peers: Vec<PeerUse>,
    /// All peers that match, on all pages.
    total: PeerTotals,
    /// The `cursor` of the next page; null: there is none.
    next: Option<String>,
}

/// The parameters of the list.
pub(super) const LIST: &[&Parameter] =
    &[&p::ROLE, &p::PORT_OF_PEERS, &p::PEER_SORT, &p::LIMIT, &p::PEER_CURSOR, &p::FORMAT];
/// The parameters of the page.
const FORM: &[&Parameter] = &[&p::ROLE, &p::PORT_OF_PEERS, &p::PEER_SORT, &p::PEER_CURSOR];

/// The selection of a query, by the names and values of its parameters.
pub(crate) fn peer_query(query: impl Iterator<Item = (String, String)>) -> Result<PeerQuery, Problem> {
    query_of(&Request::new(FORM, query.map(|(name, value)| (Location::Query, name, value)))?)
}

fn query_of(request: &Request) -> Result<PeerQuery, Problem> {
    let sort = request.text(&p::PEER_SORT).unwrap_or(PeerSort::Affected.as_str());
    let sort =
        PeerSort::ALL.into_iter().find(|one| one.as_str() == sort).ok_or_else(|| Problem::value(&p::PEER_SORT))?;
    let limit = request.value(&p::LIMIT)?.unwrap_or(PAGE_BY_DEFAULT);
    Ok(PeerQuery {
        role: role(request, &p::ROLE),
        port: request.value(&p::PORT_OF_PEERS)?,
        sort,
        after: request.value(&p::PEER_CURSOR)?,
        limit: usize::try_from(limit).map_err(|_| Problem::value(&p::LIMIT))?,
        today: Day::of(now()),
    })
}

pub(super) async fn list(api: Api, request: Request) -> Result<Response, Problem> {
    let query = query_of(&request)?;
    let csv = request.text(&p::FORMAT).map_or(request.prefers_csv, |format| format == "csv");
    let PeerPage { peers, total, next } = api.app.with_store(move |store| Ok(store.peers(&query)?)).await?;
    let next = next.map(|next| next.to_string());
    let mut response = if csv {
        let mut text = csv::line(&PeerUse::COLUMNS);
        text.extend(peers.iter().map(|peer| csv::line(&peer.cells())));
        let mut response = response::text(CSV, text);
        let headers = response.headers_mut();
        let name = HeaderValue::from_static("attachment; filename=\"smtpwatch-peers.csv\"");
        headers.insert(header::CONTENT_DISPOSITION, name);
        if let Some(next) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
            headers.insert(NEXT, next);
        }
        response
    } else {
        response::json(&Peers { peers, total, next })
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// The days of one peer, as many as the store keeps.
#[derive(Serialize, JsonSchema)]
pub(super) struct OfferDays {
    /// The peer's address.
    peer: String,
    /// Which end this host is.
    role: Role,
    /// The server's port.
    port: u16,
    /// The oldest first.
    days: Vec<OfferDay>,
}

/// One day of UTC.
#[derive(Serialize, JsonSchema)]
struct OfferDay {
    /// `YYYY-MM-DD`.
    #[schemars(extend("format" = "date"))]
    day: String,
    #[serde(flatten)]
    offers: Offers,
}

pub(super) async fn offers(api: Api, request: Request) -> Result<Response, Problem> {
    let peer: IpAddr = request.required(&p::ADDRESS)?;
    let (peer, port) = (peer.to_canonical().to_string(), request.required(&p::PORT)?);
    let role = role(&request, &p::ROLE_OF_OFFERS).ok_or_else(|| Problem::missing(&p::ROLE_OF_OFFERS))?;
    let of = peer.clone();
    let days = api.app.with_store(move |store| Ok(store.offer_days(role, &of, port)?)).await?;
    let days = days.into_iter().map(|(day, offers)| OfferDay { day: day.to_string(), offers }).collect();
    Ok(response::json(&OfferDays { peer, role, port, days }))
}
