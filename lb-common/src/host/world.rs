//! A set-up of services and backends, filled into [`HostTables`] as the agent fills the maps.
//!
//! [`World::new`] is an empty one to build on, [`World::standard`] the fixed one that the data
//! path's tests, the fuzzer and the kernel's tests share.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use crate::{
    abi::{
        Address, Algorithm, Backend, BackendId, BackendState, Endpoint, EndpointKey, Mac, Mode,
        Neighbour, Port, Role, Service, ServiceId, Ticks, Timeouts, Tunnel,
    },
    datapath::select::{self, Candidate},
    host::{HostTables, Route},
    wire::ip::{TCP, UDP},
};

/// Index of the interface behind which clients are.
pub const CLIENTS: u32 = 2;
/// Index of the interface behind which most backends are.
pub const BACKENDS: u32 = 4;
/// The load balancer's MAC address on [`CLIENTS`].
pub const CLIENTS_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// The router's MAC address behind [`CLIENTS`].
pub const ROUTER_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
/// The load balancer's MAC address on [`BACKENDS`].
pub const BACKENDS_MAC: Mac = Mac([2, 0, 0, 1, 0, 1]);

/// UDP destination port of GUE in the standard set-up.
pub const GUE_PORT: u16 = 6080;

/// Cells in the lookup tables of the standard services.
const SLOTS: u32 = 251;

/// Idle times as configured by default: UDP 30 s, half-open 10 s, established 350 s, closing 10 s.
pub const TIMEOUTS: Timeouts = Timeouts {
    udp: Ticks(30 * Ticks::PER_SECOND),
    half_open: Ticks(10 * Ticks::PER_SECOND),
    established: Ticks(350 * Ticks::PER_SECOND),
    closing: Ticks(10 * Ticks::PER_SECOND),
};

/// Services, backends, and what is known of the network.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The maps' entries.
    pub tables: HostTables,
    /// The backends' weights, from which the lookup tables are made.
    pub weights: BTreeMap<BackendId, u32>,
}

/// What makes a service.
#[derive(Clone, Copy, Debug)]
pub struct ServiceSpec {
    /// Its name, which seeds its choices.
    pub name: &'static str,
    /// Address and port.
    pub at: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// How its packets are forwarded.
    pub mode: Mode,
    /// How its backends are chosen.
    pub algorithm: Algorithm,
}

/// An address and port from its usual notation.
///
/// # Panics
///
/// If it is none.
pub fn at(text: &str) -> SocketAddr {
    match text.parse() {
        Ok(socket) => socket,
        Err(_) => panic!("{text} is no address and port"),
    }
}

/// The neighbour with the MAC address that ends in `n`, behind an interface.
pub const fn neighbour(ifindex: u32, n: u8) -> Neighbour {
    Neighbour {
        ifindex,
        destination: Mac([2, 0, 0, ifindex as u8, 1, n]),
        source: match ifindex {
            CLIENTS => CLIENTS_MAC,
            _ => BACKENDS_MAC,
        },
    }
}

impl World {
    /// No services; the load balancer has one address of each family on each of its two
    /// interfaces, and routes to the networks behind them.
    pub fn new() -> Self {
        let mut world = Self::default();
        for local in ["192.0.2.1", "10.0.1.254", "2001:db8:0:1::1", "fd00:1::ff"] {
            world.add_local(local.parse().expect("it is an address"));
        }
        let router = Neighbour {
            ifindex: CLIENTS,
            destination: ROUTER_MAC,
            source: CLIENTS_MAC,
        };
        // Clients, behind the router; a few backends that the agent has not resolved.
        for (network, prefix, neighbour) in [
            ("198.51.100.0", 96 + 24, router),
            ("2001:db8:c::", 48, router),
            ("10.0.2.0", 96 + 24, neighbour(BACKENDS, 200)),
            ("fd00:2::", 64, neighbour(BACKENDS, 200)),
        ] {
            let network: IpAddr = network.parse().expect("it is an address");
            world.tables.routes.push(Route {
                network: network.into(),
                prefix,
                mtu: 1500,
                neighbour,
            });
        }
        world
    }

    /// Gives the load balancer an address.
    pub fn add_local(&mut self, address: IpAddr) {
        self.tables.locals.insert(address.into());
    }

