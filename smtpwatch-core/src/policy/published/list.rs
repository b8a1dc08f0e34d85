//! The STARTTLS-Everywhere list (schema 0.1 of its publisher): domains, modes, and the names of their mail hosts.
//! [`StarttlsList`] is the parsed list.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::Value;

use super::{
    domain_name,
    syntax::{comparable, parent, quoted, shown},
};
use crate::{Timestamp, hash::HashMap};

/// Maximum bytes of a list. The last published one has less than a twentieth of this.
pub const MAX_LIST: usize = 4 * 1024 * 1024;
/// Maximum number of domains in a list.
pub const MAX_DOMAINS: usize = 100_000;
/// Maximum number of mail host names in one policy.
pub const MAX_MXS: usize = 256;
/// Maximum number of mail host names in a list, counted for each domain: many domains may share an alias.
pub const MAX_NAMES: usize = 400_000;
/// The only supported version of the schema.
const VERSION: &str = "0.1";
/// Maximum characters quoted of an error of the JSON parser.
const SHOWN: usize = 256;
const ALIAS: &str = "policy-alias";

/// A parsed list.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StarttlsList {
    /// When the list was published.
    pub timestamp: Timestamp,
    /// When the list expires; after that it is only a hint.
    pub expires: Timestamp,
    /// Policies by domain, in lower case, A-labels; aliases resolved.
    pub policies: HashMap<String, ListPolicy>,
}

/// Policy of one domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListPolicy {
    /// True: `enforce`; false: `testing`.
    pub enforce: bool,
    /// Names of mail hosts, or `.` and a suffix that follows exactly one label.
    pub mxs: Vec<String>,
}

/// Error in a list. One wrong policy invalidates the whole list: a domain that is left out would look like one without
/// a policy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ListError {
    /// Longer than [`MAX_LIST`].
    #[error("{0} bytes; the maximum is {MAX_LIST}")]
    TooLong(usize),
    /// Not JSON, or JSON of another structure.
    #[error("{0}")]
    Json(String),
    /// A key has an invalid value.
    #[error("{key}: {value} is not {wanted}")]
    Value {
        /// The key of the list.
        key: &'static str,
        /// The value found.
        value: String,
        /// The values allowed.
        wanted: &'static str,
    },
    /// The policy of a domain or an alias is invalid.
    #[error("{key}: {name}: {why}")]
    Policy {
        /// `policies` or `policy-aliases`.
        key: &'static str,
        /// The domain or alias.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// More than [`MAX_DOMAINS`].
    #[error("policies: {0} domains; the maximum is {MAX_DOMAINS}")]
    TooManyDomains(usize),
    /// More than [`MAX_NAMES`].
    #[error("policies: more than {MAX_NAMES} mail host names")]
    TooManyNames,
}

impl StarttlsList {
    /// Parses a list.
    pub fn parse(text: &[u8]) -> Result<Self, ListError> {
        if text.len() > MAX_LIST {
            return Err(ListError::TooLong(text.len()));
        }
        // The parser below also accepts an array with the values in key order.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(ListError::Json("this is no JSON object".to_owned()));
        }
        let raw: RawList = serde_json::from_slice(text).map_err(|error| json(&error))?;
        if raw.version != VERSION {
            return Err(ListError::Value { key: "version", value: told(&raw.version), wanted: "\"0.1\"" });
        }
        if raw.author.as_ref().is_some_and(|author| !author.is_string()) {
            return Err(ListError::Value { key: "author", value: told(&raw.author.into()), wanted: "a string" });
        }
        let timestamp = time("timestamp", &raw.timestamp)?;
        let expires = time("expires", &raw.expires)?;
        if raw.policies.0.len() > MAX_DOMAINS {
            return Err(ListError::TooManyDomains(raw.policies.0.len()));
        }
        let mut aliases = HashMap::default();
        for (alias, raw) in &raw.policy_aliases.0 {
            let failed = |why| ListError::Policy { key: "policy-aliases", name: quoted(alias.as_bytes()), why };
            if raw.0.contains_key(ALIAS) {
                return Err(failed(format!("an alias may not have a {ALIAS}")));
            }
            aliases.insert(alias.as_str(), policy(raw).map_err(failed)?);
        }
        let mut policies: HashMap<String, ListPolicy> = HashMap::default();
        let mut names = 0;
        for (written, raw) in &raw.policies.0 {
            let failed = |why| ListError::Policy { key: "policies", name: quoted(written.as_bytes()), why };
            let domain = domain_name(written).ok_or_else(|| failed("this is no domain name".to_owned()))?;
            let policy = match raw.0.get(ALIAS) {
                Some(alias) => {
                    let policy = alias.as_str().and_then(|alias| aliases.get(alias));
                    policy.cloned().ok_or_else(|| failed(format!("policy-aliases has no {}", told(alias))))?
                }
                None => policy(raw).map_err(failed)?,
            };
            names += policy.mxs.len();
            if names > MAX_NAMES {
                return Err(ListError::TooManyNames);
            }
            if policies.insert(domain, policy).is_some() {
                return Err(failed("the domain has another policy under another spelling".to_owned()));
            }
        }
        Ok(Self { timestamp, expires, policies })
    }

    /// The policy of exactly this domain, in the form of [`domain_name`]; the policy of a parent domain does not apply.
    #[must_use]
    pub fn get(&self, domain: &str) -> Option<&ListPolicy> {
        self.policies.get(domain)
    }

    /// Whether the list has expired.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires
    }
}

