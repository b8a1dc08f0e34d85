//! Community ID v1 (corelight/community-id-spec): an identifier of a flow that Zeek, Suricata and other tools compute
//! in the same way.

use std::net::{IpAddr, SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

/// Default seed of the specification.
const SEED: u16 = 0;
/// IP protocol number of TCP.
const TCP: u8 = 6;

/// The Community ID of a TCP connection; the same for both directions.
#[must_use]
pub fn community_id(one: SocketAddr, other: SocketAddr) -> String {
    let end = |end: SocketAddr| (bytes(end.ip()), end.port());
    // Orders the end points, so that both directions have the same id.
    let (first, second) = if end(one) <= end(other) { (end(one), end(other)) } else { (end(other), end(one)) };
    let mut digest = Sha1::new();
    digest.update(SEED.to_be_bytes());
    digest.update(&first.0);
    digest.update(&second.0);
    digest.update([TCP, 0]);
    digest.update(first.1.to_be_bytes());
    digest.update(second.1.to_be_bytes());
    format!("1:{}", STANDARD.encode(digest.finalize()))
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The TCP rows of the specification's `baseline_deflt.json`.
    #[test]
    fn official_vectors() {
        for (one, other, expected) in [
            ("128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (
                "[2001:470:e5bf:dead:4957:2174:e82c:4887]:63943",
                "[2607:f8b0:400c:c03::1a]:25",
                "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
            ),
        ] {
            let (one, other) = (one.parse().expect("address"), other.parse().expect("address"));
            assert_eq!(community_id(one, other), expected);
            assert_eq!(community_id(other, one), expected);
        }
    }
}
