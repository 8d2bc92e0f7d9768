//! The XDP program of a backend: `lb_common::decap` over a frame and the maps.
//!
//! On any other target than BPF this is an empty program, as the load balancer's.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[path = "../emit.rs"]
mod emit;
#[path = "../packet.rs"]
mod packet;
#[path = "../decap/tables.rs"]
mod tables;

use aya_ebpf::{macros::xdp, programs::XdpContext};
use lb_common::decap;

use crate::{packet::XdpPacket, tables::BpfReceiver};

/// A frame's way into the kernel. May consist of several buffers: the headers lie in the first.
#[xdp(frags)]
fn lb_decap(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    let mut receiver = BpfReceiver::new(ctx.ctx);
    let (verdict, _) = decap::process(&mut packet, &mut receiver);
    emit::action(verdict)
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
