//! Limits the severity of claims from history by their certainty. The rate shows that the peer behaved differently
//! before. [`limit`] judges whether it is the same peer, and whether it always behaved that way (docs/threats.md FP-1,
//! FP-13, FP-21).

use std::fmt::Write as _;

use super::{Claim, Limit, RuleInput};
use crate::{
    Role,
    finding::{Evidence, ExpectedSource, Kind, Outcome},
    policy::history::{
        HistoryRecord, Rate,
        surprise::{Prior, one_in},
    },
};

/// A regression that is less probable than this without interference may be of high severity.
const HIGH: f64 = 1.0 / 600.0;
/// A regression that is less probable than this without interference may be of medium severity.
const MEDIUM: f64 = 1.0 / 275.0;
/// Number of days on which a run must have lasted to count at a peer whose single session without the property is not yet
/// improbable: a farm may lead to the same machine for days.
const RUN_DAYS: u32 = 5;

/// Limits the severity of a claim that rests on history alone if that history is uncertain.
pub(super) fn limit(input: &RuleInput<'_>, claim: &mut Claim) {
    // A credential in cleartext is lost to any peer.
    if claim.outcome >= Outcome::Credential {
        return;
    }
    if claim.kind == Kind::StarttlsRefused && claim.evidence == Evidence::Suspicious && input.role == Role::Client {
        return limit_refusal(input, claim);
    }
    if !claim.expected.is_from(ExpectedSource::History) {
        return;
    }
    let about_use = input.role == Role::Server || matches!(claim.kind, Kind::StarttlsUnused | Kind::DowngradeRetry);
    let record = if about_use { input.expectation.uses } else { input.expectation.offers.map(|(_, record)| record) };
    let Some(record) = record else {
        // The claim rests on another part of the history: its offers, or their use, are too few or too often missing.
        claim.add_limit(Limit::Possible);
        return;
    };
    let (rate, prior) = if about_use {
        (record.used, input.expectation.priors.used())
    } else {
        (record.offered, input.expectation.priors.offered())
    };
    if claim.evidence <= Evidence::Regression {
        limit_by_probability(input, claim, &rate, prior);
    }
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
        claim.add_limit(Limit::OtherName);
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

/// Limits the severity of a refusal of STARTTLS by how often this server has not begun TLS before: servers that are short
/// of resources refuse it too (FP-2).
fn limit_refusal(input: &RuleInput<'_>, claim: &mut Claim) {
    match input.expectation.uses {
        Some(record) => limit_by_probability(input, claim, &record.used, input.expectation.priors.used()),
        None => claim.add_limit(Limit::Possible),
    }
}

/// Limits the severity by the probability of the session if the peer behaves as it did before. A run of such sessions,
/// and the same symptom at other peers, make it less probable.
fn limit_by_probability(input: &RuleInput<'_>, claim: &mut Claim, rate: &Rate, prior: Prior) {
    let single = prior.of_next(rate);
    let days = rate.spread.run.with(input.at).days;
    let run = if single < MEDIUM || days >= RUN_DAYS { prior.of_current_run(rate, input.at) } else { single };
    let (others, by_chance) = input.scope.corroboration(input.at, input.peer);
    let is_certain = single < MEDIUM || by_chance < 1.0;
    match run * by_chance {
        probability if probability < HIGH && is_certain => {}
        probability if probability < MEDIUM => claim.add_limit(Limit::Improbable),
        _ => claim.add_limit(Limit::Possible),
    }
    let detail = &mut claim.expected.detail;
    _ = write!(detail, ": fewer than {} sessions of such a peer lacks it", one_in(single));
    if rate.run > 0 {
        claim.indicators.push(format!(
            "this is session {} in a row without it, on {} days: {} by chance",
            rate.run + 1,
            days,
            one_in(run)
        ));
    }
    if by_chance < 1.0 {
        claim.indicators.push(format!(
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