impl ListPolicy {
    /// Whether the policy allows this name for a mail host or its certificate; a suffix follows exactly one label.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let host = comparable(host);
        self.mxs.iter().any(|pattern| match pattern.strip_prefix('.') {
            Some(suffix) => parent(&host) == Some(suffix),
            None => host == *pattern,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawList {
    timestamp: Value,
    expires: Value,
    version: Value,
    #[serde(default)]
    author: Option<Value>,
    policies: Object<Object<Value>>,
    policy_aliases: Object<Object<Value>>,
}

/// An object whose keys are all different: with two equal keys it is ambiguous which one applies.
struct Object<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<T>, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value().map_err(|error| A::Error::custom(within(&key, &error)))?;
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(within(&key, &"the key appears twice")));
                    }
                    entries.insert(key, value);
                }
                Ok(Object(entries))
            }
        }

        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

/// Describes what is wrong and where. The parser's text may quote any length of the list, so it is cut.
fn json(error: &serde_json::Error) -> ListError {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    ListError::Json(shown(text.strip_suffix(&place).unwrap_or(&text), SHOWN) + &place)
}

fn within(key: &str, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", quoted(key.as_bytes()))
}

fn policy(raw: &Object<Value>) -> Result<ListPolicy, String> {
    let enforce = match raw.0.get("mode").map(|mode| (mode, mode.as_str())) {
        Some((_, Some("enforce"))) => true,
        Some((_, Some("testing"))) => false,
        Some((mode, _)) => return Err(format!("mode {} is neither testing nor enforce", told(mode))),
        None => return Err("mode is missing".to_owned()),
    };
    let mxs = raw.0.get("mxs").ok_or_else(|| "mxs is missing".to_owned())?;
    let mxs = mxs.as_array().ok_or_else(|| format!("mxs {} is not a list", told(mxs)))?;
    if mxs.is_empty() || mxs.len() > MAX_MXS {
        return Err(format!("mxs has {} names, where 1 to {MAX_MXS} are read", mxs.len()));
    }
    let name = |mx: &Value| {
        let pattern = mx.as_str().and_then(|text| match text.strip_prefix('.') {
            Some(suffix) => domain_name(suffix).map(|suffix| format!(".{suffix}")),
            None => domain_name(text),
        });
        pattern.ok_or_else(|| format!("mxs: {} is neither a host name nor `.` and a domain", told(mx)))
    };
    Ok(ListPolicy { enforce, mxs: mxs.iter().map(name).collect::<Result<_, _>>()? })
}

