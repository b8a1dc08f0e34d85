//! Evaluates what a DNS reply proves: its records, its aliases, and that there are no other records (RFC 4035 §5.4,
//! RFC 5155 §8, RFC 6840 §4). The entry point is [`Reply::read`], called by [`super::resolver`].
//!
//! The library checks the signature of each record, but its own proofs of denial support neither aliases nor all
//! wildcards: they consider only the name in the question, and only the first signature in arbitrary order. So the
//! library verifies signatures, and this file proves every denial. The lab compares the verdicts with those of
//! Unbound.

use hickory_resolver::proto::{
    dnssec::{
        Nsec3HashAlgorithm, Proof,
        rdata::{DNSSECRData, NSEC, NSEC3, RRSIG},
    },
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};

/// Maximum number of CNAME links that are followed.
pub const MAX_ALIASES: usize = 8;
/// NSEC3 records with more iterations prove nothing (RFC 9276 §3.2; the limit is that of Unbound).
pub const MAX_ITERATIONS: u16 = 150;
/// Maximum number of NSEC3 records per reply that are examined: each comparison of a name costs a hash.
const MAX_RECORDS: usize = 32;

/// A reply of a name server; each record carries the proof given by its signatures.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authorities: Vec<Record>,
    /// The response code.
    pub code: ResponseCode,
    /// TTL of a denial in seconds (RFC 2308 §5).
    pub negative_ttl: Option<u32>,
    /// The question is in a zone that is known to be unsigned, or validation is off.
    pub unsigned: bool,
}

/// The meaning of a reply for a question.
#[derive(Clone, PartialEq, Debug)]
pub enum ReplyContent {
    /// Records of the requested type, and the aliases on the path to them.
    Records(Vec<Record>, Proof),
    /// The name at the end of these aliases has no such records.
    Denied {
        /// The aliases.
        aliases: Vec<Record>,
        /// Proof of the denial, aliases included.
        proof: Proof,
        /// The name itself does not exist.
        no_name: bool,
    },
    /// The aliases lead to a name for which the reply holds no answer, or no proved one.
    Aliased(Vec<Record>, Name, Proof),
    /// The reply is forged or broken, for this reason.
    Bogus(&'static str),
}

impl Reply {
    /// Evaluates the reply for the records of this type at this name.
    #[must_use]
    pub fn read(&self, name: &Name, kind: RecordType) -> ReplyContent {
        let (mut at, mut least, mut aliases) = (name.clone(), Proof::Secure, Vec::new());
        loop {
            let found: Vec<&Record> = self.at(&at, kind).collect();
            if !found.is_empty() {
                least = least.min(self.proof(&at, kind));
                let records: Vec<Record> = aliases.into_iter().chain(found.into_iter().cloned()).collect();
                return if least < Proof::Insecure {
                    ReplyContent::Bogus("the signatures of the records are not right")
                } else {
                    ReplyContent::Records(records, least)
                };
            }
            let Some((alias, target)) = self.alias(&at) else { break };
            if aliases.len() >= MAX_ALIASES {
                return ReplyContent::Bogus("the aliases lead nowhere");
            }
            least = least.min(alias.proof);
            aliases.push(alias);
            at = target;
        }
        if least < Proof::Insecure {
            return ReplyContent::Bogus("the signatures of an alias are not right");
        }
        match self.denied(&at, kind) {
            Some((proof, no_name)) => ReplyContent::Denied { aliases, proof: proof.min(least), no_name },
            None if aliases.is_empty() => ReplyContent::Bogus("that there are no records is not proved"),
            None => ReplyContent::Aliased(aliases, at, least),
        }
    }

    fn at<'a>(&'a self, name: &'a Name, kind: RecordType) -> impl Iterator<Item = &'a Record> {
        self.answers.iter().filter(move |record| record.record_type() == kind && record.name == *name)
    }

