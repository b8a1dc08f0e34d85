//! `[tlsrpt]`: TLS reports about mail that this host sent (RFC 8460). [`TlsrptSettings`] is the checked table.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::value::{Checked, DelaySeconds, MAX_DELAY_SECONDS, MailAddress, Organization};

/// `[tlsrpt]`. By default nothing is written and nothing is sent.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "Table")]
pub struct TlsrptSettings {
    /// Directory for reports, one file for each day and policy domain; `None` for none.
    pub directory: Option<PathBuf>,
    /// The reporting organization; `None` for the name of this host.
    pub organization: Option<String>,
    /// Mail address of the contact; its domain is the submitter. `None` for the postmaster of this host.
    pub contact: Option<String>,
    /// Whether reports are sent to the targets that the domains publish.
    pub send: bool,
    /// The local mail server that accepts the reports.
    pub smtp: SocketAddr,
    /// Sender address of the reports; `None` for the contact.
    pub from: Option<String>,
    /// Maximum random delay of a report, so that reports do not all arrive at midnight (RFC 8460 §4.1).
    pub max_delay: Duration,
}

impl Default for TlsrptSettings {
    fn default() -> Self {
        let table = Table::default();
        Self {
            directory: None,
            organization: None,
            contact: None,
            send: false,
            smtp: table.smtp.0,
            from: None,
            max_delay: Duration::from_secs(table.delay_seconds.0.0),
        }
    }
}

/// The structure of the TOML table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a [tlsrpt] table")]
struct Table {
    directory: Checked<String>,
    organization: Option<Checked<Organization>>,
    contact: Option<Checked<MailAddress>>,
    send: Checked<bool>,
    smtp: Checked<SocketAddr>,
    from: Option<Checked<MailAddress>>,
    delay_seconds: Checked<DelaySeconds>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            directory: Checked(String::new()),
            organization: None,
            contact: None,
            send: Checked(false),
            smtp: Checked(SocketAddr::from(([127, 0, 0, 1], 25))),
            from: None,
            delay_seconds: Checked(DelaySeconds(MAX_DELAY_SECONDS)),
        }
    }
}

impl TryFrom<Table> for TlsrptSettings {
    type Error = &'static str;

    fn try_from(table: Table) -> Result<Self, Self::Error> {
        let organization = table.organization.map(|name| name.0.0);
        let contact = table.contact.map(|address| address.0.0);
        if table.send.0 && (organization.is_none() || contact.is_none()) {
            return Err(
                "[tlsrpt] send = true: reports go out in somebody's name: set organization and contact, such as \
                 organization = \"Example Corp\" and contact = \"tlsrpt@example.org\"",
            );
        }
        Ok(Self {
            directory: Some(table.directory.0).filter(|path| !path.is_empty()).map(PathBuf::from),
            organization,
            contact,
            send: table.send.0,
            smtp: table.smtp.0,
            from: table.from.map(|address| address.0.0),
            max_delay: Duration::from_secs(table.delay_seconds.0.0),
        })
    }
}
