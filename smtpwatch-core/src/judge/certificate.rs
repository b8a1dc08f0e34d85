//! Compares the certificate of a server before TLS 1.3 with its policy (D2, D5). [`compare`] returns a [`Comparison`];
//! the engine passes it to the rules and counts it. In TLS 1.3 the certificate is encrypted: the result is "not
//! observable", never "passed".

use serde::Serialize;

use super::{Claim, RuleId, RuleInput};
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

/// Result of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The policy allows the certificate, as far as a monitor can observe.
    Match,
    /// The policy does not allow the certificate.
    Mismatch,
    /// The certificate was not visible, or could not be compared.
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

/// Result of comparing a certificate with a policy.
#[derive(Clone, PartialEq, Debug)]
pub struct Comparison {
    /// Source of the policy.
    pub source: Source,
    /// Mode of the policy, as in a finding's `expected`.
    pub mode: &'static str,
    /// The mail host or its TLSA base domain; for MTA-STS the policy domain.
    pub subject: String,
    /// Result.
    pub verdict: Verdict,
    /// What the policy demands.
    pub expected: String,
    /// What was found, or why nothing was.
    pub found: String,
    /// The certificate has expired, and the policy forbids that.
    pub expired: bool,
}

/// Compares the certificate of a session with the policies of the mail host; `None` if no policy covers certificates.
///
/// Any domain owner may point a name at this address. Therefore only names that the session is known to use can cause a
/// mismatch, and only if all of them mismatch.
#[must_use]
pub fn compare(tls: &TlsPhase, identity: &Identity, now: Timestamp) -> Option<Comparison> {
    let chain = &tls.certificates;
    let unseen = match tls.server_hello {
        Some(hello) if hello.version >= TLS_1_3 => Some("in TLS 1.3 the certificate is encrypted"),
        _ if chain.is_empty() => Some("the certificate was not seen"),
        _ => None,
    };
    by_tlsa(chain, unseen, identity, now).or_else(|| by_sts(chain, unseen, identity, now))
}

fn by_tlsa(chain: &[Vec<u8>], unseen: Option<&str>, identity: &Identity, now: Timestamp) -> Option<Comparison> {
    let mut best: Option<Comparison> = None;
    let mut excused = false;
    for host in &identity.hosts {
        let facts = &host.facts;
        let Some(records) = facts.dane.valid().filter(|_| now < facts.dane.until) else {
            // The certificate may be for this name, which no record binds.
            excused |= host.meant;
            continue;
        };
        let recipients = identity.domains.iter().filter(|recipient| recipient.standing.is_sure());
        let names: Vec<_> = [facts.base.as_str(), &host.name]
            .into_iter()
            .chain(recipients.map(|recipient| recipient.domain.as_str()))
            .collect();
        let compared = match unseen {
            Some(why) => tlsa::Comparison::NotObservable(why.to_owned()),
            None => tlsa::compare(records, chain, &names, now),
        };
        let (verdict, found) = match compared {
            tlsa::Comparison::Matches(record) => (Verdict::Match, record.to_string()),
            tlsa::Comparison::Mismatch(why) if host.meant => (Verdict::Mismatch, why),
            tlsa::Comparison::Mismatch(_) => (
                Verdict::NotObservable,
                "the record is for one name of this address, and no one used that name".to_owned(),
            ),
            tlsa::Comparison::NotObservable(why) => (Verdict::NotObservable, why),
        };
        excused |= verdict == Verdict::NotObservable && host.meant;
        let quoted: Vec<_> = records.iter().map(ToString::to_string).collect();
        let compared = Comparison {
            source: Source::Dane,
            mode: "enforce",
            subject: facts.base.clone(),
            verdict,
            expected: format!("TLSA {} at _25._tcp.{}, secure by DNSSEC", quoted.join(", "), facts.base),
            found,
            expired: false,
        };
        if verdict == Verdict::Match {
            return Some(compared);
        }
        // A mismatch of a name that the session used takes precedence over a result that is not observable.
        if best.as_ref().is_none_or(|best| best.verdict == Verdict::NotObservable && verdict == Verdict::Mismatch) {
            best = Some(compared);
        }
    }
    let mut best = best?;
    if best.verdict == Verdict::Mismatch && excused {
        best.verdict = Verdict::NotObservable;
        best.found = "the server has another name, which may be the intended one".to_owned();
    }
    Some(best)
}

fn by_sts(chain: &[Vec<u8>], unseen: Option<&str>, identity: &Identity, now: Timestamp) -> Option<Comparison> {
    let (recipient, policy) =
        identity.domains.iter().filter(|recipient| recipient.standing.is_sure()).find_map(|of| {
            let facts = of.facts.as_ref().filter(|facts| now < facts.sts.until)?;
            Some((of, facts.sts.valid().filter(|policy| policy.mode != StsMode::None)?))
        })?;
    let domain = &recipient.domain;
    // The certificate must be valid for the mail host (RFC 8461 §4.2): if the address has no known host it cannot be
    // judged.
    let allowed: Vec<_> = identity.hosts.iter().filter(|host| host.meant && policy.matches(&host.name)).collect();
    let host = &allowed.first()?.name;
    let expected = format!("MTA-STS policy of {domain}, id {}: a valid certificate for {host}", policy.id);
    let (verdict, found, expired) = match (unseen, chain.first().map(|leaf| CertificateFacts::of(leaf))) {
        (Some(why), _) => (Verdict::NotObservable, why.to_owned(), false),
        (None, None) => (Verdict::NotObservable, "the certificate was not seen".to_owned(), false),
        (None, Some(Err(error))) => (Verdict::NotObservable, error.to_string(), false),
        (None, Some(Ok(facts))) if !allowed.iter().any(|host| facts.names(&host.name)) => {
            (Verdict::Mismatch, format!("the certificate is for {}", facts.dns_names.join(", ")), false)
        }
        (None, Some(Ok(facts))) if now > facts.not_after => {
            (Verdict::Mismatch, format!("the certificate expired on {}", facts.not_after.date()), true)
        }
        (None, Some(Ok(_))) => {
            (Verdict::NotObservable, "the name matches; the issuer is not checked".to_owned(), false)
        }
    };
    let mode = policy.mode.as_str();
    Some(Comparison { source: Source::MtaSts, mode, subject: domain.clone(), verdict, expected, found, expired })
}

pub(super) fn judge(input: &RuleInput<'_>) -> Option<Claim> {
    let compared = input.certificate.filter(|compared| compared.verdict == Verdict::Mismatch)?;
    if input.role != Role::Client || input.session.doubt.is_some() || input.starttls_ignored() {
        return None;
    }
    let expected = Expected {
        mode: Some(compared.mode.into()),
        ..Expected::starttls(compared.source.into(), compared.expected.clone())
    };
    let mut claim = Claim::new(input, Kind::CertificateMismatch, RuleId::D5, Evidence::Policy, expected);
    claim.is_final = true;
    Some(claim.indicator(compared.found.clone()))
}
