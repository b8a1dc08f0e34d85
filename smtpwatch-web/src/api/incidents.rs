//! The operations on incidents and findings: lists and single items, read from the store.

use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use smtpwatch_core::{Finding, Role, evidence::EvidenceBundle};
use smtpwatch_store::incidents::{Cursor, Filter, Incident, LookupError, Reach, StoredFinding};
use smtpwatch_system::{clock::now, moment::Moment};

use super::{
    parameter::{self as p, Location, PAGE_BY_DEFAULT, Parameter},
    problem::Problem,
    request::Request,
    response,
    state::Api,
};

/// One page of incidents.
#[derive(Serialize, JsonSchema)]
pub(super) struct Incidents {
    incidents: Vec<Incident>,
    /// The `cursor` of the next page; null: there is none. The last page may be an empty one.
    next: Option<String>,
}

/// One page of findings.
#[derive(Serialize, JsonSchema)]
pub(super) struct Findings {
    findings: Vec<ListedFinding>,
    /// The `before` of the next page; null: there is none. The last page may be an empty one.
    next: Option<u64>,
}

/// An incident, and what to look at first.
#[derive(Serialize, JsonSchema)]
pub(super) struct IncidentInFull {
    incident: Incident,
    /// How far the same thing reaches.
    reach: Reach,
    /// The finding that shows it best.
    best: Option<FindingOnRecord>,
}

/// A finding as it is stored.
#[derive(Serialize, JsonSchema)]
pub(super) struct FindingOnRecord {
    /// The document as it was made.
    #[schemars(with = "Finding")]
    finding: Box<RawValue>,
    /// Its evidence; null where the incident has enough of it.
    exhibit: Option<Box<EvidenceBundle>>,
    /// Its place in the chain, counted from 1.
    number: u64,
    /// Its hash in the chain, in hexadecimal.
    chain: String,
    /// The incident that it belongs to.
    incident: String,
}

/// A finding as it is stored, without its evidence.
#[derive(Serialize, JsonSchema)]
pub(super) struct ListedFinding {
    /// The document as it was made.
    #[schemars(with = "Finding")]
    finding: Box<RawValue>,
    /// Whether there is evidence beside it.
    has_exhibit: bool,
    /// Its place in the chain, counted from 1.
    number: u64,
    /// Its hash in the chain, in hexadecimal.
    chain: String,
}

impl TryFrom<StoredFinding> for FindingOnRecord {
    type Error = Problem;

    fn try_from(stored: StoredFinding) -> Result<Self, Problem> {
        let StoredFinding { number, incident, document, finding, chain } = stored;
        Ok(Self { finding: raw(document, &finding)?, exhibit: finding.exhibit, number, chain, incident })
    }
}

impl TryFrom<StoredFinding> for ListedFinding {
    type Error = Problem;

    fn try_from(stored: StoredFinding) -> Result<Self, Problem> {
        let StoredFinding { number, document, finding, chain, .. } = stored;
        Ok(Self { finding: raw(document, &finding)?, has_exhibit: finding.exhibit.is_some(), number, chain })
    }
}

fn raw(document: String, finding: &Finding) -> Result<Box<RawValue>, Problem> {
    let unreadable = |source| Problem::from(LookupError::Document { id: finding.id.clone(), source });
    RawValue::from_string(document).map_err(unreadable)
}

pub(super) async fn status(api: Api) -> Result<Response, Problem> {
    Ok(response::json(&api.app.status().await))
}

/// The parameters of the list.
pub(super) const LIST: &[&Parameter] =
    &[&p::SINCE, &p::UNTIL, &p::KIND, &p::SEVERITY, &p::EVIDENCE, &p::ROLE, &p::PEER, &p::SORT, &p::LIMIT, &p::CURSOR];

/// The filter of a query, by the names and values of its parameters.
pub(crate) fn filter(query: impl Iterator<Item = (String, String)>) -> Result<Filter, Problem> {
    filter_of(&Request::new(LIST, query.map(|(name, value)| (Location::Query, name, value)))?)
}

fn filter_of(request: &Request) -> Result<Filter, Problem> {
    let now = now();
    let moment = |parameter: &Parameter| -> Result<_, Problem> {
        Ok(request.value::<Moment>(parameter)?.map(|moment| moment.at(now)))
    };
    let mut kinds = Vec::new();
    for kind in request.texts(&p::KIND) {
        kinds.push(kind.parse().map_err(|_| Problem::value(&p::KIND))?);
    }
    let sort = request.value(&p::SORT)?.unwrap_or_default();
    let after = request.value::<Cursor>(&p::CURSOR)?.map(|after| after.in_order(sort));
    Ok(Filter {
        since: moment(&p::SINCE)?,
        until: moment(&p::UNTIL)?,
        kinds,
        severity: request.value(&p::SEVERITY)?,
        evidence: request.value(&p::EVIDENCE)?,
        role: role(request, &p::ROLE),
        peer: request.value(&p::PEER)?,
        sort,
        after,
        limit: limit(request)?,
    })
}

pub(super) async fn list(api: Api, request: Request) -> Result<Response, Problem> {
    let filter = filter_of(&request)?;
    let (limit, sort) = (filter.limit, filter.sort);
    let incidents = api.app.with_store(move |store| Ok(store.incidents(&filter)?)).await?;
    let full = incidents.len() >= limit;
    let next = incidents.last().filter(|_| full).map(|incident| incident.cursor(sort).to_string());
    Ok(response::json(&Incidents { incidents, next }))
}

pub(super) async fn incident(api: Api, request: Request) -> Result<Response, Problem> {
    let id: String = request.required(&p::INCIDENT)?;
    let found = api.app.with_store(move |store| {
        let incident = store.incident(&id)?;
        Ok((store.reach(&incident)?, store.best_finding(&incident)?, incident))
    });
    let (reach, best, incident) = found.await?;
    let best = best.map(FindingOnRecord::try_from).transpose()?;
    Ok(response::json(&IncidentInFull { incident, reach, best }))
}

pub(super) async fn findings(api: Api, request: Request) -> Result<Response, Problem> {
    let (id, before, limit) = (request.required::<String>(&p::INCIDENT)?, request.value(&p::BEFORE)?, limit(&request)?);
    let stored = api.app.with_store(move |store| {
        let incident = store.incident(&id)?;
        store.findings(&incident, before, limit)
    });
    let stored = stored.await?;
    let next = stored.last().filter(|_| stored.len() >= limit).map(|stored| stored.number);
    let findings = stored.into_iter().map(ListedFinding::try_from).collect::<Result<_, _>>()?;
    Ok(response::json(&Findings { findings, next }))
}

pub(super) async fn finding(api: Api, request: Request) -> Result<Response, Problem> {
    let id: String = request.required(&p::FINDING)?;
    let stored = api.app.with_store(move |store| store.finding(&id)).await?;
    Ok(request.immutable(&FindingOnRecord::try_from(stored)?))
}

/// The role that the parameter selects.
pub(super) fn role(request: &Request, parameter: &Parameter) -> Option<Role> {
    let name = request.text(parameter)?;
    Role::ALL.into_iter().find(|role| role.as_str() == name)
}

fn limit(request: &Request) -> Result<usize, Problem> {
    let limit = request.value(&p::LIMIT)?.unwrap_or(PAGE_BY_DEFAULT);
    usize::try_from(limit).map_err(|_| Problem::value(&p::LIMIT))
}