    /// Adds a service under an id of the caller's choice, its address being one of the load
    /// balancer's own.
    pub fn add_service(&mut self, id: u32, spec: &ServiceSpec) -> ServiceId {
        let id = ServiceId(id);
        let address = Address::from(spec.at.ip());
        let port = Port::from(spec.at.port());
        let service = Service {
            address,
            seed: select::seed(spec.name),
            port,
            mode: spec.mode,
            algorithm: spec.algorithm,
            protocol: spec.protocol,
            timeouts: TIMEOUTS,
            ..Service::default()
        };
        self.tables.services.insert(id, service);
        let endpoint = Endpoint {
            service: id,
            port,
            role: Role::SERVICE,
            ..Endpoint::default()
        };
        self.tables
            .endpoints
            .insert(key(address, port, spec.protocol, 0), endpoint);
        self.add_local(spec.at.ip());
        id
    }

    /// Adds an enabled backend of a service under an id of the caller's choice, with its way back
    /// if the service's mode has one. Shared ones are added one service after the other.
    pub fn add_backend(
        &mut self,
        id: u32,
        service: ServiceId,
        socket: SocketAddr,
        weight: u32,
        neighbour: Neighbour,
    ) -> BackendId {
        let id = BackendId(id);
        let record = self.tables.services[&service];
        let address = Address::from(socket.ip());
        let port = Port::from(socket.port());
        let is_tunnel = matches!(record.mode, Mode::DSR_IPIP | Mode::DSR_GUE);
        let source = match is_tunnel {
            true => Address::from(outer_source(socket.is_ipv4())),
            false => Address::default(),
        };
        let generation = self
            .tables
            .backends
            .get(&id)
            .map_or(1, |b| b.generation + 1);
        let backend = Backend {
            address,
            port,
            state: BackendState::ENABLED,
            service,
            generation,
            neighbour,
            source,
            mtu: 1500,
        };
        self.tables.backends.insert(id, backend);
        self.weights.insert(id, weight);
        if record.mode == Mode::NAT {
            let mut nth = 0;
            while let Some(before) =
                self.tables
                    .endpoints
                    .get_mut(&key(address, port, record.protocol, nth))
            {
                before.more = 1;
                nth += 1;
            }
            let endpoint = Endpoint {
                service,
                backend: id,
                port: record.port,
                role: Role::BACKEND,
                ..Endpoint::default()
            };
            self.tables
                .endpoints
                .insert(key(address, port, record.protocol, nth), endpoint);
        }
        id
    }

    /// Writes a backend's state word, and nothing else.
    pub fn set_state(&mut self, id: BackendId, state: BackendState) {
        if let Some(backend) = self.tables.backends.get_mut(&id) {
            backend.state = state;
        }
    }

    /// Removes a backend that no other service shares, keeping its generation.
    pub fn remove_backend(&mut self, id: BackendId) {
        let Some(backend) = self.tables.backends.get_mut(&id) else {
            return;
        };
        let Backend {
            service,
            generation,
            ..
        } = *backend;
        *backend = Backend {
            generation,
            ..Backend::default()
        };
        self.weights.remove(&id);
        self.tables
            .endpoints
            .retain(|_, endpoint| endpoint.role != Role::BACKEND || endpoint.backend != id);
        self.rebuild(service, SLOTS);
    }

    /// Builds a service's lookup table from its enabled backends.
    pub fn rebuild(&mut self, id: ServiceId, size: u32) {
        let mut candidates: Vec<Candidate> = self
            .tables
            .backends
            .iter()
            .filter(|(_, backend)| backend.service == id && backend.state.is_eligible())
            .map(|(&id, backend)| Candidate {
                id,
                identity: select::identity(backend.address, backend.port),
                weight: self.weights.get(&id).copied().unwrap_or_default(),
            })
            .filter(|candidate| candidate.weight > 0)
            .collect();
        candidates.sort_by_key(|candidate| candidate.identity);
        let Some(service) = self.tables.services.get_mut(&id) else {
            return;
        };
        let algorithm = select::Algorithm::of(service.algorithm).expect("specs name algorithms");
        let cells = select::build(algorithm, size, &candidates);
        service.slots = cells.len() as u32;
        service.fallback = candidates.first().map(|c| c.id).unwrap_or_default();
        self.tables.slots.insert(id, cells);
    }

