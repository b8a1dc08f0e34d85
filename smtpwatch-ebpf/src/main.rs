//! The kernel programs of smtpwatch.
//!
//! Entry points and adapters only: what is decided, [`smtpwatch_common`] decides. Every path of every program passes the
//! packet on: `XDP_PASS` at XDP, `TC_ACT_UNSPEC` (which is `TCX_NEXT`) at TC, so that whatever comes next still runs.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For the one atomic instruction: see `maps::ScratchSlot`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod hook;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_UNSPEC, xdp_action::XDP_PASS},
        macros::{classifier, xdp},
        programs::{TcContext, XdpContext},
    };
    use smtpwatch_common::{Direction, Link};

    use crate::hook;

    // `frags`: jumbo and multi-buffer frames too (docs/threats.md EV-12).
    #[xdp(frags)]
    fn smtpwatch_xdp(context: XdpContext) -> u32 {
        hook::xdp(&context);
        XDP_PASS
    }

    #[classifier]
    fn smtpwatch_tc_ingress(context: TcContext) -> i32 {
        hook::skb(&context, Link::Ethernet, Direction::Ingress);
        TC_ACT_UNSPEC
    }

    #[classifier]
    fn smtpwatch_tc_egress(context: TcContext) -> i32 {
        hook::skb(&context, Link::Ethernet, Direction::Egress);
        TC_ACT_UNSPEC
    }

    // For devices without a link layer: tunnels, PPP.
    #[classifier]
    fn smtpwatch_tc_ingress_ip(context: TcContext) -> i32 {
        hook::skb(&context, Link::Ip, Direction::Ingress);
        TC_ACT_UNSPEC
    }

    #[classifier]
    fn smtpwatch_tc_egress_ip(context: TcContext) -> i32 {
        hook::skb(&context, Link::Ip, Direction::Egress);
        TC_ACT_UNSPEC
    }
}

/// Some helpers are for GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: the verifier would not load a program that can get here.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this program runs in the kernel: build it with `cargo xtask build-ebpf`");
    std::process::exit(2);
}
