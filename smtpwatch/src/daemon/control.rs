//! `POST /-/reload`: reloads the configuration; allowed to every client that may see the pages.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};

use super::reload::Reloader;

pub(super) fn router(reloader: Arc<Reloader>) -> Router {
    Router::new().route("/-/reload", post(reload)).with_state(reloader)
}

/// Status 200 with the settings that need a restart, one per line; or 500 with the error, and the previous
/// configuration stays in force.
async fn reload(State(reloader): State<Arc<Reloader>>, headers: HeaderMap) -> Response {
    if by_another_site(&headers) {
        return (StatusCode::FORBIDDEN, "requests from pages of other sites are refused\n").into_response();
    }
    match reloader.reload().await {
        Ok(restart) => {
            let lines = restart.iter().map(|setting| format!("{setting}: changed, and needs a restart\n"));
            format!("the configuration was read again\n{}", lines.collect::<String>()).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The browser's header with the origin of a request (Fetch Metadata Request Headers, W3C).
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Whether a foreign web page makes a browser send this request.
fn by_another_site(headers: &HeaderMap) -> bool {
    match headers.get(SEC_FETCH_SITE) {
        Some(site) => site != "same-origin" && site != "none",
        None => headers.contains_key(header::ORIGIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_site_is_distinguished() {
        for (name, value, expected) in [
            ("sec-fetch-site", "cross-site", true),
            ("sec-fetch-site", "same-site", true),
            ("sec-fetch-site", "same-origin", false),
            ("sec-fetch-site", "none", false),
            ("origin", "http://evil.example", true),
            ("origin", "null", true),
            ("accept", "*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().expect("a name"), value.parse().expect("a value"))]);
            assert_eq!(by_another_site(&headers), expected, "{name}: {value}");
        }
    }
}
