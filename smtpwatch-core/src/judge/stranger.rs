//! What an unknown client can cause: anyone can connect to a public port and send anything, so that what such a client
//! sends never exceeds severity low by itself (docs/severity.md).

use super::{Claim, Limit, RuleInput};
use crate::{
    Role,
    finding::{self, Evidence},
};

/// Replies of a server that does not support AUTH (RFC 5321 §4.2.4: 502 not implemented, 503 bad sequence).
const NOT_SUPPORTED: [u16; 2] = [502, 503];

/// Limits the severity of a claim about an unknown client.
pub(super) fn limit(input: &RuleInput<'_>, claim: &mut Claim) {
    // A server without AUTH has no passwords: any client that sends one guesses.
    let no_password_here = claim.kind.is_login()
        && input.role == Role::Server
        && claim.reply.is_some_and(|code| NOT_SUPPORTED.contains(&code))
        && !input.session.capabilities.as_ref().is_some_and(|reply| reply.keywords().any(|keyword| keyword == "AUTH"));
    // One session under TLS makes an address known, and anyone can have one. That is enough for a login, whose password is
    // a user's; for what test tools send too, it takes a history that is strong enough to be evidence.
    let has_short_history = input.role == Role::Server && !input.trusted && input.expectation.uses.is_none();
    claim.by_stranger |= no_password_here || has_short_history && !claim.kind.is_login();
    if claim.by_stranger && !claim.kind.is_of_own_listener() && !is_accepted(input, claim) {
        claim.add_limit(Limit::Stranger);
    }
}

/// This host's own server accepted the login, or mail that a rule of the operator forbids.
fn is_accepted(input: &RuleInput<'_>, claim: &Claim) -> bool {
    if claim.kind.is_login() {
        claim.reply.is_some_and(finding::is_accepted)
    } else {
        claim.evidence == Evidence::Policy && input.session.messages > 0
    }
}
