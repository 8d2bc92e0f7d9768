//! The outer headers of tunnels: what `dsr-ipip` and `dsr-gue` share.
//!
//! The outer family is the family of the backend's address, whatever the packet's. The load balancer
//! forwards the packet into the tunnel: its TTL or hop limit goes down by one (RFC 2003 section 3.1)
//! and nothing else of it changes. DSCP and ECN are copied outwards (RFC 6040 section 4.1), the outer
//! TTL is 64, an outer IPv4 header has DF set (and so needs no identification, RFC 6864 section 4.1),
//! an outer IPv6 header has a flow label from the flow's hash (RFC 6438). A packet in a tunnel never
//! goes through the kernel's stack: unresolved means dropped, as in `dsr-l2`. One that is too long
//! for the way to the backend, with its outer headers, is answered ([`mod@crate::datapath::answer`]).

use super::{Change, Step, alive, front, gue};
use crate::{
    abi::{Address, Backend, Reason},
    datapath::{
        Packet, Tables,
        parse::{Family, Parsed},
        select,
    },
    wire::{
        checksum::Delta,
        eth,
        ip::{self, Ipv4Header, Ipv6Header},
        l4::UdpHeader,
    },
};

/// TTL and hop limit of outer headers.
const TTL: u8 = 64;

/// What lies between the outer IP header and the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Ip,
    /// A UDP header.
    Udp,
}

impl Kind {
    const fn length(self) -> usize {
        match self {
            Self::Ip => 0,
            Self::Udp => UdpHeader::LEN,
        }
    }
}

/// Decides what happens to a client's packet.
#[inline(always)]
pub(super) fn towards<T: Tables>(
    parsed: &Parsed,
    backend: &Backend,
    kind: Kind,
    tables: &T,
    step: &mut Step,
) -> Result<(), Reason> {
    alive(parsed)?;
    let tunnel = tables.tunnel().ok_or(Reason::NoService)?;
    if backend.source == Address::default() {
        return Err(Reason::BackendUnresolved);
    }
    let head = Family::of(&backend.address).header_length() + kind.length();
    if backend.mtu != 0 && usize::from(parsed.length) + head > usize::from(backend.mtu) {
        step.mtu = backend.mtu.saturating_sub(head as u16);
        return Err(match parsed.may_be_cut {
            true => Reason::TooBigWithoutDf,
            false => Reason::TooBig,
        });
    }
    let (next, reason) = if backend.neighbour.is_resolved() {
        (backend.neighbour, Reason::ToBackend)
    } else {
        let next = tables.route(parsed, &backend.source, &backend.address);
        (
            next.ok_or(Reason::BackendUnresolved)?,
            Reason::ToBackendRouted,
        )
    };
    let vary = match Family::of(&backend.address) {
        Family::V4 => tunnel.vary4,
        Family::V6 => tunnel.vary6,
    };
    let hash = select::flow_hash(parsed);
    step.change = match kind {
        Kind::Ip => Change::Ip,
        Kind::Udp => Change::Udp,
    };
    step.address = backend.address;
    step.source = varied(&backend.source, hash as u32 & u32::from_ne_bytes(vary));
    step.port = tunnel.gue_port;
    step.hash = hash;
    step.next = next;
    step.reason = reason;
    Ok(())
}

/// An address with some bits set in its last four bytes.
#[inline(always)]
fn varied(address: &Address, variation: u32) -> Address {
    let mut words: [u32; 4] = zerocopy::transmute!(*address);
    words[3] |= variation;
    zerocopy::transmute!(words)
}

/// Puts the outer headers in front of the packet, and an Ethernet header, without addresses yet, with
/// the frame's VLAN tags in front of those.
#[inline(always)]
pub(super) fn put<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    kind: Kind,
    step: &Step,
) -> Result<(), Reason> {
    match Family::of(&step.address) {
        Family::V4 => v4(packet, parsed, kind, step),
        Family::V6 => v6(packet, parsed, kind, step),
    }
}

