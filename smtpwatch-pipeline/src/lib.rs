//! From records to outputs: runs the engine on records from the kernel's ring or from capture files.
//!
//! [`Pipeline`] makes segments of records, feeds the engine, and names its findings ([`incident`]: identifier, Community ID, who on
//! this host sent). [`replay`] runs capture files through the same gate and engine. What comes out are the engine's outputs; who
//! drives the pipeline hands them on. Imports `smtpwatch-capture` (records), `smtpwatch-core` and `smtpwatch-config`.

pub mod incident;
pub mod replay;

use smtpwatch_common::{
    Checksum, Direction, Record,
    record::{Header, UID_UNKNOWN, flag},
};
use smtpwatch_config::Config;
use smtpwatch_core::{
    Engine, FlowKey, Output, Role, Segment, Settings, Side, TcpFlags, Timestamp,
    policy::{history::History, published::LookupResult},
    segment::SocketOwner,
};

use incident::sender::Senders;

/// The engine's clock ticks this often.
const TICK: std::time::Duration = std::time::Duration::from_secs(1);

/// Where records come from: who tells which end this host is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The hooks of this host: the direction tells, unless `local` of the configuration does.
    Live,
    /// A capture file: `local` tells; without it, this host is taken for the client.
    File,
}

/// The engine with its surroundings.
pub struct Pipeline {
    engine: Engine,
    config: Config,
    ticked: Timestamp,
    /// `None`: what a capture file tells of is not of this host, or not of now.
    senders: Option<Senders>,
    /// Of the configuration in force.
    config_hash: String,
    /// The user that the kernel names where it knows none.
    overflow_uid: u32,
}

/// The user that `bpf_get_socket_uid` gives for a packet without a full socket, such as a SYN-ACK (kernel.overflowuid of sysctl(8)).
const OVERFLOW_UID: u32 = 65_534;

/// That of this kernel.
fn overflow_uid() -> u32 {
    let set = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    set.and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_UID)
}

impl Pipeline {
    /// Judges by the rules of `config` and by `history`.
    #[must_use]
    pub fn new(config: Config, history: History, source: Source) -> Self {
        // Recorded traffic is judged by what is known.
        let lookups = source == Source::Live && (*config.policy.mta_sts || *config.policy.dane);
        let settings = Settings {
            strength: config.baseline,
            flows: config.limits.flows,
            lookups,
            trusted_proxies: config.trusted_proxies.clone(),
        };
        let engine = Engine::new(settings, config.rules.clone(), history);
        let config_hash = config.hash();
        let senders = (source == Source::Live).then(Senders::new);
        Self { engine, config, ticked: Timestamp::default(), senders, config_hash, overflow_uid: overflow_uid() }
    }

    /// One record, seen at `at` on `interface`. Everything that follows from it is handed to `on`.
    pub fn record(&mut self, record: &Record<'_>, at: Timestamp, interface: &str, on: &mut impl FnMut(Output)) {
        let segment = self.segment(record, at, interface);
        // Once a connection, and at its start: a process may be gone with its cgroup before there is a finding.
        if segment.flags.contains(TcpFlags::SYN)
            && let (Side::Client, Some(owner), Some(senders)) = (segment.from, segment.sender, &mut self.senders)
        {
            senders.meet(owner.cgroup, at);
        }
        self.engine.handle(&segment);
        self.drain(on);
    }

    /// Real time passes; does something once a second. A capture file has no real time: [`Source::File`] never ticks.
    pub fn tick(&mut self, now: Timestamp, on: &mut impl FnMut(Output)) {
        // The engine's time does not step ([`smtpwatch_system::clock::Steady`]).
        if now.since(self.ticked) >= TICK {
            self.ticked = now;
            self.engine.tick(now);
            self.drain(on);
        }
    }

    /// Something was found out about a published policy.
    pub fn learn(&mut self, learned: LookupResult, on: &mut impl FnMut(Output)) {
        self.engine.learn(learned);
        self.drain(on);
    }

    /// From here on `config` judges, also what has begun before. What a running engine cannot change is not examined.
    pub fn reconfigure(&mut self, config: Config) {
        self.engine.reconfigure(config.baseline, config.rules.clone(), config.trusted_proxies.clone());
        self.config_hash = config.hash();
        self.config = config;
    }

