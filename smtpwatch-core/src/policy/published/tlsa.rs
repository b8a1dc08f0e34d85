//! TLSA records of mail hosts (RFC 6698, RFC 7671, RFC 7672): parses a [`Tlsa`] record, and compares a chain of
//! certificates with the records ([`compare`]).

mod anchor;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256, Sha512};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, x509::SubjectPublicKeyInfo};

use self::anchor::{Demands, reach};
use super::{
    certificate::{CertificateError, CertificateFacts, hex, read},
    syntax::quoted,
};
use crate::Timestamp;

/// Certificate usages (RFC 7671 §4) that are usable for mail.
const DANE_TA: u8 = 2;
const DANE_EE: u8 = 3;
/// Selectors (RFC 6698 §2.1.2).
const CERTIFICATE: u8 = 0;
const PUBLIC_KEY: u8 = 1;
/// Matching types (RFC 6698 §2.1.3).
const FULL: u8 = 0;
const SHA_256: u8 = 1;
const SHA_512: u8 = 2;
/// Maximum bytes of association data in a DNS record.
const MAX_DATA: usize = 65_532;
/// Maximum number of certificates of a chain that are examined.
const MAX_CHAIN: usize = 16;
/// Maximum number of usable records that are compared: each record in full costs signature checks.
const MAX_RECORDS: usize = 32;

/// One TLSA record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tlsa {
    /// Certificate usage: 2 is DANE-TA, 3 is DANE-EE; others are unusable for mail (RFC 7672 §3.1.3).
    pub usage: u8,
    /// Selector: 0 the certificate, 1 its public key.
    pub selector: u8,
    /// Matching type: 0 in full, 1 SHA-256, 2 SHA-512.
    pub matching: u8,
    /// Certificate association data.
    pub data: Vec<u8>,
}

/// Result of comparing a chain of certificates with the records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// The chain satisfies this record.
    Matches(Tlsa),
    /// The chain satisfies no record: the reason, and what was found.
    Mismatch(String),
    /// Not decidable from what was seen: the reason.
    NotObservable(String),
}

/// Error in the text of a TLSA record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TlsaError {
    /// Not three numbers and data.
    #[error("{0} is not of the form `3 1 1 HEX` (RFC 6698 §2.2)")]
    Form(String),
    /// A field is not a byte.
    #[error("{0} is not a number from 0 to 255")]
    Number(String),
    /// The data is not hexadecimal, or too long for a record.
    #[error("{0} is not 1 to {MAX_DATA} bytes in hexadecimal")]
    Data(String),
}

/// The presentation form (RFC 6698 §2.2), hexadecimal in lower case.
impl fmt::Display for Tlsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.usage, self.selector, self.matching, hex(&self.data))
    }
}

impl FromStr for Tlsa {
    type Err = TlsaError;

    fn from_str(text: &str) -> Result<Self, TlsaError> {
        let mut fields = text.split_ascii_whitespace();
        let mut number = || {
            let field = fields.next().ok_or_else(|| TlsaError::Form(quoted(text.as_bytes())))?;
            let number = field.parse().ok().filter(|_| field.bytes().all(|octet| octet.is_ascii_digit()));
            number.ok_or_else(|| TlsaError::Number(quoted(field.as_bytes())))
        };
        let (usage, selector, matching) = (number()?, number()?, number()?);
        // The data may contain white space.
        let digits: Vec<u8> = fields.flat_map(str::bytes).collect();
        if digits.is_empty() {
            return Err(TlsaError::Form(quoted(text.as_bytes())));
        }
        let data = octets(&digits).ok_or_else(|| TlsaError::Data(quoted(&digits)))?;
        Ok(Self { usage, selector, matching, data })
    }
}

fn octets(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    if pairs.len() > MAX_DATA {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(value(*high)? << 4 | value(*low)?)).collect()
}

impl Tlsa {
    /// The record of a certificate in DER for this usage, selector and matching type; `None` if the selector or
    /// matching type is not known.
    pub fn of(certificate: &[u8], usage: u8, selector: u8, matching: u8) -> Result<Option<Self>, CertificateError> {
        let certificate = read(certificate)?;
        let data = selected(&certificate, selector).and_then(|octets| matched(octets, matching));
        Ok(data.map(|data| Self { usage, selector, matching, data }))
    }

