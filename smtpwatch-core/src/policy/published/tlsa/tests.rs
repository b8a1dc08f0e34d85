//! Tests of TLSA records and certificate chains against RFC 7671 and RFC 7672.

use std::slice::from_ref;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};

use super::*;
use crate::policy::published::certificate::tests::{Authority, authority, server, with_sha_512};

const MX: &str = "mx.example.net";
/// The middle of the year in which the server certificates are valid.
const AT: Timestamp = Timestamp::from_secs(1_780_000_000);
const LATER: Timestamp = Timestamp::from_secs(1_900_000_000);

fn record(certificate: &[u8], usage: u8, selector: u8, matching: u8) -> Tlsa {
    Tlsa::of(certificate, usage, selector, matching).expect("read").expect("known")
}

fn digest(usage: u8, selector: u8, matching: u8, octet: u8) -> Tlsa {
    let length = if matching == SHA_512 { 64 } else { 32 };
    Tlsa { usage, selector, matching, data: vec![octet; length] }
}

fn mismatch(records: &[Tlsa], chain: &[Vec<u8>], names: &[&str], at: Timestamp) -> String {
    match compare(records, chain, names, at) {
        Comparison::Mismatch(why) => why,
        other => panic!("{other:?}"),
    }
}

fn not_observable(records: &[Tlsa], chain: &[Vec<u8>], names: &[&str], at: Timestamp) -> String {
    match compare(records, chain, names, at) {
        Comparison::NotObservable(why) => why,
        other => panic!("{other:?}"),
    }
}

