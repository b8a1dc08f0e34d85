//! What is served, and to which clients. [`Access`] builds the router for one loaded configuration.

use std::{sync::Arc, time::Instant};

use axum::{
    Extension, Router,
    body::HttpBody,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    auth::{AuthLayer, Client, authenticate, throttle},
    config::WebConfig,
    headers,
    health::Health,
    host::{one_host, only_local},
    limits::LoginThrottle,
    paths::{HEALTHY, METRICS, READY},
    scrapers::Scrapers,
    tls::ClientAuth,
};
use crate::metrics::WebMetrics;

/// The part that all versions of the configuration share.
pub(super) struct Access {
    pub(super) metrics: Arc<WebMetrics>,
    pub(super) health: Arc<Health>,
    /// The routes of pages and API.
    pub(super) guarded: Router,
    /// Whether the listen address is reachable from this machine only.
    pub(super) loopback: bool,
    pub(super) login_throttle: Arc<LoginThrottle>,
    pub(super) scrapers: Arc<Scrapers>,
}

/// Which clients may see pages and API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Visibility {
    /// Every client on this machine.
    Local,
    /// Clients with a login or a client certificate.
    LoggedIn,
    /// No client; the reason.
    Closed(&'static str),
}

impl Access {
    /// All routes under this configuration.
    pub(super) fn routes(&self, config: WebConfig) -> Router {
        let open = Router::new()
            .route(METRICS, get(show_metrics))
            .route(
                HEALTHY,
                get(|State(access): State<Pages>| async move { verdict(access.health.unhealthy(), &access.health) }),
            )
            .route(
                READY,
                get(|State(access): State<Pages>| async move { verdict(access.health.unready(), &access.health) }),
            )
            .route_layer(from_fn_with_state(self.scrapers.clone(), note_scraper))
            .with_state(Pages { metrics: self.metrics.clone(), health: self.health.clone() });
        let mut routes = match visibility(self.loopback, &config) {
            Visibility::Local => open.merge(self.guarded.clone().layer(from_fn(only_local))),
            Visibility::LoggedIn => open.merge(self.guarded.clone()),
            Visibility::Closed(why) => {
                tracing::warn!("pages and API are not served: {why}");
                open
            }
        };
        if let Some(users) = config.users {
            if config.tls.is_none() && !self.loopback {
                tracing::warn!("passwords are sent in cleartext: set tls_server_config");
            }
            let layer = AuthLayer::new(users, config.auth_excluded_paths, self);
            routes = routes.layer(from_fn_with_state(Arc::new(layer), authenticate));
        }
        routes = routes.layer(from_fn(without_body));
        if let Some(quota) = config.rate_limit {
            routes = routes.layer(from_fn_with_state(
                throttle::new(quota, self.scrapers.clone(), Instant::now()),
                throttle::throttle,
            ));
        }
        routes = routes.layer(from_fn(one_host));
        let headers: Arc<HeaderMap> = headers::all(config.headers);
        routes.layer(from_fn_with_state(headers, headers::add))
    }
}

/// Visibility under this configuration. Beyond loopback, TLS alone does not authenticate the client, and a password alone
/// is sent in cleartext.
fn visibility(loopback: bool, config: &WebConfig) -> Visibility {
    let certificate = config.tls.as_ref().is_some_and(|tls| tls.client_auth == ClientAuth::Required);
    let login = certificate || config.users.is_some();
    match (loopback, config.tls.is_some(), login) {
        (true, _, false) => Visibility::Local,
        (true, _, true) | (false, true, true) => Visibility::LoggedIn,
        (false, true, false) => Visibility::Closed(
            "TLS alone does not authenticate the client: set basic_auth_users or RequireAndVerifyClientCert in the web configuration file",
        ),
        (false, false, true) => Visibility::Closed(
            "without TLS a password can be read on the way: set tls_server_config in the web configuration file",
        ),
        (false, false, false) => Visibility::Closed(
            "this address is not loopback: --web.config.file with TLS and basic_auth_users opens them",
        ),
    }
}

/// Refuses requests with a body: the server accepts no data.
async fn without_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let close = [(header::CONNECTION, HeaderValue::from_static("close"))];
    (StatusCode::PAYLOAD_TOO_LARGE, close, "a request has no body here\n").into_response()
}

/// Records the address of a request for metrics or health that is answered.
async fn note_scraper(
    State(scrapers): State<Arc<Scrapers>>,
    Extension(Client(client)): Extension<Client>,
    request: Request,
    next: Next,
) -> Response {
    scrapers.note(client, false, Instant::now());
    next.run(request).await
}

#[derive(Clone)]
struct Pages {
    metrics: Arc<WebMetrics>,
    health: Arc<Health>,
}

async fn show_metrics(State(pages): State<Pages>) -> Response {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], pages.metrics.render()).into_response()
}

/// Status 503 with the reasons as a JSON list, or 200 with a list of degradations, usually `[]`.
fn verdict(reasons: Vec<String>, health: &Health) -> Response {
    if reasons.is_empty() {
        (StatusCode::OK, axum::Json(health.degraded())).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, axum::Json(reasons)).into_response()
    }
}
