//! Headers of every response: defaults, and the values of the web configuration. [`add`] is the middleware.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::Response,
};

/// Default headers, for responses that do not set them and without a setting in the configuration.
const DEFAULTS: [(HeaderName, &str); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// The headers that `http_server_config.headers` can set, and their allowed values; an empty list allows any value.
const CONFIGURABLE: [(&str, &[&str]); 5] = [
    ("Content-Security-Policy", &[]),
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
];

/// Parses a header of the configuration; the error names the allowed values. A blank value sets nothing.
pub(super) fn configured(name: &str, value: &str) -> Result<Option<(HeaderName, HeaderValue)>, String> {
    let Some((_, values)) = CONFIGURABLE.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) else {
        let names: Vec<_> = CONFIGURABLE.iter().map(|(name, _)| *name).collect();
        return Err(format!("the header {name:?} cannot be set here; these can: {}", names.join(", ")));
    };
    if value.is_empty() {
        return Ok(None);
    }
    if !values.is_empty() && !values.contains(&value) {
        return Err(format!("{name}: expected {}", values.join(" or ")));
    }
    match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
        (Ok(name), Ok(value)) => Ok(Some((name, value))),
        _ => Err(format!("{name}: the value has a character that no header can have")),
    }
}

/// The configured headers, and the defaults for the rest.
pub(super) fn all(configured: Vec<(HeaderName, HeaderValue)>) -> Arc<HeaderMap> {
    let mut headers = HeaderMap::from_iter(configured);
    for (name, value) in DEFAULTS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    Arc::new(headers)
}

/// Adds the headers to a response; headers that the response already has stay.
pub(super) async fn add(State(headers): State<Arc<HeaderMap>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in headers.iter() {
        response.headers_mut().entry(name).or_insert_with(|| value.clone());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_configuration() {
        let set = |name, value| configured(name, value).map(|header| header.is_some());
        assert_eq!(set("Strict-Transport-Security", "max-age=31536000"), Ok(true));
        assert_eq!(set("X-Frame-Options", "sameorigin"), Ok(true));
        assert_eq!(set("X-XSS-Protection", ""), Ok(false));
        assert_eq!(set("X-Frame-Options", "allow"), Err("X-Frame-Options: expected deny or sameorigin".to_owned()));
        assert!(set("Access-Control-Allow-Origin", "*").is_err_and(|why| why.contains("cannot be set here")));
        assert!(set("Content-Security-Policy", "a\nb").is_err_and(|why| why.contains("no header can have")));
    }

    #[test]
    fn the_configuration_counts_before_the_defaults() {
        let headers = all(configured("X-Frame-Options", "sameorigin").unwrap().into_iter().collect());
        assert_eq!((&headers["x-frame-options"], headers.len()), (&"sameorigin".parse().unwrap(), DEFAULTS.len()));
    }
}
