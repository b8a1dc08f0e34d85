//! The wall clock: read here alone, and an argument everywhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use smtpwatch_core::Timestamp;

/// Now.
#[must_use]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}
