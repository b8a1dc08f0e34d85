//! Metrics of the server ([`WebMetrics`]), which the daemon registers. Labels are closed sets, exported as zero from
//! the start.

use prometheus::{IntCounter, IntCounterVec};
use smtpwatch_metrics::{Registry, counters, opts, register};

smtpwatch_system::vocabulary! {
    /// Values of the `reason` label of failed logins.
    pub enum LoginFailure {
        /// An unknown user name or a wrong password.
        Password = "password",
        /// Rate limited: the password was not checked.
        Limited = "limited",
    }
}

smtpwatch_system::vocabulary! {
    /// Values of the `reason` label of connections that were closed to admit others.
    pub enum ConnectionClosed {
        /// Idle, and its address has reached its limit of idle connections.
        IdleAddress = "idle_address",
        /// Idle, and its network (IPv4 /24, IPv6 /48) has reached its limit of idle connections.
        IdleNetwork = "idle_network",
        /// Idle, and its pool is full.
        IdleFull = "idle_full",
        /// With an active request: its pool is full without idle connections, and its address has the largest share.
        BusyFull = "busy_full",
    }
}

/// Counters of failed logins and closed connections, and the registry that `/metrics` exports.
pub struct WebMetrics {
    registry: Registry,
    login_failures: IntCounterVec,
    connections_refused: IntCounter,
    connections_closed: IntCounterVec,
    web_config_failures: IntCounter,
}

impl WebMetrics {
    /// Registers all metrics at zero. `/metrics` exports the whole registry.
    ///
    /// # Errors
    ///
    /// The registry already has these metrics.
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

    /// Counts a failed login.
    pub fn login_failed(&self, reason: LoginFailure) {
        self.login_failures.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts a connection that was closed to admit another.
    pub fn web_connection_closed(&self, reason: ConnectionClosed) {
        self.connections_closed.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts a connection that was refused because its pool is full.
    pub fn web_connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// Counts a changed web configuration that is invalid.
    pub fn web_config_failed(&self) {
        self.web_config_failures.inc();
    }

    /// The whole registry in the text exposition format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        smtpwatch_metrics::render(&self.registry)
    }

    /// The values of one metric of the registry, summed by one of its labels.
    pub(crate) fn sums(&self, name: &str, label: &str) -> std::collections::BTreeMap<String, u64> {
        smtpwatch_metrics::sums(&self.registry, name, label)
    }
}