    /// The alias of a name, with its proof, and its target: from a CNAME record, or from a DNAME record above the
    /// name. The CNAME record that accompanies a DNAME is unsigned and redundant, so it is synthesised here (RFC 6672
    /// §2.2, §5.3.1).
    fn alias(&self, name: &Name) -> Option<(Record, Name)> {
        let plain = self.at(name, RecordType::CNAME).find_map(|record| match &record.data {
            RData::CNAME(target) => Some((record, target.0.clone())),
            _ => None,
        });
        let proof = plain.as_ref().map(|_| self.proof(name, RecordType::CNAME));
        if proof != Some(Proof::Secure)
            && let Some(redirected) = self.redirected(name)
        {
            return Some(redirected);
        }
        let ((record, target), proof) = plain.zip(proof)?;
        let mut alias = record.clone();
        alias.proof = proof;
        Some((alias, target))
    }

    /// The alias synthesised from the closest DNAME record above a name.
    fn redirected(&self, name: &Name) -> Option<(Record, Name)> {
        let above = |record: &&Record| {
            record.record_type() == RecordType::DNAME && record.name.zone_of(name) && record.name != *name
        };
        let found = self.answers.iter().filter(above).max_by_key(|record| record.name.iter().count())?;
        let RData::Unknown { rdata, .. } = &found.data else { return None };
        let kept = name.iter().count() - found.name.iter().count();
        let target = Name::from_labels(name.iter().take(kept).chain(labels(&rdata.anything)?)).ok()?;
        let mut alias = Record::from_rdata(name.clone(), found.ttl, RData::CNAME(CNAME(target.clone())));
        alias.proof = self.proof(&found.name, RecordType::DNAME);
        Some((alias, target))
    }

    /// The weakest proof within a set of records; a wildcard expansion also needs a proof that no closer name exists.
    fn proof(&self, name: &Name, kind: RecordType) -> Proof {
        let least = self.at(name, kind).map(|record| record.proof).min().unwrap_or(Proof::Indeterminate);
        if least != Proof::Secure {
            return least;
        }
        let Some(signature) = signature(&self.answers, name, kind) else { return Proof::Bogus };
        let labels = signature.input().num_labels;
        if labels >= name.num_labels() {
            return Proof::Secure;
        }
        self.expanded(name, labels.into())
    }

    /// Whether a wildcard below the last `labels` labels may stand for this name (RFC 4035 §5.3.4, RFC 5155 §8.8).
    fn expanded(&self, name: &Name, labels: usize) -> Proof {
        let encloser = name.trim_to(labels);
        let plain = self
            .nsecs()
            .into_iter()
            .any(|nsec| nsec.covers(name) && !nsec.is_above(name) && nsec.encloser(name) == encloser);
        if plain {
            return Proof::Secure;
        }
        let hashed = self.hashed(name);
        match hashed.covering(&name.trim_to(labels + 1)) {
            Some(_) if hashed.is_excessive() => Proof::Insecure,
            Some(covering) if covering.data.opt_out() => Proof::Insecure,
            Some(_) => Proof::Secure,
            None if hashed.is_excessive() => Proof::Insecure,
            None => Proof::Bogus,
        }
    }

    /// Proof in the authority section that there are no such records at this name, and whether it denies the name
    /// itself.
    fn denied(&self, name: &Name, kind: RecordType) -> Option<(Proof, bool)> {
        let no_name = self.code == ResponseCode::NXDomain;
        let proved = self.denied_plainly(name, kind).or_else(|| self.hashed(name).denied(name, kind, no_name));
        if proved.is_some() {
            return proved;
        }
        // An unsigned zone proves nothing itself; but the absence of signatures was proved, and the name is in that
        // zone.
        let enclosing = |record: &&Record| record.proof == Proof::Insecure && record.name.zone_of(name);
        let silent = self.authorities.is_empty();
        let unsigned = self.authorities.iter().any(|record| enclosing(&record)) || self.unsigned && silent;
        let signed = self.authorities.iter().any(|record| record.proof == Proof::Secure && record.name.zone_of(name));
        // With aliases, and without a statement about the last name, that name needs a query of its own. NS records
        // without SOA are a referral and deny nothing (RFC 2308 §2.2).
        let ends = |record: &Record| record.record_type() == RecordType::SOA && record.name.zone_of(name);
        let known = self.answers.is_empty() || self.authorities.iter().any(ends) || no_name;
        (unsigned && !signed && known).then_some((Proof::Insecure, no_name))
    }

