//! STARTTLS is missing from the EHLO reply: deleted (A1, A4, A9), cut off or moved (A5, A6), or overwritten (A2, A3).
//!
//! Only a host that is the client can see this: a server sees its reply before any device on the path does
//! (docs/threats.md, "Which end sees what").

use super::{Claim, Limit, RuleId, RuleInput, nothing_expected, offer_expected};
use crate::{
    Role, Side,
    finding::{Evidence, Expected, ExpectedSource, Kind, Outcome},
    policy::{expectation::KnownBy, profile::Profile},
    smtp::{Capabilities, Offer, Starttls},
};

pub(super) fn judge(input: &RuleInput<'_>) -> Option<Claim> {
    let session = input.session;
    if input.role != Role::Client || session.doubt.is_some() || input.starttls_ignored() {
        return None;
    }
    let Some(capabilities) = &session.capabilities else { return unfinished(input) };
    if capabilities.masked().next().is_some() {
        return Some(masked(input, capabilities));
    }
    if session.tls_began() || matches!(session.starttls, Starttls::Granted(_)) {
        return reshaped(input, capabilities).or_else(|| not_offered(input, capabilities));
    }
    if let Some(lines) = session.ehlo_went_on
        && capabilities.offers() > 0
        && capabilities.offer_within(lines) == Offer::Absent
    {
        let expected = offer_expected(input).map_or_else(nothing_expected, |(_, expected)| expected);
        let claim = Claim::new(input, Kind::StarttlsStripped, RuleId::A6, Evidence::Tamper, expected);
        return Some(
            claim.indicator(format!("STARTTLS follows the line that ends the EHLO reply (line {})", lines + 1)),
        );
    }
    if capabilities.offer() != Offer::Absent {
        return reshaped(input, capabilities);
    }
    if let Some(lines) = session.ehlo_went_on {
        return Some(promoted(input, lines));
    }
    if !input.is_settled() {
        return None;
    }
    let Some((evidence, expected)) = offer_expected(input) else {
        return demanded_unlisted(input).or_else(|| reshaped(input, capabilities));
    };
    if let Some(other) = in_its_place(input, capabilities) {
        let claim = Claim::new(input, Kind::StarttlsMasked, RuleId::A3, evidence, expected);
        return Some(claim.indicator(format!("{other:?} is in the place where this server writes STARTTLS")));
    }
    let returns = input.expectation.offers.map_or(0, |(_, record)| record.offered.returns);
    let rewritten = rewritten(input, capabilities);
    let glued = capabilities.glued();
    let rule = match () {
        () if capabilities.starttls_on_first_line || glued.is_some() => RuleId::A5,
        () if returns > 0 => RuleId::A9,
        () if !rewritten.is_empty() => RuleId::A4,
        () => RuleId::A1,
    };
    let mut claim = Claim::new(input, Kind::StarttlsStripped, rule, evidence, expected);
    if capabilities.starttls_on_first_line {
        claim.indicators.push(
            "STARTTLS is on the first line of the EHLO reply, which clients take for greeting text (A5)".to_owned(),
        );
    }
    if let Some(line) = glued {
        claim.indicators.push(format!("STARTTLS is in the line {line:?}, where no client finds it (A5)"));
    }
    if returns > 0 {
        claim.indicators.push(came_back(returns));
    }
    claim.indicators.extend(rewritten);
    if let Starttls::Refused(code) = session.starttls {
        claim.indicators.push(format!("the client requested STARTTLS anyway, and the reply was {code}"));
    }
    claim.indicators.extend(session.starttls_demanded.map(demands));
    Some(claim)
}

fn demands(code: u16) -> String {
    format!("the reply {code} demands STARTTLS, and the EHLO reply of the same server does not list it")
}

/// Nothing is known about the server, but it demands STARTTLS and does not list it. No server is configured that way;
/// it is what remains after the line was deleted from the list (A1).
fn demanded_unlisted(input: &RuleInput<'_>) -> Option<Claim> {
    let code = input.session.starttls_demanded.filter(|_| input.session.starttls == Starttls::NotSent)?;
    let claim = Claim::new(input, Kind::StarttlsStripped, RuleId::A1, Evidence::Suspicious, nothing_expected());
    Some(claim.indicator(demands(code)))
}

/// The client sent STARTTLS and TLS began, although the EHLO reply of a peer that is known to offer STARTTLS did not
/// list it. Such sessions occur when an attacker weakens the history, or tests a device before using it.
fn not_offered(input: &RuleInput<'_>, capabilities: &Capabilities) -> Option<Claim> {
    let missing = capabilities.offer() == Offer::Absent && input.session.starttls != Starttls::NotSent;
    let (evidence, expected) = offer_expected(input).filter(|_| missing)?;
    let returns = input.expectation.offers.map_or(0, |(_, record)| record.offered.returns);
    let rule = if returns > 0 { RuleId::A9 } else { RuleId::A1 };
    let mut claim = Claim::new(input, Kind::StarttlsStripped, rule, evidence, expected).with_outcome(Outcome::Attempt);
    claim.indicators.push("the EHLO reply does not offer STARTTLS, and the client requested it anyway".to_owned());
    if returns > 0 {
        claim.indicators.push(came_back(returns));
    }
    claim.indicators.extend(rewritten(input, capabilities));
    Some(claim)
}

