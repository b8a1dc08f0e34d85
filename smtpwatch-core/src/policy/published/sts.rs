//! MTA-STS (RFC 8461): parses the TXT record ([`StsRecord`]) and the policy ([`StsPolicy`]), and decides which mail
//! hosts a policy allows.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::syntax::{comparable, is_domain, is_field_name, parent, quoted};

/// Maximum bytes of a policy: the RFC suggests 64 KB. A longer one is rejected; cut off, it would allow other hosts
/// than its owner wrote.
pub const MAX_POLICY: usize = 65_536;
/// Maximum number of mail host patterns in one policy. A domain with more MX records has no answer that fits a DNS
/// message.
pub const MAX_MX: usize = 512;
/// Maximum of `max_age`, in seconds: about a year (RFC 8461 §3.2). Larger values are reduced to it.
const MAX_AGE: u64 = 31_557_600;
/// Maximum number of digits of `max_age` (RFC 8461 §3.2).
const MAX_AGE_DIGITS: usize = 10;
/// Length of `id` in characters (RFC 8461 §3.1).
const ID: std::ops::RangeInclusive<usize> = 1..=32;
/// Start of the TXT record, and value of `version` in the policy.
const RECORD: &[u8] = b"v=STSv1";
const VERSION: &str = "STSv1";

/// The TXT record at `_mta-sts` below a domain (RFC 8461 §3.1): it announces a policy and identifies it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct StsRecord {
    /// Identifier of the policy. Identifiers have no order: another value means another policy.
    pub id: String,
}

/// What a sender does with mail that the policy does not allow (RFC 8461 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StsMode {
    /// The mail is not delivered.
    Enforce,
    /// The mail is delivered and the violation is reported.
    Testing,
    /// The policy has no effect.
    None,
}

/// A policy (RFC 8461 §3.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StsPolicy {
    /// The `id` of the TXT record for which it was fetched.
    pub id: String,
    /// What a sender does with mail that the policy does not allow.
    pub mode: StsMode,
    /// Patterns of mail hosts, in lower case: a name, or `*.` and a name.
    pub mx: Vec<String>,
    /// How long the policy is valid after its fetch.
    pub max_age: Duration,
}

/// Error in a TXT record or a policy. The domain then has no MTA-STS policy, unless one that was fetched earlier is
/// still valid (RFC 8461 §3.1, §5.1).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StsError {
    /// It is ambiguous which record applies.
    #[error("{0} TXT records begin with v=STSv1; there must be exactly one (RFC 8461 §3.1)")]
    Several(usize),
    /// A field of the record is not `name=value`.
    #[error("TXT record: {0} is not a field of the form name=value (RFC 8461 §3.1)")]
    Field(String),
    /// The record has no `id`.
    #[error("TXT record: the field id is missing (RFC 8461 §3.1)")]
    NoId,
    /// The `id` has a wrong form.
    #[error("TXT record: id {0} is not 1 to 32 letters and digits (RFC 8461 §3.1)")]
    Id(String),
    /// The policy is longer than [`MAX_POLICY`].
    #[error("policy: {0} bytes; the maximum is {MAX_POLICY}")]
    TooLong(usize),
    /// The policy is not UTF-8.
    #[error("policy: line {0} is not UTF-8 (RFC 8461 §3.2)")]
    Encoding(usize),
    /// A line is not `key: value`.
    #[error("policy: line {0}, {1}, is not of the form key: value (RFC 8461 §3.2)")]
    Line(usize, String),
    /// `version` has another value.
    #[error("policy: version is {0}; only STSv1 is supported (RFC 8461 §3.2)")]
    Version(String),
    /// `mode` has another value.
    #[error("policy: mode {0} is not enforce, testing or none (RFC 8461 §3.2)")]
    Mode(String),
    /// `max_age` is not a number of 1 to 10 digits.
    #[error("policy: max_age {0} is not a number of 1 to 10 digits (RFC 8461 §3.2)")]
    MaxAge(String),
    /// An `mx` is not a pattern.
    #[error("policy: mx {0} is not a host name in A-labels, with or without a leading `*.` (RFC 8461 §3.2)")]
    Mx(String),
    /// The policy has more than [`MAX_MX`] patterns.
    #[error("policy: more than {MAX_MX} mx lines")]
    TooManyMx,
    /// A required key is missing.
    #[error("policy: {0} is missing (RFC 8461 §3.2)")]
    Missing(&'static str),
}

