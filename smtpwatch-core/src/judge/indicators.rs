//! Further indicators: [`add_indicators`] appends lines with numbers to a claim. An indicator may raise the evidence of a
//! claim; none is a claim by itself.

use std::time::Duration;

use super::{Claim, RuleId, RuleInput};
use crate::{
    Role,
    finding::Kind,
    smtp::{Starttls, nul_bytes, plain_keyword},
};

/// Maximum number of conflicting copies that are quoted.
const CONFLICTS: usize = 3;
/// Tolerated TTL difference between packets of one connection: routes change by one or two hops.
const HOPS: u8 = 2;
/// Tolerance of timers: only a reply faster than the best round trip by more than this counts as impossible.
const SLACK: Duration = Duration::from_millis(1);
/// Words of the replies that the tool striptls sends in place of the server's.
const TOOLS: [&str; 1] = ["STRIPTLS"];
/// Reply texts that no server product sends word for word, each with its source.
const VERBATIM: [(&str, &str); 2] = [
    ("TLS not available due to temporary reason", "RFC 3207 §4"),
    ("Error: command \"EHLO\" not implemented", "a tool that forges replies"),
];

/// Adds the indicators from the packets and from the profile of the peer.
pub(super) fn add_indicators(input: &RuleInput<'_>, claim: &mut Claim) {
    conflicts(input, claim);
    if matches!(claim.kind, Kind::StarttlsRefused | Kind::TlsHandshakeFailed | Kind::DowngradeRetry) {
        reset(input, claim);
    }
    if input.wire.discarded > 0 {
        let count = input.wire.discarded;
        claim.indicators.push(format!(
            "{count} segments from the peer are ones that a host discards: a wrong checksum, no ACK, or a signature (EV-9)"
        ));
    }
    let about_offer = matches!(claim.kind, Kind::StarttlsStripped | Kind::StarttlsMasked);
    let about_reply = matches!(claim.kind, Kind::StarttlsRefused | Kind::EhloDowngraded);
    let about_path = about_offer || about_reply || claim.kind == Kind::CommandRewritten;
    if input.role == Role::Server {
        // Here the peer is the client, which has no profile; the claim only shows which other peers are affected.
        if about_path || claim.rule == RuleId::A8 {
            claim.indicators.push(input.scope.of(input.at, input.peer));
        }
        return;
    }
    if !about_path {
        return;
    }
    if about_offer {
        length(input, claim);
    }
    stack(input, claim);
    timing(input, claim);
    if about_reply {
        style(input, claim);
    }
    if about_offer || about_reply {
        product(input, claim);
    }
    claim.indicators.push(input.scope.of(input.at, input.peer));
}

/// FO-1.
fn conflicts(input: &RuleInput<'_>, claim: &mut Claim) {
    let more = input.wire.conflicts_dropped + input.wire.conflicts.len().saturating_sub(CONFLICTS) as u64;
    for conflict in input.wire.conflicts.iter().take(CONFLICTS) {
        let range = format!("bytes {}..{}", conflict.offset, conflict.offset + conflict.first.len() as u64);
        let who = conflict.from.as_str();
        if let Some(count) = nul_bytes(&conflict.first, &conflict.other) {
            claim.indicators.push(format!(
                "{count} bytes of the {who} from {} on came twice, and one copy is {count} NUL bytes: some stacks send them with an \
                 acknowledgment (FO-1)",
                conflict.offset
            ));
            continue;
        }
        let (first, other) = (keywords(&conflict.first), keywords(&conflict.other));
        let only = |these: &[String], those: &[String]| {
            let only: Vec<_> = these.iter().filter(|keyword| !those.contains(keyword)).cloned().collect();
            if only.is_empty() { "none".to_owned() } else { only.join(", ") }
        };
        claim.indicators.push(format!(
            "{range} of the {who} arrived twice, with different bytes; keywords only in the first copy: {}; only in the other: {} \
             (FO-1)",
            only(&first, &other),
            only(&other, &first),
        ));
        let edited = first.iter().any(|word| word == "STARTTLS") != other.iter().any(|word| word == "STARTTLS");
        if edited && claim.kind == Kind::StarttlsStripped {
            claim.escalate();
        }
    }
    if more > 0 {
        claim.indicators.push(format!("{more} more ranges arrived twice with different bytes (FO-1)"));
    }
}

