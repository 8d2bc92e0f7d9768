//! Every map, and the data path's two traits over them.
//!
//! The sizes here are defaults: the agent sets all of them when it loads the program. Maps are
//! pinned under the names given here, so a name is part of the layout as much as a type.

#![expect(
    unsafe_code,
    reason = "map values are lent by pointer, and helpers take pointers"
)]

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, bpf_fib_lookup as FibLookup, xdp_md},
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf,
    },
    helpers::generated::{bpf_fib_lookup, bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns},
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::{
    abi::{
        Address, Answered, Backend, BackendId, BackendState, Conversation, Counter, Direct,
        Endpoint, EndpointKey, Event, EventKind, Flow, FlowKey, Fragment, FragmentKey,
        InterfaceCounters, Mac, Mode, Neighbour, Reason, Service, ServiceId, Settings, Ticks,
        Traffic, Tunnel, limits,
    },
    datapath::{
        Answer, Began, Flows, Report, Stage, Tables,
        parse::{Family, Parsed},
    },
};

use crate::fib::{AF_INET, AF_INET6, words};

/// What an address, port and protocol mean. Written by the agent.
#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, { limits::ENDPOINTS as usize }> = HashMap::new();

/// Services by id. Written by the agent.
#[btf_map(name = "services")]
static SERVICES: Array<Service, { limits::SERVICES as usize }> = Array::new();

/// Backends by id. Written by the agent.
#[btf_map(name = "backends")]
static BACKENDS: Array<Backend, { limits::BACKENDS as usize }> = Array::new();

/// A lookup table of one service: cells that hold a backend's id. A template, whose real instances
/// the agent makes, each of the service's own size.
type Slots = Array<BackendId, 1, { BPF_F_INNER_MAP as usize }>;

/// Lookup tables by service id, swapped whole. Written by the agent.
#[btf_map(name = "slots")]
static SLOTS: ArrayOfMaps<Slots, { limits::SERVICES as usize }> = ArrayOfMaps::new();

/// The load balancer's own addresses. Written by the agent.
#[btf_map(name = "locals")]
static LOCALS: HashMap<Address, u32, { limits::LOCALS as usize }> = HashMap::new();

/// What concerns all services. Written by the agent.
#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();

/// Confirmed flows. Written by the program; the agent deletes.
#[btf_map(name = "flows")]
static FLOWS: LruHashMap<FlowKey, Flow, { limits::FLOWS as usize }> = LruHashMap::new();

/// Flows that the other side has not yet answered. Written by the program; the agent deletes.
#[btf_map(name = "new_flows")]
static NEW_FLOWS: LruHashMap<FlowKey, Flow, { limits::NEW_FLOWS as usize }> = LruHashMap::new();

/// Conversations that clients opened with backends themselves. Written by the program.
#[btf_map(name = "direct")]
static DIRECT: LruHashMap<Conversation, Direct, { limits::DIRECT as usize }> = LruHashMap::new();

/// Datagrams of which the first fragment was sent on. Written by the program.
#[btf_map(name = "fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { limits::FRAGMENTS as usize }> =
    LruHashMap::new();

/// What clients were told by ICMP, by prefix. Written by the program.
#[btf_map(name = "answered")]
static ANSWERED: LruHashMap<Address, Answered, { limits::ANSWERED as usize }> = LruHashMap::new();

/// The programs of rare ways, by the numbers below. Written by the agent.
#[btf_map(name = "programs")]
static PROGRAMS: ProgramArray<2> = ProgramArray::new();

/// Place of the program that answers a packet.
const ANSWER: u32 = 0;
/// Place of the program that sends later fragments on.
const LATER: u32 = 1;

/// Round-robin tickets by service id: each CPU turns a wheel of its own, which shares no memory and
/// gives every backend its weight's part all the same. Written by the program.
#[btf_map(name = "rotations")]
static ROTATIONS: PerCpuArray<u64, { limits::SERVICES as usize }> = PerCpuArray::new();

/// What came in, by interface index and reason. Entries are made by the agent and counted up by
/// the program.
#[btf_map(name = "if_counters")]
static IF_COUNTERS: PerCpuHashMap<u32, InterfaceCounters, { limits::INTERFACES as usize }> =
    PerCpuHashMap::new();

/// What services have carried, by id. Written by the program; the agent clears.
#[btf_map(name = "svc_counters")]
static SVC_COUNTERS: PerCpuArray<Traffic, { limits::SERVICES as usize }> = PerCpuArray::new();

