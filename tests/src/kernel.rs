//! The XDP program in the kernel, one frame at a time.
//!
//! [`isolated`] gives a test a network of its own, in which [`Kernel`] loads the program, fills its
//! maps from the same entries as the host's, and runs it with `BPF_PROG_TEST_RUN`. Nothing is
//! attached and no frame leaves: all state is gone with the test's thread.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRunOptions,
    maps::{
        Array, ArrayOfMaps, HashMap, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues,
        ProgramArray, RingBuf,
    },
    programs::{TestRun as _, Xdp},
    util::nr_cpus,
};
use lb_common::{
    abi::{
        ABI_VERSION, Address, Answered, Backend, BackendId, Conversation, Direct, Endpoint,
        EndpointKey, Event, Flow, FlowKey, Fragment, FragmentKey, InterfaceCounters, Service,
        ServiceId, Settings, Ticks, Traffic,
    },
    host::{
        HostTables,
        world::{BACKENDS, BACKENDS_MAC, CLIENTS, CLIENTS_MAC, ROUTER_MAC, neighbour},
    },
};
use lb_user::objects;
use nix::{
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    time::{ClockId, clock_gettime},
    unistd::{Pid, geteuid},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Flags of the inner arrays of `slots`: they differ in size (`BPF_F_INNER_MAP`).
const INNER_MAP: u32 = 0x1000;

/// Entries of the program's flow tables: room for all that a test makes, so that nothing is pushed
/// out (the kernel's LRU chooses by CPU and by chance).
const ROOM: u32 = 1 << 17;

/// Longest frame that comes out.
const LONGEST: usize = 4096;

/// `XDP_DROP`, `XDP_PASS`, `XDP_TX`, `XDP_REDIRECT` (Linux `include/uapi/linux/bpf.h`).
pub const ACTIONS: [u32; 4] = [1, 2, 3, 4];

/// Runs `work` on one CPU, in a network namespace with the two interfaces, neighbours and routes
/// of [`lb_common::host::world::World::new`].
///
/// # Errors
///
/// Without root or `ip`, and whatever `work` fails with.
pub fn isolated<T: Send>(work: impl FnOnce(u32) -> Result<T> + Send) -> Result<T> {
    ensure!(
        geteuid().is_root(),
        "the kernel's tests load programs: run them as root"
    );
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let cpu = stay_on_one_cpu()?;
        network()?;
        work(cpu)
    };
    thread::scope(|scope| match scope.spawn(inside).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Binds this thread to the last CPU that it may use: its number is seldom 0, and tickets start at
/// it.
fn stay_on_one_cpu() -> Result<u32> {
    let me = Pid::from_raw(0);
    let allowed = sched_getaffinity(me).context("cannot ask for CPUs")?;
    for cpu in (0..CpuSet::count()).rev() {
        if allowed.is_set(cpu)? {
            let mut one = CpuSet::new();
            one.set(cpu)?;
            sched_setaffinity(me, &one).with_context(|| format!("cannot stay on CPU {cpu}"))?;
            return Ok(cpu as u32);
        }
    }
    bail!("this thread may use no CPU")
}

/// Builds the network in this thread's namespace.
fn network() -> Result<()> {
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let clients = mac(CLIENTS_MAC.0);
    let backends = mac(BACKENDS_MAC.0);
    let router = mac(ROUTER_MAC.0);
    let hop = mac(neighbour(BACKENDS, 200).destination.0);
    let peers = [CLIENTS + 1, BACKENDS + 1];
    let batch = format!(
        "link set lo up
         link add clients index {CLIENTS} address {clients} type veth peer name p1 index {}
         link add backends index {BACKENDS} address {backends} type veth peer name p2 index {}
         link set clients up
         link set p1 up
         link set backends up
         link set p2 up
         addr add 192.0.2.1/24 dev clients
         addr add 10.0.1.254/24 dev backends
         addr add 2001:db8:0:1::1/64 dev clients nodad
         addr add fd00:1::ff/64 dev backends nodad
         neigh add 192.0.2.254 lladdr {router} dev clients nud permanent
         neigh add 2001:db8:0:1::fe lladdr {router} dev clients nud permanent
         neigh add 10.0.1.200 lladdr {hop} dev backends nud permanent
         neigh add fd00:1::c8 lladdr {hop} dev backends nud permanent
         route add 198.51.100.0/24 via 192.0.2.254
         route add 2001:db8:c::/48 via 2001:db8:0:1::fe
         route add 10.0.2.0/24 via 10.0.1.200
         route add fd00:2::/64 via fd00:1::c8
        ",
        peers[0], peers[1]
    );
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        // This shows the settings of the calling thread's network namespace.
        let path = format!("/proc/sys/net/{setting}");
        fs::write(&path, "1").with_context(|| format!("cannot write {path}"))?;
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    let mut input = ip.stdin.take().context("ip takes no input")?;
    input.write_all(batch.as_bytes())?;
    drop(input);
    ensure!(ip.wait()?.success(), "ip cannot build the test's network");
    Ok(())
}

/// Nanoseconds of the clock that the program reads.
///
/// # Errors
///
/// If the kernel has no such clock.
pub fn coarse_time() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// What the program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// One of [`ACTIONS`].
    pub action: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
}

impl Ran {
    /// Runs a program on a frame that came in on an interface.
    pub(crate) fn of(program: &mut Xdp, ifindex: u32, frame: &[u8]) -> Result<Self> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context = [0, u32::try_from(frame.len())?, 0, ifindex, 0, 0];
        let mut out = vec![0; LONGEST];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(context.as_bytes()),
                ..TestRunOptions::new()
            })
            .with_context(|| format!("cannot run a frame of {} bytes", frame.len()))?;
        out.truncate(result.data_size_out as usize);
        Ok(Self {
            action: result.return_value,
            frame: out,
        })
    }
}