fn matches(records: &[Tlsa], chain: &[Vec<u8>], names: &[&str], at: Timestamp) -> Tlsa {
    match compare(records, chain, names, at) {
        Comparison::Matches(record) => record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn records_are_written_as_zones_write_them() {
    // RFC 6698 §2.3.
    let text = "0 0 1 d2abde240d7cd3ee6b4b28c54df034b9 7983a1d16e8a410e4561cb106618e971";
    let record: Tlsa = text.parse().expect("valid");
    assert_eq!((record.usage, record.selector, record.matching, record.data.len()), (0, 0, 1, 32));
    assert_eq!(record.to_string(), text.replacen("b9 79", "b979", 1));
    assert_eq!("3 1 1 AbCd".parse::<Tlsa>().expect("valid").to_string(), "3 1 1 abcd");
    for (bad, why) in [
        ("", "form"),
        ("3 1 1", "form"),
        ("3 1", "form"),
        ("3 1 256 ab", "0 to 255"),
        ("+3 1 1 ab", "0 to 255"),
        ("3 1 x ab", "0 to 255"),
        ("3 1 1 abc", "hexadecimal"),
        ("3 1 1 zz", "hexadecimal"),
        ("3 1 1 +a", "hexadecimal"),
        (&format!("3 1 1 {}", "ab".repeat(MAX_DATA + 1)), "hexadecimal"),
    ] {
        let error = bad.parse::<Tlsa>().expect_err(bad).to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn only_what_authenticates_a_mail_server_is_usable() {
    let root = Authority::root("Root").der;
    for (usage, selector, matching) in [(2, 0, 0), (2, 0, 1), (2, 1, 2), (3, 0, 2), (3, 1, 0), (3, 1, 1)] {
        assert!(record(&root, usage, selector, matching).is_usable(), "{usage} {selector} {matching}");
    }
    for (usage, selector, matching) in [(0, 0, 1), (1, 1, 1), (4, 1, 1), (255, 1, 1)] {
        assert!(!record(&root, usage, selector, matching).is_usable(), "{usage} {selector} {matching}");
    }
    for (selector, matching, length) in [
        (2, 1, 32),
        (1, 3, 32),
        (1, 1, 31),
        (1, 1, 33),
        (1, 1, 64),
        (1, 2, 32),
        (0, 2, 0),
        (0, 0, 0),
        (0, 0, 32),
        (1, 0, 32),
    ] {
        let record = Tlsa { usage: 3, selector, matching, data: vec![1; length] };
        assert!(!record.is_usable(), "{selector} {matching} {length}");
    }
    assert_eq!(Tlsa::of(&root, 3, 2, 1), Ok(None));
    assert_eq!(Tlsa::of(&root, 3, 1, 3), Ok(None));
    assert!(Tlsa::of(b"no", 3, 1, 1).is_err());
}

#[test]
fn of_each_usage_and_selector_the_strongest_digest_counts() {
    let root = Authority::root("Root").der;
    let records = [
        digest(3, 1, SHA_256, 1),
        digest(3, 1, SHA_512, 2),
        record(&root, 3, 1, FULL),
        digest(3, 0, SHA_256, 3),
        digest(2, 1, SHA_256, 4),
        // A weaker record is kept if the stronger one is not usable.
        Tlsa { usage: 2, selector: 1, matching: SHA_512, data: vec![5; 63] },
        digest(0, 0, SHA_512, 6),
    ];
    let [_, strong, full, certificate, anchor, ..] = &records;
    assert_eq!(usable(&records), [strong, full, certificate, anchor]);
}

#[test]
fn an_end_entity_needs_neither_name_nor_date() {
    let root = Authority::root("Root");
    let chain = [root.server("other.example"), root.der.clone()];
    for (selector, matching) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
        let records = [digest(3, 1, SHA_256, 1), record(&chain[0], 3, selector, matching)];
        let expected = usable(&records).contains(&&records[1]);
        assert!(expected, "{selector} {matching}");
        assert_eq!(matches(&records, &chain, &[MX], LATER), records[1], "RFC 7672 §3.1.1");
        assert_eq!(matches(&records, &chain[..1], &[], LATER), records[1]);
    }
}

#[test]
fn an_end_entity_is_the_first_certificate() {
    let root = Authority::root("Root");
    let chain = [root.server(MX), root.der.clone()];
    let why = mismatch(&[record(&root.der, 3, 1, 1)], &chain, &[MX], AT);
    assert!(why.contains(&record(&chain[0], 3, 1, 1).to_string()), "{why}");
    let why = mismatch(&[record(&root.der, 3, 0, 0)], &chain, &[MX], AT);
    assert!(why.contains(&record(&chain[0], 3, 0, 1).to_string()), "a digest, where the record has all of it: {why}");
}

#[test]
fn a_weaker_digest_does_not_help() {
    let leaf = Authority::root("Root").server(MX);
    let records = [record(&leaf, 3, 1, 1), digest(3, 1, SHA_512, 7)];
    mismatch(&records, &[leaf], &[MX], AT);
}

/// A root, an authority below it, and a server certificate issued by that authority.
fn hierarchy(server: &CertificateParams) -> (Authority, Authority, Vec<u8>) {
    let root = Authority::root("Root");
    let middle = root.below(authority("Middle"));
    let leaf = middle.issue(server, &KeyPair::generate().expect("a key"));
    (root, middle, leaf)
}

#[test]
fn a_trust_anchor_of_the_chain_needs_name_and_date() {
    let (root, middle, leaf) = hierarchy(&server(&["*.example.net"]));
    let chains = [
        vec![leaf.clone(), middle.der.clone(), root.der.clone()],
        // TLS does not guarantee an order, and servers send more certificates than needed.
        vec![leaf.clone(), root.der.clone(), Authority::root("Stranger").der, middle.der.clone()],
    ];
    for (anchor, chain) in
        [&root.der, &middle.der].into_iter().flat_map(|anchor| chains.iter().map(move |chain| (anchor, chain)))
    {
        for (selector, matching) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            let record = record(anchor, 2, selector, matching);
            let records = [record.clone()];
            assert_eq!(matches(&records, chain, &[MX], AT), record);
            assert_eq!(matches(&records, chain, &["example.org", "MX.example.net."], AT), record);
            let why = mismatch(&records, chain, &["example.net", "a.mx.example.net"], AT);
            assert!(why.contains("is for *.example.net, not for any of example.net, a.mx.example.net"), "{why}");
            let why = mismatch(&records, chain, &[MX], LATER);
            assert!(why.contains("valid from 2026-01-01 to 2027-01-01"), "{why}");
            not_observable(&records, chain, &[], AT);
        }
    }
}

#[test]
fn a_digest_demands_that_the_anchor_is_sent_and_an_anchor_in_full_does_not() {
    let (root, middle, leaf) = hierarchy(&server(&[MX]));
    let chain = [leaf.clone(), middle.der.clone()];
    for selector in [CERTIFICATE, PUBLIC_KEY] {
        let full = record(&root.der, 2, selector, FULL);
        assert_eq!(matches(from_ref(&full), &chain, &[MX], AT), full, "RFC 7671 §5.2.1");
        let why = mismatch(&[full], &chain[..1], &[MX], AT);
        assert!(why.contains("none of 1 certificates"), "{why}");
        for matching in [SHA_256, SHA_512] {
            // RFC 7671 §5.2.2: a digest is not a key, so it cannot verify a signature.
            let why = mismatch(&[record(&root.der, 2, selector, matching)], &chain, &[MX], AT);
            assert!(why.contains(&record(&middle.der, 2, selector, matching).to_string()), "{why}");
        }
        let stranger = record(&Authority::root("Root").der, 2, selector, FULL);
        mismatch(&[stranger], &chain, &[MX], AT);
    }
}

#[test]
fn an_anchor_that_signed_nothing_does_not_help() {
    let (root, middle, _) = hierarchy(&server(&[MX]));
    let anchor = [record(&root.der, 2, 1, 1)];
    // The true chain after a certificate that a stranger of the same name signed, and after one that signed itself.
    let stranger = Authority::root("Stranger").below(authority("Middle"));
    let own = server(&[MX]).self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").der().to_vec();
    for leaf in [stranger.server(MX), own] {
        let why = mismatch(&anchor, &[leaf, middle.der.clone(), root.der.clone()], &[MX], AT);
        assert!(why.contains("none of 3 certificates, of which the last is 2 1 1 "), "{why}");
    }
}

#[test]
fn who_may_not_issue_leads_nowhere() {
    let root = Authority::root("Root");
    let mut not_to_sign = authority("Middle");
    not_to_sign.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let mut explicit = authority("Middle");
    explicit.is_ca = IsCa::ExplicitNoCa;
    for params in [server(&["customer.example"]), not_to_sign, explicit] {
        let middle = root.below(params);
        let chain = [middle.server(MX), middle.der.clone(), root.der.clone()];
        mismatch(&[record(&root.der, 2, 1, 1)], &chain, &[MX], AT);
        let own = record(&middle.der, 2, 1, 1);
        assert_eq!(matches(from_ref(&own), &chain, &[MX], AT), own, "the owner of the domain chose it");
    }
    let mut last = authority("Last");
    last.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let last = root.below(last);
    let below = last.below(authority("Below"));
    let records = [record(&root.der, 2, 1, 1)];
    matches(&records, &[last.server(MX), last.der.clone(), root.der.clone()], &[MX], AT);
    mismatch(&records, &[below.server(MX), below.der.clone(), last.der.clone(), root.der.clone()], &[MX], AT);
}

#[test]
fn an_expired_authority_is_no_way() {
    let root = Authority::root("Root");
    let mut old = authority("Middle");
    (old.not_before, old.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let old = root.below(old);
    let why = mismatch(&[record(&root.der, 2, 0, 1)], &[old.server(MX), old.der.clone(), root.der.clone()], &[MX], AT);
    assert!(why.contains("out of date"), "{why}");
}

#[test]
fn a_certificate_that_is_itself_the_anchor_is_accepted() {
    let own = server(&[MX]).self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").der().to_vec();
    let record = record(&own, 2, 1, 1);
    assert_eq!(matches(from_ref(&record), from_ref(&own), &[MX], AT), record);
    mismatch(from_ref(&record), from_ref(&own), &["other.example"], AT);
    mismatch(&[record], &[own], &[MX], LATER);
}

#[test]
fn what_cannot_be_checked_is_not_observable() {
    let (root, middle, leaf) = hierarchy(&server(&[MX]));
    let records = [record(&root.der, 2, 1, 1), digest(3, 1, 1, 9)];
    let chain = [leaf, middle.der.clone(), root.der.clone()];
    assert!(not_observable(&[], &chain, &[MX], AT).contains("none of the 0 TLSA records is usable"));
    assert!(not_observable(&[digest(1, 1, 1, 1)], &chain, &[MX], AT).contains("none of the 1 TLSA records is usable"));
    assert!(not_observable(&records, &[], &[MX], AT).contains("was not seen"));
    assert!(not_observable(&records, &[b"no".to_vec()], &[MX], AT).contains("cannot be read"));
    let many: Vec<_> = (0..=32).map(|octet| digest(3, 1, 1, octet)).collect();
    assert!(not_observable(&many, &chain, &[MX], AT).contains("at most 32"));
    let why = not_observable(&records, &[with_sha_512(&chain[0]), chain[1].clone(), chain[2].clone()], &[MX], AT);
    assert!(why.contains("not checked"), "{why}");
    let why = not_observable(&records, &[chain[0].clone(), b"no".to_vec(), chain[2].clone()], &[MX], AT);
    assert!(why.contains("1 of the 3 certificates cannot be read"), "{why}");
    assert_eq!(matches(&records, &chain, &[MX], AT), records[0], "one record of several is enough");
}

#[test]
fn both_usages_are_told_of() {
    let root = Authority::root("Root");
    let chain = [root.server(MX), root.der.clone()];
    let why = mismatch(&[digest(2, 1, 1, 1), digest(3, 0, 2, 1)], &chain, &[MX], AT);
    for found in [record(&chain[0], 3, 0, 2), record(&chain[1], 2, 1, 1)] {
        assert!(why.contains(&found.to_string()), "{why}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        usage: u8, selector: u8, matching: u8, data in proptest::collection::vec(any::<u8>(), 1..80),
    ) {
        let record = Tlsa { usage, selector, matching, data };
        prop_assert_eq!(record.to_string().parse(), Ok(record));
    }

    #[test]
    fn whatever_comes_is_compared(
        octets in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        usage in 2..=3_u8, selector in 0..=1_u8, matching in 0..=2_u8, text in "[0-9a-f +]{0,20}",
    ) {
        static CHAIN: std::sync::LazyLock<[Vec<u8>; 3]> = std::sync::LazyLock::new(|| {
            let (root, middle, leaf) = hierarchy(&server(&[MX]));
            [leaf, middle.der.clone(), root.der.clone()]
        });
        let mut chain = CHAIN.clone();
        let records = [record(&chain[usize::from(3 - usage)], usage, selector, matching)];
        for (place, octet) in octets {
            let place = place.index(chain.iter().map(Vec::len).sum());
            let (mut which, mut at) = (0, place);
            while at >= chain[which].len() {
                at -= chain[which].len();
                which += 1;
            }
            chain[which][at] = octet;
        }
        // Every change in a certificate changes what is signed: only the true chain matches.
        match compare(&records, &chain, &[MX], AT) {
            Comparison::Matches(record) => prop_assert!(record == records[0]),
            Comparison::Mismatch(why) | Comparison::NotObservable(why) => prop_assert!(chain != *CHAIN && !why.is_empty()),
        }
        let _ = text.parse::<Tlsa>();
    }
}
