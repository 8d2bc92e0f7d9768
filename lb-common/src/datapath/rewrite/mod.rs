//! How a packet is changed on its way, by the service's mode. One file per mode.
//!
//! Promises that a packet is either changed whole, checksums included, or not at all: whatever can
//! fail is asked before the first byte is written.

mod dsr_l2;
mod nat;

use crate::{
    abi::{Address, Backend, BackendId, EventKind, Mode, Neighbour, Reason, Service, ServiceId},
    datapath::{Flows, Packet, Report, Sent, Tables, Verdict, classify::Answer, parse::Parsed},
    wire::eth::EthernetHeader,
};

/// Changes a client's packet and sends it to its backend.
#[inline(always)]
pub fn towards<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &Parsed,
    service: &Service,
    backend: &Backend,
    tables: &T,
    flows: &mut F,
) -> Result<Sent, Reason> {
    if !backend.neighbour.is_resolved() {
        ask(parsed, &backend.address, packet.ifindex(), flows);
    }
    match service.mode {
        Mode::DSR_L2 => dsr_l2::towards(packet, backend),
        _ => nat::towards(packet, parsed, backend, tables),
    }
}

/// Changes a backend's answer and sends it to its client. Only `nat` has any.
#[inline(always)]
pub fn back<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &Parsed,
    answer: &Answer<'_>,
    service: &Service,
    tables: &T,
    flows: &mut F,
) -> Result<Sent, Reason> {
    nat::back(packet, parsed, answer, service, tables, flows)
}

/// Asks the agent to resolve the next hop towards an address.
#[inline(always)]
fn ask<F: Flows>(parsed: &Parsed, address: &Address, ifindex: u32, flows: &mut F) {
    flows.report(&Report {
        kind: EventKind::NEIGHBOUR,
        reason: Reason::BackendUnresolved,
        parsed,
        destination: address,
        ifindex,
        service: ServiceId::default(),
        backend: BackendId::default(),
    });
}

/// Addresses the frame to a neighbour.
#[inline(always)]
fn address<P: Packet>(packet: &mut P, neighbour: &Neighbour) -> Result<Verdict, Reason> {
    let ethernet: &mut EthernetHeader = packet.at_mut(0).ok_or(Reason::Malformed)?;
    ethernet.destination = neighbour.destination.0;
    ethernet.source = neighbour.source.0;
    Ok(if neighbour.ifindex == packet.ifindex() {
        Verdict::Transmit
    } else {
        Verdict::Redirect(neighbour.ifindex)
    })
}
