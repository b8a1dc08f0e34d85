//! The timers of all flows in one table: [`TimerTable`]. [`Timer`] lists them: what arms each of them, what cancels it,
//! and what the engine does when it fires.
//!
//! The delay of each timer is constant. The order in which a timer is armed is therefore the order in which it is due,
//! and one list per timer is enough: to arm, to cancel and to find the next one that is due are O(1). In a capture that
//! is out of order, a timer may fire late, after the one that was armed before it.
//!
//! Timers end with their flow, so the table holds no stale entry, and its size is bounded by the number of flows.

use std::time::Duration;

use super::arena::FlowId;
use crate::{Role, Timestamp, limits, lru::LruLists, policy::published::LOOKUP_TIMEOUT};

/// Time from a reset to the verdict. A host that obeyed the reset sends nothing more; a host that saw a decoy usually
/// continues within this time (docs/threats.md EV-22).
const RESET_CONFIRMATION: Duration = Duration::from_secs(2);
/// How long a reset flow is retained after its verdict in case the host ignores the reset.
const RESET_RETENTION: Duration = Duration::from_secs(128);

/// A timer of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Timer {
    /// Bounds the time for which claims are held back ([`limits::VERDICT_DEADLINE`]).
    ///
    /// - Armed when a claim is held back, or when an outstanding look-up may still lead to a claim. Later claims do not
    ///   move it.
    /// - Cancelled by the end of the connection: the final verdict releases the claims. A reset does not cancel it.
    /// - Fires in [`Engine::tick`](super::Engine::tick) only: all claims are raised.
    VerdictDeadline,
    /// Decides that a reset is real ([`RESET_CONFIRMATION`]).
    ///
    /// - Armed by the reset.
    /// - Cancelled if the endpoint continues, or by the end of the connection.
    /// - Fires: the final verdict is given, and [`Self::Retention`] is armed. If the verdict depends on policy look-ups,
    ///   [`Self::PolicyAfterReset`] is armed instead.
    ResetConfirmation,
    /// Bounds the time for which the verdict on a reset flow waits for policy look-ups ([`LOOKUP_TIMEOUT`]).
    ///
    /// - Armed when [`Self::ResetConfirmation`] fires.
    /// - Cancelled if the endpoint continues, or by the end of the connection. An answer does not cancel it.
    /// - Fires: the final verdict is given, and [`Self::Retention`] is armed.
    PolicyAfterReset,
    /// Bounds the time for which a reset flow is retained after its final verdict ([`RESET_RETENTION`]).
    ///
    /// - Armed when the verdict on a reset flow is given.
    /// - Cancelled if the endpoint continues, or by the end of the connection. A full table ends these flows first.
    /// - Fires: the flow is dropped.
    Retention,
    /// Bounds the time for which the verdict on an ended connection waits for policy look-ups ([`LOOKUP_TIMEOUT`]).
    ///
    /// - Armed when a connection ends and its verdict depends on look-ups.
    /// - Cancelled by the last answer, by the end of the input, or if more than [`limits::PENDING_VERDICTS`] verdicts
    ///   wait.
    /// - Fires: the final verdict is given without the answer, and the flow is dropped.
    PolicyAfterClose,
    /// Bounds the time of a handshake ([`limits::FLOW_HANDSHAKE`]).
    ///
    /// - Armed by the first segment of a flow.
    /// - Cancelled when the handshake is complete, or by the end of the connection. A full table ends the oldest of
    ///   these flows before any other that is not judged.
    /// - Fires: the connection ends.
    Handshake,
    /// Bounds the time without a segment ([`limits::FLOW_IDLE`]). Each role of this host has its own list, because each
    /// has its own share of the table.
    ///
    /// - Armed by the first segment of a flow, and again by later ones, at most once in
    ///   [`TOUCH_INTERVAL`](super::TOUCH_INTERVAL).
    /// - Cancelled by the end of the connection. A full table ends the flow whose timer is due first.
    /// - Fires: the session counts as timed out, and the connection ends.
    Idle(Role),
}

/// The timers that fire as the engine's time advances, in the order of firing: those of an earlier group before those
/// of a later one, and within a group by time.
const FIRING_ORDER: [&[Timer]; 5] = [
    &[Timer::ResetConfirmation, Timer::PolicyAfterReset],
    &[Timer::Retention],
    &[Timer::PolicyAfterClose],
    &[Timer::Handshake],
    &IDLE,
];