/// The loaded program and its maps.
pub struct Kernel {
    ebpf: Ebpf,
    endpoints: HashMap<MapData, EndpointKey, Endpoint>,
    services: Array<MapData, Service>,
    backends: Array<MapData, Backend>,
    slots: ArrayOfMaps<MapData, Array<MapData, BackendId>>,
    locals: HashMap<MapData, Address, u32>,
    interfaces: PerCpuHashMap<MapData, u32, InterfaceCounters>,
    service_counters: PerCpuArray<MapData, Traffic>,
    backend_counters: PerCpuArray<MapData, Traffic>,
    ring: RingBuf<MapData>,
    /// Confirmed flows.
    pub confirmed: HashMap<MapData, FlowKey, Flow>,
    /// New flows.
    pub new: HashMap<MapData, FlowKey, Flow>,
    /// Conversations opened with backends themselves.
    pub direct: HashMap<MapData, Conversation, Direct>,
    /// Datagrams of which the first fragment was sent on.
    pub fragments: HashMap<MapData, FragmentKey, Fragment>,
    /// ICMP messages, by prefix of clients.
    pub answered: HashMap<MapData, Address, Answered>,
    /// Kept: the kernel empties it when nobody has it open.
    _programs: ProgramArray<MapData>,
    settings: Array<MapData, Settings>,
    filled: HostTables,
}

