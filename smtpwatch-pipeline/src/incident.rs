//! Completes findings of the engine for storage: their identifier, and the Community ID of their flow. Submodules
//! look up the sender on this host.

pub mod cgroup;
mod community_id;
pub mod sender;

use std::net::SocketAddr;

use smtpwatch_core::{Finding, Timestamp, finding::Provenance, hash};
use uuid::Uuid;

pub use community_id::community_id;

/// Sets the identifier of a finding (UUIDv7, ordered by the finding's own time), its Community ID, and the versions
/// that it was judged by; `config` is the hash of the active configuration.
pub fn name(finding: &mut Finding, config: &str) {
    finding.id = identifier(finding.time).to_string();
    let policies = finding.exhibit.as_ref().map(|exhibit| serde_json::to_vec(&exhibit.policies).unwrap_or_default());
    finding.provenance = Provenance {
        version: smtpwatch_core::VERSION.to_owned(),
        config_sha256: config.to_owned(),
        policy_sha256: hash::sha256(&policies.unwrap_or_default()),
    };
    let ends = (finding.flow.client.parse::<SocketAddr>(), finding.flow.server.parse::<SocketAddr>());
    // Port 0 stands for many connections, which have no common Community ID.
    if let (Ok(client), Ok(server)) = ends
        && client.port() > 0
    {
        finding.flow.community_id = community_id(client, server);
    }
}

fn identifier(time: Timestamp) -> Uuid {
    let (secs, nanos) = (time.0.div_euclid(1_000_000_000), time.0.rem_euclid(1_000_000_000));
    let stamp = uuid::Timestamp::from_unix(
        uuid::NoContext,
        u64::try_from(secs).unwrap_or(0),
        u32::try_from(nanos).unwrap_or(0),
    );
    Uuid::new_v7(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_sort_by_the_time_of_the_finding() {
        let (early, late) = (identifier(Timestamp::from_secs(1_000)), identifier(Timestamp::from_secs(2_000)));
        assert!(early < late);
        assert_eq!(early.get_version_num(), 7);
        assert_ne!(early, identifier(Timestamp::from_secs(1_000)), "two findings of one moment are two");
    }
}