/// The idle timers of both roles.
pub(super) const IDLE: [Timer; 2] = [Timer::Idle(Role::Client), Timer::Idle(Role::Server)];

/// A timer that is armed, or has fired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Armed {
    pub(super) timer: Timer,
    pub(super) id: FlowId,
    pub(super) due: Timestamp,
}

/// All armed timers.
#[derive(Default)]
pub(super) struct TimerTable {
    slots: [Slot; 4],
    /// The first timer of no list in [`FIRING_ORDER`] is due before this time.
    earliest: Timestamp,
}

/// Timers of which a flow has at most one at a time; their lists share the links.
#[derive(Default)]
struct Slot {
    lists: LruLists<4>,
    /// By flow.
    armed: Vec<Option<(Timer, Timestamp)>>,
}

impl TimerTable {
    /// Arms a timer at the time `at`. Replaces the timer of the flow that is armed in the same slot.
    pub(super) fn arm(&mut self, timer: Timer, id: FlowId, at: Timestamp) {
        let due = at + timer.delay();
        let (slot, list) = timer.position();
        self.clear(slot, id);
        let slot = &mut self.slots[slot];
        slot.lists.push_back(list, id);
        if slot.armed.len() <= id {
            slot.armed.resize(id + 1, None);
        }
        slot.armed[id] = Some((timer, due));
        self.expect(timer, due);
    }

    /// Cancels a timer, if it is armed.
    pub(super) fn cancel(&mut self, timer: Timer, id: FlowId) {
        if self.is_armed(timer, id) {
            self.clear(timer.position().0, id);
        }
    }

    /// Cancels all timers of a flow.
    pub(super) fn cancel_all(&mut self, id: FlowId) {
        for slot in 0..self.slots.len() {
            self.clear(slot, id);
        }
    }

    pub(super) fn is_armed(&self, timer: Timer, id: FlowId) -> bool {
        let armed = self.slots[timer.position().0].armed.get(id).copied().flatten();
        armed.is_some_and(|(armed, _)| armed == timer)
    }

    /// No timer in [`FIRING_ORDER`] fires before this time.
    pub(super) const fn earliest(&self) -> Timestamp {
        self.earliest
    }

    /// Removes and returns the next timer that fires up to `now`; not [`Timer::VerdictDeadline`].
    pub(super) fn fire(&mut self, now: Timestamp) -> Option<Armed> {
        let fired = FIRING_ORDER.iter().find_map(|group| self.fire_one_of(group, now));
        if fired.is_none() {
            let first = FIRING_ORDER.iter().filter_map(|group| self.first_of(group));
            self.earliest = first.map(|first| first.due).min().unwrap_or(Timestamp(i64::MAX));
        }
        fired
    }

    /// Removes and returns the first of these timers if it is due.
    pub(super) fn fire_one_of(&mut self, timers: &[Timer], now: Timestamp) -> Option<Armed> {
        let first = self.first_of(timers).filter(|first| first.due <= now)?;
        self.cancel(first.timer, first.id);
        Some(first)
    }

    /// The first of these timers, of all flows.
    pub(super) fn first_of(&self, timers: &[Timer]) -> Option<Armed> {
        timers.iter().filter_map(|timer| self.first(*timer)).min_by_key(|first| first.due)
    }

    /// The flows for which a timer is armed, the first due first.
    pub(super) fn flows(&self, timer: Timer) -> impl Iterator<Item = FlowId> {
        let (slot, list) = timer.position();
        self.slots[slot].lists.iter(list)
    }

    fn first(&self, timer: Timer) -> Option<Armed> {
        let (slot, list) = timer.position();
        let slot = &self.slots[slot];
        let id = slot.lists.oldest(list)?;
        let (timer, due) = slot.armed.get(id).copied().flatten()?;
        Some(Armed { timer, id, due })
    }

    fn clear(&mut self, slot: usize, id: FlowId) {
        let slot = &mut self.slots[slot];
        let Some((timer, _)) = slot.armed.get_mut(id).and_then(Option::take) else { return };
        slot.lists.unlink(timer.position().1, id);
        // In a capture that is out of order, the next one in the list may be due before.
        if let Some(first) = self.first(timer) {
            self.expect(timer, first.due);
        }
    }

