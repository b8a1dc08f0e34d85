//! TLS reporting (RFC 8460 §4): classifies one outbound session for each policy domain it counts for.
//!
//! The engine calls [`classify`] when it concludes a session and sends each [`Delivery`] to the caller.

use super::{
    flow::Flow,
    output::{Delivery, PolicyType, ResultType},
};
use crate::{
    Role, Timestamp,
    judge::certificate::{Comparison, Verdict},
    policy::published::{
        State,
        demand::{DomainBinding, Identity, Recipient, Source},
        sts::StsMode,
    },
    smtp::{HandshakeEnd, Starttls, TlsPhase},
};

/// Classifies a session for each policy that applies to it. The result is empty if this host's own client did not
/// request TLS, if the session transferred nothing (see [`Flow::at_stake`]), or if the outcome cannot be observed.
pub(super) fn classify(
    flow: &Flow,
    identity: &Identity,
    certificate: Option<&Comparison>,
    at: Timestamp,
    now: Timestamp,
) -> Vec<Delivery> {
    let seen = &flow.session.seen;
    if flow.role != Role::Client || seen.doubt.is_some() || !flow.is_witnessed() || !flow.at_stake() {
        return Vec::new();
    }
    let Some((failure, reason)) = outcome(flow) else { return Vec::new() };
    let bound = || identity.hosts.iter().filter(|host| host.meant);
    let (host, helo) = (bound().next(), seen.capabilities.as_ref().and_then(|reply| reply.name.clone()));
    let named = seen.server_names().first().map(|name| (*name).to_owned()).unwrap_or_default();
    let session = Delivery {
        at,
        domain: String::new(),
        policy: PolicyType::NoPolicyFound,
        policy_strings: Vec::new(),
        mx_hosts: Vec::new(),
        failure,
        reason,
        sending: flow.key.client.ip(),
        receiving: flow.key.server.ip(),
        receiving_host: host.map_or(named, |host| host.name.clone()),
        receiving_helo: helo.unwrap_or_default(),
    };
    let mut deliveries = Vec::new();
    for host in bound() {
        let facts = &host.facts;
        let holds = now < facts.dane.until;
        let bogus = facts.dane.state == State::Bogus && holds;
        let records = facts.dane.valid().filter(|_| holds);
        // Two names with the same TLSA base domain count as one policy.
        let counted = deliveries.iter().any(|delivery: &Delivery| delivery.domain == facts.base);
        if counted || records.is_none() && !bogus {
            continue;
        }
        let wrong = |c: &&Comparison| c.verdict == Verdict::Mismatch && c.subject == facts.base;
        let mismatch = certificate.filter(|c| c.source == Source::Dane).filter(wrong);
        let failure = match (session.failure, bogus) {
            (Some(failure), _) => Some(failure),
            (None, true) => Some(ResultType::DnssecInvalid),
            (None, false) => mismatch.map(|_| ResultType::TlsaInvalid),
        };
        deliveries.push(Delivery {
            domain: facts.base.clone(),
            receiving_host: host.name.clone(),
            policy: PolicyType::Tlsa,
            policy_strings: records.into_iter().flatten().map(ToString::to_string).collect(),
            failure,
            reason: session.reason.clone().or_else(|| mismatch.map(|compared| compared.found.clone())),
            ..session.clone()
        });
    }
    let proven = !deliveries.is_empty();
    for Recipient { domain, facts, standing } in &identity.domains {
        // A session through a smart host says nothing about the recipient domain. A session whose domain is uncertain
        // is attributed to no domain.
        let Some(facts) = facts.as_ref().filter(|_| standing.is_sure()) else { continue };
        let holds = now < facts.sts.until;
        let policy = facts.sts.valid().filter(|policy| holds && policy.mode != StsMode::None);
        let Some(policy) = policy else {
            // A failed policy look-up does not prove that no policy exists.
            let none = facts.sts.state == State::Absent || facts.sts.valid().is_some();
            if !proven && none && holds && *standing == DomainBinding::Here {
                deliveries.push(Delivery { domain: domain.clone(), ..session.clone() });
            }
            continue;
        };
        let wrong = |c: &&Comparison| c.verdict == Verdict::Mismatch && c.subject == *domain;
        let mismatch = certificate.filter(|c| c.source == Source::MtaSts).filter(wrong);
        let wrong = mismatch.map(|compared| match compared.expired {
            true => ResultType::CertificateExpired,
            false => ResultType::CertificateHostMismatch,
        });
        deliveries.push(Delivery {
            domain: domain.clone(),
            policy: PolicyType::Sts,
            policy_strings: policy.lines(),
            mx_hosts: policy.mx.clone(),
            failure: session.failure.or(wrong),
            reason: session.reason.clone().or_else(|| mismatch.map(|compared| compared.found.clone())),
            ..session.clone()
        });
    }
    deliveries
}

/// Failure of the session, if any. The outer `None` means that the client chose not to use TLS or the outcome is not
/// observable.
fn outcome(flow: &Flow) -> Option<(Option<ResultType>, Option<String>)> {
    let seen = &flow.session.seen;
    if let Some(end) = seen.handshake_end() {
        let reason = match end {
            HandshakeEnd::Alert(_, description) => format!("tls-alert-{description}"),
            HandshakeEnd::Clear(_) => "clear-text-after-go-ahead".to_owned(),
            HandshakeEnd::Reset(_) => "connection-reset".to_owned(),
            HandshakeEnd::Closed(_) => "connection-closed".to_owned(),
            HandshakeEnd::Silence => "time-out".to_owned(),
        };
        return Some((Some(ResultType::ValidationFailure), Some(reason)));
    }
    match seen.starttls {
        Starttls::Refused(code) => {
            Some((Some(ResultType::StarttlsNotSupported), Some(format!("starttls-reply-{code}"))))
        }
        Starttls::Granted(_) => seen.tls.as_deref().is_some_and(TlsPhase::is_established).then_some((None, None)),
        Starttls::NotSent if seen.offers_starttls() => None,
        Starttls::NotSent if seen.mail_sent => Some((Some(ResultType::StarttlsNotSupported), None)),
        Starttls::NotSent | Starttls::Sent => None,
    }
}
