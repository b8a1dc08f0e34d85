//! Export of an incident in the formats of other programs: the operation, and the choice of the format of
//! `smtpwatch-render`.

use axum::{
    http::{HeaderValue, header},
    response::Response,
};
use smtpwatch_core::Finding;
use smtpwatch_render::{export, text::json_line};
use smtpwatch_store::incidents::PAGE;

use super::{parameter as p, problem::Problem, request::Request, response, state::Api};

/// Header with the number of findings that the response leaves out.
const LEFT_OUT: &str = "smtpwatch-findings-left-out";

/// An export format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExportFormat {
    /// A capture file (pcapng).
    Pcapng,
    /// A plain-text report for an abuse desk.
    Text,
    /// Elastic Common Schema, one object per line.
    Ecs,
    /// Suricata's EVE, one object per line.
    Eve,
}

impl ExportFormat {
    const fn media(self) -> &'static str {
        match self {
            Self::Pcapng => "application/x-pcapng",
            Self::Text => "text/plain; charset=utf-8",
            Self::Ecs | Self::Eve => "application/x-ndjson",
        }
    }

    /// File name suffix of a format that is downloaded; `None` for one that the browser shows.
    const fn suffix(self) -> Option<&'static str> {
        match self {
            Self::Pcapng => Some("pcapng"),
            Self::Text | Self::Ecs | Self::Eve => None,
        }
    }
}

/// Exports at most [`PAGE`] findings, the first ones: evidence is stored with these.
pub(super) async fn serve(api: Api, request: Request, format: ExportFormat) -> Result<Response, Problem> {
    let id: String = request.required(&p::INCIDENT)?;
    let made = api.app.with_store(move |store| {
        let incident = store.incident(&id)?;
        let findings: Vec<_> =
            store.first_findings(&incident, PAGE)?.into_iter().map(|stored| stored.finding).collect();
        let body = write(format, &incident.id, &findings);
        Ok((body, incident.findings.saturating_sub(findings.len() as u64), incident.id))
    });
    let (body, left_out, id) = made.await?;
    let mut response = response::text(format.media(), body?);
    let headers = response.headers_mut();
    headers.insert(LEFT_OUT, HeaderValue::from(left_out));
    let name = format.suffix().map(|suffix| format!("attachment; filename=\"smtpwatch-{id}.{suffix}\""));
    if let Some(name) = name.and_then(|name| HeaderValue::try_from(name).ok()) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// The findings of an incident in this format.
fn write(format: ExportFormat, incident: &str, findings: &[Finding]) -> Result<Vec<u8>, Problem> {
    let lines = |line: fn(&Finding) -> serde_json::Value| {
        findings.iter().map(|finding| json_line(&line(finding))).collect::<String>().into_bytes()
    };
    Ok(match format {
        ExportFormat::Pcapng => {
            let mut file = Vec::new();
            export::pcapng(findings, &mut file).map_err(|error| Problem::unreadable(error.to_string()))?;
            file
        }
        ExportFormat::Text => export::text(incident, findings).into_bytes(),
        ExportFormat::Ecs => lines(export::ecs),
        ExportFormat::Eve => lines(export::eve),
    })
}