    fn expect(&mut self, timer: Timer, due: Timestamp) {
        if timer != Timer::VerdictDeadline {
            self.earliest = self.earliest.min(due);
        }
    }
}

impl Timer {
    /// Time from arming to firing.
    const fn delay(self) -> Duration {
        match self {
            Self::VerdictDeadline => limits::VERDICT_DEADLINE,
            Self::ResetConfirmation => RESET_CONFIRMATION,
            Self::PolicyAfterReset | Self::PolicyAfterClose => LOOKUP_TIMEOUT,
            Self::Retention => RESET_RETENTION,
            Self::Handshake => limits::FLOW_HANDSHAKE,
            Self::Idle(_) => limits::FLOW_IDLE,
        }
    }

    /// The slot of the timer, and its list there.
    const fn position(self) -> (usize, usize) {
        match self {
            Self::Idle(role) => (0, role as usize),
            Self::Handshake => (1, 0),
            Self::VerdictDeadline => (2, 0),
            Self::ResetConfirmation => (3, 0),
            Self::PolicyAfterReset => (3, 1),
            Self::Retention => (3, 2),
            Self::PolicyAfterClose => (3, 3),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ALL: [Timer; 8] = [
        Timer::VerdictDeadline,
        Timer::ResetConfirmation,
        Timer::PolicyAfterReset,
        Timer::Retention,
        Timer::PolicyAfterClose,
        Timer::Handshake,
        IDLE[0],
        IDLE[1],
    ];

    #[test]
    fn each_timer_has_its_own_list() {
        for (number, timer) in ALL.iter().enumerate() {
            assert!(ALL[..number].iter().all(|other| other.position() != timer.position()), "{timer:?}");
        }
        let in_order = FIRING_ORDER.concat();
        assert!(ALL.iter().all(|timer| in_order.contains(timer) != (*timer == Timer::VerdictDeadline)));
    }

    #[test]
    fn a_flow_that_ended_leaves_nothing_behind() {
        let mut timers = TimerTable::default();
        for (id, timer) in ALL.into_iter().enumerate() {
            timers.arm(timer, id, Timestamp::from_secs(1));
            timers.cancel_all(id);
        }
        let later = Timestamp::from_secs(10_000);
        assert_eq!((timers.fire(later), timers.first_of(&ALL)), (None, None));
        assert_eq!(timers.earliest(), Timestamp(i64::MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_fires_is_what_a_search_finds(steps in vec((0..10_usize, 0..6_usize, 0..400_u64), 0..80)) {
            let (mut timers, mut known) = (TimerTable::default(), Vec::<Armed>::new());
            let mut now = Timestamp::default();
            for (step, id, wait) in steps {
                now = now + Duration::from_secs(wait);
                match ALL.get(step) {
                    Some(&timer) => {
                        known.retain(|other| other.id != id || other.timer.position().0 != timer.position().0);
                        known.push(Armed { timer, id, due: now + timer.delay() });
                        timers.arm(timer, id, now);
                    }
                    None if step == ALL.len() => {
                        known.retain(|other| other.id != id);
                        timers.cancel_all(id);
                    }
                    None => {
                        let fires = |one: &Armed| one.timer != Timer::VerdictDeadline && one.due <= now;
                        prop_assert!(timers.earliest() <= now || !known.iter().any(fires));
                        for group in FIRING_ORDER {
                            let concerned = |one: &mut Armed| fires(one) && group.contains(&one.timer);
                            let mut due: Vec<_> = known.extract_if(.., concerned).collect();
                            due.sort_by_key(|one| (one.due, group.iter().position(|timer| *timer == one.timer)));
                            for one in due {
                                prop_assert_eq!(timers.fire(now), Some(one));
                            }
                        }
                        prop_assert_eq!(timers.fire(now), None);
                        prop_assert!(timers.earliest() > now);
                    }
                }
                for timer in ALL {
                    let flows: Vec<_> = known.iter().filter(|one| one.timer == timer).map(|one| one.id).collect();
                    prop_assert_eq!(timers.flows(timer).collect::<Vec<_>>(), flows);
                }
            }
        }
    }
}
