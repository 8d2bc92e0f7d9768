//! The live maps behind the data path's two traits: read as they are asked for, never written.
//!
//! What was read once stays as it was, so that all packets of a trace meet the same maps
//! ([`Snapshot`]); what the data path writes goes to copies of the host's ([`LiveFlows`]).

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
};

use anyhow::{Context as _, Result};
use elsa::FrozenBTreeMap;
use lb_common::{
    abi::{
        Address, Answered, Backend, BackendId, BackendState, Conversation, Direct, Endpoint,
        EndpointKey, Flow, FlowKey, Fragment, FragmentKey, Mode, Neighbour, Reason, Service,
        ServiceId, Ticks, Tunnel,
    },
    datapath::{Began, Flows, Report, Stage, Tables, parse::Parsed},
    host::HostFlows,
};

use super::route::Routes;
use crate::kernel::{Pinned, Table};

/// The first thing that could not be read: the data path's traits have no word for that.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Rc<RefCell<Option<anyhow::Error>>>);

impl Failure {
    /// Fails if anything could not be read.
    pub(super) fn check(&self) -> Result<()> {
        match self.0.borrow_mut().take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn noted<V>(&self, read: Result<Option<V>>) -> Option<V> {
        read.unwrap_or_else(|error| {
            self.0.borrow_mut().get_or_insert(error);
            None
        })
    }
}

/// Entries that were read, or found missing, and stay lent.
type Seen<K, V> = FrozenBTreeMap<K, Box<Option<V>>>;

/// What the agent has written.
pub(super) struct Snapshot<'k> {
    maps: &'k Pinned,
    routes: &'k Routes,
    failure: Failure,
    /// The interface that the packet comes in on.
    pub(super) ifindex: Cell<u32>,
    endpoints: Seen<EndpointKey, Endpoint>,
    services: Seen<ServiceId, Service>,
    backends: Seen<BackendId, Backend>,
    slots: Seen<(ServiceId, u32), BackendId>,
    locals: Seen<Address, ()>,
}

impl<'k> Snapshot<'k> {
    pub(super) fn new(maps: &'k Pinned, routes: &'k Routes, failure: &Failure) -> Self {
        Self {
            maps,
            routes,
            failure: failure.clone(),
            ifindex: Cell::new(0),
            endpoints: Seen::new(),
            services: Seen::new(),
            backends: Seen::new(),
            slots: Seen::new(),
            locals: Seen::new(),
        }
    }

    /// What was read before, or what `read` gives now.
    fn seen<'s, K: Ord + Clone, V>(
        &self,
        seen: &'s Seen<K, V>,
        key: &K,
        read: impl FnOnce(&Pinned) -> Result<Option<V>>,
    ) -> Option<&'s V> {
        match seen.get(key) {
            Some(known) => known.as_ref(),
            None => {
                let found = self.failure.noted(read(self.maps));
                seen.insert(key.clone(), Box::new(found)).as_ref()
            }
        }
    }
}

impl Tables for Snapshot<'_> {
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        self.seen(&self.endpoints, key, |maps| maps.endpoint(key))
    }

    fn service(&self, id: ServiceId) -> Option<&Service> {
        self.seen(&self.services, &id, |maps| maps.service(id))
            .filter(|service| service.mode != Mode::default())
    }

    fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.seen(&self.backends, &id, |maps| maps.backend(id))
            .filter(|backend| backend.state != BackendState::ABSENT)
    }

    fn slot(&self, service: ServiceId, cell: u32) -> Option<BackendId> {
        self.seen(&self.slots, &(service, cell), |maps| {
            maps.slot(service, cell)
        })
        .copied()
    }

    fn transmits_by_redirect(&self) -> bool {
        self.maps.settings().transmit_by_redirect != 0
    }

    fn answers_per_second(&self) -> u32 {
        self.maps.settings().answers_per_second
    }

    fn tunnel(&self) -> Option<&Tunnel> {
        Some(&self.maps.settings().tunnel)
    }

    fn is_local(&self, address: &Address) -> bool {
        let read = |maps: &Pinned| Ok(maps.is_local(address)?.then_some(()));
        self.seen(&self.locals, address, read).is_some()
    }

    fn route(&self, parsed: &Parsed, source: &Address, destination: &Address) -> Option<Neighbour> {
        let ifindex = self.ifindex.get();
        self.failure
            .noted(self.routes.next_hop(ifindex, parsed, source, destination))
    }
}

/// What the data path writes: entries are copied from the live maps when they are first asked
/// for, and everything that happens to them happens to the copies. Clones share nothing that
/// changes.
#[derive(Clone)]
pub(super) struct LiveFlows<'k> {
    maps: &'k Pinned,
    failure: Failure,
    /// The copies, and the clock.
    pub(super) host: HostFlows,
    flows: BTreeSet<FlowKey>,
    conversations: BTreeSet<Conversation>,
    datagrams: BTreeSet<FragmentKey>,
    prefixes: BTreeSet<Address>,
    services: BTreeSet<ServiceId>,
}

