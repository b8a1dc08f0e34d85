//! The operation that lists offers of STARTTLS by one peer, or to it, by day.

use std::net::IpAddr;

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use smtpwatch_core::{Role, offers::Offers};

use super::{incidents::role, parameter as p, problem::Problem, request::Request, response, state::Api};

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
