//! The same bytes as TXT records and as the body of an MTA-STS policy: an error or a result that the grammar allows,
//! within a memory bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtpwatch_core::policy::published::sts::{MAX_MX, StsError, StsPolicy, StsRecord};
use smtpwatch_fuzz::{
    allocation::{Counting, Watch},
    shown,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that one input may allocate: patterns of two bytes, each stored in a string.
const ALLOCATED: usize = 256 * 1024;
/// Separator of two records; it does not occur in text.
const BETWEEN: u8 = 0xff;

fuzz_target!(|input: &[u8]| {
    let watch = Watch::start();
    record(input);
    policy(input);
    assert!(watch.peak() <= ALLOCATED, "{} octets allocated", watch.peak());
});

fn record(input: &[u8]) {
    let records: Vec<_> = input.split(|octet| *octet == BETWEEN).map(<[u8]>::to_vec).collect();
    match StsRecord::find(&records) {
        Ok(Some(record)) => {
            assert!(
                (1..=32).contains(&record.id.len()) && record.id.bytes().all(|octet| octet.is_ascii_alphanumeric())
            );
            let again = format!("v=STSv1; id={}", record.id).into_bytes();
            assert_eq!(StsRecord::find(&[again]), Ok(Some(record)));
        }
        Ok(None) => assert!(records.iter().all(|record| !record.starts_with(b"v=STSv1;"))),
        Err(error) => shown(&error),
    }
}

fn policy(body: &[u8]) {
    match StsPolicy::parse(body, "1") {
        Ok(policy) => {
            assert!(policy.mx.len() <= MAX_MX && policy.max_age.as_secs() <= 31_557_600);
            for pattern in &policy.mx {
                let (host, parent) = match pattern.strip_prefix("*.") {
                    Some(suffix) => (format!("a.{suffix}"), Some(suffix)),
                    None => (pattern.clone(), None),
                };
                assert!(policy.matches(&host) && policy.matches(&format!("{}.", host.to_ascii_uppercase())));
                assert!(parent.is_none_or(|parent| policy.mx.len() > 1 || !policy.matches(parent)));
            }
            let lines = policy.lines();
            for end in ["\n", "\r\n"] {
                assert_eq!(StsPolicy::parse(lines.join(end).as_bytes(), "1").as_ref(), Ok(&policy));
            }
        }
        Err(error @ StsError::TooLong(_)) => unreachable!("{error}"),
        Err(error) => shown(&error),
    }
}
