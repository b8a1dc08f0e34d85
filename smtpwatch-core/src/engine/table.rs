//! The flows, each by its name and by its id: a segment asks once for the id, and everything that follows from it goes
//! there. And two orders of them, so that who is evicted is known without a search.

use std::ops::{Index, IndexMut};

use super::{
    arena::{FlowArena, FlowId},
    flow::Flow,
};
use crate::{
    FlowKey, Role,
    hash::HashMap,
    lru::{LruList, LruLists},
};

#[derive(Default)]
pub(super) struct Table {
    ids: HashMap<FlowKey, FlowId>,
    flows: FlowArena,
    /// By their last activity, for each end that this host is, in the order of [`Role`].
    ages: LruLists<2>,
    /// By their first segment, for as long as their handshake is not finished.
    unopened: LruList,
}

impl Table {
    pub(super) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.ids.get(key).copied()
    }

    pub(super) fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.find(key).map(|id| &self[id])
    }

    /// The flow is the youngest by both orders.
    pub(super) fn insert(&mut self, flow: Flow) -> FlowId {
        let key = flow.key;
        let id = self.flows.insert(flow);
        self.ids.insert(key, id);
        self.touch(id);
        self.unopened.touch(id);
        id
    }

    pub(super) fn remove(&mut self, id: FlowId) {
        self.retire(id);
        self.remove_retired(id);
    }

    /// The connection has ended and its verdict waits: another one may have its name. [`Self::remove_retired`] must follow.
    pub(super) fn retire(&mut self, id: FlowId) {
        let Flow { key, role, .. } = self.flows[id];
        self.ages.unlink(role as usize, id);
        self.unopened.unlink(id);
        self.ids.remove(&key);
    }

    pub(super) fn remove_retired(&mut self, id: FlowId) {
        self.flows.remove(id);
    }

    /// The flow was active.
    pub(super) fn touch(&mut self, id: FlowId) {
        let role = self.flows[id].role as usize;
        self.ages.unlink(role, id);
        self.ages.push_back(role, id);
    }

    /// Its handshake is finished.
    pub(super) fn opened(&mut self, id: FlowId) {
        self.unopened.unlink(id);
    }

    /// The flow that was silent for longest.
    pub(super) fn oldest(&self) -> Option<FlowId> {
        let oldest = Role::ALL.into_iter().filter_map(|role| self.oldest_of(role));
        oldest.min_by_key(|id| self.flows[*id].aged)
    }

    /// The flow of a role that was silent for longest.
    pub(super) fn oldest_of(&self, role: Role) -> Option<FlowId> {
        self.ages.oldest(role as usize)
    }

    /// The flow that has waited longest for its handshake.
    pub(super) fn oldest_unopened(&self) -> Option<FlowId> {
        self.unopened.oldest()
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow)> {
        self.flows.iter()
    }
}

impl Index<FlowId> for Table {
    type Output = Flow;

    fn index(&self, id: FlowId) -> &Flow {
        &self.flows[id]
    }
}

impl IndexMut<FlowId> for Table {
    fn index_mut(&mut self, id: FlowId) -> &mut Flow {
        &mut self.flows[id]
    }
}
