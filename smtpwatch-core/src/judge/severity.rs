//! Severity of a claim: a table of evidence and outcome, then the [`Limit`]s of the claim, in the order in which they
//! were set. Nothing else in the crate computes a severity.
//!
//! | outcome | suspicious | regression | policy | tamper |
//! |---|---|---|---|---|
//! | attempt | info | low | medium | medium |
//! | envelope | low | high | high | high |
//! | content | medium | high | critical | critical |
//! | credential | critical | critical | critical | critical |
//!
//! | limit | severity | rules |
//! |---|---|---|
//! | [`Limit::Testing`] | at most low, with content at most medium | all that a published policy in testing mode supports |
//! | [`Limit::StillOffered`] | info | A2, A3 |
//! | [`Limit::Reshaped`] | info | A3, A5, A7 |
//! | [`Limit::AmbiguousMask`] | at most medium | A2, A3 |
//! | [`Limit::OtherMask`] | at most low | A2, A3 |
//! | [`Limit::UnknownPeer`] | at most medium | A6 |
//! | [`Limit::Farm`] | low | A9 |
//! | [`Limit::EhloOnly`] | at most low | B1 |
//! | [`Limit::OneSign`] | at most medium | B2, C4 |
//! | [`Limit::UnderTls`] | info | B3 |
//! | [`Limit::Injection`] | at least high | E1, E2, E3 |
//! | [`Limit::ExtraReply`] | at most low | E4 |
//! | [`Limit::NoPassword`] | medium to high | F5 |
//! | [`Limit::OwnOffer`] | medium | F6, as the server |
//! | [`Limit::OwnSubmission`] | high | F6, as the server on port 587 |
//! | [`Limit::Interrupted`] | at most medium | all that history alone supports |
//! | [`Limit::Improbable`] | at most medium | the same |
//! | [`Limit::Possible`] | at most low | the same |
//! | [`Limit::OwnLoginRefused`] | at most high | F1 to F4, F7, F9 |
//! | [`Limit::Stranger`] | at most low | all, as the server |
//! | [`Limit::OtherName`] | at most low | the same, as the server |
//! | [`Limit::TwoRecords`] | at least high | G9 |
//!
//! Traces of an edit in the bytes themselves (FO-1, FO-11) remove every limit.

use crate::finding::{Evidence, Outcome, Severity};

/// A reason why the severity of a claim differs from the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// The policy is in testing mode: its owner wants a report, and mail must not be delayed (docs/threats.md G2).
    Testing,
    /// STARTTLS is offered beside the line that was overwritten.
    StillOffered,
    /// STARTTLS is offered in a form that only some clients do not recognise.
    Reshaped,
    /// The length of the overwritten line does not show which keyword it hides (FP-26).
    AmbiguousMask,
    /// The overwritten line is not as long as STARTTLS.
    OtherMask,
    /// The reply was edited, and the peer is not known to offer STARTTLS.
    UnknownPeer,
    /// History classifies the peer as a farm (FP-1).
    Farm,
    /// The peer is not known to offer STARTTLS: only EHLO was lost.
    EhloOnly,
    /// Any client can send the line that arrived, and nothing else speaks for an edit (FP-25).
    OneSign,
    /// TLS began.
    UnderTls,
    /// Bytes in cleartext where TLS begins: the other end may run them as if TLS had protected them.
    Injection,
    /// A faulty server also sends one reply too many.
    ExtraReply,
    /// The exchange does not expose the password, which can be guessed offline.
    NoPassword,
    /// The offer alone exposes nothing, but it is this host's own.
    OwnOffer,
    /// As [`Self::OwnOffer`], on the port where clients act on it (RFC 8314).
    OwnSubmission,
    /// The peer's history is short and was interrupted (FP-1).
    Interrupted,
    /// History makes the session improbable without interference, but not enough to be sure (docs/severity.md).
    Improbable,
    /// The session is possible without interference: little is known of the peer, or it often changes.
    Possible,
    /// A password of this site crossed in cleartext, and the server refused it.
    OwnLoginRefused,
    /// The client is unknown to this host, and this host's server accepted nothing: anyone can send that.
    Stranger,
    /// The client gives another name than those that used TLS from its address (FP-21).
    OtherName,
    /// Two independent records contradict each other, about more than one session.
    TwoRecords,
}

