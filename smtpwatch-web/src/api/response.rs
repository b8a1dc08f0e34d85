//! Responses of the API: JSON that is safe on a terminal, and headers for caches. Every operation builds its response
//! here.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use smtpwatch_render::text::json_line;

/// Default media type.
pub(super) const JSON: &str = "application/json";
/// Seconds until a retry makes sense after the store could not be read.
pub(super) const RETRY_STORE: u32 = 10;

/// One line of JSON, with a line feed; characters that a terminal may interpret are escaped.
pub(super) fn json_text(value: &impl Serialize) -> String {
    json_line(value)
}

/// A JSON response.
pub(super) fn json(value: &impl Serialize) -> Response {
    text(JSON, json_text(value))
}

/// A response of any media type, with headers against caching and content sniffing.
pub(super) fn text(media: &'static str, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(media)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, body.into()).into_response()
}
