//! Certificates and TLSA records, made from the certificates or from arbitrary bytes, compared: only a usable record
//! matches, and every result has a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtpwatch_core::{
    Timestamp,
    policy::published::{
        certificate::CertificateFacts,
        tlsa::{Comparison, Tlsa, compare, usable},
    },
};
use smtpwatch_fuzz::{
    allocation::{Counting, Watch},
    chain::Chain,
    shown,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that one input may allocate: parsed certificates, several at once.
const ALLOCATED: usize = 2 * 1024 * 1024;

fuzz_target!(|input: &[u8]| {
    let watch = Watch::start();
    let Chain { records, certificates, at } = Chain::decode(input);
    certificates.iter().for_each(|certificate| facts(certificate));
    for record in &records {
        if !record.data.is_empty() {
            assert_eq!(record.to_string().parse().as_ref(), Ok(record));
        }
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(record) = text.parse::<Tlsa>()
    {
        assert_eq!(record.to_string().parse(), Ok(record));
    }
    match compare(&records, &certificates, &["mx.example.net"], Timestamp::from_secs(at)) {
        Comparison::Matches(record) => {
            assert!(usable(&records).contains(&&record));
            let (selector, matching) = (record.selector, record.matching);
            let own = |der: &Vec<u8>| Tlsa::of(der, 3, selector, matching).ok().flatten().map(|own| own.data);
            assert!(record.usage == 2 || certificates.first().and_then(own).as_ref() == Some(&record.data));
        }
        Comparison::Mismatch(why) => {
            assert!(!usable(&records).is_empty() && !certificates.is_empty());
            shown(&why);
        }
        Comparison::NotObservable(why) => shown(&why),
    }
    assert!(watch.peak() <= ALLOCATED, "{} octets allocated", watch.peak());
});

fn facts(certificate: &[u8]) {
    match CertificateFacts::of(certificate) {
        Ok(facts) => {
            assert_eq!(facts.spki_sha256.len(), 64);
            for text in [&facts.subject, &facts.issuer].into_iter().chain(&facts.common_name).chain(&facts.dns_names) {
                assert!(!text.contains(char::is_control) && text.len() < 4096, "{text}");
            }
            let _ = facts.names_or_is_called("mx.example.net");
        }
        Err(error) => shown(&error),
    }
}