impl Limit {
    /// The lowest and the highest severity under this limit.
    const fn range(self, outcome: Outcome) -> (Severity, Severity) {
        use Severity::{Critical, High, Info, Low, Medium};
        match (self, outcome) {
            (Self::Testing, Outcome::Attempt | Outcome::Envelope) => (Info, Low),
            (Self::Testing, Outcome::Content) => (Info, Medium),
            // A lost credential is severe whatever the policy says.
            (Self::Testing, Outcome::Credential) => (Info, Critical),
            (Self::StillOffered | Self::Reshaped | Self::UnderTls, _) => (Info, Info),
            (Self::Farm, _) => (Low, Low),
            (
                Self::OtherMask | Self::EhloOnly | Self::ExtraReply | Self::OtherName | Self::Possible | Self::Stranger,
                _,
            ) => (Info, Low),
            (Self::AmbiguousMask | Self::UnknownPeer | Self::OneSign | Self::Interrupted | Self::Improbable, _) => {
                (Info, Medium)
            }
            (Self::NoPassword, _) => (Medium, High),
            (Self::OwnLoginRefused, _) => (Info, High),
            (Self::OwnOffer, _) => (Medium, Medium),
            (Self::OwnSubmission, _) => (High, High),
            (Self::TwoRecords | Self::Injection, _) => (High, Critical),
        }
    }
}

/// Severity as a function of evidence and outcome, under these limits.
#[must_use]
pub fn severity(evidence: Evidence, outcome: Outcome, limits: &[Limit]) -> Severity {
    limits.iter().fold(of(evidence, outcome), |severity, limit| {
        let (lowest, highest) = limit.range(outcome);
        severity.clamp(lowest, highest)
    })
}

/// The table: neither evidence nor outcome alone determines the severity.
const fn of(evidence: Evidence, outcome: Outcome) -> Severity {
    match (outcome, evidence) {
        (Outcome::Credential, _) | (Outcome::Content, Evidence::Policy | Evidence::Tamper) => Severity::Critical,
        (Outcome::Content | Outcome::Envelope, Evidence::Regression)
        | (Outcome::Envelope, Evidence::Policy | Evidence::Tamper) => Severity::High,
        (Outcome::Content, Evidence::Suspicious) | (Outcome::Attempt, Evidence::Policy | Evidence::Tamper) => {
            Severity::Medium
        }
        (Outcome::Envelope, Evidence::Suspicious) | (Outcome::Attempt, Evidence::Regression) => Severity::Low,
        (Outcome::Attempt, Evidence::Suspicious) => Severity::Info,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Severity::{Critical, High, Info, Low, Medium};

    #[test]
    fn the_table_covers_each_pair() {
        for (outcome, row) in Outcome::ALL.iter().zip([
            [Info, Low, Medium, Medium],
            [Low, High, High, High],
            [Medium, High, Critical, Critical],
            [Critical; 4],
        ]) {
            for (evidence, expected) in Evidence::ALL.iter().zip(row) {
                assert_eq!(severity(*evidence, *outcome, &[]), expected, "{evidence} {outcome}");
            }
        }
    }

    #[test]
    fn a_policy_in_testing_lowers_everything_but_credentials() {
        let testing = |outcome| severity(Evidence::Policy, outcome, &[Limit::Testing]);
        assert_eq!(
            Outcome::ALL.iter().map(|outcome| testing(*outcome)).collect::<Vec<_>>(),
            [Low, Low, Medium, Critical]
        );
    }

    #[test]
    fn limits_apply_in_their_order() {
        let of = |evidence, outcome, limits: &[Limit]| severity(evidence, outcome, limits);
        assert_eq!(of(Evidence::Tamper, Outcome::Content, &[Limit::StillOffered]), Info);
        assert_eq!(of(Evidence::Suspicious, Outcome::Attempt, &[Limit::NoPassword]), Medium);
        assert_eq!(of(Evidence::Policy, Outcome::Credential, &[Limit::NoPassword]), High);
        assert_eq!(of(Evidence::Tamper, Outcome::Attempt, &[Limit::TwoRecords]), High);
        assert_eq!(of(Evidence::Tamper, Outcome::Content, &[Limit::TwoRecords]), Critical);
        assert_eq!(of(Evidence::Regression, Outcome::Content, &[Limit::Interrupted, Limit::OtherName]), Low);
        assert_eq!(of(Evidence::Regression, Outcome::Content, &[Limit::Farm, Limit::Interrupted]), Low);
    }
}
