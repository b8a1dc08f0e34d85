//! Notifications to a service manager (sd_notify(3)): ready, reloading, stopping, and the watchdog.
//!
//! Without a service manager (no `$NOTIFY_SOCKET`), nothing happens.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

/// Maximum time to send a message to a manager that does not read: the calling thread also serves metrics and health.
const PATIENCE: Duration = Duration::from_secs(1);
/// Interval between attempts to send.
const RETRY: Duration = Duration::from_millis(10);

/// Reports that the start or a reload is complete.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Sets the status line, which shows the watched interfaces.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// Reports the start of a reload; [`ready`] reports its end.
pub fn reloading() {
    // Type=notify-reload requires the time of the manager's monotonic clock.
    match NotifyState::monotonic_usec_now() {
        Ok(since) => tell(&[NotifyState::Reloading, since]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Reports that the daemon is shutting down.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Sends a watchdog notification.
pub fn alive() {
    // No retry: the next one follows soon.
    send(&[NotifyState::Watchdog], Duration::ZERO);
}

/// The interval at which to call [`alive`], if the manager has a watchdog: half of its timeout.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|period| !period.is_zero())
}

fn tell(state: &[NotifyState<'_>]) {
    send(state, PATIENCE);
}

fn send(state: &[NotifyState<'_>], patience: Duration) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = try_send(&name, state, patience) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

fn try_send(name: &OsStr, state: &[NotifyState<'_>], patience: Duration) -> io::Result<()> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let text: String = state.iter().map(|state| format!("{state}\n")).collect();
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match socket.send_to_addr(text.as_bytes(), &address) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < patience => {
                std::thread::sleep(RETRY);
            }
            other => return other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_does_not_read_holds_nothing_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        manager.set_nonblocking(true).expect("set");
        let sent =
            (0..10_000).take_while(|_| try_send(path.as_os_str(), &[NotifyState::Watchdog], Duration::ZERO).is_ok());
        let sent = sent.count();
        assert!((1..10_000).contains(&sent), "{sent} messages found room");
        let mut message = [0; 64];
        let length = manager.recv(&mut message).expect("a message");
        assert_eq!(&message[..length], b"WATCHDOG=1\n");
        assert!(try_send(path.as_os_str(), &[NotifyState::Ready], PATIENCE).is_ok(), "there is room again");
    }
}