/// Capability keywords in a part of the server's stream. All other words may quote a secret or a name and are omitted.
fn keywords(octets: &[u8]) -> Vec<String> {
    let lines = octets.split(|byte| *byte == b'\n').filter_map(plain_keyword);
    lines.map(|keyword| String::from_utf8_lossy(keyword).into_owned()).collect()
}

/// FO-2: what is missing, and whether the rest is unchanged.
fn length(input: &RuleInput<'_>, claim: &mut Claim) {
    let (Some(profile), Some(capabilities)) = (&input.expectation.profile, &input.session.capabilities) else { return };
    if profile.ehlo_octets == 0 {
        return;
    }
    let keywords: Vec<_> = capabilities.keywords().collect();
    let missing: Vec<_> =
        profile.keywords.iter().filter(|keyword| !keywords.contains(&keyword.as_str())).cloned().collect();
    let added: Vec<_> =
        keywords.iter().filter(|keyword| !profile.keywords.iter().any(|known| known == *keyword)).copied().collect();
    let kept = profile.keywords.iter().map(String::as_str).filter(|keyword| keywords.contains(keyword));
    let same_order =
        kept.eq(keywords.iter().copied().filter(|keyword| profile.keywords.iter().any(|known| known == keyword)));
    let difference =
        i128::try_from(input.session.ehlo_octets).unwrap_or(0) - i128::try_from(profile.ehlo_octets).unwrap_or(0);
    let list = |keywords: &[String]| if keywords.is_empty() { "none".to_owned() } else { keywords.join(", ") };
    let added: Vec<_> = added.into_iter().map(str::to_owned).collect();
    claim.indicators.push(format!(
        "EHLO reply of {} bytes, {difference:+} against the last one under TLS; missing: {}; added: {}; order of the rest {} (FO-2)",
        input.session.ehlo_octets,
        list(&missing),
        list(&added),
        if same_order { "unchanged" } else { "changed" },
    ));
}

/// FO-4: a reset from nearer or farther away than the rest of the connection was not sent by the peer.
fn reset(input: &RuleInput<'_>, claim: &mut Claim) {
    let Some(reset) = input.wire.reset_ttl else { return };
    let syn_ack = input.wire.syn_ack.map(|syn_ack| syn_ack.ttl).filter(|_| input.role == Role::Client);
    let Some((lowest, highest)) = input.wire.ttl.or(syn_ack.map(|ttl| (ttl, ttl))) else { return };
    if reset.abs_diff(lowest) > HOPS && reset.abs_diff(highest) > HOPS {
        claim.indicators.push(format!(
            "the reset came with TTL {reset}, the peer's other packets with {lowest} to {highest} (FO-4)"
        ));
    }
}

/// FO-4, FO-6: whether the same stack answers, from the same distance.
fn stack(input: &RuleInput<'_>, claim: &mut Claim) {
    if let Some((lowest, highest)) = input.wire.ttl
        && highest - lowest > HOPS
    {
        claim
            .indicators
            .push(format!("TTL of the server's packets varies within the connection: {lowest} to {highest} (FO-4)"));
    }
    let (Some(profile), Some(now)) = (&input.expectation.profile, input.wire.syn_ack) else { return };
    let mss = now.mss.unwrap_or(0);
    if profile.ttl != 0 && profile.ttl.abs_diff(now.ttl) > HOPS {
        claim.indicators.push(format!("SYN-ACK with TTL {}, before {} (FO-4)", now.ttl, profile.ttl));
    }
    if profile.mss != 0 && profile.mss != mss {
        let asa = if mss == 1380 { ", the default of a Cisco ASA on the path" } else { "" };
        claim.indicators.push(format!("SYN-ACK with MSS {mss}{asa}, before {} (FO-6)", profile.mss));
    }
    if !profile.options.is_empty() && profile.options != now.option_order() {
        let (options, before) = (now.option_order(), &profile.options);
        claim.indicators.push(format!("SYN-ACK with option kinds {options:?}, before {before:?} (FO-6)"));
    }
}

