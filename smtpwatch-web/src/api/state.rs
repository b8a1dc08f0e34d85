//! The state that the operations of the API share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::app_state::AppState;

/// Root path of the API.
pub(super) const ROOT: &str = "/api/v1";

/// The state of the API; cheap to clone.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) app: Arc<AppState>,
    /// Permits for the verification of the chain.
    pub(super) verifying: Arc<Semaphore>,
    /// Permits for listeners of events.
    pub(super) listening: Arc<Semaphore>,
}
