//! Arbitrary bytes as a STARTTLS-Everywhere list: a short error, or policies of normalised domains, within a memory
//! bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smtpwatch_core::policy::published::{
    domain_name,
    list::{MAX_MXS, StarttlsList},
};
use smtpwatch_fuzz::{
    allocation::{Counting, Watch},
    shown,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that one input may allocate: two bytes of JSON may be a value, and an alias is copied for each domain.
const ALLOCATED: usize = 4 * 1024 * 1024;

fuzz_target!(|input: &[u8]| {
    let watch = Watch::start();
    match StarttlsList::parse(input) {
        Ok(list) => judge(&list),
        Err(error) => shown(&error),
    }
    assert!(watch.peak() <= ALLOCATED, "{} octets allocated", watch.peak());
});

fn judge(list: &StarttlsList) {
    assert!(list.is_expired(list.expires));
    for (domain, policy) in &list.policies {
        assert_eq!(domain_name(domain).as_ref(), Some(domain));
        assert_eq!(list.get(domain), Some(policy));
        assert!((1..=MAX_MXS).contains(&policy.mxs.len()));
        for pattern in &policy.mxs {
            let host = if pattern.starts_with('.') { format!("a{pattern}") } else { pattern.clone() };
            assert!(policy.matches(&host) && policy.matches(&host.to_ascii_uppercase()), "{pattern}");
        }
    }
}
