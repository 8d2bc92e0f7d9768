//! Fragments: the later ones, which have no ports, go where the first one went.
//!
//! What was decided for a first fragment is remembered by what all fragments of its datagram have in
//! common. A later fragment whose first is not known, or came too long ago, passes: it may be the
//! host's own. So does one that overtakes its first.
//!
//! [`follow`] runs as a program of its own, as [`mod@super::answer`] does: [`super::process`] has left
//! the packet's parts in working memory.

use super::{
    Began, Flows, Packet, Sent, Tables, Verdict,
    parse::{self, Family, Parsed, Part},
    rewrite::{self, Mode, Step},
    stop,
};
use crate::abi::{Address, BackendId, Fate, Fragment, FragmentKey, Neighbour, Reason, ServiceId};

/// Notes that a datagram whose first fragment this is goes to a backend of this generation.
#[inline(always)]
pub(super) fn towards<F: Flows>(
    parsed: &Parsed,
    service: ServiceId,
    backend: BackendId,
    generation: u32,
    flows: &mut F,
) {
    if parsed.part == Part::First {
        let fragment = Fragment {
            service,
            backend,
            generation,
            seen: flows.now(),
            address: Address::default(),
            neighbour: Neighbour::default(),
        };
        flows.insert_fragment(&key(parsed), fragment);
    }
}

/// Notes where an answer whose first fragment this is goes: what `step` says.
#[inline(always)]
pub(super) fn back<F: Flows>(
    parsed: &Parsed,
    service: ServiceId,
    backend: BackendId,
    step: &Step,
    flows: &mut F,
) {
    if parsed.part == Part::First {
        let fragment = Fragment {
            service,
            backend,
            generation: 0,
            seen: flows.now(),
            address: step.address,
            neighbour: step.next,
        };
        flows.insert_fragment(&key(parsed), fragment);
    }
}

/// Forgets an older datagram that looked like the one whose first fragment this is, which does not go
/// on.
#[inline(always)]
pub(super) fn forget<F: Flows>(parsed: &Parsed, flows: &mut F) {
    if parsed.part == Part::First {
        let key = key(parsed);
        if flows.fragment(&key).is_some() {
            flows.remove_fragment(&key);
        }
    }
}

/// The way of a later fragment. Counts it.
#[inline(always)]
pub fn follow<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &Parsed,
    tables: &T,
    flows: &mut F,
) -> (Verdict, Reason) {
    let mut step = Step::default();
    let (ifindex, length) = (packet.ifindex(), packet.length());
    let sent = match rest(packet, parsed, &mut step, length, tables, flows) {
        Ok(sent) => sent,
        Err(reason) => {
            // Nobody is told of a later fragment (RFC 1122 section 3.2.2).
            let reason = match reason.fate() {
                Fate::Answered => Reason::TooBigSuppressed,
                Fate::Passed | Fate::Forwarded | Fate::Dropped => reason,
            };
            stop(reason, parsed, ifindex, flows)
        }
    };
    flows.count(ifindex, sent.reason, length);
    (sent.verdict, sent.reason)
}

#[inline(always)]
fn rest<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &Parsed,
    step: &mut Step,
    length: u32,
    tables: &T,
    flows: &mut F,
) -> Result<Sent, Reason> {
    let now = flows.now();
    let Fragment {
        service: id,
        backend,
        generation,
        seen,
        address,
        neighbour,
    } = *flows.fragment(&key(parsed)).ok_or(Reason::LaterFragment)?;
    if seen.age(now) > Fragment::LIFETIME {
        return Err(Reason::LaterFragment);
    }
    let service = tables.service(id).ok_or(Reason::NoService)?;
    if address == Address::default() {
        let mode = Mode::of(service.mode).ok_or(Reason::NoService)?;
        let from = parse::neighbour(packet)?;
        let record = tables
            .backend(backend)
            .filter(|record| record.generation == generation)
            .ok_or(Reason::LaterFragment)?;
        flows.count_forward(id, backend, length, Began::Known);
        rewrite::towards(parsed, &from, mode, record, tables, flows, step)?;
    } else {
        flows.count_back(id, backend, length);
        rewrite::rest_back(parsed, address, neighbour, step)?;
    }
    rewrite::carry_out(packet, parsed, step, tables)
}

/// What the fragments of a packet's datagram have in common.
#[inline(always)]
fn key(parsed: &Parsed) -> FragmentKey {
    FragmentKey {
        source: parsed.source,
        destination: parsed.destination,
        identification: parsed.identification,
        protocol: match parsed.family {
            Family::V4 => u32::from(parsed.protocol),
            Family::V6 => 0,
        },
    }
}
