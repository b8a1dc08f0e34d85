//! Searches the path from a server's certificate to a trust anchor of DANE-TA (RFC 7671 §5.2), using the certificates
//! that the server sent. [`reach`] is the entry point.

use x509_parser::{certificate::X509Certificate, x509::SubjectPublicKeyInfo};

use super::{CERTIFICATE, FULL, PUBLIC_KEY, Tlsa, public_key};
use crate::{
    Timestamp,
    policy::published::certificate::{Signed, read, signed_by},
};

/// Conditions that a chain must satisfy.
#[derive(Clone, Copy)]
pub(super) struct Demands {
    /// Every certificate is valid at this time; `None`: dates are ignored.
    pub at: Option<Timestamp>,
    /// Every signature was verified. If false, signatures that cannot be verified here are accepted.
    pub proof: bool,
}

impl Demands {
    fn satisfied_by(self, signed: Signed) -> bool {
        match signed {
            Signed::Yes => true,
            Signed::No => false,
            Signed::Unknown => !self.proof,
        }
    }

    fn hold(self, certificate: &X509Certificate<'_>) -> bool {
        let validity = certificate.validity();
        self.at.is_none_or(|at| {
            Timestamp::from_secs(validity.not_before.timestamp()) <= at
                && at <= Timestamp::from_secs(validity.not_after.timestamp())
        })
    }
}

/// The record of a trust anchor that is reached from the first certificate through issuers, in whatever order they were
/// sent. The anchor is among the sent certificates, or a record contains it in full. The first certificate may itself
/// be the anchor, because its key is the one that the record demands, although clients differ in accepting that.
pub(super) fn reach<'a>(anchors: &[&'a Tlsa], chain: &[X509Certificate<'_>], demands: Demands) -> Option<&'a Tlsa> {
    let mut left: Vec<_> = chain.iter().skip(1).collect();
    // Each with the number of issuers between it and the first.
    let mut reached = vec![(chain.first()?, 0_u32)];
    let mut next = 0;
    while let Some(&(certificate, depth)) = reached.get(next) {
        next += 1;
        if !demands.hold(certificate) {
            continue;
        }
        let leads = |anchor: &&&Tlsa| anchor.is_of(certificate) || signs(anchor, certificate, demands);
        if let Some(anchor) = anchors.iter().find(leads) {
            return Some(anchor);
        }
        left.retain(|issuer| {
            let found = issuer.subject().as_raw() == certificate.issuer().as_raw()
                && (may_issue(issuer, depth) || anchors.iter().any(|anchor| anchor.is_of(issuer)))
                && demands.satisfied_by(signed_by(certificate, issuer.public_key()));
            if found {
                reached.push((issuer, depth + 1));
            }
            !found
        });
    }
    None
}

/// Whether an anchor that a record contains in full signed the certificate: the server need not send that anchor (RFC
/// 7671 §5.2.1).
fn signs(anchor: &Tlsa, certificate: &X509Certificate<'_>, demands: Demands) -> bool {
    let signs = |key: &SubjectPublicKeyInfo<'_>| demands.satisfied_by(signed_by(certificate, key));
    match (anchor.selector, anchor.matching) {
        (CERTIFICATE, FULL) => read(&anchor.data).is_ok_and(|issuer| {
            demands.hold(&issuer)
                && issuer.subject().as_raw() == certificate.issuer().as_raw()
                && signs(issuer.public_key())
        }),
        (PUBLIC_KEY, FULL) => public_key(&anchor.data).is_some_and(|key| signs(&key)),
        _ => false,
    }
}

/// Whether a certificate may sign others, with this number of issuers below it (RFC 5280 §4.2.1.3, §4.2.1.9).
fn may_issue(certificate: &X509Certificate<'_>, below: u32) -> bool {
    let usage = certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    let basic = certificate.basic_constraints().ok().flatten().map(|basic| basic.value);
    usage && basic.is_some_and(|basic| basic.ca && basic.path_len_constraint.is_none_or(|longest| below <= longest))
}
