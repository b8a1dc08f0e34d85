//! How the hooks read bytes: direct access to the start of a packet, byte-copy helpers for the rest, which may lie in
//! other pages (GRO and GSO segments, multi-buffer frames: docs/threats.md EV-10, EV-12).

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use smtpwatch_common::{Packet, packet::Words};

/// A packet at XDP.
pub struct XdpPacket<'a>(pub &'a XdpContext);

/// A packet at TC.
pub struct SkbPacket<'a>(pub &'a TcContext);

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is the one that the program was called with.
        let length = unsafe { bpf_xdp_get_buff_len(self.0.ctx) };
        // Frames are far below 4 GiB.
        (length & 0xffff_ffff) as u32
    }

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        head(self.0.data(), self.0.data_end())
    }

    #[inline(always)]
    fn words<const N: usize>(&self) -> Option<impl Words> {
        head::<N>(self.0.data(), self.0.data_end()).map(Head)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut octets = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes all `N` bytes of `bytes`, or fails.
        let failed = unsafe { bpf_xdp_load_bytes(self.0.ctx, offset, octets.as_mut_ptr().cast(), N as u32) };
        // SAFETY: initialised where the helper did not fail.
        if failed == 0 { Some(unsafe { octets.assume_init() }) } else { None }
    }

    #[inline(always)]
    fn copy<const N: usize>(&self, offset: u32, length: u32, into: &mut [u8; N]) -> bool {
        let Some(length) = bounded::<N>(length) else { return false };
        // SAFETY: `length` is at most `N`, the size of `into`.
        unsafe { bpf_xdp_load_bytes(self.0.ctx, offset, into.as_mut_ptr().cast(), length) == 0 }
    }
}

impl Packet for SkbPacket<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.len()
    }

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        head(self.0.data(), self.0.data_end())
    }

    #[inline(always)]
    fn words<const N: usize>(&self) -> Option<impl Words> {
        head::<N>(self.0.data(), self.0.data_end()).map(Head)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut octets = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes all `N` bytes of `bytes`, or fails.
        let failed = unsafe { bpf_skb_load_bytes(self.0.skb.skb.cast(), offset, octets.as_mut_ptr().cast(), N as u32) };
        // SAFETY: initialised where the helper did not fail.
        if failed == 0 { Some(unsafe { octets.assume_init() }) } else { None }
    }

    #[inline(always)]
    fn copy<const N: usize>(&self, offset: u32, length: u32, into: &mut [u8; N]) -> bool {
        let Some(length) = bounded::<N>(length) else { return false };
        // SAFETY: `length` is at most `N`, the size of `into`.
        unsafe { bpf_skb_load_bytes(self.0.skb.skb.cast(), offset, into.as_mut_ptr().cast(), length) == 0 }
    }
}

/// The first `N` bytes. Written as `start + N > end`, the one form that the verifier takes without CAP_PERFMON.
#[inline(always)]
fn head<'a, const N: usize>(start: usize, end: usize) -> Option<&'a [u8; N]> {
    if start + N > end {
        return None;
    }
    // SAFETY: `start..start + N` was just checked to be packet memory, which lives as long as the program runs.
    Some(unsafe { &*(start as *const [u8; N]) })
}

/// Packet memory, read a word at a time.
struct Head<'a, const N: usize>(&'a [u8; N]);

impl<const N: usize> Head<'_, N> {
    #[inline(always)]
    fn read<T: Copy, const AT: usize>(&self) -> T {
        const { assert!(AT + size_of::<T>() <= N) };
        // SAFETY: the bytes lie in the array. They need not be aligned: whether this machine reads them so, the verifier
        // decides, which knows how the kernel aligns packets (NET_IP_ALIGN); an unaligned read in Rust's terms would be
        // put together from single bytes. Volatile, so that the compiler reads a word where it is used and not all of them before.
        unsafe { self.0.as_ptr().add(AT).cast::<T>().read_volatile() }
    }
}

impl<const N: usize> Words for Head<'_, N> {
    #[inline(always)]
    fn octet<const AT: usize>(&self) -> u8 {
        self.read::<u8, AT>()
    }

    #[inline(always)]
    fn half<const AT: usize>(&self) -> u16 {
        self.read::<u16, AT>()
    }

    #[inline(always)]
    fn word<const AT: usize>(&self) -> u32 {
        self.read::<u32, AT>()
    }
}

/// `length`, if it is 1 to `N`.
///
/// The compiler would fold this with what it knows from before, and the verifier would not see the bounds on the register
/// that reaches the helper: so what it knows is hidden, and zero is excluded by arithmetic, not by a comparison.
#[inline(always)]
fn bounded<const N: usize>(length: u32) -> Option<u32> {
    let last = core::hint::black_box(length.wrapping_sub(1));
    if (last as usize) < N { Some(last + 1) } else { None }
}