impl<'k> LiveFlows<'k> {
    /// The flows as `cpu` sees them, at `time` (nanoseconds of the coarse monotonic clock).
    pub(super) fn new(maps: &'k Pinned, cpu: u32, time: u64, failure: &Failure) -> Self {
        let mut host = HostFlows::new();
        host.cpu = cpu;
        host.time = time;
        host.settings = *maps.settings();
        Self {
            maps,
            failure: failure.clone(),
            host,
            flows: BTreeSet::new(),
            conversations: BTreeSet::new(),
            datagrams: BTreeSet::new(),
            prefixes: BTreeSet::new(),
            services: BTreeSet::new(),
        }
    }

    fn load(&mut self, key: &FlowKey) {
        if !self.flows.insert(*key) {
            return;
        }
        // In the order in which the program looks.
        if let Some(flow) = self.failure.noted(self.maps.flow(Table::Confirmed, key)) {
            self.host.confirmed.insert(*key, flow);
        } else if let Some(flow) = self.failure.noted(self.maps.flow(Table::New, key)) {
            self.host.new.insert(*key, flow);
        }
    }

    fn load_direct(&mut self, conversation: &Conversation) {
        if self.conversations.insert(*conversation)
            && let Some(direct) = self.failure.noted(self.maps.direct(conversation))
        {
            self.host.direct.insert(*conversation, direct);
        }
    }

    fn load_fragment(&mut self, key: &FragmentKey) {
        if self.datagrams.insert(*key)
            && let Some(fragment) = self.failure.noted(self.maps.fragment(key))
        {
            self.host.fragments.insert(*key, fragment);
        }
    }

    fn load_answered(&mut self, prefix: &Address) {
        if self.prefixes.insert(*prefix)
            && let Some(answered) = self.failure.noted(self.maps.answered(prefix))
        {
            self.host.answered.insert(*prefix, answered);
        }
    }

    fn load_tickets(&mut self, service: ServiceId) {
        if !self.services.insert(service) {
            return;
        }
        let cpu = self.host.cpu;
        let drawn = self.maps.tickets(service, cpu).and_then(|drawn| {
            drawn
                .map(Some)
                .with_context(|| format!("there is no CPU {cpu}: give another --cpu"))
        });
        if let Some(drawn) = self.failure.noted(drawn) {
            self.host.rotations.insert(service, drawn);
        }
    }
}

impl Flows for LiveFlows<'_> {
    fn now(&self) -> Ticks {
        self.host.now()
    }

    fn find(&mut self, key: &FlowKey) -> Option<(Stage, &mut Flow)> {
        self.load(key);
        self.host.find(key)
    }

    fn insert(&mut self, key: &FlowKey, flow: Flow) {
        self.load(key);
        self.host.insert(key, flow);
    }

    fn confirm(&mut self, key: &FlowKey) {
        self.load(key);
        self.host.confirm(key);
    }

    fn remove(&mut self, key: &FlowKey) {
        self.load(key);
        self.host.remove(key);
    }

    fn direct(&mut self, conversation: &Conversation) -> Option<&mut Direct> {
        self.load_direct(conversation);
        self.host.direct(conversation)
    }

    fn insert_direct(&mut self, conversation: &Conversation, direct: Direct) {
        self.load_direct(conversation);
        self.host.insert_direct(conversation, direct);
    }

    fn remove_direct(&mut self, conversation: &Conversation) {
        self.load_direct(conversation);
        self.host.remove_direct(conversation);
    }

    fn fragment(&mut self, key: &FragmentKey) -> Option<&mut Fragment> {
        self.load_fragment(key);
        self.host.fragment(key)
    }

    fn insert_fragment(&mut self, key: &FragmentKey, fragment: Fragment) {
        self.load_fragment(key);
        self.host.insert_fragment(key, fragment);
    }

    fn remove_fragment(&mut self, key: &FragmentKey) {
        self.load_fragment(key);
        self.host.remove_fragment(key);
    }

    fn answered(&mut self, prefix: &Address) -> Option<&mut Answered> {
        self.load_answered(prefix);
        self.host.answered(prefix)
    }

    fn insert_answered(&mut self, prefix: &Address, answered: Answered) {
        self.load_answered(prefix);
        self.host.insert_answered(prefix, answered);
    }

    fn ticket(&mut self, service: ServiceId) -> u32 {
        self.load_tickets(service);
        self.host.ticket(service)
    }

    fn count(&mut self, ifindex: u32, reason: Reason, bytes: u32) {
        self.host.count(ifindex, reason, bytes);
    }

    fn count_forward(&mut self, service: ServiceId, backend: BackendId, bytes: u32, began: Began) {
        self.host.count_forward(service, backend, bytes, began);
    }

    fn count_back(&mut self, service: ServiceId, backend: BackendId, bytes: u32) {
        self.host.count_back(service, backend, bytes);
    }

    fn report(&mut self, report: &Report<'_>) {
        self.host.report(report);
    }
}
