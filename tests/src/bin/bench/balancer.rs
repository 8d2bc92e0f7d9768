//! The load balancer's program, loaded with maps filled as the agent would fill them: one service
//! whose flows are all known, and one whose flows are all new.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues},
    programs::{Xdp, XdpMode},
};
use lb_common::{
    abi::{
        ABI_VERSION, Address, Algorithm, Backend, BackendId, BackendState, Endpoint, EndpointKey,
        Flow, FlowKey, FlowState, InterfaceCounters, Mode, Neighbour, Port, Reason, Role, Service,
        ServiceId, Settings, Ticks, Timeouts, Traffic, Tunnel, decap::GUE_PORT, limits,
    },
    datapath::{
        parse::Family,
        select::{self, Candidate},
    },
    wire::ip,
};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};

use crate::flow;

/// The service whose flows are in the table before the first packet. It has one backend, so that
/// all answers come from there.
pub(crate) const KNOWN: ServiceId = ServiceId(1);
/// The service none of whose flows has been seen.
pub(crate) const NEW: ServiceId = ServiceId(2);

/// Port of [`KNOWN`] and of [`NEW`], and their backends' in `nat` mode.
pub(crate) const KNOWN_PORT: u16 = 80;
pub(crate) const NEW_PORT: u16 = 81;
pub(crate) const KNOWN_BACKEND_PORT: u16 = 8080;
const NEW_BACKEND_PORT: u16 = 8081;

/// Backends of [`NEW`].
const NEW_BACKENDS: u32 = 16;

/// Longer than any run: nothing expires while it is measured.
const IDLE: Ticks = Ticks(3600 * Ticks::PER_SECOND);

/// Template and instances of a lookup table must agree in this flag (`BPF_F_INNER_MAP`): it lets
/// their sizes differ.
const INNER_MAP: u32 = 0x1000;

/// What a balancer is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) family: Family,
    pub(crate) protocol: u8,
    pub(crate) mode: Mode,
    /// How many flows of [`KNOWN`] are in the table: `flow::client(0..flows)`.
    pub(crate) flows: u32,
    /// Next hop of all backends.
    pub(crate) backend: Neighbour,
    /// Next hop of all clients. What is counted comes in from there, answers in the harness too.
    pub(crate) client: Neighbour,
}

/// What the maps have counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Packets that came in, whatever came of them.
    pub(crate) all: u64,
    /// Those that left for the reason asked for.
    pub(crate) reason: u64,
    pub(crate) known: Traffic,
    pub(crate) new: Traffic,
}

/// A loaded program with its maps.
pub(crate) struct Balancer {
    ebpf: Ebpf,
    plan: Plan,
}

impl Balancer {
    /// Loads the program and fills the maps, whose sizes are those of the product's defaults.
    pub(crate) fn load(plan: Plan) -> Result<Self> {
        let ebpf = EbpfLoader::new()
            .load(lb_user::objects::LB)
            .context("cannot load the load balancer's object")?;
        let mut balancer = Self { ebpf, plan };
        balancer
            .program()?
            .load()
            .context("the kernel refuses the load balancer's program")?;
        balancer.fill()?;
        Ok(balancer)
    }

    /// The program itself.
    pub(crate) fn program(&mut self) -> Result<&mut Xdp> {
        let program = self
            .ebpf
            .program_mut("lb")
            .context("no program lb in the object")?;
        Ok(program.try_into()?)
    }

