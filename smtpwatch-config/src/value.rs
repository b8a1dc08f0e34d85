//! Types of single values. Each value is checked when it is parsed, so that an error has its line. Every type
//! implements `Value`; the structures of the file use it as [`Checked`].

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Deref,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor, value::StrDeserializer},
};
use smtpwatch_core::{
    Role, Timestamp,
    day::Day,
    policy::{
        published::domain_name,
        rule::{AuthRule, PeerPattern, StarttlsRule},
    },
};

pub use smtpwatch_core::policy::rule::Network;

use super::{Ingress, JournalFormat};

/// Maximum number of configured domains: enough for the correspondents of one host.
const MAX_DOMAINS: usize = 1_000;

/// A value that was validated when it was parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checked<T>(pub T);

impl<T> Deref for Checked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A type of value with its validation.
pub(super) trait Value: Sized {
    /// The end of the error message "expected …".
    const EXPECTED: &'static str;

    /// Parses a string; `None` if the type does not accept strings.
    fn from_text(_: &str) -> Option<Result<Self, String>> {
        None
    }

    /// Converts a number; `None` if the type does not accept it.
    fn from_number(_: f64) -> Option<Self> {
        None
    }

    /// Converts a boolean; `None` if the type does not accept it.
    fn from_bool(_: bool) -> Option<Self> {
        None
    }
}

impl<'de, T: Value> Deserialize<'de> for Checked<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The check runs inside the visitor, because the TOML reader adds the location to errors raised there.
        deserializer.deserialize_any(ValueVisitor(std::marker::PhantomData)).map(Self)
    }
}

struct ValueVisitor<T>(std::marker::PhantomData<T>);

fn unexpected<T: Value, E: Error>(got: impl fmt::Display) -> E {
    E::custom(format_args!("{got}: expected {}", T::EXPECTED))
}

impl<T: Value> Visitor<'_> for ValueVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        match T::from_text(text) {
            Some(Ok(value)) => Ok(value),
            Some(Err(reason)) => Err(E::custom(reason)),
            None => Err(unexpected::<T, E>(format_args!("{text:?}"))),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        // No key accepts a number above 2^53.
        #[expect(clippy::cast_precision_loss, reason = "checked against the bounds of the key, all below 2^53")]
        T::from_number(number as f64).ok_or_else(|| unexpected::<T, E>(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        T::from_number(number).ok_or_else(|| unexpected::<T, E>(number))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<T, E> {
        T::from_bool(truth).ok_or_else(|| unexpected::<T, E>(truth))
    }
}

/// A TCP port, 1 to 65535.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ValidPort(pub u16);

impl Value for ValidPort {
    const EXPECTED: &'static str = "a port number from 1 to 65535";

    fn from_number(number: f64) -> Option<Self> {
        let port = whole(number, 65_535.0)?;
        u16::try_from(port).ok().filter(|&port| port > 0).map(Self)
    }
}

/// A port as written on the command line.
///
/// # Errors
///
/// The text is not a number from 1 to 65535.
pub fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse::<u16>().ok().filter(|&port| port > 0);
    port.ok_or_else(|| format!("expected {}", ValidPort::EXPECTED))
}

fn whole(number: f64, most: f64) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range and wholeness are tested first")]
    (number.fract() == 0.0 && (0.0..=most).contains(&number)).then_some(number as u64)
}

/// `ports`: at least one; sorted and deduplicated.
pub(super) fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    struct Ports;

    impl<'de> Visitor<'de> for Ports {
        type Value = Vec<u16>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of port numbers, such as [25, 587]")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u16>, A::Error> {
            let mut ports = Vec::new();
            while let Some(port) = list.next_element::<Checked<ValidPort>>()? {
                ports.push(port.0.0);
            }
            ports.sort_unstable();
            ports.dedup();
            if ports.is_empty() {
                return Err(Error::custom("no port to watch: name at least one, such as [25, 587]"));
            }
            Ok(ports)
        }
    }

    deserializer.deserialize_any(Ports)
}

