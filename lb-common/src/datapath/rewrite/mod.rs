//! How a packet is changed on its way, by the service's mode. One file per mode.
//!
//! First it is decided, as a [`Step`], then written ([`carry_out`]): whatever can fail is asked
//! before the first byte changes.

mod dsr_l2;
mod nat;

use crate::{
    abi::{
        self, Address, Backend, BackendId, EventKind, Neighbour, Port, Reason, Service, ServiceId,
    },
    datapath::{Flows, Packet, Report, Sent, Tables, Verdict, classify::Answer, parse::Parsed},
    wire::eth::EthernetHeader,
};

/// How a service's packets are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Destination rewritten; the answer comes back through the load balancer.
    Nat,
    /// MAC addresses rewritten; the backend answers directly.
    DsrL2,
}

impl Mode {
    /// The mode with this number; none for numbers of other versions.
    #[inline(always)]
    pub fn of(number: abi::Mode) -> Option<Self> {
        match number {
            abi::Mode::NAT => Some(Self::Nat),
            abi::Mode::DSR_L2 => Some(Self::DsrL2),
            _ => None,
        }
    }

    /// Whether backends' answers come back through the load balancer.
    #[inline(always)]
    pub const fn sees_answers(self) -> bool {
        match self {
            Self::Nat => true,
            Self::DsrL2 => false,
        }
    }
}

/// What will be done to a packet.
pub struct Step {
    /// What is rewritten in the IP packet, if anything.
    translation: Option<Translation>,
    /// Where the frame goes; an unresolved neighbour: to the kernel, which routes the packet.
    next: Neighbour,
    /// Its counter.
    reason: Reason,
}

/// A new address and port for one end of a packet.
struct Translation {
    end: End,
    address: Address,
    port: Port,
}

/// An end of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// Decides what happens to a client's packet for a backend.
#[inline(always)]
pub fn towards<T: Tables, F: Flows>(
    parsed: &Parsed,
    from: &Neighbour,
    mode: Mode,
    backend: &Backend,
    tables: &T,
    flows: &mut F,
) -> Result<Step, Reason> {
    if !backend.neighbour.is_resolved() {
        ask(parsed, &backend.address, from.ifindex, flows);
    }
    match mode {
        Mode::Nat => nat::towards(parsed, backend, tables),
        Mode::DsrL2 => dsr_l2::towards(backend),
    }
}

/// Decides what happens to a backend's answer. Only `nat` has any.
#[inline(always)]
pub fn back<T: Tables, F: Flows>(
    parsed: &Parsed,
    ifindex: u32,
    answer: &Answer<'_>,
    service: &Service,
    tables: &T,
    flows: &mut F,
) -> Result<Step, Reason> {
    nat::back(parsed, ifindex, answer, service, tables, flows)
}

/// Changes the packet and sends it.
#[inline(always)]
pub fn carry_out<P: Packet, T: Tables>(
    packet: &mut P,
    parsed: &Parsed,
    step: &Step,
    tables: &T,
) -> Result<Sent, Reason> {
    if let Some(translation) = &step.translation {
        nat::translate(packet, parsed, translation, step.next.is_resolved())?;
    }
    let verdict = if step.next.is_resolved() {
        address(packet, &step.next, tables)?
    } else {
        Verdict::Pass
    };
    Ok(Sent {
        verdict,
        reason: step.reason,
    })
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
fn address<P: Packet, T: Tables>(
    packet: &mut P,
    neighbour: &Neighbour,
    tables: &T,
) -> Result<Verdict, Reason> {
    let ethernet: &mut EthernetHeader = packet.at_mut(0).ok_or(Reason::Malformed)?;
    ethernet.destination = neighbour.destination.0;
    ethernet.source = neighbour.source.0;
    let is_same = neighbour.ifindex == packet.ifindex();
    Ok(if is_same && !tables.transmits_by_redirect() {
        Verdict::Transmit
    } else {
        Verdict::Redirect(neighbour.ifindex)
    })
}