#[inline(always)]
fn v4<P: Packet>(packet: &mut P, parsed: &Parsed, kind: Kind, step: &Step) -> Result<(), Reason> {
    let head = Ipv4Header::LEN + kind.length();
    begin(packet, parsed, head, eth::IPV4)?;
    let l3 = parsed.l3();
    let header: &mut Ipv4Header = packet.at_mut(l3).ok_or(Reason::NoHeadroom)?;
    let length = (parsed.length + head as u16).to_be_bytes();
    let (source, destination) = (step.source.v4_bytes(), step.address.v4_bytes());
    let protocol = protocol(parsed, kind);
    header.version_ihl = 0x45;
    header.tos = parsed.tos;
    header.total_length = length;
    header.identification = [0; 2];
    header.fragment = [0x40, 0];
    header.ttl = TTL;
    header.protocol = protocol;
    header.source = source;
    header.destination = destination;
    // Not over the header as it lies there: words read where bytes were just written cost more.
    header.checksum = Delta::NONE
        .plus([0x45, parsed.tos])
        .plus(length)
        .plus([0x40, 0])
        .plus([TTL, protocol])
        .plus2(source)
        .plus2(destination)
        .checksum();
    finish(packet, parsed, kind, l3 + Ipv4Header::LEN, step)
}

#[inline(always)]
fn v6<P: Packet>(packet: &mut P, parsed: &Parsed, kind: Kind, step: &Step) -> Result<(), Reason> {
    let head = Ipv6Header::LEN + kind.length();
    begin(packet, parsed, head, eth::IPV6)?;
    let l3 = parsed.l3();
    let header: &mut Ipv6Header = packet.at_mut(l3).ok_or(Reason::NoHeadroom)?;
    let label = (step.hash >> 44) as u32;
    let first = 6 << 28 | u32::from(parsed.tos) << 20 | label;
    header.version_class_flow = first.to_be_bytes();
    header.payload_length = (parsed.length + kind.length() as u16).to_be_bytes();
    header.next_header = protocol(parsed, kind);
    header.hop_limit = TTL;
    header.source = step.source.0;
    header.destination = step.address.0;
    finish(packet, parsed, kind, l3 + Ipv6Header::LEN, step)
}

/// The protocol number in an outer header.
#[inline(always)]
const fn protocol(parsed: &Parsed, kind: Kind) -> u8 {
    match (kind, parsed.family) {
        (Kind::Udp, _) => ip::UDP,
        (Kind::Ip, Family::V4) => ip::IPV4,
        (Kind::Ip, Family::V6) => ip::IPV6,
    }
}

/// Makes room for `head` bytes of outer headers.
#[inline(always)]
fn begin<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    head: usize,
    ether_type: [u8; 2],
) -> Result<(), Reason> {
    if usize::from(parsed.length) + head > usize::from(u16::MAX) {
        return Err(Reason::NoHeadroom);
    }
    front::extend(packet, parsed, head, ether_type)
}

/// What comes behind the outer IP header, from `offset` on.
#[inline(always)]
fn finish<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    kind: Kind,
    offset: usize,
    step: &Step,
) -> Result<(), Reason> {
    if kind == Kind::Udp {
        gue::put(packet, offset, parsed.length, step)?;
    }
    let inner = offset + kind.length();
    match parsed.family {
        Family::V4 => {
            let header: &mut Ipv4Header = packet.at_mut(inner).ok_or(Reason::NoHeadroom)?;
            let before = [header.ttl, header.protocol];
            header.ttl -= 1;
            let delta = Delta::NONE.word(before, [header.ttl, header.protocol]);
            header.checksum = delta.apply(header.checksum);
        }
        Family::V6 => {
            let header: &mut Ipv6Header = packet.at_mut(inner).ok_or(Reason::NoHeadroom)?;
            header.hop_limit -= 1;
        }
    }
    Ok(())
}
