//! The flows, each by its name and by its place: a segment asks once for the place, and everything that follows from it goes
//! there.

use std::ops::{Index, IndexMut};

use slab::Slab;

use super::flow::Flow;
use crate::{FlowKey, hash::HashMap};

/// Where a flow is held; good until it is removed.
pub(super) type Place = usize;

#[derive(Default)]
pub(super) struct Table {
    places: HashMap<FlowKey, Place>,
    // In one piece: a place that a flow has left is taken by the next one, and no session pays for an allocation of its own.
    flows: Slab<Flow>,
}

impl Table {
    pub(super) fn find(&self, key: &FlowKey) -> Option<Place> {
        self.places.get(key).copied()
    }

    pub(super) fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.find(key).map(|place| &self[place])
    }

    pub(super) fn insert(&mut self, flow: Flow) -> Place {
        let key = flow.key;
        let place = self.flows.insert(flow);
        self.places.insert(key, place);
        place
    }

    pub(super) fn remove(&mut self, place: Place) -> Flow {
        let flow = self.flows.remove(place);
        self.places.remove(&flow.key);
        flow
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