/// Parses seconds since the Unix epoch, or RFC 3339.
fn time(key: &'static str, value: &Value) -> Result<Timestamp, ListError> {
    let time = match value {
        Value::Number(seconds) => seconds.as_i64().filter(|seconds| *seconds >= 0).map(Timestamp::from_secs),
        Value::String(_) => Timestamp::deserialize(value).ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let wanted = "a time: seconds since 1970, or like 2026-11-23T15:04:05Z (RFC 3339)";
    time.ok_or_else(|| ListError::Value { key, value: told(value), wanted })
}

/// A value, quoted for an error message.
fn told(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text.as_bytes()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A list in the publisher's schema.
    const LIST: &str = r#"{
        "timestamp": "2026-05-22T22:44:41+00:00", "expires": 1795446245, "version": "0.1", "author": "Example",
        "policy-aliases": {"host": {"mode": "testing", "mxs": [".MX.Example.org"]}},
        "policies": {
            "Example.com": {"mode": "enforce", "mxs": ["mail.example.com", ".example.net"]},
            "Bücher.example": {"policy-alias": "host", "mode": "nonsense"}
        }
    }"#;

    #[test]
    fn a_list_is_read() {
        let list = StarttlsList::parse(LIST.as_bytes()).expect("valid");
        assert_eq!(list.timestamp.to_string(), "2026-05-22T22:44:41.000000Z");
        assert_eq!(list.expires, Timestamp::from_secs(1_795_446_245));
        assert_eq!(list.policies.len(), 2);
        let policy = list.get("example.com").expect("listed");
        assert!(policy.enforce && policy.matches("MAIL.example.com.") && policy.matches("a.example.net"));
        for host in ["example.net", "a.b.example.net", ".example.net", "a.mail.example.com", ""] {
            assert!(!policy.matches(host), "{host}");
        }
        let aliased = list.get("xn--bcher-kva.example").expect("listed");
        assert_eq!(aliased, &ListPolicy { enforce: false, mxs: vec![".mx.example.org".to_owned()] });
        assert_eq!(list.get("lists.example.com"), None, "domains are exact");
    }

    #[test]
    fn a_list_expires() {
        let list = StarttlsList::parse(LIST.as_bytes()).expect("valid");
        assert!(!list.is_expired(Timestamp::from_secs(1_795_446_244)));
        assert!(list.is_expired(list.expires));
    }

    #[test]
    fn a_malformed_list_says_where() {
        for (from, to, why) in [
            ("{", "[{", "no JSON object"),
            ("\"version\":", "\"version\"", "line 2"),
            ("\"version\": \"0.1\", ", "", "missing field `version`"),
            ("\"0.1\"", "\"0.2\"", "version: \"0.2\" is not \"0.1\""),
            ("\"0.1\"", "0.1", "version: 0.1 is not \"0.1\""),
            ("\"author\"", "\"authors\"", "unknown field `authors`"),
            ("\"Example\"", "7", "author: 7 is not a string"),
            ("1795446245", "-1", "expires: -1 is not a time"),
            ("1795446245", "1.5", "expires: 1.5 is not a time"),
            ("2026-05-22T", "yesterday ", "timestamp: \"yesterday 22:44:41+00:00\" is not a time"),
            ("\"expires\": 1795446245, ", "", "missing field `expires`"),
            ("\"policies\"", "\"policy\"", "unknown field `policy`"),
            ("\"enforce\"", "\"none\"", "policies: \"Example.com\": mode \"none\" is neither"),
            ("\"mode\": \"enforce\", ", "", "policies: \"Example.com\": mode is missing"),
            ("\"mail.example.com\", \".example.net\"", "", "policies: \"Example.com\": mxs has 0 names"),
            ("[\"mail.example.com\", \".example.net\"]", "\"x\"", "mxs \"x\" is not a list"),
            ("\"mail.example.com\"", "\"*.example.com\"", "mxs: \"*.example.com\" is neither"),
            ("\"mail.example.com\"", "7", "mxs: 7 is neither"),
            ("\"host\", \"mode\"", "\"other\", \"mode\"", "policy-aliases has no \"other\""),
            ("\"policy-alias\": \"host\"", "\"policy-alias\": null", "policy-aliases has no null"),
            (
                "{\"mode\": \"testing\"",
                "{\"policy-alias\": \"host\", \"mode\": \"testing\"",
                "policy-aliases: \"host\"",
            ),
            ("\"testing\"", "\"test\"", "policy-aliases: \"host\": mode \"test\""),
            ("\"Example.com\"", "\"com\"", "policies: \"com\": this is no domain name"),
            ("Bücher.example", "example.COM", "another spelling"),
            ("Bücher.example", "Example.com", "twice"),
            ("{\"policy-alias\": \"host\", \"mode\": \"nonsense\"}", "7", "\"Bücher.example\": invalid type"),
        ] {
            let bad = LIST.replacen(from, to, 1);
            assert_ne!(bad, LIST, "{from}");
            let error = StarttlsList::parse(bad.as_bytes()).expect_err(&bad).to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
        let long = LIST.replacen("author", &"\u{fc}\u{7f}".repeat(10_000), 1);
        let error = StarttlsList::parse(long.as_bytes()).expect_err("an unknown key").to_string();
        assert!(error.contains("… at line 2 column") && error.len() < 2000 && !error.contains('\u{7f}'), "{error}");
        assert_eq!(StarttlsList::parse(&vec![b' '; MAX_LIST + 1]), Err(ListError::TooLong(MAX_LIST + 1)));
    }

    #[test]
    fn what_an_alias_multiplies_is_bounded() {
        let mxs = vec!["\"a.b\""; MAX_MXS].join(",");
        let domains = |count: usize| {
            let domains: Vec<_> = (0..count).map(|n| format!("\"d{n}.example\":{{\"policy-alias\":\"a\"}}")).collect();
            format!(
                "{{\"timestamp\":0,\"expires\":1,\"version\":\"0.1\",\"policies\":{{{}}},\
                 \"policy-aliases\":{{\"a\":{{\"mode\":\"testing\",\"mxs\":[{mxs}]}}}}}}",
                domains.join(",")
            )
        };
        assert!(StarttlsList::parse(domains(10).as_bytes()).is_ok());
        assert_eq!(StarttlsList::parse(domains(MAX_NAMES / MAX_MXS + 1).as_bytes()), Err(ListError::TooManyNames));
        let many = domains(MAX_DOMAINS + 1).replace("{\"policy-alias\":\"a\"}", "{}");
        assert_eq!(StarttlsList::parse(many.as_bytes()), Err(ListError::TooManyDomains(MAX_DOMAINS + 1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_comes_is_read_or_refused(place in any::<proptest::sample::Index>(), octet: u8, cut: bool) {
            let mut text = LIST.as_bytes().to_vec();
            let place = place.index(text.len());
            text[place] = octet;
            if cut {
                text.truncate(place);
            }
            match StarttlsList::parse(&text) {
                Ok(list) => prop_assert!(list.policies.values().all(|policy| !policy.mxs.is_empty())),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