    /// Attaches the program to an interface of the current network namespace, in the driver.
    pub(crate) fn attach(&mut self, interface: &str) -> Result<()> {
        self.program()?
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("cannot attach the load balancer to {interface}"))?;
        Ok(())
    }

    /// What has been counted until now.
    pub(crate) fn counts(&self, reason: Reason) -> Result<Counts> {
        let interfaces: PerCpuHashMap<_, u32, InterfaceCounters> =
            self.map("if_counters")?.try_into()?;
        let services: PerCpuArray<_, Traffic> = self.map("svc_counters")?.try_into()?;
        let traffic = |id: ServiceId| -> Result<Traffic> {
            let values = services.get(&id.0, 0)?;
            Ok(values
                .iter()
                .fold(Traffic::default(), |sum, &value| sum.plus(value)))
        };
        let mut counts = Counts {
            known: traffic(KNOWN)?,
            new: traffic(NEW)?,
            ..Counts::default()
        };
        for cpu in interfaces.get(&self.plan.client.ifindex, 0)?.iter() {
            counts.reason += cpu.reasons[reason as usize].packets;
            counts.all += cpu
                .reasons
                .iter()
                .map(|counter| counter.packets)
                .sum::<u64>();
        }
        Ok(counts)
    }

    /// Fails unless every flow of [`KNOWN`] is where it was put: in the table of confirmed flows.
    pub(crate) fn check_flows(&self) -> Result<()> {
        let flows: HashMap<_, FlowKey, Flow> = self.map("flows")?.try_into()?;
        let missing = (0..self.plan.flows)
            .filter(|&index| flows.get(&self.key(index), 0).is_err())
            .count();
        ensure!(
            missing == 0,
            "{missing} of {} flows are not in the table",
            self.plan.flows
        );
        Ok(())
    }

    fn map(&self, name: &str) -> Result<&aya::maps::Map> {
        self.ebpf
            .map(name)
            .with_context(|| format!("no map {name} in the object"))
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name} in the object"))
    }

    /// In the agent's order: what others refer to comes first.
    fn fill(&mut self) -> Result<()> {
        let Plan { client, mode, .. } = self.plan;
        self.put(
            "settings",
            0,
            Settings {
                abi_version: ABI_VERSION,
                new_flow_spacing: Ticks(30),
                drop_spacing: Ticks(30),
                tunnel: Tunnel {
                    gue_port: GUE_PORT.into(),
                    ..Tunnel::default()
                },
                ..Settings::default()
            },
        )?;
        let cpus = sysconf(SysconfVar::_NPROCESSORS_CONF)?.context("number of CPUs unknown")?;
        let zero = vec![InterfaceCounters::default(); usize::try_from(cpus)?];
        let mut interfaces: PerCpuHashMap<&mut MapData, u32, InterfaceCounters> =
            self.map_mut("if_counters")?.try_into()?;
        interfaces.insert(client.ifindex, PerCpuValues::try_from(zero)?, 0)?;

        for id in 1..=1 + NEW_BACKENDS {
            let service = if id == 1 { KNOWN } else { NEW };
            let backend = self.backend(BackendId(id), service);
            self.put("backends", id, backend)?;
            if mode == Mode::NAT {
                self.endpoint(
                    backend.address,
                    backend.port.number(),
                    Endpoint {
                        service,
                        backend: BackendId(id),
                        port: self.service_port(service).into(),
                        role: Role::BACKEND,
                        ..Endpoint::default()
                    },
                )?;
            }
        }
        self.service(KNOWN, 1..=1)?;
        self.service(NEW, 2..=1 + NEW_BACKENDS)?;
        self.flows()
    }

    fn service_port(&self, service: ServiceId) -> u16 {
        if service == KNOWN {
            KNOWN_PORT
        } else {
            NEW_PORT
        }
    }

    fn backend(&self, id: BackendId, service: ServiceId) -> Backend {
        let port = match (self.plan.mode, service) {
            (Mode::NAT, KNOWN) => KNOWN_BACKEND_PORT,
            (Mode::NAT, _) => NEW_BACKEND_PORT,
            (_, KNOWN) => KNOWN_PORT,
            _ => NEW_PORT,
        };
        Backend {
            address: backend_address(self.plan.family, id.0 as u8).into(),
            port: port.into(),
            state: BackendState::ENABLED,
            service,
            generation: 1,
            neighbour: self.plan.backend,
            // Only tunnels look at these two.
            source: backend_address(self.plan.family, 254).into(),
            mtu: 1500,
        }
    }

    fn service(&mut self, id: ServiceId, backends: std::ops::RangeInclusive<u32>) -> Result<()> {
        let candidates: Vec<Candidate> = backends
            .map(|backend| {
                let backend = BackendId(backend);
                let record = self.backend(backend, id);
                let identity = select::identity(record.address, record.port);
                Candidate {
                    id: backend,
                    identity,
                    weight: 1,
                }
            })
            .collect();
        let slots = select::build(select::Algorithm::Maglev, limits::SLOTS, &candidates);
        let mut table: Array<_, BackendId> = Array::create(slots.len() as u32, INNER_MAP)?;
        for (cell, backend) in slots.iter().enumerate() {
            table.set(cell as u32, backend, 0)?;
        }
        let mut tables: ArrayOfMaps<&mut MapData, Array<MapData, BackendId>> =
            self.map_mut("slots")?.try_into()?;
        tables.set(id.0, &table, 0)?;

        let address = Address::from(service_address(self.plan.family));
        let port = self.service_port(id);
        let service = Service {
            address,
            seed: select::seed("bench"),
            slots: slots.len() as u32,
            fallback: candidates[0].id,
            port: port.into(),
            mode: self.plan.mode,
            algorithm: Algorithm::MAGLEV,
            protocol: self.plan.protocol,
            timeouts: Timeouts {
                udp: IDLE,
                half_open: IDLE,
                established: IDLE,
                closing: IDLE,
            },
            ..Service::default()
        };
        self.put("services", id.0, service)?;
        self.endpoint(
            address,
            port,
            Endpoint {
                service: id,
                backend: BackendId(0),
                port: port.into(),
                role: Role::SERVICE,
                ..Endpoint::default()
            },
        )
    }

    fn flows(&mut self) -> Result<()> {
        let now = now()?;
        let flow = Flow {
            backend: BackendId(1),
            generation: 1,
            made: now,
            seen: now,
            address: service_address(self.plan.family).into(),
            neighbour: self.plan.client,
            state: match self.plan.protocol {
                ip::UDP => FlowState::UDP,
                _ => FlowState::ESTABLISHED,
            },
            flags: match self.plan.mode {
                Mode::NAT => Flow::ANSWERED,
                _ => 0,
            },
            ..Flow::default()
        };
        let keys: Vec<FlowKey> = (0..self.plan.flows).map(|index| self.key(index)).collect();
        let mut flows: HashMap<&mut MapData, FlowKey, Flow> = self.map_mut("flows")?.try_into()?;
        for key in keys {
            flows
                .insert(key, flow, 0)
                .context("cannot put a flow into the table")?;
        }
        self.check_flows()
    }

    /// The key of the flow of [`KNOWN`] with this number.
    fn key(&self, index: u32) -> FlowKey {
        flow_key(self.plan.family, index)
    }

    fn endpoint(&mut self, address: Address, port: u16, endpoint: Endpoint) -> Result<()> {
        let key = EndpointKey {
            address,
            port: port.into(),
            protocol: self.plan.protocol,
            nth: 0,
        };
        let mut endpoints: HashMap<&mut MapData, EndpointKey, Endpoint> =
            self.map_mut("endpoints")?.try_into()?;
        endpoints.insert(key, endpoint, 0)?;
        Ok(())
    }

    fn put<V: aya::Pod>(&mut self, map: &str, index: u32, value: V) -> Result<()> {
        let mut array: Array<&mut MapData, V> = self.map_mut(map)?.try_into()?;
        array
            .set(index, value, 0)
            .with_context(|| format!("cannot write map {map}"))?;
        Ok(())
    }
}

/// The address of the services.
pub(crate) fn service_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10)),
    }
}

/// The address of backend number `id`.
pub(crate) fn backend_address(family: Family, id: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, id)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, id.into())),
    }
}

/// The address of the client of flow `index`.
pub(crate) fn client_address(family: Family, index: u32) -> IpAddr {
    let last = flow::client(index).address;
    match family {
        Family::V4 => IpAddr::from(last),
        Family::V6 => {
            // RFC 5180 section 8: the range set aside for benchmarks.
            let mut address = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0).octets();
            address[12..].copy_from_slice(&last);
            IpAddr::from(address)
        }
    }
}

/// The key of a flow of [`KNOWN`].
pub(crate) fn flow_key(family: Family, index: u32) -> FlowKey {
    FlowKey {
        client: client_address(family, index).into(),
        service: KNOWN,
        client_port: Port(flow::client(index).port),
        service_port: KNOWN_PORT.into(),
    }
}

/// The clock of the data path.
fn now() -> Result<Ticks> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let nanos = time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned();
    Ok(Ticks::from_nanos(nanos))
}
