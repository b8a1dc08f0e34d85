//! Buffers for bytes that may be secret: they overwrite their memory before they release it. [`SecretBuffer`] replaces
//! a `Vec`, `SecretQueue` a `VecDeque`; reassembly and the SMTP parser use them.
//!
//! A `Vec` leaves a copy in freed memory when it grows, and stale bytes when it shrinks. These two types grow by
//! copying into fresh memory and overwriting the old, and overwrite what they drop from either end. Memory beyond their
//! length therefore never holds one of their bytes, and [`Drop`] costs as much as their length, not their capacity.

use std::{
    collections::{VecDeque, vec_deque},
    fmt, mem,
    ops::{Deref, DerefMut, RangeFrom},
};

use zeroize::{ZeroizeOnDrop, zeroize_bytes};

/// Minimum capacity, in bytes, of a buffer that grows.
const SMALLEST: usize = 8;

/// A sequence of bytes that may hold a secret. `Debug` shows only its length.
#[derive(Default, PartialEq, Eq)]
pub struct SecretBuffer(Vec<u8>);

impl SecretBuffer {
    /// Bytes allocated.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Appends bytes. Capacity grows by doubling.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            self.reallocate(needed.max(2 * self.0.capacity()).max(SMALLEST));
        }
        self.0.extend_from_slice(bytes);
    }

    /// Appends one byte.
    pub fn push(&mut self, byte: u8) {
        self.extend_from_slice(&[byte]);
    }

    /// Appends `count` zero bytes.
    pub fn extend_zeros(&mut self, count: usize) {
        let needed = self.0.len() + count;
        if needed > self.0.capacity() {
            self.reallocate(needed.max(2 * self.0.capacity()).max(SMALLEST));
        }
        self.0.resize(needed, 0);
    }

    /// Removes the last byte.
    pub fn pop(&mut self) -> Option<u8> {
        let last = self.0.last().copied();
        self.truncate(self.0.len().saturating_sub(1));
        last
    }

    /// Shortens the buffer to `length` bytes if it is longer.
    pub fn truncate(&mut self, length: usize) {
        if let Some(rest) = self.0.get_mut(length..) {
            zeroize_bytes(rest);
            self.0.truncate(length);
        }
    }

    /// Removes the first `count` bytes, or all if there are fewer.
    pub fn remove_front(&mut self, count: usize) {
        let count = count.min(self.0.len());
        self.0.copy_within(count.., 0);
        self.truncate(self.0.len() - count);
    }

    /// Releases unused capacity.
    pub fn shrink_to_fit(&mut self) {
        if self.0.capacity() > self.0.len() {
            self.reallocate(self.0.len());
        }
    }

    fn reallocate(&mut self, capacity: usize) {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(&self.0);
        drop(Self(mem::replace(&mut self.0, bytes)));
    }
}

impl From<&[u8]> for SecretBuffer {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl Clone for SecretBuffer {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Deref for SecretBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for SecretBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl<'a> IntoIterator for &'a SecretBuffer {
    type Item = &'a u8;
    type IntoIter = std::slice::Iter<'a, u8>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Debug for SecretBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBuffer({} bytes)", self.0.len())
    }
}

impl Drop for SecretBuffer {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            zeroize_bytes(&mut self.0);
        }
    }
}

impl ZeroizeOnDrop for SecretBuffer {}

/// A queue of bytes that may hold a secret: appended at the end, removed at the front.
#[derive(Default)]
pub(crate) struct SecretQueue(VecDeque<u8>);

impl SecretQueue {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes allocated.
    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// The bytes from an index on.
    pub(crate) fn range(&self, range: RangeFrom<usize>) -> vec_deque::Iter<'_, u8> {
        self.0.range(range)
    }

    /// Removes the first `count` bytes, or all if there are fewer.
    pub(crate) fn remove_front(&mut self, count: usize) {
        let count = count.min(self.0.len());
        let (first, second) = self.0.as_mut_slices();
        let split = count.min(first.len());
        zeroize_bytes(&mut first[..split]);
        zeroize_bytes(&mut second[..count - split]);
        self.0.drain(..count);
    }

    /// Appends bytes. If the queue must grow, its capacity is at least `capacity` afterwards.
    pub(crate) fn extend_within(&mut self, bytes: &[u8], capacity: usize) {
        if self.0.len() + bytes.len() > self.0.capacity() {
            let mut grown = VecDeque::with_capacity(capacity.max(self.0.len() + bytes.len()));
            let (first, second) = self.0.as_slices();
            grown.extend(first);
            grown.extend(second);
            drop(Self(mem::replace(&mut self.0, grown)));
        }
        self.0.extend(bytes);
    }
}

impl Drop for SecretQueue {
    fn drop(&mut self) {
        let (first, second) = self.0.as_mut_slices();
        for part in [first, second] {
            if !part.is_empty() {
                zeroize_bytes(part);
            }
        }
    }
}

impl ZeroizeOnDrop for SecretQueue {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_behaves_as_a_vector_does() {
        let mut buffer = SecretBuffer::from(&b"abc"[..]);
        buffer.extend_from_slice(b"defghijk");
        buffer.push(b'l');
        assert_eq!(&*buffer, b"abcdefghijkl");
        assert_eq!((buffer.pop(), buffer.len()), (Some(b'l'), 11));
        buffer.remove_front(4);
        buffer.truncate(20);
        assert_eq!(&*buffer, b"efghijk");
        buffer.truncate(2);
        buffer.shrink_to_fit();
        assert_eq!((&*buffer, buffer.capacity()), (&b"ef"[..], 2));
        buffer.remove_front(9);
        assert_eq!((buffer.len(), buffer.pop()), (0, None));
        assert_eq!(format!("{:?}", SecretBuffer::from(&b"hunter2"[..])), "SecretBuffer(7 bytes)");
    }

    #[test]
    fn a_queue_keeps_its_order_as_it_wraps_and_grows() {
        let mut queue = SecretQueue::default();
        for round in 0..50_u8 {
            queue.extend_within(&[round; 7], 16);
            queue.remove_front(if round % 3 == 0 { 9 } else { 5 });
        }
        let bytes: Vec<u8> = queue.range(0..).copied().collect();
        assert!(bytes.is_sorted() && bytes.last() == Some(&49), "{bytes:?}");
        queue.remove_front(1000);
        assert_eq!(queue.len(), 0);
    }
}
