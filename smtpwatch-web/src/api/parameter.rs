//! The parameters with their allowed values. The OpenAPI document and the validation of requests use the same table.

use std::net::IpAddr;

use serde_json::{Value, json};
use smtpwatch_core::{
    Role,
    finding::{Evidence, Kind, Severity},
};
use smtpwatch_store::{
    incidents::{Cursor, PAGE, PeerFilter, Sort},
    peers::{PeerCursor, PeerSort},
};
use smtpwatch_system::moment::{AGE_DIGITS, Moment};

/// A parameter of an operation.
#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) location: Location,
    pub(super) description: &'static str,
    pub(super) format: ValueFormat,
    pub(super) required: bool,
    /// Maximum number of occurrences.
    pub(super) max_count: usize,
    pub(super) example: &'static str,
}

/// Where the parameter occurs in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Location {
    Path,
    Query,
}

/// The allowed values.
#[derive(Debug)]
pub(super) enum ValueFormat {
    /// The identifier of an incident or a finding, or a prefix of it.
    Identifier,
    /// A point in time, or an age.
    Moment,
    /// One of a closed vocabulary.
    OneOf(fn() -> Vec<&'static str>),
    /// A whole number.
    Number { min: u64, max: u64, default: Option<u64> },
    /// An address, a network or a name.
    Peer,
    /// An address.
    Address,
    /// A position in the list of incidents.
    Cursor,
    /// A position in the list of peers.
    PeerCursor,
}

const QUERY: Parameter = Parameter {
    name: "",
    location: Location::Query,
    description: "",
    format: ValueFormat::Moment,
    required: false,
    max_count: 1,
    example: "",
};
/// Length of an identifier in characters: minimum of a prefix, and full length.
const IDENTIFIER: std::ops::RangeInclusive<usize> = 4..=36;

/// The identifier of an incident.
pub(super) const INCIDENT: Parameter = Parameter {
    name: "id",
    location: Location::Path,
    description: "Identifier of the incident or of one of its findings, or an unambiguous beginning of either.",
    format: ValueFormat::Identifier,
    required: true,
    example: "019abf2c",
    ..QUERY
};
/// The identifier of a finding.
pub(super) const FINDING: Parameter =
    Parameter { description: "Identifier of the finding, or an unambiguous beginning of it.", ..INCIDENT };
/// The earliest time.
pub(super) const SINCE: Parameter = Parameter {
    name: "since",
    description: "Incidents last seen at this time or later: RFC 3339, or an age (s, m, h, d, w).",
    example: "7d",
    ..QUERY
};
/// The latest time.
pub(super) const UNTIL: Parameter = Parameter {
    name: "until",
    description: "Incidents that began before this time: RFC 3339, or an age (s, m, h, d, w).",
    example: "2026-11-23T15:04:05Z",
    ..QUERY
};
/// The kind of finding.
pub(super) const KIND: Parameter = Parameter {
    name: "kind",
    description: "Kind of finding; if repeated, any of them.",
    format: ValueFormat::OneOf(|| Kind::ALL.iter().map(|kind| kind.as_str()).collect()),
    max_count: Kind::ALL.len(),
    example: "starttls-stripped",
    ..QUERY
};
/// The minimum severity.
pub(super) const SEVERITY: Parameter = Parameter {
    name: "severity",
    description: "This severity or higher.",
    format: ValueFormat::OneOf(|| Severity::ALL.iter().map(|severity| severity.as_str()).collect()),
    example: "high",
    ..QUERY
};
/// The minimum strength of the evidence.
pub(super) const EVIDENCE: Parameter = Parameter {
    name: "evidence",
    description: "This evidence or stronger.",
    format: ValueFormat::OneOf(|| Evidence::ALL.iter().map(|evidence| evidence.as_str()).collect()),
    example: "policy",
    ..QUERY
};
/// The role of this host.
pub(super) const ROLE: Parameter = Parameter {
    name: "role",
    description: "Which end of the connection this host is.",
    format: ValueFormat::OneOf(|| Role::ALL.iter().map(|role| role.as_str()).collect()),
    example: "client",
    ..QUERY
};
/// The role of this host, where the answer depends on it.
pub(super) const ROLE_OF_OFFERS: Parameter = Parameter {
    description: "Which end of the connection this host is: client, what the peer offered; server, what the peer was offered.",
    required: true,
    ..ROLE
};
/// The peer.
pub(super) const PEER: Parameter = Parameter {
    name: "peer",
    description: "An address, a network, a name, or every name below one (`*.example.net`).",
    format: ValueFormat::Peer,
    example: "198.51.100.0/24",
    ..QUERY
};
/// The peer, by address.
pub(super) const ADDRESS: Parameter = Parameter {
    name: "peer",
    location: Location::Path,
    description: "The peer's address.",
    format: ValueFormat::Address,
    required: true,
    example: "198.51.100.25",
    ..QUERY
};
/// The server's port.
pub(super) const PORT: Parameter = Parameter {
    name: "port",
    description: "The server's port.",
    format: ValueFormat::Number { min: 1, max: 65_535, default: None },
    required: true,
    example: "25",
    ..QUERY
};
/// The server's port, as a filter.
pub(super) const PORT_OF_PEERS: Parameter =
    Parameter { description: "This port of the server.", required: false, ..PORT };
/// The order of the list of peers.
pub(super) const PEER_SORT: Parameter = Parameter {
    name: "sort",
    description: "The order: by messages accepted in cleartext (default), by the newest session in cleartext, by sessions; the \
                  largest first.",
    format: ValueFormat::OneOf(|| PeerSort::ALL.map(PeerSort::as_str).to_vec()),
    example: "last",
    ..QUERY
};
/// Position where the list of peers continues.
pub(super) const PEER_CURSOR: Parameter = Parameter {
    name: "cursor",
    description: "Continues the list in the same order: `next` of the previous response.",
    format: ValueFormat::PeerCursor,
    example: "000000000000003c1001900000000000000000000ffffc6336407",
    ..QUERY
};
/// The form of the list of peers.
pub(super) const FORMAT: Parameter = Parameter {
    name: "format",
    description: "The form of the response; without it, the Accept header decides.",
    format: ValueFormat::OneOf(|| vec!["json", "csv"]),
    example: "csv",
    ..QUERY
};
/// The maximum number of results.
pub(super) const LIMIT: Parameter = Parameter {
    name: "limit",
    description: "Maximum number of results.",
    format: ValueFormat::Number { min: 1, max: PAGE as u64, default: Some(PAGE_BY_DEFAULT) },
    example: "100",
    ..QUERY
};
/// Default of [`LIMIT`].
pub(super) const PAGE_BY_DEFAULT: u64 = 100;
/// The order of the list of incidents.
pub(super) const SORT: Parameter = Parameter {
    name: "sort",
    description: "Order: `time` (the default), the most recent first; `worth`, the most severe first, then the most recent.",
    format: ValueFormat::OneOf(|| Sort::ALL.iter().map(|sort| sort.as_str()).collect()),
    example: "worth",
    ..QUERY
};
/// Position where the list of incidents continues.
pub(super) const CURSOR: Parameter = Parameter {
    name: "cursor",
    description: "Continues the list: `next` of the previous response, with the same `sort`.",
    format: ValueFormat::Cursor,
    example: "1795446245123456789-17",
    ..QUERY
};
/// Position where the list of findings continues.
pub(super) const BEFORE: Parameter = Parameter {
    name: "before",
    description: "Findings with a lower number: `next` of the previous response.",
    format: ValueFormat::Number { min: 1, max: i64::MAX as u64, default: None },
    example: "17",
    ..QUERY
};

const OCTET: &str = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
const NAME: &str = "[0-9A-Za-z._*-]{1,255}";

fn v4() -> String {
    format!("(?:{OCTET}\\.){{3}}{OCTET}")
}

fn v6() -> String {
    const GROUP: &str = "[0-9A-Fa-f]{1,4}";
    let mut forms = vec![
        format!("(?:{GROUP}:){{7}}{GROUP}"),
        format!("(?:{GROUP}:){{1,7}}:"),
        format!("::(?:[Ff]{{4}}:)?{}", v4()),
    ];
    forms.extend((1..=6).map(|left| format!("(?:{GROUP}:){{1,{left}}}(?::{GROUP}){{1,{}}}", 7 - left)));
    forms.push(format!(":(?::{GROUP}){{1,7}}"));
    forms.push("::".to_owned());
    format!("(?:{})", forms.join("|"))
}

impl ValueFormat {
    /// The JSON Schema of the format.
    pub(super) fn schema(&self) -> Value {
        let pattern = |pattern: String| json!({ "type": "string", "pattern": format!("^(?:{pattern})$") });
        match self {
            Self::Identifier => pattern(format!("[0-9A-Fa-f-]{{{},{}}}", IDENTIFIER.start(), IDENTIFIER.end())),
            Self::Moment => json!({ "anyOf": [
                { "type": "string", "format": "date-time" },
                pattern(format!("[0-9]{{1,{AGE_DIGITS}}}[smhdw]")),
            ]}),
            Self::OneOf(names) => json!({ "type": "string", "enum": names() }),
            Self::Number { min, max, default } => {
                let mut schema = json!({ "type": "integer", "minimum": min, "maximum": max });
                if let Some(default) = default {
                    schema["default"] = json!(default);
                }
                schema
            }
            Self::Peer => pattern(format!(
                "{NAME}|{}/(?:3[0-2]|[12]?[0-9])|{}(?:/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9]))?",
                v4(),
                v6()
            )),
            Self::Address => pattern(format!("{}|{}", v4(), v6())),
            // A number of nineteen digits fits in 64 bits if its first digit is not 9.
            Self::Cursor => pattern("-?[0-8]?[0-9]{1,18}-[0-8]?[0-9]{1,18}(?:-[0-4])?".to_owned()),
            Self::PeerCursor => pattern("[0-9a-f]{16}[01][0-9a-f]{36}".to_owned()),
        }
    }

