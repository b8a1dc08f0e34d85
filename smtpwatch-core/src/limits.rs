//! All bounds of the engine, each with its reason. Everything that a bound cuts off or drops is counted.

use std::time::Duration;

/// Default of `[limits] flows`: flows tracked at once. The least recently active flow is evicted.
pub const FLOWS: usize = 65_536;
/// Divisor of the flow table: the open connections of one peer's network (IPv4 /24, IPv6 /48) are at most this part of
/// the table, so that no peer can evict the sessions of all others (EV-24). Mail servers grant one client some tens of
/// connections, and open no more to one server.
pub const PEER_SHARE: usize = 4;
/// Fraction (numerator, denominator) of the flow table that the open connections of one role may use: incoming
/// connections leave capacity for outbound mail.
pub const ROLE_SHARE: (usize, usize) = (3, 4);
/// Idle time after which a flow is closed. The longest reply time-out of RFC 5321 §4.5.3.2 is 10 minutes.
pub const FLOW_IDLE: Duration = Duration::from_secs(900);
/// Time after which a connection with an incomplete handshake is dropped: a SYN flood must not evict sessions
/// (docs/threats.md EV-24). Linux gives a SYN-ACK up about 63 seconds after the first one.
pub const FLOW_HANDSHAKE: Duration = Duration::from_secs(64);
/// Bytes buffered per direction that cannot be delivered yet (out of order, or not acknowledged).
pub const REASSEMBLY_BYTES: usize = 64 * 1024;
/// Separate chunks buffered per direction, so that tiny segments cannot pin memory.
pub const REASSEMBLY_CHUNKS: usize = 256;
/// Delivered bytes retained per direction, for comparison with late copies of the same range (docs/threats.md EV-3,
/// FO-1).
pub const RETAINED_BYTES: usize = 16 * 1024;
/// SYNs and SYN-ACKs of one peer that wait for the own side's acknowledgment; the oldest is evicted. If the true one is
/// evicted, the fingerprint of the peer's stack is unknown; nothing else is lost.
pub const SYN_CLAIMS: usize = 4;
/// Segments of the peer stored from before the own side's first acknowledgment; later ones are dropped, and missed if
/// they were real.
pub const EARLY_SEGMENTS: usize = 4;
/// Conflicting copies stored as evidence per flow.
pub const CONFLICTS: usize = 8;
/// Bytes stored of each conflicting copy.
pub const CONFLICT_BYTES: usize = 256;
/// Longest line, in bytes, that is stored whole: AUTH lines reach 12,288 bytes (RFC 4954 §4).
pub const LINE: usize = 12_288;
/// Lines stored of one multi-line reply.
pub const REPLY_LINES: usize = 128;
/// Commands waiting for their reply; equal ones in a row count as one.
pub const PIPELINE: usize = 256;
/// Transcript lines stored per session: the first half and the newest half.
pub const TRANSCRIPT_LINES: usize = 64;
/// Maximum bytes of a transcript line.
pub const TRANSCRIPT_LINE: usize = 512;
/// Cleartext bytes stored as evidence per direction: greeting, EHLO reply, some tens of commands and the TLS hellos.
pub const EXHIBIT_OCTETS: usize = 16 * 1024;
/// Packets of a connection whose headers are stored as evidence: the first half and the newest half.
pub const EXHIBIT_PACKETS: usize = 128;
/// Recipient domains stored per session.
pub const RECIPIENT_DOMAINS: usize = 16;
/// Default of `[limits] peers`: peers with history, in memory and in the store. A peer about which little is known is
/// evicted.
pub const HISTORY_PEERS: usize = 200_000;
/// Ended sessions whose verdict waits for a policy look-up. If there are more, the oldest is judged without the answer.
pub const PENDING_VERDICTS: usize = 1_024;
/// Maximum time for which a finding is held back while its outcome can still get worse.
pub const VERDICT_DEADLINE: Duration = Duration::from_secs(10);
