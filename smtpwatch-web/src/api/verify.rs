//! The operation that verifies the hash chain, which reads every finding.

use axum::response::Response;

use super::{problem::Problem, response, state::Api};

/// Maximum number of concurrent verifications: each holds a reader of the store, and reads the whole store.
pub(super) const AT_ONCE: usize = 1;
/// Seconds until a retry makes sense.
const RETRY: u32 = 10;

pub(super) async fn serve(api: Api) -> Result<Response, Problem> {
    let busy = |_| Problem::busy("another request is verifying the chain: try again later", RETRY);
    let turn = api.verifying.try_acquire_owned().map_err(busy)?;
    let verified = api.app.with_store(move |store| {
        // Held until the verification ends, even if the client has disconnected.
        let _turn = turn;
        Ok(store.verify()?)
    });
    Ok(response::json(&verified.await?))
}
