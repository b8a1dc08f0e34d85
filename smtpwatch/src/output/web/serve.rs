//! Connections: how many, how long, and until when.

use std::{
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
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    auth::Client,
    config::{ConfigFile, WebConfig},
    health::Health,
    limits::Logins,
    site::Site,
    tls,
};
use crate::output::metrics::Metrics;

/// Connections that are open at once.
const MAX_CONNECTIONS: usize = 256;
/// Until a request has come, from the beginning of the connection or the end of the answer before.
const HEADER_READ: Duration = Duration::from_secs(10);
/// Octets of a request: line and headers.
const MAX_HEADER: usize = 32 * 1024;
/// Milliseconds after which a client that takes in nothing is given up.
const TAKES_NOTHING_MS: u32 = 30_000;
/// The files of the configuration are looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// Answers that are under way when their connection is to end get so long.
const GRACE: Duration = Duration::from_secs(5);
/// After a failure to take in a connection: descriptors may be free again.
const NO_DESCRIPTOR: Duration = Duration::from_secs(1);

/// Serves until `stop` resolves: metrics and health, and what is `guarded` to those who may see it.
///
/// # Errors
///
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    guarded: Router,
    mut file: Option<ConfigFile>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let loopback = listener.local_addr()?.ip().to_canonical().is_loopback();
    let logins = Arc::new(Logins::new(Instant::now()));
    let site = Site { metrics, health, guarded, loopback, logins };
    let mut current = Current::of(&site, file.as_mut().map(ConfigFile::take).unwrap_or_default());
    let (end, _) = watch::channel(());
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = look.tick(), if file.is_some() => {
                if let Some(config) = file.as_mut().and_then(|file| refresh(file, &site.metrics)) {
                    current = Current::of(&site, config);
                    // Who was let in by what does not hold any more has to come again.
                    end.send_replace(());
                }
            }
            accepted = listener.accept() => match (accepted, places.clone().try_acquire_owned()) {
                (Ok((stream, peer)), Ok(place)) => {
                    let client = peer.ip().to_canonical();
                    tokio::spawn(connection(stream, client, current.clone(), end.subscribe(), place));
                }
                (Ok(_), Err(_)) => site.metrics.web_connection_refused(),
                (Err(error), _) => {
                    tracing::error!(%error, "cannot take in a connection");
                    tokio::time::sleep(NO_DESCRIPTOR).await;
                }
            },
        }
    }
    drop(listener);
    end.send_replace(());
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    // Those that do not end in time end with the runtime.
    _ = timeout(GRACE, places.acquire_many(all)).await;
    Ok(())
}

/// The new configuration, when there is one.
fn refresh(file: &mut ConfigFile, metrics: &Metrics) -> Option<WebConfig> {
    match file.refresh() {
        Ok(true) => {
            tracing::info!(path = %file.path().display(), "web configuration read again");
            Some(file.take())
        }
        Ok(false) => None,
        Err(error) => {
            metrics.web_config_failed();
            tracing::error!("what was read before holds: {error}");
            None
        }
    }
}

/// One reading of the configuration, as connections need it.
#[derive(Clone)]
struct Current {
    tls: Option<TlsAcceptor>,
    routes: Router,
}

impl Current {
    fn of(site: &Site, config: WebConfig) -> Self {
        let tls = config.tls.as_ref().map(|tls| tls.acceptor.clone());
        Self { tls, routes: site.routes(config) }
    }
}

async fn connection(
    stream: TcpStream,
    client: IpAddr,
    current: Current,
    end: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
) {
    if let Err(error) = setsockopt(&stream, TcpUserTimeout, &TAKES_NOTHING_MS) {
        tracing::debug!(%client, %error, "cannot bound how long a client may take in nothing");
    }
    match &current.tls {
        None => http(stream, client, current.routes, end).await,
        Some(acceptor) => {
            if let Some(stream) = tls::accept(acceptor, stream, client).await {
                http(stream, client, current.routes, end).await;
            }
        }
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    client: IpAddr,
    routes: Router,
    mut end: watch::Receiver<()>,
) {
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Client(client));
        routes.call(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ)
            .max_buf_size(MAX_HEADER)
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
        tracing::debug!(%client, %error, "a connection ended before its time");
    }
}
