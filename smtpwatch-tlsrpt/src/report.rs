//! The report document (RFC 8460 §4.4): written strictly, parsed tolerantly, bounded. [`Report`] is used in both
//! directions: `outbound` builds it, and `inbound` parses it.
//!
//! The parser accepts common mistakes: `mx-host` as a string (the RFC's own example; erratum 6241 makes it an array),
//! date-times without a zone, `null` or nothing for an optional value, counts as strings, texts as numbers or lists,
//! unknown keys and types. Contradictory reports are rejected with the reason.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, SeqAccess, Unexpected, Visitor},
};
use smtpwatch_core::{
    Timestamp,
    engine::{PolicyType, ResultType},
};

/// Maximum size of a report in bytes, inflated; a longer one is rejected.
pub const REPORT_BYTES: usize = 16 * 1024 * 1024;
/// Maximum number of policies in one report.
pub const POLICIES: usize = 10_000;
/// Maximum number of failure details of one policy.
pub const FAILURES: usize = 50_000;
/// Maximum number of strings, and of mail hosts, of one policy.
pub const STRINGS: usize = 1_000;
/// Maximum size of one text in bytes.
pub const TEXT_BYTES: usize = 16 * 1024;
/// Maximum length of a report's window: RFC 8460 §4.1 demands a day; some senders collect for a week.
pub const WINDOW: Duration = Duration::from_secs(8 * 86_400);
/// Maximum clock difference between sender and this host.
const SKEW: Duration = Duration::from_secs(86_400);

/// A TLS report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The reporting organization.
    #[serde(default, deserialize_with = "text")]
    pub organization_name: String,
    /// The window that the report covers.
    pub date_range: DateRange,
    /// Contact of the organization.
    #[serde(default, deserialize_with = "text")]
    pub contact_info: String,
    /// The unique identifier of the report.
    #[serde(default, deserialize_with = "text")]
    pub report_id: String,
    /// The results by policy.
    #[serde(deserialize_with = "list::<_, _, POLICIES>")]
    pub policies: Vec<PolicyReport>,
}

/// The window of a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DateRange {
    /// First second of the window.
    #[serde(serialize_with = "write_moment", deserialize_with = "read_moment")]
    pub start_datetime: Timestamp,
    /// Last second of the window; some senders write the first second after it.
    #[serde(serialize_with = "write_moment", deserialize_with = "read_moment")]
    pub end_datetime: Timestamp,
}

/// The sessions under one policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyReport {
    /// The policy that applied to these sessions.
    pub policy: Policy,
    /// Successful and failed sessions; both 0 if the report has no summary.
    #[serde(default, deserialize_with = "or_default")]
    pub summary: Summary,
    /// The failed sessions, grouped by their details.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "list::<_, _, FAILURES>")]
    pub failure_details: Vec<FailureDetails>,
}

/// A policy, as the reporter saw it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Policy {
    /// The type of the policy.
    pub policy_type: Word<PolicyType>,
    /// The lines of an MTA-STS policy, or the TLSA records.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "strings")]
    pub policy_string: Vec<String>,
    /// The policy domain; empty if the report has none.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "text")]
    pub policy_domain: String,
    /// The MX host patterns.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "strings")]
    pub mx_host: Vec<String>,
}

/// Numbers of sessions under one policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// Sessions in which TLS was established.
    #[serde(default, deserialize_with = "count")]
    pub total_successful_session_count: u64,
    /// Failed sessions.
    #[serde(default, deserialize_with = "count")]
    pub total_failure_session_count: u64,
}

/// Failed sessions with the same details.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FailureDetails {
    /// Why these sessions failed.
    pub result_type: Word<ResultType>,
    /// The address of the sending MTA; empty if the report has none.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "text")]
    pub sending_mta_ip: String,
    /// The MX host name of the receiving host.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "text")]
    pub receiving_mx_hostname: String,
    /// The name in the receiving host's HELO or EHLO reply.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "text")]
    pub receiving_mx_helo: String,
    /// The address of the receiving host.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "text")]
    pub receiving_ip: String,
    /// Number of failed sessions with these details.
    #[serde(default, deserialize_with = "count")]
    pub failed_session_count: u64,
    /// URI of further information.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "text")]
    pub additional_information: String,
    /// Further detail, such as `tls-alert-40`.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "text")]
    pub failure_reason_code: String,
}

/// A value of an extensible registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Word<T> {
    /// A registered value that this version knows.
    Known(T),
    /// Any other value, unchanged.
    Other(String),
}