/// What backends have carried, by id. Written by the program; the agent clears.
#[btf_map(name = "be_counters")]
static BE_COUNTERS: PerCpuArray<Traffic, { limits::BACKENDS as usize }> = PerCpuArray::new();

/// What the program tells the agent.
#[btf_map(name = "events")]
static EVENTS: RingBuf<Event, { limits::EVENT_BYTES as usize }> = RingBuf::new();

/// One CPU's working memory: what is too large for the stack.
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// See [`SCRATCH`]. Zeroed bytes are a value of it.
#[repr(C)]
struct Scratch {
    parsed: Parsed,
    answer: Answer,
    flow: Flow,
    fragment: Fragment,
    route: FibLookup,
    /// When an event of each kind was last sent.
    sent: [Ticks; 4],
}

/// The maps as the data path sees them, for one packet.
pub(crate) struct BpfTables {
    ctx: *mut xdp_md,
}

impl BpfTables {
    /// The maps for the packet of `ctx`, which the routing lookup needs.
    #[inline(always)]
    pub(crate) const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }
}

/// This CPU's working memory for the packet of the current run.
#[inline(always)]
pub(crate) fn parsed() -> Option<&'static mut Parsed> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the element belongs to this CPU, XDP programs do not preempt each other on one CPU,
    // and the program calls this once. The other parts of the element are lent separately.
    Some(unsafe { &mut (*scratch).parsed })
}

/// What the packet of the current run is answered, as [`go_on_to_answer`] has noted it.
#[inline(always)]
pub(crate) fn answer() -> Option<Answer> {
    let scratch = SCRATCH.get_ptr(0)?;
    // SAFETY: as in `parsed`; another part.
    Some(unsafe { (*scratch).answer })
}

/// Goes on in the program that answers packets, with this answer. Comes back only if there is none.
#[inline(always)]
pub(crate) fn go_on_to_answer(ctx: &XdpContext, answer: Answer) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: as in `parsed`; another part.
    unsafe { (*scratch).answer = answer };
    // SAFETY: nothing is held that would have to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, ANSWER) }
}

/// Goes on in the program for later fragments. Comes back only if there is none.
#[inline(always)]
pub(crate) fn go_on_to_later(ctx: &XdpContext) {
    // SAFETY: nothing is held that would have to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, LATER) }
}

impl Tables for BpfTables {
    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        // SAFETY: only the agent writes this map. A value it replaces or removes while it is lent
        // stays readable until the program ends (elements are freed under RCU).
        unsafe { ENDPOINTS.get(key) }
    }

    #[inline(always)]
    fn service(&self, id: ServiceId) -> Option<&Service> {
        SERVICES
            .get(id.0)
            .filter(|service| service.mode != Mode::default())
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<&Backend> {
        BACKENDS
            .get(id.0)
            .filter(|backend| backend.state != BackendState::ABSENT)
    }

    #[inline(always)]
    fn slot(&self, service: ServiceId, cell: u32) -> Option<BackendId> {
        SLOTS.get_value(service.0, &cell).copied()
    }

    #[inline(always)]
    fn transmits_by_redirect(&self) -> bool {
        SETTINGS
            .get(0)
            .is_some_and(|settings| settings.transmit_by_redirect != 0)
    }

    #[inline(always)]
    fn answers_per_second(&self) -> u32 {
        SETTINGS
            .get(0)
            .map_or(0, |settings| settings.answers_per_second)
    }

    #[inline(always)]
    fn tunnel(&self) -> Option<&Tunnel> {
        SETTINGS.get(0).map(|settings| &settings.tunnel)
    }

    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        LOCALS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn route(&self, parsed: &Parsed, source: &Address, destination: &Address) -> Option<Neighbour> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: the element belongs to this CPU, and XDP programs do not preempt each other on
        // one CPU; nothing else of it is lent while this field is.
        let route = unsafe { &mut (*scratch).route };
        ask(route, self.ctx, parsed, source, destination);
        // SAFETY: `ctx` is the program's own context, `route` a writable block of the length given.
        let answer = unsafe {
            bpf_fib_lookup(
                self.ctx.cast(),
                core::ptr::from_mut(route),
                size_of::<FibLookup>() as i32,
                0,
            )
        };
        (answer == 0).then_some(Neighbour {
            ifindex: route.ifindex,
            destination: Mac(route.dmac),
            source: Mac(route.smac),
        })
    }
}