impl StsRecord {
    /// Finds the record among the TXT records of its name, each with its strings joined; `None` if there is none.
    pub fn find(records: &[Vec<u8>]) -> Result<Option<Self>, StsError> {
        let begins = |record: &&Vec<u8>| record.strip_prefix(RECORD).is_some_and(|rest| rest.starts_with(b";"));
        let mut found = records.iter().filter(begins);
        match (found.next(), found.count(), records) {
            (Some(record), 0, _) => Self::parse(record).map(Some),
            (Some(_), more, _) => Err(StsError::Several(more + 1)),
            // The grammar allows white space before the semicolon, but records are distinguished by `v=STSv1;`: with
            // white space only a record that is the only one is certainly meant.
            (None, _, [only]) if only.strip_prefix(RECORD).is_some_and(|rest| rest.first().is_none_or(is_wsp)) => {
                Self::parse(only).map(Some)
            }
            (None, _, _) => Ok(None),
        }
    }

    fn parse(record: &[u8]) -> Result<Self, StsError> {
        let mut fields = record.split(|octet| *octet == b';').peekable();
        let version = fields.next().unwrap_or_default();
        if version.strip_prefix(RECORD).is_none_or(|rest| !rest.iter().all(is_wsp)) {
            return Err(StsError::Field(quoted(version)));
        }
        let mut id = None;
        while let Some(field) = fields.next() {
            // White space belongs to the adjacent semicolon, so there is none after the last field.
            let field = trim_start(field);
            let field = match fields.peek() {
                Some(_) => trim_end(field),
                None if field.is_empty() => break,
                None => field,
            };
            let equals = field.iter().position(|octet| *octet == b'=').ok_or_else(|| StsError::Field(quoted(field)))?;
            let (name, value) = (&field[..equals], &field[equals + 1..]);
            let is_value = |octet: &u8| octet.is_ascii_graphic() && !matches!(octet, b'=' | b';');
            if !is_field_name(name) || value.is_empty() || !value.iter().all(is_value) {
                return Err(StsError::Field(quoted(field)));
            }
            if name == b"id" && id.is_none() {
                let is_id = ID.contains(&value.len()) && value.iter().all(u8::is_ascii_alphanumeric);
                id = Some(String::from_utf8_lossy(value).into_owned());
                if !is_id {
                    return Err(StsError::Id(quoted(value)));
                }
            }
        }
        id.map(|id| Self { id }).ok_or(StsError::NoId)
    }
}

impl StsMode {
    /// The name in the policy.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Testing => "testing",
            Self::None => "none",
        }
    }

    fn parse(value: &str) -> Result<Self, StsError> {
        [Self::Enforce, Self::Testing, Self::None]
            .into_iter()
            .find(|mode| mode.as_str() == value)
            .ok_or_else(|| StsError::Mode(quoted(value.as_bytes())))
    }
}

impl StsPolicy {
    /// Parses the body of a policy that was fetched for the TXT record with this `id`.
    pub fn parse(body: &[u8], id: &str) -> Result<Self, StsError> {
        if body.len() > MAX_POLICY {
            return Err(StsError::TooLong(body.len()));
        }
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        // Editors leave empty lines at the end. The grammar has none between fields.
        for (line, number) in body.trim_ascii_end().split(|octet| *octet == b'\n').zip(1..) {
            let line = trim_end(line.strip_suffix(b"\r").unwrap_or(line));
            let line = std::str::from_utf8(line).map_err(|_| StsError::Encoding(number))?;
            let (key, value) = field(line).ok_or_else(|| StsError::Line(number, quoted(line.as_bytes())))?;
            // If a key that must not be repeated occurs twice, the first counts and the others are not examined.
            match key {
                "version" if version.is_none() => version = Some(value),
                "mode" if mode.is_none() => mode = Some(StsMode::parse(value)?),
                "max_age" if max_age.is_none() => max_age = Some(seconds(value)?),
                "mx" if mx.len() >= MAX_MX => return Err(StsError::TooManyMx),
                "mx" => mx.push(pattern(value)?),
                _ => {}
            }
        }
        if version != Some(VERSION) {
            let error = |version: &str| StsError::Version(quoted(version.as_bytes()));
            return Err(version.map_or(StsError::Missing("version"), error));
        }
        let mode = mode.ok_or(StsError::Missing("mode"))?;
        let max_age = max_age.ok_or(StsError::Missing("max_age"))?;
        if mx.is_empty() && mode != StsMode::None {
            return Err(StsError::Missing("mx"));
        }
        Ok(Self { id: id.to_owned(), mode, mx, max_age })
    }

