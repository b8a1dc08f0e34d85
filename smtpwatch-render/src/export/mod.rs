//! Exports of findings: a capture file for Wireshark, a plain-text report for an abuse desk, and formats for SIEMs. The
//! command line, the journal and the API call them.

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

/// The endpoints of a finding's connection, client first; `None` if they cannot be parsed.
fn ends(finding: &Finding) -> Option<(SocketAddr, SocketAddr)> {
    Some((finding.flow.client.parse().ok()?, finding.flow.server.parse().ok()?))
}

/// A one-sentence summary, for a SIEM event or a comment in a capture.
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
