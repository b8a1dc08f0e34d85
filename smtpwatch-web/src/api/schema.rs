//! JSON Schema of the documents that smtpwatch writes, derived from the types. `smtpwatch generate schema` and the
//! OpenAPI document use it.

use axum::response::Response;
use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    generate::SchemaSettings,
    transform::{RecursiveTransform, Transform},
};
use serde_json::{Value, json};
use smtpwatch_core::{Finding, evidence::EvidenceBundle, finding::SCHEMA_VERSION};

use super::response;

/// Media type of a JSON Schema.
pub(super) const MEDIA: &str = "application/schema+json";

/// JSON Schema 2020-12 of a finding.
#[must_use]
pub fn finding() -> Schema {
    of::<Finding>()
}

/// JSON Schema 2020-12 of the evidence of a finding.
#[must_use]
pub fn exhibit() -> Schema {
    of::<EvidenceBundle>()
}

/// A generator of schemas; shared types are below `definitions`.
pub(super) fn generator(definitions: &'static str) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = definitions.into();
    settings.into_generator()
}

/// Prepares the descriptions for readers of the schema: they are taken from doc comments.
pub(super) fn tidy(schema: &mut Schema) {
    RecursiveTransform(|schema: &mut Schema| {
        if let Some(Value::String(description)) = schema.get_mut("description") {
            *description = plain(description);
        }
        if let Some(version) = schema.pointer_mut("/properties/schema_version").and_then(Value::as_object_mut) {
            version.insert("const".to_owned(), json!(SCHEMA_VERSION));
        }
    })
    .transform(schema);
}

pub(super) fn serve<T: JsonSchema>() -> Response {
    response::text(MEDIA, response::json_text(&of::<T>()))
}

fn of<T: JsonSchema>() -> Schema {
    let mut schema = generator("/$defs").into_root_schema_for::<T>();
    tidy(&mut schema);
    schema
}

/// Removes rustdoc links and module paths.
fn plain(description: &str) -> String {
    let lines = description.lines().filter(|line| !(line.starts_with('[') && line.contains("]: ")));
    let text = lines.collect::<Vec<_>>().join("\n").replace("[`", "`").replace("`]", "`");
    let bare = |code: &str| match code.strip_prefix("crate::").and_then(|path| path.rsplit("::").next()) {
        Some(name) => name.to_owned(),
        None => code.to_owned(),
    };
    text.trim_end().split('`').map(bare).collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_for_readers_of_the_schema() {
        let (finding, exhibit) = (finding(), exhibit());
        assert_eq!(finding.pointer("/properties/schema_version/const"), Some(&json!(SCHEMA_VERSION)));
        for text in [finding.as_value().to_string(), exhibit.as_value().to_string()] {
            assert!(!text.contains("[`") && !text.contains("crate::"), "{text}");
        }
        assert_eq!(plain("At most [`A`].\n\n[`A`]: crate::A"), "At most `A`.");
        assert_eq!(plain("At most [`crate::b::A`] of `[c]:d`."), "At most `A` of `[c]:d`.");
    }
}
