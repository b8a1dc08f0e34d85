//! Reload of the configuration: it is parsed first, then applied completely or not at all. The `Reloader` sends the
//! parsed configuration to the pipeline's thread, which answers whether it is in force.

use std::sync::{Arc, mpsc};

use smtpwatch_capture::CaptureError;
use smtpwatch_config::{Config, ConfigError, ConfigSource};
use smtpwatch_system::clock::now;
use tokio::sync::{Mutex, oneshot};

use super::exceptions;
use crate::{output::metrics::Metrics, service_manager};

/// A configuration for the pipeline, and the channel for the result.
pub(super) struct Change {
    pub(super) config: Config,
    pub(super) done: oneshot::Sender<Result<(), CaptureError>>,
}

/// Why the previous configuration stays in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("the pipeline has ended")]
    Ended,
}

/// Reloads the configuration for SIGHUP and the HTTP server; one reload at a time.
pub(super) struct Reloader {
    pub(super) source: ConfigSource,
    /// The configuration in force.
    pub(super) current: Mutex<Config>,
    pub(super) pipeline: mpsc::Sender<Change>,
    pub(super) metrics: Arc<Metrics>,
}

impl Reloader {
    /// Applies the content of the files. Returns the names of changed settings that need a restart.
    ///
    /// # Errors
    ///
    /// The error; nothing has changed then.
    pub(super) async fn reload(&self) -> Result<Vec<&'static str>, ReloadError> {
        let mut current = self.current.lock().await;
        service_manager::reloading();
        let outcome = self.change(&mut current).await;
        match &outcome {
            Ok(restart) => {
                self.metrics.config_read(now());
                self.metrics.rules(&current.rules, now());
                tracing::info!(rules = current.rules.len(), sha256 = current.hash(), "configuration reloaded");
                exceptions::announce(&current, now());
                if !restart.is_empty() {
                    tracing::warn!(settings = restart.join(", "), "these settings have changed and need a restart");
                }
            }
            Err(error) => {
                self.metrics.config_failed();
                tracing::error!("the previous configuration stays in force: {error}");
            }
        }
        service_manager::ready();
        outcome
    }

    async fn change(&self, current: &mut Config) -> Result<Vec<&'static str>, ReloadError> {
        let (read, _) = self.source.load()?;
        let mut config = current.clone();
        let restart = config.take_over(read);
        let (done, outcome) = oneshot::channel();
        self.pipeline.send(Change { config: config.clone(), done }).map_err(|_| ReloadError::Ended)?;
        outcome.await.map_err(|_| ReloadError::Ended)??;
        *current = config;
        Ok(restart)
    }
}