    /// The fixed set-up: every mode with TCP and UDP over IPv4 and IPv6, all algorithms, backends
    /// of every state behind both interfaces, resolved and not, two services that share their
    /// backends, one without backends, one that is just being removed, and tunnels to backends of
    /// both families, whose outer IPv4 source varies.
    pub fn standard() -> Self {
        let mut world = Self::new();
        let specs = [
            ("web4", "203.0.113.10:80", TCP, Mode::NAT, Algorithm::MAGLEV),
            (
                "dns4",
                "203.0.113.10:53",
                UDP,
                Mode::NAT,
                Algorithm::ROUND_ROBIN,
            ),
            (
                "web6",
                "[2001:db8::10]:80",
                TCP,
                Mode::NAT,
                Algorithm::SOURCE_HASH,
            ),
            (
                "dns6",
                "[2001:db8::10]:53",
                UDP,
                Mode::NAT,
                Algorithm::MAGLEV,
            ),
            (
                "l2-web4",
                "203.0.113.20:80",
                TCP,
                Mode::DSR_L2,
                Algorithm::MAGLEV,
            ),
            (
                "l2-dns4",
                "203.0.113.20:53",
                UDP,
                Mode::DSR_L2,
                Algorithm::SOURCE_HASH,
            ),
            (
                "l2-web6",
                "[2001:db8::20]:80",
                TCP,
                Mode::DSR_L2,
                Algorithm::ROUND_ROBIN,
            ),
            (
                "l2-dns6",
                "[2001:db8::20]:53",
                UDP,
                Mode::DSR_L2,
                Algorithm::MAGLEV,
            ),
            (
                "shared-a",
                "203.0.113.30:80",
                TCP,
                Mode::NAT,
                Algorithm::MAGLEV,
            ),
            (
                "shared-b",
                "203.0.113.31:8080",
                TCP,
                Mode::NAT,
                Algorithm::MAGLEV,
            ),
            (
                "empty",
                "203.0.113.40:80",
                TCP,
                Mode::NAT,
                Algorithm::MAGLEV,
            ),
            (
                "leaving",
                "203.0.113.41:80",
                TCP,
                Mode::NAT,
                Algorithm::MAGLEV,
            ),
        ];
        for (id, (name, socket, protocol, mode, algorithm)) in (1..).zip(specs) {
            let spec = ServiceSpec {
                name,
                at: at(socket),
                protocol,
                mode,
                algorithm,
            };
            world.add_service(id, &spec);
        }
        world.tables.services.remove(&ServiceId(12));
        world.tables.answers_per_second = u32::MAX;
        world.tables.tunnel = Tunnel {
            vary4: [0, 0, 0, 0xff],
            gue_port: Port::from(GUE_PORT),
            ..Tunnel::default()
        };
        let mut next = 1;
        for (service, v4, port) in [
            (1, true, 8080),
            (2, true, 53),
            (3, false, 8080),
            (4, false, 53),
            (5, true, 80),
            (6, true, 53),
            (7, false, 80),
            (8, false, 53),
        ] {
            next = world.add_family(ServiceId(service), v4, port, next);
        }
        for service in [9, 10] {
            for n in [61, 62] {
                let socket = SocketAddr::new(backend_address(true, 1, n), 80);
                world.add_backend(next, ServiceId(service), socket, 1, neighbour(BACKENDS, n));
                next += 1;
            }
            world.rebuild(ServiceId(service), SLOTS);
        }
        for service in world.add_tunnel_services(13) {
            next = world.add_tunnel_backends(service, next);
        }
        world
    }

