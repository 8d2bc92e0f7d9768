//! Which backend serves a packet of a service.
//!
//! A known flow stays where it is. A new one goes to the backend that the algorithm picks; one
//! that takes no new flows is passed over by picking again, the same way on every load balancer,
//! so that a change of its state counts from the next packet on, before any table is rebuilt.

use super::{Algorithm, maglev, round_robin};
use crate::{
    abi::{
        Backend, BackendId, BackendState, Conversation, Endpoint, EndpointKey, EventKind, Flow,
        FlowKey, FlowState, Neighbour, Port, Reason, Service, Ticks, limits,
    },
    datapath::{
        Flows, Report, Tables, classify, parse::Parsed, rewrite::Mode, tables::Began, track,
    },
    wire::ip,
};

/// A client's packet that needs a backend.
pub struct Request<'p> {
    /// The packet.
    pub parsed: &'p Parsed,
    /// The service's endpoint it came to.
    pub endpoint: &'p Endpoint,
    /// The service.
    pub service: &'p Service,
    /// The service's mode.
    pub mode: Mode,
    /// The neighbour it came from.
    pub from: &'p Neighbour,
    /// When.
    pub now: Ticks,
}

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
    request: &Request<'_>,
    tables: &'t T,
    flows: &mut F,
) -> Result<Choice<'t>, Reason> {
    let Request {
        parsed, endpoint, ..
    } = request;
    let key = classify::flow_key(parsed.source, parsed.source_port, endpoint);
    if let Some((id, backend)) = known(request, &key, tables, flows) {
        return Ok(Choice {
            id,
            backend,
            began: Began::Known,
        });
    }
    if tables.is_local(&parsed.source) {
        return Err(Reason::MartianSource);
    }
    let (id, backend) = choose(request, tables, flows)?;
    remember(request, &key, id, backend, flows);
    Ok(Choice {
        id,
        backend,
        began: Began::New,
    })
}

/// The backend that a flow has, if it may keep it.
#[inline(always)]
fn known<'t, T: Tables, F: Flows>(
    request: &Request<'_>,
    key: &FlowKey,
    tables: &'t T,
    flows: &mut F,
) -> Option<(BackendId, &'t Backend)> {
    let Request {
        parsed,
        service,
        mode,
        from,
        now,
        ..
    } = *request;
    let (stage, flow) = flows.find(key)?;
    let id = flow.backend;
    match tables.backend(id) {
        Some(backend)
            if backend.generation == flow.generation
                && keeps(backend.state, parsed)
                && !flow.is_expired(now, &service.timeouts) =>
        {
            if track::from_client(flow, stage, mode, parsed, from, now) {
                flows.confirm(key);
            }
            Some((id, backend))
        }
        _ => {
            // It must not hide the entry that takes its place.
            flows.remove(key);
            None
        }
    }
}

/// Whether a backend in this state keeps this packet's flow, which it has.
#[inline(always)]
fn keeps(state: BackendState, parsed: &Parsed) -> bool {
    if state.is_eligible() {
        return true;
    }
    // A disabled one keeps what would break elsewhere: TCP beyond its first packet.
    !track::opens(parsed) && (state == BackendState::DRAINING || parsed.protocol == ip::TCP)
}

/// Makes the entry of a new flow, and tells of it.
#[inline(always)]
fn remember<F: Flows>(
    request: &Request<'_>,
    key: &FlowKey,
    id: BackendId,
    backend: &Backend,
    flows: &mut F,
) {
    let Request {
        parsed,
        endpoint,
        mode,
        from,
        now,
        ..
    } = *request;
    flows.insert(
        key,
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
            reserved: [0; 3],
        },
    );
    if mode.sees_answers() {
        // What the client opened with the backend itself between these ports is over.
        flows.remove_direct(&Conversation {
            client: parsed.source,
            backend: backend.address,
            client_port: parsed.source_port,
            backend_port: backend.port,
            protocol: u16::from(parsed.protocol),
            reserved: 0,
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
}

/// Picks until a backend takes the flow.
#[inline(always)]
fn choose<'t, T: Tables, F: Flows>(
    request: &Request<'_>,
    tables: &'t T,
    flows: &mut F,
) -> Result<(BackendId, &'t Backend), Reason> {
    let algorithm = Algorithm::of(request.service.algorithm).ok_or(Reason::NoService)?;
    let ticket = match algorithm {
        Algorithm::RoundRobin => flows.ticket(request.endpoint.service),
        Algorithm::Maglev | Algorithm::SourceHash => 0,
    };
    let mut why = Reason::NoBackend;
    let mut taken = BackendId::default();
    // A backend that cannot take the conversation is replaced by another one, once.
    for round in 0..2 {
        let first = round * (limits::ATTEMPTS + 1);
        let cell = |attempt| cell(request, algorithm, ticket, first + attempt);
        let (id, backend) = eligible(request, cell, taken, tables).ok_or(why)?;
        if !request.mode.sees_answers() || !is_taken(request, backend, tables, flows) {
            return Ok((id, backend));
        }
        why = Reason::ConversationTaken;
        taken = id;
    }
    Err(why)
}

/// The first backend that takes new flows, other than `except`, among those in the cells that
/// `cell` gives for attempt after attempt, and the service's fallback.
#[inline(always)]
fn eligible<'t, T: Tables>(
    request: &Request<'_>,
    cell: impl Fn(u32) -> u32,
    except: BackendId,
    tables: &'t T,
) -> Option<(BackendId, &'t Backend)> {
    for attempt in 0..=limits::ATTEMPTS {
        let id = if attempt == limits::ATTEMPTS {
            request.service.fallback
        } else {
            let service = request.endpoint.service;
            tables.slot(service, cell(attempt)).unwrap_or_default()
        };
        if let Some(backend) = tables.backend(id)
            && backend.state.is_eligible()
            && id != except
        {
            return Some((id, backend));
        }
    }
    None
}

/// The cell that a service's algorithm picks for a client.
#[inline(always)]
fn cell(request: &Request<'_>, algorithm: Algorithm, ticket: u32, attempt: u32) -> u32 {
    let Service { seed, slots, .. } = *request.service;
    let Parsed {
        source,
        source_port,
        protocol,
        ..
    } = request.parsed;
    match algorithm {
        Algorithm::Maglev => maglev::pick(seed, source, *source_port, *protocol, attempt, slots),
        Algorithm::RoundRobin => round_robin::pick(ticket, attempt, slots),
        Algorithm::SourceHash => maglev::pick(seed, source, Port::default(), 0, attempt, slots),
    }
}

/// Whether the client already talks to this backend from this port through another service that
/// shares it. Both conversations would look alike to the backend.
#[inline(always)]
fn is_taken<T: Tables, F: Flows>(
    request: &Request<'_>,
    backend: &Backend,
    tables: &T,
    flows: &mut F,
) -> bool {
    let Request {
        parsed,
        endpoint,
        now,
        ..
    } = *request;
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
            {
                if flow.state != FlowState::CLOSING && !flow.is_expired(now, &service.timeouts) {
                    return true;
                }
                // It is over, and must not claim the answers of the next.
                flows.remove(&flow_key);
            }
        }
        if other.more == 0 {
            return false;
        }
        key.nth = nth;
    }
    false
}
