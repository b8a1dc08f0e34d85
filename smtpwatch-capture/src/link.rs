//! `BPF_LINK_CREATE`: an attachment that ends with its file descriptor, regardless of how the process ends.
//! [`super::attach`] uses it for XDP and TCX.
//!
//! aya's own `Xdp::attach` falls back to netlink if the kernel returns EINVAL. Such an attachment outlives the
//! process and may replace another program.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

// include/uapi/linux/bpf.h
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;
// include/uapi/linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Hook point of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// XDP in the driver.
    XdpNative,
    /// XDP on the generic path.
    XdpGeneric,
    /// First of the TCX programs at ingress, so that a redirect by another program cannot hide packets.
    TcxIngress,
    /// First of the TCX programs at egress.
    TcxEgress,
}

/// `link_create` of `union bpf_attr`.
#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

/// Links `program` to the interface of index `interface`.
///
/// # Errors
///
/// The error of the kernel: EBUSY if the XDP slot is taken, EOPNOTSUPP if the driver has no XDP, EINVAL if the kernel
/// does not support this type of link.
pub(crate) fn create(program: BorrowedFd<'_>, interface: u32, target: Target) -> io::Result<OwnedFd> {
    let (attach_type, flags) = match target {
        Target::XdpNative => (BPF_XDP, XDP_FLAGS_DRV_MODE),
        Target::XdpGeneric => (BPF_XDP, XDP_FLAGS_SKB_MODE),
        Target::TcxIngress => (BPF_TCX_INGRESS, BPF_F_BEFORE),
        Target::TcxEgress => (BPF_TCX_EGRESS, BPF_F_BEFORE),
    };
    let program = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    let attributes =
        LinkCreate { program, interface, attach_type, flags, relative: 0, padding: 0, expected_revision: 0 };
    // SAFETY: the kernel reads `size_of::<LinkCreate>()` bytes at the pointer; the structure has that size, has no
    // padding, and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attributes, size_of::<LinkCreate>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor, with close-on-exec, for this caller only.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `info` of `union bpf_attr`.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` of an XDP or TCX link.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    attach_type: u32,
}

/// The program and the interface of a link. The interface is 0 if another process has detached the link
/// (`BPF_LINK_DETACH`), or if the interface has gone.
///
/// # Errors
///
/// The error of the kernel.
pub(crate) fn program_and_interface(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let fd = u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    let length = u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?;
    let mut info = LinkInfo::default();
    let attributes = InfoByFd { fd, length, info: (&raw mut info).expose_provenance() as u64 };
    // SAFETY: the kernel reads `attributes` and writes at most `length` bytes to `info`, for which any bytes are
    // valid; both outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attributes, size_of::<InfoByFd>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.program, info.interface))
}
