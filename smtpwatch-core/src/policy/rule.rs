//! Local policy: `[[rule]]` of the configuration. The first [`Rule`] that matches wins.

use std::{fmt, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Role, Timestamp, finding::Kind};

/// How long before its end a rule is announced.
pub const ANNOUNCED: Duration = Duration::from_secs(7 * 86_400);

/// One local rule. It applies to a flow if all its conditions match.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rule {
    /// Addresses, networks or server names; empty matches every peer.
    pub peer: Vec<PeerPattern>,
    /// Server ports; empty matches every port.
    pub port: Vec<u16>,
    /// Role of this host; `None` matches both.
    pub role: Option<Role>,
    /// Demand about STARTTLS.
    pub starttls: Option<StarttlsRule>,
    /// Demand about AUTH in cleartext.
    pub auth_plaintext: Option<AuthRule>,
    /// Minimum TLS version, as on the wire (`0x0303` is TLS 1.2).
    pub min_tls: Option<u16>,
    /// The rule applies to sessions that begin before this time; `None`: to all.
    pub until: Option<Timestamp>,
    /// Why the rule exists, in the operator's words.
    pub reason: String,
}

/// How a rule stands to a point in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleState {
    /// In force; it has no end, or its end is more than [`ANNOUNCED`] away.
    Active,
    /// In force, and its end is at most [`ANNOUNCED`] away.
    Expiring,
    /// Its end has passed: it matches nothing.
    Expired,
}

impl RuleState {
    /// Every state, for metric labels.
    pub const ALL: [Self; 3] = [Self::Active, Self::Expiring, Self::Expired];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expiring => "expiring",
            Self::Expired => "expired",
        }
    }
}

/// `starttls = …` of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StarttlsRule {
    /// Mail in cleartext is a violation.
    Required,
    /// The offer is expected and its absence counts as stripping; mail in cleartext alone is not a violation.
    Expected,
    /// Raise no finding about STARTTLS of this peer.
    Ignore,
}

impl StarttlsRule {
    /// The value in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Expected => "expected",
            Self::Ignore => "ignore",
        }
    }
}

/// `auth_plaintext = …` of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthRule {
    /// Credentials in cleartext violate this policy.
    Forbid,
    /// Credentials in cleartext are accepted practice for this peer: raise no finding.
    Allow,
}

impl AuthRule {
    /// The value in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forbid => "forbid",
            Self::Allow => "allow",
        }
    }
}

/// The key of a rule that suppresses findings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suppressing {
    /// `starttls = "ignore"`.
    Starttls,
    /// `auth_plaintext = "allow"`.
    Auth,
}

/// The peers to which a rule applies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerPattern {
    /// An address or network, with its prefix length in bits.
    Net(IpAddr, u8),
    /// A name with at most one `*` per label, in lower case without the final dot.
    Name(String),
}

/// The pattern as it is written in the configuration.
impl fmt::Display for PeerPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(address, 32) if address.is_ipv4() => write!(f, "{address}"),
            Self::Net(address, 128) => write!(f, "{address}"),
            Self::Net(address, prefix) => write!(f, "{address}/{prefix}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Error in a peer pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PatternError {
    /// The prefix is longer than the address.
    #[error("{0:?}: the prefix length is at most {1}")]
    Prefix(String, u8),
    /// Neither an address, nor a network, nor a host name.
    #[error("{0:?} is neither an address, nor a network (192.0.2.0/24), nor a server name (mx*.example.net)")]
    Form(String),
}

impl std::str::FromStr for PeerPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        if let Some((address, prefix)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| PatternError::Form(text.to_owned()))?;
            let bits = if address.is_ipv4() { 32 } else { 128 };
            return match prefix.parse::<u8>() {
                Ok(prefix) if prefix <= bits => Ok(Self::Net(address, prefix)),
                Ok(_) => Err(PatternError::Prefix(text.to_owned(), bits)),
                Err(_) => Err(PatternError::Form(text.to_owned())),
            };
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'*') || !c.is_ascii())
        };
        if !name.is_empty() && name.len() <= 253 && name.split('.').all(label) {
            Ok(Self::Name(name))
        } else {
            Err(PatternError::Form(text.to_owned()))
        }
    }
}

/// An address or network, such as `192.0.2.0/24`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The expected form, for error messages.
    pub const FORM: &'static str = "an address or network, such as \"192.0.2.0/24\"";

    /// Whether `address` is in this network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        in_network(address, self.address, self.prefix)
    }

    /// The network that an address is assumed to belong to: IPv4 /24, IPv6 /48.
    #[must_use]
    pub const fn around(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, prefix: if address.is_ipv4() { 24 } else { 48 } }
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(PeerPattern::Net(address, prefix)) => Ok(Self { address, prefix }),
            Ok(PeerPattern::Name(_)) => Err(format!("{text:?}: expected {}", Self::FORM)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Whether `address` is in `network/prefix`. IPv4 and IPv6 never match each other; an IPv4-mapped address counts as
/// IPv4.
#[must_use]
pub fn in_network(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let bits = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((address, width), (network, network_width)) = (bits(address), bits(network));
    width == network_width && (prefix == 0 || (address ^ network) >> (128 - u32::from(prefix.min(128))) == 0)
}

/// Whether `name` matches `pattern` label by label; `*` matches any characters within one label.
#[must_use]
pub fn name_matches(pattern: &str, name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let (patterns, labels) = (pattern.split('.'), name.split('.'));
    patterns.clone().count() == labels.clone().count() && patterns.zip(labels).all(|(p, l)| label_matches(p, l))
}

fn label_matches(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            // The first part is fixed; the rest may match at any later point.
            label.strip_prefix(before).is_some_and(|rest| {
                (0..=rest.len()).filter(|&at| rest.is_char_boundary(at)).any(|at| label_matches(after, &rest[at..]))
            })
        }
    }
}

