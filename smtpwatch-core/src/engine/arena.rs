//! Chunked storage for the flows of the engine's table: [`FlowArena`] maps a [`FlowId`] to a flow.

use std::ops::{Index, IndexMut};

use slab::Slab;

use super::flow::Flow;

/// Flows per chunk: a few hundred KiB.
const PIECE: usize = 256;

/// Index of a flow in the arena; valid until the flow is removed.
pub(super) type FlowId = usize;

/// Slab of flows that grows and shrinks by chunks of [`PIECE`] flows. A freed id is reused, so a session needs no
/// allocation of its own. Growth never moves a flow and leaves little memory unused; empty chunks are freed.
#[derive(Default)]
pub(super) struct FlowArena {
    pieces: Vec<Slab<Flow>>,
    /// Chunks with a free slot, each once.
    roomy: Vec<usize>,
    flows: usize,
}

impl FlowArena {
    pub(super) fn insert(&mut self, flow: Flow) -> FlowId {
        let piece = self.roomy.last().copied().unwrap_or_else(|| {
            self.pieces.push(Slab::new());
            self.roomy.push(self.pieces.len() - 1);
            self.pieces.len() - 1
        });
        let slab = &mut self.pieces[piece];
        if slab.capacity() == 0 {
            slab.reserve_exact(PIECE);
        }
        let id = slab.insert(flow);
        if slab.len() == PIECE {
            self.roomy.pop();
        }
        self.flows += 1;
        piece * PIECE + id
    }

    pub(super) fn remove(&mut self, id: FlowId) {
        let piece = id / PIECE;
        let slab = &mut self.pieces[piece];
        if slab.len() == PIECE {
            self.roomy.push(piece);
        }
        drop(slab.remove(id % PIECE));
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
        let pieces = self.pieces.iter().enumerate();
        pieces.flat_map(|(piece, slab)| slab.iter().map(move |(id, flow)| (piece * PIECE + id, flow)))
    }
}

impl Index<FlowId> for FlowArena {
    type Output = Flow;

    fn index(&self, id: FlowId) -> &Flow {
        &self.pieces[id / PIECE][id % PIECE]
    }
}

impl IndexMut<FlowId> for FlowArena {
    fn index_mut(&mut self, id: FlowId) -> &mut Flow {
        &mut self.pieces[id / PIECE][id % PIECE]
    }
}
