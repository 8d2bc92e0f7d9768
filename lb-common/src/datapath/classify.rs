//! Whose packet it is: towards a backend, back to a client, or not ours.
//!
//! Promises that traffic which is not a service's is told apart here, before anything is written
//! to the packet.

use crate::{
    abi::{
        Address, Conversation, Direct, Endpoint, EndpointKey, FlowKey, FlowState, Neighbour, Port,
        Reason, Role, Ticks, limits,
    },
    datapath::{Flows, Tables, parse::Parsed, track},
    wire::{
        ip,
        l4::{ACK, SYN},
    },
};

/// Where a packet of a service is going.
pub enum Direction<'t> {
    /// From a client to the service at this endpoint.
    ToBackend(&'t Endpoint),
    /// From the backend at this endpoint to a client.
    ToClient(Answer<'t>),
}

/// An answer of a backend.
pub struct Answer<'t> {
    /// The backend's endpoint, with the service that the answer belongs to.
    pub endpoint: &'t Endpoint,
    /// If the flow has an entry: the service address that the client used, and the neighbour its
    /// packets come from.
    pub flow: Option<(Address, Neighbour)>,
}

/// Tells whose packet it is, or why it is not ours.
#[inline(always)]
pub fn direction<'t, T: Tables, F: Flows>(
    parsed: &Parsed,
    tables: &'t T,
    flows: &mut F,
) -> Result<Direction<'t>, Reason> {
    let to = EndpointKey {
        address: parsed.destination,
        port: parsed.destination_port,
        protocol: parsed.protocol,
        nth: 0,
    };
    if let Some(endpoint) = tables.endpoint(&to) {
        if endpoint.role == Role::SERVICE {
            return Ok(Direction::ToBackend(endpoint));
        }
        return Err(opened_directly(parsed, to, endpoint, tables, flows));
    }
    let from = EndpointKey {
        address: parsed.source,
        port: parsed.source_port,
        protocol: parsed.protocol,
        nth: 0,
    };
    match tables.endpoint(&from) {
        Some(endpoint) if endpoint.role == Role::BACKEND => {
            answer(parsed, from, endpoint, tables, flows)
        }
        _ => Err(Reason::NotService),
    }
}

/// A client's packet to a backend's own address and port: remembered, so that the answers pass.
#[inline(always)]
fn opened_directly<T: Tables, F: Flows>(
    parsed: &Parsed,
    mut to: EndpointKey,
    first: &Endpoint,
    tables: &T,
    flows: &mut F,
) -> Reason {
    let conversation = Conversation {
        client: parsed.source,
        backend: parsed.destination,
        client_port: parsed.source_port,
        backend_port: parsed.destination_port,
        protocol: u16::from(parsed.protocol),
        reserved: 0,
    };
    let now = flows.now();
    if let Some(direct) = flows.direct(&conversation) {
        if direct.seen.age(now).0 > Ticks::PER_SECOND {
            direct.seen = now;
        }
        return Reason::DirectToBackend;
    }
    flows.insert_direct(&conversation, Direct { seen: now });
    // A flow of a service between the same two ports has ended without our seeing it, or the
    // client could not have begun this; its entry would claim the answers.
    let mut endpoint = first;
    for nth in 1..=limits::SHARED_RETURNS {
        let key = flow_key(parsed.source, parsed.source_port, endpoint);
        let is_over = match flows.find(&key) {
            Some((_, flow)) => {
                let is_over =
                    flow.state == FlowState::CLOSING || flow.seen.age(now).0 > Ticks::PER_SECOND;
                flow.backend == endpoint.backend && is_over
            }
            None => false,
        };
        if is_over {
            flows.remove(&key);
        }
        if endpoint.more == 0 {
            break;
        }
        to.nth = nth;
        match tables.endpoint(&to) {
            Some(next) => endpoint = next,
            None => break,
        }
    }
    Reason::DirectToBackend
}

/// A packet from a backend's service port: an answer of a service, or one of the exceptions.
#[inline(always)]
fn answer<'t, T: Tables, F: Flows>(
    parsed: &Parsed,
    mut from: EndpointKey,
    first: &'t Endpoint,
    tables: &'t T,
    flows: &mut F,
) -> Result<Direction<'t>, Reason> {
    let now = flows.now();
    let mut endpoint = first;
    let mut stale = false;
    for nth in 1..=limits::SHARED_RETURNS {
        let key = flow_key(parsed.destination, parsed.destination_port, endpoint);
        if let Some((stage, flow)) = flows.find(&key) {
            if flow.backend == endpoint.backend {
                let found = (flow.address, flow.neighbour);
                if track::from_backend(flow, stage, parsed, now) {
                    flows.confirm(&key);
                }
                return Ok(Direction::ToClient(Answer {
                    endpoint,
                    flow: Some(found),
                }));
            }
            stale = true;
        }
        if endpoint.more == 0 {
            break;
        }
        from.nth = nth;
        match tables.endpoint(&from) {
            Some(next) => endpoint = next,
            None => break,
        }
    }
    without_flow(parsed, first, stale, tables, flows)
}

/// An answer that no flow entry claims.
#[inline(always)]
fn without_flow<'t, T: Tables, F: Flows>(
    parsed: &Parsed,
    endpoint: &'t Endpoint,
    stale: bool,
    tables: &T,
    flows: &mut F,
) -> Result<Direction<'t>, Reason> {
    if tables.is_local(&parsed.destination) {
        return Err(Reason::ToLoadBalancer);
    }
    let conversation = Conversation {
        client: parsed.destination,
        backend: parsed.source,
        client_port: parsed.destination_port,
        backend_port: parsed.source_port,
        protocol: u16::from(parsed.protocol),
        reserved: 0,
    };
    if is_direct(&conversation, endpoint, tables, flows) {
        return Err(Reason::DirectFromBackend);
    }
    if parsed.protocol == ip::TCP && parsed.flags & (SYN | ACK) == SYN {
        return Err(Reason::OpenedByBackend);
    }
    if stale {
        return Err(Reason::StaleAnswer);
    }
    if endpoint.more != 0 {
        return Err(Reason::AmbiguousAnswer);
    }
    Ok(Direction::ToClient(Answer {
        endpoint,
        flow: None,
    }))
}

/// Whether a client has opened this conversation itself and it is not forgotten yet.
#[inline(always)]
fn is_direct<T: Tables, F: Flows>(
    conversation: &Conversation,
    endpoint: &Endpoint,
    tables: &T,
    flows: &mut F,
) -> bool {
    let now = flows.now();
    let Some(service) = tables.service(endpoint.service) else {
        return true;
    };
    let idle_time = match conversation.protocol == u16::from(ip::TCP) {
        true => service.timeouts.established,
        false => service.timeouts.udp,
    };
    match flows.direct(conversation) {
        Some(direct) if direct.seen.age(now) <= idle_time => true,
        Some(_) => {
            flows.remove_direct(conversation);
            false
        }
        None => false,
    }
}

/// The key of the flow that a client's address and port have with an endpoint's service.
#[inline(always)]
pub fn flow_key(client: Address, client_port: Port, endpoint: &Endpoint) -> FlowKey {
    FlowKey {
        client,
        service: endpoint.service,
        client_port,
        service_port: endpoint.port,
    }
}
