//! Suricata's EVE format: [`eve`] turns a finding into an alert, for programs that read Suricata's output.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use smtpwatch_core::{
    Finding, Role,
    finding::{Evidence, Kind, Severity},
};

use super::ends;

/// Generator ID of the signatures; Suricata's own is 1.
const GENERATOR: u32 = 2_525;
/// Signature ID of the first kind; the others follow in the order of [`Kind::ALL`]. Outside the ranges that public rule
/// sets use.
const FIRST_SIGNATURE: u32 = 4_252_500;

/// The finding as one EVE record.
#[must_use]
pub fn eve(finding: &Finding) -> Value {
    let f = finding;
    let mut record = json!({
        // Suricata writes the UTC offset as digits.
        "timestamp": f.time.to_string().replace('Z', "+0000"),
        "flow_id": flow_id(f),
        "event_type": "alert",
        "proto": "TCP",
        "app_proto": "smtp",
        "direction": if f.role == Role::Client { "to_client" } else { "to_server" },
        "alert": {
            "action": "allowed",
            "gid": GENERATOR,
            "signature_id": signature(f.kind),
            "rev": 1,
            "signature": format!("smtpwatch {} [{}]", f.kind, f.rule),
            "category": category(f.evidence),
            "severity": priority(f.severity),
            "metadata": {
                "smtpwatch_id": [f.id],
                "smtpwatch_severity": [f.severity],
                "smtpwatch_evidence": [f.evidence],
                "smtpwatch_outcome": [f.outcome],
                "smtpwatch_expected": [f.expected.source],
            },
        },
    });
    let Some(fields) = record.as_object_mut() else { return record };
    if let Some((client, server)) = ends(f) {
        fields.insert("src_ip".to_owned(), json!(client.ip()));
        fields.insert("src_port".to_owned(), json!(client.port()));
        fields.insert("dest_ip".to_owned(), json!(server.ip()));
        fields.insert("dest_port".to_owned(), json!(server.port()));
    }
    if !f.flow.interface.is_empty() {
        fields.insert("in_iface".to_owned(), json!(f.flow.interface));
    }
    if !f.flow.community_id.is_empty() {
        fields.insert("community_id".to_owned(), json!(f.flow.community_id));
    }
    let client = match f.role {
        Role::Server => f.peer.name.clone(),
        Role::Client => {
            f.transcript.iter().find_map(|line| line.text.strip_prefix("EHLO ")).unwrap_or_default().to_owned()
        }
    };
    if !client.is_empty() {
        fields.insert("smtp".to_owned(), json!({ "helo": client }));
    }
    record
}

/// The same positive number for both directions of a connection, like Suricata's flow ID.
fn flow_id(finding: &Finding) -> i64 {
    let digest = Sha256::digest(format!("{}{}", finding.flow.client, finding.flow.server));
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(bytes) & i64::MAX
}

fn signature(kind: Kind) -> u32 {
    let place = Kind::ALL.iter().position(|other| *other == kind).unwrap_or_default();
    FIRST_SIGNATURE + u32::try_from(place).unwrap_or(0)
}

/// Suricata's priority is inverse: 1 is the most severe.
const fn priority(severity: Severity) -> u8 {
    match severity {
        Severity::Critical | Severity::High => 1,
        Severity::Medium => 2,
        Severity::Low => 3,
        Severity::Info => 4,
    }
}

const fn category(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Suspicious => "Suspicious SMTP downgrade",
        Evidence::Regression => "SMTP downgrade against history",
        Evidence::Policy => "SMTP policy violation",
        Evidence::Tamper => "SMTP tampering",
    }
}
