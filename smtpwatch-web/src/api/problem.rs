//! Errors as problem documents (RFC 9457). Every error of the API is a [`Problem`]; the pages show it as text.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use smtpwatch_store::incidents::LookupError;

use super::{
    parameter::{Location, Parameter},
    response,
};

/// Media type of a problem.
pub(super) const MEDIA: &str = "application/problem+json";
/// Bytes of an unknown parameter name that the response quotes.
const NAME_SHOWN: usize = 64;

/// An error response.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub(crate) struct Problem {
    /// `description:blank`: the status identifies the problem.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Reason phrase of the status.
    pub(crate) title: &'static str,
    /// The status.
    #[schemars(range(min = 400, max = 599))]
    pub(crate) status: u16,
    /// The error and its remedy.
    pub(crate) detail: String,
    /// The parameter with the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<String>,
    /// Identifiers that begin with the requested one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) candidates: Vec<String>,
    /// Seconds until a retry makes sense.
    #[serde(skip)]
    retry_after: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, detail: String) -> Self {
        let title = status.canonical_reason().unwrap_or_default();
        let (parameter, candidates, retry_after) = (None, Vec::new(), None);
        Self { kind: "about:blank", title, status: status.as_u16(), detail, parameter, candidates, retry_after }
    }

    /// A parameter has an invalid value.
    pub(super) fn value(parameter: &Parameter) -> Self {
        let Parameter { name, format, .. } = parameter;
        let detail = format!("{name}: expected {}", format.expected());
        Self { parameter: Some((*name).to_owned()), ..Self::new(StatusCode::BAD_REQUEST, detail) }
    }

    /// A required parameter is missing.
    pub(super) fn missing(parameter: &Parameter) -> Self {
        let detail = format!("{} is missing: expected {}", parameter.name, parameter.format.expected());
        Self { parameter: Some(parameter.name.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, detail) }
    }

    /// A parameter is repeated and must not be.
    pub(super) fn repeated(parameter: &Parameter) -> Self {
        let detail = match parameter.max_count {
            1 => format!("{} is given more than once", parameter.name),
            max_count => format!("{} is given more than {max_count} times", parameter.name),
        };
        Self { parameter: Some(parameter.name.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, detail) }
    }

    /// The route has no such parameter.
    pub(super) fn unknown(name: &str, known: &[&Parameter]) -> Self {
        let known: Vec<_> = known.iter().filter(|one| one.location == Location::Query).map(|one| one.name).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let shown = name.get(..name.floor_char_boundary(NAME_SHOWN)).unwrap_or_default().to_owned();
        let detail = format!("a parameter that is not known here; these are: {known}");
        Self { parameter: Some(shown), ..Self::new(StatusCode::BAD_REQUEST, detail) }
    }

    /// The decoded path is not UTF-8.
    pub(super) fn not_text() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "the path is not UTF-8 where it is percent-encoded".to_owned())
    }

    /// There is no resource at this path.
    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no such path; /api/v1/openapi.json lists all of them".to_owned())
    }

    /// There is no such page.
    pub(crate) fn no_page() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no such page".to_owned())
    }

    /// The method would change something; the API is read-only.
    pub(super) fn not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD: nothing here can be changed".to_owned())
    }

    /// The maximum number of concurrent requests is reached.
    pub(super) fn busy(what: &str, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, what.to_owned()) }
    }

    /// The result cannot be expressed in this format.
    pub(super) fn unreadable(detail: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }
}

impl From<LookupError> for Problem {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Unknown(_) => Self::new(
                StatusCode::NOT_FOUND,
                "no such incident or finding: it never was, or retention has removed it".to_owned(),
            ),
            LookupError::Ambiguous(_, candidates) => {
                let detail = "several identifiers begin so: give more of it".to_owned();
                Self { candidates, ..Self::new(StatusCode::CONFLICT, detail) }
            }
            // The cause might quote the document, so it goes neither into the response nor into the log.
            LookupError::Document { id, .. } => Self::unreadable(format!("finding {id}: its document cannot be read")),
            LookupError::Store(error) => Self {
                retry_after: Some(response::RETRY_STORE),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("the store cannot be read: {error}"))
            },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = response::text(MEDIA, response::json_text(&self));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
