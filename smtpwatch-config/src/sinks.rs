//! `[journal]` and `[alertmanager]`: outputs for findings in addition to store and metrics.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::value::{AlertmanagerUrl, Checked, Hold, ResendSeconds};

/// `[journal]`: findings, one per line.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a [journal] table")]
pub struct JournalSettings {
    /// Path of the file; empty for standard output.
    pub path: Checked<String>,
    /// Format of the lines.
    pub format: Checked<JournalFormat>,
}

impl JournalSettings {
    /// Path of the file; `None` for standard output.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        Some(&*self.path).filter(|path| !path.is_empty()).map(PathBuf::from)
    }
}

smtpwatch_system::vocabulary! {
    /// Form of a finding in the journal.
    #[derive(Default, clap::ValueEnum)]
    pub enum JournalFormat {
        /// The format of smtpwatch; `smtpwatch generate schema` prints its schema.
        #[default]
        Json = "json",
        /// Elastic Common Schema.
        Ecs = "ecs",
        /// Suricata's EVE.
        Eve = "eve",
    }
}

/// `[alertmanager]`: incidents, sent to Alertmanagers. None is configured by default.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an [alertmanager] table")]
pub struct AlertmanagerSettings {
    /// Base URLs, without `/api/v2/alerts`; of a cluster, all members.
    pub urls: Vec<Checked<AlertmanagerUrl>>,
    /// Seconds after which an active incident is sent again, so that a restarted Alertmanager receives it.
    pub resend_seconds: Checked<ResendSeconds>,
    /// Minutes without a finding after which an incident counts as ended.
    pub hold_minutes: Checked<Hold>,
}

impl Default for AlertmanagerSettings {
    fn default() -> Self {
        Self { urls: Vec::new(), resend_seconds: Checked(ResendSeconds(60)), hold_minutes: Checked(Hold(15)) }
    }
}

impl AlertmanagerSettings {
    /// Interval between two deliveries of an active incident.
    #[must_use]
    pub fn resend(&self) -> Duration {
        Duration::from_secs(self.resend_seconds.0.0)
    }

    /// Time from the newest finding of an incident to its end.
    #[must_use]
    pub fn hold(&self) -> Duration {
        Duration::from_secs(60 * u64::from(self.hold_minutes.0.0))
    }
}