/// FO-8: no reply is faster than the best known round trip, or than the round trip of SYN and SYN-ACK.
fn timing(input: &RuleInput<'_>, claim: &mut Claim) {
    let best = Duration::from_nanos(input.expectation.profile.map_or(0, |profile| profile.round_trip));
    let own = input.wire.round_trip.unwrap_or_default();
    let trips = [(best, "the best round trip to this server was"), (own, "SYN and SYN-ACK of this connection took")];
    for (what, after) in [("EHLO", input.session.ehlo_after), ("STARTTLS", input.session.starttls_after)] {
        let faster = |after: Duration| trips.iter().find(|(trip, _)| after + SLACK < *trip).map(|trip| (after, trip));
        if let Some((after, (trip, name))) = after.and_then(faster) {
            let (after, trip) = (after.as_secs_f64() * 1e3, trip.as_secs_f64() * 1e3);
            claim.indicators.push(format!("the reply to {what} came after {after:.2} ms; {name} {trip:.2} ms (FO-8)"));
        }
    }
}

/// Products by a word of their greeting, and reply texts that occur in the source of only that product.
const PRODUCTS: [(&str, &[&str]); 5] = [
    (
        "Postfix",
        &["TLS not available due to local problem", "Error: command not recognized", "Error: need MAIL command"],
    ),
    ("Exim", &["TLS currently unavailable", "STARTTLS command used when not advertised", "SMTP synchronization error"]),
    ("Sendmail", &["Command unrecognized: "]),
    ("Microsoft ESMTP", &["SMTP server ready", "Unrecognized command", "Client was not authenticated"]),
    ("qmail", &["unimplemented (#5.5.1)", "ready for tls"]),
];

/// FO-11: words of another product than the greeting names. Any server may change both, so this shows nothing by
/// itself.
fn product(input: &RuleInput<'_>, claim: &mut Claim) {
    let greeting = input.session.greeting.as_deref().unwrap_or_default();
    let Some((own, _)) = PRODUCTS.iter().find(|(name, _)| greeting.contains(name)) else { return };
    let session = input.session;
    let texts = session.refusals.iter().chain(&session.starttls_reply).chain(&session.ehlo_refusal);
    for text in texts {
        let other = PRODUCTS.iter().filter(|(name, _)| name != own);
        if let Some((other, _)) = other.into_iter().find(|(_, words)| words.iter().any(|words| text.contains(words))) {
            claim
                .indicators
                .push(format!("the greeting names {own}, and the reply {text:?} is worded as by {other} (FO-11)"));
            return;
        }
    }
}

/// FO-11: a reply in a form that this server would not send.
fn style(input: &RuleInput<'_>, claim: &mut Claim) {
    let session = input.session;
    let (code, text) = match (claim.kind, session.starttls) {
        (Kind::EhloDowngraded, _) => (session.ehlo_rejected, &session.ehlo_refusal),
        (_, Starttls::Refused(code) | Starttls::Granted(code)) => (Some(code), &session.starttls_reply),
        (_, Starttls::NotSent | Starttls::Sent) => (None, &None),
    };
    let (Some(code), Some(text)) = (code, text) else { return };
    let known = |keyword: &str| {
        input.expectation.profile.is_some_and(|profile| profile.keywords.iter().any(|known| known == keyword))
    };
    let offered = |keyword| {
        session.capabilities.as_ref().map_or_else(|| known(keyword), |capabilities| capabilities.has(keyword))
    };
    let enhanced =
        text.split(' ').next().is_some_and(|word| word.split('.').count() == 3 && word.starts_with(['2', '4', '5']));
    if offered("ENHANCEDSTATUSCODES") && !enhanced && matches!(code / 100, 2 | 4 | 5) {
        claim
            .indicators
            .push(format!("the server offers ENHANCEDSTATUSCODES, and its reply {code} has no enhanced code (FO-11)"));
    }
    if let Some(source) = VERBATIM.iter().find(|(words, _)| text == words).map(|(_, source)| source) {
        claim.indicators.push(format!("the reply is word for word the text of {source} (FO-11)"));
    }
    if let Some(tool) = TOOLS.iter().find(|tool| text.contains(**tool)) {
        claim.indicators.push(format!("the reply names a tool that forges replies: {tool:?} (FO-11)"));
        claim.escalate();
    }
}
