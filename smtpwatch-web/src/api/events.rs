//! Server-sent events for findings.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use tokio_stream::{StreamExt, wrappers::BroadcastStream};

use super::{answer::harmless, asked::Asked, problem::Problem, state::Api};
use crate::desk::Happened;

/// Who may listen at once: every one of them holds a connection for as long as he likes.
pub(super) const LISTENERS: usize = 32;
/// Seconds after which another try is worth it.
const RETRY: u32 = 30;
/// A comment is sent this often while nothing happens: a listener that is gone is noticed, and proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) async fn serve(api: Api, asked: Asked) -> Result<Response, Problem> {
    let full = |_| Problem::busy("as many listen as can be served: try again later", RETRY);
    let place = api.listening.try_acquire_owned().map_err(full)?;
    let live = BroadcastStream::new(api.desk.live().listen());
    // What happened between two connections of one listener is not told again: the list has it.
    let missed = asked.listened_before.then_some(None);
    let events = tokio_stream::iter(missed).chain(live.map(Result::ok));
    let events = events.map(move |told| {
        let _place = &place;
        Ok::<_, Infallible>(event(told))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("nothing happened");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// `None`: what was told was missed.
fn event(told: Option<Happened>) -> Event {
    match told {
        Some(one) => Event::default().event("finding").id(&one.finding).data(harmless(&one).trim_end()),
        None => Event::default().event("lagged").data("{}"),
    }
}
