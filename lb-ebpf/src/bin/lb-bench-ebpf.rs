//! What `cargo xtask bench datapath` measures with and against: the harness and the generator that
//! give each packet anew, the floors, and the sink that counts what arrived. Never attached by the
//! agent.
//!
//! The globals are set when the object is loaded, once for each kind of packet; the maps may change
//! between runs. Everything runs on one CPU.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    unsafe_code,
    reason = "helpers of the kernel take pointers, and the loader finds variables by name"
)]

#[path = "../bench/flow.rs"]
mod flow;
#[cfg(target_arch = "bpf")]
#[path = "../object.rs"]
mod object;
#[path = "../packet.rs"]
mod packet;

use aya_ebpf::{
    Global,
    bindings::{xdp_action, xdp_md},
    btf_maps::{Array, LruHashMap, ProgramArray},
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    abi::{Address, Flow, FlowKey, Port, ServiceId, limits},
    datapath::Packet,
    wire::{
        checksum::Delta,
        eth::{self, EthernetHeader},
        ip::{self, Ipv4Header, Ipv6Header},
        l4::{Ports, TcpHeader, UdpHeader},
    },
};

use crate::packet::XdpPacket;

/// Flows that packets are spread over; 0: every packet is of a flow of its own.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);

/// Bytes of a frame: 64 or 80.
#[unsafe(no_mangle)]
static LENGTH: Global<u32> = Global::new(64);

/// Not 0: the client is the destination of the packets, else their source.
#[unsafe(no_mangle)]
static TO_CLIENT: Global<u8> = Global::new(0);

/// Where [`generate`] and the floors send frames to.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0);

/// The frame that each packet starts as, its checksums valid, in words of memory.
#[btf_map(name = "template")]
static TEMPLATE: Array<[u64; 10], 1> = Array::new();

/// Packets given by [`harness`] and [`generate`].
#[btf_map(name = "given")]
static GIVEN: Array<u64, 1> = Array::new();

/// The program under test.
#[btf_map(name = "programs")]
static PROGRAMS: ProgramArray<1> = ProgramArray::new();

/// MAC addresses that the floors write, destination first.
#[btf_map(name = "macs")]
static MACS: Array<[u8; 12], 1> = Array::new();

/// The network (/24, IPv4) that frames in the sink must be addressed to.
#[btf_map(name = "expected")]
static EXPECTED: Array<[u8; 4], 1> = Array::new();

/// Frames that came to the sink: 0 the expected ones, 1 all others.
#[btf_map(name = "arrived")]
static ARRIVED: Array<u64, 2> = Array::new();

/// A table as the load balancer's, of the same size.
#[btf_map(name = "table")]
static TABLE: LruHashMap<FlowKey, Flow, { limits::FLOWS as usize }> = LruHashMap::new();

