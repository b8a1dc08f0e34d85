//! `smtpwatch incidents serve`: serves the pages for a store without capturing.

use std::sync::Arc;

use anyhow::Context as _;
use smtpwatch_store::Store;
use smtpwatch_web::{
    api,
    app_state::{AppState, EventBus},
    pages,
    server::{self, Health},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, path};
use crate::{cli::IncidentsServeArgs, output::metrics::Metrics};

/// The reason that the pages show instead of the attached hooks.
const WHY: &str = "this is a look at a store (smtpwatch incidents serve)";

pub(super) fn run(args: &IncidentsServeArgs) -> anyhow::Result<Exit> {
    let path = path(&args.store_args)?;
    // An invalid path is an error at the start, and not on every page.
    drop(Store::open_existing(&path)?);
    let address = args.listen.0;
    anyhow::ensure!(
        address.ip().to_canonical().is_loopback(),
        "{address} is not on this host only: a store is shown on loopback (default {})",
        server::DEFAULT_LISTEN
    );
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; --web.listen-address sets another address"))?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        tracing::info!(url = format!("http://{}/", listener.local_addr()?), store = %path.display(), "pages");
        let (metrics, health) = (Arc::new(Metrics::new(&[])?), Arc::new(Health::default()));
        let app = AppState::new(path, metrics.web.clone(), health.clone(), EventBus::new()).without_capture(WHY);
        let app = Arc::new(app);
        let guarded = pages::router(app.clone()).merge(api::router(app));
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        // Pages with an event stream hold their connections open; the end does not wait for them.
        tokio::select! {
            served = server::serve(listener, metrics.web.clone(), health, guarded, None, std::future::pending()) => {
                served.context("the pages cannot be served")?;
            }
            () = stop => {}
        }
        Ok(Exit::Fine)
    })
}