impl<T: Serialize> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(word) => word.serialize(serializer),
            Self::Other(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer).and_then(bounded)?;
        let known: Result<T, serde::de::value::Error> =
            T::deserialize(serde::de::value::StringDeserializer::new(word.clone()));
        Ok(known.map_or(Self::Other(word), Self::Known))
    }
}

/// Why a document is not a valid report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not JSON, or not of this structure.
    #[error("not a TLS report: {0}")]
    Json(#[from] serde_json::Error),
    /// The document exceeds the maximum size.
    #[error("longer than {REPORT_BYTES} bytes: daily reports are far shorter")]
    TooLong,
    /// The dates are implausible.
    #[error("date-range from {start} to {end}: {reason}")]
    Dates {
        /// The start of the window.
        start: Timestamp,
        /// The end of the window.
        end: Timestamp,
        /// What is implausible.
        reason: &'static str,
    },
}

impl Report {
    /// Parses a report; `now` bounds the dates that are plausible.
    ///
    /// # Errors
    ///
    /// See [`ReportError`].
    pub fn parse(json: &[u8], now: Timestamp) -> Result<Self, ReportError> {
        if json.len() > REPORT_BYTES {
            return Err(ReportError::TooLong);
        }
        let report: Self = serde_json::from_slice(json)?;
        let DateRange { start_datetime: start, end_datetime: end } = report.date_range;
        let reason = if end < start {
            "it ends before it begins"
        } else if end.since(start) > WINDOW {
            "a report is about a day"
        } else if start > now + SKEW {
            "it lies in the future"
        } else {
            return Ok(report);
        };
        Err(ReportError::Dates { start, end, reason })
    }

    /// The report as one line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        // Serialising types with string keys to a string cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn write_moment<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    let civil = jiff::Timestamp::from_second(at.as_secs()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    serializer.collect_str(&civil.strftime("%Y-%m-%dT%H:%M:%SZ"))
}

/// Parses an RFC 3339 time. A time without a zone counts as UTC, because senders that omit the zone write UTC.
fn read_moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    let at = text.parse::<jiff::Timestamp>().ok().or_else(|| format!("{text}Z").parse().ok());
    let nanoseconds = at.and_then(|at| i64::try_from(at.as_nanosecond()).ok());
    let shown: String = text.chars().take(64).collect();
    nanoseconds
        .map(Timestamp)
        .ok_or_else(|| D::Error::custom(format_args!("{shown:?}: expected a date-time of RFC 3339")))
}

/// Treats `null` like a missing value.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Parses a text; accepts a number, or a list of texts, in its place.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Text;

    impl<'de> Visitor<'de> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<String, E> {
            Ok(String::new())
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
            bounded(text.to_owned())
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<String, E> {
            Ok(number.to_string())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<String, A::Error> {
            let mut texts: Vec<String> = Vec::new();
            while let Some(Line(text)) = array.next_element()? {
                if texts.len() == STRINGS {
                    return Err(A::Error::custom(format_args!("an array of more than {STRINGS}")));
                }
                texts.push(text);
            }
            bounded(texts.join(", "))
        }
    }

    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Line(#[serde(deserialize_with = "line")] String);

    deserializer.deserialize_any(Text)
}

/// Parses a string or `null`.
fn line<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    or_default::<_, String>(deserializer).and_then(bounded)
}

/// Parses a number of sessions; accepts a string, or a float without a fraction, in its place.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Count;

    impl Visitor<'_> for Count {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number of sessions")
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<u64, E> {
            Ok(0)
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<u64, E> {
            u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
        }

        fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<u64, E> {
            /// Integers up to 2^53 are exact in a float.
            const EXACT: f64 = 9_007_199_254_740_992.0;
            let is_count = number.fract() == 0.0 && (0.0..=EXACT).contains(&number);
            let count = format!("{number:.0}").parse().ok().filter(|_| is_count);
            count.ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
            let trimmed = text.trim();
            let is_number = trimmed.bytes().all(|byte| byte.is_ascii_digit());
            let number = trimmed.parse().ok().filter(|_| is_number);
            number.ok_or_else(|| E::invalid_value(Unexpected::Str(&text.chars().take(64).collect::<String>()), &self))
        }
    }

    deserializer.deserialize_any(Count)
}

fn bounded<E: serde::de::Error>(text: String) -> Result<String, E> {
    if text.len() > TEXT_BYTES {
        return Err(E::custom(format_args!("a text longer than {TEXT_BYTES} bytes")));
    }
    Ok(text)
}

