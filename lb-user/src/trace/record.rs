//! What the data path asks of its maps for one packet, and what it is told.
//!
//! [`run`] is the data path itself, over maps that note every question with its answer. The packet
//! is decided exactly as without: answers are passed on as they come.

use std::cell::RefCell;

use lb_common::{
    abi::{
        Address, Answered, Backend, BackendId, BackendState, Conversation, Direct, Endpoint,
        EndpointKey, EventKind, Flow, FlowKey, Fragment, FragmentKey, Neighbour, Reason, Service,
        ServiceId, Ticks, Tunnel,
    },
    datapath::{
        Began, Flows, Packet as _, Report, Stage, Tables,
        parse::{self, Parsed},
    },
    host::{self, HostPacket, Outcome},
};

/// A question with its answer, or something that was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asked {
    /// What an address, port and protocol mean.
    Endpoint(EndpointKey, Option<Endpoint>),
    /// A service's record.
    Service(ServiceId, Option<Service>),
    /// A backend's record.
    Backend(BackendId, Option<Backend>),
    /// The backend in a cell of a service's lookup table.
    Slot(ServiceId, u32, Option<BackendId>),
    /// Whether this is an address of the load balancer itself.
    Local(Address, bool),
    /// The kernel's way to a destination.
    Route(Address, Option<Neighbour>),
    /// A flow's entry, as it was found.
    Flow(FlowKey, Option<(Stage, Flow)>),
    /// An entry is made among the new flows.
    Insert(FlowKey, Flow),
    /// An entry moves to the confirmed flows.
    Confirm(FlowKey),
    /// An entry is forgotten, if there is one.
    Remove(FlowKey),
    /// The entry of a conversation with a backend itself, as it was found.
    Direct(Conversation, Option<Direct>),
    /// Such an entry is made.
    InsertDirect(Conversation),
    /// Such an entry is forgotten, if there is one.
    RemoveDirect(Conversation),
    /// What was decided for a later fragment's first, or an older one's like it, as it was found.
    Fragment(FragmentKey, Option<Fragment>),
    /// What is decided for a first fragment is noted.
    InsertFragment(FragmentKey),
    /// Such a note is forgotten.
    RemoveFragment(FragmentKey),
    /// What the clients of a prefix were told by ICMP before, as it was found.
    Answered(Address, Option<Answered>),
    /// A round-robin ticket is drawn.
    Ticket(ServiceId, u32),
    /// The packet is counted for a service and backend.
    Forward(ServiceId, BackendId, Began),
    /// The packet is counted as an answer.
    Back(ServiceId, BackendId),
    /// The agent is told.
    Report(EventKind, Address),
}

/// What became of a packet, and how.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where it goes, why, and its bytes afterwards.
    pub outcome: Outcome,
    /// What was read from the packet; of one that could not be read what came before that.
    pub parsed: Parsed,
    /// Everything that was asked, in order.
    pub asked: Vec<Asked>,
    /// When, by the clock of the flows.
    pub now: Ticks,
}

/// Runs the data path. `barred` is a backend that is shown as one that takes no new flow.
pub fn run<T: Tables, F: Flows>(
    frame: &[u8],
    ifindex: u32,
    tables: &T,
    flows: &mut F,
    barred: Option<(BackendId, Backend)>,
) -> Run {
    let asked = RefCell::default();
    let now = flows.now();
    let tables = NotedTables {
        tables,
        asked: &asked,
        barred: barred.map(|(id, backend)| {
            let state = BackendState::DISABLED;
            (id, Backend { state, ..backend })
        }),
    };
    let mut flows = NotedFlows {
        flows,
        asked: &asked,
    };
    let outcome = host::process(frame, ifindex, &tables, &mut flows);
    // Read once more, for the words: the data path keeps what it has read to itself.
    let packet = HostPacket::new(frame, ifindex);
    let mut parsed = Parsed::default();
    let _ = parse::packet(&packet, packet.length(), &mut parsed);
    Run {
        outcome,
        parsed,
        asked: asked.into_inner(),
        now,
    }
}

/// One packet, run as it is and, if it goes to a backend, again to see the algorithm's choices.
#[derive(Clone, Debug)]
pub struct Runs {
    /// The frame as it comes in.
    pub frame: Vec<u8>,
    /// Index of the interface it comes in on.
    pub ifindex: u32,
    /// What happens.
    pub now: Run,
    /// What would happen without the flow's entry, if there is one.
    pub without_entry: Option<Run>,
    /// What would happen without the entry, and if the algorithm's choice took no new flows.
    pub next_choice: Option<Run>,
}