    /// Whether this record can authenticate a mail server: DANE-TA or DANE-EE, with data that fits the selector and the
    /// matching type (RFC 7672 §3.1.3; RFC 6698 §4.1).
    #[must_use]
    pub fn is_usable(&self) -> bool {
        matches!(self.usage, DANE_TA | DANE_EE)
            && match (self.selector, self.matching) {
                (CERTIFICATE, FULL) => read(&self.data).is_ok(),
                (PUBLIC_KEY, FULL) => public_key(&self.data).is_some(),
                (CERTIFICATE | PUBLIC_KEY, SHA_256) => self.data.len() == 32,
                (CERTIFICATE | PUBLIC_KEY, SHA_512) => self.data.len() == 64,
                _ => false,
            }
    }

    fn is_of(&self, certificate: &X509Certificate<'_>) -> bool {
        selected(certificate, self.selector).is_some_and(|octets| match self.matching {
            FULL => octets == self.data,
            matching => matched(octets, matching).is_some_and(|data| data == self.data),
        })
    }
}

/// The records to compare: of the usable ones of each usage and selector, those with the strongest digest and those in
/// full (RFC 7671 §9).
#[must_use]
pub fn usable(records: &[Tlsa]) -> Vec<&Tlsa> {
    let usable: Vec<_> = records.iter().filter(|record| record.is_usable()).collect();
    // The numbers of the matching types increase with their strength.
    let strongest = |record: &Tlsa| {
        let alike = |other: &&&Tlsa| (other.usage, other.selector) == (record.usage, record.selector);
        usable.iter().filter(alike).map(|other| other.matching).max()
    };
    let counts = |record: &&Tlsa| record.matching == FULL || Some(record.matching) == strongest(record);
    usable.iter().copied().filter(counts).collect()
}

/// Compares the certificates that a server sent, its own first, with the TLSA records of its host. The certificate must
/// contain one of `names`, which start with the TLSA base domain (RFC 7672 §3.2.2); `at` is the time of the session.
///
/// For usage DANE-EE only the server's own certificate is compared (RFC 7672 §3.1.1). For DANE-TA the chain to the
/// trust anchor, all dates and one of the names are checked (RFC 7672 §3.1.2). Revocation and name constraints are not
/// examined.
#[must_use]
pub fn compare(records: &[Tlsa], chain: &[Vec<u8>], names: &[&str], at: Timestamp) -> Comparison {
    let (total, records) = (records.len(), usable(records));
    if records.is_empty() {
        return Comparison::NotObservable(format!("none of the {total} TLSA records is usable (RFC 7672 §3.1)"));
    }
    if records.len() > MAX_RECORDS {
        return Comparison::NotObservable(format!("{total} TLSA records, where at most {MAX_RECORDS} are compared"));
    }
    let Some(first) = chain.first() else {
        return Comparison::NotObservable("the server's certificate was not seen".to_owned());
    };
    let leaf = match read(first) {
        Ok(leaf) => leaf,
        Err(error) => return Comparison::NotObservable(format!("the server's certificate cannot be read: {error}")),
    };
    let (own, anchors): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.usage == DANE_EE);
    if let Some(record) = own.iter().find(|record| record.is_of(&leaf)) {
        return Comparison::Matches((*record).clone());
    }
    let of_own = own
        .first()
        .map(|record| format!("the server's certificate is {}: no TLSA record is of it", found(record, &leaf)));
    let Some(anchor) = anchors.first() else { return Comparison::Mismatch(of_own.unwrap_or_default()) };
    let others = chain.iter().skip(1).take(MAX_CHAIN - 1).filter_map(|der| read(der).ok());
    let readable: Vec<_> = std::iter::once(leaf).chain(others).collect();
    to_anchor(&anchors, &readable, names, at).unwrap_or_else(|| {
        let count = chain.len();
        if readable.len() < count {
            let unread = count - readable.len();
            return Comparison::NotObservable(format!("{unread} of the {count} certificates cannot be read"));
        }
        let last = readable.last().map_or_else(String::new, |last| found(anchor, last));
        let of_anchors = format!(
            "none of {count} certificates, of which the last is {last}, leads to the trust anchor of a TLSA record"
        );
        Comparison::Mismatch(of_own.into_iter().chain([of_anchors]).collect::<Vec<_>>().join("; "))
    })
}

