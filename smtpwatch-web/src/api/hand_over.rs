//! Export of an incident in foreign formats.

use axum::{
    http::{HeaderValue, header},
    response::Response,
};
use smtpwatch_store::incidents::PAGE;

use super::{answer, asked::Asked, export, parameter as p, problem::Problem, state::Api};

/// Tells how many findings of the incident the answer leaves out.
const LEFT_OUT: &str = "smtpwatch-findings-left-out";

/// A form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// A capture file.
    Pcapng,
    /// A letter.
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

    /// Of a file that is downloaded; the others are shown.
    const fn suffix(self) -> Option<&'static str> {
        match self {
            Self::Pcapng => Some("pcapng"),
            Self::Text | Self::Ecs | Self::Eve => None,
        }
    }
}

/// At most [`PAGE`] findings, the first ones: evidence is kept of those.
pub(super) async fn serve(api: Api, asked: Asked, form: Form) -> Result<Response, Problem> {
    let id: String = asked.required(&p::INCIDENT)?;
    let made = api.desk.ask(move |store| {
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
