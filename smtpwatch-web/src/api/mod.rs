//! The JSON API, `/api/v1/`: the content of the pages for programs. Its manual is `docs/api.md`.
//!
//! One table (`operation::OPERATIONS`) defines the routes, the validation of requests, and the OpenAPI document.

mod events;
mod export;
mod request;
mod response;

mod incidents;
mod openapi;
mod operation;
mod parameter;
mod peers;
mod problem;
pub mod schema;
mod state;
mod verify;

use std::sync::Arc;

use axum::{
    Router,
    extract::{RawPathParams, RawQuery, State, rejection::RawPathParamsRejection},
    http::HeaderMap,
    response::Response,
    routing::{MethodRouter, any, get},
};
use tokio::sync::Semaphore;

use self::{
    operation::{OPERATIONS, Operation},
    request::Request,
    state::{Api, ROOT},
};
use super::app_state::AppState;

pub(super) use self::{incidents::filter, peers::peer_query, problem::Problem};

/// The routes of the API.
pub fn router(app: Arc<AppState>) -> Router {
    let verifying = Arc::new(Semaphore::new(verify::AT_ONCE));
    let api = Api { app, verifying, listening: Arc::new(Semaphore::new(events::LISTENERS)) };
    let routes =
        OPERATIONS.iter().fold(Router::new(), |router, operation| router.route(operation.path, route(operation)));
    // A nested router does not match the path that ends at the slash.
    let bare = any(async || Problem::no_route());
    let nested = routes.fallback(async || Problem::no_route()).with_state(api);
    Router::new().route(&format!("{ROOT}/"), bare).nest(ROOT, nested)
}

/// The method router of an operation: GET, and with it HEAD.
fn route(operation: &'static Operation) -> MethodRouter<Api> {
    let handler =
        async move |State(api): State<Api>,
                    path: Result<RawPathParams, RawPathParamsRejection>,
                    RawQuery(query): RawQuery,
                    headers: HeaderMap| { respond(operation, api, path.ok(), query, &headers).await };
    get(handler).fallback(async || Problem::not_allowed())
}

async fn respond(
    operation: &'static Operation,
    api: Api,
    path: Option<RawPathParams>,
    query: Option<String>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let path = path.ok_or_else(Problem::not_text)?;
    let request = Request::read(operation.parameters, &path, query.as_deref().unwrap_or_default(), headers)?;
    (operation.handler)(api, request).await
}