/// Gives the program under test a fresh packet, for `BPF_PROG_TEST_RUN`.
#[xdp]
fn harness(ctx: XdpContext) -> u32 {
    if undo_head_move(ctx.ctx)
        .and_then(|()| renew(ctx.ctx))
        .is_none()
    {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the context is the program's own. Nothing here needs dropping.
    unsafe { PROGRAMS.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Sends a fresh packet out of an interface, for `BPF_F_TEST_XDP_LIVE_FRAMES`.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    match renew(ctx.ctx) {
        Some(()) => redirect(),
        None => xdp_action::XDP_ABORTED,
    }
}

/// The least a program can do in the harness.
#[xdp]
fn empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The least a one-armed load balancer can do: send the frame back to where it came from.
#[xdp]
fn transmit_floor(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    let Some(ethernet) = packet.at_mut::<EthernetHeader>(0) else {
        return xdp_action::XDP_ABORTED;
    };
    let EthernetHeader {
        destination,
        source,
        ..
    } = *ethernet;
    ethernet.destination = source;
    ethernet.source = destination;
    xdp_action::XDP_TX
}

/// The least a two-armed load balancer can do: address the frame and send it out of the other arm.
#[xdp]
fn redirect_floor(ctx: XdpContext) -> u32 {
    match address(&mut XdpPacket::new(ctx.ctx)) {
        Some(()) => redirect(),
        None => xdp_action::XDP_ABORTED,
    }
}

/// As [`redirect_floor`], after a lookup of the packet's flow. A packet without one goes nowhere.
#[xdp]
fn table_floor(ctx: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(ctx.ctx);
    match look_up(&packet).and_then(|()| address(&mut packet)) {
        Some(()) => redirect(),
        None => xdp_action::XDP_ABORTED,
    }
}

/// Counts and drops.
#[xdp]
fn sink(ctx: XdpContext) -> u32 {
    let packet = XdpPacket::new(ctx.ctx);
    let place = u32::from(!is_expected(&packet));
    if let Some(arrived) = ARRIVED.get_ptr_mut(place) {
        // SAFETY: all programs run on one CPU, where they do not interrupt each other.
        unsafe { *arrived += 1 };
    }
    xdp_action::XDP_DROP
}

/// Leaves frames alone: on an interface that only has to be able to receive them.
#[xdp]
fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The frame as long as the template: what an encapsulation put in front goes.
#[inline(always)]
fn undo_head_move(ctx: *mut xdp_md) -> Option<()> {
    // SAFETY: the context is the program's own.
    let length = unsafe { bpf_xdp_get_buff_len(ctx) };
    let extra = length as i32 - LENGTH.load() as i32;
    // SAFETY: as above.
    (extra == 0 || unsafe { bpf_xdp_adjust_head(ctx, extra) } == 0).then_some(())
}

/// Writes the frame from the template, for the next flow.
#[inline(always)]
fn renew(ctx: *mut xdp_md) -> Option<()> {
    let given = GIVEN.get_ptr_mut(0)?;
    // SAFETY: all programs run on one CPU, where they do not interrupt each other.
    let given = unsafe { &mut *given };
    let index = flow::pick(*given as u32, FLOWS.load());
    *given += 1;
    copy(ctx, TEMPLATE.get(0)?)?;
    let client = flow::client(index);
    let mut packet = XdpPacket::new(ctx);
    match LENGTH.load() {
        64 => {
            let ip: &mut Ipv4Header = packet.at_mut(EthernetHeader::LEN)?;
            let place = if TO_CLIENT.load() == 0 {
                &mut ip.source
            } else {
                &mut ip.destination
            };
            let delta = Delta::NONE.words2(*place, client.address);
            *place = client.address;
            ip.checksum = delta.apply(ip.checksum);
            let protocol = ip.protocol;
            port(
                &mut packet,
                EthernetHeader::LEN + Ipv4Header::LEN,
                protocol,
                delta,
                client.port,
            )
        }
        _ => {
            let ip: &mut Ipv6Header = packet.at_mut(EthernetHeader::LEN)?;
            let place = if TO_CLIENT.load() == 0 {
                &mut ip.source
            } else {
                &mut ip.destination
            };
            let old = [place[12], place[13], place[14], place[15]];
            let delta = Delta::NONE.words2(old, client.address);
            place[12..].copy_from_slice(&client.address);
            let protocol = ip.next_header;
            port(
                &mut packet,
                EthernetHeader::LEN + Ipv6Header::LEN,
                protocol,
                delta,
                client.port,
            )
        }
    }
}

/// Writes the client's port into the header at `offset`, and brings its checksum up to date.
#[inline(always)]
fn port(
    packet: &mut XdpPacket,
    offset: usize,
    protocol: u8,
    delta: Delta,
    port: [u8; 2],
) -> Option<()> {
    if protocol == ip::TCP {
        let tcp: &mut TcpHeader = packet.at_mut(offset)?;
        let place = if TO_CLIENT.load() == 0 {
            &mut tcp.source
        } else {
            &mut tcp.destination
        };
        let delta = delta.word(*place, port);
        *place = port;
        tcp.checksum = delta.apply(tcp.checksum);
    } else {
        let udp: &mut UdpHeader = packet.at_mut(offset)?;
        let place = if TO_CLIENT.load() == 0 {
            &mut udp.source
        } else {
            &mut udp.destination
        };
        let delta = delta.word(*place, port);
        *place = port;
        udp.checksum = delta.apply_udp(udp.checksum);
    }
    Some(())
}

/// Writes [`LENGTH`] bytes of the template over the frame.
#[inline(always)]
fn copy(ctx: *mut xdp_md, template: &[u64; 10]) -> Option<()> {
    // SAFETY: the kernel's context is valid for the whole run.
    let start = unsafe { (*ctx).data } as usize;
    // SAFETY: as above.
    let end = unsafe { (*ctx).data_end } as usize;
    let frame = start as *mut u64;
    if start + 64 > end {
        return None;
    }
    for (word, value) in template.iter().enumerate().take(8) {
        // SAFETY: within the first 64 bytes; test runs put frames at multiples of 8.
        unsafe { frame.wrapping_add(word).write(*value) };
    }
    if LENGTH.load() == 64 {
        return Some(());
    }
    if start + 80 > end {
        return None;
    }
    for (word, value) in template.iter().enumerate().skip(8) {
        // SAFETY: within the first 80 bytes; as above.
        unsafe { frame.wrapping_add(word).write(*value) };
    }
    Some(())
}

/// Addresses the frame.
#[inline(always)]
fn address(packet: &mut XdpPacket) -> Option<()> {
    let macs = MACS.get(0)?;
    let ethernet: &mut EthernetHeader = packet.at_mut(0)?;
    ethernet.destination.copy_from_slice(&macs[..6]);
    ethernet.source.copy_from_slice(&macs[6..]);
    Some(())
}

#[inline(always)]
fn redirect() -> u32 {
    // SAFETY: the helper takes numbers only and notes the target for when the program ends.
    unsafe { bpf_redirect(INTERFACE.load(), 0) as u32 }
}

/// Looks the packet's flow (of service 1) up in the table.
#[inline(always)]
fn look_up(packet: &XdpPacket) -> Option<()> {
    let ip: &Ipv4Header = packet.at(EthernetHeader::LEN)?;
    let ports: &Ports = packet.at(EthernetHeader::LEN + Ipv4Header::LEN)?;
    let key = FlowKey {
        client: Address::v4(ip.source),
        service: ServiceId(1),
        client_port: Port(ports.source),
        service_port: Port(ports.destination),
    };
    TABLE.get_ptr(key).map(|_| ())
}

/// Whether the frame is IPv4 and addressed to the expected network.
#[inline(always)]
fn is_expected(packet: &XdpPacket) -> bool {
    let (Some(ethernet), Some(ip), Some(expected)) = (
        packet.at::<EthernetHeader>(0),
        packet.at::<Ipv4Header>(EthernetHeader::LEN),
        EXPECTED.get(0),
    ) else {
        return false;
    };
    ethernet.ether_type == eth::IPV4 && ip.destination[..3] == expected[..3]
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
