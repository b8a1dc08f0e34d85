//! Validates a request against its operation; unknown parameters are rejected. Operations read their parameters from
//! [`Request`].

use std::str::FromStr;

use axum::{
    extract::RawPathParams,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use smtpwatch_core::hash;

use super::{
    parameter::{Location, Parameter},
    problem::Problem,
    response,
};

/// Forbids shared caches, and makes private ones revalidate each time: retention may remove the resource.
const REVALIDATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// A validated request: every value has the form that its parameter requires.
pub(super) struct Request {
    values: Vec<(&'static str, String)>,
    /// The tags of `If-None-Match`.
    etags: Vec<String>,
    /// The `Accept` header prefers CSV to JSON.
    pub(super) prefers_csv: bool,
    /// The request has `Last-Event-ID`: the client reconnects.
    pub(super) reconnects: bool,
}

impl Request {
    pub(super) fn read(
        parameters: &[&'static Parameter],
        path: &RawPathParams,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Self, Problem> {
        let path = path.iter().map(|(name, value)| (Location::Path, name.to_owned(), value.to_owned()));
        let query = form_urlencoded::parse(query.as_bytes())
            .map(|(name, value)| (Location::Query, name.into_owned(), value.into_owned()));
        let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let etags = values.flat_map(|list| list.split(',')).map(|tag| tag.trim().to_owned()).collect();
        let reconnects = headers.contains_key("last-event-id");
        let prefers_csv = prefers_csv(headers);
        Ok(Self { etags, prefers_csv, reconnects, ..Self::new(parameters, path.chain(query))? })
    }

    /// Validates a request that may have these parameters, in any order.
    pub(super) fn new(
        parameters: &[&'static Parameter],
        given: impl Iterator<Item = (Location, String, String)>,
    ) -> Result<Self, Problem> {
        let mut values = Vec::new();
        for (location, name, value) in given {
            let parameter = parameters.iter().find(|one| one.location == location && one.name == name);
            let Some(parameter) = parameter else { return Err(Problem::unknown(&name, parameters)) };
            if !parameter.format.accepts(&value) {
                return Err(Problem::value(parameter));
            }
            if values.iter().filter(|(known, _)| *known == parameter.name).count() >= parameter.max_count {
                return Err(Problem::repeated(parameter));
            }
            values.push((parameter.name, value));
        }
        let given = |parameter: &Parameter| values.iter().any(|(name, _)| *name == parameter.name);
        if let Some(missing) = parameters.iter().find(|one| one.required && !given(one)) {
            return Err(Problem::missing(missing));
        }
        Ok(Self { values, etags: Vec::new(), prefers_csv: false, reconnects: false })
    }

    /// The value of a parameter.
    pub(super) fn text(&self, parameter: &Parameter) -> Option<&str> {
        self.texts(parameter).next()
    }

    /// All values of a repeatable parameter.
    pub(super) fn texts(&self, parameter: &Parameter) -> impl Iterator<Item = &str> {
        self.values.iter().filter(|(name, _)| *name == parameter.name).map(|(_, value)| value.as_str())
    }

    /// The parsed value of a parameter.
    pub(super) fn value<T: FromStr>(&self, parameter: &Parameter) -> Result<Option<T>, Problem> {
        let read = |text: &str| text.parse().map_err(|_| Problem::value(parameter));
        self.text(parameter).map(read).transpose()
    }

    /// The parsed value of a required parameter.
    pub(super) fn required<T: FromStr>(&self, parameter: &Parameter) -> Result<T, Problem> {
        self.value(parameter)?.ok_or_else(|| Problem::missing(parameter))
    }

    /// Whether the client holds a representation with this tag (weak comparison, RFC 9110 §13.1.2).
    pub(super) fn has_etag(&self, tag: &str) -> bool {
        self.etags.iter().any(|etag| etag == "*" || etag.strip_prefix("W/").unwrap_or(etag) == tag)
    }

    /// The JSON response for a resource that never changes; 304 if the client has it.
    pub(super) fn immutable(&self, value: &impl Serialize) -> Response {
        let body = response::json_text(value);
        let tag = format!("\"{}\"", hash::sha256(body.as_bytes()));
        let mut response = match self.has_etag(&tag) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => response::text(response::JSON, body),
        };
        response.headers_mut().insert(header::CACHE_CONTROL, REVALIDATE);
        if let Ok(tag) = HeaderValue::try_from(tag) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

/// Whether the `Accept` header names CSV, and does not prefer JSON (RFC 9110 §12.5.1). A wildcard alone is no wish for
/// CSV.
fn prefers_csv(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut csv, mut json) = (0.0_f32, 0.0_f32);
    for range in lines.flat_map(|line| line.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        // An invalid weight is that of a range that is not acceptable.
        let weight = weight.map_or(1.0, |text| text.parse().unwrap_or(0.0));
        if media.eq_ignore_ascii_case("text/csv") {
            csv = weight;
        } else if media.eq_ignore_ascii_case(response::JSON) {
            json = weight;
        }
    }
    csv > 0.0 && csv >= json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_must_be_named() {
        for (accept, expected) in [
            ("text/csv", true),
            ("Text/CSV; charset=utf-8", true),
            ("text/csv;q=0.5, */*;q=0.1", true),
            ("application/json;q=0.5, text/csv;q=0.9", true),
            ("application/json, text/csv;q=0.9", false),
            ("text/csv;q=0", false),
            ("text/csv;q=x", false),
            ("text/*", false),
            ("*/*", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(prefers_csv(&headers), expected, "{accept:?}");
        }
        assert!(!prefers_csv(&HeaderMap::new()));
    }
}
