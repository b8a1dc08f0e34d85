//! State of the daemon for `/-/healthy` and `/-/ready`. The pipeline and the writer of the store set [`Health`]; the
//! server reads it.

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The pipeline sends a heartbeat at least every second; after this time without one it counts as hung.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

/// The state of the daemon. Written by the pipeline, read by the server.
#[derive(Default)]
pub struct Health {
    heartbeat: Mutex<Option<Instant>>,
    state: Mutex<CaptureStatus>,
    store: Mutex<StoreHealth>,
    encapsulated: Mutex<Vec<String>>,
    stopping: AtomicBool,
}

/// The state of the store, as text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreHealth {
    /// Why the store is unreliable; `None` while it works.
    pub trouble: Option<String>,
    /// Description of the last recovery; `None` if there was none.
    pub recovered: Option<String>,
}

/// Attached and missing hooks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CaptureStatus {
    /// One line for each hook that a program of smtpwatch is attached to.
    pub attached: Vec<String>,
    /// One line for each configured hook or interface that is missing.
    pub missing: Vec<String>,
    /// Missing hooks that were attached until another program replaced them; they make the daemon not ready.
    pub lost: Vec<String>,
}

impl fmt::Display for CaptureStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attached.as_slice() {
            [] => f.write_str("nothing is attached")?,
            attached => write!(f, "watching {}", attached.join(", "))?,
        }
        if self.missing.is_empty() { Ok(()) } else { write!(f, "; missing: {}", self.missing.join(", ")) }
    }
}

impl Health {
    /// Heartbeat of the pipeline.
    pub fn heartbeat(&self) {
        *lock(&self.heartbeat) = Some(Instant::now());
    }

    /// Records a change of the hooks.
    pub fn set(&self, status: CaptureStatus) {
        *lock(&self.state) = status;
    }

    /// Records the state of the store.
    pub fn set_store(&self, store: StoreHealth) {
        *lock(&self.store) = store;
    }

    /// Records mail in encapsulation that is not checked, one line for each interface and encapsulation.
    pub fn set_encapsulated(&self, lines: Vec<String>) {
        *lock(&self.encapsulated) = lines;
    }

    /// The daemon is shutting down and not ready any more.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Why the daemon should be restarted; empty if it is healthy.
    #[must_use]
    pub fn unhealthy(&self) -> Vec<String> {
        match *lock(&self.heartbeat) {
            Some(beat) if beat.elapsed() > HEARTBEAT_LIMIT => {
                vec![format!("the pipeline has not moved for {} seconds", beat.elapsed().as_secs())]
            }
            _ => Vec::new(),
        }
    }

    /// Attached and missing hooks.
    #[must_use]
    pub fn capture_status(&self) -> CaptureStatus {
        lock(&self.state).clone()
    }

    /// Faults and losses while the daemon still captures; empty if there are none.
    #[must_use]
    pub fn degraded(&self) -> Vec<String> {
        let StoreHealth { trouble, recovered } = lock(&self.store).clone();
        let store = trouble.into_iter().chain(recovered).map(|line| format!("store: {line}"));
        store.chain(lock(&self.encapsulated).iter().cloned()).collect()
    }

    /// Why the daemon does not do its full work; empty if it is ready. An unwritable store is included here and not in
    /// [`Self::unhealthy`], because a restart does not fix it.
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = self.not_watching();
        let status = lock(&self.state);
        if !status.attached.is_empty() {
            reasons.extend(status.lost.iter().cloned());
        }
        drop(status);
        reasons.extend(lock(&self.store).trouble.iter().map(|line| format!("store: {line}")));
        reasons
    }

    /// Why no traffic is captured; empty while capture works.
    #[must_use]
    pub fn not_watching(&self) -> Vec<String> {
        let mut reasons = self.unhealthy();
        if lock(&self.heartbeat).is_none() {
            reasons.push("the pipeline has not started".to_owned());
        }
        if self.stopping.load(Ordering::Relaxed) {
            reasons.push("stopping".to_owned());
        }
        let status = lock(&self.state);
        if status.attached.is_empty() {
            reasons.push("nothing is attached".to_owned());
            reasons.extend(status.missing.iter().cloned());
        }
        reasons
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panicking thread leaves a valid value: each is set in one assignment.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_tells_its_reasons() {
        let health = Health::default();
        assert_eq!(health.unhealthy(), Vec::<String>::new());
        assert_eq!(health.unready(), ["the pipeline has not started", "nothing is attached"]);
        health.heartbeat();
        let (eth0, eth1) = (vec!["eth0".to_owned()], vec!["eth1".to_owned()]);
        let lost = CaptureStatus { attached: eth0.clone(), missing: eth1.clone(), lost: eth1.clone() };
        health.set(lost);
        assert_eq!(health.unready(), ["eth1"], "it was watched, and another program took the hook away");
        health.set(CaptureStatus { attached: eth0, missing: eth1, lost: Vec::new() });
        assert_eq!(health.unready(), Vec::<String>::new());
        health.set_store(StoreHealth { trouble: Some("full".to_owned()), recovered: None });
        assert_eq!(
            (health.unready(), health.degraded()),
            (vec!["store: full".to_owned()], vec!["store: full".to_owned()])
        );
        assert_eq!((health.unhealthy(), health.not_watching()), (Vec::new(), Vec::new()), "a restart would not help");
        health.set_store(StoreHealth { trouble: None, recovered: Some("made again".to_owned()) });
        assert_eq!((health.unready(), health.degraded()), (Vec::new(), vec!["store: made again".to_owned()]));
        let blind = vec!["mail in VXLAN passes eth0".to_owned()];
        health.set_encapsulated(blind.clone());
        assert_eq!((health.unready(), health.degraded()[1..].to_vec()), (Vec::new(), blind), "the rest is watched");
        health.set_encapsulated(Vec::new());
        assert_eq!(health.degraded(), ["store: made again"]);
        health.stopping();
        assert_eq!(health.unready(), ["stopping"]);
    }
}
