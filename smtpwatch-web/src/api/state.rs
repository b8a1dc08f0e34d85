//! What every answer of the API is made from.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::desk::Desk;

/// Where all of it is.
pub(super) const ROOT: &str = "/api/v1";

/// What answers are made from.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) desk: Arc<Desk>,
    /// Turns at the check of the chain.
    pub(super) verifying: Arc<Semaphore>,
    /// Places for those who listen.
    pub(super) listening: Arc<Semaphore>,
}
