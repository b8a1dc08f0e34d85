//! Elastic Common Schema: [`ecs`] turns a finding into the alert of an intrusion detection system. Fields that ECS
//! lacks are under `smtpwatch`.

use serde_json::{Map, Value, json};
use smtpwatch_core::{Finding, Role};

use super::{ends, sentence};
use crate::text::printable;

/// The ECS version of the field names.
const VERSION: &str = "8.17.0";

/// The finding as one ECS document.
#[must_use]
pub fn ecs(finding: &Finding) -> Value {
    let f = finding;
    let reason = sentence(f);
    let mut document = json!({
        "@timestamp": f.time,
        "ecs": { "version": VERSION },
        "message": printable(&reason),
        "event": {
            "kind": "alert",
            "category": ["network", "intrusion_detection"],
            "type": ["info"],
            "id": f.id,
            // In ECS, a higher number is more severe.
            "severity": f.severity as u8,
            "provider": "smtpwatch",
            "dataset": "smtpwatch.finding",
            "module": "smtpwatch",
            "reason": printable(&reason),
        },
        "rule": { "id": f.rule, "name": f.kind, "category": f.evidence },
        "network": {
            "transport": "tcp",
            "protocol": "smtp",
            "direction": if f.role == Role::Client { "outbound" } else { "inbound" },
        },
        "observer": { "product": "smtpwatch", "vendor": "smtpwatch", "type": "ids", "version": f.provenance.version },
        // The whole document, so that the conversion loses nothing.
        "smtpwatch": f,
    });
    let Some(fields) = document.as_object_mut() else { return document };
    if !f.flow.community_id.is_empty() {
        put(fields, "network", "community_id", json!(f.flow.community_id));
    }
    if !f.flow.interface.is_empty() {
        put(fields, "observer", "ingress", json!({ "interface": { "name": f.flow.interface } }));
    }
    if let Some((client, server)) = ends(f) {
        let end = |end: std::net::SocketAddr| json!({ "address": end.ip(), "ip": end.ip(), "port": end.port() });
        let (mut source, mut destination) = (end(client), end(server));
        let peer = if f.role == Role::Client { &mut destination } else { &mut source };
        if let Some(peer) = peer.as_object_mut().filter(|_| !f.peer.name.is_empty()) {
            peer.insert("domain".to_owned(), json!(f.peer.name));
        }
        for (name, end) in
            [("source", &source), ("client", &source), ("destination", &destination), ("server", &destination)]
        {
            fields.insert(name.to_owned(), end.clone());
        }
        fields.insert("related".to_owned(), json!({ "ip": [client.ip(), server.ip()] }));
    }
    if let Some(sender) = &f.sender {
        if let Some(uid) = sender.uid {
            fields.insert("user".to_owned(), json!({ "id": uid.to_string() }));
        }
        if let Some(container) = &sender.container {
            fields.insert("container".to_owned(), json!({ "id": container }));
        }
        if let Some(pod) = &sender.pod {
            fields.insert(
                "orchestrator".to_owned(),
                json!({ "type": "kubernetes", "resource": { "type": "pod", "id": pod } }),
            );
        }
        if let Some(unit) = &sender.unit {
            fields.insert("service".to_owned(), json!({ "name": unit }));
        }
    }
    document
}

fn put(fields: &mut Map<String, Value>, object: &str, name: &str, value: Value) {
    if let Some(object) = fields.get_mut(object).and_then(Value::as_object_mut) {
        object.insert(name.to_owned(), value);
    }
}