/// A mail domain in the form in which policies are looked up.
struct MailDomain(String);

impl Value for MailDomain {
    const EXPECTED: &'static str = "a mail domain, such as \"example.net\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let expected = || format!("{text:?}: expected {}", Self::EXPECTED);
        Some(domain_name(text).map(Self).ok_or_else(expected))
    }
}

/// `domains` of `[policy]`.
pub(super) fn domains<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let domains = Vec::<Checked<MailDomain>>::deserialize(deserializer)?;
    if domains.len() > MAX_DOMAINS {
        return Err(D::Error::custom(format_args!("{} domains: at most {MAX_DOMAINS} can be named", domains.len())));
    }
    Ok(domains.into_iter().map(|domain| domain.0.0).collect())
}

/// A pattern of interface names with `*` and `?`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceGlob(pub String);

impl Value for InterfaceGlob {
    const EXPECTED: &'static str = "an interface name or glob, such as \"eth0\" or \"ens*\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        // Names of Linux interfaces have at most 15 bytes, no slash and no white space (dev_valid_name).
        let good = !text.is_empty() && text.len() <= 64 && !text.contains(|c: char| c == '/' || c.is_whitespace());
        Some(if good { Ok(Self(text.to_owned())) } else { Err(format!("{text:?}: expected {}", Self::EXPECTED)) })
    }
}

/// Parses an interface name or glob of the command line.
///
/// # Errors
///
/// The text cannot match an interface name.
pub fn parse_interface(text: &str) -> Result<String, String> {
    let expected = || format!("expected {}", InterfaceGlob::EXPECTED);
    InterfaceGlob::from_text(text).and_then(Result::ok).map(|glob| glob.0).ok_or_else(expected)
}

impl Value for Network {
    const EXPECTED: &'static str = Self::FORM;

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(text.parse())
    }
}

/// `peer` of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RulePeer(pub PeerPattern);

impl Value for RulePeer {
    const EXPECTED: &'static str = "an address, network or server name in quotes";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(text.parse().map(Self).map_err(|error: smtpwatch_core::policy::rule::PatternError| error.to_string()))
    }
}

/// `min_sessions`: with fewer sessions the history has no weight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sessions(pub u64);

impl Value for Sessions {
    const EXPECTED: &'static str = "a number of sessions from 1 to 1000000";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 1e6).filter(|&count| count > 0).map(Self)
    }
}

/// `flows` of `[limits]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FlowCount(pub usize);

impl Value for FlowCount {
    const EXPECTED: &'static str = "a number of flows from 4096 to 4000000";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 4e6).and_then(|count| usize::try_from(count).ok()).filter(|&count| count >= 4096).map(Self)
    }
}

/// `peers` of `[limits]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PeerCount(pub usize);

impl Value for PeerCount {
    const EXPECTED: &'static str = "a number of peers from 1000 to 10000000";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 1e7).and_then(|count| usize::try_from(count).ok()).filter(|&count| count >= 1000).map(Self)
    }
}

/// `max_age_days` of `[store]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Days(pub u32);

impl Value for Days {
    const EXPECTED: &'static str = "a number of days from 1 to 3650";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 3650.0).and_then(|days| u32::try_from(days).ok()).filter(|&days| days >= 1).map(Self)
    }
}

/// `max_findings` of `[store]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FindingCount(pub u64);

impl Value for FindingCount {
    const EXPECTED: &'static str = "a number of findings from 100 to 10000000";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 1e7).filter(|&count| count >= 100).map(Self)
    }
}

/// `max_megabytes` of `[store]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Megabytes(pub u64);

impl Value for Megabytes {
    const EXPECTED: &'static str = "a number of megabytes from 1 to 1000000";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 1e6).filter(|&count| count >= 1).map(Self)
    }
}

/// `window_minutes` of `[incidents]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Minutes(pub u32);

