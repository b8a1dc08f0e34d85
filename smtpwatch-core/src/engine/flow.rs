//! State of one tracked flow: the TCP connection, the SMTP session, the claims raised so far, and the evidence.
//!
//! The engine keeps each [`Flow`] in its [table](super::table) and drives it; this file builds findings and session
//! summaries from it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use smtpwatch_common::{Admission, Binding};

use super::{
    lifecycle::{Handshake, Lifecycle},
    output::{SessionResult, SessionSummary},
    packet_log::PacketLog,
};
use crate::{
    Finding, FlowKey, Role, Segment, Side, TcpFlags, Timestamp,
    evidence::{AppliedPolicy, ByteRange, ConflictingSegments, EvidenceBundle, Known, Octets},
    finding::{FlowInfo, Kind, Observed, Outcome, PeerInfo, Provenance, SCHEMA_VERSION, Sender, Severity},
    flow::{Connection, SynClaims},
    judge::{
        Claim, Wire,
        certificate::{self, Comparison},
    },
    policy::{
        expectation::{self, Subject},
        failures::Failure,
        history::{History, HistoryRecord},
        profile::{self, Profile},
        published::demand::{Identity, PeerQuery},
    },
    segment::{Direction, SocketOwner},
    smtp::{Doubt, Session, Starttls, TlsPhase, TlsVersion},
};

/// Keystroke segments after which the client counts as a person typing (docs/threats.md FP-25), if they are also more
/// than half of the client's segments.
const TYPED_SEGMENTS: u32 = 4;
/// Maximum payload of a keystroke segment, in bytes: the line end is CR LF.
const KEY_BYTES: u32 = 2;
/// Minimum time between two keystrokes of a person. Size alone proves nothing: a program may send byte by byte, and a
/// device on the path may split segments.
const KEY_TIME: Duration = Duration::from_millis(20);

/// Characters stored of the line that offers STARTTLS.
const OFFER_LINE: usize = 64;

pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) role: Role,
    interface: Arc<str>,
    /// Which side leaves this host, and through which interface.
    binding: Binding,

    // Lifecycle.
    pub(super) lifecycle: Lifecycle,
    /// Engine time at the first segment: it decides which rules apply to the session.
    pub(super) begun: Timestamp,
    /// When the idle timer was last started. Engine time never goes back, unlike segment times in a capture that is out
    /// of order.
    pub(super) last_touched: Timestamp,

    // The dialogue.
    pub(super) connection: Connection,
    pub(super) session: Session,
    /// A segment with payload was seen. A flow without payload is not a session.
    pub(super) payload_seen: bool,
    /// TLS is established: delivered bytes are not retained.
    pub(super) tls_established: bool,
    /// The gate was ordered to mute the flow.
    pub(super) mute_ordered: bool,

    // The verdict.
    /// The session was counted and recorded in history: once, also if the endpoint continues after a reset.
    pub(super) recorded: bool,
    /// The failed handshake that this flow retries, as claimed. It is stored because the verdict may wait, and by then
    /// the peer may have a newer failure.
    pub(super) retried: Option<Box<Failure>>,
    /// Latest version of each claim that is held back.
    held: Vec<Claim>,
    /// Claims already raised, with severity and outcome as raised.
    raised: Vec<(Kind, usize, Severity, Outcome)>,

    // Measurements.
    /// The SYNs of both ends were checked for multipath TCP.
    multipath_checked: bool,
    syn_at: Option<Timestamp>,
    round_trip: Option<Duration>,
    peer_ttl: Option<(u8, u8)>,
    reset_ttl: Option<u8>,
    keystrokes: Keystrokes,
    /// The local process that owns the sending socket, if the kernel reported it.
    sender: Option<SocketOwner>,
    /// Packet headers of the flow, as evidence.
    packet_log: PacketLog,
}

/// Whether a person types the client's lines.
#[derive(Default)]
struct Keystrokes {
    /// Client segments with payload.
    segments: u32,
    /// Those that are keystrokes; see [`TYPED_SEGMENTS`].
    typed: u32,
    /// Time of the latest client segment with payload, and the sequence number after it.
    latest: Option<(Timestamp, u32)>,
}

/// History and policies of the peer at the time of a finding.
pub(super) struct Context {
    pub(super) history: Option<Known>,
    pub(super) policies: Vec<AppliedPolicy>,
}

