//! An XDP program that only passes: what XDP itself costs on an interface, whoever has a program there.
//!
//! On a veth that is much: the kernel copies each packet that the stack has made into pages of its own, headroom in front,
//! before a program sees it (`veth_xdp_rcv_skb`, `skb_pp_cow_data`).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result};
use smtpwatch_tests::netns::Namespace;

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_XDP: u32 = 37;
// include/uapi/linux/if_link.h
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`
const PASS: [u64; 2] = [0xb7 | 2 << 32, 0x95];

/// The program on an interface; it goes when this goes out of scope.
#[derive(Debug)]
pub struct EmptyXdp {
    _link: OwnedFd,
}

/// `BPF_PROG_LOAD` of `union bpf_attr`, as far as it is needed here.
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
}

/// `BPF_LINK_CREATE` of `union bpf_attr`, as far as it is needed here.
#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    kind: u32,
    flags: u32,
}

impl EmptyXdp {
    /// Attaches it to `interface` of `namespace`, in the driver, for packets of any number of buffers as ours is.
    pub fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let link = namespace.run(|| {
            let code = PASS;
            let program = ProgramLoad {
                kind: BPF_PROG_TYPE_XDP,
                instructions: 2,
                code: code.as_ptr() as u64,
                license: c"GPL".as_ptr() as u64,
                flags: BPF_F_XDP_HAS_FRAGS,
                ..ProgramLoad::default()
            };
            // SAFETY: code and licence outlive the call.
            let program = unsafe { bpf(BPF_PROG_LOAD, &program) }?;
            let link = LinkCreate {
                program: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
                interface: nix::net::if_::if_nametoindex(interface)?,
                kind: BPF_XDP,
                flags: XDP_FLAGS_DRV_MODE,
            };
            // SAFETY: there are no pointers in these attributes.
            unsafe { bpf(BPF_LINK_CREATE, &link) }
        })?;
        Ok(Self { _link: link.with_context(|| format!("cannot attach an empty XDP program to {interface}"))? })
    }
}

/// A command of bpf(2) that makes a file descriptor.
///
/// # Safety
/// What `attributes` points to, in the layout of the command, must be valid during the call.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` is borrowed for the call and has the size told; the caller vouches for what is in it.
    let made = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(made).map_err(io::Error::other)?) })
}
