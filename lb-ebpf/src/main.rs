//! The XDP program of the load balancer.
//!
//! On any other target than BPF this is an empty program, so that checks of the whole workspace
//! and editors, which compile for the host, see every line without linking it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

/// Passes every packet to the kernel's stack.
#[xdp]
fn lb(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends some helpers only to programs under a licence that includes the GPL.
#[cfg(target_arch = "bpf")]
#[expect(
    unsafe_code,
    reason = "the kernel looks for this section, which holds nothing else"
)]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