impl Flow {
    /// Creates a flow from its first segment; `claims` are unconfirmed SYNs that the other side sent earlier.
    pub(super) fn new(segment: &Segment<'_>, interface: Arc<str>, claims: SynClaims, now: Timestamp) -> Self {
        let own = segment.direction.map(|_| segment.role.side());
        let mut flow = Self {
            key: segment.flow,
            role: segment.role,
            interface,
            binding: Binding::of(segment.from.into(), segment.direction, segment.interface_index),
            lifecycle: Lifecycle::Tracked { handshake: Handshake::Incomplete, reset: None },
            begun: now,
            last_touched: Timestamp::default(),
            connection: Connection::new(segment, own, claims),
            session: Session::new(!segment.flags.contains(TcpFlags::SYN)),
            payload_seen: false,
            tls_established: false,
            mute_ordered: false,
            recorded: false,
            retried: None,
            held: Vec::new(),
            raised: Vec::new(),
            multipath_checked: false,
            syn_at: None,
            round_trip: None,
            peer_ttl: None,
            reset_ttl: None,
            keystrokes: Keystrokes::default(),
            sender: None,
            packet_log: PacketLog::default(),
        };
        flow.measure(segment);
        flow
    }

    /// Checks whether `segment` may belong to this flow. The first segment that leaves this host binds the flow.
    pub(super) fn admit(&mut self, segment: &Segment<'_>) -> Admission {
        let (from, index) = (segment.from.into(), segment.interface_index);
        let admission = self.binding.admit(from, segment.direction, index);
        if admission == Admission::Own && !self.binding.is_bound() {
            self.binding = Binding::of(from, segment.direction, index);
        }
        admission
    }

    /// An outgoing segment shows that this host is not the end that the flow's first, incoming segment suggested.
    pub(super) fn is_refuted_by(&self, segment: &Segment<'_>) -> bool {
        !self.binding.is_bound() && segment.direction == Some(Direction::Egress) && segment.role != self.role
    }

    /// This host's own side takes part in the connection. Without it no session took place.
    pub(super) const fn is_witnessed(&self) -> bool {
        self.binding.is_bound() && self.connection.is_witnessed()
    }

    /// This host's side sends a segment after its SYN. If directions are unknown, either side does.
    pub(super) fn completes_handshake(&self, segment: &Segment<'_>) -> bool {
        let known = segment.direction.is_some();
        let own = !known || segment.from == self.role.side() && !segment.flags.contains(TcpFlags::RST);
        own && !segment.flags.contains(TcpFlags::SYN)
    }

    pub(super) fn push(&mut self, segment: &Segment<'_>) {
        self.connection.push(segment);
        self.measure(segment);
    }

    /// Records the packet properties that are compared later.
    fn measure(&mut self, segment: &Segment<'_>) {
        if !self.tls_established {
            self.packet_log.push(segment);
        }
        self.payload_seen |= segment.length > 0;
        if segment.direction.is_some() {
            // If there are several SYN-ACKs, use the one that this host's side accepted.
            if segment.from == Side::Client && segment.flags.contains(TcpFlags::SYN) {
                self.syn_at = self.syn_at.or(Some(segment.at));
            }
            let answer = self.connection.confirmed_at().zip(self.syn_at).map(|(answer, syn)| answer.since(syn));
            self.round_trip = self.round_trip.or(answer);
        } else if segment.flags.contains(TcpFlags::SYN) {
            match segment.from {
                Side::Client => self.syn_at = Some(segment.at),
                Side::Server => {
                    let round_trip = self.syn_at.map(|syn| segment.at.since(syn));
                    self.round_trip = self.round_trip.or(round_trip);
                }
            }
        }
        if !self.multipath_checked
            && let (Some(client), Some(server)) =
                (self.connection.fingerprint(Side::Client), self.connection.fingerprint(Side::Server))
        {
            self.multipath_checked = true;
            if client.multipath() && server.multipath() {
                self.session.multipath();
            }
        }
        if segment.from == self.peer() && segment.length > 0 && segment.ttl != 0 {
            let (lowest, highest) = self.peer_ttl.unwrap_or((segment.ttl, segment.ttl));
            self.peer_ttl = Some((lowest.min(segment.ttl), highest.max(segment.ttl)));
        }
        if segment.from == self.peer() && segment.flags.contains(TcpFlags::RST) && segment.ttl != 0 {
            self.reset_ttl = Some(segment.ttl);
        }
        if segment.from == Side::Client {
            self.sender = self.sender.or(segment.sender);
        }
        if segment.from == Side::Client && segment.length > 0 && !self.tls_established {
            self.keystrokes.push(segment);
        }
    }

