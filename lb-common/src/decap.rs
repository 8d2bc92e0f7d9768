//! The backend's side of a tunnel: a packet from a known load balancer is taken out of its outer
//! header and given to the kernel, as if it had come without.
//!
//! Takes off IP in IP (IPv4 and IPv6 in either: RFC 2003, RFC 2473, RFC 4213) and GUE variant 1, IP
//! directly behind UDP (draft-ietf-intarea-gue section 4). As `datapath`, a pure function over a
//! [`Packet`] that is compiled into an XDP program and into host code. Promises: every frame leaves
//! with a counted [`Reason`]; what is not taken is not changed by a bit; whatever can fail is asked
//! before the first byte changes.
//!
//! Three choices, and why:
//!
//! * A tunnel that this host forwards is left alone: it is somebody else's ([`Receiver::sends_on`]).
//! * The outer UDP checksum is not looked at, 0 or not, over IPv4 and IPv6. What it protects is
//!   protected inside: the inner packet has the checksums that its sender gave it, and the kernel
//!   verifies those after this, so the tunnel adds no risk that the packet would not have had without
//!   it (RFC 6935 section 5, RFC 6936 section 3.1). To verify it, every byte would have to be read.
//! * Outer IPv4 options and extension headers are not followed: no load balancer sends them.

use crate::{
    abi::{
        Address, Port,
        decap::{Fate, Reason},
    },
    datapath::{Packet, Verdict, parse::Family},
    wire::{
        checksum::Delta,
        eth::{self, EthernetHeader},
        ip::{self, ExtensionHeader, Ipv4Header, Ipv6Header},
        l4::UdpHeader,
    },
};

/// Offset of the outer header, and afterwards of the inner one.
const L3: usize = EthernetHeader::LEN;

/// What a backend knows, and what it counts.
pub trait Receiver {
    /// Whether tunnels from this address, of this family, are taken off.
    fn is_known(&self, family: Family, source: &Address) -> bool;

    /// The UDP port of GUE.
    fn gue_port(&self) -> Port;

    /// Whether this host would send a packet to this address on, rather than take it for its own.
    /// `ifindex` is the interface it came in on.
    fn sends_on(&self, family: Family, destination: &Address, ifindex: u32) -> bool;

    /// Counts a packet.
    fn count(&mut self, reason: Reason, bytes: u32);
}

/// A tunnel packet, as its outer headers say.
struct Tunnel {
    /// Of the outer header.
    family: Family,
    /// Bytes of all outer headers.
    outer: usize,
    /// Bytes that they say come behind them.
    body: u16,
    /// Of the inner header.
    inner: Family,
    /// [`Reason::TakenIpip`] or [`Reason::TakenGue`].
    reason: Reason,
}

/// What is to be written.
struct Step {
    /// Bytes to take off.
    outer: usize,
    /// Of the inner header.
    inner: Family,
    /// The inner header's ECN field.
    ecn: u8,
    /// Whether that differs from what is there.
    marks: bool,
    reason: Reason,
}

/// A frame's whole way. The verdict is [`Verdict::Pass`] or [`Verdict::Drop`].
#[inline(always)]
pub fn process<P: Packet, R: Receiver>(packet: &mut P, receiver: &mut R) -> (Verdict, Reason) {
    let length = packet.length();
    let reason = match step(packet, length, receiver) {
        Ok(step) => carry_out(packet, &step),
        Err(reason) => reason,
    };
    receiver.count(reason, length);
    let verdict = match reason.fate() {
        Fate::Passed | Fate::Taken => Verdict::Pass,
        Fate::Dropped => Verdict::Drop,
    };
    (verdict, reason)
}

/// What to do with a frame of `length` bytes, or why nothing.
#[inline(always)]
fn step<P: Packet, R: Receiver>(packet: &P, length: u32, receiver: &R) -> Result<Step, Reason> {
    let ethernet: &EthernetHeader = packet.at(0).ok_or(Reason::Malformed)?;
    let family = match ethernet.ether_type {
        eth::IPV4 => Family::V4,
        eth::IPV6 => Family::V6,
        _ => return Err(Reason::NotIp),
    };
    if ethernet.is_group() {
        return Err(Reason::NotTunnel);
    }
    let tunnel = match family {
        Family::V4 => v4(packet, length, receiver)?,
        Family::V6 => v6(packet, length, receiver)?,
    };
    let outer_tos = admit(packet, &tunnel, receiver)?;
    let inner_tos = inner(packet, &tunnel)?;
    let ecn = ecn(outer_tos & 3, inner_tos & 3).ok_or(Reason::Congestion)?;
    Ok(Step {
        outer: tunnel.outer,
        inner: tunnel.inner,
        ecn,
        marks: ecn != inner_tos & 3,
        reason: tunnel.reason,
    })
}

