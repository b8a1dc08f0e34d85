//! From records to outputs: runs the engine on records from the kernel's ring or from capture files.
//!
//! [`Pipeline`] converts records to segments, feeds the engine, and completes its findings ([`incident`]: identifier,
//! Community ID, sender on this host). [`replay`] runs capture files through the same gate and engine. The results
//! are the engine's outputs; the caller of the pipeline dispatches them. Imports `smtpwatch-capture` (records),
//! `smtpwatch-core` and `smtpwatch-config`.

pub mod incident;
pub mod replay;

use smtpwatch_common::{
    Checksum, Direction, Record,
    record::{Header, UID_UNKNOWN, flag},
};
use smtpwatch_config::Config;
use smtpwatch_core::{
    Engine, FlowKey, Output, Role, Segment, Settings, Side, TcpFlags, Timestamp,
    policy::{history::History, published::LookupResult, rule::Network},
    segment::SocketOwner,
};

use incident::sender::SenderCache;

/// Interval of the engine's clock ticks.
const TICK: std::time::Duration = std::time::Duration::from_secs(1);

/// Origin of the records; it decides how the role of this host is determined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordSource {
    /// The hooks of this host: the direction of a packet decides, unless `local` of the configuration does.
    Live,
    /// A capture file: `local` decides; without it, the client is assumed to be this host.
    File,
}

/// The engine, with the data that converts records for it.
pub struct Pipeline {
    engine: Engine,
    config: Config,
    ticked: Timestamp,
    /// `None` for a capture file, whose cgroups belong to another host or another time.
    sender_cache: Option<SenderCache>,
    /// Hash of the active configuration.
    config_hash: String,
    /// The user id that the kernel reports for an unknown user.
    overflow_uid: u32,
}

/// The user id that `bpf_get_socket_uid` returns for a packet without a full socket, such as a SYN-ACK (default of
/// kernel.overflowuid, sysctl(8)).
const OVERFLOW_UID: u32 = 65_534;

/// The overflow user id of this kernel.
fn overflow_uid() -> u32 {
    let set = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    set.and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_UID)
}

/// Networks whose clients are this site's own.
fn trusted_clients(config: &Config) -> Vec<Network> {
    config.local.iter().chain(&config.trusted_clients).copied().collect()
}

impl Pipeline {
    /// Creates a pipeline with the rules of `config` and the peers of `history`.
    #[must_use]
    pub fn new(config: Config, history: History, source: RecordSource) -> Self {
        // Replays do no look-ups: published policies may have changed since the capture.
        let lookups = source == RecordSource::Live && (*config.policy.mta_sts || *config.policy.dane);
        let settings = Settings {
            strength: config.baseline,
            flows: config.limits.flows,
            lookups,
            trusted_proxies: config.trusted_proxies.clone(),
            trusted_clients: trusted_clients(&config),
        };
        let engine = Engine::new(settings, config.rules.clone(), history);
        let config_hash = config.hash();
        let sender_cache = (source == RecordSource::Live).then(SenderCache::new);
        Self { engine, config, ticked: Timestamp::default(), sender_cache, config_hash, overflow_uid: overflow_uid() }
    }

    /// Processes one record, seen at `at` on `interface`. Resulting outputs are passed to `on`.
    pub fn record(&mut self, record: &Record<'_>, at: Timestamp, interface: &str, on: &mut impl FnMut(Output)) {
        let segment = self.segment(record, at, interface);
        // At the start of each connection: process and cgroup may be gone before there is a finding.
        if segment.flags.contains(TcpFlags::SYN)
            && let (Side::Client, Some(owner), Some(sender_cache)) =
                (segment.from, segment.sender, &mut self.sender_cache)
        {
            sender_cache.prefetch(owner.cgroup, at);
        }
        self.engine.handle(&segment);
        self.drain(on);
    }

    /// Advances the engine's clock, at most once a second. A capture file has no real time: [`Source::File`] never
    /// ticks.
    pub fn tick(&mut self, now: Timestamp, on: &mut impl FnMut(Output)) {
        // The engine's time never steps ([`smtpwatch_system::clock::Steady`]).
        if now.since(self.ticked) >= TICK {
            self.ticked = now;
            self.engine.tick(now);
            self.drain(on);
        }
    }

    /// Passes a look-up result about a published policy to the engine.
    pub fn apply(&mut self, result: LookupResult, on: &mut impl FnMut(Output)) {
        self.engine.apply(result);
        self.drain(on);
    }

    /// Replaces the active configuration, also for sessions in progress. Settings that a running engine cannot change
    /// are ignored.
    pub fn reconfigure(&mut self, config: Config) {
        let (proxies, clients) = (config.trusted_proxies.clone(), trusted_clients(&config));
        self.engine.reconfigure(config.baseline, config.rules.clone(), proxies, clients);
        self.config_hash = config.hash();
        self.config = config;
    }

    /// Ends the input: every open session is judged in its current state.
    pub fn finish(&mut self, now: Timestamp, on: &mut impl FnMut(Output)) {
        self.engine.finish(now);
        self.drain(on);
    }

    /// Read access to the engine.
    pub const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Write access to the history of peers.
    pub fn history_mut(&mut self) -> &mut History {
        self.engine.history_mut()
    }

    fn drain(&mut self, on: &mut impl FnMut(Output)) {
        while let Some(mut output) = self.engine.poll() {
            if let Output::Finding(finding) = &mut output {
                incident::name(finding, &self.config_hash);
                if let (Some(sender), Some(sender_cache)) = (&mut finding.sender, &mut self.sender_cache) {
                    sender_cache.enrich(sender, finding.time);
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

    /// The role of this host in a flow. `local` decides if it contains exactly one end.
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

/// The owner of the sending socket on this host, if the kernel reported it.
fn owner(header: &Header, overflow_uid: u32) -> Option<SocketOwner> {
    // The overflow user id means either no user, or a user that the socket's user namespace does not map.
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
        // The value as set with sysctl(8).
        assert_eq!(owner(&header(65_534, 0), 60_000).and_then(|owner| owner.uid), Some(65_534));
        assert!(overflow_uid() > 0);
    }
}
