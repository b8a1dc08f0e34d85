//! Proof of editing in the bytes themselves: one range of the stream arrived in two different copies (FO-1, EV-2,
//! EV-3).

use super::{Claim, RuleInput, by_standard};
use crate::finding::{Evidence, Kind};

pub(super) fn judge(input: &RuleInput<'_>) -> Option<Claim> {
    if input.wire.conflicts.is_empty() {
        return None;
    }
    let expected = by_standard("a retransmission repeats the same bytes (RFC 9293 §3.8.1)");
    Some(Claim::new(input, Kind::StreamTampering, "FO-1", Evidence::Tamper, expected))
}
