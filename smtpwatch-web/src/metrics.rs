//! Metrics of the server. Labels are closed sets, exported as zero from the start.

use prometheus::{IntCounter, IntCounterVec};
use smtpwatch_metrics::{Registry, counters, opts, register};

/// Values of the `reason` label of failed logins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoginFailure {
    /// A name that is not known, or a wrong password.
    Password,
    /// Too many before: the password was not examined.
    Limited,
}

impl LoginFailure {
    /// Every reason.
    pub const ALL: [Self; 2] = [Self::Password, Self::Limited];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Limited => "limited",
        }
    }
}

/// Values of the `reason` label of connections that make room for others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionClosed {
    /// Idle, and its address has as many idle ones as it may have.
    IdleAddress,
    /// Idle, and its network (IPv4 /24, IPv6 /48) has as many idle ones as it may have.
    IdleNetwork,
    /// Idle, and its pool is full.
    IdleFull,
    /// With a request under way; its pool is full, none is idle, and its address has the largest share.
    BusyFull,
}

impl ConnectionClosed {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::IdleAddress, Self::IdleNetwork, Self::IdleFull, Self::BusyFull];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IdleAddress => "idle_address",
            Self::IdleNetwork => "idle_network",
            Self::IdleFull => "idle_full",
            Self::BusyFull => "busy_full",
        }
    }
}

/// Who was not let in, what was closed, and the registry that `/metrics` shows.
pub struct WebMetrics {
    registry: Registry,
    login_failures: IntCounterVec,
    connections_refused: IntCounter,
    connections_closed: IntCounterVec,
    web_config_failures: IntCounter,
}

impl WebMetrics {
    /// All of them, at zero; what is in the registry is what the server shows.
    ///
    /// # Errors
    ///
    /// They are in this registry already.
    pub fn register(r: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: r.clone(),
            login_failures: counters(
                r,
                "web_login_failures_total",
                "Failed logins to pages, API and metrics.",
                &["reason"],
            )?,
            connections_refused: register(
                r,
                IntCounter::with_opts(opts(
                    "web_connections_refused_total",
                    "Connections refused because the maximum number was open, each with an active request.",
                ))?,
            )?,
            connections_closed: counters(
                r,
                "web_connections_closed_total",
                "Connections closed to make room for others, idle ones first.",
                &["reason"],
            )?,
            web_config_failures: register(
                r,
                IntCounter::with_opts(opts(
                    "web_config_reload_failures_total",
                    "Changed web configurations with an error; the previous one stays in force.",
                ))?,
            )?,
        };
        for reason in LoginFailure::ALL {
            let _ = metrics.login_failures.with_label_values(&[reason.as_str()]);
        }
        for reason in ConnectionClosed::ALL {
            let _ = metrics.connections_closed.with_label_values(&[reason.as_str()]);
        }
        Ok(metrics)
    }

    /// Someone was not let in.
    pub fn login_failed(&self, reason: LoginFailure) {
        self.login_failures.with_label_values(&[reason.as_str()]).inc();
    }

    /// A connection was closed to make room.
    pub fn web_connection_closed(&self, reason: ConnectionClosed) {
        self.connections_closed.with_label_values(&[reason.as_str()]).inc();
    }

    /// As many connections are open as there may be.
    pub fn web_connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// The web configuration has changed, and is bad.
    pub fn web_config_failed(&self) {
        self.web_config_failures.inc();
    }

    /// The text exposition format, version 0.0.4, of the whole registry.
    #[must_use]
    pub fn render(&self) -> String {
        smtpwatch_metrics::render(&self.registry)
    }

    /// The values of one metric of the registry, added up by one of its labels.
    pub(crate) fn sums(&self, name: &str, label: &str) -> std::collections::BTreeMap<String, u64> {
        smtpwatch_metrics::sums(&self.registry, name, label)
    }
}
