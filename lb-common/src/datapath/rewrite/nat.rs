//! `nat`: towards a backend the destination becomes the backend's address and port; on the way
//! back the source becomes the service's again. The client's address and port stay.
//!
//! The load balancer routes here: TTL or hop limit goes down by one, and a packet whose is used up
//! is dropped. Checksums are updated, not computed (RFC 1624).

use crate::{
    abi::{Address, Backend, Neighbour, Port, Reason, Service},
    datapath::{
        Flows, Packet, Sent, Tables, Verdict,
        classify::Answer,
        parse::{Family, L3, Parsed},
        track,
    },
    wire::{
        checksum::Delta,
        ip::{self, Ipv4Header, Ipv6Header},
        l4::{TcpHeader, UdpHeader},
    },
};

/// Which end of the packet is rewritten.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Whether the load balancer forwards the packet itself, and so counts as a hop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hop {
    Counted,
    /// The kernel forwards it, and counts.
    Kernel,
}

/// Sends a client's packet to its backend.
#[inline(always)]
pub(super) fn towards<P: Packet, T: Tables>(
    packet: &mut P,
    parsed: &Parsed,
    backend: &Backend,
    tables: &T,
) -> Result<Sent, Reason> {
    alive(packet, parsed)?;
    let routed;
    let (neighbour, reason) = if backend.neighbour.is_resolved() {
        (&backend.neighbour, Reason::ToBackend)
    } else if let Some(neighbour) = tables.route(parsed, &parsed.source, &backend.address) {
        routed = neighbour;
        (&routed, Reason::ToBackendRouted)
    } else {
        rewrite(
            packet,
            parsed,
            End::Destination,
            &backend.address,
            backend.port,
            Hop::Kernel,
        )?;
        return Ok(Sent {
            verdict: Verdict::Pass,
            reason: Reason::ToBackendViaKernel,
        });
    };
    rewrite(
        packet,
        parsed,
        End::Destination,
        &backend.address,
        backend.port,
        Hop::Counted,
    )?;
    let verdict = super::address(packet, neighbour)?;
    Ok(Sent { verdict, reason })
}

/// Sends a backend's answer to its client.
#[inline(always)]
pub(super) fn back<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &Parsed,
    answer: &Answer<'_>,
    service: &Service,
    tables: &T,
    flows: &mut F,
) -> Result<Sent, Reason> {
    alive(packet, parsed)?;
    let port = answer.endpoint.port;
    if let Some(key) = &answer.key {
        let now = flows.now();
        if let Some((stage, flow)) = flows.find(key) {
            let confirmed = track::from_backend(flow, stage, parsed, now);
            rewrite(
                packet,
                parsed,
                End::Source,
                &flow.address,
                port,
                Hop::Counted,
            )?;
            let verdict = super::address(packet, &flow.neighbour)?;
            if confirmed {
                flows.confirm(key);
            }
            return Ok(Sent {
                verdict,
                reason: Reason::ToClient,
            });
        }
    }
    let Some(neighbour) = tables.route(parsed, &service.address, &parsed.destination) else {
        super::ask(parsed, &parsed.destination, packet.ifindex(), flows);
        return Err(Reason::ClientUnresolved);
    };
    send(
        packet,
        parsed,
        &service.address,
        port,
        &neighbour,
        Reason::ToClientRouted,
    )
}

#[inline(always)]
fn send<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    source: &Address,
    port: Port,
    neighbour: &Neighbour,
    reason: Reason,
) -> Result<Sent, Reason> {
    rewrite(packet, parsed, End::Source, source, port, Hop::Counted)?;
    let verdict = super::address(packet, neighbour)?;
    Ok(Sent { verdict, reason })
}

/// Fails if the packet may go no further.
#[inline(always)]
fn alive<P: Packet>(packet: &P, parsed: &Parsed) -> Result<(), Reason> {
    let ttl = match parsed.family {
        Family::V4 => packet.at::<Ipv4Header>(L3).ok_or(Reason::Malformed)?.ttl,
        Family::V6 => {
            packet
                .at::<Ipv6Header>(L3)
                .ok_or(Reason::Malformed)?
                .hop_limit
        }
    };
    if ttl <= 1 {
        Err(Reason::TtlExceeded)
    } else {
        Ok(())
    }
}

/// Puts an address and port into one end of the packet and brings the checksums up to date.
#[inline(always)]
fn rewrite<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    end: End,
    address: &Address,
    port: Port,
    hop: Hop,
) -> Result<(), Reason> {
    let delta = match parsed.family {
        Family::V4 => v4(packet, end, address, hop)?,
        Family::V6 => v6(packet, end, address, hop)?,
    };
    let l4 = parsed.family.l4();
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
fn v4<P: Packet>(packet: &mut P, end: End, address: &Address, hop: Hop) -> Result<Delta, Reason> {
    let header: &mut Ipv4Header = packet.at_mut(L3).ok_or(Reason::Malformed)?;
    let new = address.v4_bytes();
    let place = match end {
        End::Source => &mut header.source,
        End::Destination => &mut header.destination,
    };
    let addresses = Delta::NONE.words2(*place, new);
    *place = new;
    let mut delta = addresses;
    if hop == Hop::Counted {
        let before = [header.ttl, header.protocol];
        header.ttl -= 1;
        delta = delta.word(before, [header.ttl, header.protocol]);
    }
    header.checksum = delta.apply(header.checksum);
    Ok(addresses)
}

/// The IPv6 header. Returns what the pseudo-header has changed by.
#[inline(always)]
fn v6<P: Packet>(packet: &mut P, end: End, address: &Address, hop: Hop) -> Result<Delta, Reason> {
    let header: &mut Ipv6Header = packet.at_mut(L3).ok_or(Reason::Malformed)?;
    let place = match end {
        End::Source => &mut header.source,
        End::Destination => &mut header.destination,
    };
    let delta = Delta::NONE.words8(place, &address.0);
    *place = address.0;
    if hop == Hop::Counted {
        header.hop_limit -= 1;
    }
    Ok(delta)
}
