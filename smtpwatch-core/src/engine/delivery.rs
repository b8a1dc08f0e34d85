//! What a TLS report says of one outbound session (RFC 8460 §4).

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

/// One outbound session, as it counts for one policy domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// When the session ended.
    pub at: Timestamp,
    /// The domain whose policy it is: the recipient domain, and of DANE the TLSA base domain.
    pub domain: String,
    /// Which policy spoke for it.
    pub policy: PolicyType,
    /// The policy, as a report quotes it: each line of an MTA-STS policy, or each TLSA record.
    pub policy_strings: Vec<String>,
    /// Patterns of mail hosts of an MTA-STS policy.
    pub mx_hosts: Vec<String>,
    /// What failed; `None`: TLS was established, as far as it can be observed.
    pub failure: Option<ResultType>,
    /// More about the failure, such as `tls-alert-40`.
    pub reason: Option<String>,
    /// This host.
    pub sending: IpAddr,
    /// The mail host.
    pub receiving: IpAddr,
    /// Its name, as the index of policies knows it, else as it calls itself.
    pub receiving_host: String,
    /// The name that it gave with its EHLO reply; empty without one.
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
    /// Neither.
    NoPolicyFound,
}

/// `result-type` of a report, as far as a monitor on the path can tell (RFC 8460 §4.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultType {
    /// STARTTLS was not offered, or was refused.
    StarttlsNotSupported,
    /// The certificate is for other names.
    CertificateHostMismatch,
    /// The certificate has expired.
    CertificateExpired,
    /// No one known has signed the certificate.
    CertificateNotTrusted,
    /// TLS failed in another way.
    ValidationFailure,
    /// No TLSA record matches, or none is usable.
    TlsaInvalid,
    /// DNSSEC does not prove the TLSA records.
    DnssecInvalid,
    /// DANE was demanded and there were no TLSA records.
    DaneRequired,
    /// The policy could not be fetched.
    StsPolicyFetchError,
    /// The policy is none.
    StsPolicyInvalid,
    /// The certificate of the policy host is not right.
    StsWebpkiInvalid,
}

/// How a session counts, for each policy that speaks for it; none where its own client did not ask for TLS, where nothing was at
/// stake, and where nothing can be told.
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
        // Two names of one base are one policy.
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
        // What goes by a smart host says nothing of the domain, and what may be anyone's mail is no one's.
        let Some(facts) = facts.as_ref().filter(|_| standing.is_sure()) else { continue };
        let holds = now < facts.sts.until;
        let policy = facts.sts.valid().filter(|policy| holds && policy.mode != StsMode::None);
        let Some(policy) = policy else {
            // That a policy could not be learnt is not that there is none.
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

/// What failed, if anything; `None` where that is the client's own choice, or cannot be told.
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