    /// Evaluates what is left of the dialogue, without a verdict.
    pub(super) fn finish_session(&mut self) {
        self.session.finish();
        while self.session.poll().is_some() {}
    }

    /// Called once the verdict is final: overwrites and frees all bytes that may hold a secret. Redacted evidence
    /// stays.
    pub(super) fn forget_secrets(&mut self) {
        self.connection.forget_secrets(|conflict| self.session.retained_copies(conflict));
        self.session.forget_secrets();
    }

    const fn peer(&self) -> Side {
        match self.role {
            Role::Client => Side::Server,
            Role::Server => Side::Client,
        }
    }

    pub(super) fn wire(&self) -> Wire<'_> {
        Wire {
            syn_ack: self.connection.fingerprint(Side::Server),
            ttl: self.peer_ttl,
            reset_ttl: self.reset_ttl,
            round_trip: self.round_trip.filter(|_| self.role == Role::Client),
            conflicts_dropped: self.connection.conflicts_dropped(),
            typed: self.keystrokes.are_typed(),
            conflicts: self.connection.conflicts(),
            discarded: self.connection.discarded(self.peer()),
        }
    }

    /// Profile of the server in a session that established TLS; `None` for any other session.
    pub(super) fn profile(&self) -> Option<Profile> {
        let seen = &self.session.seen;
        let tls = seen.tls.as_ref().filter(|tls| tls.is_established())?;
        let capabilities = seen.capabilities.as_ref()?;
        let syn_ack = self.connection.fingerprint(Side::Server);
        Some(Profile {
            keywords: Profile::keep(capabilities.keywords().map(str::to_owned)),
            ehlo_octets: seen.ehlo_octets,
            plaintext_mechanisms: Profile::keep(capabilities.plaintext_mechanisms().into_iter()),
            offer: profile::start(&capabilities.offer_line().unwrap_or_default(), OFFER_LINE).to_owned(),
            readable_greeting: seen.greeting_name.is_some(),
            client: match self.role {
                Role::Client => String::new(),
                Role::Server => seen.client_name.clone().unwrap_or_default(),
            },
            words: [seen.greeting.as_deref().unwrap_or_default(), &capabilities.first_line].map(Profile::shape),
            quoted: Profile::quoted(&capabilities.first_line),
            ttl: syn_ack.map_or(0, |syn_ack| syn_ack.ttl),
            mss: syn_ack.and_then(|syn_ack| syn_ack.mss).unwrap_or(0),
            options: syn_ack.map(|syn_ack| syn_ack.option_order().to_vec()).unwrap_or_default(),
            round_trip: self.round_trip.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            tls_version: tls.server_hello.map_or(0, |hello| hello.version),
            weak_suite: tls.server_hello.is_some_and(|hello| hello.weak_suite().is_some()),
        })
    }

    /// The names by which the policies and the history of the server are found.
    pub(super) fn server_names<'a>(&'a self, history: &'a History) -> Vec<&'a str> {
        let given = self.session.seen.server_names();
        if self.role == Role::Server {
            return given;
        }
        let subject = Subject { flow: self.key, role: self.role, names: &[] };
        expectation::names(given, history.get(&subject.address_key()))
    }

    /// Names that the peer gives itself: a server in a session that offered STARTTLS or established TLS, a client under
    /// TLS. Empty for any other session.
    pub(super) fn names_given(&self) -> Vec<String> {
        let seen = &self.session.seen;
        let established = seen.tls.as_deref().is_some_and(TlsPhase::is_established);
        match self.role {
            Role::Client if established || seen.offers_starttls() => {
                seen.server_names().into_iter().map(str::to_owned).collect()
            }
            Role::Server if established => seen.client_name.iter().cloned().collect(),
            Role::Client | Role::Server => Vec::new(),
        }
    }

    /// The peer looks like the host in the history record, and not like another member of a farm or another client at
    /// the same address. A peer of which only the address is recorded matches.
    pub(super) fn is_alike(&self, known: &HistoryRecord) -> bool {
        let seen = &self.session.seen;
        let named = match self.role {
            Role::Client => seen.server_names().iter().any(|name| known.is_named(name)),
            Role::Server => seen.client_name.as_deref().is_some_and(|name| known.is_named(name)),
        };
        if !known.names.is_empty() && !named {
            return false;
        }
        let Some(profile) = known.profile.as_deref().filter(|_| self.role == Role::Client) else { return true };
        let greeting = Profile::shape(seen.greeting.as_deref().unwrap_or_default());
        let stack = self.connection.fingerprint(Side::Server).is_none_or(|syn_ack| {
            (syn_ack.mss.unwrap_or(0), syn_ack.option_order()) == (profile.mss, &profile.options[..])
        });
        stack && greeting == profile.words[0]
    }

    /// Whether a claim was not raised before, or has a higher severity or a worse outcome than when it was raised.
    pub(super) fn escalates(&self, claim: &Claim) -> bool {
        let before = self.raised.iter().find(|(kind, instance, ..)| (*kind, *instance) == (claim.kind, claim.instance));
        before.is_none_or(|(.., severity, outcome)| *severity < claim.severity || *outcome < claim.outcome)
    }

    pub(super) fn hold(&mut self, claim: Claim) {
        self.held.retain(|held| (held.kind, held.instance) != (claim.kind, claim.instance));
        self.held.push(claim);
    }

    /// Returns the claims held back that are not in `due`. A claim made before a gap remains valid, although the rules
    /// cannot repeat it after the gap. In a session without a gap, a claim that the rules do not repeat is withdrawn.
    pub(super) fn release(&mut self, due: &[Claim]) -> Vec<Claim> {
        let held = std::mem::take(&mut self.held);
        if !matches!(self.session.seen.doubt, Some(Doubt::Gap | Doubt::Ambiguous | Doubt::Server)) {
            return Vec::new();
        }
        let same = |held: &Claim| due.iter().any(|claim| (claim.kind, claim.instance) == (held.kind, held.instance));
        held.into_iter().filter(|claim| self.escalates(claim) && !same(claim)).collect()
    }

    pub(super) fn raise(&mut self, claim: &Claim) {
        self.held.retain(|held| (held.kind, held.instance) != (claim.kind, claim.instance));
        self.raised.retain(|(kind, instance, ..)| (*kind, *instance) != (claim.kind, claim.instance));
        self.raised.push((claim.kind, claim.instance, claim.severity, claim.outcome));
    }

    pub(super) fn finding(&self, at: Timestamp, claim: Claim, context: &Context) -> Finding {
        let seen = &self.session.seen;
        let name = match self.role {
            Role::Client => seen.server_names().first().map(|name| (*name).to_owned()),
            Role::Server => seen.client_name.clone(),
        };
        let lines = seen.capabilities.iter().flat_map(|capabilities| capabilities.lines());
        Finding {
            schema_version: SCHEMA_VERSION,
            id: String::new(),
            time: at,
            kind: claim.kind,
            rule: claim.rule.as_str().into(),
            severity: claim.severity,
            evidence: claim.evidence,
            outcome: claim.outcome,
            role: self.role,
            flow: FlowInfo {
                client: self.key.client.to_string(),
                server: self.key.server.to_string(),
                interface: self.interface.to_string(),
                community_id: String::new(),
            },
            peer: PeerInfo {
                name: name.unwrap_or_default(),
                greeting: seen.greeting.clone().unwrap_or_default(),
                stranger: claim.by_stranger,
            },
            expected: claim.expected,
            observed: Observed {
                capabilities: lines.map(|line| line.text.to_owned()).collect(),
                starttls: seen.starttls_state(),
                mechanism: claim.mechanism,
                reply: claim.reply,
            },
            transcript: seen.transcript(),
            gaps: seen.gaps,
            indicators: claim.indicators,
            sender: self.sender.map(|owner| Sender { uid: owner.uid, cgroup_id: owner.cgroup, ..Sender::default() }),
            provenance: Provenance::default(),
            exhibit: Some(Box::new(self.evidence(context))),
        }
    }

    fn evidence(&self, context: &Context) -> EvidenceBundle {
        let ranges = self.session.kept().into_iter().map(|(from, offset, octets)| ByteRange {
            from,
            seq: self.connection.seq_at(from, offset),
            octets: Octets(octets),
        });
        let (packets, packets_left_out) = self.packet_log.packets();
        let copies = self.connection.conflicts().iter().map(|conflict| {
            let [first, other] = self.session.copies(conflict);
            ConflictingSegments {
                from: conflict.from,
                seq: self.connection.seq_at(conflict.from, conflict.offset),
                first: Octets(first),
                other: Octets(other),
                time: conflict.at,
                ttl: conflict.ttl,
            }
        });
        EvidenceBundle {
            octets: ranges.collect(),
            octets_left_out: self.session.left_out(),
            packets,
            packets_left_out,
            copies: copies.collect(),
            history: context.history.clone(),
            policies: context.policies.clone(),
            losses: BTreeMap::new(),
        }
    }

    /// Whether a claim is held back.
    pub(super) fn holds_claims(&self) -> bool {
        !self.held.is_empty()
    }

    /// The keys by which a published policy is looked up.
    pub(super) fn peer_query<'a>(&'a self, names: &'a [&'a str]) -> PeerQuery<'a> {
        let address = match self.role {
            Role::Client => self.key.server.ip(),
            Role::Server => self.key.client.ip(),
        };
        PeerQuery { address, names, recipients: &self.session.seen.recipient_domains }
    }

    /// Compares the server's certificate with its published policy.
    pub(super) fn certificate(&self, identity: &Identity, now: Timestamp) -> Option<Comparison> {
        let tls = self.session.seen.tls.as_deref().filter(|tls| tls.server_hello.is_some())?;
        certificate::compare(tls, identity, now)
    }

    /// The session transferred mail or credentials, or tried to. A probe that sends only EHLO and QUIT does not count.
    pub(super) fn at_stake(&self) -> bool {
        let seen = &self.session.seen;
        seen.mail_sent || seen.starttls != Starttls::NotSent || !seen.auth.is_empty()
    }

    /// A claim of this kind was raised.
    pub(super) fn has_raised(&self, kind: Kind) -> bool {
        self.raised.iter().any(|(raised, ..)| *raised == kind)
    }

    pub(super) fn summary(&self) -> SessionSummary {
        let seen = &self.session.seen;
        let result = if seen.doubt.is_some() || !self.is_witnessed() {
            SessionResult::Unknown
        } else if seen.tls_began() && seen.handshake_end().is_none() {
            SessionResult::Tls
        } else if matches!(seen.outcome(), Outcome::Content | Outcome::Credential) {
            SessionResult::Plaintext
        } else {
            SessionResult::Rejected
        };
        let hello = seen.tls.as_deref().and_then(|tls| tls.server_hello);
        let tls_version = (result == SessionResult::Tls).then(|| TlsVersion::of_wire(hello.map(|hello| hello.version)));
        SessionSummary {
            flow: self.key,
            role: self.role,
            result,
            starttls: seen.starttls_state(),
            starttls_sent: seen.starttls != Starttls::NotSent,
            messages: seen.messages,
            auth: seen.auth.iter().map(|exchange| (exchange.mechanism.clone(), exchange.reply)).collect(),
            smtp: seen.smtp,
            gaps: seen.gaps,
            certificate: None,
            exempted: Vec::new(),
            tls_version,
        }
    }
}

impl Keystrokes {
    /// Counts a keystroke: a short segment that starts where the previous one ended (unlike a keep-alive), and comes at
    /// least [`KEY_TIME`] later.
    fn push(&mut self, segment: &Segment<'_>) {
        let is_key = self.latest.is_some_and(|(at, end)| {
            segment.length <= KEY_BYTES && segment.seq == end && segment.at.since(at) >= KEY_TIME
        });
        self.segments = self.segments.saturating_add(1);
        self.typed = self.typed.saturating_add(u32::from(is_key));
        self.latest = Some((segment.at, segment.seq.wrapping_add(segment.length)));
    }

    const fn are_typed(&self) -> bool {
        self.typed >= TYPED_SEGMENTS && self.typed > self.segments / 2
    }
}
