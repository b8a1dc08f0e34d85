//! Responses: JSON that is safe on a terminal, and headers for caches.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use smtpwatch_render::text::json_line;

/// Media type of what is not told otherwise.
pub(super) const JSON: &str = "application/json";
/// Seconds after which a store that cannot be read is worth another try.
pub(super) const RETRY_STORE: u32 = 10;

/// One line of JSON, with a line feed; what a terminal may act on is escaped.
pub(super) fn harmless(value: &impl Serialize) -> String {
    json_line(value)
}

/// The answer in JSON.
pub(super) fn json(value: &impl Serialize) -> Response {
    text(JSON, harmless(value))
}

/// An answer of any type that no one keeps, and no browser takes for something else.
pub(super) fn text(media: &'static str, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(media)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, body.into()).into_response()
}
