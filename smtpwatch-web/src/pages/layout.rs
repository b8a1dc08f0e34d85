//! The frame of all pages, and the error page. Each handler returns a [`Page`] or a [`Failure`].

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, html};

use super::assets;
use crate::api::Problem;

/// The content security policy of the pages (CSP level 3); the server adds the headers of all responses. Scripts,
/// styles and images come from this program only; anything injected into a page has no effect.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
     base-uri 'none'; frame-ancestors 'none'",
);

/// The content of a page.
pub(super) struct Page<'a> {
    /// Title in the browser.
    pub(super) title: &'a str,
    /// Path of the menu entry that the page belongs to.
    pub(super) under: &'a str,
    /// The incident of the page: events of other incidents do not reload it.
    pub(super) incident: Option<&'a str>,
    /// The body.
    pub(super) body: Markup,
}

const MENU: [(&str, &str); 3] = [("/", "Now"), ("/incidents", "Incidents"), ("/peers", "Peers")];

impl IntoResponse for Page<'_> {
    fn into_response(self) -> Response {
        let Self { title, under, incident, body } = self;
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · smtpwatch" }
                    link rel="icon" href=(assets::ICON.address) type="image/svg+xml";
                    link rel="stylesheet" href=(assets::STYLE.address);
                    script src=(assets::LIVE.address) defer {}
                }
                body data-incident=[incident] {
                    a.skip href="#main" { "Skip to the content" }
                    header {
                        a.name href="/" { "smtpwatch" }
                        nav aria-label="Pages" {
                            @for (path, name) in MENU {
                                a href=(path) aria-current=[(path == under).then_some("page")] { (name) }
                            }
                        }
                        p #live role="status" {}
                    }
                    main #main tabindex="-1" { (body) }
                    footer {
                        p {
                            "smtpwatch " (smtpwatch_core::VERSION) " · times are UTC · "
                            a href="/metrics" { "metrics" } " · " a href="/api/v1/openapi.json" { "API" }
                        }
                    }
                }
            }
        };
        ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page.into_string())).into_response()
    }
}

/// The error page.
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Problem { title, status, detail, candidates, .. } = self.0;
        let body = html! {
            h1 { (title) }
            p { (super::format::escaped(&detail)) }
            @if !candidates.is_empty() {
                ul { @for id in &candidates { li { a href={ "/incidents/" (id) } { (id) } } } }
            }
            p { a href="/incidents" { "All incidents" } }
        };
        let mut response = Page { title, under: "", incident: None, body }.into_response();
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
    }
}

/// A problem document as a page.
pub(super) struct Failure(Problem);

impl<E: Into<Problem>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

pub(super) async fn no_such_page() -> Failure {
    Failure::from(Problem::no_page())
}
