//! Notifications to a service manager (sd_notify(3)): ready, reloading, stopping, and the watchdog.
//!
//! Without a service manager, which `$NOTIFY_SOCKET` names, nothing happens.

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

/// How long a message waits for a manager that does not read: the thread that serves metrics and health must go on.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(10);

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
    // The next one follows soon.
    send(&[NotifyState::Watchdog], Duration::ZERO);
}

/// How often the manager wants to hear [`alive`], if it does: half of the time after which it ends the daemon.
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
