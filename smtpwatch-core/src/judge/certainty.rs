//! Limits the severity of claims from history by their certainty. The rate shows that the peer behaved differently
//! before. [`limit`] judges whether it is the same peer, and whether it always behaved that way (docs/threats.md FP-1,
//! FP-13, FP-21).

use super::{Claim, Limit, RuleInput};
use crate::{
    Role,
    finding::{ExpectedSource, Kind, Outcome},
    policy::history::HistoryRecord,
};

/// Limits the severity of a claim that rests on history alone if that history is uncertain.
pub(super) fn limit(input: &RuleInput<'_>, claim: &mut Claim) {
    // A credential in cleartext is lost to any peer.
    if !claim.expected.is_from(ExpectedSource::History) || claim.outcome >= Outcome::Credential {
        return;
    }
    let about_use = input.role == Role::Server || matches!(claim.kind, Kind::StarttlsUnused | Kind::DowngradeRetry);
    let record = if about_use { input.expectation.uses } else { input.expectation.offers.map(|(_, record)| record) };
    let Some(record) = record else { return };
    let rate = if about_use { record.used } else { record.offered };
    if rate.is_wavering() {
        claim.add_limit(Limit::Interrupted);
        claim.indicators.push(format!(
            "history of this peer is short and was interrupted {} times: a farm whose members differ looks like this (FP-1)",
            rate.returns
        ));
    }
    if input.role == Role::Server
        && let Some(names) = names_of_others(input, record)
    {
        let limit = if rate.wear.established { Limit::OtherNameOfEstablished } else { Limit::OtherName };
        claim.add_limit(limit);
        let name = input.session.client_name.as_deref().unwrap_or_default();
        claim.indicators.push(format!(
            "the client calls itself {name:?}; TLS from this address was used by {names}: another client behind the same address, or a \
             name that was rewritten (FP-21)"
        ));
    }
    if input.session.proxy_header && input.role == Role::Server {
        let address = input.peer;
        claim.indicators.push(format!(
            "a PROXY header came from {address}, which is not in trusted_proxies: the client is taken for that address (FP-13)"
        ));
    }
}

/// The names of the clients at this address that used TLS, if the present client has none of them.
fn names_of_others(input: &RuleInput<'_>, record: &HistoryRecord) -> Option<String> {
    let name = input.session.client_name.as_deref().unwrap_or_default();
    let mut known: Vec<_> = record.names.iter().map(|known| &*known.name).collect();
    if known.is_empty() {
        // A record of a version that stored only one name.
        known.extend(record.profile.as_deref().map(|profile| &*profile.client).filter(|name| !name.is_empty()));
    }
    let same = |known: &&str| known.eq_ignore_ascii_case(name.trim_end_matches('.'));
    (!known.is_empty() && !known.iter().any(same)).then(|| known.join(", "))
}
