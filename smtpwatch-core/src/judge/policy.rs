//! Mail was accepted in clear although a policy demands TLS (G1 for local rules).

use super::{Case, Claim, starttls_expected};
use crate::{
    finding::{Evidence, Kind},
    policy::rule::StarttlsRule,
};

pub(super) fn judge(case: Case<'_>) -> Option<Claim> {
    if case.unfounded()
        || case.session.messages == 0
        || case.expectation.starttls_rule() != Some(StarttlsRule::Required)
    {
        return None;
    }
    let (_, expected) = starttls_expected(case)?;
    Some(Claim::new(case, Kind::PolicyViolation, "G1", Evidence::Policy, expected))
}
