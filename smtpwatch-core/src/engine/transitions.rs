//! The transitions between the states of a [`Lifecycle`]: admission to the table, resets, the end of the connection, and
//! what each [`Timer`] does when it fires.

use std::net::IpAddr;

use super::{
    Engine, EvictReason, Output,
    arena::FlowId,
    lifecycle::{Handshake, Lifecycle, Reset},
    timers::{Armed, IDLE, Timer},
    verdict::Urgency,
};
use crate::{FlowKey, Role, Timestamp, limits};

impl Engine {
    /// Fires all timers that are due, except [`Timer::VerdictDeadline`].
    pub(super) fn fire_timers(&mut self) {
        if self.now < self.timers.earliest() {
            return;
        }
        while let Some(fired) = self.timers.fire(self.now) {
            self.fire(fired);
        }
    }

    /// Raises the claims whose time limit has passed.
    pub(super) fn fire_verdict_deadlines(&mut self) {
        while let Some(fired) = self.timers.fire_one_of(&[Timer::VerdictDeadline], self.now) {
            self.fire(fired);
        }
    }

    fn fire(&mut self, Armed { timer, id, due }: Armed) {
        match timer {
            Timer::VerdictDeadline => {
                self.judge(id, due, Urgency::Overdue);
            }
            Timer::ResetConfirmation => {
                if self.awaited_lookups(id).is_empty() {
                    self.conclude_reset(id, due);
                } else {
                    self.set_reset(id, Reset::AwaitingPolicy, due);
                    self.set_aside(id);
                }
            }
            Timer::PolicyAfterReset => self.conclude_reset(id, due),
            Timer::Retention => self.end(id, due),
            Timer::PolicyAfterClose => self.resume(id),
            Timer::Handshake => self.end(id, self.now),
            Timer::Idle(_) => {
                self.flows[id].session.timed_out();
                self.outputs.push_back(Output::Evicted(EvictReason::Idle));
                self.end(id, self.now);
            }
        }
    }

    /// Makes room for one more flow.
    pub(super) fn make_room(&mut self) {
        while self.flows.len() >= self.settings.flows.max(1) {
            if let Some(judged) = self.timers.first_of(&[Timer::Retention]) {
                self.end(judged.id, self.now);
                continue;
            }
            // Evict half-open flows first, so that a SYN flood evicts no session (docs/threats.md EV-24).
            let half_open = self.timers.first_of(&[Timer::Handshake]);
            let Some(oldest) = half_open.or_else(|| self.timers.first_of(&IDLE)) else { return };
            self.outputs.push_back(Output::Evicted(EvictReason::Capacity));
            self.end(oldest.id, self.now);
        }
    }

    /// The handshake is complete: counts the flow in the quota of its peer. Returns false if the quota is full.
    pub(super) fn grant(&mut self, id: FlowId) -> bool {
        let role = self.flows[id].role;
        if self.quota.is_full(role)
            && let Some(oldest) = self.timers.first_of(&[Timer::Idle(role)]).filter(|oldest| oldest.id != id)
        {
            self.outputs.push_back(Output::Evicted(EvictReason::Capacity));
            self.end(oldest.id, self.now);
        }
        self.timers.cancel(Timer::Handshake, id);
        let flow = &mut self.flows[id];
        let granted = self.quota.take(role, peer(role, flow.key));
        if granted && let Lifecycle::Tracked { handshake, .. } = &mut flow.lifecycle {
            *handshake = Handshake::Complete;
        }
        granted
    }

    /// The connection was reset.
    pub(super) fn begin_reset(&mut self, id: FlowId, at: Timestamp) {
        self.set_reset(id, Reset::Unconfirmed, at);
        // The client may retry before the reset is confirmed.
        self.note_failure(id, at);
    }

    /// The endpoint continues after a reset.
    pub(super) fn revoke_reset(&mut self, id: FlowId) {
        let flow = &mut self.flows[id];
        flow.session.resume_after_reset();
        if let Lifecycle::Tracked { reset, .. } = &mut flow.lifecycle
            && let Some(reset) = reset.take()
        {
            self.timers.cancel(timer(reset), id);
        }
    }

    fn conclude_reset(&mut self, id: FlowId, at: Timestamp) {
        self.set_reset(id, Reset::Judged, at);
        self.conclude(id, at);
        self.flows[id].forget_secrets();
    }

    fn set_reset(&mut self, id: FlowId, next: Reset, at: Timestamp) {
        if let Lifecycle::Tracked { reset, .. } = &mut self.flows[id].lifecycle {
            *reset = Some(next);
            self.timers.arm(timer(next), id, at);
        }
    }

    /// Ends a connection: delivers the buffered bytes, and gives the final verdict or lets it wait for policy look-ups.
    pub(super) fn end(&mut self, id: FlowId, at: Timestamp) {
        let flow = &mut self.flows[id];
        if flow.connection.one_sided() {
            flow.session.one_sided();
        }
        flow.connection.close(at);
        self.drain(id, at);
        let lookups = self.awaited_lookups(id);
        if lookups.is_empty() {
            self.conclude(id, at);
        }
        let flow = &self.flows[id];
        if flow.lifecycle.is_counted() {
            self.quota.give_back(flow.role, peer(flow.role, flow.key));
        }
        self.timers.cancel_all(id);
        if lookups.is_empty() {
            self.flows.remove(id);
            return;
        }
        self.set_aside(id);
        self.flows.retire(id);
        self.flows[id].lifecycle = Lifecycle::AwaitingPolicy { ended: at, lookups: lookups.into() };
        self.timers.arm(Timer::PolicyAfterClose, id, self.now);
        if self.flows.retired() > limits::PENDING_VERDICTS
            && let Some(oldest) = self.timers.first_of(&[Timer::PolicyAfterClose])
        {
            self.resume(oldest.id);
        }
    }

    /// Prepares a flow for a wait: parses what is left, then frees all bytes that may hold a secret.
    fn set_aside(&mut self, id: FlowId) {
        let flow = &mut self.flows[id];
        flow.finish_session();
        flow.forget_secrets();
    }

    /// Ends the wait of an ended connection for policy look-ups.
    pub(super) fn resume(&mut self, id: FlowId) {
        self.timers.cancel(Timer::PolicyAfterClose, id);
        if let Lifecycle::AwaitingPolicy { ended, .. } = self.flows[id].lifecycle {
            self.conclude(id, ended);
            self.flows.remove_retired(id);
        }
    }
}

/// The timer that is armed while a flow is in this state.
const fn timer(reset: Reset) -> Timer {
    match reset {
        Reset::Unconfirmed => Timer::ResetConfirmation,
        Reset::AwaitingPolicy => Timer::PolicyAfterReset,
        Reset::Judged => Timer::Retention,
    }
}

const fn peer(role: Role, key: FlowKey) -> IpAddr {
    match role {
        Role::Client => key.server.ip(),
        Role::Server => key.client.ip(),
    }
}