/// Parses an array of strings, a single string, or `null`.
fn strings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a string or an array of strings")]
    enum Form {
        Nothing(()),
        One(#[serde(deserialize_with = "line")] String),
        Many(#[serde(deserialize_with = "list::<_, _, STRINGS>")] Vec<Text>),
    }

    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Text(#[serde(deserialize_with = "line")] String);

    Ok(match Form::deserialize(deserializer)? {
        Form::Nothing(()) => Vec::new(),
        Form::One(one) => vec![one],
        Form::Many(many) => many.into_iter().map(|text| text.0).collect(),
    })
}

/// Parses an array of at most `MOST` items; `null` means empty.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MOST: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct List<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {MOST}")
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Vec<T>, A::Error> {
            let mut found = Vec::new();
            while let Some(next) = array.next_element()? {
                if found.len() == MOST {
                    return Err(A::Error::custom(format_args!("an array of more than {MOST}")));
                }
                found.push(next);
            }
            Ok(found)
        }
    }

    deserializer.deserialize_any(List::<T, MOST>(PhantomData))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 8460 Appendix B, with the example's own form of mx-host.
    pub const APPENDIX_B: &str = r#"{
     "organization-name": "Company-X",
     "date-range": {
       "start-datetime": "2016-04-01T00:00:00Z",
       "end-datetime": "2016-04-01T23:59:59Z"
     },
     "contact-info": "sts-reporting@company-x.example",
     "report-id": "5065427c-23d3-47ca-b6e0-946ea0e8c4be",
     "policies": [{
       "policy": {
         "policy-type": "sts",
         "policy-string": ["version: STSv1","mode: testing",
               "mx: *.mail.company-y.example","max_age: 86400"],
         "policy-domain": "company-y.example",
         "mx-host": "*.mail.company-y.example"
       },
       "summary": {
         "total-successful-session-count": 5326,
         "total-failure-session-count": 303
       },
       "failure-details": [{
         "result-type": "certificate-expired",
         "sending-mta-ip": "2001:db8:abcd:0012::1",
         "receiving-mx-hostname": "mx1.mail.company-y.example",
         "failed-session-count": 100
       }, {
         "result-type": "starttls-not-supported",
         "sending-mta-ip": "2001:db8:abcd:0013::1",
         "receiving-mx-hostname": "mx2.mail.company-y.example",
         "receiving-ip": "203.0.113.56",
         "failed-session-count": 200,
         "additional-information": "https://reports.company-x.example/report_info?id=5065427c-23d3#StarttlsNotSupported"
       }, {
         "result-type": "validation-failure",
         "sending-mta-ip": "198.51.100.62",
         "receiving-ip": "203.0.113.58",
         "receiving-mx-hostname": "mx-backup.mail.company-y.example",
         "failed-session-count": 3,
         "failure-reason-code": "X509_V_ERR_PROXY_PATH_LENGTH_EXCEEDED"
       }]
     }]
   }"#;

    const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);

    fn parse(json: &str) -> Result<Report, ReportError> {
        Report::parse(json.as_bytes(), NOW)
    }

    /// A report with `policy` as its only policy.
    fn with_policy(policy: &str) -> String {
        format!(
            r#"{{"date-range":{{"start-datetime":"2026-11-01T00:00:00","end-datetime":"2026-11-01T23:59:59"}},
                "policies":[{policy}]}}"#
        )
    }

    #[test]
    fn the_example_of_the_rfc_is_read_whole() {
        let report = parse(APPENDIX_B).expect("appendix B");
        assert_eq!(report.date_range.start_datetime.to_string(), "2016-04-01T00:00:00.000000Z");
        let [policy] = &report.policies[..] else { panic!("{report:?}") };
        assert_eq!(policy.policy.policy_type, Word::Known(PolicyType::Sts));
        assert_eq!(policy.policy.mx_host, ["*.mail.company-y.example"]);
        assert_eq!(policy.policy.policy_string.len(), 4);
        assert_eq!(policy.summary.total_failure_session_count, 303);
        let results: Vec<_> = policy.failure_details.iter().map(|failure| failure.result_type.clone()).collect();
        let known = [ResultType::CertificateExpired, ResultType::StarttlsNotSupported, ResultType::ValidationFailure];
        assert_eq!(results, known.map(Word::Known));
        assert_eq!(policy.failure_details[2].failure_reason_code, "X509_V_ERR_PROXY_PATH_LENGTH_EXCEEDED");
    }

    #[test]
    fn what_is_written_has_no_null_and_is_read_again() {
        let report = parse(APPENDIX_B).expect("appendix B");
        let json = report.json();
        assert!(!json.contains("null"), "{json}");
        assert!(json.contains(r#""mx-host":["*.mail.company-y.example"]"#), "{json}");
        assert!(json.contains(r#""start-datetime":"2016-04-01T00:00:00Z""#), "{json}");
        assert!(!json.contains("receiving-mx-helo"), "{json}");
        assert_eq!(parse(&json).expect("our own"), report);
    }

    #[test]
    fn what_the_field_writes_is_understood() {
        for policy in [
            r#"{"policy":{"policy-type":"no-policy-found"},"summary":{"total-successful-session-count":1}}"#,
            r#"{"policy":{"policy-type":"sts","policy-string":null,"mx-host":null,"policy-domain":null},
                "summary":null,"failure-details":null}"#,
            r#"{"policy":{"policy-type":"brand-new","policy-string":"mx: a"},"x":{"y":[1]},"failure-details":
                [{"result-type":"brand-new","failed-session-count":null,"sending-mta-ip":null}]}"#,
            r#"{"policy":{"policy-type":"sts"},"failure-details":[{"result-type":"x","receiving-ip":7}]}"#,
        ] {
            assert!(parse(&with_policy(policy)).is_ok(), "{policy}: {:?}", parse(&with_policy(policy)));
        }
        let report = parse(&with_policy(r#"{"policy":{"policy-type":"brand-new"}}"#)).expect("read");
        assert_eq!(report.policies[0].policy.policy_type, Word::Other("brand-new".to_owned()));
        assert_eq!(report.date_range.end_datetime.to_string(), "2026-11-01T23:59:59.000000Z");
    }

    #[test]
    fn counts_and_texts_come_in_odd_types() {
        for (given, counted) in [("7", 7), ("\"7\"", 7), ("\" 7 \"", 7), ("7.0", 7), ("7e0", 7), ("null", 0)] {
            let policy = format!(
                r#"{{"policy":{{"policy-type":"sts"}},"summary":{{"total-successful-session-count":{given},
                "total-failure-session-count":{given}}},"failure-details":[{{"result-type":"x",
                "failed-session-count":{given}}}]}}"#
            );
            let report = parse(&with_policy(&policy)).expect(given);
            let Summary { total_successful_session_count: good, total_failure_session_count: bad } =
                report.policies[0].summary;
            assert_eq!(
                [good, bad, report.policies[0].failure_details[0].failed_session_count],
                [counted; 3],
                "{given}"
            );
        }
        for refused in ["-1", "1.5", "\"\"", "\"-1\"", "\"1e3\"", "true", "[]", "{}", "1e300"] {
            let policy = format!(
                r#"{{"policy":{{"policy-type":"sts"}},"summary":{{"total-failure-session-count":{refused}}}}}"#
            );
            assert!(parse(&with_policy(&policy)).is_err(), "{refused}");
        }
        for (given, read) in [
            ("1709856000", "1709856000"),
            ("-1", "-1"),
            ("\"x\"", "x"),
            ("[\"a@x.example\",\"b@x.example\"]", "a@x.example, b@x.example"),
            ("null", ""),
            ("[]", ""),
        ] {
            let json = with_policy("").replacen('{', &format!("{{\"report-id\":{given},\"contact-info\":{given},"), 1);
            let report = parse(&json).expect(given);
            assert_eq!((report.report_id.as_str(), report.contact_info.as_str()), (read, read), "{given}");
        }
        assert!(parse(&with_policy("").replacen('{', "{\"report-id\":{\"a\":1},", 1)).is_err());
    }

    #[test]
    fn what_is_wrong_is_refused_with_the_reason() {
        let dates = |start: &str, end: &str| {
            format!(r#"{{"date-range":{{"start-datetime":"{start}","end-datetime":"{end}"}},"policies":[]}}"#)
        };
        let long = "x".repeat(TEXT_BYTES + 1);
        for (json, reason) in [
            (APPENDIX_B[..400].to_owned(), "EOF while parsing"),
            (String::new(), "EOF while parsing"),
            ("[]".to_owned(), "invalid length"),
            ("7".to_owned(), "invalid type"),
            (r#"{"policies":[]}"#.to_owned(), "missing field `date-range`"),
            (r#"{"date-range":{"start-datetime":5,"end-datetime":6},"policies":[]}"#.to_owned(), "invalid type"),
            (dates("yesterday", "2026-11-01T00:00:00Z"), "\"yesterday\": expected a date-time of RFC 3339"),
            (dates("2026-13-01T00:00:00Z", "2026-11-01T00:00:00Z"), "expected a date-time of RFC 3339"),
            (dates("2026-11-02T00:00:00Z", "2026-11-01T00:00:00Z"), "it ends before it begins"),
            (dates("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"), "a report is about a day"),
            (dates("2036-10-01T00:00:00Z", "2036-10-01T23:59:59Z"), "it lies in the future"),
            (dates("2026-11-01T00:00:00Z", "2026-11-01T23:59:59Z").replace("[]", "{}"), "an array of at most 10000"),
            (with_policy(r#"{"policy":{"policy-type":7}}"#), "invalid type"),
            (
                with_policy(r#"{"policy":{"policy-type":"sts","mx-host":7}}"#),
                "expected a string or an array of strings",
            ),
            (
                with_policy(&format!(r#"{{"policy":{{"policy-type":"sts","policy-domain":"{long}"}}}}"#)),
                "a text longer than",
            ),
            (
                with_policy(r#"{"policy":{"policy-type":"sts"},"summary":{"total-failure-session-count":-1}}"#),
                "invalid value",
            ),
            (
                with_policy(r#"{"policy":{"policy-type":"sts"},"summary":{"total-failure-session-count":"nine"}}"#),
                "invalid value",
            ),
            (
                with_policy(&vec![r#"{"policy":{"policy-type":"sts"}}"#; POLICIES + 1].join(",")),
                "an array of more than 10000",
            ),
            (format!(r#"{{"x":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000)), "missing field"),
            (
                with_policy(&format!(r#"{{"policy":{{"policy-type":"sts","mx-host":{}}}}}"#, "[".repeat(100_000))),
                "recursion limit exceeded",
            ),
        ] {
            let error = parse(&json).expect_err(&json).to_string();
            assert!(error.contains(reason), "{error:?} lacks {reason:?}");
        }
        assert!(matches!(Report::parse(&vec![b' '; REPORT_BYTES + 1], NOW), Err(ReportError::TooLong)));
    }

    fn details() -> impl Strategy<Value = FailureDetails> {
        let result = prop_oneof![
            Just(Word::Known(ResultType::StarttlsNotSupported)),
            Just(Word::Known(ResultType::DaneRequired)),
            "[a-z]{1,3}-[0-9]{1,3}".prop_map(Word::Other),
        ];
        (result, any::<std::net::IpAddr>(), ".{0,20}", any::<u64>(), ".{0,20}").prop_map(
            |(result_type, address, name, failed_session_count, reason)| FailureDetails {
                result_type,
                sending_mta_ip: address.to_string(),
                receiving_mx_hostname: name.clone(),
                receiving_mx_helo: name,
                receiving_ip: address.to_string(),
                failed_session_count,
                additional_information: String::new(),
                failure_reason_code: reason,
            },
        )
    }

    proptest! {
        #[test]
        fn any_report_survives_writing_and_reading(
            name in ".{0,40}",
            begin in 0_i64..1_790_000_000,
            strings in prop::collection::vec(".{0,30}", 0..4),
            failure_details in prop::collection::vec(details(), 0..4),
            successful in any::<u64>(),
        ) {
            let report = Report {
                organization_name: name.clone(),
                date_range: DateRange {
                    start_datetime: Timestamp::from_secs(begin),
                    end_datetime: Timestamp::from_secs(begin + 86_399),
                },
                contact_info: name.clone(),
                report_id: name,
                policies: vec![PolicyReport {
                    policy: Policy {
                        policy_type: Word::Known(PolicyType::Tlsa),
                        policy_string: strings.clone(),
                        policy_domain: "mx.example.net".to_owned(),
                        mx_host: strings,
                    },
                    summary: Summary { total_successful_session_count: successful, total_failure_session_count: 0 },
                    failure_details,
                }],
            };
            prop_assert_eq!(Report::parse(report.json().as_bytes(), NOW).expect("our own"), report);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Report::parse(&bytes, NOW);
        }

        #[test]
        fn any_change_of_a_report_is_read_or_refused(at in 0_usize..APPENDIX_B.len(), byte in any::<u8>()) {
            let mut bytes = APPENDIX_B.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = Report::parse(&bytes, NOW);
        }
    }
}
