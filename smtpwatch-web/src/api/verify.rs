//! Verification of the hash chain, which reads every finding.

use axum::response::Response;

use super::{answer, problem::Problem, state::Api};

/// Checks at once: each holds a reader of the store, and reads all of it.
pub(super) const AT_ONCE: usize = 1;
/// Seconds after which another try is worth it.
const RETRY: u32 = 10;

pub(super) async fn serve(api: Api) -> Result<Response, Problem> {
    let busy = |_| Problem::busy("another request is verifying the chain: try again later", RETRY);
    let turn = api.verifying.try_acquire_owned().map_err(busy)?;
    let verified = api.desk.ask(move |store| {
        // Held until the check is through, also when who asked for it has gone.
        let _turn = turn;
        Ok(store.verify()?)
    });
    Ok(answer::json(&verified.await?))
}
