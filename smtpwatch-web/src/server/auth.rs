//! Basic authentication (RFC 7617). [`authenticate`] is the middleware in front of pages and API; `AuthLayer` checks the
//! passwords under the limits of failed logins.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::sync::Semaphore;

use super::{
    access::Access,
    limits::{Account, LoginThrottle, Payer},
    scrapers::Scrapers,
    users::Users,
};
use crate::metrics::{LoginFailure, WebMetrics};

/// Concurrent password verifications for accounts that have logged in before, and as many for all others. A
/// verification occupies a core for the time of its cost, and guesses must not delay known accounts.
const AT_ONCE: usize = 1;

/// The remote address of the connection.
#[derive(Clone, Copy)]
pub(super) struct Client(pub(super) IpAddr);

/// Checks logins.
pub(super) struct AuthLayer {
    users: Arc<Users>,
    excluded_paths: Vec<String>,
    login_throttle: Arc<LoginThrottle>,
    /// For accounts that have logged in before.
    known_turns: Arc<Semaphore>,
    other_turns: Arc<Semaphore>,
    scrapers: Arc<Scrapers>,
    metrics: Arc<WebMetrics>,
}

/// Why a login is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LoginRefusal {
    /// No credentials, or wrong ones.
    Unauthorized,
    /// Too many wrong passwords; the time to wait.
    Limited(Duration),
}

impl AuthLayer {
    pub(super) fn new(users: Users, excluded_paths: Vec<String>, access: &Access) -> Self {
        Self {
            users: Arc::new(users),
            excluded_paths,
            login_throttle: access.login_throttle.clone(),
            known_turns: Arc::new(Semaphore::new(AT_ONCE)),
            other_turns: Arc::new(Semaphore::new(AT_ONCE)),
            scrapers: access.scrapers.clone(),
            metrics: access.metrics.clone(),
        }
    }

    async fn check(&self, client: IpAddr, headers: &HeaderMap) -> Result<(), LoginRefusal> {
        // A browser sends its first request without credentials: that is not an attempt.
        let login = login(headers).ok_or(LoginRefusal::Unauthorized)?;
        let account = Account::new(client, split(&login).0);
        let limited = |wait| {
            self.metrics.login_failed(LoginFailure::Limited);
            LoginRefusal::Limited(wait)
        };
        let token = self.users.token(account.network(), &login);
        if self.users.remembers(&token) {
            return self.login_throttle.remembered(&account, Instant::now()).map_err(limited);
        }
        let payer = self.login_throttle.attempt(&account, Instant::now()).map_err(limited)?;
        if !self.verify(login, payer).await {
            self.metrics.login_failed(LoginFailure::Password);
            tracing::warn!(%client, "a login failed");
            return Err(LoginRefusal::Unauthorized);
        }
        self.login_throttle.succeeded(account, payer, Instant::now());
        self.users.remember(token);
        Ok(())
    }

    async fn verify(&self, login: Vec<u8>, payer: Payer) -> bool {
        let turns = match payer {
            Payer::Account => &self.known_turns,
            Payer::Network => &self.other_turns,
        };
        let Ok(turn) = turns.clone().acquire_owned().await else { return false };
        let users = self.users.clone();
        let verified = tokio::task::spawn_blocking(move || {
            // The core is busy until this point, even if the client has disconnected.
            let _turn = turn;
            let (user, password) = split(&login);
            users.verify(user, password)
        });
        verified.await.unwrap_or(false)
    }
}

/// Passes on requests of authenticated users; answers all others.
pub(super) async fn authenticate(
    State(layer): State<Arc<AuthLayer>>,
    Extension(Client(client)): Extension<Client>,
    request: Request,
    next: Next,
) -> Response {
    if layer.excluded_paths.iter().any(|path| path == request.uri().path()) {
        return next.run(request).await;
    }
    match layer.check(client, request.headers()).await {
        Ok(()) => {
            layer.scrapers.note(client, true, Instant::now());
            next.run(request).await
        }
        Err(LoginRefusal::Unauthorized) => {
            let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"smtpwatch\""))];
            (StatusCode::UNAUTHORIZED, challenge, "log in with a name and password of basic_auth_users\n")
                .into_response()
        }
        Err(LoginRefusal::Limited(wait)) => too_many(wait, "too many logins failed: try again later\n"),
    }
}

fn too_many(wait: Duration, why: &'static str) -> Response {
    let wait = [(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1))];
    (StatusCode::TOO_MANY_REQUESTS, wait, why).into_response()
}

/// The `user:password` pair of the Authorization header, decoded.
fn login(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, login) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let login = BASE64_STANDARD.decode(login.trim()).ok()?;
    (scheme.eq_ignore_ascii_case("basic") && login.contains(&b':')).then_some(login)
}

/// Splits a login into user and password.
fn split(login: &[u8]) -> (&[u8], &[u8]) {
    let colon = login.iter().position(|byte| *byte == b':').unwrap_or(login.len());
    (&login[..colon], login.get(colon + 1..).unwrap_or_default())
}

/// The rate limit of requests, `rate_limit` of the configuration.
pub(super) mod throttle {
    use std::sync::{Mutex, PoisonError};

    use super::{Arc, Client, Extension, Instant, Next, Request, Response, Scrapers, State, too_many};
    use crate::server::limits::{Bucket, Quota};

    /// The remaining quota of loopback, of known scrapers, and of all other clients. Each has its own bucket.
    pub(in crate::server) struct RequestThrottle {
        quota: Quota,
        buckets: [Mutex<Bucket>; 3],
        scrapers: Arc<Scrapers>,
    }

    /// Full buckets.
    pub(in crate::server) fn new(quota: Quota, scrapers: Arc<Scrapers>, now: Instant) -> Arc<RequestThrottle> {
        Arc::new(RequestThrottle { quota, buckets: [(); 3].map(|()| Mutex::new(Bucket::full(now))), scrapers })
    }

    /// Passes on requests within the quota.
    pub(in crate::server) async fn throttle(
        State(throttle): State<Arc<RequestThrottle>>,
        Extension(Client(client)): Extension<Client>,
        request: Request,
        next: Next,
    ) -> Response {
        let [loopback, known, others] = &throttle.buckets;
        let now = Instant::now();
        let bucket = match client.is_loopback() {
            true => loopback,
            false if throttle.scrapers.contains(client, now) => known,
            false => others,
        };
        let taken = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(throttle.quota, now);
        match taken {
            Ok(()) => next.run(request).await,
            Err(wait) => too_many(wait, "more requests than rate_limit allows: try again later\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header() {
        for (value, expected) in [
            ("Basic YWxpY2U6c2VjcmV0", Some("alice:secret")),
            ("basic  YWxpY2U6c2VjcmV0", Some("alice:secret")),
            ("Basic YTpiOmM=", Some("a:b:c")),
            ("Basic YWxpY2U=", None),
            ("Basic !", None),
            ("Bearer YWxpY2U6c2VjcmV0", None),
            ("Basic", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(login(&headers).as_deref(), expected.map(str::as_bytes), "{value}");
        }
        assert_eq!(login(&HeaderMap::new()), None);
    }
}
