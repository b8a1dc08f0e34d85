//! Parses a certificate (RFC 5280) into [`CertificateFacts`]: its names (RFC 6125), dates and key. Whether a policy
//! trusts the certificate is decided in `tlsa` and in the rules.

use serde::Serialize;
use sha2::{Digest, Sha256};
use x509_parser::{
    certificate::X509Certificate,
    error::X509Error,
    extensions::GeneralName,
    oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS, OID_SIG_ED25519, Oid},
    prelude::FromDer,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

use super::syntax::{comparable, parent, quoted, shown};
use crate::Timestamp;

/// Maximum bytes of one certificate. At most a quarter of this is captured of a handshake.
pub const MAX_CERTIFICATE: usize = 65_536;
/// Maximum number of names in one certificate: authorities allow a hundred, some of them two thousand.
pub const MAX_NAMES: usize = 4096;
/// Maximum characters shown of a distinguished name.
const SHOWN: usize = 256;
/// Sizes, in bits, of the RSA keys whose signatures can be verified.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Content of a certificate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CertificateFacts {
    /// DNS-IDs (RFC 6125 §1.8), in lower case; bytes that are not text are escaped and match nothing.
    pub dns_names: Vec<String>,
    /// Common name of the subject, the last if there are several; it identifies a host only if there is no DNS-ID.
    pub common_name: Option<String>,
    /// Start of the validity.
    pub not_before: Timestamp,
    /// End of the validity.
    pub not_after: Timestamp,
    /// Subject as text, for display only.
    pub subject: String,
    /// Issuer as text, for display only.
    pub issuer: String,
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`), hexadecimal: the data of a TLSA record `3 1 1`.
    pub spki_sha256: String,
    /// Subject and issuer are equal, and the signature does not show another key.
    pub self_signed: bool,
}

/// Error in a certificate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CertificateError {
    /// Longer than [`MAX_CERTIFICATE`].
    #[error("a certificate of {0} bytes; the maximum is {MAX_CERTIFICATE}")]
    TooLong(usize),
    /// Not a certificate in the form of RFC 5280.
    #[error("not an X.509 certificate: {0}")]
    Form(String),
    /// Bytes follow the certificate.
    #[error("{0} bytes follow the end of the certificate")]
    Behind(usize),
    /// More than [`MAX_NAMES`].
    #[error("a certificate with {0} names; the maximum is {MAX_NAMES}")]
    TooManyNames(usize),
}

impl CertificateFacts {
    /// Parses a certificate in DER.
    pub fn of(der: &[u8]) -> Result<Self, CertificateError> {
        Self::read(&read(der)?)
    }

    pub(super) fn read(certificate: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let names = certificate.subject_alternative_name().map_err(|error| form(&error))?;
        let names = names.as_ref().map_or(&[][..], |names| &names.value.general_names);
        if names.len() > MAX_NAMES {
            return Err(CertificateError::TooManyNames(names.len()));
        }
        let validity = certificate.validity();
        let own = certificate.subject().as_raw() == certificate.issuer().as_raw();
        Ok(Self {
            dns_names: names.iter().filter_map(dns_name).collect(),
            common_name: certificate.subject().iter_common_name().last().map(|name| host(name.attr_value().data)),
            not_before: Timestamp::from_secs(validity.not_before.timestamp()),
            not_after: Timestamp::from_secs(validity.not_after.timestamp()),
            subject: shown(&certificate.subject().to_string(), SHOWN),
            issuer: shown(&certificate.issuer().to_string(), SHOWN),
            spki_sha256: hex(&Sha256::digest(certificate.public_key().raw)),
            self_signed: own && signed_by(certificate, certificate.public_key()) != Signed::No,
        })
    }

    /// Whether one of the DNS-IDs matches this host (RFC 6125 §6.4).
    #[must_use]
    pub fn names(&self, host: &str) -> bool {
        self.dns_names.iter().any(|name| name_matches(name, host))
    }

    /// Whether one of the DNS-IDs matches this host or, if there is no DNS-ID, the common name (RFC 6125 §6.4.4).
    #[must_use]
    pub fn names_or_is_called(&self, host: &str) -> bool {
        let called = || self.common_name.as_ref().is_some_and(|name| name_matches(name, host));
        if self.dns_names.is_empty() { called() } else { self.names(host) }
    }

    /// Whether `at` is within the validity dates.
    #[must_use]
    pub fn is_valid_at(&self, at: Timestamp) -> bool {
        (self.not_before..=self.not_after).contains(&at)
    }
}

/// Whether a name in a certificate matches this host: equal, or `*` as its whole left-most label (RFC 6125 §6.4.3), the
/// only wildcard form for mail (RFC 7672 §3.2.3).
#[must_use]
pub fn name_matches(name: &str, host: &str) -> bool {
    let (name, host) = (comparable(name), comparable(host));
    if host.is_empty() || host.contains('*') {
        return false;
    }
    match name.strip_prefix("*.") {
        Some(suffix) => !suffix.contains('*') && parent(&host) == Some(suffix),
        None => name == host,
    }
}

/// Parses a certificate; no bytes may follow it.
pub(super) fn read(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(CertificateError::TooLong(der.len()));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((behind, _)) => Err(CertificateError::Behind(behind.len())),
        Err(x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error)) => Err(form(&error)),
        Err(x509_parser::nom::Err::Incomplete(_)) => Err(CertificateError::Form("its end is missing".to_owned())),
    }
}

/// Result of verifying a signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Signed {
    /// The key signed the certificate.
    Yes,
    /// The key did not sign the certificate.
    No,
    /// The algorithm cannot be verified here.
    Unknown,
}

/// Whether `key` signed the certificate.
pub(super) fn signed_by(certificate: &X509Certificate<'_>, key: &SubjectPublicKeyInfo<'_>) -> Signed {
    match (signature_family(&certificate.signature_algorithm.algorithm), key_family(&key.algorithm.algorithm)) {
        (Some(signature), Some(key)) if signature != key => return Signed::No,
        _ => {}
    }
    match (certificate.verify_signature(Some(key)), key.parsed()) {
        (Ok(()), _) => Signed::Yes,
        // The verifier reports a wrong signature for every key that is too short or too long.
        (Err(X509Error::SignatureVerificationError), Ok(PublicKey::RSA(key)))
            if !RSA_BITS.contains(&key.key_size()) =>
        {
            Signed::Unknown
        }
        (Err(X509Error::SignatureVerificationError), _) => Signed::No,
        (Err(_), _) => Signed::Unknown,
    }
}

/// Signature algorithms; a key of one family cannot make a signature of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    Rsa,
    Ecdsa,
    Ed25519,
}

fn signature_family(algorithm: &Oid<'_>) -> Option<Family> {
    /// PKCS #1 (RFC 8017 Appendix C) and ANSI X9.62 signatures (RFC 5758 §3.2), without their last number.
    const PKCS1: &[u64] = &[1, 2, 840, 113_549, 1, 1];
    const ECDSA: &[u64] = &[1, 2, 840, 10_045, 4];
    let numbers: Vec<_> = algorithm.iter()?.take(PKCS1.len()).collect();
    if *algorithm == OID_SIG_ED25519 {
        Some(Family::Ed25519)
    } else if numbers.starts_with(PKCS1) {
        Some(Family::Rsa)
    } else {
        numbers.starts_with(ECDSA).then_some(Family::Ecdsa)
    }
}

fn key_family(algorithm: &Oid<'_>) -> Option<Family> {
    if *algorithm == OID_SIG_ED25519 {
        Some(Family::Ed25519)
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION || *algorithm == OID_PKCS1_RSASSAPSS {
        Some(Family::Rsa)
    } else {
        (*algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY).then_some(Family::Ecdsa)
    }
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hex(octets: &[u8]) -> String {
    let digit = |value: u8| char::from(if value < 10 { b'0' + value } else { b'a' + value - 10 });
    octets.iter().flat_map(|octet| [digit(octet >> 4), digit(octet & 15)]).collect()
}

fn form(error: &X509Error) -> CertificateError {
    CertificateError::Form(error.to_string())
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    /// `dNSName` among the kinds of a `GeneralName` (RFC 5280 §4.2.1.6).
    const DNS_NAME: u32 = 2;
    match name {
        GeneralName::DNSName(name) => Some(host(name.as_bytes())),
        GeneralName::Invalid(tag, octets) if tag.0 == DNS_NAME => Some(host(octets)),
        // The kinds are defined by the crate, and no other kind names a host.
        _ => None,
    }
}

/// A name in the form used for comparison; escaped if it cannot be a name.
fn host(octets: &[u8]) -> String {
    match std::str::from_utf8(octets) {
        Ok(name) if name.len() <= 255 && name.bytes().all(|octet| octet.is_ascii_graphic()) => comparable(name),
        _ => quoted(octets),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
        SanType, date_time_ymd,
    };

    use super::*;

    /// A certificate that can issue others.
    pub(in crate::policy::published) struct Authority {
        pub(in crate::policy::published) der: Vec<u8>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        pub(in crate::policy::published) fn root(name: &str) -> Self {
            let key = KeyPair::generate().expect("a key");
            let params = authority(name);
            let der = params.self_signed(&key).expect("a certificate").der().to_vec();
            Self { der, issuer: Issuer::new(params, key) }
        }

        pub(in crate::policy::published) fn below(&self, params: CertificateParams) -> Self {
            let key = KeyPair::generate().expect("a key");
            let der = self.issue(&params, &key);
            Self { der, issuer: Issuer::new(params, key) }
        }

        /// A certificate of a server, valid in the year 2026.
        pub(in crate::policy::published) fn server(&self, name: &str) -> Vec<u8> {
            self.issue(&server(&[name]), &KeyPair::generate().expect("a key"))
        }

        pub(in crate::policy::published) fn issue(&self, params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
            params.signed_by(key, &self.issuer).expect("a certificate").der().to_vec()
        }
    }

    pub(in crate::policy::published) fn authority(name: &str) -> CertificateParams {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    pub(in crate::policy::published) fn server(names: &[&str]) -> CertificateParams {
        let mut params = named("a server");
        let name = |name: &&str| SanType::DnsName((*name).try_into().expect("ASCII"));
        params.subject_alt_names = names.iter().map(name).collect();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        params
    }

    fn named(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    #[test]
    fn a_certificate_says_whose_it_is() {
        let root = Authority::root("Example Root");
        let facts = CertificateFacts::of(&root.server("MX.example.net")).expect("read");
        assert_eq!(facts.dns_names, ["mx.example.net"]);
        assert_eq!((facts.subject.as_str(), facts.issuer.as_str()), ("CN=a server", "CN=Example Root"));
        assert_eq!(facts.common_name.as_deref(), Some("\"a server\""), "no name of a host");
        assert_eq!(
            (facts.not_before.date(), facts.not_after.date()),
            ("2026-01-01".to_owned(), "2027-01-01".to_owned())
        );
        assert_eq!(facts.spki_sha256.len(), 64);
        assert!(!facts.self_signed && CertificateFacts::of(&root.der).expect("read").self_signed);
        for (at, valid) in [(facts.not_before, true), (facts.not_after, true), (Timestamp::default(), false)] {
            assert_eq!(facts.is_valid_at(at), valid, "{at}");
        }
    }

    #[test]
    fn who_takes_anothers_name_has_not_its_key() {
        let (one, other) = (Authority::root("Root"), Authority::root("Root"));
        let same_name = one.issue(&authority("Root"), &KeyPair::generate().expect("a key"));
        assert!(!CertificateFacts::of(&same_name).expect("read").self_signed);
        let certificate = one.server("mx.example.net");
        let certificate = read(&certificate).expect("read");
        let key = |authority: &Authority| read(&authority.der).expect("read").public_key().raw.to_vec();
        for (authority, signed) in [(&one, Signed::Yes), (&other, Signed::No)] {
            let key = key(authority);
            let (_, key) = SubjectPublicKeyInfo::from_der(&key).expect("a key");
            assert_eq!(signed_by(&certificate, &key), signed);
        }
    }

    #[test]
    fn keys_of_another_family_signed_nothing() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let edwards = named("Edwards").self_signed(&key).expect("a certificate");
        let edwards = read(edwards.der()).expect("read");
        let elliptic = Authority::root("Elliptic");
        let elliptic = read(&elliptic.der).expect("read");
        assert_eq!(signed_by(&edwards, edwards.public_key()), Signed::Yes);
        assert_eq!(signed_by(&edwards, elliptic.public_key()), Signed::No);
        assert_eq!(signed_by(&elliptic, edwards.public_key()), Signed::No);
    }

    #[test]
    fn an_algorithm_that_cannot_be_checked_proves_nothing() {
        let root = Authority::root("Root");
        let server = with_sha_512(&root.server("mx.example.net"));
        let (root, server) = (read(&root.der).expect("read"), read(&server).expect("read"));
        assert_eq!(signed_by(&server, root.public_key()), Signed::Unknown);
    }

    /// The certificate with an identifier of ECDSA with SHA-512 (RFC 5758 §3.2), which cannot be verified here.
    pub(in crate::policy::published) fn with_sha_512(certificate: &[u8]) -> Vec<u8> {
        const SHA_256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        let mut certificate = certificate.to_vec();
        let places: Vec<_> =
            certificate.windows(8).zip(0..).filter(|(octets, _)| *octets == SHA_256).map(|(_, at)| at).collect();
        assert_eq!(places.len(), 2);
        places.into_iter().for_each(|at| certificate[at + 7] = 4);
        certificate
    }

    #[test]
    fn names_match_label_by_label() {
        for (name, host, expected) in [
            ("mx.example.net", "MX.Example.NET.", true),
            ("mx.example.net", "a.mx.example.net", false),
            ("*.example.net", "mx.example.net", true),
            ("*.example.net", "example.net", false),
            ("*.example.net", "a.mx.example.net", false),
            ("*.example.net", ".example.net", false),
            ("*.example.net", "*.example.net", false),
            ("mx*.example.net", "mx1.example.net", false),
            ("a.*.net", "a.example.net", false),
            ("*.*.net", "a.b.net", false),
            ("*", "localhost", false),
            ("", "", false),
        ] {
            assert_eq!(name_matches(name, host), expected, "{name} {host}");
        }
    }

    #[test]
    fn the_common_name_counts_where_there_is_no_other() {
        let facts = |names: &[&str]| {
            let mut params = server(names);
            params.distinguished_name.push(DnType::CommonName, "MX.example.net");
            let key = KeyPair::generate().expect("a key");
            CertificateFacts::of(params.self_signed(&key).expect("a certificate").der()).expect("read")
        };
        let (with, without) = (facts(&["other.example.net"]), facts(&[]));
        assert!(without.names_or_is_called("mx.example.net") && !without.names("mx.example.net"));
        assert!(!with.names_or_is_called("mx.example.net") && with.names_or_is_called("other.example.net"));
    }

    #[test]
    fn what_is_no_certificate_says_why() {
        let root = Authority::root("Root").der;
        assert_eq!(CertificateFacts::of(&[&root[..], &[0]].concat()), Err(CertificateError::Behind(1)));
        let long = vec![0; MAX_CERTIFICATE + 1];
        assert_eq!(CertificateFacts::of(&long), Err(CertificateError::TooLong(MAX_CERTIFICATE + 1)));
        assert!(matches!(CertificateFacts::of(b"no"), Err(CertificateError::Form(_))));
    }

    #[test]
    fn control_characters_of_others_are_not_shown() {
        let key = KeyPair::generate().expect("a key");
        let evil = named(&format!("a\r\n\u{1b}[31m{}", "ü".repeat(1000))).self_signed(&key).expect("a certificate");
        let facts = CertificateFacts::of(evil.der()).expect("read");
        assert!(
            facts.subject.starts_with("CN=a\\r\\n\\u{1b}[31mü") && facts.subject.ends_with("ü…"),
            "{}",
            facts.subject
        );
        assert!(facts.subject.chars().count() < SHOWN + 16);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_comes_is_read_or_refused(place in any::<proptest::sample::Index>(), octet: u8, cut: bool) {
            static CERTIFICATE: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| Authority::root("Root").server("mx.example.net"));
            let mut certificate = CERTIFICATE.clone();
            let place = place.index(certificate.len());
            certificate[place] = octet;
            if cut {
                certificate.truncate(place);
            }
            if let Ok(facts) = CertificateFacts::of(&certificate) {
                let shown = [facts.dns_names, vec![facts.subject, facts.issuer], Vec::from_iter(facts.common_name)].concat();
                prop_assert!(!shown.concat().contains(char::is_control));
            }
        }
    }
}