    /// Whether the policy allows the mail host with this name from an MX record (RFC 8461 §4.1): `*` is exactly one
    /// label. In mode [`StsMode::None`] the result has no meaning.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let host = comparable(host);
        self.mx.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(suffix) => parent(&host) == Some(suffix),
            None => host == *pattern,
        })
    }

    /// The policy line by line, as a TLS report shows it (RFC 8460 §4.4).
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let head = [format!("version: {VERSION}"), format!("mode: {}", self.mode.as_str())];
        let mx = self.mx.iter().map(|pattern| format!("mx: {pattern}"));
        head.into_iter().chain(mx).chain([format!("max_age: {}", self.max_age.as_secs())]).collect()
    }
}

/// Splits `key: value`; the value of an unknown key may be UTF-8 (RFC 8461 §3.2).
fn field(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let value = value.trim_start_matches([' ', '\t']);
    let is_value = !value.is_empty() && !value.bytes().any(|octet| octet.is_ascii_control());
    (is_field_name(key.as_bytes()) && is_value).then_some((key, value))
}

fn seconds(value: &str) -> Result<Duration, StsError> {
    let is_number = value.len() <= MAX_AGE_DIGITS && value.bytes().all(|octet| octet.is_ascii_digit());
    let seconds = value.parse::<u64>().ok().filter(|_| is_number);
    let seconds = seconds.ok_or_else(|| StsError::MaxAge(quoted(value.as_bytes())))?;
    Ok(Duration::from_secs(seconds.min(MAX_AGE)))
}

fn pattern(value: &str) -> Result<String, StsError> {
    let name = value.strip_prefix("*.").unwrap_or(value);
    if is_domain(name) { Ok(value.to_ascii_lowercase()) } else { Err(StsError::Mx(quoted(value.as_bytes()))) }
}

/// `WSP` of RFC 5234.
const fn is_wsp(octet: &u8) -> bool {
    matches!(octet, b' ' | b'\t')
}

const fn trim_start(mut octets: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = octets {
        octets = rest;
    }
    octets
}