/// The offer is back, and it has come and gone so often that history is too weak to support a claim from here on. This
/// is reported once, because an attacker who weakens the history causes the same pattern (A9).
pub(super) fn flapping(input: &RuleInput<'_>) -> Option<Claim> {
    let session = input.session;
    let (how, record) = input.expectation.offers?;
    let offered = input.role == Role::Client && session.doubt.is_none() && session.offers_starttls() && input.at_stake;
    if !offered
        || how != KnownBy::Address
        || input.starttls_ignored()
        || !record.loses_strength(input.at, input.expectation.strength)
    {
        return None;
    }
    let expected = Expected::starttls(ExpectedSource::History, record.offers());
    let mut claim = Claim::new(input, Kind::StarttlsStripped, RuleId::A9, Evidence::Suspicious, expected)
        .with_outcome(Outcome::Attempt);
    claim.instance = 1;
    claim.add_limit(Limit::Farm);
    Some(claim.indicator(format!(
        "{}; with this session history takes the peer for a farm whose members differ, and a missing offer is not accused by history \
         alone from here on; smtpwatch baseline forget ends that",
        came_back(record.offered.returns + 1)
    )))
}

/// Reports how often the offer was missing and came back.
fn came_back(returns: u64) -> String {
    format!("the offer was missing before and came back, {returns} times (A9)")
}

/// Differences from the peer's own wording besides the missing line: another device may have written the reply (A4).
fn rewritten(input: &RuleInput<'_>, capabilities: &Capabilities) -> Vec<String> {
    let Some(profile) = &input.expectation.profile else { return Vec::new() };
    let mut lines = Vec::new();
    let without: Vec<_> =
        profile.keywords.iter().map(String::as_str).filter(|keyword| *keyword != "STARTTLS").collect();
    let kept = capabilities.keywords().filter(|keyword| without.contains(keyword)).count();
    if kept * 2 < without.len() {
        lines.push(format!("{kept} of {} other keywords are left of the EHLO reply (A4)", without.len()));
    }
    let greeting = input.session.greeting.as_deref().unwrap_or_default();
    let now = [("greeting", greeting), ("first line of the EHLO reply", &capabilities.first_line)];
    for ((name, line), before) in now.into_iter().zip(&profile.words) {
        let now = Profile::shape(line);
        if !before.is_empty() && now != *before {
            lines.push(format!("the {name} has the form {now:?}, before {before:?} (A4)"));
        }
    }
    let quoted = Profile::quoted(&capabilities.first_line);
    if !quoted.is_empty() && !profile.quoted.is_empty() && quoted != profile.quoted {
        lines.push(format!("the server quotes this host's address as {quoted}, before {} (A4)", profile.quoted));
    }
    lines
}

/// Lines follow the line that ends the reply (A6): no server does that. Only for a peer known to offer STARTTLS is it
/// clear that STARTTLS was removed from among them.
fn promoted(input: &RuleInput<'_>, lines: usize) -> Claim {
    let known = offer_expected(input);
    let unknown = known.is_none();
    let expected = known.map_or_else(nothing_expected, |(_, expected)| expected);
    let mut claim = Claim::new(input, Kind::StarttlsStripped, RuleId::A6, Evidence::Tamper, expected);
    if unknown {
        claim.add_limit(Limit::UnknownPeer);
    }
    claim
        .indicator(format!("lines follow the one that ends the EHLO reply (line {}), and none has STARTTLS", lines + 1))
}

/// The keyword at the position of STARTTLS, with the same length, that this server has never offered (A3).
fn in_its_place<'a>(input: &RuleInput<'_>, capabilities: &'a Capabilities) -> Option<&'a str> {
    let known = &input.expectation.profile?.keywords;
    let place = known.iter().position(|keyword| keyword == "STARTTLS")?;
    let keyword = capabilities.keywords().nth(place)?;
    (keyword.len() == "STARTTLS".len() && !known.iter().any(|known| known == keyword)).then_some(keyword)
}

