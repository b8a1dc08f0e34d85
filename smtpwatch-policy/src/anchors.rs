//! Parser of the DNSSEC trust anchors in the configuration: records in zone-file form, inline or in a separate file.
//! [`Anchors`] gives the resolver its trusted keys.

use std::path::Path;

use hickory_resolver::proto::{
    dnssec::{
        DigestType, PublicKey as _, TrustAnchors, Verifier as _,
        rdata::{DNSKEY, DNSSECRData, DS, RRSIG},
    },
    rr::{LowerName, Name, RData, Record, RecordType},
    serialize::txt::trust_anchor::{Entry, Parser},
};
use smtpwatch_core::Timestamp;
use smtpwatch_system::whole_file;

/// Maximum size of an anchor file in bytes: the root's anchors take less than one KiB.
const MAX_FILE: u64 = 64 * 1024;

/// Trusted keys, and digests of trusted keys.
#[derive(Clone)]
pub struct Anchors {
    records: Vec<(Name, Anchor)>,
}

#[derive(Clone)]
enum Anchor {
    Key(DNSKEY),
    Digest(DS),
}

/// Why anchors are unusable.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The file cannot be read.
    #[error(
        "[policy] trust_anchor: cannot read {path}: {source}: name a readable file, or write the records themselves"
    )]
    Read {
        /// Path of the file.
        path: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// A line is not an anchor.
    #[error(
        "[policy] trust_anchor: {line:?}: {why}: write DNSKEY or DS records in zone-file form, such as \
         \". IN DS 20326 8 2 E06D44B8…\""
    )]
    Line {
        /// The line.
        line: String,
        /// The error in it.
        why: String,
    },
    /// The value holds no anchor.
    #[error("[policy] trust_anchor: no DNSKEY or DS record in it; without the key the root's anchors hold")]
    Empty,
}

impl Anchors {
    /// Reads the value of `trust_anchor`: records, or the path of a file with records. `None`: it is empty, and the
    /// built-in anchors of the root zone apply.
    ///
    /// # Errors
    ///
    /// See [`AnchorError`].
    pub fn load(value: &str) -> Result<Option<Self>, AnchorError> {
        if value.trim().is_empty() {
            return Ok(None);
        }
        // A record has blanks between its fields; a path rarely has, and then no record type.
        if value.split_whitespace().any(|word| word.eq_ignore_ascii_case("DS") || word.eq_ignore_ascii_case("DNSKEY")) {
            return Self::parse(value).map(Some);
        }
        let failed = |source| AnchorError::Read { path: value.to_owned(), source };
        Self::parse(&whole_file::read_text(Path::new(value), MAX_FILE).map_err(failed)?).map(Some)
    }

    fn parse(text: &str) -> Result<Self, AnchorError> {
        let record = |line: String| record(&line).map_err(|why| AnchorError::Line { line, why });
        let records = logical_lines(text).into_iter().map(record).collect::<Result<Vec<_>, _>>()?;
        if records.is_empty() { Err(AnchorError::Empty) } else { Ok(Self { records }) }
    }

    /// The zones with an anchor, without duplicates.
    #[must_use]
    pub fn zones(&self) -> Vec<Name> {
        let mut zones: Vec<Name> = self.records.iter().map(|(zone, _)| zone.clone()).collect();
        zones.sort();
        zones.dedup();
        zones
    }

    /// The keys to trust. A DS record is not a key, and below the root the library requires each key of a zone to be
    /// trusted itself or vouched for by the parent. This function therefore compares the DNSKEY and RRSIG records
    /// that each zone publishes, which are untrusted until then, with the anchors, and adds the keys that a trusted
    /// key has signed (RFC 4035 §5.3).
    #[must_use]
    pub fn keys(&self, published: &[Record], now: Timestamp) -> TrustAnchors {
        let mut keys = TrustAnchors::empty();
        for (zone, anchor) in &self.records {
            if let Anchor::Key(key) = anchor {
                keys.insert_with_name(key.public_key(), LowerName::new(zone));
            }
        }
        for zone in self.zones() {
            let records: Vec<&Record> = published.iter().filter(|record| record.name == zone).collect();
            let trusted: Vec<&DNSKEY> =
                records.iter().filter_map(|record| key(record)).filter(|key| self.trusts(&zone, key)).collect();
            for key in &trusted {
                keys.insert_with_name(key.public_key(), LowerName::new(&zone));
            }
            let signatures =
                records.iter().filter_map(|record| signature(record)).filter(|found| is_current(found, now));
            let set = || records.iter().filter(|record| key(record).is_some()).copied();
            let signed =
                signatures.flat_map(|found| trusted.iter().map(move |key| (found, key))).any(|(found, key)| {
                    records.first().is_some_and(|first| key.verify_rrsig(&zone, first.dns_class, found, set()).is_ok())
                });
            if signed {
                for key in records.iter().filter_map(|record| key(record)).filter(|key| key.zone_key() && !key.revoke())
                {
                    keys.insert_with_name(key.public_key(), LowerName::new(&zone));
                }
            }
        }
        keys
    }