/// Result of the DANE-TA checks; `None` if no anchor is reached.
fn to_anchor(anchors: &[&Tlsa], chain: &[X509Certificate<'_>], names: &[&str], at: Timestamp) -> Option<Comparison> {
    let facts = match CertificateFacts::read(&chain[0]) {
        Ok(facts) => facts,
        Err(error) => {
            return Some(Comparison::NotObservable(format!("the server's certificate cannot be read: {error}")));
        }
    };
    let all = Demands { at: Some(at), proof: true };
    let reached = reach(anchors, chain, all);
    if let Some(record) = reached.or_else(|| reach(anchors, chain, Demands { proof: false, ..all })) {
        return Some(if names.is_empty() {
            Comparison::NotObservable("it is not known which name the certificate must have".to_owned())
        } else if !names.iter().any(|name| facts.names_or_is_called(name)) {
            Comparison::Mismatch(format!(
                "the certificate, from the trust anchor {}, is for {}, not for any of {}",
                brief(record),
                called(&facts),
                names.join(", ")
            ))
        } else if reached.is_some() {
            Comparison::Matches(record.clone())
        } else {
            Comparison::NotObservable(format!(
                "the chain leads to the trust anchor {} by names, over a signature whose algorithm is not checked",
                brief(record)
            ))
        });
    }
    let dated = reach(anchors, chain, Demands { at: None, proof: false });
    dated.map(|record| {
        Comparison::Mismatch(format!(
            "a certificate on the way to the trust anchor {} is out of date: the server's own is valid from {} to {}",
            brief(record),
            facts.not_before.date(),
            facts.not_after.date()
        ))
    })
}

fn selected<'a>(certificate: &'a X509Certificate<'_>, selector: u8) -> Option<&'a [u8]> {
    match selector {
        CERTIFICATE => Some(certificate.as_raw()),
        PUBLIC_KEY => Some(certificate.public_key().raw),
        _ => None,
    }
}

fn matched(octets: &[u8], matching: u8) -> Option<Vec<u8>> {
    match matching {
        FULL => Some(octets.to_vec()),
        SHA_256 => Some(Sha256::digest(octets).to_vec()),
        SHA_512 => Some(Sha512::digest(octets).to_vec()),
        _ => None,
    }
}

fn public_key(der: &[u8]) -> Option<SubjectPublicKeyInfo<'_>> {
    SubjectPublicKeyInfo::from_der(der).ok().filter(|(behind, _)| behind.is_empty()).map(|(_, key)| key)
}

/// A record with its data cut to the length of a digest.
fn brief(record: &Tlsa) -> String {
    const SHOWN: usize = 64;
    let cut = if record.data.len() > SHOWN { "…" } else { "" };
    let data = record.data.iter().take(SHOWN).copied().collect();
    format!("{}{cut}", Tlsa { data, ..*record })
}

/// A certificate as a record of this kind describes it, with a digest in place of the full data.
fn found(record: &Tlsa, certificate: &X509Certificate<'_>) -> String {
    let matching = if record.matching == FULL { SHA_256 } else { record.matching };
    let data = selected(certificate, record.selector).and_then(|octets| matched(octets, matching)).unwrap_or_default();
    Tlsa { usage: record.usage, selector: record.selector, matching, data }.to_string()
}

/// The first few names of a certificate.
fn called(facts: &CertificateFacts) -> String {
    const SHOWN: usize = 4;
    let names = match (&facts.dns_names[..], &facts.common_name) {
        ([], Some(name)) => std::slice::from_ref(name),
        ([], None) => return "nobody".to_owned(),
        (names, _) => names,
    };
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