/// The last line of the reply announces another (A6): the client waits, and the mail is not sent. For an unknown server
/// this is reported only if the client waited in vain: a server that stops halfway closes the connection itself.
fn unfinished(input: &RuleInput<'_>) -> Option<Claim> {
    if !input.closed || !input.session.ehlo_unfinished || !input.is_settled() {
        return None;
    }
    let waited = input.session.timed_out || matches!(input.session.ended, Some((Side::Client, _)));
    let unknown = waited.then(|| (Evidence::Suspicious, nothing_expected()));
    let (evidence, expected) = offer_expected(input).or(unknown)?;
    let claim = Claim::new(input, Kind::StarttlsStripped, RuleId::A6, evidence, expected);
    let within =
        super::handshake::waited(input).map(|waited| format!(" within {} s", waited.as_secs())).unwrap_or_default();
    Some(claim.indicator(format!("the last line of the EHLO reply announces another one, and none came{within}")))
}

/// STARTTLS is present, but not as its server writes it: lower case hides it from Exim's clients (A3), other shapes
/// hide it from strict clients (A5), and no server writes a second line (A7).
fn reshaped(input: &RuleInput<'_>, capabilities: &Capabilities) -> Option<Claim> {
    let known = input.expectation.profile;
    let (kind, rule, line) = if capabilities.offers() > 1 {
        // A server that wrote two lines in an earlier session under TLS does so itself.
        let before = |profile: &Profile| profile.keywords.iter().filter(|keyword| *keyword == "STARTTLS").count();
        if known.is_some_and(|profile| before(profile) >= capabilities.offers()) {
            return None;
        }
        (Kind::StreamTampering, RuleId::A7, format!("STARTTLS is in the EHLO reply {} times", capabilities.offers()))
    } else if let Some(line) = capabilities.offer_line() {
        // Harmless if the server has always written it so, or if it writes all keywords so. Without a profile, a client
        // that began TLS recognised it as an offer.
        let harmless = known.map_or(input.session.tls_began(), |profile| profile.offer == line);
        if capabilities.offer() == Offer::Strict || harmless || capabilities.is_lower_case() {
            return None;
        }
        let rule = if line.eq_ignore_ascii_case("STARTTLS") { RuleId::A3 } else { RuleId::A5 };
        (Kind::StarttlsMasked, rule, format!("offered as {line:?}, which some clients do not recognise"))
    } else {
        // Hidden from clients, and either sent anyway, or it is unknown whether it was ever offered.
        let (line, seen) = match capabilities.glued() {
            Some(line) => (line, true),
            None => (capabilities.first_line.as_str(), capabilities.starttls_on_first_line && known.is_some()),
        };
        if !seen {
            return None;
        }
        (Kind::StarttlsMasked, RuleId::A5, format!("STARTTLS is in the line {line:?}, where no client finds it"))
    };
    let claim = Claim::new(input, kind, rule, Evidence::Suspicious, nothing_expected()).indicator(line);
    Some(claim.limit(Limit::Reshaped))
}

/// The line proves the edit; it does not prove that it was STARTTLS (docs/threats.md FP-14, FP-26).
fn masked(input: &RuleInput<'_>, capabilities: &Capabilities) -> Claim {
    let lines: Vec<_> = capabilities.masked().collect();
    // Cisco's inspection ends the run with a counting letter (A2); other editors write X to the end or change one
    // letter.
    let counted = lines.iter().any(|(_, line)| {
        let word = line.text.split([' ', '\t', '=']).next().unwrap_or_default();
        word.starts_with("XXX") && !word.ends_with('X')
    });
    let quoted = lines.iter().map(|(_, line)| format!("{:?}", line.text)).collect::<Vec<_>>().join(", ");
    let still_offered = capabilities.offer() != Offer::Absent;
    let known = offer_expected(input);
    let in_place = lines.iter().any(|(index, _)| capabilities.mask_is_starttls(*index));
    let may_be_starttls = lines.iter().any(|(_, line)| line.is_as_long_as_starttls());
    let loss = if still_offered {
        "STARTTLS is still offered"
    } else if known.is_some() {
        "this peer is known to offer STARTTLS, and the reply does not have it"
    } else if in_place {
        "the line is in the place of STARTTLS, or hides the only missing keyword of its length"
    } else if may_be_starttls {
        "possibly STARTTLS: the length of the line does not show which keyword it hides"
    } else {
        "not STARTTLS, which has another length, but something overwrites the lines of this server"
    };
    let rule = if counted { RuleId::A2 } else { RuleId::A3 };
    let evidence = if still_offered { Evidence::Suspicious } else { Evidence::Tamper };
    let expected = known.map_or_else(nothing_expected, |(_, expected)| expected);
    let proven = expected.starttls || in_place;
    let claim = Claim::new(input, Kind::StarttlsMasked, rule, evidence, expected);
    let mut claim = claim.indicator(format!("overwritten in place: {quoted}; {loss}"));
    if still_offered {
        claim.add_limit(Limit::StillOffered);
    } else if !proven {
        claim.add_limit(if may_be_starttls { Limit::AmbiguousMask } else { Limit::OtherMask });
    }
    claim
}