/// Writes the question to `bpf_fib_lookup` for a packet that is being forwarded.
#[inline(always)]
fn ask(
    query: &mut FibLookup,
    ctx: *mut xdp_md,
    parsed: &Parsed,
    source: &Address,
    destination: &Address,
) {
    query.l4_protocol = parsed.protocol;
    query.sport = 0;
    query.dport = 0;
    query.__bindgen_anon_1.tot_len = parsed.length;
    // SAFETY: `ctx` is the program's own context.
    query.ifindex = unsafe { (*ctx).ingress_ifindex };
    query.__bindgen_anon_5.tbid = 0;
    match Family::of(destination) {
        Family::V4 => {
            query.family = AF_INET;
            query.__bindgen_anon_2.flowinfo = u32::from(parsed.tos);
            query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source.v4_bytes());
            query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination.v4_bytes());
        }
        Family::V6 => {
            query.family = AF_INET6;
            query.__bindgen_anon_2.flowinfo = 0;
            query.__bindgen_anon_3.ipv6_src = words(source);
            query.__bindgen_anon_4.ipv6_dst = words(destination);
        }
    }
}

impl Flows for BpfTables {
    #[inline(always)]
    fn now(&self) -> Ticks {
        Ticks::from_nanos(coarse_nanos())
    }

    #[inline(always)]
    fn find(&mut self, key: &FlowKey) -> Option<(Stage, &mut Flow)> {
        let (is_new, flow) = match FLOWS.get_ptr_mut(key) {
            Some(flow) => (0, flow),
            None => match NEW_FLOWS.get_ptr_mut(key) {
                Some(flow) => (1, flow),
                // Another CPU may have moved it between the two looks.
                None => (0, FLOWS.get_ptr_mut(key)?),
            },
        };
        let stage = match opaque(is_new) {
            0 => Stage::Confirmed,
            _ => Stage::New,
        };
        // SAFETY: the element stays in memory until the program ends, even if it is evicted. Other
        // CPUs may write it meanwhile; every field is an aligned word or bytes, any mix of old and
        // new is a value, and the data path copes with either.
        Some((stage, unsafe { &mut *flow }))
    }

    #[inline(always)]
    fn insert(&mut self, key: &FlowKey, flow: Flow) {
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: as in `route`.
        let place = unsafe { &mut (*scratch).flow };
        *place = flow;
        let place: &Flow = place;
        // Fails only when memory is short; the packet is then forwarded without an entry.
        let _ = NEW_FLOWS.insert(key, place, 0);
    }

    #[inline(always)]
    fn confirm(&mut self, key: &FlowKey) {
        let Some(flow) = NEW_FLOWS.get_ptr(key) else {
            return;
        };
        // SAFETY: as in `find`.
        let flow = unsafe { &*flow };
        if FLOWS.insert(key, flow, 0).is_ok() {
            let _ = NEW_FLOWS.remove(key);
        }
    }

    #[inline(always)]
    fn remove(&mut self, key: &FlowKey) {
        let _ = FLOWS.remove(key);
        let _ = NEW_FLOWS.remove(key);
    }

    #[inline(always)]
    fn direct(&mut self, conversation: &Conversation) -> Option<&mut Direct> {
        // SAFETY: as in `find`.
        DIRECT
            .get_ptr_mut(conversation)
            .map(|direct| unsafe { &mut *direct })
    }

    #[inline(always)]
    fn insert_direct(&mut self, conversation: &Conversation, direct: Direct) {
        let _ = DIRECT.insert(conversation, direct, 0);
    }

    #[inline(always)]
    fn remove_direct(&mut self, conversation: &Conversation) {
        let _ = DIRECT.remove(conversation);
    }

    #[inline(always)]
    fn fragment(&mut self, key: &FragmentKey) -> Option<&mut Fragment> {
        // SAFETY: as in `find`.
        FRAGMENTS
            .get_ptr_mut(key)
            .map(|fragment| unsafe { &mut *fragment })
    }

    #[inline(always)]
    fn insert_fragment(&mut self, key: &FragmentKey, fragment: Fragment) {
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: as in `route`.
        let place = unsafe { &mut (*scratch).fragment };
        *place = fragment;
        let place: &Fragment = place;
        // Fails only when memory is short; the rest of the datagram then passes.
        let _ = FRAGMENTS.insert(key, place, 0);
    }

    #[inline(always)]
    fn remove_fragment(&mut self, key: &FragmentKey) {
        let _ = FRAGMENTS.remove(key);
    }