impl Runs {
    /// Runs the data path on a packet. Only what happens as it is leaves its mark on `flows`.
    pub fn of<T: Tables, F: Flows + Clone>(
        frame: &[u8],
        ifindex: u32,
        tables: &T,
        flows: &mut F,
    ) -> Self {
        let mut fresh = flows.clone();
        let now = run(frame, ifindex, tables, flows, None);
        let mut without_entry = None;
        let mut next_choice = None;
        if let Some(mut choice) = towards(&now) {
            if let Some(key) = kept(&now) {
                fresh.remove(&key);
                let run = run(frame, ifindex, tables, &mut fresh.clone(), None);
                choice = towards(&run).unwrap_or(choice);
                without_entry = Some(run);
            }
            next_choice = Some(run(frame, ifindex, tables, &mut fresh, Some(choice)));
        }
        Self {
            frame: frame.to_vec(),
            ifindex,
            now,
            without_entry,
            next_choice,
        }
    }
}

/// The backend that a packet was counted for, if it went towards one.
fn towards(run: &Run) -> Option<(BackendId, Backend)> {
    let id = run.asked.iter().find_map(|asked| match asked {
        Asked::Forward(_, id, _) => Some(*id),
        _ => None,
    })?;
    Some((id, record(run, id)?))
}

/// The key of the flow that a client's packet kept, if it kept one.
fn kept(run: &Run) -> Option<FlowKey> {
    let is_known = run
        .asked
        .iter()
        .any(|asked| matches!(asked, Asked::Forward(_, _, Began::Known)));
    let key = run.asked.iter().find_map(|asked| match asked {
        Asked::Flow(key, Some(_)) => Some(*key),
        _ => None,
    });
    key.filter(|_| is_known)
}

/// A backend's record, if the data path has looked at it.
pub(super) fn record(run: &Run, id: BackendId) -> Option<Backend> {
    run.asked.iter().find_map(|asked| match asked {
        Asked::Backend(known, Some(backend)) if *known == id => Some(*backend),
        _ => None,
    })
}

struct NotedTables<'r, T> {
    tables: &'r T,
    asked: &'r RefCell<Vec<Asked>>,
    barred: Option<(BackendId, Backend)>,
}

impl<T> NotedTables<'_, T> {
    fn note(&self, asked: Asked) {
        self.asked.borrow_mut().push(asked);
    }
}

impl<T: Tables> Tables for NotedTables<'_, T> {
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        let found = self.tables.endpoint(key);
        self.note(Asked::Endpoint(*key, found.copied()));
        found
    }

    fn service(&self, id: ServiceId) -> Option<&Service> {
        let found = self.tables.service(id);
        self.note(Asked::Service(id, found.copied()));
        found
    }

    fn backend(&self, id: BackendId) -> Option<&Backend> {
        let found = match &self.barred {
            Some((barred, record)) if *barred == id => Some(record),
            _ => self.tables.backend(id),
        };
        self.note(Asked::Backend(id, found.copied()));
        found
    }

    fn slot(&self, service: ServiceId, cell: u32) -> Option<BackendId> {
        let found = self.tables.slot(service, cell);
        self.note(Asked::Slot(service, cell, found));
        found
    }

    fn transmits_by_redirect(&self) -> bool {
        self.tables.transmits_by_redirect()
    }

    fn answers_per_second(&self) -> u32 {
        self.tables.answers_per_second()
    }

    fn tunnel(&self) -> Option<&Tunnel> {
        self.tables.tunnel()
    }

    fn is_local(&self, address: &Address) -> bool {
        let found = self.tables.is_local(address);
        self.note(Asked::Local(*address, found));
        found
    }

    fn route(&self, parsed: &Parsed, source: &Address, destination: &Address) -> Option<Neighbour> {
        let found = self.tables.route(parsed, source, destination);
        self.note(Asked::Route(*destination, found));
        found
    }
}

struct NotedFlows<'r, F> {
    flows: &'r mut F,
    asked: &'r RefCell<Vec<Asked>>,
}

impl<F> NotedFlows<'_, F> {
    fn note(&self, asked: Asked) {
        self.asked.borrow_mut().push(asked);
    }
}

