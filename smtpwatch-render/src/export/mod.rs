//! Exports of findings: a capture file for Wireshark, a letter for an abuse desk, and formats for SIEMs.

mod ecs;
mod eve;
mod pcapng;
mod text;

use std::net::SocketAddr;

use smtpwatch_core::Finding;

pub use ecs::ecs;
pub use eve::eve;
pub use pcapng::pcapng;
pub use text::text;

/// The ends of a finding's connection, client first; `None` of one that cannot be read.
fn ends(finding: &Finding) -> Option<(SocketAddr, SocketAddr)> {
    Some((finding.flow.client.parse().ok()?, finding.flow.server.parse().ok()?))
}

/// In one sentence, for a line of a SIEM or of a capture.
fn sentence(finding: &Finding) -> String {
    let f = finding;
    format!(
        "smtpwatch: {} [{}] {}, evidence {}, outcome {}; expected by {}: {}; observed STARTTLS {}; finding {}",
        f.kind,
        f.rule,
        f.severity,
        f.evidence,
        f.outcome,
        f.expected.source,
        f.expected.detail,
        f.observed.starttls,
        f.id
    )
}
