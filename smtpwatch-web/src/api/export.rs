//! Writes the findings of an incident in an export format of `smtpwatch-render`, for the operations of `hand_over`.

use smtpwatch_core::Finding;
use smtpwatch_render::{export, text::json_line};

use super::{hand_over::Form, problem::Problem};

/// The findings of an incident in this format.
pub(super) fn write(form: Form, incident: &str, findings: &[Finding]) -> Result<Vec<u8>, Problem> {
    let lines = |line: fn(&Finding) -> serde_json::Value| {
        findings.iter().map(|finding| json_line(&line(finding))).collect::<String>().into_bytes()
    };
    Ok(match form {
        Form::Pcapng => {
            let mut file = Vec::new();
            export::pcapng(findings, &mut file).map_err(|error| Problem::unreadable(error.to_string()))?;
            file
        }
        Form::Text => export::text(incident, findings).into_bytes(),
        Form::Ecs => lines(export::ecs),
        Form::Eve => lines(export::eve),
    })
}
