//! Reassembly buffer of one direction: buffered chunks by offset, and the last delivered bytes for comparison.
//!
//! [`Assembler`] stores bytes and reports differing copies; [`Stream`](super::stream::Stream) decides what to deliver.

use std::{collections::VecDeque, mem, ops::Range};

use super::standing::Standing;
use crate::{
    Timestamp,
    limits::{CONFLICT_BYTES, REASSEMBLY_BYTES, REASSEMBLY_CHUNKS, RETAINED_BYTES},
    secret_buffer::{SecretBuffer, SecretQueue},
};

/// Maximum bytes of a chunk. A large segment is stored as several chunks, so that a partly delivered chunk pins little
/// memory.
const PIECE: usize = 4096;
/// Initial capacity for delivered bytes: enough for most dialogues.
const RETAINED_AT_LEAST: usize = 128;
/// Hard limit of buffered bytes, even if the caller does not drain: the bound and one full-size segment.
const HARD_BYTES: usize = 2 * REASSEMBLY_BYTES;
/// Hard limit of chunks: one segment can fill the gaps between all chunks.
const HARD_CHUNKS: usize = 2 * REASSEMBLY_CHUNKS + 1;

/// Metadata of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    /// When the first bytes of the chunk were seen.
    pub at: Timestamp,
    /// Bytes of the peer's stream that the sender had acknowledged.
    pub knew: u64,
    /// Whether the receiver accepts the bytes.
    pub standing: Standing,
}

/// A later copy of a range that differs from the first copy.
pub(super) struct Difference {
    /// Stream offset of both copies.
    pub offset: u64,
    /// Buffered or delivered bytes, at most [`CONFLICT_BYTES`].
    pub first: SecretBuffer,
    /// Bytes of the later copy; same length as `first`.
    pub other: SecretBuffer,
    /// One copy was damaged in transit, so the difference proves nothing.
    pub damaged: bool,
    /// Both copies are sound.
    pub both_sound: bool,
}

/// One chunk: `bytes[taken..]` is buffered, the bytes before that are delivered.
struct Chunk {
    offset: u64,
    taken: usize,
    stamp: Stamp,
    bytes: SecretBuffer,
}

impl Chunk {
    const fn start(&self) -> u64 {
        self.offset + self.taken as u64
    }

    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    fn held(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }
}

/// Invariant: chunks are sorted, do not overlap, and none starts before `front`. Each has at least one buffered byte,
/// except that the first one may be fully delivered until the next call.
#[derive(Default)]
pub(super) struct Assembler {
    chunks: VecDeque<Chunk>,
    held: usize,
    front: u64,
    retained: SecretQueue,
    forgetful: bool,
    cut: Option<(u64, u64)>,
    /// Range of buffered bytes that the receiver is known not to have accepted.
    refused: Range<u64>,
}

impl Assembler {
    /// Maximum of [`Self::memory`]: vectors grow by doubling.
    pub const MEMORY: usize = 2 * HARD_BYTES
        + 2 * PIECE
        + RETAINED_BYTES.next_power_of_two()
        + 2 * HARD_CHUNKS.next_power_of_two() * size_of::<Chunk>();

    /// Next offset to deliver.
    pub const fn front(&self) -> u64 {
        self.front
    }

    /// No byte is buffered.
    pub const fn holds_none(&self) -> bool {
        self.held == 0
    }

    /// Start of the first buffered chunk.
    pub fn first(&self) -> Option<u64> {
        self.live().next().map(Chunk::start)
    }

    /// End of the last buffered chunk, or the front.
    pub fn end(&self) -> u64 {
        self.chunks.back().map_or(self.front, Chunk::end)
    }

    /// Metadata of the first buffered chunk.
    pub fn first_stamp(&self) -> Option<Stamp> {
        self.live().next().map(|chunk| chunk.stamp)
    }

    /// End of the bytes that are buffered without a gap from the front on.
    pub fn contiguous_end(&self) -> u64 {
        self.live().fold(self.front, |end, chunk| if chunk.start() == end { chunk.end() } else { end })
    }

    /// The buffer exceeds one of its bounds.
    pub fn is_over_bound(&self) -> bool {
        self.held > REASSEMBLY_BYTES || self.chunks.len() > REASSEMBLY_CHUNKS
    }

    /// Whether bytes of this range were dropped because the buffer was full.
    pub fn was_cut(&self, start: u64, end: u64) -> bool {
        self.cut.is_some_and(|(cut_start, cut_end)| start < cut_end && cut_start < end)
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum::<usize>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.retained.capacity()
    }

    /// Frees the delivered bytes and retains none from here on.
    pub fn forget(&mut self) {
        self.forgetful = true;
        self.retained = SecretQueue::default();
        self.chunks.shrink_to_fit();
    }

    /// Frees all bytes, delivered or not.
    pub fn give_up(&mut self) {
        self.retained = SecretQueue::default();
        for chunk in mem::take(&mut self.chunks).iter().filter(|chunk| !chunk.held().is_empty()) {
            self.note_cut(chunk.start(), chunk.end());
        }
        self.held = 0;
    }

