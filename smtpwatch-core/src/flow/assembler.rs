//! The bytes of one direction: held pieces by offset, and the last delivered bytes for comparison.

use std::{collections::VecDeque, mem, ops::Range};

use super::standing::Standing;
use crate::{
    Timestamp,
    limits::{CONFLICT_BYTES, REASSEMBLY_BYTES, REASSEMBLY_CHUNKS, RETAINED_BYTES},
    secret_buffer::{SecretBuffer, SecretQueue},
};

/// Longest piece. Large segments are stored as several, so that a partly delivered piece pins little.
const PIECE: usize = 4096;
/// Room for delivered bytes that is made at once: most dialogues need no more.
const RETAINED_AT_LEAST: usize = 128;
/// Held bytes that are never exceeded, even by a caller that does not drain: the bound and one full-size segment.
const HARD_BYTES: usize = 2 * REASSEMBLY_BYTES;
/// The same for pieces: one segment can fill the gaps between all pieces.
const HARD_CHUNKS: usize = 2 * REASSEMBLY_CHUNKS + 1;

/// What is known of a piece beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    /// When the first bytes of the piece were seen.
    pub at: Timestamp,
    /// Bytes of the peer's stream that the sender had acknowledged.
    pub knew: u64,
    /// Whether the receiver takes it in.
    pub standing: Standing,
}

/// A later copy of a range that differs from the first one.
pub(super) struct Difference {
    /// Stream offset of both copies.
    pub offset: u64,
    /// Bytes held or delivered, at most [`CONFLICT_BYTES`].
    pub first: SecretBuffer,
    /// Bytes of the later copy, as many.
    pub other: SecretBuffer,
    /// One of them was damaged on its way: that they differ says nothing.
    pub damaged: bool,
    /// Nothing speaks against either.
    pub both_sound: bool,
}

/// One piece: `bytes[taken..]` is held, the bytes before are delivered.
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

/// Invariant: chunks are sorted, do not overlap, hold at least one byte (the front one may be used up until the next
/// call), and none starts before `front`.
#[derive(Default)]
pub(super) struct Assembler {
    chunks: VecDeque<Chunk>,
    held: usize,
    front: u64,
    retained: SecretQueue,
    forgetful: bool,
    cut: Option<(u64, u64)>,
    /// Held bytes that the receiver has shown not to have taken in.
    refused: Range<u64>,
}

impl Assembler {
    /// The most that [`Self::memory`] can be: vectors grow by doubling.
    pub const MEMORY: usize = 2 * HARD_BYTES
        + 2 * PIECE
        + RETAINED_BYTES.next_power_of_two()
        + 2 * HARD_CHUNKS.next_power_of_two() * size_of::<Chunk>();

    /// Next offset to deliver.
    pub const fn front(&self) -> u64 {
        self.front
    }

    /// No byte is held.
    pub const fn holds_none(&self) -> bool {
        self.held == 0
    }

    /// Where the first held piece starts.
    pub fn first(&self) -> Option<u64> {
        self.live().next().map(Chunk::start)
    }

    /// End of the last held piece, or the front.
    pub fn end(&self) -> u64 {
        self.chunks.back().map_or(self.front, Chunk::end)
    }

    /// What is known of the first held piece.
    pub fn first_stamp(&self) -> Option<Stamp> {
        self.live().next().map(|chunk| chunk.stamp)
    }

    /// End of the bytes held without a gap from the front on.
    pub fn contiguous_end(&self) -> u64 {
        self.live().fold(self.front, |end, chunk| if chunk.start() == end { chunk.end() } else { end })
    }

    /// More is held than may be.
    pub fn is_over_bound(&self) -> bool {
        self.held > REASSEMBLY_BYTES || self.chunks.len() > REASSEMBLY_CHUNKS
    }

    /// Whether bytes of this range were given up because the table is full.
    pub fn was_cut(&self, start: u64, end: u64) -> bool {
        self.cut.is_some_and(|(cut_start, cut_end)| start < cut_end && cut_start < end)
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum::<usize>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.retained.capacity()
    }

    /// Gives the delivered bytes up and keeps none any more.
    pub fn forget(&mut self) {
        self.forgetful = true;
        self.retained = SecretQueue::default();
        self.chunks.shrink_to_fit();
    }

    /// Gives all bytes up, delivered or not.
    pub fn give_up(&mut self) {
        self.retained = SecretQueue::default();
        for chunk in mem::take(&mut self.chunks).iter().filter(|chunk| !chunk.held().is_empty()) {
            self.note_cut(chunk.start(), chunk.end());
        }
        self.held = 0;
    }

    /// Takes bytes in. Where bytes of the range are held or retained the first copy stays, unless the receiver has shown
    /// that it did not take it in, or cannot have done; the first difference is told, with its surroundings.
    ///
    /// `later`: of two sound copies that are held the later one stays. A receiver whose acknowledgments are all seen had not taken the first
    /// one in, unless both came before it could say so.
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
        // Where a bound cut the held copy short of the difference there are no two copies to show.
        (difference.first != difference.other).then_some(difference)
    }

    /// The receiver acknowledged up to `offset`, although bytes after it had been sent: it did not take those in.
    pub fn acknowledged(&mut self, offset: u64) {
        let end = self.contiguous_end();
        if (self.front..end).contains(&offset) {
            self.refused = offset..end;
        } else if offset >= self.refused.end {
            self.refused = 0..0;
        }
    }

    /// Bytes that the receiver did not take in, or discards, give way to a later copy (docs/threats.md EV-2, EV-9): that is the one
    /// it can still accept.
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

    /// Lends bytes from the front up to `limit`, and counts them as delivered. `None` when none are held there.
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

    /// Moves the front over a gap. What is retained from before the gap is given up.
    pub fn skip_to(&mut self, offset: u64) {
        debug_assert!(self.first().is_none_or(|first| first >= offset), "a gap never covers held octets");
        self.front = self.front.max(offset);
        self.retained = SecretQueue::default();
    }

    /// Gives up what is held from `offset` on: the stream ends there.
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

    /// Gives the piece that is farthest ahead up, because the table is full.
    pub fn drop_last(&mut self) {
        if let Some(chunk) = self.chunks.pop_back() {
            self.held -= chunk.held().len();
            self.note_cut(chunk.start(), chunk.end());
        }
    }

    /// Frees the piece that the last [`Self::take`] used up, and the list once it is empty: an idle flow has room for one.
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

    /// Stores a piece that fills a gap before `index`; gives the index of the piece after it.
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
            // In most dialogues there is never another.
            self.chunks.reserve_exact(1);
        }
        self.chunks.insert(index, Chunk { offset, taken: 0, stamp, bytes: bytes.into() });
        index + 1
    }

    fn note_cut(&mut self, start: u64, end: u64) {
        let (cut_start, cut_end) = self.cut.unwrap_or((start, end));
        self.cut = Some((cut_start.min(start), cut_end.max(end)));
    }

    /// Both copies around the first differing byte.
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

/// `bytes` at `offset`, without what lies before `start`.
fn skip_before(offset: u64, bytes: &[u8], start: u64) -> (u64, &[u8]) {
    let skipped = clamp(start.saturating_sub(offset), bytes.len());
    (offset + skipped as u64, &bytes[skipped..])
}

/// The smaller of the two, as a length.
fn clamp(value: u64, most: usize) -> usize {
    usize::try_from(value).map_or(most, |value| value.min(most))
}
