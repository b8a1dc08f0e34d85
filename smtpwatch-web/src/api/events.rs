//! Server-sent events for findings. The pages use them to reload; programs use them to follow findings.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use tokio_stream::{StreamExt, wrappers::BroadcastStream};

use super::{problem::Problem, request::Request, response::json_text, state::Api};
use crate::app_state::FindingEvent;

/// Maximum number of concurrent listeners: each holds a connection without a time limit.
pub(super) const LISTENERS: usize = 32;
/// Seconds until a retry makes sense.
const RETRY: u32 = 30;
/// Interval of comments while there are no events: they reveal closed connections, and keep proxies from closing open
/// ones.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) async fn serve(api: Api, request: Request) -> Result<Response, Problem> {
    let full = |_| Problem::busy("the maximum number of listeners is connected: try again later", RETRY);
    let permit = api.listening.try_acquire_owned().map_err(full)?;
    let received = BroadcastStream::new(api.app.events().subscribe());
    // Events between two connections of one listener are not repeated: the list of incidents has them.
    let missed = request.reconnects.then_some(None);
    let events = tokio_stream::iter(missed).chain(received.map(Result::ok));
    let events = events.map(move |event| {
        let _permit = &permit;
        Ok::<_, Infallible>(frame(event))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("no events");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The event for a finding; `None`: events were missed.
fn frame(event: Option<FindingEvent>) -> Event {
    match event {
        Some(one) => Event::default().event("finding").id(&one.finding).data(json_text(&one).trim_end()),
        None => Event::default().event("lagged").data("{}"),
    }
}
