//! The table of operations ([`OPERATIONS`]): the routes and the OpenAPI document are generated from it.

use std::pin::Pin;

use axum::response::Response;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use smtpwatch_core::{Finding, evidence::EvidenceBundle};
use smtpwatch_store::incidents::Verified;

use super::{
    events, export,
    incidents::{self, FindingOnRecord, Findings, IncidentInFull, Incidents},
    openapi,
    parameter::{self as p, Parameter},
    peers::{self, OfferDays, Peers},
    problem::Problem,
    request::Request,
    response::JSON,
    schema,
    state::Api,
    verify,
};
use crate::app_state::{FindingEvent, Status};

/// The future of a response.
pub(super) type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response, Problem>> + Send>>;

/// One operation of the API.
pub(super) struct Operation {
    /// Path below `/api/v1`.
    pub(super) path: &'static str,
    /// The `operationId`.
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [&'static Parameter],
    pub(super) success: Success,
    /// All other status codes, in ascending order.
    pub(super) others: &'static [u16],
    pub(super) handler: fn(Api, Request) -> ResponseFuture,
}

/// The response with status 200.
pub(super) struct Success {
    pub(super) description: &'static str,
    pub(super) media: &'static str,
    pub(super) body: Body,
    /// Media type of another form, in lines of text.
    pub(super) also: Option<&'static str>,
}

/// The content of a response.
pub(super) enum Body {
    /// JSON of a type.
    Of(fn(&mut SchemaGenerator) -> Schema),
    /// Any JSON object.
    Object,
    /// Lines of text.
    Lines,
    /// Binary data.
    Bytes,
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const fn json<T: JsonSchema>(description: &'static str) -> Success {
    Success { description, media: JSON, body: Body::Of(of::<T>), also: None }
}

/// Every operation rejects unknown parameters.
const ALWAYS: &[u16] = &[400];
/// An operation that reads a list from the store.
const LISTED: &[u16] = &[400, 503];
/// An operation that reads one item from the store, by its identifier.
const LOOKED_UP: &[u16] = &[400, 404, 409, 500, 503];

/// All operations.
pub(super) static OPERATIONS: &[Operation] = &[
    Operation {
        path: "/status",
        name: "getStatus",
        summary: "State of the daemon",
        parameters: &[],
        success: json::<Status>("Watched interfaces, losses, and the contents of the store."),
        others: ALWAYS,
        handler: |api, _| Box::pin(incidents::status(api)),
    },
    Operation {
        path: "/incidents",
        name: "listIncidents",
        summary: "Incidents, the most recent or the most severe first",
        parameters: incidents::LIST,
        success: json::<Incidents>("One page of the list."),
        others: LISTED,
        handler: |api, request| Box::pin(incidents::list(api, request)),
    },
    Operation {
        path: "/incidents/{id}",
        name: "getIncident",
        summary: "One incident, its scope, and its strongest finding",
        parameters: &[&p::INCIDENT],
        success: json::<IncidentInFull>("The incident."),
        others: LOOKED_UP,
        handler: |api, request| Box::pin(incidents::incident(api, request)),
    },
    Operation {
        path: "/incidents/{id}/findings",
        name: "listFindings",
        summary: "The findings of an incident, the newest first, without their evidence",
        parameters: &[&p::INCIDENT, &p::LIMIT, &p::BEFORE],
        success: json::<Findings>("One page of the list."),
        others: LOOKED_UP,
        handler: |api, request| Box::pin(incidents::findings(api, request)),
    },
    Operation {
        path: "/incidents/{id}/pcapng",
        name: "exportPcapng",
        summary: "The evidence of an incident as a capture file",
        parameters: &[&p::INCIDENT],
        success: Success {
            description: "A capture made from the evidence: secrets are overwritten, message bodies left out.",
            media: "application/x-pcapng",
            body: Body::Bytes,
            also: None,
        },
        others: EXPORTED,
        handler: |api, request| Box::pin(export::serve(api, request, export::ExportFormat::Pcapng)),
    },
    Operation {
        path: "/incidents/{id}/text",
        name: "exportText",
        summary: "An incident as a letter to the carrier or postmaster",
        parameters: &[&p::INCIDENT],
        success: Success {
            description: "Plain text.",
            media: "text/plain; charset=utf-8",
            body: Body::Lines,
            also: None,
        },
        others: EXPORTED,
        handler: |api, request| Box::pin(export::serve(api, request, export::ExportFormat::Text)),
    },
    Operation {
        path: "/incidents/{id}/ecs",
        name: "exportEcs",
        summary: "The findings of an incident in the Elastic Common Schema",
        parameters: &[&p::INCIDENT],
        success: Success {
            description: "One JSON object per finding, one per line.",
            media: "application/x-ndjson",
            body: Body::Lines,
            also: None,
        },
        others: EXPORTED,
        handler: |api, request| Box::pin(export::serve(api, request, export::ExportFormat::Ecs)),
    },
    Operation {
        path: "/incidents/{id}/eve",
        name: "exportEve",
        summary: "The findings of an incident as Suricata's EVE has alerts",
        parameters: &[&p::INCIDENT],
        success: Success {
            description: "One JSON object per finding, one per line.",
            media: "application/x-ndjson",
            body: Body::Lines,
            also: None,
        },
        others: EXPORTED,
        handler: |api, request| Box::pin(export::serve(api, request, export::ExportFormat::Eve)),
    },
    Operation {
        path: "/findings/{id}",
        name: "getFinding",
        summary: "One stored finding with its evidence; it never changes",
        parameters: &[&p::FINDING],
        success: json::<FindingOnRecord>("The finding, with an ETag."),
        others: &[304, 400, 404, 409, 500, 503],
        handler: |api, request| Box::pin(incidents::finding(api, request)),
    },
    Operation {
        path: "/peers",
        name: "listPeers",
        summary: "Peers with what they used in the last 30 days, and what would have waited if TLS had been required of them",
        parameters: peers::LIST,
        success: Success {
            description: "One page of the list, in JSON; or in CSV, with a line of column names.",
            media: JSON,
            body: Body::Of(of::<Peers>),
            also: Some(peers::CSV),
        },
        others: LISTED,
        handler: |api, request| Box::pin(peers::list(api, request)),
    },
    Operation {
        path: "/peers/{peer}/offers",
        name: "listOffers",
        summary: "What a peer offered, or was offered, by day",
        parameters: &[&p::ADDRESS, &p::ROLE_OF_OFFERS, &p::PORT],
        success: json::<OfferDays>("The days with data, the oldest first."),
        others: LISTED,
        handler: |api, request| Box::pin(peers::offers(api, request)),
    },
    Operation {
        path: "/verify",
        name: "verifyChain",
        summary: "Verify the hash chain of all stored findings; one verification at a time",
        parameters: &[],
        success: json::<Verified>("Result of the verification."),
        others: LISTED,
        handler: |api, _| Box::pin(verify::serve(api)),
    },
    Operation {
        path: "/events",
        name: "listen",
        summary: "Findings when they are stored, as server-sent events",
        parameters: &[],
        success: Success {
            description: "Events `finding` (the data is a `FindingEvent` in JSON, the event's id that of the finding), and `lagged` \
                    where some were missed: look again at the list. It does not end.",
            media: "text/event-stream",
            body: Body::Of(of::<FindingEvent>),
            also: None,
        },
        others: LISTED,
        handler: |api, request| Box::pin(events::serve(api, request)),
    },
    Operation {
        path: "/openapi.json",
        name: "getOpenapi",
        summary: "This document",
        parameters: &[],
        success: Success { description: "OpenAPI 3.1.", media: JSON, body: Body::Object, also: None },
        others: ALWAYS,
        handler: |_, _| Box::pin(async { Ok(openapi::serve()) }),
    },
    Operation {
        path: "/schema/finding.json",
        name: "getFindingSchema",
        summary: "JSON Schema of a finding",
        parameters: &[],
        success: Success { description: "JSON Schema 2020-12.", media: schema::MEDIA, body: Body::Object, also: None },
        others: ALWAYS,
        handler: |_, _| Box::pin(async { Ok(schema::serve::<Finding>()) }),
    },
    Operation {
        path: "/schema/exhibit.json",
        name: "getExhibitSchema",
        summary: "JSON Schema of the evidence of a finding",
        parameters: &[],
        success: Success { description: "JSON Schema 2020-12.", media: schema::MEDIA, body: Body::Object, also: None },
        others: ALWAYS,
        handler: |_, _| Box::pin(async { Ok(schema::serve::<EvidenceBundle>()) }),
    },
];

/// As [`LOOKED_UP`]; the format may be one that this build does not support.
const EXPORTED: &[u16] = &[400, 404, 409, 500, 503];
