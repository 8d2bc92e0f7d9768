//! `nat`: towards a backend the destination becomes the backend's address and port; on the way
//! back the source becomes the service's again. The client's address and port stay.
//!
//! The load balancer routes here: TTL or hop limit goes down by one, and a packet whose is used up
//! is dropped. Checksums are updated, not computed (RFC 1624).

use super::{Change, End, Step, alive};
use crate::{
    abi::{Address, Backend, Neighbour, Reason, Service},
    datapath::{
        Flows, Packet, Tables,
        classify::Answer,
        parse::{Family, Parsed, Part},
    },
    wire::{
        checksum::Delta,
        ip::{self, Ipv4Header, Ipv6Header},
        l4::{TcpHeader, UdpHeader},
    },
};

/// Decides what happens to a client's packet.
#[inline(always)]
pub(super) fn towards<T: Tables>(
    parsed: &Parsed,
    backend: &Backend,
    tables: &T,
    step: &mut Step,
) -> Result<(), Reason> {
    alive(parsed)?;
    let (next, reason) = if backend.neighbour.is_resolved() {
        (backend.neighbour, Reason::ToBackend)
    } else {
        match tables.route(parsed, &parsed.source, &backend.address) {
            Some(neighbour) => (neighbour, Reason::ToBackendRouted),
            None => (Neighbour::default(), Reason::ToBackendViaKernel),
        }
    };
    step.change = Change::Destination;
    step.address = backend.address;
    step.port = backend.port;
    step.next = next;
    step.reason = reason;
    Ok(())
}

/// Decides what happens to a backend's answer.
#[inline(always)]
pub(super) fn back<T: Tables, F: Flows>(
    parsed: &Parsed,
    ifindex: u32,
    answer: &Answer<'_>,
    service: &Service,
    tables: &T,
    flows: &mut F,
    step: &mut Step,
) -> Result<(), Reason> {
    alive(parsed)?;
    let (address, next, reason) = match answer.flow {
        Some((address, neighbour)) => (address, neighbour, Reason::ToClient),
        None => match tables.route(parsed, &service.address, &parsed.destination) {
            Some(neighbour) => (service.address, neighbour, Reason::ToClientRouted),
            None => {
                super::ask(parsed, &parsed.destination, ifindex, flows);
                return Err(Reason::ClientUnresolved);
            }
        },
    };
    step.change = Change::Source;
    step.address = address;
    step.port = answer.endpoint.port;
    step.next = next;
    step.reason = reason;
    Ok(())
}

/// Decides what happens to the rest of a backend's answer.
#[inline(always)]
pub(super) fn rest_back(
    parsed: &Parsed,
    address: Address,
    neighbour: Neighbour,
    step: &mut Step,
) -> Result<(), Reason> {
    alive(parsed)?;
    step.change = Change::Source;
    step.address = address;
    step.next = neighbour;
    step.reason = Reason::ToClient;
    Ok(())
}

/// Puts the new address and port into one end of the packet and brings the checksums up to date.
#[inline(always)]
pub(super) fn translate<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    end: End,
    step: &Step,
) -> Result<(), Reason> {
    let Step { address, port, .. } = step;
    // Otherwise the kernel forwards the packet, and counts the hop.
    let is_hop = step.next.is_resolved();
    let delta = match parsed.family {
        Family::V4 => v4(packet, parsed.l3(), end, address, is_hop)?,
        Family::V6 => v6(packet, parsed.l3(), end, address, is_hop)?,
    };
    if parsed.part == Part::Later {
        // The checksum that covers the addresses lies in the first fragment.
        return Ok(());
    }
    let l4 = parsed.l4();
    if parsed.protocol == ip::TCP {
        let tcp: &mut TcpHeader = packet.at_mut(l4).ok_or(Reason::Malformed)?;
        let place = match end {
            End::Source => &mut tcp.source,
            End::Destination => &mut tcp.destination,
        };
        let delta = delta.word(*place, port.0);
        *place = port.0;
        tcp.checksum = delta.apply(tcp.checksum);
    } else {
        let udp: &mut UdpHeader = packet.at_mut(l4).ok_or(Reason::Malformed)?;
        let place = match end {
            End::Source => &mut udp.source,
            End::Destination => &mut udp.destination,
        };
        let delta = delta.word(*place, port.0);
        *place = port.0;
        udp.checksum = delta.apply_udp(udp.checksum);
    }
    Ok(())
}

/// The IPv4 header. Returns what the pseudo-header has changed by.
#[inline(always)]
fn v4<P: Packet>(
    packet: &mut P,
    l3: usize,
    end: End,
    address: &Address,
    is_hop: bool,
) -> Result<Delta, Reason> {
    let header: &mut Ipv4Header = packet.at_mut(l3).ok_or(Reason::Malformed)?;
    let new = address.v4_bytes();
    let place = match end {
        End::Source => &mut header.source,
        End::Destination => &mut header.destination,
    };
    let addresses = Delta::NONE.words2(*place, new);
    *place = new;
    let mut delta = addresses;
    if is_hop {
        let before = [header.ttl, header.protocol];
        header.ttl -= 1;
        delta = delta.word(before, [header.ttl, header.protocol]);
    }
    header.checksum = delta.apply(header.checksum);
    Ok(addresses)
}

/// The IPv6 header. Returns what the pseudo-header has changed by.
#[inline(always)]
fn v6<P: Packet>(
    packet: &mut P,
    l3: usize,
    end: End,
    address: &Address,
    is_hop: bool,
) -> Result<Delta, Reason> {
    let header: &mut Ipv6Header = packet.at_mut(l3).ok_or(Reason::Malformed)?;
    let place = match end {
        End::Source => &mut header.source,
        End::Destination => &mut header.destination,
    };
    let delta = Delta::NONE.words8(place, &address.0);
    *place = address.0;
    if is_hop {
        header.hop_limit -= 1;
    }
    Ok(delta)
}
