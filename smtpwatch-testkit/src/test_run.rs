//! `BPF_PROG_TEST_RUN`: runs a program on a packet, without an interface.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// `XDP_PASS`.
pub const XDP_PASS: u32 = 2;
/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`.
pub const TC_NEXT: u32 = u32::MAX;

/// Result of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The program's verdict.
    pub verdict: u32,
    /// Average duration of a run, ns.
    pub duration_ns: u32,
}

/// The member `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Runs `program` over `packet`, `repeat` times, on the interface with this index in the calling thread's network
/// namespace.
///
/// # Errors
/// The kernel's error: EINVAL for packets that it cannot build, ENODEV if the interface does not exist.
pub fn test_run(program: BorrowedFd<'_>, kind: Kind, packet: &[u8], repeat: u32, interface: u32) -> io::Result<Run> {
    let length = u32::try_from(packet.len()).map_err(io::Error::other)?;
    let context: &[u32] = match kind {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex. The packet begins at 0, because it has no
        // metadata.
        Kind::Xdp => &[0, length, 0, interface],
        // `struct __sk_buff`: ten fields that stay zero, then ifindex.
        Kind::Tc => &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, interface],
    };
    let mut attributes = TestRun {
        program: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        data_size_in: length,
        data_in: packet.as_ptr() as u64,
        repeat,
        context_size_in: u32::try_from(size_of_val(context)).map_err(io::Error::other)?,
        context_in: context.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: `attributes`, and the packet and context that it points to, outlive the call and have the sizes passed;
    // the kernel writes only to `attributes`, because no output buffer is passed.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Run { verdict: attributes.verdict, duration_ns: attributes.duration })
}

/// The fields of `BPF_PROG_LOAD` that are needed here.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The hook of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// XDP.
    Xdp,
    /// TC.
    Tc,
}

/// Loads a program of two instructions that passes every packet. At XDP it supports multi-buffer packets, like the real
/// program.
///
/// # Errors
/// The error of the kernel.
pub fn empty_program(kind: Kind, name: &str) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    let (kind, verdict, flags) = match kind {
        Kind::Xdp => (BPF_PROG_TYPE_XDP, XDP_PASS, BPF_F_XDP_HAS_FRAGS),
        Kind::Tc => (BPF_PROG_TYPE_SCHED_CLS, TC_NEXT, 0),
    };
    // r0 = verdict; exit
    let code: [u64; 2] = [0xb7 | u64::from(verdict) << 32, 0x95];
    let mut attributes = ProgramLoad {
        kind,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        flags,
        ..ProgramLoad::default()
    };
    for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: `attributes`, and the code and licence that it points to, outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<ProgramLoad>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor for this caller.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}