    /// The end: every open session is judged as it stands.
    pub fn finish(&mut self, now: Timestamp, on: &mut impl FnMut(Output)) {
        self.engine.finish(now);
        self.drain(on);
    }

    /// The engine.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What is known of peers.
    pub fn history_mut(&mut self) -> &mut History {
        self.engine.history_mut()
    }

    fn drain(&mut self, on: &mut impl FnMut(Output)) {
        while let Some(mut output) = self.engine.poll() {
            if let Output::Finding(finding) = &mut output {
                incident::name(finding, &self.config_hash);
                if let (Some(sender), Some(senders)) = (&mut finding.sender, &mut self.senders) {
                    senders.fill(sender, finding.time);
                }
            }
            on(output);
        }
    }

    fn segment<'a>(&self, record: &'a Record<'_>, at: Timestamp, interface: &'a str) -> Segment<'a> {
        let header = &record.header;
        let flow = FlowKey { client: header.key.client(), server: header.key.server() };
        let from = header.from().into();
        let flags = TcpFlags(header.tcp_flags);
        Segment {
            at,
            flow,
            from,
            role: self.role(&flow, header.direction(), from),
            direction: header.direction(),
            interface,
            interface_index: header.interface,
            seq: header.seq,
            ack: header.ack,
            flags,
            urgent: header.urgent,
            window: header.window,
            ttl: header.ttl,
            ip_id: header.ip_id,
            options: header.options(),
            checksum_right: match Checksum::of(record) {
                Checksum::Right => Some(true),
                Checksum::Wrong => Some(false),
                Checksum::Untold => None,
            },
            unusual: header.has_flags(flag::UNUSUAL),
            length: header.length,
            offset: header.offset,
            payload: record.payload,
            body_ended: header.has_flags(flag::BODY_ENDED),
            budget_spent: header.has_flags(flag::BUDGET),
            sender: owner(header, self.overflow_uid),
        }
    }

    /// Which end this host is. `local` decides where it names exactly one end.
    fn role(&self, flow: &FlowKey, direction: Option<Direction>, from: Side) -> Role {
        match (self.config.is_local(flow.client.ip()), self.config.is_local(flow.server.ip())) {
            (true, false) => return Role::Client,
            (false, true) => return Role::Server,
            (true, true) | (false, false) => {}
        }
        match (direction, from) {
            (None, _) | (Some(Direction::Egress), Side::Client) | (Some(Direction::Ingress), Side::Server) => {
                Role::Client
            }
            (Some(Direction::Egress), Side::Server) | (Some(Direction::Ingress), Side::Client) => Role::Server,
        }
    }
}

/// Who on this host sent, where the kernel told.
fn owner(header: &Header, overflow_uid: u32) -> Option<SocketOwner> {
    // The overflow user stands for no user, and for one that the socket's user namespace does not map.
    let uid = Some(header.uid).filter(|uid| *uid != UID_UNKNOWN && *uid != overflow_uid);
    (uid.is_some() || header.cgroup != 0).then_some(SocketOwner { uid, cgroup: header.cgroup })
}

#[cfg(test)]
mod tests {
    use smtpwatch_common::Scratch;

    use super::*;

    #[test]
    fn a_user_that_the_kernel_does_not_know_is_no_sender() {
        let header = |uid, cgroup| Header { uid, cgroup, ..Scratch::EMPTY.record.header };
        for (uid, cgroup, expected) in [
            (33, 7, Some((Some(33), 7))),
            (0, 0, Some((Some(0), 0))),
            (UID_UNKNOWN, 7, Some((None, 7))),
            (65_534, 7, Some((None, 7))),
            (65_534, 0, None),
            (UID_UNKNOWN, 0, None),
        ] {
            let found = owner(&header(uid, cgroup), OVERFLOW_UID).map(|owner| (owner.uid, owner.cgroup));
            assert_eq!(found, expected, "user {uid}, cgroup {cgroup}");
        }
        // As sysctl(8) sets it.
        assert_eq!(owner(&header(65_534, 0), 60_000).and_then(|owner| owner.uid), Some(65_534));
        assert!(overflow_uid() > 0);
    }
}
