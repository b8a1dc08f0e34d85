//! Export of an incident in the formats of other programs: the operation; `export` writes the formats.

use axum::{
    http::{HeaderValue, header},
    response::Response,
};
use smtpwatch_store::incidents::PAGE;

use super::{answer, asked::Asked, export, parameter as p, problem::Problem, state::Api};

/// Header with the number of findings that the response leaves out.
const LEFT_OUT: &str = "smtpwatch-findings-left-out";

/// An export format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// A capture file (pcapng).
    Pcapng,
    /// A plain-text report for an abuse desk.
    Text,
    /// Elastic Common Schema, one object per line.
    Ecs,
    /// Suricata's EVE, one object per line.
    Eve,
}

impl Form {
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
pub(super) async fn serve(api: Api, asked: Asked, form: Form) -> Result<Response, Problem> {
    let id: String = asked.required(&p::INCIDENT)?;
    let made = api.app.with_store(move |store| {
        let incident = store.incident(&id)?;
        let findings: Vec<_> = store.first_findings(&incident, PAGE)?.into_iter().map(|kept| kept.finding).collect();
        let body = export::write(form, &incident.id, &findings);
        Ok((body, incident.findings.saturating_sub(findings.len() as u64), incident.id))
    });
    let (body, left_out, id) = made.await?;
    let mut response = answer::text(form.media(), body?);
    let headers = response.headers_mut();
    headers.insert(LEFT_OUT, HeaderValue::from(left_out));
    let name = form.suffix().map(|suffix| format!("attachment; filename=\"smtpwatch-{id}.{suffix}\""));
    if let Some(name) = name.and_then(|name| HeaderValue::try_from(name).ok()) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}
