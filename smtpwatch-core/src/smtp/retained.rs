//! Bytes of one direction, retained as evidence. [`Retained`] receives redacted lines only: see [`super::redaction`].

use crate::limits::EXHIBIT_OCTETS;

/// Initial capacity, in bytes.
const AT_LEAST: usize = 64;

/// The first [`EXHIBIT_OCTETS`] bytes, with their offsets in the stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Retained {
    bytes: Vec<u8>,
    /// Start of each contiguous run: its offset in the stream, and its index in `bytes`.
    runs: Vec<(u64, usize)>,
    left_out: u64,
}

impl Retained {
    /// Appends bytes; `offset` must not be below the end of the earlier ones.
    pub(super) fn push(&mut self, offset: u64, bytes: &[u8]) {
        let room = EXHIBIT_OCTETS.saturating_sub(self.bytes.len()).min(bytes.len());
        self.left_out += (bytes.len() - room) as u64;
        if room == 0 {
            return;
        }
        let continues = self.runs.last().is_some_and(|(from, at)| from + (self.bytes.len() - at) as u64 == offset);
        if !continues {
            if self.runs.capacity() == 0 {
                // Most sessions have one run.
                self.runs.reserve_exact(1);
            }
            self.runs.push((offset, self.bytes.len()));
        }
        if self.bytes.capacity() == 0 {
            // More lines usually follow the first.
            self.bytes.reserve(AT_LEAST);
        }
        self.bytes.extend_from_slice(&bytes[..room]);
    }

    /// Contiguous runs with their offsets in the stream.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let ends = self.runs.iter().skip(1).map(|(_, at)| *at).chain([self.bytes.len()]);
        self.runs.iter().zip(ends).filter_map(|((offset, at), end)| Some((*offset, self.bytes.get(*at..end)?)))
    }

    /// Number of bytes that exceeded the bound.
    pub(super) const fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_bytes_are_one_run_and_the_bound_holds() {
        let mut retained = Retained::default();
        retained.push(0, b"ab");
        retained.push(2, b"cd");
        retained.push(9, b"e");
        assert_eq!(retained.runs().collect::<Vec<_>>(), [(0, &b"abcd"[..]), (9, b"e")]);
        retained.push(10, &vec![b'x'; EXHIBIT_OCTETS]);
        assert_eq!(
            (retained.runs().map(|(_, run)| run.len()).sum::<usize>(), retained.left_out()),
            (EXHIBIT_OCTETS, 5)
        );
    }
}
