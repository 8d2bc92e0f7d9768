//! What happens to a packet, as one pure function over a [`Packet`], the agent's [`Tables`] and the
//! data path's own [`Flows`].
//!
//! Compiled twice: into the XDP program and into host code, which tests, fuzzing and tracing run.
//! Reading order: [`parse`], [`classify`], [`select`] (with [`track`]), [`rewrite`]; and, for packets
//! that do not go on, [`mod@answer`], for those without ports, [`fragment`].

pub mod answer;
pub mod classify;
pub mod fragment;
mod packet;
pub mod parse;
pub mod rewrite;
pub mod select;
mod tables;
pub mod track;

pub use answer::{Answer, answer};
pub use packet::Packet;
pub use tables::{Began, Flows, Report, Stage, Tables};

use crate::{
    abi::{BackendId, EventKind, Fate, Reason, ServiceId},
    datapath::{
        classify::Direction,
        parse::{Parsed, Part},
        rewrite::{Mode, Step},
        select::Request,
    },
};

/// What the driver does with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// To the kernel's stack.
    Pass,
    /// Nowhere.
    Drop,
    /// Out of the interface it came in on.
    Transmit,
    /// Out of the interface with this index.
    Redirect(u32),
}

/// A packet of a service that goes on.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Where to.
    pub verdict: Verdict,
    /// Its counter.
    pub reason: Reason,
}

/// What has become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It leaves.
    Sent(Verdict, Reason),
    /// [`answer()`] is to answer it so. Nothing of it has changed, and it is not counted yet.
    Answer(Answer),
    /// [`fragment::follow`] is to send it after its first fragment. Nothing of it has changed, and it
    /// is not counted yet.
    Later,
}

/// A frame's whole way. Every frame leaves with a reason, and the reason is counted. `parsed` is
/// working memory, whatever it holds.
#[inline(always)]
pub fn process<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &mut Parsed,
    tables: &T,
    flows: &mut F,
) -> End {
    let mut step = Step::default();
    let (ifindex, length) = (packet.ifindex(), packet.length());
    let sent = match parse::packet(packet, length, parsed) {
        Ok(()) if parsed.part == Part::Later => return End::Later,
        Ok(()) => match forward(packet, parsed, &mut step, length, tables, flows) {
            Ok(sent) => sent,
            Err(reason) if reason.fate() == Fate::Answered => {
                fragment::forget(parsed, flows);
                let mtu = step.mtu;
                return End::Answer(Answer { mtu, reason });
            }
            Err(reason) => {
                fragment::forget(parsed, flows);
                stop(reason, parsed, ifindex, flows)
            }
        },
        Err(reason) => Sent {
            verdict: Verdict::Pass,
            reason,
        },
    };
    flows.count(ifindex, sent.reason, length);
    End::Sent(sent.verdict, sent.reason)
}

/// The way of a packet that has ports.
#[inline(always)]
fn forward<P: Packet, T: Tables, F: Flows>(
    packet: &mut P,
    parsed: &Parsed,
    step: &mut Step,
    length: u32,
    tables: &T,
    flows: &mut F,
) -> Result<Sent, Reason> {
    match classify::direction(parsed, tables, flows)? {
        Direction::ToBackend(endpoint) => {
            let id = endpoint.service;
            let service = tables.service(id).ok_or(Reason::NoService)?;
            let mode = Mode::of(service.mode).ok_or(Reason::NoService)?;
            let from = parse::neighbour(packet)?;
            let request = Request {
                parsed,
                endpoint,
                service,
                mode,
                from: &from,
                now: flows.now(),
            };
            let choice = select::backend(&request, tables, flows)?;
            flows.count_forward(id, choice.id, length, choice.began);
            rewrite::towards(parsed, &from, mode, choice.backend, tables, flows, step)?;
            fragment::towards(parsed, id, choice.id, choice.backend.generation, flows);
        }
        Direction::ToClient(answer) => {
            let id = answer.endpoint.service;
            let service = tables.service(id).ok_or(Reason::NoService)?;
            flows.count_back(id, answer.endpoint.backend, length);
            let ifindex = packet.ifindex();
            rewrite::back(parsed, ifindex, &answer, service, tables, flows, step)?;
            fragment::back(parsed, id, answer.endpoint.backend, step, flows);
        }
    }
    rewrite::carry_out(packet, parsed, step, tables)
}

/// The end of a packet that does not go on: passed or dropped, as its reason says.
#[inline(always)]
fn stop<F: Flows>(reason: Reason, parsed: &Parsed, ifindex: u32, flows: &mut F) -> Sent {
    if reason.fate() != Fate::Dropped {
        return Sent {
            verdict: Verdict::Pass,
            reason,
        };
    }
    flows.report(&Report {
        kind: EventKind::DROP,
        reason,
        parsed,
        destination: &parsed.destination,
        ifindex,
        service: ServiceId::default(),
        backend: BackendId::default(),
    });
    Sent {
        verdict: Verdict::Drop,
        reason,
    }
}