    fn trusts(&self, zone: &Name, key: &DNSKEY) -> bool {
        self.records.iter().filter(|(of, _)| of == zone).any(|(_, anchor)| match anchor {
            Anchor::Key(anchor) => anchor.public_key().public_bytes() == key.public_key().public_bytes(),
            Anchor::Digest(ds) => ds.covers(zone, key).unwrap_or(false),
        })
    }
}

fn key(record: &Record) -> Option<&DNSKEY> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::DNSKEY(key)) => Some(key),
        _ => None,
    }
}

fn signature(record: &Record) -> Option<&RRSIG> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::RRSIG(found)) if found.input().type_covered == RecordType::DNSKEY => Some(found),
        _ => None,
    }
}

/// Whether `now` is within the validity period of a signature, in the serial arithmetic of RFC 4034 §3.1.5.
fn is_current(found: &RRSIG, now: Timestamp) -> bool {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the field holds the time modulo 2^32")]
    let now = now.as_secs() as u32;
    let not_after = |a: u32, b: u32| b.wrapping_sub(a) < 1 << 31;
    not_after(found.input().sig_inception.get(), now) && not_after(now, found.input().sig_expiration.get())
}

/// Parses one record.
fn record(line: &str) -> Result<(Name, Anchor), String> {
    let mut words = line.split_whitespace();
    let mut zone =
        words.next().and_then(|name| Name::from_ascii(name).ok()).ok_or("it begins with no name of a zone")?;
    zone.set_fqdn(true);
    let zone = zone.to_lowercase();
    // TTL and class may precede the type in either order, or be absent (RFC 1035 §5.1).
    let mut words = words
        .skip_while(|word| word.eq_ignore_ascii_case("IN") || word.starts_with(|first: char| first.is_ascii_digit()));
    let kind = words.next().unwrap_or_default().to_ascii_uppercase();
    let data = words.collect::<Vec<_>>().join(" ");
    let anchor = match kind.as_str() {
        "DNSKEY" => {
            let entries =
                Parser::new(format!("{zone} IN DNSKEY {data}\n")).parse().map_err(|error| error.to_string())?;
            match entries.first() {
                Some(Entry::DNSKEY(record)) => Anchor::Key(record.data().clone()),
                _ => return Err("no DNSKEY record".to_owned()),
            }
        }
        "DS" => match RData::try_from_str(RecordType::DS, &data).map_err(|error| error.to_string())? {
            RData::DNSSEC(DNSSECRData::DS(ds)) if is_strong(ds.digest_type()) => Anchor::Digest(ds),
            _ => return Err("its digest must be SHA-256 (2) or SHA-384 (4)".to_owned()),
        },
        _ => return Err("neither DNSKEY nor DS".to_owned()),
    };
    Ok((zone, anchor))
}

/// Digests accepted in an anchor (RFC 8624 §3.3).
fn is_strong(digest: DigestType) -> bool {
    matches!(digest, DigestType::SHA256 | DigestType::SHA384)
}

/// Removes comments and joins each record into one line (RFC 1035 §5.1: parentheses continue a record over line
/// ends).
fn logical_lines(text: &str) -> Vec<String> {
    let (mut lines, mut depth) = (Vec::new(), 0_usize);
    for line in text.lines() {
        let line = line.split(';').next().unwrap_or_default();
        let (begins_inside, plain) = (depth > 0, line.replace(['(', ')'], " "));
        depth = (depth + line.matches('(').count()).saturating_sub(line.matches(')').count());
        match lines.last_mut() {
            Some(open) if begins_inside => {
                *open = format!("{open} {}", plain.trim());
            }
            _ => lines.push(plain.trim().to_owned()),
        }
    }
    lines.retain(|line: &String| !line.is_empty() && !line.starts_with('$'));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The anchor of the root as published by IANA.
    const ROOT: &str = ". 172800 IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D";

    #[test]
    fn records_and_files_are_anchors() {
        let text = format!(
            "; a comment\n{ROOT}\nexample. DS 1 13 2 (\n  {}\n  {} ) ; two lines\n",
            "ab".repeat(16),
            "cd".repeat(16)
        );
        let anchors = Anchors::load(&text).expect("records").expect("not empty");
        assert_eq!(anchors.zones().iter().map(Name::to_string).collect::<Vec<_>>(), [".", "example."]);
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("anchor");
        std::fs::write(&path, ROOT).expect("written");
        assert_eq!(Anchors::load(path.to_str().expect("text")).expect("file").expect("not empty").records.len(), 1);
        assert!(Anchors::load(" ").expect("nothing").is_none());
    }

    #[test]
    fn what_is_no_anchor_says_why() {
        for (text, why) in [
            ("/no/such/file", "cannot read /no/such/file"),
            (". IN DS 20326 8 1 E06D44B80B8F1D39A95C0B0D7C65D08458E88040", "must be SHA-256"),
            (". IN DS 20326 8", "trust_anchor: \". IN DS 20326 8\""),
            (". IN DNSKEY 257 3 8", "trust_anchor: \". IN DNSKEY 257 3 8\""),
            ("; DS", "no DNSKEY or DS record"),
            (". IN A 192.0.2.1 DS", "neither DNSKEY nor DS"),
        ] {
            let error = Anchors::load(text).map(drop).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