impl Rule {
    /// Whether the rule is in force at this time, and for how long.
    #[must_use]
    pub fn state(&self, at: Timestamp) -> RuleState {
        match self.until {
            Some(until) if at >= until => RuleState::Expired,
            Some(until) if until.since(at) <= ANNOUNCED => RuleState::Expiring,
            Some(_) | None => RuleState::Active,
        }
    }

    /// Whether the rule has not ended at this time.
    #[must_use]
    pub fn is_in_force(&self, at: Timestamp) -> bool {
        self.until.is_none_or(|until| at < until)
    }

    /// An exception that ends: it suppresses findings until a point in time.
    #[must_use]
    pub fn is_exception(&self) -> bool {
        let suppresses = self.starttls == Some(StarttlsRule::Ignore) || self.auth_plaintext == Some(AuthRule::Allow);
        suppresses && self.until.is_some()
    }

    /// The demand with which a rule suppresses findings of this kind; `None`: no rule suppresses them.
    #[must_use]
    pub const fn suppressing(kind: Kind) -> Option<Suppressing> {
        match kind {
            Kind::StarttlsStripped
            | Kind::StarttlsMasked
            | Kind::StarttlsRefused
            | Kind::StarttlsUnused
            | Kind::CommandRewritten
            | Kind::EhloDowngraded
            | Kind::TlsHandshakeFailed
            | Kind::DowngradeRetry
            | Kind::TlsDowngraded
            | Kind::CertificateMismatch
            | Kind::PolicyViolation => Some(Suppressing::Starttls),
            Kind::AuthPlaintext | Kind::AuthExchangePlaintext | Kind::AuthOfferedPlaintext => Some(Suppressing::Auth),
            Kind::CommandInjection | Kind::ResponseInjection | Kind::StreamTampering => None,
        }
    }

    /// Whether this rule applies to a peer, regardless of its end; `names` are all names that the server gave (greeting,
    /// EHLO reply, SNI).
    #[must_use]
    pub fn matches(&self, address: IpAddr, port: u16, role: Role, names: &[&str]) -> bool {
        let peer = |pattern: &PeerPattern| match pattern {
            PeerPattern::Net(network, prefix) => in_network(address, *network, *prefix),
            PeerPattern::Name(pattern) => names.iter().any(|name| name_matches(pattern, name)),
        };
        (self.peer.is_empty() || self.peer.iter().any(peer))
            && (self.port.is_empty() || self.port.contains(&port))
            && self.role.is_none_or(|wanted| wanted == role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_parse_or_say_why_not() {
        for good in
            ["192.0.2.1", "192.0.2.0/24", "2001:db8::/32", "mx*.example.net", "MX.Example.NET.", "*.example.net"]
        {
            let pattern = good.parse::<PeerPattern>().expect(good);
            assert_eq!(pattern.to_string().parse(), Ok(pattern), "{good}");
        }
        for (text, written) in [("MX.Example.NET.", "mx.example.net"), ("192.0.2.1/32", "192.0.2.1")] {
            assert_eq!(text.parse::<PeerPattern>().expect(text).to_string(), written);
        }
        for bad in ["192.0.2.0/33", "192.0.2.0/x", "2001:db8::/129", "", ".", "a..b", "mx example", "a/b/c"] {
            assert!(bad.parse::<PeerPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_match_label_by_label() {
        for (pattern, name, expected) in [
            ("mx*.example.net", "mx1.example.net", true),
            ("mx*.example.net", "MX.EXAMPLE.NET.", true),
            ("mx*.example.net", "mx1.a.example.net", false),
            ("*.example.net", "example.net", false),
            ("m*x*.example.net", "mailxy.example.net", true),
            ("mx.example.net", "mx.example.net.evil.test", false),
        ] {
            assert_eq!(name_matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_rule_ends_and_is_announced_a_week_before() {
        let end = Timestamp::from_secs(1_795_446_245);
        let week = Timestamp(end.0 - 7 * 86_400 * 1_000_000_000);
        let rule = Rule { until: Some(end), ..Rule::default() };
        for (at, expected) in [
            (Timestamp::default(), RuleState::Active),
            (Timestamp(week.0 - 1), RuleState::Active),
            (week, RuleState::Expiring),
            (Timestamp(end.0 - 1), RuleState::Expiring),
            (end, RuleState::Expired),
        ] {
            assert_eq!(rule.state(at), expected, "{at}");
            assert_eq!(rule.is_in_force(at), expected != RuleState::Expired, "{at}");
            assert_eq!(Rule::default().state(at), RuleState::Active, "{at}");
        }
    }

    #[test]
    fn networks_match_by_prefix_and_family() {
        let net = |text: &str| text.parse::<IpAddr>().expect("address");
        assert!(in_network(net("192.0.2.77"), net("192.0.2.0"), 24));
        assert!(!in_network(net("192.0.3.1"), net("192.0.2.0"), 24));
        assert!(in_network(net("::ffff:192.0.2.1"), net("192.0.2.0"), 24));
        assert!(in_network(net("2001:db8::1"), net("::"), 0));
        assert!(!in_network(net("192.0.2.1"), net("::"), 0));
        assert!(in_network(net("2001:db8::1"), net("2001:db8::1"), 128));
    }
}