#[inline(always)]
fn v4<P: Packet, R: Receiver>(packet: &P, frame: u32, receiver: &R) -> Result<Tunnel, Reason> {
    let header: &Ipv4Header = packet.at(L3).ok_or(Reason::Malformed)?;
    let length = u16::from_be_bytes(header.total_length);
    if header.version() != 4
        || usize::from(header.header_length()) < Ipv4Header::LEN
        || length < header.header_length()
        || frame < L3 as u32 + u32::from(length)
    {
        return Err(Reason::Malformed);
    }
    let protocol = header.protocol;
    if !matches!(protocol, ip::IPV4 | ip::IPV6 | ip::UDP) {
        return Err(Reason::NotTunnel);
    }
    if usize::from(header.header_length()) > Ipv4Header::LEN {
        return Err(Reason::Options);
    }
    if protocol == ip::UDP && header.fragment_offset() != 0 {
        return Err(Reason::NotTunnel);
    }
    let body = length - Ipv4Header::LEN as u16;
    let is_whole = header.fragment_offset() == 0 && !header.more_fragments();
    let tunnel = behind(packet, Family::V4, protocol, body, is_whole, receiver)?;
    if !header.is_sound() {
        return Err(Reason::Malformed);
    }
    Ok(tunnel)
}

#[inline(always)]
fn v6<P: Packet, R: Receiver>(packet: &P, frame: u32, receiver: &R) -> Result<Tunnel, Reason> {
    let header: &Ipv6Header = packet.at(L3).ok_or(Reason::Malformed)?;
    let body = u16::from_be_bytes(header.payload_length);
    if header.version() != 6 || frame < (L3 + Ipv6Header::LEN) as u32 + u32::from(body) {
        return Err(Reason::Malformed);
    }
    match header.next_header {
        ip::FRAGMENT => {
            let extension: Option<&ExtensionHeader> = packet.at(L3 + Ipv6Header::LEN);
            match extension.map(|extension| extension.next_header) {
                Some(ip::IPV4 | ip::IPV6) => Err(Reason::Fragment),
                _ => Err(Reason::NotTunnel),
            }
        }
        protocol => behind(packet, Family::V6, protocol, body, true, receiver),
    }
}

/// What comes behind an outer IP header: `body` bytes of `protocol`, a fragment or the whole.
#[inline(always)]
fn behind<P: Packet, R: Receiver>(
    packet: &P,
    family: Family,
    protocol: u8,
    body: u16,
    is_whole: bool,
    receiver: &R,
) -> Result<Tunnel, Reason> {
    let ipip = |inner| Tunnel {
        family,
        outer: family.header_length(),
        body,
        inner,
        reason: Reason::TakenIpip,
    };
    let tunnel = match protocol {
        ip::IPV4 => ipip(Family::V4),
        ip::IPV6 => ipip(Family::V6),
        ip::UDP => gue(packet, family, body, is_whole, receiver)?,
        _ => return Err(Reason::NotTunnel),
    };
    if !is_whole {
        return Err(Reason::Fragment);
    }
    Ok(tunnel)
}

/// GUE variant 1: the first four bits behind the UDP header are an IP version.
#[inline(always)]
fn gue<P: Packet, R: Receiver>(
    packet: &P,
    family: Family,
    body: u16,
    is_whole: bool,
    receiver: &R,
) -> Result<Tunnel, Reason> {
    let l4 = L3 + family.header_length();
    let udp: &UdpHeader = packet.at(l4).ok_or(Reason::Malformed)?;
    if Port(udp.destination) != receiver.gue_port() {
        return Err(Reason::NotTunnel);
    }
    if !is_whole {
        return Err(Reason::Fragment);
    }
    let length = u16::from_be_bytes(udp.length);
    if usize::from(length) < UdpHeader::LEN || length > body {
        return Err(Reason::Malformed);
    }
    // The shorter of the two inner headers, of which only the version is read here.
    let start: &Ipv4Header = packet
        .at(l4 + UdpHeader::LEN)
        .ok_or(Reason::InnerMalformed)?;
    let inner = match start.version() {
        4 => Family::V4,
        6 => Family::V6,
        _ => return Err(Reason::OtherGue),
    };
    Ok(Tunnel {
        family,
        outer: l4 - L3 + UdpHeader::LEN,
        body: length - UdpHeader::LEN as u16,
        inner,
        reason: Reason::TakenGue,
    })
}

