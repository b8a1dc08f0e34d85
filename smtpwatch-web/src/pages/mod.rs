//! The web pages: the state of the daemon, and every incident with its evidence. The server renders them; they are
//! complete without scripts and load nothing from elsewhere. `docs/pages.md` describes them.

mod assets;
mod dialogue;
mod difference;
mod filter;
mod finding;
mod format;
mod history;
mod incident;
mod layout;
mod list;
mod overview;
mod packets;
mod peers;
mod timeline;

use std::sync::Arc;

use axum::{Router, extract::Path, routing::get};

use self::{assets::Asset, layout::Failure};
use super::{api::Problem, app_state::AppState};

/// The routes of the pages.
pub fn router(app: Arc<AppState>) -> Router {
    Router::new()
        .route("/", get(overview::show))
        .route("/incidents", get(list::show))
        .route("/incidents/{id}", get(incident::show))
        .route("/peers", get(peers::show))
        .route("/findings/{id}", get(finding::show))
        .route("/assets/{name}", get(asset))
        .fallback(layout::no_such_page)
        .with_state(app)
}

async fn asset(Path(name): Path<String>) -> Result<&'static Asset, Failure> {
    assets::find(&name).ok_or_else(|| Failure::from(Problem::no_page()))
}