impl Kernel {
    /// Loads the program with empty maps, counters for both interfaces, and an event for each new
    /// flow and each drop.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it; with the verifier's last words.
    pub fn load() -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for map in ["flows", "new_flows", "direct", "fragments"] {
            loader.map_max_entries(map, ROOM);
        }
        for map in ["endpoints", "locals", "backends", "be_counters"] {
            loader.map_max_entries(map, 1024);
        }
        for map in ["services", "slots", "svc_counters", "rotations"] {
            loader.map_max_entries(map, 64);
        }
        let mut ebpf = loader.load(objects::LB).context("cannot load lb-ebpf")?;
        program(&mut ebpf)?
            .load()
            .context("the kernel refuses lb-ebpf")?;
        let mut programs = ProgramArray::try_from(take(&mut ebpf, "programs")?)?;
        for (place, name) in (0..).zip(["answer", "later"]) {
            let rare: &mut Xdp = ebpf
                .program_mut(name)
                .with_context(|| format!("lb-ebpf has no program {name}"))?
                .try_into()?;
            rare.load()
                .with_context(|| format!("the kernel refuses {name}"))?;
            programs.set(place, rare.fd()?, 0)?;
        }
        let mut kernel = Self {
            endpoints: HashMap::try_from(take(&mut ebpf, "endpoints")?)?,
            services: Array::try_from(take(&mut ebpf, "services")?)?,
            backends: Array::try_from(take(&mut ebpf, "backends")?)?,
            slots: ArrayOfMaps::try_from(take(&mut ebpf, "slots")?)?,
            locals: HashMap::try_from(take(&mut ebpf, "locals")?)?,
            interfaces: PerCpuHashMap::try_from(take(&mut ebpf, "if_counters")?)?,
            service_counters: PerCpuArray::try_from(take(&mut ebpf, "svc_counters")?)?,
            backend_counters: PerCpuArray::try_from(take(&mut ebpf, "be_counters")?)?,
            ring: RingBuf::try_from(take(&mut ebpf, "events")?)?,
            confirmed: HashMap::try_from(take(&mut ebpf, "flows")?)?,
            new: HashMap::try_from(take(&mut ebpf, "new_flows")?)?,
            direct: HashMap::try_from(take(&mut ebpf, "direct")?)?,
            fragments: HashMap::try_from(take(&mut ebpf, "fragments")?)?,
            answered: HashMap::try_from(take(&mut ebpf, "answered")?)?,
            _programs: programs,
            settings: Array::try_from(take(&mut ebpf, "settings")?)?,
            filled: HostTables::default(),
            ebpf,
        };
        kernel.settings.set(0, every_event(), 0)?;
        let cpus = nr_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?;
        for ifindex in [CLIENTS, BACKENDS] {
            let zero = PerCpuValues::try_from(vec![InterfaceCounters::default(); cpus])?;
            kernel.interfaces.insert(ifindex, zero, 0)?;
        }
        Ok(kernel)
    }

    /// How many instructions of a program the verifier looked at.
    ///
    /// # Errors
    ///
    /// If the kernel does not say.
    pub fn verified_instructions(&mut self, name: &str) -> Result<u32> {
        let program: &mut Xdp = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("lb-ebpf has no program {name}"))?
            .try_into()?;
        let info = program.info()?;
        info.verified_instruction_count()
            .context("the kernel does not tell how many instructions it has verified")
    }

    /// Makes the maps hold what `tables` hold.
    ///
    /// # Errors
    ///
    /// If a map has no room, or an entry is beyond its end.
    pub fn fill(&mut self, tables: &HostTables) -> Result<()> {
        for key in self.filled.endpoints.keys() {
            if !tables.endpoints.contains_key(key) {
                self.endpoints.remove(key)?;
            }
        }
        for (key, endpoint) in &tables.endpoints {
            self.endpoints.insert(key, endpoint, 0)?;
        }
        for id in self.filled.services.keys() {
            if !tables.services.contains_key(id) {
                self.services.set(id.0, Service::default(), 0)?;
            }
        }
        for (id, service) in &tables.services {
            self.services.set(id.0, service, 0)?;
        }
        for (id, backend) in &tables.backends {
            self.backends.set(id.0, backend, 0)?;
        }
        for (id, cells) in &tables.slots {
            if self.filled.slots.get(id) != Some(cells) {
                self.put_slots(*id, cells)?;
            }
        }
        let settings = Settings {
            tunnel: tables.tunnel,
            answers_per_second: tables.answers_per_second,
            ..every_event()
        };
        self.settings.set(0, settings, 0)?;
        for local in &tables.locals {
            self.locals.insert(local, 1, 0)?;
        }
        self.filled = tables.clone();
        Ok(())
    }

    fn put_slots(&mut self, service: ServiceId, cells: &[BackendId]) -> Result<()> {
        let size = u32::try_from(cells.len())?.max(1);
        let mut inner: Array<MapData, BackendId> = Array::create(size, INNER_MAP)?;
        for (cell, id) in (0..).zip(cells) {
            inner.set(cell, id, 0)?;
        }
        self.slots.set(service.0, &inner, 0)?;
        Ok(())
    }

    /// Runs the program on a frame that came in on an interface.
    ///
    /// # Errors
    ///
    /// If the kernel does not take the frame (it must have an Ethernet header and fit a page).
    pub fn run(&mut self, ifindex: u32, frame: &[u8]) -> Result<Ran> {
        Ran::of(program(&mut self.ebpf)?, ifindex, frame)
    }

    /// What came in on an interface.
    ///
    /// # Errors
    ///
    /// If it is none of the two.
    pub fn interface(&self, ifindex: u32) -> Result<InterfaceCounters> {
        let mut sum = InterfaceCounters::default();
        for counters in self.interfaces.get(&ifindex, 0)?.iter() {
            for (sum, counter) in sum.reasons.iter_mut().zip(counters.reasons) {
                *sum = sum.plus(counter);
            }
        }
        Ok(sum)
    }

    /// What a service has carried.
    ///
    /// # Errors
    ///
    /// If there is no such id.
    pub fn service(&self, id: ServiceId) -> Result<Traffic> {
        Ok(sum(&self.service_counters.get(&id.0, 0)?))
    }

    /// What a backend has carried.
    ///
    /// # Errors
    ///
    /// If there is no such id.
    pub fn backend(&self, id: BackendId) -> Result<Traffic> {
        Ok(sum(&self.backend_counters.get(&id.0, 0)?))
    }

    /// The events since the last call.
    ///
    /// # Errors
    ///
    /// If one has another shape.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(item) = self.ring.next() {
            let event = Event::read_from_bytes(&item)
                .map_err(|_| anyhow!("an event of {} bytes", item.len()))?;
            events.push(event);
        }
        Ok(events)
    }

    /// Forgets all flows and conversations.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn forget(&mut self) -> Result<()> {
        clear(&mut self.confirmed)?;
        clear(&mut self.new)?;
        clear(&mut self.direct)?;
        clear(&mut self.fragments)?;
        clear(&mut self.answered)
    }
}

/// Settings that send an event for each new flow and each drop.
#[must_use]
pub fn every_event() -> Settings {
    Settings {
        abi_version: ABI_VERSION,
        new_flow_spacing: Ticks(0),
        drop_spacing: Ticks(0),
        ..Settings::default()
    }
}

/// All entries of a hash map.
///
/// # Errors
///
/// If it cannot be read.
pub fn entries<K: Pod + Ord, V: Pod>(map: &HashMap<MapData, K, V>) -> Result<BTreeMap<K, V>> {
    map.iter().map(|entry| Ok(entry?)).collect()
}

fn clear<K: Pod + Ord, V: Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    for key in entries(map)?.keys() {
        map.remove(key)?;
    }
    Ok(())
}

fn sum(values: &PerCpuValues<Traffic>) -> Traffic {
    values
        .iter()
        .fold(Traffic::default(), |sum, t| sum.plus(*t))
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf
        .program_mut("lb")
        .context("lb-ebpf has no program lb")?;
    Ok(program.try_into()?)
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    ebpf.take_map(name)
        .with_context(|| format!("lb-ebpf has no map {name}"))
}
