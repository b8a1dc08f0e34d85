//! Chunked storage for the flows of the engine's table: [`FlowArena`] maps a [`FlowId`] to a flow.

use std::ops::{Index, IndexMut};

use slab::Slab;

use super::flow::Flow;

/// A chunk takes a few hundred KiB.
const FLOWS_PER_CHUNK: usize = 256;

/// Index of a flow in the arena; valid until the flow is removed.
pub(super) type FlowId = usize;

/// Slab of flows that grows and shrinks by chunks of [`FLOWS_PER_CHUNK`] flows. A freed id is reused, so a session needs no
/// allocation of its own. Growth never moves a flow and leaves little memory unused; empty chunks are freed.
#[derive(Default)]
pub(super) struct FlowArena {
    chunks: Vec<Slab<Flow>>,
    /// Chunks with a free slot, each once.
    roomy: Vec<usize>,
    flows: usize,
}

impl FlowArena {
    pub(super) fn insert(&mut self, flow: Flow) -> FlowId {
        let chunk = self.roomy.last().copied().unwrap_or_else(|| {
            self.chunks.push(Slab::new());
            self.roomy.push(self.chunks.len() - 1);
            self.chunks.len() - 1
        });
        let slab = &mut self.chunks[chunk];
        if slab.capacity() == 0 {
            slab.reserve_exact(FLOWS_PER_CHUNK);
        }
        let id = slab.insert(flow);
        if slab.len() == FLOWS_PER_CHUNK {
            self.roomy.pop();
        }
        self.flows += 1;
        chunk * FLOWS_PER_CHUNK + id
    }

    pub(super) fn remove(&mut self, id: FlowId) {
        let chunk = id / FLOWS_PER_CHUNK;
        let slab = &mut self.chunks[chunk];
        if slab.len() == FLOWS_PER_CHUNK {
            self.roomy.push(chunk);
        }
        drop(slab.remove(id % FLOWS_PER_CHUNK));
        // Keep one empty chunk for the next flow.
        if slab.is_empty() && self.roomy.len() > 1 {
            *slab = Slab::new();
        }
        self.flows -= 1;
    }

    pub(super) const fn len(&self) -> usize {
        self.flows
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow)> {
        let chunks = self.chunks.iter().enumerate();
        chunks.flat_map(|(chunk, slab)| slab.iter().map(move |(id, flow)| (chunk * FLOWS_PER_CHUNK + id, flow)))
    }
}

impl Index<FlowId> for FlowArena {
    type Output = Flow;

    fn index(&self, id: FlowId) -> &Flow {
        &self.chunks[id / FLOWS_PER_CHUNK][id % FLOWS_PER_CHUNK]
    }
}

impl IndexMut<FlowId> for FlowArena {
    fn index_mut(&mut self, id: FlowId) -> &mut Flow {
        &mut self.chunks[id / FLOWS_PER_CHUNK][id % FLOWS_PER_CHUNK]
    }
}
