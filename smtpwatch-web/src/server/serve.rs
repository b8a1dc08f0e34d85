//! Accepts connections and bounds their number and duration. [`serve`] runs until it is stopped.

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, extract::Request};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::yield_now,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    access::Access,
    auth::Client,
    config::{ConfigFile, WebConfig},
    connections::{Connections, Requests, ResponseBody, Slot},
    health::Health,
    limits::LoginThrottle,
    scrapers::Scrapers,
    tls,
};
use crate::metrics::WebMetrics;

/// Maximum time for the head of a request, from the start of the connection or the end of the previous response.
const HEADER_READ: Duration = Duration::from_secs(10);
/// Maximum size of a request's head, in bytes: request line, header fields, and the empty line. A larger one gets
/// status 431.
const MAX_HEAD: usize = 32 * 1024;
/// Maximum number of header fields of a request. More get status 431.
const MAX_FIELDS: usize = 100;
/// Milliseconds after which a connection is closed if the client acknowledges no data.
const TAKES_NOTHING_MS: u32 = 30_000;
/// Interval between checks of the configuration files.
const LOOK: Duration = Duration::from_secs(1);
/// Time for active responses when their connection must close.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, until descriptors may be free again.
const NO_DESCRIPTOR: Duration = Duration::from_secs(1);

/// Serves metrics and health, and the `guarded` routes to authorised clients, until `stop` resolves.
///
/// # Errors
///
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<WebMetrics>,
    health: Arc<Health>,
    guarded: Router,
    mut file: Option<ConfigFile>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let loopback = listener.local_addr()?.ip().to_canonical().is_loopback();
    let login_throttle = Arc::new(LoginThrottle::new(Instant::now()));
    let scrapers = Arc::new(Scrapers::default());
    let connections = Connections::new(scrapers.clone(), metrics.clone());
    let access = Access { metrics, health, guarded, loopback, login_throttle, scrapers };
    let mut current = Current::of(&access, file.as_mut().map(ConfigFile::take).unwrap_or_default());
    let (end, _) = watch::channel(());
    // Each connection holds a sender: the receiver sees the end of the last one.
    let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = look.tick(), if file.is_some() => {
                if let Some(config) = file.as_mut().and_then(|file| refresh(file, &access.metrics)) {
                    current = Current::of(&access, config);
                    // Clients that were admitted under the previous configuration must reconnect.
                    end.send_replace(());
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let client = peer.ip().to_canonical();
                    if let Some(slot) = connections.admit(client, Instant::now()) {
                        let served = connection(stream, client, current.clone(), end.subscribe(), slot);
                        let open = open.clone();
                        tokio::spawn(async move {
                            served.await;
                            drop(open);
                        });
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection");
                    tokio::time::sleep(NO_DESCRIPTOR).await;
                }
            },
        }
    }
    drop(listener);
    end.send_replace(());
    drop(open);
    // Connections that do not end in time end with the runtime.
    _ = timeout(GRACE, all_closed.recv()).await;
    Ok(())
}

/// The new configuration, if it has changed.
fn refresh(file: &mut ConfigFile, metrics: &WebMetrics) -> Option<WebConfig> {
    match file.refresh() {
        Ok(true) => {
            tracing::info!(path = %file.path().display(), "web configuration reloaded");
            Some(file.take())
        }
        Ok(false) => None,
        Err(error) => {
            metrics.web_config_failed();
            tracing::error!("the previous web configuration stays in force: {error}");
            None
        }
    }
}

/// One loaded configuration, as connections use it.
#[derive(Clone)]
struct Current {
    tls: Option<TlsAcceptor>,
    routes: Router,
}

impl Current {
    fn of(access: &Access, config: WebConfig) -> Self {
        let tls = config.tls.as_ref().map(|tls| tls.acceptor.clone());
        Self { tls, routes: access.routes(config) }
    }
}

async fn connection(stream: TcpStream, client: IpAddr, current: Current, end: watch::Receiver<()>, slot: Slot) {
    if let Err(error) = setsockopt(&stream, TcpUserTimeout, &TAKES_NOTHING_MS) {
        tracing::debug!(%client, %error, "cannot set the timeout for clients that do not read");
    }
    let requests = slot.requests();
    let served = async {
        match &current.tls {
            None => http(stream, client, current.routes, end, requests).await,
            Some(acceptor) => {
                if let Some(stream) = tls::accept(acceptor, stream, client).await {
                    http(stream, client, current.routes, end, requests).await;
                }
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = slot.closed() => tracing::debug!(%client, "a connection was closed to make room for others"),
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    client: IpAddr,
    routes: Router,
    mut end: watch::Receiver<()>,
    requests: Requests,
) {
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let under_way = requests.begin();
        request.extensions_mut().insert(Client(client));
        let answer = routes.call(request);
        async move {
            // One request at a time: a connection with many pipelined requests takes turns with the others on its
            // thread. hyper answers several before it yields.
            yield_now().await;
            answer.await.map(|answer| answer.map(|body| ResponseBody { body, _under_way: under_way }))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = end.changed() => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "a connection ended early");
    }
}
