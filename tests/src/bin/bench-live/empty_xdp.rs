//! Attaches an empty XDP program, to measure the cost of XDP itself on an interface.
//!
//! On veth this cost is high: before the program runs, the kernel copies each packet of the stack into its own pages,
//! with headroom (`veth_xdp_rcv_skb`, `skb_pp_cow_data`).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result};
use smtpwatch_testkit::test_run::{Kind, empty_program};
use smtpwatch_tests::netns::Namespace;

// include/uapi/linux/bpf.h
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_XDP: u32 = 37;
// include/uapi/linux/if_link.h
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The attached program; dropping it detaches it.
#[derive(Debug)]
pub struct EmptyXdp {
    _link: OwnedFd,
}

/// The fields of `union bpf_attr` that `BPF_LINK_CREATE` needs here.
#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    kind: u32,
    flags: u32,
}

impl EmptyXdp {
    /// Attaches it to `interface` of `namespace` in driver mode with multi-buffer support, as the real program is
    /// attached.
    pub fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let link = namespace.run(|| {
            let program = empty_program(Kind::Xdp, "empty")?;
            let link = LinkCreate {
                program: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
                interface: nix::net::if_::if_nametoindex(interface)?,
                kind: BPF_XDP,
                flags: XDP_FLAGS_DRV_MODE,
            };
            // SAFETY: the attributes are borrowed for the call, have the size passed, and contain no pointers.
            let made =
                unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const link, size_of::<LinkCreate>()) };
            if made < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just created this descriptor for this caller.
            Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(made).map_err(io::Error::other)?) })
        })?;
        Ok(Self { _link: link.with_context(|| format!("cannot attach an empty XDP program to {interface}"))? })
    }
}
