//! The flow table: [`Table`] finds a flow by key or by id, and keeps two LRU lists, so that eviction needs no search.
//!
//! The engine looks up the id once for each segment and uses it for everything after that.

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
    /// LRU list by last activity, one for each role of this host, in the order of [`Role`].
    ages: LruLists<2>,
    /// Half-open flows by their first segment.
    unopened: LruList,
}

impl Table {
    pub(super) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.ids.get(key).copied()
    }

    pub(super) fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.find(key).map(|id| &self[id])
    }

    /// Inserts a flow as the youngest in both lists.
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

    /// Frees the key of an ended connection whose verdict waits, so that another connection can use it. Call
    /// [`Self::remove_retired`] later.
    pub(super) fn retire(&mut self, id: FlowId) {
        let Flow { key, role, .. } = self.flows[id];
        self.ages.unlink(role as usize, id);
        self.unopened.unlink(id);
        self.ids.remove(&key);
    }

    pub(super) fn remove_retired(&mut self, id: FlowId) {
        self.flows.remove(id);
    }

    /// Marks the flow as active.
    pub(super) fn touch(&mut self, id: FlowId) {
        let role = self.flows[id].role as usize;
        self.ages.unlink(role, id);
        self.ages.push_back(role, id);
    }

    /// Marks the handshake of the flow as finished.
    pub(super) fn opened(&mut self, id: FlowId) {
        self.unopened.unlink(id);
    }

    /// The least recently active flow.
    pub(super) fn oldest(&self) -> Option<FlowId> {
        let oldest = Role::ALL.into_iter().filter_map(|role| self.oldest_of(role));
        oldest.min_by_key(|id| self.flows[*id].aged)
    }

    /// The least recently active flow of a role.
    pub(super) fn oldest_of(&self, role: Role) -> Option<FlowId> {
        self.ages.oldest(role as usize)
    }

    /// The flow whose handshake has been incomplete for longest.
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
