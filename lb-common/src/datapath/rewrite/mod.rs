//! How a packet is changed on its way, by the service's mode. One file per mode.
//!
//! First it is decided, as a [`Step`], then written ([`carry_out`]): whatever can fail is asked
//! before the first byte changes.

mod dsr_l2;
pub(super) mod front;
mod gue;
mod ipip;
mod nat;
mod outer;

use crate::{
    abi::{
        self, Address, Backend, BackendId, EventKind, Neighbour, Port, Reason, Service, ServiceId,
    },
    datapath::{Flows, Packet, Report, Sent, Tables, Verdict, classify::Answer, parse::Parsed},
    wire::eth::EthernetHeader,
};
use outer::Kind;

/// How a service's packets are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Destination rewritten; the answer comes back through the load balancer.
    Nat,
    /// MAC addresses rewritten; the backend answers directly.
    DsrL2,
    /// An outer IP header in front; the backend answers directly.
    DsrIpip,
    /// Outer IP and UDP headers in front; the backend answers directly.
    DsrGue,
}

impl Mode {
    /// The mode with this number; none for numbers of other versions.
    #[inline(always)]
    pub fn of(number: abi::Mode) -> Option<Self> {
        match number {
            abi::Mode::NAT => Some(Self::Nat),
            abi::Mode::DSR_L2 => Some(Self::DsrL2),
            abi::Mode::DSR_IPIP => Some(Self::DsrIpip),
            abi::Mode::DSR_GUE => Some(Self::DsrGue),
            _ => None,
        }
    }

    /// Whether backends' answers come back through the load balancer.
    #[inline(always)]
    pub const fn sees_answers(self) -> bool {
        match self {
            Self::Nat => true,
            Self::DsrL2 | Self::DsrIpip | Self::DsrGue => false,
        }
    }
}

/// What will be done to a packet.
///
/// Whatever can fail has been asked before it is carried out. Plain values only, each of which is
/// always set: an enum with contents of its own would lie on the program's small stack, with bytes
/// that the verifier does not know, and in working memory the step costs 20 ns a packet; like this it
/// is taken apart into registers.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What is done besides addressing the frame.
    change: Change,
    /// Its counter.
    reason: Reason,
    /// The new port; the destination port of an outer UDP header.
    port: Port,
    /// The new address; the destination of an outer header.
    pub(super) address: Address,
    /// The source of an outer header.
    source: Address,
    /// The flow's hash, for outer headers.
    hash: u64,
    /// Longest packet that fits, where this one does not.
    pub(super) mtu: u16,
    /// Where the frame goes; an unresolved neighbour: to the kernel, which routes the packet.
    pub(super) next: Neighbour,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            change: Change::Nothing,
            reason: Reason::NotIp,
            port: Port::default(),
            address: Address::default(),
            source: Address::default(),
            hash: 0,
            mtu: 0,
            next: Neighbour::default(),
        }
    }
}

/// What is done to a packet besides addressing its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Change {
    /// Nothing.
    Nothing = 0,
    /// The source becomes the new address and port.
    Source = 1,
    /// The destination becomes the new address and port.
    Destination = 2,
    /// It gets an outer IP header.
    Ip = 3,
    /// It gets an outer IP and an outer UDP header.
    Udp = 4,
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
    step: &mut Step,
) -> Result<(), Reason> {
    if !backend.neighbour.is_resolved() {
        ask(parsed, &backend.address, from.ifindex, flows);
    }
    match mode {
        Mode::Nat => nat::towards(parsed, backend, tables, step),
        Mode::DsrL2 => dsr_l2::towards(backend, step),
        Mode::DsrIpip => ipip::towards(parsed, backend, tables, step),
        Mode::DsrGue => gue::towards(parsed, backend, tables, step),
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
    step: &mut Step,
) -> Result<(), Reason> {
    nat::back(parsed, ifindex, answer, service, tables, flows, step)
}

/// Decides what happens to the rest of a backend's answer, whose first fragment went to `neighbour`
/// as from `address`.
#[inline(always)]
pub fn rest_back(
    parsed: &Parsed,
    address: Address,
    neighbour: Neighbour,
    step: &mut Step,
) -> Result<(), Reason> {
    nat::rest_back(parsed, address, neighbour, step)
}

/// Changes the packet and sends it.
#[inline(always)]
pub fn carry_out<P: Packet, T: Tables>(
    packet: &mut P,
    parsed: &Parsed,
    step: &Step,
    tables: &T,
) -> Result<Sent, Reason> {
    match step.change {
        Change::Nothing => {}
        // Each end by itself: both in one would be places in the frame that the verifier cannot tell.
        Change::Source => nat::translate(packet, parsed, End::Source, step)?,
        Change::Destination => nat::translate(packet, parsed, End::Destination, step)?,
        Change::Ip => outer::put(packet, parsed, Kind::Ip, step)?,
        Change::Udp => outer::put(packet, parsed, Kind::Udp, step)?,
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

/// Fails if the packet may go no further.
#[inline(always)]
fn alive(parsed: &Parsed) -> Result<(), Reason> {
    if parsed.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    Ok(())
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
pub(super) fn address<P: Packet, T: Tables>(
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
