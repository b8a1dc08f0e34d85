//! The TXT record `_smtp._tls.<domain>` (RFC 8460 §3): where a domain requests its reports. [`targets`] parses the
//! records that the sender thread looks up.

/// Maximum number of targets per record; further ones are ignored.
pub const TARGETS: usize = 4;
/// Maximum size of a record in bytes; a longer one is rejected.
pub const RECORD_BYTES: usize = 4_096;

/// The destination of a report.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Target {
    /// A mail address, percent-decoded.
    Mail(String),
    /// An HTTPS URL.
    Https(String),
}

/// The form of the record.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mail(address) => write!(f, "mailto:{address}"),
            Self::Https(url) => f.write_str(url),
        }
    }
}

/// Why a domain gets no report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// No record begins with `v=TLSRPTv1;`.
    #[error("the domain requests no reports: it has no TXT record that begins with v=TLSRPTv1;")]
    Absent,
    /// There are several records, and RFC 8460 §3 forbids to use any of them.
    #[error("the domain has more than one TXT record that begins with v=TLSRPTv1;")]
    Several,
    /// The record exceeds the maximum size.
    #[error("its record is longer than {RECORD_BYTES} bytes")]
    TooLong,
    /// The record has no `rua` field with a supported URI.
    #[error("its record has no rua with a mailto: or https: address")]
    NoTarget,
}

/// The targets of a domain, in order, from its TXT records, each with its strings joined. Invalid parts of a record,
/// such as an address without a scheme, are skipped: they are common in practice.
///
/// # Errors
///
/// See [`RecordError`].
pub fn targets(records: &[Vec<u8>]) -> Result<Vec<Target>, RecordError> {
    let mut ours = records.iter().filter(|record| is_ours(record));
    let record = match (ours.next(), ours.next()) {
        (None, _) => return Err(RecordError::Absent),
        (Some(_), Some(_)) => return Err(RecordError::Several),
        (Some(record), None) => record,
    };
    if record.len() > RECORD_BYTES {
        return Err(RecordError::TooLong);
    }
    let text = String::from_utf8_lossy(record);
    let mut found = Vec::new();
    // `rua` may occur more than once; other fields are extensions. `,`, `;` and `!` in an address are percent-encoded.
    for field in text.split(';').skip(1) {
        let Some((name, value)) = field.split_once('=') else { continue };
        if name.trim() != "rua" {
            continue;
        }
        for target in value.split(',').filter_map(target) {
            if found.len() < TARGETS && !found.contains(&target) {
                found.push(target);
            }
        }
    }
    if found.is_empty() { Err(RecordError::NoTarget) } else { Ok(found) }
}

/// Whether a TXT record begins with the version; others are discarded (RFC 8460 §3). White space before the semicolon
/// is allowed.
fn is_ours(record: &[u8]) -> bool {
    record.strip_prefix(b"v=TLSRPTv1").is_some_and(|rest| rest.trim_ascii_start().starts_with(b";"))
}

fn target(uri: &str) -> Option<Target> {
    let uri = uri.trim();
    let (scheme, rest) = uri.split_once(':')?;
    // RFC 3986 §2: a URI is printable ASCII.
    if rest.is_empty() || !uri.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    match scheme.to_ascii_lowercase().as_str() {
        // Header fields in a mailto URI (RFC 6068) are ignored.
        "mailto" => percent_decoded(rest.split('?').next()?).map(Target::Mail),
        "https" if rest.starts_with("//") => Some(Target::Https(format!("https:{rest}"))),
        _ => None,
    }
}

/// Decodes percent-encoding; `None` if it is invalid or the result is not printable ASCII.
fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        };
        decoded.push(Some(byte).filter(u8::is_ascii_graphic).map(char::from)?);
    }
    decoded.contains('@').then_some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(records: &[&str]) -> Result<Vec<String>, RecordError> {
        let records: Vec<_> = records.iter().map(|record| record.as_bytes().to_vec()).collect();
        targets(&records).map(|targets| targets.iter().map(Target::to_string).collect())
    }

    #[test]
    fn records_of_the_rfc_and_of_the_field() {
        for (records, expected) in [
            (&["v=TLSRPTv1;rua=mailto:reports@example.com"][..], &["mailto:reports@example.com"][..]),
            (
                &["v=TLSRPTv1; rua=https://reporting.example.com/v1/tlsrpt"],
                &["https://reporting.example.com/v1/tlsrpt"],
            ),
            (
                &["v=TLSRPTv1; rua=mailto:a@example.com , HTTPS://b.example/ ;"],
                &["mailto:a@example.com", "https://b.example/"],
            ),
            (&["v=spf1 -all", "v=TLSRPTv1 ;rua=mailto:a@example.com;"], &["mailto:a@example.com"]),
            (
                &["v=TLSRPTv1;x=1;rua=mailto:a@x.example;rua=mailto:b@x.example"],
                &["mailto:a@x.example", "mailto:b@x.example"],
            ),
            (&["v=TLSRPTv1;rua=postmaster@example.it,mailto:b@x.example"], &["mailto:b@x.example"]),
            (&["v=TLSRPTv1;rua=mailto:a%2Cb%21@x.example?cc=c@x.example"], &["mailto:a,b!@x.example"]),
            (&["v=TLSRPTv1;rua=ftp://x.example/,http://x.example/,mailto:b@x.example"], &["mailto:b@x.example"]),
            (&["v=TLSRPTv1;rua=mailto:a@x.example,mailto:a@x.example"], &["mailto:a@x.example"]),
        ] {
            assert_eq!(read(records).expect("targets"), expected, "{records:?}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let two = ["v=TLSRPTv1;rua=mailto:a@x.example", "v=TLSRPTv1;rua=mailto:b@x.example"];
        let long = format!("v=TLSRPTv1;rua=mailto:{}@x.example", "a".repeat(RECORD_BYTES));
        for (records, expected) in [
            (&[][..], RecordError::Absent),
            (&["v=TLSRPTv10;rua=mailto:a@x.example"], RecordError::Absent),
            (&["V=TLSRPTv1;rua=mailto:a@x.example"], RecordError::Absent),
            (&[" v=TLSRPTv1;rua=mailto:a@x.example"], RecordError::Absent),
            (&["v=TLSRPTv1"], RecordError::Absent),
            (&two, RecordError::Several),
            (&[&long], RecordError::TooLong),
            (&["v=TLSRPTv1;"], RecordError::NoTarget),
            (&["v=TLSRPTv1;rua="], RecordError::NoTarget),
            (&["v=TLSRPTv1;rua=mailto:"], RecordError::NoTarget),
            (&["v=TLSRPTv1;rua=mailto:nobody"], RecordError::NoTarget),
            (&["v=TLSRPTv1;rua=postmaster@example.it"], RecordError::NoTarget),
            (&["v=TLSRPTv1;rua=mailto:a%0d%0aRCPT@x.example"], RecordError::NoTarget),
            (&["v=TLSRPTv1;rua=mailto:a%4@x.example"], RecordError::NoTarget),
        ] {
            assert_eq!(read(records), Err(expected), "{records:?}");
        }
    }

    #[test]
    fn not_more_targets_than_the_bound() {
        let rua: Vec<_> = (0..100).map(|n| format!("mailto:a{n}@x.example")).collect();
        assert_eq!(read(&[&format!("v=TLSRPTv1;rua={}", rua.join(","))]).expect("targets").len(), TARGETS);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let record = [&b"v=TLSRPTv1;rua=mailto:"[..], &tail].concat();
            for target in targets(&[record]).unwrap_or_default() {
                prop_assert!(target.to_string().bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
