//! What a TLS report says of one outbound session (RFC 8460 §4).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

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
    /// What failed; `None`: TLS came about, as far as it can be observed.
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

/// `result-type` of a report, as far as a watcher on the path can tell (RFC 8460 §4.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultType {
    /// STARTTLS was not offered, or was refused.
    StarttlsNotSupported,
    /// The certificate is for other names.
    CertificateHostMismatch,
    /// The certificate has expired.
    CertificateExpired,
    /// Nobody known has signed the certificate.
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