impl<F: Flows> Flows for NotedFlows<'_, F> {
    fn now(&self) -> Ticks {
        self.flows.now()
    }

    fn find(&mut self, key: &FlowKey) -> Option<(Stage, &mut Flow)> {
        let found = self.flows.find(key);
        let copy = found.as_ref().map(|(stage, flow)| (*stage, **flow));
        self.asked.borrow_mut().push(Asked::Flow(*key, copy));
        found
    }

    fn insert(&mut self, key: &FlowKey, flow: Flow) {
        self.note(Asked::Insert(*key, flow));
        self.flows.insert(key, flow);
    }

    fn confirm(&mut self, key: &FlowKey) {
        self.note(Asked::Confirm(*key));
        self.flows.confirm(key);
    }

    fn remove(&mut self, key: &FlowKey) {
        self.note(Asked::Remove(*key));
        self.flows.remove(key);
    }

    fn direct(&mut self, conversation: &Conversation) -> Option<&mut Direct> {
        let found = self.flows.direct(conversation);
        let copy = found.as_deref().copied();
        self.asked
            .borrow_mut()
            .push(Asked::Direct(*conversation, copy));
        found
    }

    fn insert_direct(&mut self, conversation: &Conversation, direct: Direct) {
        self.note(Asked::InsertDirect(*conversation));
        self.flows.insert_direct(conversation, direct);
    }

    fn remove_direct(&mut self, conversation: &Conversation) {
        self.note(Asked::RemoveDirect(*conversation));
        self.flows.remove_direct(conversation);
    }

    fn fragment(&mut self, key: &FragmentKey) -> Option<&mut Fragment> {
        let found = self.flows.fragment(key);
        let copy = found.as_deref().copied();
        self.asked.borrow_mut().push(Asked::Fragment(*key, copy));
        found
    }

    fn insert_fragment(&mut self, key: &FragmentKey, fragment: Fragment) {
        self.note(Asked::InsertFragment(*key));
        self.flows.insert_fragment(key, fragment);
    }

    fn remove_fragment(&mut self, key: &FragmentKey) {
        self.note(Asked::RemoveFragment(*key));
        self.flows.remove_fragment(key);
    }

    fn answered(&mut self, prefix: &Address) -> Option<&mut Answered> {
        let found = self.flows.answered(prefix);
        let copy = found.as_deref().copied();
        self.asked.borrow_mut().push(Asked::Answered(*prefix, copy));
        found
    }

    fn insert_answered(&mut self, prefix: &Address, answered: Answered) {
        self.flows.insert_answered(prefix, answered);
    }

    fn ticket(&mut self, service: ServiceId) -> u32 {
        let ticket = self.flows.ticket(service);
        self.note(Asked::Ticket(service, ticket));
        ticket
    }

    fn count(&mut self, ifindex: u32, reason: Reason, bytes: u32) {
        self.flows.count(ifindex, reason, bytes);
    }

    fn count_forward(&mut self, service: ServiceId, backend: BackendId, bytes: u32, began: Began) {
        self.note(Asked::Forward(service, backend, began));
        self.flows.count_forward(service, backend, bytes, began);
    }

    fn count_back(&mut self, service: ServiceId, backend: BackendId, bytes: u32) {
        self.note(Asked::Back(service, backend));
        self.flows.count_back(service, backend, bytes);
    }

    fn report(&mut self, report: &Report<'_>) {
        self.note(Asked::Report(report.kind, *report.destination));
        self.flows.report(report);
    }
}

#[cfg(test)]
mod tests {
    use lb_common::host::{HostFlows, traffic::Traffic, world::World};

    use super::*;
    use crate::trace::{Names, trace};

    /// Random frames of all kinds: noted or not, the same happens, and every one can be told.
    #[test]
    fn a_packet_that_is_traced_fares_as_any_other() {
        let world = World::standard();
        let mut traffic = Traffic::new(7);
        let (mut plain, mut noted) = (HostFlows::new(), HostFlows::new());
        let mut choices = 0;
        for _ in 0..5_000 {
            let (ifindex, frame) = traffic.next(&world);
            let expected = host::process(&frame, ifindex, &world.tables, &mut plain);
            let runs = Runs::of(&frame, ifindex, &world.tables, &mut noted);
            assert_eq!(runs.now.outcome, expected);
            let told = trace(&runs, &Names::default());
            assert_eq!(told.reason, expected.reason.name());
            assert_eq!(told.changes.is_empty(), frame == expected.frame, "{told:?}");
            if let Some(slot) = &told.slot {
                assert_ne!(Some(&slot.backend), told.runner_up.as_ref());
                choices += 1;
            }
            if expected.frame != frame {
                traffic.forwarded(&expected.frame);
            }
        }
        assert!(plain.confirmed.iter().eq(noted.confirmed.iter()));
        assert!(plain.new.iter().eq(noted.new.iter()));
        assert!(choices > 100, "{choices}");
    }
}
