//! Responses: JSON that is safe on a terminal, and headers for caches.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::asked::Asked;
use crate::{hash, output::text::json_line};

/// Media type of what is not told otherwise.
pub(super) const JSON: &str = "application/json";
/// Seconds after which a store that cannot be read is worth another try.
pub(super) const RETRY_STORE: u32 = 10;

/// Shared caches must not keep it; a private one asks each time whether it still holds, for retention may remove it.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("private, no-cache");

/// One line of JSON, with a line feed; what a terminal may act on is escaped.
pub(super) fn harmless(value: &impl Serialize) -> String {
    json_line(value)
}

/// The answer in JSON.
pub(super) fn json(value: &impl Serialize) -> Response {
    text(JSON, harmless(value))
}

/// The answer in JSON about what never changes: 304 for those who have it.
pub(super) fn immutable(asked: &Asked, value: &impl Serialize) -> Response {
    let body = harmless(value);
    let tag = format!("\"{}\"", hash::sha256(body.as_bytes()));
    let mut response = match asked.has(&tag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => text(JSON, body),
    };
    response.headers_mut().insert(header::CACHE_CONTROL, ASK_AGAIN);
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
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
