//! What a peer looks like when all is well: measured against it, an edited session shows by how much it differs
//! (THREATS FO-2, FO-4, FO-6, FO-8). It never accuses by itself.

use serde::{Deserialize, Serialize};

/// Keywords kept of an EHLO reply.
const KEYWORDS: usize = 32;
/// Octets kept of a keyword.
const KEYWORD_OCTETS: usize = 32;

/// A server, as seen in a session that went on under TLS.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    /// Keywords of the EHLO reply in clear, in order, upper-case.
    pub keywords: Vec<String>,
    /// Octets of that reply, line ends included.
    pub ehlo_octets: usize,
    /// Mechanisms offered before TLS that send the secret itself.
    pub plaintext_mechanisms: Vec<String>,
    /// The greeting is readable: it names a host.
    pub readable_greeting: bool,
    /// Time to live (hop limit) of the SYN-ACK on arrival.
    pub ttl: u8,
    /// Maximum segment size in the SYN-ACK; zero where it had none.
    pub mss: u16,
    /// Option kinds of the SYN-ACK in order.
    pub options: Vec<u8>,
    /// Best time between SYN and SYN-ACK, in nanoseconds; zero where it was not seen.
    pub round_trip: u64,
    /// Highest TLS version chosen, as on the wire; zero where it was not seen.
    pub tls_version: u16,
}

impl Profile {
    /// The keywords in the form kept here.
    pub fn keep(keywords: impl Iterator<Item = String>) -> Vec<String> {
        keywords.take(KEYWORDS).map(|keyword| keyword.chars().take(KEYWORD_OCTETS).collect()).collect()
    }

    /// This look, with the bests of an earlier one.
    #[must_use]
    pub fn after(self, before: &Self) -> Self {
        let round_trip = match (self.round_trip, before.round_trip) {
            (0, best) | (best, 0) => best,
            (one, other) => one.min(other),
        };
        Self { round_trip, tls_version: self.tls_version.max(before.tls_version), ..self }
    }
}
