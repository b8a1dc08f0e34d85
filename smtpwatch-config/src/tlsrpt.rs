//! `[tlsrpt]`: TLS reports about mail that left this host (RFC 8460).

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::value::{Checked, DelaySeconds, MAX_DELAY_SECONDS, MailAddress, Organization};

/// `[tlsrpt]`. By default nothing is written and nothing is sent.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "Table")]
pub struct TlsrptSettings {
    /// Where reports are written to, one file for each day and policy domain; `None`: nowhere.
    pub directory: Option<PathBuf>,
    /// Who reports; `None`: this host's name.
    pub organization: Option<String>,
    /// Whom to ask about a report, a mail address; its domain is the submitter. `None`: the postmaster of this host.
    pub contact: Option<String>,
    /// Whether reports are sent to where the domains want them.
    pub send: bool,
    /// The local mail server that takes them.
    pub smtp: SocketAddr,
    /// Who sends them; `None`: the contact.
    pub from: Option<String>,
    /// Each report waits for a time up to this, so that not everyone's reports arrive at midnight (RFC 8460 §4.1).
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

/// The table as it is written.
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
