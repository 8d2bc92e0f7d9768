//! The XDP program of the load balancer: the data path of `lb_common` over a frame and the maps.
//!
//! On any other target than BPF this is an empty program, so that checks of the whole workspace
//! and editors, which compile for the host, see every line without linking it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod emit;
mod fib;
#[cfg(target_arch = "bpf")]
mod object;
mod packet;
mod tables;

use aya_ebpf::{Global, macros::xdp, programs::XdpContext};
use aya_log_ebpf::info;
use lb_common::{
    abi::Reason,
    datapath::{self, End, Flows as _, Packet as _, Verdict},
};

use crate::{packet::XdpPacket, tables::BpfTables};

/// Not 0: rare packets are written to the log. Set by the agent when it loads the program, so that
/// the verifier removes the log's code where it is 0.
#[expect(unsafe_code, reason = "the agent finds the variable by its name")]
#[unsafe(no_mangle)]
static LOG_LEVEL: Global<u8> = Global::new(0);

/// A frame's way through the load balancer.
#[xdp]
fn lb(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    let tables = BpfTables::new(ctx.ctx);
    let mut flows = BpfTables::new(ctx.ctx);
    let Some(parsed) = tables::parsed() else {
        return emit::action(Verdict::Pass);
    };
    let (verdict, reason) = match datapath::process(&mut packet, parsed, &tables, &mut flows) {
        End::Sent(verdict, reason) => (verdict, reason),
        End::Answer(answer) => {
            tables::go_on_to_answer(&ctx, answer);
            let reason = Reason::TooBigSuppressed;
            flows.count(packet.ifindex(), reason, packet.length());
            (Verdict::Drop, reason)
        }
        End::Later => {
            tables::go_on_to_later(&ctx);
            let reason = Reason::LaterFragment;
            flows.count(packet.ifindex(), reason, packet.length());
            (Verdict::Pass, reason)
        }
    };
    if LOG_LEVEL.load() != 0 && is_rare(reason) {
        info!(
            &ctx,
            "reason {} on interface {}",
            reason as u8,
            packet.ifindex()
        );
    }
    emit::action(verdict)
}

/// The rest of the way of a packet that is answered: entered from [`lb`], which has left its decision
/// in this CPU's working memory.
#[xdp]
fn answer(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    let tables = BpfTables::new(ctx.ctx);
    let mut flows = BpfTables::new(ctx.ctx);
    let (Some(parsed), Some(answer)) = (tables::parsed(), tables::answer()) else {
        return emit::action(Verdict::Drop);
    };
    let (verdict, _) = datapath::answer(&mut packet, parsed, &answer, &tables, &mut flows);
    emit::action(verdict)
}

/// The way of a later fragment: entered from [`lb`], which has left what it has read of it in this
/// CPU's working memory.
#[xdp]
fn later(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    let tables = BpfTables::new(ctx.ctx);
    let mut flows = BpfTables::new(ctx.ctx);
    let Some(parsed) = tables::parsed() else {
        return emit::action(Verdict::Pass);
    };
    let (verdict, _) = datapath::fragment::follow(&mut packet, parsed, &tables, &mut flows);
    emit::action(verdict)
}

/// Whether a packet that leaves for this reason is worth a line: something is missing that should
/// be there.
fn is_rare(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoBackend
            | Reason::NoService
            | Reason::BackendUnresolved
            | Reason::ClientUnresolved
            | Reason::ToBackendViaKernel
            | Reason::AmbiguousAnswer
            | Reason::ConversationTaken
            | Reason::NoHeadroom
    )
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
