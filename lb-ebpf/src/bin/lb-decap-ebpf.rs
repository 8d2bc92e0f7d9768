//! The XDP program of a backend: `lb_common::decap` over a frame and the maps.
//!
//! On any other target than BPF this is an empty program, as the load balancer's.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[path = "../emit.rs"]
mod emit;
#[path = "../fib.rs"]
mod fib;
#[cfg(target_arch = "bpf")]
#[path = "../object.rs"]
mod object;
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

#[cfg(not(target_arch = "bpf"))]
fn main() {}