    /// Denial by NSEC (RFC 4035 §5.4).
    fn denied_plainly(&self, name: &Name, kind: RecordType) -> Option<(Proof, bool)> {
        let nsecs = self.nsecs();
        let lacks = |at: &Name| {
            nsecs.iter().any(|nsec| nsec.owner == at && nsec.zone.zone_of(at) && lacks(nsec.data.type_set(), kind))
        };
        // An existing name is not denied, regardless of other records; the same holds for a name with names below it.
        if nsecs.iter().any(|nsec| nsec.owner == name) {
            return lacks(name).then_some((Proof::Secure, false));
        }
        let covering = nsecs.iter().find(|nsec| nsec.covers(name))?;
        if covering.is_above(name) {
            return Some((Proof::Secure, false));
        }
        let wildcard = covering.encloser(name).prepend_label("*").ok()?;
        if lacks(&wildcard) {
            return Some((Proof::Secure, false));
        }
        let none = nsecs.iter().find(|nsec| nsec.covers(&wildcard))?;
        if none.is_above(&wildcard) {
            return Some((Proof::Secure, false));
        }
        (self.code == ResponseCode::NXDomain).then_some((Proof::Secure, true))
    }

    fn nsecs(&self) -> Vec<Nsec<'_>> {
        self.authorities
            .iter()
            .filter_map(|record| match &record.data {
                RData::DNSSEC(DNSSECRData::NSEC(data)) if record.proof == Proof::Secure => {
                    let zone = &signature(&self.authorities, &record.name, RecordType::NSEC)?.input().signer_name;
                    Some(Nsec { owner: &record.name, zone, data })
                }
                _ => None,
            })
            .collect()
    }

    /// The NSEC3 records of the closest enclosing zone, as far as they have the parameters of the first one.
    fn hashed(&self, name: &Name) -> Hashed<'_> {
        let mut records: Vec<Nsec3<'_>> = Vec::new();
        let mut authorities: Vec<&Record> = self.authorities.iter().collect();
        authorities.sort_by_key(|record| std::cmp::Reverse(record.name.num_labels()));
        for record in authorities {
            let RData::DNSSEC(DNSSECRData::NSEC3(data)) = &record.data else { continue };
            let zone = record.name.base_name();
            let is_usable = record.proof == Proof::Secure && data.flags() <= 1 && zone.zone_of(name);
            let Some(hash) = record.name.iter().next().and_then(base32).filter(|_| is_usable) else { continue };
            let alike = records.first().is_none_or(|first| {
                first.zone == zone
                    && first.data.salt() == data.salt()
                    && first.data.iterations() == data.iterations()
                    && first.data.hash_algorithm() == data.hash_algorithm()
            });
            if alike && records.len() < MAX_RECORDS {
                records.push(Nsec3 { hash, zone, data });
            }
        }
        Hashed(records)
    }
}

/// The labels of an uncompressed name that is the whole data of a record (RFC 6672 §2.5).
fn labels(mut data: &[u8]) -> Option<Vec<&[u8]>> {
    let mut labels = Vec::new();
    loop {
        let (length, rest) = data.split_first()?;
        match *length {
            0 => return rest.is_empty().then_some(labels),
            length @ 1..=63 => {
                let (label, rest) = rest.split_at_checked(length.into())?;
                labels.push(label);
                data = rest;
            }
            _ => return None,
        }
    }
}

/// The signature that proved a set of records.
fn signature<'a>(section: &'a [Record], name: &Name, kind: RecordType) -> Option<&'a RRSIG> {
    section.iter().find_map(|record| match &record.data {
        RData::DNSSEC(DNSSECRData::RRSIG(signature))
            if record.proof == Proof::Secure && record.name == *name && signature.input().type_covered == kind =>
        {
            Some(signature)
        }
        _ => None,
    })
}

/// Whether the types at a name deny this type. The parent's NSEC types at a delegation prove nothing about the child
/// (RFC 6840 §4.1).
fn lacks(types: &hickory_resolver::proto::rr::RecordTypeSet, kind: RecordType) -> bool {
    !types.contains(kind) && !types.contains(RecordType::CNAME) && !is_delegation(types)
}

fn is_delegation(types: &hickory_resolver::proto::rr::RecordTypeSet) -> bool {
    types.contains(RecordType::NS) && !types.contains(RecordType::SOA)
}

/// One NSEC record.
struct Nsec<'a> {
    owner: &'a Name,
    zone: &'a Name,
    data: &'a NSEC,
}

