//! The OpenAPI document, generated from the table of operations, so that it cannot differ from the routes.

use axum::{http::StatusCode, response::Response};
use schemars::Schema;
use serde_json::{Map, Value, json};

use super::{
    operation::{Body, OPERATIONS, Operation},
    parameter::{Location, Parameter, ValueFormat},
    problem::{self, Problem},
    response, schema,
    state::ROOT,
};

const ABOUT: &str = "What smtpwatch has on record, read only. Fields may be added at any time: leave out of account what you \
                     do not know. Nothing that is here is removed or given another meaning below this path.";

pub(super) fn serve() -> Response {
    response::json(&document())
}

/// The document, OpenAPI 3.1.
fn document() -> Value {
    let mut generator = schema::generator("/components/schemas");
    let problem = generator.subschema_for::<Problem>();
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let success = match operation.success.body {
            Body::Of(schema) => schema(&mut generator).to_value(),
            Body::Object => json!({ "type": "object" }),
            Body::Lines => json!({ "type": "string" }),
            Body::Bytes => json!({}),
        };
        paths.insert(format!("{ROOT}{}", operation.path), json!({ "get": describe(operation, &success, &problem) }));
    }
    let mut schemas = generator.take_definitions(true);
    for value in schemas.values_mut() {
        if let Ok(schema) = <&mut Schema>::try_from(value) {
            schema::tidy(schema);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "smtpwatch",
            "version": smtpwatch_core::VERSION,
            "description": ABOUT,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn describe(operation: &Operation, success: &Value, problem: &Schema) -> Value {
    let mut ok = json!({
        "description": operation.success.description,
        "content": { operation.success.media: { "schema": success } },
    });
    if let Some(media) = operation.success.also {
        ok["content"][media] = json!({ "schema": { "type": "string" } });
    }
    if operation.others.contains(&StatusCode::NOT_MODIFIED.as_u16()) {
        ok["headers"] = json!({ "ETag": { "schema": { "type": "string" } } });
    }
    let mut responses = Map::new();
    responses.insert("200".to_owned(), ok);
    for status in operation.others {
        let description = StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
        let mut response = json!({ "description": description.unwrap_or_default() });
        if *status >= 400 {
            response["content"] = json!({ problem::MEDIA: { "schema": problem } });
        }
        responses.insert(status.to_string(), response);
    }
    json!({
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": operation.parameters.iter().map(|one| parameter(one)).collect::<Vec<_>>(),
        "responses": responses,
    })
}

fn parameter(parameter: &Parameter) -> Value {
    let example = match parameter.format {
        ValueFormat::Number { .. } => parameter.example.parse::<u64>().map_or(Value::Null, Value::from),
        _ => json!(parameter.example),
    };
    let one = parameter.format.schema();
    let (schema, example) = match parameter.max_count {
        1 => (one, example),
        max_count => (json!({ "type": "array", "items": one, "maxItems": max_count }), json!([example])),
    };
    json!({
        "name": parameter.name,
        "in": match parameter.location { Location::Path => "path", Location::Query => "query" },
        "required": parameter.required,
        "description": parameter.description,
        "schema": schema,
        "example": example,
    })
}
