//! All bounds of the engine, with names and reasons. Everything that a bound cuts or drops is counted.

use std::time::Duration;

/// Flows tracked at once, where the configuration does not say (`[limits] flows`); the least recently active flow is evicted.
pub const FLOWS: usize = 65_536;
/// The open connections of one peer's network (IPv4 /24, IPv6 /48) are at most this part of the table: no peer can push the sessions of
/// all others out of it (EV-24). Mail servers grant one client some tens, and open no more to one server.
pub const PEER_SHARE: usize = 4;
/// The open connections of one role are at most this part of the table, as numerator and denominator: clients that connect here leave room for
/// the mail that leaves.
pub const ROLE_SHARE: (usize, usize) = (3, 4);
/// A flow that was silent for this long is closed. RFC 5321 §4.5.3.2 gives 10 minutes as the longest reply time-out.
pub const FLOW_IDLE: Duration = Duration::from_secs(900);
/// A connection whose three-way handshake is not finished after this time is forgotten: a flood of SYNs must not push
/// sessions out of the table (docs/threats.md EV-24). Linux gives a SYN-ACK up about 63 seconds after the first one.
pub const FLOW_HANDSHAKE: Duration = Duration::from_secs(64);
/// Bytes held per direction that cannot be delivered yet (out of order, or not acknowledged).
pub const REASSEMBLY_BYTES: usize = 64 * 1024;
/// Separate pieces held per direction, so that tiny segments cannot pin memory.
pub const REASSEMBLY_CHUNKS: usize = 256;
/// Delivered bytes kept per direction, to compare late copies of the same range with them (docs/threats.md EV-3, FO-1).
pub const RETAINED_BYTES: usize = 16 * 1024;
/// SYNs and SYN-ACKs of one peer that wait for our own side's acknowledgment; the oldest is evicted. Without the right one the
/// fingerprint of the peer's stack is not known, and nothing else is lost.
pub const SYN_CLAIMS: usize = 4;
/// Segments of the peer kept that came before our own side's first acknowledgment; later ones are left out, and missed if they were real.
pub const EARLY_SEGMENTS: usize = 4;
/// Conflicting copies kept as evidence per flow.
pub const CONFLICTS: usize = 8;
/// Bytes of each copy kept of a conflict.
pub const CONFLICT_BYTES: usize = 256;
/// Longest line that is kept whole: AUTH lines reach 12,288 bytes (RFC 4954 §4).
pub const LINE: usize = 12_288;
/// Lines of one multi-line reply that are kept.
pub const REPLY_LINES: usize = 128;
/// Commands waiting for their reply; equal ones in a row count as one.
pub const PIPELINE: usize = 256;
/// Lines of the transcript kept per session: the first half of them and the newest.
pub const TRANSCRIPT_LINES: usize = 64;
/// Bytes of a transcript line.
pub const TRANSCRIPT_LINE: usize = 512;
/// Bytes in cleartext kept of each direction as evidence: greeting, EHLO reply, some tens of commands and the TLS hellos.
pub const EXHIBIT_OCTETS: usize = 16 * 1024;
/// Packets of a connection whose headers are kept as evidence: the first half of them and the newest.
pub const EXHIBIT_PACKETS: usize = 128;
/// Recipient domains remembered per session.
pub const RECIPIENT_DOMAINS: usize = 16;
/// Peers whose history is held, in memory and in the store, where the configuration does not say (`[limits] peers`); one of which
/// little is known is evicted.
pub const HISTORY_PEERS: usize = 200_000;
/// Sessions that have ended and whose verdict waits for a published policy to be looked up; the oldest is judged as it stands.
pub const PARKED: usize = 1_024;
/// A finding whose outcome can still get worse is held back no longer than this.
pub const VERDICT_DEADLINE: Duration = Duration::from_secs(10);
