//! Lowers the severity of claims from history by their certainty. The rate shows that the peer behaved differently
//! before. [`weigh`] judges whether it is the same peer, and whether it always behaved that way (docs/threats.md FP-1,
//! FP-13, FP-21).

use super::{Claim, RuleInput};
use crate::{
    Role,
    finding::{Evidence, Kind, Outcome, Severity},
    policy::history::{
        HistoryRecord, Rate,
        surprise::{Prior, one_in},
    },
};

/// Maximum severity if the peer's history is short and was interrupted.
const WAVERING: Severity = Severity::Medium;
/// Maximum severity for a client with an unknown name at an address with long-standing use of TLS.
const ANOTHER_OF_ESTABLISHED: Severity = Severity::Medium;
/// Maximum severity for a client with an unknown name at an address with a short history.
const ANOTHER: Severity = Severity::Low;

/// A regression that is less probable than this without interference may be of high severity.
const HIGH: f64 = 1e-4;
/// A regression that is less probable than this without interference may be of medium severity.
const MEDIUM: f64 = 1e-2;

/// Lowers the severity of a claim that rests on history alone if that history is uncertain.
pub(super) fn weigh(input: &RuleInput<'_>, claim: &mut Claim) {
    // A credential in cleartext is lost to any peer.
    if claim.expected.source != "history" || claim.outcome >= Outcome::Credential {
        return;
    }
    let about_use = input.role == Role::Server || matches!(claim.kind, Kind::StarttlsUnused | Kind::DowngradeRetry);
    let record = if about_use { input.expectation.uses } else { input.expectation.offers.map(|(_, record)| record) };
    let Some(record) = record else { return };
    let (rate, prior) = if about_use {
        (record.used, input.expectation.priors.used)
    } else {
        (record.offered, input.expectation.priors.offered)
    };
    if claim.evidence <= Evidence::Regression {
        by_surprise(input, claim, &rate, prior);
    }
    if rate.is_wavering() {
        claim.severity = claim.severity.min(WAVERING);
        claim.proof.push(format!(
            "history of this peer is short and was interrupted {} times: a farm whose members differ looks like this (FP-1)",
            rate.returns
        ));
    }
    if input.role == Role::Server
        && let Some(names) = names_of_others(input, record)
    {
        let most = if rate.wear.established { ANOTHER_OF_ESTABLISHED } else { ANOTHER };
        claim.severity = claim.severity.min(most);
        let name = input.session.client_name.as_deref().unwrap_or_default();
        claim.proof.push(format!(
            "the client calls itself {name:?}; TLS from this address was used by {names}: another client behind the same address, or a \
             name that was rewritten (FP-21)"
        ));
    }
    if input.session.proxy_header && input.role == Role::Server {
        let address = input.peer;
        claim.proof.push(format!(
            "a PROXY header came from {address}, which is not in trusted_proxies: the client is taken for that address (FP-13)"
        ));
    }
}

/// Limits the severity by how improbable the session is if the peer behaves as it did before. A run of such sessions,
/// and the same symptom at other peers, make it less probable.
fn by_surprise(input: &RuleInput<'_>, claim: &mut Claim, rate: &Rate, prior: Prior) {
    let (others, by_chance) = input.scope.corroboration(input.at, input.peer);
    let probability = prior.of_current_run(rate, input.at) * by_chance;
    let most = match probability {
        p if p < HIGH => Severity::High,
        p if p < MEDIUM => Severity::Medium,
        _ => Severity::Low,
    };
    claim.severity = claim.severity.min(most);
    let expected = &mut claim.expected.detail;
    expected.push_str(&format!(": fewer than {} sessions of such a peer lacks it", one_in(prior.of_next(rate))));
    if rate.run > 0 {
        claim.proof.push(format!(
            "this is session {} in a row without it, on {} days: {} by chance",
            rate.run + 1,
            rate.spread.run.days_with(input.at),
            one_in(prior.of_current_run(rate, input.at))
        ));
    }
    if by_chance < 1.0 {
        claim.proof.push(format!(
            "{others} other peers with such a history lack it in the last hour: {} by chance",
            one_in(by_chance)
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
