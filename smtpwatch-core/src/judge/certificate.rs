//! The certificate of a server before TLS 1.3, compared with what its policy says (D2, D5). In TLS 1.3 it is encrypted: then it
//! is not observable, and nothing is said to have passed.

use serde::Serialize;

use super::{Case, Claim};
use crate::{
    Role, Timestamp,
    finding::{Evidence, Expected, Kind},
    policy::published::{
        certificate::CertificateFacts,
        demand::{Identity, Source},
        sts::StsMode,
        tlsa,
    },
    smtp::TlsPhase,
};

const TLS_1_3: u16 = 0x0304;

/// How a comparison came out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The certificate is one that the policy allows, as far as a watcher can tell.
    Match,
    /// It is not.
    Mismatch,
    /// It could not be seen, or not be compared.
    NotObservable,
}

impl Verdict {
    /// Every verdict, for metric labels.
    pub const ALL: [Self; 3] = [Self::Match, Self::Mismatch, Self::NotObservable];

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Mismatch => "mismatch",
            Self::NotObservable => "not_observable",
        }
    }
}

/// A certificate beside its policy.
#[derive(Clone, PartialEq, Debug)]
pub struct Comparison {
    /// Whose policy.
    pub source: Source,
    /// Its mode, as in a finding's `expected`.
    pub mode: &'static str,
    /// The mail host, or its TLSA base domain.
    pub subject: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What the policy says.
    pub expected: String,
    /// What was found, or why nothing could be.
    pub found: String,
    /// The certificate has expired, and the policy cares.
    pub expired: bool,
}

/// Compares the certificate of a session with the policies of the mail host; `None` where no policy speaks of certificates.
#[must_use]
pub fn compare(tls: &TlsPhase, identity: &Identity, now: Timestamp) -> Option<Comparison> {
    let chain = &tls.certificates;
    let unseen = match tls.server_hello {
        Some(hello) if hello.version >= TLS_1_3 => Some("in TLS 1.3 the certificate is encrypted"),
        _ if chain.is_empty() => Some("the certificate was not seen"),
        _ => None,
    };
    let dane = identity.hosts.iter().find_map(|(host, facts)| {
        let records = facts.dane.valid().filter(|_| now < facts.dane.until)?;
        Some((host, facts, records))
    });
    if let Some((host, facts, records)) = dane {
        let names: Vec<_> = [facts.base.as_str(), host]
            .into_iter()
            .chain(identity.domains.iter().map(|(name, _)| name.as_str()))
            .collect();
        let compared = match unseen {
            Some(why) => tlsa::Comparison::NotObservable(why.to_owned()),
            None => tlsa::compare(records, chain, &names, now),
        };
        let (verdict, found) = match compared {
            tlsa::Comparison::Matches(record) => (Verdict::Match, record.to_string()),
            tlsa::Comparison::Mismatch(why) => (Verdict::Mismatch, why),
            tlsa::Comparison::NotObservable(why) => (Verdict::NotObservable, why),
        };
        let records: Vec<_> = records.iter().map(ToString::to_string).collect();
        let expected = format!("TLSA {} at _25._tcp.{}, secure by DNSSEC", records.join(", "), facts.base);
        let subject = facts.base.clone();
        return Some(Comparison {
            source: Source::Dane,
            mode: "enforce",
            subject,
            verdict,
            expected,
            found,
            expired: false,
        });
    }
    let (domain, policy) = identity.domains.iter().find_map(|(name, facts)| {
        let facts = facts.as_ref().filter(|facts| now < facts.sts.until)?;
        Some((name, facts.sts.valid().filter(|policy| policy.mode != StsMode::None)?))
    })?;
    // The certificate must be the mail host's (RFC 8461 §4.2): of an address without a known host nothing can be said.
    let (host, _) = identity.hosts.iter().find(|(host, _)| policy.matches(host))?;
    let expected = format!("MTA-STS policy of {domain}, id {}: a valid certificate for {host}", policy.id);
    let (verdict, found, expired) = match unseen.map(ToOwned::to_owned).map_or_else(|| Ok(()), Err) {
        Err(why) => (Verdict::NotObservable, why, false),
        Ok(()) => match CertificateFacts::of(&chain[0]) {
            Err(error) => (Verdict::NotObservable, error.to_string(), false),
            Ok(facts) if !facts.names(host) => {
                (Verdict::Mismatch, format!("the certificate is for {}", facts.dns_names.join(", ")), false)
            }
            Ok(facts) if now > facts.not_after => {
                (Verdict::Mismatch, format!("the certificate expired on {}", facts.not_after.date()), true)
            }
            Ok(_) => (Verdict::NotObservable, "the name fits; who signed it is not checked".to_owned(), false),
        },
    };
    let mode = if policy.mode == StsMode::Testing { "testing" } else { "enforce" };
    Some(Comparison { source: Source::MtaSts, mode, subject: domain.clone(), verdict, expected, found, expired })
}

pub(super) fn judge(case: Case<'_>) -> Option<Claim> {
    let compared = case.certificate.filter(|compared| compared.verdict == Verdict::Mismatch)?;
    if case.role != Role::Client || case.session.doubt.is_some() || case.starttls_ignored() {
        return None;
    }
    let expected = Expected {
        mode: Some(compared.mode),
        ..Expected::starttls(compared.source.as_str(), compared.expected.clone())
    };
    let mut claim = Claim::new(case, Kind::CertificateMismatch, "D5", Evidence::Policy, expected);
    claim.is_final = true;
    Some(claim.prove(compared.found.clone()))
}
