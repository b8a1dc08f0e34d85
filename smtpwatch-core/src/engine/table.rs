//! The flow table: [`Table`] finds a flow by key or by id.
//!
//! The engine looks up the id once for each segment and uses it for everything after that.

use std::ops::{Index, IndexMut};

use super::{
    arena::{FlowArena, FlowId},
    flow::Flow,
};
use crate::{FlowKey, hash::HashMap};

#[derive(Default)]
pub(super) struct Table {
    ids: HashMap<FlowKey, FlowId>,
    flows: FlowArena,
}

impl Table {
    pub(super) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.ids.get(key).copied()
    }

    pub(super) fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.find(key).map(|id| &self[id])
    }

    pub(super) fn insert(&mut self, flow: Flow) -> FlowId {
        let key = flow.key;
        let id = self.flows.insert(flow);
        self.ids.insert(key, id);
        id
    }

    pub(super) fn remove(&mut self, id: FlowId) {
        self.retire(id);
        self.remove_retired(id);
    }

    /// Frees the key of an ended connection whose verdict waits, so that another connection can use it. Call
    /// [`Self::remove_retired`] later.
    pub(super) fn retire(&mut self, id: FlowId) {
        self.ids.remove(&self.flows[id].key);
    }

    pub(super) fn remove_retired(&mut self, id: FlowId) {
        self.flows.remove(id);
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Number of flows without a key.
    pub(super) fn retired(&self) -> usize {
        self.flows.len().saturating_sub(self.ids.len())
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