    /// Four services of each tunnel mode, from id `first` on.
    fn add_tunnel_services(&mut self, first: u32) -> Vec<ServiceId> {
        let specs = [
            ("ipip-web4", "203.0.113.50:80", TCP, Mode::DSR_IPIP),
            ("ipip-dns4", "203.0.113.50:53", UDP, Mode::DSR_IPIP),
            ("ipip-web6", "[2001:db8::50]:80", TCP, Mode::DSR_IPIP),
            ("ipip-dns6", "[2001:db8::50]:53", UDP, Mode::DSR_IPIP),
            ("gue-web4", "203.0.113.60:80", TCP, Mode::DSR_GUE),
            ("gue-dns4", "203.0.113.60:53", UDP, Mode::DSR_GUE),
            ("gue-web6", "[2001:db8::60]:80", TCP, Mode::DSR_GUE),
            ("gue-dns6", "[2001:db8::60]:53", UDP, Mode::DSR_GUE),
        ];
        (first..)
            .zip(specs)
            .map(|(id, (name, socket, protocol, mode))| {
                let spec = ServiceSpec {
                    name,
                    at: at(socket),
                    protocol,
                    mode,
                    algorithm: Algorithm::MAGLEV,
                };
                self.add_service(id, &spec)
            })
            .collect()
    }

    /// Eight backends of a tunnel service, from id `first` on, odd ones over IPv4 and even ones over
    /// IPv6: two behind the backends' interface, two behind the clients' (one arm), two unresolved
    /// but routed, one that nothing leads to, one that no address of the load balancer leads to.
    fn add_tunnel_backends(&mut self, service: ServiceId, first: u32) -> u32 {
        let of_service = 100 + 8 * (service.0 as u8 - 13);
        let port = self.tables.services[&service].port.number();
        let mut next = first;
        for (n, net, neighbour) in [
            (1, 1, neighbour(BACKENDS, of_service + 1)),
            (2, 1, neighbour(BACKENDS, of_service + 2)),
            (3, 1, neighbour(CLIENTS, of_service + 3)),
            (4, 1, neighbour(CLIENTS, of_service + 4)),
            (5, 2, Neighbour::default()),
            (6, 2, Neighbour::default()),
            (7, 3, Neighbour::default()),
            (8, 1, neighbour(BACKENDS, of_service + 8)),
        ] {
            let socket = SocketAddr::new(backend_address(n % 2 == 1, net, n), port);
            let id = self.add_backend(next, service, socket, 1, neighbour);
            if n == 8
                && let Some(backend) = self.tables.backends.get_mut(&id)
            {
                backend.source = Address::default();
            }
            next += 1;
        }
        self.rebuild(service, SLOTS);
        next
    }

    /// Seven backends of a standard service, from id `first` on: two resolved behind the backends'
    /// interface, one behind the clients' (one arm), one draining, one disabled, one unresolved but
    /// routed, one that only the kernel could find.
    fn add_family(&mut self, service: ServiceId, v4: bool, port: u16, first: u32) -> u32 {
        let by_service = 8 * (service.0 as u8 - 1);
        let mut next = first;
        for (n, net, weight, neighbour) in [
            (1, 1, 1, neighbour(BACKENDS, by_service + 1)),
            (2, 1, 2, neighbour(BACKENDS, by_service + 2)),
            (3, 1, 3, neighbour(CLIENTS, by_service + 3)),
            (4, 1, 1, neighbour(BACKENDS, by_service + 4)),
            (5, 1, 1, neighbour(BACKENDS, by_service + 5)),
            (6, 2, 1, Neighbour::default()),
            (7, 3, 1, Neighbour::default()),
        ] {
            let socket = SocketAddr::new(backend_address(v4, net, n), port);
            self.add_backend(next, service, socket, weight, neighbour);
            next += 1;
        }
        // Built while all were enabled: the cells of the two that no longer are get passed over.
        self.rebuild(service, SLOTS);
        self.set_state(BackendId(first + 3), BackendState::DRAINING);
        self.set_state(BackendId(first + 4), BackendState::DISABLED);
        next
    }
}

/// The source of outer headers, before it varies.
pub fn outer_source(v4: bool) -> IpAddr {
    match v4 {
        true => [10, 99, 0, 0].into(),
        false => [0xfd00, 1, 0, 0, 0, 0, 0, 0xff].into(),
    }
}

/// `10.0.net.n` or `fd00:net::n`.
fn backend_address(v4: bool, net: u8, n: u8) -> IpAddr {
    if v4 {
        [10, 0, net, n].into()
    } else {
        [0xfd00, u16::from(net), 0, 0, 0, 0, 0, u16::from(n)].into()
    }
}

/// The key under which an endpoint is found.
pub const fn key(address: Address, port: Port, protocol: u8, nth: u8) -> EndpointKey {
    EndpointKey {
        address,
        port,
        protocol,
        nth,
    }
}
