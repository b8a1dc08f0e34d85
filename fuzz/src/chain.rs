//! TLSA records and a certificate chain as bytes that a fuzzer can change.

use smtpwatch_core::policy::published::tlsa::Tlsa;

/// The decoded input.
pub struct Chain {
    /// The TLSA records: of the certificates, or with arbitrary data.
    pub records: Vec<Tlsa>,
    /// The certificates in DER, the server's own first; the last one may be truncated.
    pub certificates: Vec<Vec<u8>>,
    /// Time at which they were presented, seconds since 1970.
    pub at: i64,
}

/// Length of an encoded record, bytes: index of its certificate or length of its data; usage and selector; matching
/// type.
const RECORD: usize = 3;
/// Flag in the first byte of a record whose data is in the input.
const LITERAL: u8 = 0x80;

impl Chain {
    /// Decodes the output of [`encode`], and as much as possible of any other input.
    #[must_use]
    pub fn decode(mut input: &[u8]) -> Self {
        let mut take = |length: usize| {
            let (taken, rest) = input.split_at(length.min(input.len()));
            input = rest;
            taken
        };
        let at = take(4).iter().fold(0, |at, octet| at << 8 | i64::from(*octet));
        let count = take(1).first().map_or(0, |count| count & 7);
        let certificates: Vec<_> = (0..count)
            .map(|_| {
                let length = take(2).iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
                take(length).to_vec()
            })
            .collect();
        let mut records = Vec::new();
        while let [first, kind, matching] = *take(RECORD) {
            let (usage, selector) = (kind >> 4, kind & 15);
            if first >= LITERAL {
                let data = take(usize::from(first - LITERAL)).to_vec();
                records.push(Tlsa { usage, selector, matching, data });
            } else if let Some(certificate) = certificates.get(usize::from(first))
                && let Ok(Some(record)) = Tlsa::of(certificate, usage, selector, matching)
            {
                records.push(record);
            }
        }
        Self { records, certificates, at }
    }
}

/// Encodes certificates and records; a record is the index of its certificate, usage, selector and matching type.
#[must_use]
pub fn encode(at: u32, certificates: &[&[u8]], records: &[(u8, u8, u8, u8)]) -> Vec<u8> {
    let mut octets = at.to_be_bytes().to_vec();
    octets.push(u8::try_from(certificates.len()).unwrap_or(7));
    for certificate in certificates {
        octets.extend(u16::try_from(certificate.len()).unwrap_or(u16::MAX).to_be_bytes());
        octets.extend_from_slice(certificate);
    }
    octets.extend(records.iter().flat_map(|&(of, usage, selector, matching)| [of, usage << 4 | selector, matching]));
    octets
}
