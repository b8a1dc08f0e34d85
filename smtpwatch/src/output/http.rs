//! `/metrics` and the health pages.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::metrics::Metrics;

/// Where the pages are by default: on this host only.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:19587";
/// The pipeline beats at least every second; this long without means that it hangs.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

/// `--web.listen-address`: `address:port`, `[address]:port`, or `:port` for every address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListenAddress(pub SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = match text.strip_prefix(':') {
            Some(port) => port.parse().map(|port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)).ok(),
            None => text.parse().ok(),
        };
        address.map(Self).ok_or_else(|| "expected address:port, such as 127.0.0.1:19587, or :19587".to_owned())
    }
}

/// How the watch is doing. Written by the pipeline, read by the pages.
#[derive(Default)]
pub struct Health {
    heartbeat: Mutex<Option<Instant>>,
    state: Mutex<Watch>,
    stopping: AtomicBool,
}

/// What is attached, and why something is not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Watch {
    /// One line for each hook that is ours.
    pub attached: Vec<String>,
    /// One line for each thing that is wanted and missing.
    pub missing: Vec<String>,
}

impl Health {
    /// The pipeline is alive.
    pub fn beat(&self) {
        *lock(&self.heartbeat) = Some(Instant::now());
    }

    /// What is attached has changed.
    pub fn set(&self, watch: Watch) {
        *lock(&self.state) = watch;
    }

    /// The end has begun: not ready any more.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn unhealthy(&self) -> Vec<String> {
        match *lock(&self.heartbeat) {
            Some(beat) if beat.elapsed() > HEARTBEAT_LIMIT => {
                vec![format!("the pipeline has not moved for {} seconds", beat.elapsed().as_secs())]
            }
            _ => Vec::new(),
        }
    }

    /// What is attached, and what is missing.
    #[must_use]
    pub fn watch(&self) -> Watch {
        lock(&self.state).clone()
    }

    /// Why nothing is watched; empty: something is.
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = self.unhealthy();
        if lock(&self.heartbeat).is_none() {
            reasons.push("the pipeline has not started".to_owned());
        }
        if self.stopping.load(Ordering::Relaxed) {
            reasons.push("stopping".to_owned());
        }
        let watch = lock(&self.state);
        if watch.attached.is_empty() {
            reasons.push("nothing is attached".to_owned());
            reasons.extend(watch.missing.iter().cloned());
        }
        reasons
    }
}

/// Serves until `stop` resolves: metrics and health, and on loopback what is `guarded` too.
///
/// # Errors
///
/// The listener failed.
pub async fn serve(
    listener: tokio::net::TcpListener,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    guarded: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/-/healthy", get(|State(pages): State<Pages>| async move { verdict(pages.health.unhealthy()) }))
        .route("/-/ready", get(|State(pages): State<Pages>| async move { verdict(pages.health.unready()) }));
    if listener.local_addr()?.ip().to_canonical().is_loopback() {
        let guarded_too = router.with_state(Pages { metrics, health }).merge(guarded);
        return axum::serve(listener, guarded_too).with_graceful_shutdown(stop).await;
    }
    axum::serve(listener, router.with_state(Pages { metrics, health })).with_graceful_shutdown(stop).await
}

#[derive(Clone)]
struct Pages {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

async fn show_metrics(State(pages): State<Pages>) -> Response {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], pages.metrics.render()).into_response()
}

/// 200 and `[]`, or 503 and the reasons as a JSON list.
fn verdict(reasons: Vec<String>) -> Response {
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(reasons)).into_response()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What a panicking thread left is whole: each is set in one assignment.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        for (text, expected) in [
            ("127.0.0.1:19587", Some("127.0.0.1:19587")),
            ("[::1]:1", Some("[::1]:1")),
            (":9000", Some("[::]:9000")),
            ("localhost:1", None),
            ("127.0.0.1", None),
            (":99999", None),
        ] {
            let address = text.parse::<ListenAddress>().ok().map(|address| address.0.to_string());
            assert_eq!(address.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn readiness_tells_its_reasons() {
        let health = Health::default();
        assert_eq!(health.unhealthy(), Vec::<String>::new());
        assert_eq!(health.unready(), ["the pipeline has not started", "nothing is attached"]);
        health.beat();
        health.set(Watch { attached: vec!["eth0".to_owned()], missing: vec!["eth1".to_owned()] });
        assert_eq!(health.unready(), Vec::<String>::new());
        health.stopping();
        assert_eq!(health.unready(), ["stopping"]);
    }
}
