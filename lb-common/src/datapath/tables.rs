//! The maps, as the data path sees them: two traits, one for each writer.
//!
//! What is in [`Tables`] is written by the agent and only read here; what is in [`Flows`] is
//! written here. So a record of the first stays lent while an entry of the second is changed.

use crate::{
    abi::{
        Address, Answered, Backend, BackendId, Conversation, Direct, Endpoint, EndpointKey, Event,
        EventKind, Flow, FlowKey, Fragment, FragmentKey, Neighbour, Reason, Service, ServiceId,
        Ticks, Tunnel,
    },
    datapath::parse::Parsed,
};

/// What the agent has written: services, backends, slots, and the kernel's routes.
pub trait Tables {
    /// What an address, port and protocol mean; none if nothing.
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint>;

    /// A service's record; none if it is not there.
    fn service(&self, id: ServiceId) -> Option<&Service>;

    /// A backend's record; none if it is not there (removed ones are not).
    fn backend(&self, id: BackendId) -> Option<&Backend>;

    /// The backend in a cell of a service's lookup table; none beyond its end or if it is empty.
    fn slot(&self, service: ServiceId, cell: u32) -> Option<BackendId>;

    /// Whether a frame leaves the interface it came in on by redirect
    /// ([`crate::abi::Settings::transmit_by_redirect`]).
    fn transmits_by_redirect(&self) -> bool;

    /// How many ICMP messages the clients of one prefix get in a second.
    fn answers_per_second(&self) -> u32;

    /// What tunnel modes need besides a backend's record ([`crate::abi::Settings::tunnel`]).
    fn tunnel(&self) -> Option<&Tunnel>;

    /// Whether this is an address of the load balancer itself.
    fn is_local(&self, address: &Address) -> bool;

    /// The next hop the kernel's routing table and neighbour table give for a packet that is
    /// being forwarded from `source` to `destination`, whose family it has (in a tunnel another
    /// one than the packet's); none if either has no answer.
    fn route(&self, parsed: &Parsed, source: &Address, destination: &Address) -> Option<Neighbour>;
}

/// Where a flow's entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// In the large table: the other side has answered, or the client has gone on.
    Confirmed,
    /// In the small table of new flows.
    New,
}

/// What the data path writes: flows, conversations opened with backends, counters and events.
pub trait Flows {
    /// The coarse monotonic clock.
    fn now(&self) -> Ticks;

    /// A flow's entry, wherever it lies.
    fn find(&mut self, key: &FlowKey) -> Option<(Stage, &mut Flow)>;

    /// Makes an entry among the new flows. There is none of this key.
    fn insert(&mut self, key: &FlowKey, flow: Flow);

    /// Moves an entry from the new flows to the confirmed ones.
    fn confirm(&mut self, key: &FlowKey);

    /// Forgets a flow.
    fn remove(&mut self, key: &FlowKey);

    /// The entry of a conversation that a client opened with a backend itself.
    fn direct(&mut self, conversation: &Conversation) -> Option<&mut Direct>;

    /// Notes that a client has opened a conversation with a backend itself.
    fn insert_direct(&mut self, conversation: &Conversation, direct: Direct);

    /// Forgets a conversation.
    fn remove_direct(&mut self, conversation: &Conversation);

    /// What was decided for a datagram's first fragment.
    fn fragment(&mut self, key: &FragmentKey) -> Option<&mut Fragment>;

    /// Notes what was decided for a datagram's first fragment, in place of an older one like it.
    fn insert_fragment(&mut self, key: &FragmentKey, fragment: Fragment);

    /// Forgets a datagram.
    fn remove_fragment(&mut self, key: &FragmentKey);

    /// What the clients of a prefix, given by its first address, were told by ICMP.
    fn answered(&mut self, prefix: &Address) -> Option<&mut Answered>;

    /// Notes the first thing that the clients of a prefix were told.
    fn insert_answered(&mut self, prefix: &Address, answered: Answered);

    /// Draws the next ticket of a service's round-robin wheel.
    fn ticket(&mut self, service: ServiceId) -> u32;

    /// Counts a packet that came in on an interface.
    fn count(&mut self, ifindex: u32, reason: Reason, bytes: u32);

    /// Counts a packet for its service and backend, and the flow if it began one.
    fn count_forward(&mut self, service: ServiceId, backend: BackendId, bytes: u32, began: Began);

    /// Counts an answer for its service and backend.
    fn count_back(&mut self, service: ServiceId, backend: BackendId, bytes: u32);

    /// Tells the agent, if no event of this kind was sent just before. Lost if the agent does not
    /// keep up.
    fn report(&mut self, report: &Report<'_>);
}

/// What an event will say.
#[derive(Clone, Copy)]
pub struct Report<'p> {
    /// What is told.
    pub kind: EventKind,
    /// Why.
    pub reason: Reason,
    /// The packet it is about.
    pub parsed: &'p Parsed,
    /// The packet's destination, or the address to resolve.
    pub destination: &'p Address,
    /// The interface the packet came in on.
    pub ifindex: u32,
    /// The service, or none.
    pub service: ServiceId,
    /// The backend, or none.
    pub backend: BackendId,
}

impl Report<'_> {
    /// The event, at a time in nanoseconds of the coarse monotonic clock.
    #[inline(always)]
    pub fn event(&self, time: u64) -> Event {
        Event {
            time,
            source: self.parsed.source,
            destination: *self.destination,
            service: self.service,
            backend: self.backend,
            ifindex: self.ifindex,
            source_port: self.parsed.source_port,
            destination_port: self.parsed.destination_port,
            kind: self.kind,
            reason: self.reason as u8,
            protocol: self.parsed.protocol,
            reserved: [0; 5],
        }
    }
}

/// Whether a packet was its flow's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// An entry was made for it.
    New,
    /// There was an entry.
    Known,
}