impl Value for Minutes {
    const EXPECTED: &'static str = "a number of minutes from 1 to 10080 (a week)";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 10_080.0).and_then(|count| u32::try_from(count).ok()).filter(|&count| count >= 1).map(Self)
    }
}

/// `min_offer_ratio`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct OfferRatio(pub f64);

impl Value for OfferRatio {
    const EXPECTED: &'static str = "a ratio above 0, at most 1 (0.95: offered in 95 of 100 sessions)";

    fn from_number(number: f64) -> Option<Self> {
        (number > 0.0 && number <= 1.0).then_some(Self(number))
    }
}

/// `min_tls`, as its number in the TLS protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TlsVersion(pub u16);

impl Value for TlsVersion {
    const EXPECTED: &'static str = "\"1.0\", \"1.1\", \"1.2\" or \"1.3\", in quotes";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(one_of(text, &[("1.0", 0x0301), ("1.1", 0x0302), ("1.2", 0x0303), ("1.3", 0x0304)]).map(Self))
    }
}

/// `until` of a rule: the first time at which the rule does not apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Until(pub Timestamp);

impl Value for Until {
    const EXPECTED: &'static str =
        "a day, whose end in UTC it is (\"2026-12-31\"), or a time (\"2026-12-31T18:00:00Z\"), in quotes";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let day = text.parse::<Day>().ok().map(|day| day.plus(1).begin());
        let until = day.or_else(|| Timestamp::deserialize(StrDeserializer::<serde::de::value::Error>::new(text)).ok());
        Some(until.map(Self).ok_or_else(|| format!("{text:?}: expected {}", Self::EXPECTED)))
    }
}

/// Whether text is one line of at most this many bytes.
fn is_line(text: &str, most: usize) -> bool {
    text.len() <= most && !text.contains(char::is_control)
}

/// `reason` of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason(pub String);

impl Value for Reason {
    const EXPECTED: &'static str = "one line of at most 255 bytes, in quotes";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let good = !text.trim().is_empty() && is_line(text, 255);
        Some(if good { Ok(Self(text.to_owned())) } else { Err(format!("{text:?}: expected {}", Self::EXPECTED)) })
    }
}

impl std::str::FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_text(text).unwrap_or_else(|| Err(Self::EXPECTED.to_owned()))
    }
}

/// The value of a label of alerts; empty: no label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label(pub String);

impl Value for Label {
    const EXPECTED: &'static str = "a name in one line of at most 63 bytes, in quotes";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let good = is_line(text, 63) && text.trim() == text;
        Some(if good { Ok(Self(text.to_owned())) } else { Err(format!("{text:?}: expected {}", Self::EXPECTED)) })
    }
}

/// Text that must not be empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NonEmpty(pub String);

impl Value for NonEmpty {
    const EXPECTED: &'static str = "a path in quotes";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(if text.is_empty() {
            Err(format!("empty: expected {}", Self::EXPECTED))
        } else {
            Ok(Self(text.to_owned()))
        })
    }
}

/// `organization` of `[tlsrpt]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Organization(pub String);

impl Value for Organization {
    const EXPECTED: &'static str = "a name of at most 255 bytes in one line";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let good = !text.trim().is_empty() && text.len() <= 255 && !text.contains(char::is_control);
        Some(if good { Ok(Self(text.to_owned())) } else { Err(format!("{text:?}: expected {}", Self::EXPECTED)) })
    }
}

/// A mail address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MailAddress(pub String);

impl Value for MailAddress {
    const EXPECTED: &'static str = "a mail address, such as \"tlsrpt@example.org\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let address = text.parse::<lettre::Address>().ok().filter(|address| address.domain().contains('.'));
        Some(address.map(|_| Self(text.to_owned())).ok_or_else(|| format!("{text:?}: expected {}", Self::EXPECTED)))
    }
}