    /// Inserts bytes. Where the range is already buffered or retained, the first copy stays, unless the receiver is
    /// known not to have accepted it, or cannot have accepted it. Returns the first difference with the bytes around
    /// it.
    ///
    /// `later`: of two sound buffered copies the later one stays. If all acknowledgments of the receiver are seen, it
    /// had not accepted the first copy, unless both copies came before it could acknowledge one.
    pub fn insert(&mut self, offset: u64, bytes: &[u8], stamp: Stamp, later: bool) -> Option<Difference> {
        self.sweep();
        let mut difference = None;
        let mut note = |at: u64, first: &mut dyn Iterator<Item = &u8>, other: &[u8]| {
            if difference.is_none() {
                difference = first.zip(other).position(|(a, b)| a != b).map(|index| at + index as u64);
            }
        };

        let retained_from = self.front - self.retained.len() as u64;
        let (mut at, mut rest) = skip_before(offset, bytes, retained_from);
        if rest.is_empty() {
            return None;
        }
        if at < self.front {
            let (old, new) = rest.split_at(clamp(self.front - at, rest.len()));
            note(at, &mut self.retained.range(clamp(at - retained_from, self.retained.len())..), old);
            (at, rest) = (at + old.len() as u64, new);
        }
        let mut index = self.chunks.partition_point(|chunk| chunk.end() <= at);
        while !rest.is_empty() {
            let next = self.chunks.get(index);
            let piece = match next {
                Some(chunk) if chunk.start() <= at => {
                    let held = &chunk.held()[clamp(at - chunk.start(), chunk.held().len())..];
                    let piece = &rest[..rest.len().min(held.len())];
                    note(at, &mut held.iter(), piece);
                    index += 1;
                    piece
                }
                Some(_) | None => {
                    let room = next.map_or(rest.len(), |chunk| clamp(chunk.start() - at, rest.len()));
                    let piece = &rest[..room.min(PIECE)];
                    index = self.store(index, at, piece, stamp);
                    piece
                }
            };
            (at, rest) = (at + piece.len() as u64, &rest[piece.len()..]);
        }
        let mut difference = difference.map(|at| self.surroundings(at, offset, bytes))?;
        difference.damaged |= stamp.standing == Standing::Corrupt;
        difference.both_sound &= stamp.standing == Standing::Sound;
        self.replace(offset, bytes, stamp.standing, later);
        // If a bound cut the buffered copy short of the difference, there are no two copies to show.
        (difference.first != difference.other).then_some(difference)
    }

    /// The receiver acknowledged up to `offset` although later bytes had been sent: it did not accept those.
    pub fn acknowledged(&mut self, offset: u64) {
        let end = self.contiguous_end();
        if (self.front..end).contains(&offset) {
            self.refused = offset..end;
        } else if offset >= self.refused.end {
            self.refused = 0..0;
        }
    }

    /// Replaces bytes that the receiver did not accept or discards by a later copy (docs/threats.md EV-2, EV-9): the
    /// receiver can still accept that one.
    fn replace(&mut self, offset: u64, bytes: &[u8], standing: Standing, later: bool) {
        let (refused, end) = (self.refused.clone(), offset + bytes.len() as u64);
        for chunk in &mut self.chunks {
            let whole = chunk.start().max(offset)..chunk.end().min(end);
            let weak = standing == Standing::Sound && (later || chunk.stamp.standing != Standing::Sound);
            let Range { start, end } =
                if weak { whole } else { whole.start.max(refused.start)..whole.end.min(refused.end) };
            if start < end {
                let length = clamp(end - start, bytes.len());
                let (to, source) = (clamp(start - chunk.offset, chunk.bytes.len()), clamp(start - offset, bytes.len()));
                chunk.bytes[to..to + length].copy_from_slice(&bytes[source..source + length]);
            }
        }
    }

    /// Returns bytes from the front up to `limit` and counts them as delivered. `None` if none are buffered there.
    pub fn take(&mut self, limit: u64) -> Option<(u64, Stamp, &[u8])> {
        self.sweep();
        let chunk = self.chunks.front_mut().filter(|chunk| chunk.start() == self.front && limit > self.front)?;
        let offset = self.front;
        let count = clamp(limit - offset, chunk.held().len());
        let taken = chunk.taken;
        chunk.taken += count;
        self.front += count as u64;
        self.held -= count;
        let bytes = &chunk.bytes[taken..chunk.taken];
        if !self.forgetful {
            let kept = &bytes[count.saturating_sub(RETAINED_BYTES)..];
            let excess = (self.retained.len() + kept.len()).saturating_sub(RETAINED_BYTES);
            if excess > 0 {
                self.retained.remove_front(excess);
            }
            let room = (self.retained.len() + kept.len()).next_power_of_two().max(RETAINED_AT_LEAST);
            self.retained.extend_within(kept, room);
        }
        Some((offset, chunk.stamp, bytes))
    }

