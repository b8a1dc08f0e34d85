//! [`Cause`]: what one incident and one alert are about.
//!
//! Most findings are about a peer. Two are not: what this host itself causes is one cause for each of its addresses and
//! ports, however many clients meet it, and password guessing by strangers is one cause for each address, port and day.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    Finding, Role, Timestamp,
    day::Day,
    finding::{Kind, vocabulary},
};

/// What a finding is about, and how findings are grouped.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Cause {
    /// Kind of the findings.
    pub kind: Kind,
    /// Role of this host.
    pub role: Role,
    /// Whose doing it is.
    pub about: About,
    /// The peer's address; this host's own address if `about` is not [`About::Peer`].
    pub address: IpAddr,
    /// Port of the server.
    pub port: u16,
}

vocabulary! {
    /// Whose doing a finding shows.
    About {
        /// The peer, or the path to it.
        Peer = "peer",
        /// This host's own listener: it lasts until its configuration changes.
        ThisHost = "this-host",
        /// Unknown clients that send passwords to this host's listener in cleartext: one group for each day.
        Guessing = "guessing",
    }
}

/// Number of hexadecimal digits of [`Cause::id`].
const ID_DIGITS: usize = 16;

impl Cause {
    /// The cause of a finding; `None` if its endpoints cannot be parsed.
    #[must_use]
    pub fn of(finding: &Finding) -> Option<Self> {
        let client: SocketAddr = finding.flow.client.parse().ok()?;
        let server: SocketAddr = finding.flow.server.parse().ok()?;
        let (peer, own) = match finding.role {
            Role::Client => (server, client),
            Role::Server => (client, server),
        };
        let about = about(finding);
        let address = match about {
            About::Peer => peer,
            About::ThisHost | About::Guessing => own,
        };
        let address = address.ip().to_canonical();
        Some(Self { kind: finding.kind, role: finding.role, about, address, port: server.port() })
    }

    /// A stable identifier: hexadecimal digits of the SHA-256 of all fields. It is the same on every host and after
    /// every restart, so that an alert can be silenced by it.
    #[must_use]
    pub fn id(&self) -> String {
        let Self { kind, role, about, address, port } = self;
        let text = format!("{} {} {} {address} {port}", kind.as_str(), role.as_str(), about.as_str());
        let mut digits: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        digits.truncate(ID_DIGITS);
        digits
    }

    /// The end of the group that a finding at this time belongs to, by the calendar; `None` if the group ends by a pause.
    #[must_use]
    pub fn until(&self, at: Timestamp) -> Option<Timestamp> {
        match self.about {
            About::Peer | About::ThisHost => None,
            About::Guessing => Some(Day::of(at).end()),
        }
    }
}

/// Whose doing a finding shows.
fn about(finding: &Finding) -> About {
    match finding.role {
        Role::Server if finding.kind.is_of_own_listener() => About::ThisHost,
        Role::Server if finding.kind.is_login() && finding.is_by_stranger() => About::Guessing,
        Role::Client | Role::Server => About::Peer,
    }
}
