//! Sequence numbers as stream offsets. [`Origin`] converts between the two; serial arithmetic modulo 2^32 (RFC 9293
//! §3.4) stays inside this file.

/// The sequence number of stream offset 0: one after the SYN, or the first number seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Origin(pub u32);

impl Origin {
    /// The sequence number of a stream offset.
    #[expect(clippy::cast_possible_truncation, reason = "sequence space is modulo 2^32")]
    pub const fn seq(self, offset: u64) -> u32 {
        self.0.wrapping_add(offset as u32)
    }

    /// The stream offset of `seq` that is nearest to `near`; negative before the origin.
    pub const fn offset(self, seq: u32, near: u64) -> i64 {
        let distance = seq.wrapping_sub(self.seq(near)).cast_signed();
        near.cast_signed().saturating_add(distance as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_the_wrap() {
        let cases: &[(u32, u64, u32, i64)] = &[
            (1000, 0, 1000, 0),
            (1000, 0, 999, -1),
            (u32::MAX, 0, 4, 5),
            (u32::MAX, 10, u32::MAX, 0),
            (0, 0, u32::MAX, -1),
            (5, (1 << 32) + 7, 12, (1 << 32) + 7),
            (5, (1 << 32) + 7, 11, (1 << 32) + 6),
            (5, (1 << 32) - 1, 5, 1 << 32),
        ];
        for &(origin, near, seq, offset) in cases {
            assert_eq!(Origin(origin).offset(seq, near), offset, "origin {origin}, near {near}, seq {seq}");
            if let Ok(offset) = u64::try_from(offset) {
                assert_eq!(Origin(origin).seq(offset), seq);
            }
        }
    }
}