    /// Moves the front over a gap and frees the bytes retained from before the gap.
    pub fn skip_to(&mut self, offset: u64) {
        debug_assert!(self.first().is_none_or(|first| first >= offset), "a gap never covers held octets");
        self.front = self.front.max(offset);
        self.retained = SecretQueue::default();
    }

    /// Drops all buffered bytes from `offset` on: the stream ends there.
    pub fn cut(&mut self, offset: u64) {
        while let Some(chunk) = self.chunks.back_mut()
            && chunk.end() > offset
        {
            if chunk.start() >= offset {
                self.held -= chunk.held().len();
                self.chunks.pop_back();
            } else {
                let beyond = clamp(chunk.end() - offset, chunk.bytes.len());
                self.held -= beyond;
                chunk.bytes.truncate(chunk.bytes.len() - beyond);
            }
        }
    }

    /// Drops the last chunk, because the buffer is full.
    pub fn drop_last(&mut self) {
        if let Some(chunk) = self.chunks.pop_back() {
            self.held -= chunk.held().len();
            self.note_cut(chunk.start(), chunk.end());
        }
    }

    /// Frees the chunk that the last [`Self::take`] used up, and the list once it is empty: an idle flow has capacity
    /// for one chunk.
    #[inline]
    pub fn sweep(&mut self) {
        if !self.chunks.is_empty() || self.chunks.capacity() > 1 {
            self.sweep_used();
        }
    }

    fn sweep_used(&mut self) {
        if self.chunks.front().is_some_and(|chunk| chunk.held().is_empty()) {
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() && self.chunks.capacity() > 1 {
            self.chunks = VecDeque::new();
        }
    }

    /// Stores a chunk that fills a gap before `index`; returns the index of the chunk after it.
    fn store(&mut self, index: usize, offset: u64, bytes: &[u8], stamp: Stamp) -> usize {
        if self.held + bytes.len() > HARD_BYTES || self.chunks.len() >= HARD_CHUNKS {
            self.note_cut(offset, offset + bytes.len() as u64);
            return index;
        }
        self.held += bytes.len();
        let before = index.checked_sub(1).and_then(|before| self.chunks.get_mut(before));
        if let Some(chunk) = before
            && chunk.end() == offset
            && (chunk.stamp.knew, chunk.stamp.standing) == (stamp.knew, stamp.standing)
            && chunk.bytes.len() + bytes.len() <= PIECE
        {
            chunk.bytes.extend_from_slice(bytes);
            return index;
        }
        if self.chunks.capacity() == 0 {
            // Most dialogues never need a second chunk.
            self.chunks.reserve_exact(1);
        }
        self.chunks.insert(index, Chunk { offset, taken: 0, stamp, bytes: bytes.into() });
        index + 1
    }

    fn note_cut(&mut self, start: u64, end: u64) {
        let (cut_start, cut_end) = self.cut.unwrap_or((start, end));
        self.cut = Some((cut_start.min(start), cut_end.max(end)));
    }

    /// Both copies, with bytes around the first difference.
    fn surroundings(&self, differing: u64, offset: u64, bytes: &[u8]) -> Difference {
        let retained_from = self.front - self.retained.len() as u64;
        let start = differing.saturating_sub(CONFLICT_BYTES as u64 / 2).max(offset).max(retained_from);
        let (_, other) = skip_before(offset, bytes, start);
        let other = &other[..other.len().min(CONFLICT_BYTES)];
        let mut first = SecretBuffer::default();
        if start < self.front {
            let retained = self.retained.range(clamp(start - retained_from, self.retained.len())..);
            retained.take(other.len()).for_each(|byte| first.push(*byte));
        }
        let (mut damaged, mut both_sound) = (false, true);
        for chunk in self.live() {
            let holds = (chunk.start()..chunk.end()).contains(&differing);
            damaged |= holds && chunk.stamp.standing == Standing::Corrupt;
            both_sound &= !holds || chunk.stamp.standing == Standing::Sound;
            let at = start + first.len() as u64;
            if chunk.start() <= at && at < chunk.end() {
                let held = &chunk.held()[clamp(at - chunk.start(), chunk.held().len())..];
                first.extend_from_slice(&held[..held.len().min(other.len() - first.len())]);
            }
        }
        let other = other[..first.len()].into();
        Difference { offset: start, first, other, damaged, both_sound }
    }

    fn live(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().filter(|chunk| !chunk.held().is_empty())
    }
}

/// `bytes` at `offset`, without the part before `start`.
fn skip_before(offset: u64, bytes: &[u8], start: u64) -> (u64, &[u8]) {
    let skipped = clamp(start.saturating_sub(offset), bytes.len());
    (offset + skipped as u64, &bytes[skipped..])
}

/// The smaller of the two, as a length.
fn clamp(value: u64, most: usize) -> usize {
    usize::try_from(value).map_or(most, |value| value.min(most))
}
