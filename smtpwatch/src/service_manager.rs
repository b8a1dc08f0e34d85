//! What a service manager is told (sd_notify(3)): ready, reloading, stopping, and that the watch is alive.
//!
//! Without one nothing happens: `$NOTIFY_SOCKET` names it.

use std::time::Duration;

use sd_notify::NotifyState;

/// The watch has begun, or the configuration has been read again.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// What is watched, in a line that people read.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// The configuration is read again; [`ready`] ends it.
pub fn reloading() {
    // Of the manager's clock (Type=notify-reload).
    match NotifyState::monotonic_usec_now() {
        Ok(since) => tell(&[NotifyState::Reloading, since]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The watch is alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often the manager wants to hear [`alive`], if it does: half of the time after which it ends the daemon.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|period| !period.is_zero())
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