/// Maximum delay of a report: four hours (RFC 8460 §4.1).
pub(super) const MAX_DELAY_SECONDS: u64 = 4 * 3600;

/// `delay_seconds` of `[tlsrpt]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DelaySeconds(pub u64);

impl Value for DelaySeconds {
    const EXPECTED: &'static str = "a number of seconds from 0 to 14400 (four hours, RFC 8460 section 4.1)";

    #[expect(clippy::cast_precision_loss, reason = "four hours are far below 2^53 seconds")]
    fn from_number(number: f64) -> Option<Self> {
        whole(number, MAX_DELAY_SECONDS as f64).map(Self)
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an address and a port, such as \"127.0.0.1:25\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(text.parse().map_err(|_| format!("{text:?}: expected {}", Self::EXPECTED)))
    }
}

impl Value for String {
    const EXPECTED: &'static str = "text in quotes";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(Ok(text.to_owned()))
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false, without quotes";

    fn from_bool(truth: bool) -> Option<Self> {
        Some(truth)
    }
}

impl Value for Ingress {
    const EXPECTED: &'static str = "the name of a hook in quotes";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(one_of(text, &Self::ALL.map(|choice| (choice.as_str(), choice))))
    }
}

impl Value for Role {
    const EXPECTED: &'static str = "\"client\" or \"server\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(one_of(text, &Self::ALL.map(|role| (role.as_str(), role))))
    }
}

impl Value for StarttlsRule {
    const EXPECTED: &'static str = "\"required\", \"expected\" or \"ignore\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(one_of(text, &[("required", Self::Required), ("expected", Self::Expected), ("ignore", Self::Ignore)]))
    }
}

impl Value for AuthRule {
    const EXPECTED: &'static str = "\"forbid\" or \"allow\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(one_of(text, &[("forbid", Self::Forbid), ("allow", Self::Allow)]))
    }
}

/// `resolver`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolver {
    /// The name servers of resolv.conf.
    System,
    /// One name server.
    Address(SocketAddr),
}

impl Value for Resolver {
    const EXPECTED: &'static str = "\"system\" or the address of a name server, such as \"127.0.0.1:5353\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        if text == "system" {
            return Some(Ok(Self::System));
        }
        let address = text.parse().or_else(|_| text.parse().map(|address: IpAddr| SocketAddr::new(address, 53)));
        Some(address.map(Self::Address).map_err(|_| format!("{text:?}: expected {}", Self::EXPECTED)))
    }
}

impl Value for JournalFormat {
    const EXPECTED: &'static str = "\"json\", \"ecs\" or \"eve\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(one_of(text, &Self::ALL.map(|format| (format.as_str(), format))))
    }
}

/// An element of `urls` of `[alertmanager]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlertmanagerUrl(pub url::Url);

impl Value for AlertmanagerUrl {
    const EXPECTED: &'static str = "the URL of an Alertmanager, such as \"http://127.0.0.1:9093\"";

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let url = text.parse().ok().filter(|url: &url::Url| matches!(url.scheme(), "http" | "https"));
        Some(url.map(Self).ok_or_else(|| format!("{text:?}: expected {}", Self::EXPECTED)))
    }
}

/// `resend_seconds` of `[alertmanager]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResendSeconds(pub u64);

impl Value for ResendSeconds {
    const EXPECTED: &'static str = "a number of seconds from 1 to 3600";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 3600.0).filter(|seconds| *seconds > 0).map(Self)
    }
}

/// `hold_minutes` of `[alertmanager]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold(pub u32);

impl Value for Hold {
    const EXPECTED: &'static str = "a number of minutes from 1 to 1440 (one day)";

    fn from_number(number: f64) -> Option<Self> {
        whole(number, 1440.0).filter(|minutes| *minutes > 0).and_then(|minutes| u32::try_from(minutes).ok()).map(Self)
    }
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
    Err(format!("{text:?}: expected one of {}", super::error::suggest(text, &names)))
}