    #[inline(always)]
    fn answered(&mut self, prefix: &Address) -> Option<&mut Answered> {
        // SAFETY: as in `find`.
        ANSWERED
            .get_ptr_mut(prefix)
            .map(|answered| unsafe { &mut *answered })
    }

    #[inline(always)]
    fn insert_answered(&mut self, prefix: &Address, answered: Answered) {
        let _ = ANSWERED.insert(prefix, answered, 0);
    }

    #[inline(always)]
    fn ticket(&mut self, service: ServiceId) -> u32 {
        let Some(ticket) = ROTATIONS.get_ptr_mut(service.0) else {
            return 0;
        };
        // SAFETY: this CPU's own element; see `route`.
        let ticket = unsafe { &mut *ticket };
        let drawn = *ticket as u32;
        *ticket += 1;
        // SAFETY: the helper takes nothing and always answers.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        // The wheels start apart, or the first flows of all CPUs would meet on one backend.
        drawn.wrapping_add(cpu)
    }

    #[inline(always)]
    fn count(&mut self, ifindex: u32, reason: Reason, bytes: u32) {
        if let Some(counters) = IF_COUNTERS.get_ptr_mut(ifindex) {
            let index = opaque(reason as usize) % Reason::ROOM;
            // SAFETY: this CPU's own element; see `route`.
            let counters = unsafe { &mut *counters };
            add(&mut counters.reasons[index], bytes);
        }
    }

    #[inline(always)]
    fn count_forward(&mut self, service: ServiceId, backend: BackendId, bytes: u32, began: Began) {
        forwarded(SVC_COUNTERS.get_ptr_mut(service.0), bytes, began);
        forwarded(BE_COUNTERS.get_ptr_mut(backend.0), bytes, began);
    }

    #[inline(always)]
    fn count_back(&mut self, service: ServiceId, backend: BackendId, bytes: u32) {
        answered(SVC_COUNTERS.get_ptr_mut(service.0), bytes);
        answered(BE_COUNTERS.get_ptr_mut(backend.0), bytes);
    }

    #[inline(always)]
    fn report(&mut self, report: &Report<'_>) {
        let (Some(settings), Some(scratch)) = (SETTINGS.get(0), SCRATCH.get_ptr_mut(0)) else {
            return;
        };
        let (place, spacing) = match report.kind {
            EventKind::NEW_FLOW => (0, settings.new_flow_spacing),
            EventKind::DROP => (1, settings.drop_spacing),
            _ => (2, NEIGHBOUR_SPACING),
        };
        if spacing.0 == u32::MAX {
            return;
        }
        // SAFETY: as in `route`.
        let sent = unsafe { &mut (*scratch).sent[place] };
        let time = coarse_nanos();
        let now = Ticks::from_nanos(time);
        if sent.age(now) < spacing {
            return;
        }
        *sent = now;
        if let Some(mut entry) = EVENTS.reserve(0) {
            entry.write(report.event(time));
            entry.submit(0);
        }
    }
}

/// Shortest time between two requests for a neighbour on one CPU: 17 ms.
const NEIGHBOUR_SPACING: Ticks = Ticks(16);

#[inline(always)]
fn forwarded(traffic: Option<*mut Traffic>, bytes: u32, began: Began) {
    if let Some(traffic) = traffic {
        // SAFETY: this CPU's own element; see `route`.
        let traffic = unsafe { &mut *traffic };
        add(&mut traffic.forward, bytes);
        if began == Began::New {
            traffic.new_flows += 1;
        }
    }
}

#[inline(always)]
fn answered(traffic: Option<*mut Traffic>, bytes: u32) {
    if let Some(traffic) = traffic {
        // SAFETY: this CPU's own element; see `route`.
        let traffic = unsafe { &mut *traffic };
        add(&mut traffic.back, bytes);
    }
}

#[inline(always)]
fn add(counter: &mut Counter, bytes: u32) {
    counter.add(u64::from(bytes));
}

/// `value`, of which the compiler no longer knows where it came from.
///
/// It would otherwise drop a bound that the verifier asks for, because it knows all reasons, or
/// compute with the bits of a pointer instead of comparing it with null, which the verifier refuses.
#[inline(always)]
fn opaque(value: usize) -> usize {
    // SAFETY: a local, read as a plain word.
    unsafe { core::ptr::read_volatile(&value) }
}

#[inline(always)]
fn coarse_nanos() -> u64 {
    // SAFETY: the helper takes nothing and always answers.
    unsafe { bpf_ktime_get_coarse_ns() }
}
