//! The maps of a backend, and what the data path asks of it over them and the kernel.
//!
//! One set of maps for each interface, pinned under the names given here, so a name is part of the
//! layout as much as a type.

#![expect(
    unsafe_code,
    reason = "map values are lent by pointer, and helpers take pointers"
)]

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED, bpf_fib_lookup as FibLookup,
        xdp_md,
    },
    btf_maps::{Array, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::generated::bpf_fib_lookup,
    macros::btf_map,
};
use lb_common::{
    abi::{
        Address, Port,
        decap::{Counters, Reason, SOURCES, Settings},
    },
    datapath::parse::Family,
    decap::Receiver,
};

use crate::fib::{AF_INET, AF_INET6, words};

/// Where tunnels are taken from: networks, and 4 or 6, the IP version of their addresses. So ::/0
/// does not stand for IPv4 addresses, which lie inside it. Written by `lb-user decap attach`.
#[btf_map(name = "sources")]
static SOURCE_NETWORKS: LpmTrie<Address, u32, { SOURCES as usize }> = LpmTrie::new();

/// What concerns all packets. Written by `lb-user decap attach`.
#[btf_map(name = "settings")]
static SETTINGS: Array<Settings, 1> = Array::new();

/// What came in, by reason. Written by the program.
#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// One CPU's working memory: what is too large for the stack.
#[btf_map(name = "scratch")]
static SCRATCH: PerCpuArray<FibLookup, 1> = PerCpuArray::new();

/// The maps and the kernel's routing table, for one packet.
pub(crate) struct BpfReceiver {
    ctx: *mut xdp_md,
}

impl BpfReceiver {
    /// For the packet of `ctx`, which the routing lookup needs.
    #[inline(always)]
    pub(crate) const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }
}

impl Receiver for BpfReceiver {
    #[inline(always)]
    fn is_known(&self, family: Family, source: &Address) -> bool {
        let version = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        SOURCE_NETWORKS
            .get(&Key::new(128, *source))
            .is_some_and(|found| *found == version)
    }

    #[inline(always)]
    fn gue_port(&self) -> Port {
        SETTINGS
            .get(0)
            .map_or(Port([0, 0]), |settings| settings.gue_port)
    }

    #[inline(always)]
    fn sends_on(&self, family: Family, destination: &Address, ifindex: u32) -> bool {
        let Some(query) = SCRATCH.get_ptr_mut(0) else {
            return false;
        };
        // SAFETY: the element belongs to this CPU, XDP programs do not preempt each other on one
        // CPU, and it is lent nowhere else.
        let query = unsafe { &mut *query };
        ask(query, family, destination, ifindex);
        // SAFETY: `ctx` is the program's own context, `query` a writable block of the length given.
        let answer = unsafe {
            bpf_fib_lookup(
                self.ctx.cast(),
                core::ptr::from_mut(query),
                size_of::<FibLookup>() as i32,
                0,
            )
        };
        // A local address is not forwarded to, an address without route neither; and nothing is
        // where forwarding is off. What is refused by a route (unreachable, prohibit) is forwarded.
        answer >= 0
            && !matches!(
                answer as u32,
                BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED
            )
    }

    #[inline(always)]
    fn count(&mut self, reason: Reason, bytes: u32) {
        if let Some(counters) = COUNTERS.get_ptr_mut(0) {
            let index = opaque(reason as usize) % Reason::ROOM;
            // SAFETY: this CPU's own element; see `sends_on`.
            let counters = unsafe { &mut *counters };
            counters.reasons[index].add(u64::from(bytes));
        }
    }
}

/// Writes the question whether a packet to `destination` would be forwarded. The source is left
/// out: what matters is whether the destination is one of the host's own addresses.
#[inline(always)]
fn ask(query: &mut FibLookup, family: Family, destination: &Address, ifindex: u32) {
    query.l4_protocol = 0;
    query.sport = 0;
    query.dport = 0;
    query.__bindgen_anon_1.tot_len = 0;
    query.ifindex = ifindex;
    query.__bindgen_anon_2.flowinfo = 0;
    query.__bindgen_anon_5.tbid = 0;
    match family {
        Family::V4 => {
            query.family = AF_INET;
            query.__bindgen_anon_3.ipv4_src = 0;
            query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination.v4_bytes());
        }
        Family::V6 => {
            query.family = AF_INET6;
            query.__bindgen_anon_3.ipv6_src = [0; 4];
            query.__bindgen_anon_4.ipv6_dst = words(destination);
        }
    }
}

/// `value`, of which the compiler no longer knows where it came from: it would drop the bound that
/// the verifier asks for, because it knows all reasons.
#[inline(always)]
fn opaque(value: usize) -> usize {
    // SAFETY: a local, read as a plain word.
    unsafe { core::ptr::read_volatile(&value) }
}