const fn trim_end(mut octets: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = octets {
        octets = rest;
    }
    octets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENFORCE: &str = "version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 1\n";

    fn find(records: &[&str]) -> Result<Option<String>, StsError> {
        let records: Vec<_> = records.iter().map(|record| record.as_bytes().to_vec()).collect();
        StsRecord::find(&records).map(|record| record.map(|record| record.id))
    }

    fn policy(body: &str) -> Result<StsPolicy, StsError> {
        StsPolicy::parse(body.as_bytes(), "1")
    }

    #[test]
    fn the_record_of_the_rfc_is_read() {
        assert_eq!(find(&["v=STSv1; id=20160831085700Z;"]), Ok(Some("20160831085700Z".to_owned())));
    }

    #[test]
    fn records_are_read_after_the_grammar() {
        for good in [
            "v=STSv1;id=1",
            "v=STSv1 \t; id=1",
            "v=STSv1; \tid=1 ; ",
            "v=STSv1; a=b; id=1",
            "v=STSv1; id=1; id=2",
            "v=STSv1; id=1; id=a-b",
            "v=STSv1; id=1; a.b_c-d=!\"#<>~",
            "v=STSv1; ID=2; id=1",
        ] {
            assert_eq!(find(&[good]), Ok(Some("1".to_owned())), "{good}");
        }
        let longest = format!("v=STSv1; id={}", "a".repeat(32));
        assert_eq!(find(&[&longest]), Ok(Some("a".repeat(32))));
    }

    #[test]
    fn a_malformed_record_says_what_is_wrong() {
        let too_long = format!("v=STSv1; id={}", "a".repeat(33));
        let long_name = format!("v=STSv1; id=1; {}=b", "a".repeat(33));
        for (bad, why) in [
            ("v=STSv1", "id is missing"),
            ("v=STSv1;", "id is missing"),
            ("v=STSv1; ;", "not a field"),
            ("v=STSv1; a=b", "id is missing"),
            (too_long.as_str(), "32 letters"),
            ("v=STSv1; id=test-123", "32 letters"),
            ("v=STSv1; id=a-b; id=1", "32 letters"),
            ("v=STSv1; id=", "not a field"),
            ("v=STSv1; id=1 ", "not a field"),
            ("v=STSv1; id =1", "not a field"),
            ("v=STSv1; id= 1", "not a field"),
            ("v=STSv1; id=1;;", "not a field"),
            ("v=STSv1;; id=1", "not a field"),
            ("v=STSv1; id=1; a==b", "not a field"),
            ("v=STSv1; id=1; a=b=c", "not a field"),
            ("v=STSv1; id=1; a=b c", "not a field"),
            ("v=STSv1; id=1; a=ü", "not a field"),
            ("v=STSv1; id=1; -a=b", "not a field"),
            (long_name.as_str(), "not a field"),
            ("v=STSv1; id=1; a", "not a field"),
            ("v=STSv1 id=1", "not a field"),
        ] {
            let error = find(&[bad]).expect_err(bad).to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn exactly_one_record_is_needed() {
        assert_eq!(find(&[]), Ok(None));
        for other in ["v=STSv10; id=1", "v=stsv1; id=1", " v=STSv1; id=1", "v=spf1 -all", ""] {
            assert_eq!(find(&[other]), Ok(None), "{other}");
            assert_eq!(find(&[other, "v=STSv1; id=1", other]), Ok(Some("1".to_owned())), "{other}");
        }
        assert_eq!(find(&["v=STSv1; id=1", "v=STSv1; id=1"]), Err(StsError::Several(2)));
        assert_eq!(find(&["v=STSv1 ; id=1", "v=spf1"]), Ok(None), "told apart by v=STSv1;");
    }

    #[test]
    fn the_policy_of_the_rfc_is_read() {
        let body = "version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmx: backupmx.example.com\n\
                    max_age: 604800\n";
        for body in [body.to_owned(), body.replace('\n', "\r\n"), body.trim_end().to_owned(), format!("{body}\r\n\n")] {
            let policy = StsPolicy::parse(body.as_bytes(), "20160831085700Z").expect("valid");
            assert_eq!(policy.id, "20160831085700Z");
            assert_eq!((policy.mode, policy.max_age), (StsMode::Enforce, Duration::from_secs(604_800)));
            assert_eq!(policy.mx, ["mail.example.com", "*.example.net", "backupmx.example.com"]);
        }
    }

    #[test]
    fn policies_are_read_after_the_grammar() {
        for good in [
            "max_age:1\nmx:\t A.Example \t\nmode:enforce\nversion:STSv1",
            &format!("{ENFORCE}mode: testing\nversion: STSv2\nmax_age: never\n"),
            &format!("{ENFORCE}x-note: grüße, : and more\n"),
        ] {
            let policy = policy(good).expect(good);
            assert_eq!((policy.mode, policy.max_age.as_secs()), (StsMode::Enforce, 1));
            assert_eq!(policy.mx, ["a.example"]);
        }
        let none = policy("version: STSv1\nmode: none\nmax_age: 9999999999").expect("mode none needs no mx");
        assert_eq!((none.mode, none.max_age.as_secs()), (StsMode::None, MAX_AGE));
    }

    #[test]
    fn a_malformed_policy_says_what_is_wrong() {
        let with = |line: &str| format!("{ENFORCE}{line}\n");
        for (bad, why) in [
            (String::new(), "line 1"),
            ("mode: enforce\nmx: a.example\nmax_age: 1".to_owned(), "version is missing"),
            (ENFORCE.replace("STSv1", "STSv10"), "version is \"STSv10\""),
            (ENFORCE.replace("enforce", "bad"), "mode \"bad\""),
            (ENFORCE.replace("enforce", "Enforce"), "mode \"Enforce\""),
            (ENFORCE.replace("mode: enforce\n", ""), "mode is missing"),
            (ENFORCE.replace("mx: a.example\n", ""), "mx is missing"),
            (ENFORCE.replace("max_age: 1\n", ""), "max_age is missing"),
            (ENFORCE.replace("age: 1", "age: 12345678901"), "1 to 10 digits"),
            (ENFORCE.replace("age: 1", "age: -1"), "1 to 10 digits"),
            (ENFORCE.replace("age: 1", "age: +1"), "1 to 10 digits"),
            (ENFORCE.replace("age: 1", "age:"), "line 4"),
            (with("mx: *.*.x"), "mx \"*.*.x\""),
            (with("mx: **.x"), "mx \"**.x\""),
            (with("mx: mx*.example"), "mx \"mx*.example\""),
            (with("mx: *"), "mx \"*\""),
            (with("mx: a-.example"), "mx \"a-.example\""),
            (with("mx: bücher.example"), "A-labels"),
            (with("mx: a.example."), "A-labels"),
            (with("mx: a.example b.example"), "A-labels"),
            (with("\nx: y"), "line 5"),
            (with("nothing"), "line 5, \"nothing\""),
            (with(" x: y"), "line 5"),
            (with("x : y"), "line 5"),
            (with("x: a\rb"), "line 5"),
            (with("x: a\tb"), "line 5"),
            (with(&"mx: a.example\n".repeat(MAX_MX)), "more than 512"),
        ] {
            let error = policy(&bad).expect_err(&bad).to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        let octets = [ENFORCE.as_bytes(), b"x: \xff\n"].concat();
        assert_eq!(StsPolicy::parse(&octets, "1"), Err(StsError::Encoding(5)));
    }

    #[test]
    fn a_policy_that_is_too_long_is_not_cut() {
        let longest = format!("{ENFORCE}x: {}", "y".repeat(MAX_POLICY - ENFORCE.len() - 3));
        assert!(policy(&longest).is_ok());
        assert_eq!(policy(&format!("{longest}y")), Err(StsError::TooLong(MAX_POLICY + 1)));
    }

    #[test]
    fn a_star_is_one_label() {
        let policy = policy(&ENFORCE.replace("mx: a.example", "mx: *.Example.com\nmx: mx.example.net")).expect("valid");
        for host in ["mail.example.com", "MAIL.example.com.", "mx.example.net"] {
            assert!(policy.matches(host), "{host}");
        }
        for host in
            ["example.com", "foo.bar.example.com", ".example.com", "a.mx.example.net", "mx.example.net.evil", ""]
        {
            assert!(!policy.matches(host), "{host}");
        }
    }

    #[test]
    fn a_report_shows_the_policy_line_by_line() {
        let lines = policy(ENFORCE).expect("valid").lines();
        assert_eq!(lines, ["version: STSv1", "mode: enforce", "mx: a.example", "max_age: 1"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_lines_of_a_policy_are_the_policy(
            mode in prop_oneof![Just(StsMode::Enforce), Just(StsMode::Testing), Just(StsMode::None)],
            mx in proptest::collection::vec("(\\*\\.)?[a-z0-9]{1,9}(-[a-z0-9]{1,9}){0,2}(\\.[a-z]{2,9}){0,3}", 1..20),
            age in 0..=MAX_AGE,
            end in "\r?\n",
        ) {
            let policy = StsPolicy { id: "1".to_owned(), mode, mx, max_age: Duration::from_secs(age) };
            prop_assert_eq!(StsPolicy::parse(policy.lines().join(&end).as_bytes(), "1"), Ok(policy));
        }

        #[test]
        fn whatever_comes_is_read_or_refused(
            text in "(v=STSv1|version|mode|max_age|mx|id|STSv1|none|[a-z]|[0-9]|\\*|\\.|[:;= \t\r\n]|\\PC){0,40}",
            octets in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for octets in [text.as_bytes(), &octets] {
                if let Ok(policy) = StsPolicy::parse(octets, "1") {
                    prop_assert_eq!(StsPolicy::parse(policy.lines().join("\n").as_bytes(), "1"), Ok(policy));
                }
                if let Ok(Some(record)) = StsRecord::find(&[octets.to_vec()]) {
                    prop_assert!(ID.contains(&record.id.len()));
                }
            }
        }
    }
}