impl Nsec<'_> {
    /// Whether the name is between the owner and the next name.
    fn covers(&self, name: &Name) -> bool {
        let next = self.data.next_domain_name();
        let types = self.data.type_set();
        // Names below a delegation or a DNAME record belong to another zone.
        let cut = (is_delegation(types) || types.contains(RecordType::DNAME)) && self.owner.zone_of(name);
        let last = next <= self.owner;
        !cut && self.zone.zone_of(name) && self.owner < name && (last || name < next)
    }

    /// Whether the next name is below this one, which then exists without records.
    fn is_above(&self, name: &Name) -> bool {
        let next = self.data.next_domain_name();
        name.zone_of(next) && name != next
    }

    /// The closest existing ancestor of the covered name.
    fn encloser(&self, name: &Name) -> Name {
        let (owner, next) = (common(self.owner, name), common(self.data.next_domain_name(), name));
        if owner.num_labels() >= next.num_labels() { owner } else { next }
    }
}

fn common(one: &Name, other: &Name) -> Name {
    let mut name = one.clone();
    while !name.zone_of(other) {
        name = name.base_name();
    }
    name
}

/// One NSEC3 record.
struct Nsec3<'a> {
    hash: Vec<u8>,
    zone: Name,
    data: &'a NSEC3,
}

/// The NSEC3 records of a zone.
struct Hashed<'a>(Vec<Nsec3<'a>>);

impl Hashed<'_> {
    /// Whether the iterations exceed the limit: the records prove nothing, and no hash is computed.
    fn is_excessive(&self) -> bool {
        self.0.first().is_some_and(|first| first.data.iterations() > MAX_ITERATIONS)
    }

    fn hash(&self, name: &Name) -> Option<Vec<u8>> {
        let first = self.0.first().filter(|first| first.data.iterations() <= MAX_ITERATIONS)?;
        let hash = Nsec3HashAlgorithm::SHA1.hash(first.data.salt(), name, first.data.iterations()).ok()?;
        Some(hash.as_ref().to_vec())
    }

    fn matching(&self, name: &Name) -> Option<&Nsec3<'_>> {
        let hash = self.hash(name)?;
        self.0.iter().find(|record| record.hash == hash)
    }

    fn covering(&self, name: &Name) -> Option<&Nsec3<'_>> {
        let hash = self.hash(name)?;
        self.0.iter().find(|record| {
            let next = record.data.next_hashed_owner_name();
            let (after, before) = (record.hash < hash, hash.as_slice() < next);
            if record.hash.as_slice() < next { after && before } else { after || before }
        })
    }

    /// Denial by NSEC3, RFC 5155 §8.4 to §8.7.
    fn denied(&self, name: &Name, kind: RecordType, no_name: bool) -> Option<(Proof, bool)> {
        let zone = self.0.first()?.zone.clone();
        if self.is_excessive() {
            return Some((Proof::Insecure, no_name));
        }
        if let Some(record) = self.matching(name) {
            return lacks(record.data.type_set(), kind).then_some((Proof::Secure, false));
        }
        let mut next = name.clone();
        let encloser = loop {
            let above = next.base_name();
            if !zone.zone_of(&above) {
                return None;
            }
            if let Some(record) = self.matching(&above) {
                let types = record.data.type_set();
                if is_delegation(types) || types.contains(RecordType::DNAME) {
                    return None;
                }
                break above;
            }
            next = above;
        };
        let covering = self.covering(&next)?;
        // With opt-out, unsigned names may exist in the range.
        let proof = if covering.data.opt_out() { Proof::Insecure } else { Proof::Secure };
        let wildcard = encloser.prepend_label("*").ok()?;
        if let Some(record) = self.matching(&wildcard) {
            return lacks(record.data.type_set(), kind).then_some((proof, false));
        }
        if self.covering(&wildcard).is_some() && no_name {
            return Some((proof, true));
        }
        (proof == Proof::Insecure).then_some((proof, no_name))
    }
}

/// A hash from the label of an NSEC3 record (base32 with the extended hex alphabet, RFC 4648 §7).
fn base32(label: &[u8]) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in label {
        let value = char::from(*digit).to_digit(32)?;
        (bits, count) = (bits << 5 | value, count + 5);
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}
