//! The flows, each by its name and by its place: a segment asks once for the place, and everything that follows from it goes
//! there. And two orders of them, so that who is evicted is known without a search.

use std::ops::{Index, IndexMut};

use super::{
    flow::Flow,
    places::{Place, Places},
};
use crate::{
    FlowKey, Role,
    hash::HashMap,
    order::{Order, Orders},
};

#[derive(Default)]
pub(super) struct Table {
    places: HashMap<FlowKey, Place>,
    flows: Places,
    /// By their last activity, for each end that this host is, in the order of [`Role`].
    ages: Orders<2>,
    /// By their first segment, for as long as their handshake is not finished.
    unopened: Order,
}

impl Table {
    pub(super) fn find(&self, key: &FlowKey) -> Option<Place> {
        self.places.get(key).copied()
    }

    pub(super) fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.find(key).map(|place| &self[place])
    }

    /// The flow is the youngest by both orders.
    pub(super) fn insert(&mut self, flow: Flow) -> Place {
        let key = flow.key;
        let place = self.flows.insert(flow);
        self.places.insert(key, place);
        self.renew(place);
        self.unopened.renew(place);
        place
    }

    pub(super) fn remove(&mut self, place: Place) {
        self.retire(place);
        self.remove_retired(place);
    }

    /// The connection has ended and its verdict waits: another one may have its name. [`Self::remove_retired`] must follow.
    pub(super) fn retire(&mut self, place: Place) {
        let Flow { key, role, .. } = self.flows[place];
        self.ages.take_out(role as usize, place);
        self.unopened.take_out(place);
        self.places.remove(&key);
    }

    pub(super) fn remove_retired(&mut self, place: Place) {
        self.flows.remove(place);
    }

    /// The flow was active.
    pub(super) fn renew(&mut self, place: Place) {
        let role = self.flows[place].role as usize;
        self.ages.take_out(role, place);
        self.ages.put_first(role, place);
    }

    /// Its handshake is finished.
    pub(super) fn opened(&mut self, place: Place) {
        self.unopened.take_out(place);
    }

    /// The flow that was silent for longest.
    pub(super) fn oldest(&self) -> Option<Place> {
        let oldest = Role::ALL.into_iter().filter_map(|role| self.oldest_of(role));
        oldest.min_by_key(|place| self.flows[*place].aged)
    }

    /// The flow of a role that was silent for longest.
    pub(super) fn oldest_of(&self, role: Role) -> Option<Place> {
        self.ages.oldest(role as usize)
    }

    /// The flow that has waited longest for its handshake.
    pub(super) fn oldest_unopened(&self) -> Option<Place> {
        self.unopened.oldest()
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &Flow)> {
        self.flows.iter()
    }
}

impl Index<Place> for Table {
    type Output = Flow;

    fn index(&self, place: Place) -> &Flow {
        &self.flows[place]
    }
}

impl IndexMut<Place> for Table {
    fn index_mut(&mut self, place: Place) -> &mut Flow {
        &mut self.flows[place]
    }
}
