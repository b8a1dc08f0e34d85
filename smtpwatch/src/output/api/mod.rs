//! The JSON API, `/api/v1/`: what the pages show, for programs.

use std::sync::Arc;

use axum::{Json, Router, extract::State, routing::get};

use super::desk::{Desk, Status};

/// The API of this daemon.
pub fn router(desk: Arc<Desk>) -> Router {
    Router::new().route("/api/v1/status", get(status)).with_state(desk)
}

async fn status(State(desk): State<Arc<Desk>>) -> Json<Status> {
    Json(desk.status().await)
}