    /// A description of the allowed values.
    pub(super) fn expected(&self) -> String {
        match self {
            Self::Identifier => {
                let (min, max) = (IDENTIFIER.start(), IDENTIFIER.end());
                format!("an identifier or its beginning: {min} to {max} hexadecimal digits and hyphens")
            }
            Self::Moment => "a time such as 2026-11-23T15:04:05Z, or an age such as 30m, 24h or 7d".to_owned(),
            Self::OneOf(names) => format!("one of {}", names().join(", ")),
            Self::Number { min, max, .. } => format!("a whole number from {min} to {max}"),
            Self::Peer => {
                "an address, a network such as 192.0.2.0/24, or a name in ASCII such as *.example.net".to_owned()
            }
            Self::Address => "an IPv4 or IPv6 address".to_owned(),
            Self::Cursor | Self::PeerCursor => "the `next` of an earlier answer".to_owned(),
        }
    }

    /// Whether a text is an allowed value.
    pub(super) fn accepts(&self, text: &str) -> bool {
        let only = |also: fn(u8) -> bool| text.bytes().all(also);
        match self {
            Self::Identifier => IDENTIFIER.contains(&text.len()) && only(|c| c.is_ascii_hexdigit() || c == b'-'),
            Self::Moment => text.parse::<Moment>().is_ok(),
            Self::OneOf(names) => names().contains(&text),
            Self::Number { min, max, .. } => {
                only(|c| c.is_ascii_digit()) && text.parse().is_ok_and(|number: u64| (*min..=*max).contains(&number))
            }
            Self::Peer => only(|c| c.is_ascii_graphic() && c != b'+') && text.parse::<PeerFilter>().is_ok(),
            Self::Address => text.parse::<IpAddr>().is_ok(),
            Self::Cursor => only(|c| c.is_ascii_digit() || c == b'-') && text.parse::<Cursor>().is_ok(),
            Self::PeerCursor => text.parse::<PeerCursor>().is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schema and the validation are written separately: each must accept exactly the values that the other
    /// accepts.
    #[test]
    fn forms_and_their_schemas_agree() {
        let peers = [
            ("192.0.2.1", true),
            ("192.0.2.0/24", true),
            ("192.0.2.0/33", false),
            ("2001:db8::1", true),
            ("2001:db8::/32", true),
            ("::", true),
            ("::/0", true),
            ("1:2:3:4:5:6:7:8", true),
            ("1::3:4:5:6:7:8", true),
            ("::ffff:192.0.2.1", true),
            ("1:2:3:4:5:6:7:8:9", false),
            ("2001:db8::/129", false),
            ("*.example.net", true),
            ("mx_1.example.net.", true),
            ("mx/1", false),
            ("", false),
            ("a b", false),
            ("m\u{fc}nchen.example", false),
            ("a\0b", false),
        ];
        let cursors = [
            ("1795446245123456789-17", true),
            ("-5-3", true),
            ("1795446245123456789-17-4", true),
            ("-5-3-0", true),
            ("5-3-5", false),
            ("5-3-0-0", false),
            ("5--3", false),
            ("8999999999999999999-1", true),
            ("9999999999999999999-1", false),
            ("1-", false),
            ("1--1", false),
            ("+1-1", false),
            ("1", false),
        ];
        let identifiers = [("019abf2c", true), ("0-1A", true), ("abc", false), ("019abf2g", false), ("....", false)];
        let numbers = [("1", true), ("1000", true), ("0", false), ("1001", false), ("99999999999999999999999", false)];
        let checked = |format: &ValueFormat, rows: &[(&str, bool)]| {
            let validator = jsonschema::validator_for(&format.schema()).expect("a schema");
            for (text, expected) in rows {
                assert_eq!(format.accepts(text), *expected, "{text:?}");
                let value = match (format, text.parse::<u64>()) {
                    (ValueFormat::Number { .. }, Ok(number)) => json!(number),
                    _ => json!(text),
                };
                assert_eq!(validator.is_valid(&value), *expected, "{text:?} under {}", format.schema());
            }
        };
        checked(&ValueFormat::Peer, &peers);
        checked(&ValueFormat::Cursor, &cursors);
        let (zeros, letters) = ("0".repeat(53), format!("{}1{}", "f".repeat(16), "f".repeat(36)));
        let peer_cursors = [
            (PEER_CURSOR.example, true),
            (&*zeros, true),
            (&*letters, true),
            (&zeros[1..], false),
            (&*letters.replacen('1', "2", 1), false),
            (&*letters.to_uppercase(), false),
            ("", false),
        ];
        checked(&ValueFormat::PeerCursor, &peer_cursors);
        checked(&ValueFormat::Identifier, &identifiers);
        checked(&LIMIT.format, &numbers);
        checked(
            &ValueFormat::Address,
            &[("192.0.2.1", true), ("2001:db8::1", true), ("192.0.2.0/24", false), ("mx", false)],
        );
        checked(&SEVERITY.format, &[("high", true), ("HIGH", false), ("", false)]);
        for bad in ["+1", "0x1", " 1", "1.0", "-1", ""] {
            assert!(!LIMIT.format.accepts(bad), "{bad:?}");
        }
    }
}
