//! TLS reporting (RFC 8460 §4): classifies one outbound session for each policy domain it counts for.
//!
//! The engine calls [`of`] when it concludes a session and sends each [`Delivery`] to the caller.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::flow::Flow;
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

/// Result of one outbound session for one policy domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// When the session ended.
    pub at: Timestamp,
    /// The policy domain: the recipient domain, or for DANE the TLSA base domain.
    pub domain: String,
    /// Type of the policy that applied to the session.
    pub policy: PolicyType,
    /// The policy as a report quotes it: each line of an MTA-STS policy, or each TLSA record.
    pub policy_strings: Vec<String>,
    /// MX host patterns of an MTA-STS policy.
    pub mx_hosts: Vec<String>,
    /// What failed; `None`: TLS was established, as far as a monitor can observe.
    pub failure: Option<ResultType>,
    /// Detail of the failure, such as `tls-alert-40`.
    pub reason: Option<String>,
    /// Address of this host.
    pub sending: IpAddr,
    /// Address of the mail host.
    pub receiving: IpAddr,
    /// Name of the mail host: from the policy index if known there, else from its own greeting or EHLO reply.
    pub receiving_host: String,
    /// The name in the mail host's EHLO reply; empty without one.
    pub receiving_helo: String,
}

/// `policy-type` of a report.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyType {
    /// DANE.
    Tlsa,
    /// MTA-STS.
    Sts,
    /// Neither DANE nor MTA-STS.
    NoPolicyFound,
}

/// `result-type` of a report, limited to what a monitor on the path can observe (RFC 8460 §4.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultType {
    /// STARTTLS was not offered, or was refused.
    StarttlsNotSupported,
    /// The certificate is not valid for the expected name.
    CertificateHostMismatch,
    /// The certificate has expired.
    CertificateExpired,
    /// The certificate is not signed by a trusted issuer.
    CertificateNotTrusted,
    /// TLS failed in another way.
    ValidationFailure,
    /// No TLSA record matches, or none is usable.
    TlsaInvalid,
    /// DNSSEC does not prove the TLSA records.
    DnssecInvalid,
    /// DANE was required and no TLSA records exist.
    DaneRequired,
    /// The policy could not be fetched.
    StsPolicyFetchError,
    /// The policy is not a valid MTA-STS policy.
    StsPolicyInvalid,
    /// The certificate of the policy host is not valid.
    StsWebpkiInvalid,
}

/// Classifies a session for each policy that applies to it. The result is empty if this host's own client did not
/// request TLS, if the session transferred nothing (see [`Flow::at_stake`]), or if the outcome cannot be observed.
pub(super) fn of(
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
