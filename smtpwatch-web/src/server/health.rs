//! State of the daemon for `/-/healthy` and `/-/ready`.

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The pipeline beats at least every second; this long without means that it hangs.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);

/// How the watch is doing. Written by the pipeline, read by the pages.
#[derive(Default)]
pub struct Health {
    heartbeat: Mutex<Option<Instant>>,
    state: Mutex<Watch>,
    store: Mutex<StoreHealth>,
    stopping: AtomicBool,
}

/// How the store is doing, in words.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreHealth {
    /// Why it cannot be relied on; `None`: it can.
    pub trouble: Option<String>,
    /// The newest time that it was lost and made again.
    pub recovered: Option<String>,
}

/// What is attached, and why something is not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Watch {
    /// One line for each hook that is ours.
    pub attached: Vec<String>,
    /// One line for each thing that is wanted and missing.
    pub missing: Vec<String>,
    /// Those of them that were watched until another program took their hook away: they make the daemon not ready.
    pub lost: Vec<String>,
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attached.as_slice() {
            [] => f.write_str("nothing is attached")?,
            attached => write!(f, "watching {}", attached.join(", "))?,
        }
        if self.missing.is_empty() { Ok(()) } else { write!(f, "; missing: {}", self.missing.join(", ")) }
    }
}

impl Health {
    /// The pipeline is alive.
    pub fn beat(&self) {
        *lock(&self.heartbeat) = Some(Instant::now());
    }

    /// What is attached has changed.
    pub fn set(&self, watch: Watch) {
        *lock(&self.state) = watch;
    }

    /// How the store is doing.
    pub fn set_store(&self, store: StoreHealth) {
        *lock(&self.store) = store;
    }

    /// The end has begun: not ready any more.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Why the daemon should be started again; empty: it need not.
    #[must_use]
    pub fn unhealthy(&self) -> Vec<String> {
        match *lock(&self.heartbeat) {
            Some(beat) if beat.elapsed() > HEARTBEAT_LIMIT => {
                vec![format!("the pipeline has not moved for {} seconds", beat.elapsed().as_secs())]
            }
            _ => Vec::new(),
        }
    }

    /// What is attached, and what is missing.
    #[must_use]
    pub fn watch(&self) -> Watch {
        lock(&self.state).clone()
    }

    /// What does not work as it should, or was lost, while the daemon watches; empty: nothing.
    #[must_use]
    pub fn degraded(&self) -> Vec<String> {
        let StoreHealth { trouble, recovered } = lock(&self.store).clone();
        trouble.into_iter().chain(recovered).map(|line| format!("store: {line}")).collect()
    }

    /// Why the daemon does not do all that it should; empty: it does. A store that is not written is among it: to start the
    /// daemon again does not fix that, so it is not a matter of [`Self::unhealthy`].
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = self.not_watching();
        let watch = lock(&self.state);
        if !watch.attached.is_empty() {
            reasons.extend(watch.lost.iter().cloned());
        }
        drop(watch);
        reasons.extend(lock(&self.store).trouble.iter().map(|line| format!("store: {line}")));
        reasons
    }

    /// Why nothing is watched; empty: something is.
    #[must_use]
    pub fn not_watching(&self) -> Vec<String> {
        let mut reasons = self.unhealthy();
        if lock(&self.heartbeat).is_none() {
            reasons.push("the pipeline has not started".to_owned());
        }
        if self.stopping.load(Ordering::Relaxed) {
            reasons.push("stopping".to_owned());
        }
        let watch = lock(&self.state);
        if watch.attached.is_empty() {
            reasons.push("nothing is attached".to_owned());
            reasons.extend(watch.missing.iter().cloned());
        }
        reasons
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What a panicking thread left is whole: each is set in one assignment.
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
        health.beat();
        let (eth0, eth1) = (vec!["eth0".to_owned()], vec!["eth1".to_owned()]);
        let lost = Watch { attached: eth0.clone(), missing: eth1.clone(), lost: eth1.clone() };
        health.set(lost);
        assert_eq!(health.unready(), ["eth1"], "it was watched, and another program took the hook away");
        health.set(Watch { attached: eth0, missing: eth1, lost: Vec::new() });
        assert_eq!(health.unready(), Vec::<String>::new());
        health.set_store(StoreHealth { trouble: Some("full".to_owned()), recovered: None });
        assert_eq!(
            (health.unready(), health.degraded()),
            (vec!["store: full".to_owned()], vec!["store: full".to_owned()])
        );
        assert_eq!((health.unhealthy(), health.not_watching()), (Vec::new(), Vec::new()), "a restart would not help");
        health.set_store(StoreHealth { trouble: None, recovered: Some("made again".to_owned()) });
        assert_eq!((health.unready(), health.degraded()), (Vec::new(), vec!["store: made again".to_owned()]));
        health.stopping();
        assert_eq!(health.unready(), ["stopping"]);
    }
}
