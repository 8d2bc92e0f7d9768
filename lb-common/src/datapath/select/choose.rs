//! Which backend serves a packet of a service.
//!
//! A known flow stays where it is. A new one goes to the backend that the algorithm picks; one
//! that takes no new flows is passed over by picking again, the same way on every load balancer,
//! so that a change of its state counts from the next packet on, before any table is rebuilt.

use super::{maglev, round_robin};
use crate::{
    abi::{
        Algorithm, Backend, BackendId, BackendState, Conversation, Endpoint, EndpointKey,
        EventKind, Flow, FlowKey, FlowState, Mode, Neighbour, Port, Reason, Service, ServiceId,
        Ticks, limits,
    },
    datapath::{
        Flows, Report, Tables, classify,
        parse::Parsed,
        tables::{Began, Stage},
        track,
    },
};

/// The backend of a packet.
pub struct Choice<'t> {
    /// Its id.
    pub id: BackendId,
    /// Its record.
    pub backend: &'t Backend,
    /// Whether the packet began its flow.
    pub began: Began,
}

/// The backend of a client's packet: its flow's, else one chosen and remembered now.
#[inline(always)]
pub fn backend<'t, T: Tables, F: Flows>(
    parsed: &Parsed,
    endpoint: &Endpoint,
    service: &Service,
    from: &Neighbour,
    tables: &'t T,
    flows: &mut F,
) -> Result<Choice<'t>, Reason> {
    let key = classify::flow_key(parsed.source, parsed.source_port, endpoint);
    let now = flows.now();
    if let Some((id, backend)) = known(parsed, &key, service, from, now, tables, flows) {
        return Ok(Choice {
            id,
            backend,
            began: Began::Known,
        });
    }
    if tables.is_local(&parsed.source) {
        return Err(Reason::MartianSource);
    }
    let (id, backend) = choose(parsed, endpoint, service, now, tables, flows)?;
    flows.insert(
        &key,
        Flow {
            backend: id,
            generation: backend.generation,
            made: now,
            seen: now,
            awaited: [0; 4],
            address: parsed.destination,
            neighbour: *from,
            state: track::begin(parsed),
            flags: 0,
            reserved: [0; 6],
        },
    );
    if service.mode == Mode::NAT {
        // What the client opened with the backend itself between these ports is over.
        flows.remove_direct(&Conversation {
            client: parsed.source,
            backend: backend.address,
            client_port: parsed.source_port,
            backend_port: backend.port,
            protocol: parsed.protocol,
            reserved: [0; 3],
        });
    }
    flows.report(&Report {
        kind: EventKind::NEW_FLOW,
        reason: Reason::ToBackend,
        parsed,
        destination: &parsed.destination,
        ifindex: from.ifindex,
        service: endpoint.service,
        backend: id,
    });
    Ok(Choice {
        id,
        backend,
        began: Began::New,
    })
}

/// The backend that a flow has, if it may keep it.
#[inline(always)]
fn known<'t, T: Tables, F: Flows>(
    parsed: &Parsed,
    key: &FlowKey,
    service: &Service,
    from: &Neighbour,
    now: Ticks,
    tables: &'t T,
    flows: &mut F,
) -> Option<(BackendId, &'t Backend)> {
    let (stage, flow) = flows.find(key)?;
    if flow.is_expired(now, &service.timeouts) {
        return None;
    }
    let id = flow.backend;
    let backend = tables.backend(id)?;
    if backend.generation != flow.generation || !keeps(backend.state, flow.state, stage, parsed) {
        return None;
    }
    if track::from_client(flow, stage, service.mode, parsed, from, now) {
        flows.confirm(key);
    }
    Some((id, backend))
}

/// Whether a backend in this state keeps a flow it has.
#[inline(always)]
fn keeps(backend: BackendState, flow: FlowState, stage: Stage, parsed: &Parsed) -> bool {
    if backend.is_eligible() {
        return true;
    }
    if track::opens(parsed) {
        return false;
    }
    backend == BackendState::DRAINING || (stage == Stage::Confirmed && flow != FlowState::UDP)
}

/// Picks until a backend takes the flow.
#[inline(always)]
fn choose<'t, T: Tables, F: Flows>(
    parsed: &Parsed,
    endpoint: &Endpoint,
    service: &Service,
    now: Ticks,
    tables: &'t T,
    flows: &mut F,
) -> Result<(BackendId, &'t Backend), Reason> {
    let ticket = match service.algorithm {
        Algorithm::ROUND_ROBIN => flows.ticket(endpoint.service),
        _ => 0,
    };
    let mut why = Reason::NoBackend;
    let mut attempt = 0;
    // A backend that cannot take the conversation is replaced by the next one, once.
    for _ in 0..2 {
        let (id, backend, next) =
            eligible(parsed, endpoint.service, service, ticket, attempt, tables).ok_or(why)?;
        if service.mode != Mode::NAT || !is_taken(parsed, endpoint, backend, now, tables, flows) {
            return Ok((id, backend));
        }
        why = Reason::ConversationTaken;
        attempt = next;
    }
    Err(why)
}

/// The first backend, from an attempt on, that takes new flows, and the attempt after it.
#[inline(always)]
fn eligible<'t, T: Tables>(
    parsed: &Parsed,
    service_id: ServiceId,
    service: &Service,
    ticket: u32,
    first: u32,
    tables: &'t T,
) -> Option<(BackendId, &'t Backend, u32)> {
    for attempt in 0..=limits::ATTEMPTS {
        if attempt < first {
            continue;
        }
        let id = if attempt == limits::ATTEMPTS {
            service.fallback
        } else {
            let cell = cell(parsed, service, ticket, attempt);
            tables.slot(service_id, cell).unwrap_or_default()
        };
        if let Some(backend) = tables.backend(id)
            && backend.state.is_eligible()
        {
            return Some((id, backend, attempt + 1));
        }
    }
    None
}

/// The cell that a service's algorithm picks for a client.
#[inline(always)]
fn cell(parsed: &Parsed, service: &Service, ticket: u32, attempt: u32) -> u32 {
    let Service { seed, slots, .. } = *service;
    match service.algorithm {
        Algorithm::ROUND_ROBIN => round_robin::pick(ticket, attempt, slots),
        Algorithm::SOURCE_HASH => {
            maglev::pick(seed, &parsed.source, Port::default(), 0, attempt, slots)
        }
        _ => maglev::pick(
            seed,
            &parsed.source,
            parsed.source_port,
            parsed.protocol,
            attempt,
            slots,
        ),
    }
}

/// Whether the client already talks to this backend from this port through another service that
/// shares it. Both conversations would look alike to the backend.
#[inline(always)]
fn is_taken<T: Tables, F: Flows>(
    parsed: &Parsed,
    endpoint: &Endpoint,
    backend: &Backend,
    now: Ticks,
    tables: &T,
    flows: &mut F,
) -> bool {
    let mut key = EndpointKey {
        address: backend.address,
        port: backend.port,
        protocol: parsed.protocol,
        nth: 0,
    };
    for nth in 1..=limits::SHARED_RETURNS {
        let Some(other) = tables.endpoint(&key) else {
            return false;
        };
        if other.service != endpoint.service {
            let flow_key = classify::flow_key(parsed.source, parsed.source_port, other);
            if let (Some((_, flow)), Some(service)) =
                (flows.find(&flow_key), tables.service(other.service))
                && flow.backend == other.backend
                && flow.state != FlowState::CLOSING
                && !flow.is_expired(now, &service.timeouts)
            {
                return true;
            }
        }
        if other.more == 0 {
            return false;
        }
        key.nth = nth;
    }
    false
}