/// Whether the tunnel is from a load balancer and for this host; gives the outer TOS or traffic class.
#[inline(always)]
fn admit<P: Packet, R: Receiver>(packet: &P, tunnel: &Tunnel, receiver: &R) -> Result<u8, Reason> {
    let (source, destination, tos) = match tunnel.family {
        Family::V4 => {
            let header: &Ipv4Header = packet.at(L3).ok_or(Reason::Malformed)?;
            let [source, destination] = [header.source, header.destination].map(Address::v4);
            (source, destination, header.tos)
        }
        Family::V6 => {
            let header: &Ipv6Header = packet.at(L3).ok_or(Reason::Malformed)?;
            let source = Address::v6(&header.source);
            let destination = Address::v6(&header.destination);
            (source, destination, header.traffic_class())
        }
    };
    if !receiver.is_known(tunnel.family, &source) {
        return Err(Reason::UnknownSource);
    }
    if receiver.sends_on(tunnel.family, &destination, packet.ifindex()) {
        return Err(Reason::OtherHost);
    }
    Ok(tos)
}

/// Whether a whole IP packet is inside; gives its TOS or traffic class.
#[inline(always)]
fn inner<P: Packet>(packet: &P, tunnel: &Tunnel) -> Result<u8, Reason> {
    let at = L3 + tunnel.outer;
    match tunnel.inner {
        Family::V4 => {
            let header: &Ipv4Header = packet.at(at).ok_or(Reason::InnerMalformed)?;
            let length = u16::from_be_bytes(header.total_length);
            if header.version() != 4
                || usize::from(header.header_length()) < Ipv4Header::LEN
                || length < header.header_length()
                || length > tunnel.body
            {
                return Err(Reason::InnerMalformed);
            }
            Ok(header.tos)
        }
        Family::V6 => {
            let header: &Ipv6Header = packet.at(at).ok_or(Reason::InnerMalformed)?;
            let length =
                Ipv6Header::LEN as u32 + u32::from(u16::from_be_bytes(header.payload_length));
            if header.version() != 6 || length > u32::from(tunnel.body) {
                return Err(Reason::InnerMalformed);
            }
            Ok(header.traffic_class())
        }
    }
}

/// Not-ECT, ECT(1), ECT(0) and CE (RFC 3168 section 5).
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The ECN field of the packet that leaves a tunnel (RFC 6040 section 4.2, figure 4); none if it is
/// to be dropped.
#[inline(always)]
const fn ecn(outer: u8, inner: u8) -> Option<u8> {
    match (outer, inner) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(CE),
        (ECT_1, ECT_0) => Some(ECT_1),
        (_, inner) => Some(inner),
    }
}

/// Takes the outer headers off.
#[inline(always)]
fn carry_out<P: Packet>(packet: &mut P, step: &Step) -> Reason {
    let Some(&ethernet) = packet.at::<EthernetHeader>(0) else {
        return Reason::Malformed;
    };
    // The inner header lies in the frame, so an Ethernet header's room is left before its end.
    if !packet.shrink_head(step.outer) {
        return Reason::Malformed;
    }
    if let Some(place) = packet.at_mut::<EthernetHeader>(0) {
        *place = EthernetHeader {
            ether_type: match step.inner {
                Family::V4 => eth::IPV4,
                Family::V6 => eth::IPV6,
            },
            ..ethernet
        };
    }
    if step.marks {
        mark(packet, step.inner, step.ecn);
    }
    step.reason
}

/// Writes the inner ECN field.
#[inline(always)]
fn mark<P: Packet>(packet: &mut P, family: Family, ecn: u8) {
    match family {
        Family::V4 => {
            if let Some(header) = packet.at_mut::<Ipv4Header>(L3) {
                let tos = header.tos & !3 | ecn;
                let delta =
                    Delta::NONE.word([header.version_ihl, header.tos], [header.version_ihl, tos]);
                header.tos = tos;
                header.checksum = delta.apply(header.checksum);
            }
        }
        Family::V6 => {
            if let Some(header) = packet.at_mut::<Ipv6Header>(L3) {
                header.version_class_flow[1] = header.version_class_flow[1] & !0x30 | ecn << 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ecn_field_is_that_of_rfc_6040_figure_4() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let inner = [NOT_ECT, ECT_0, ECT_1, CE];
        let outer = [NOT_ECT, ECT_0, ECT_1, CE];
        let figure = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (inner, row) in inner.into_iter().zip(figure) {
            for (outer, wanted) in outer.into_iter().zip(row) {
                assert_eq!(ecn(outer, inner), wanted, "outer {outer} inner {inner}");
            }
        }
    }
}
