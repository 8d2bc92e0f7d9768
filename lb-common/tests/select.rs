//! Which backend a new flow gets: the same on every load balancer, and never one that takes none.

use std::net::SocketAddr;

use lb_common::{
    abi::{Algorithm, BackendId, BackendState, Mode, Reason, ServiceId, limits},
    host::{
        Balancer,
        frame::Frame,
        world::{BACKENDS, ServiceSpec, World, at, neighbour},
    },
    wire::{
        ip::TCP,
        l4::{ACK, SYN},
    },
};

const SLOTS: u32 = 251;

fn client(n: u16) -> SocketAddr {
    SocketAddr::new([198, 51, 100, (n % 200) as u8].into(), 30_000 + n)
}

/// A `nat` service called "web" of so many backends, whose ids begin at `first`.
fn balancer(
    algorithm: Algorithm,
    address: &str,
    service: u32,
    first: u32,
    backends: u8,
) -> (Balancer, ServiceId) {
    let mut world = World::new();
    let spec = ServiceSpec {
        name: "web",
        at: at(address),
        protocol: TCP,
        mode: Mode::NAT,
        algorithm,
    };
    let id = world.add_service(service, &spec);
    for n in 0..backends {
        let socket = SocketAddr::new([10, 0, 1, n + 1].into(), 8080);
        let hop = neighbour(BACKENDS, n + 1);
        world.add_backend(first + u32::from(n), id, socket, 1, hop);
    }
    world.rebuild(id, SLOTS);
    (Balancer::new(world), id)
}

fn service(lb: &Balancer, id: ServiceId) -> SocketAddr {
    let record = lb.world.tables.services[&id];
    SocketAddr::new(record.address.ip(), record.port.number())
}

/// The address that a client's first packet is sent to; none if it is dropped.
fn picked(lb: &mut Balancer, id: ServiceId, n: u16, flags: u8) -> Option<SocketAddr> {
    let outcome = lb.from_client(&Frame::tcp(client(n), service(lb, id), flags));
    match outcome.reason {
        Reason::ToBackend => Frame::read(&outcome.frame).map(|f| f.destination_socket()),
        _ => None,
    }
}

#[test]
fn two_load_balancers_pick_alike_whatever_ids_and_addresses_they_use() {
    for algorithm in [Algorithm::MAGLEV, Algorithm::SOURCE_HASH] {
        let (mut one, a) = balancer(algorithm, "203.0.113.10:80", 1, 1, 7);
        let (mut other, b) = balancer(algorithm, "192.0.2.77:80", 5, 300, 7);
        let mut met = std::collections::BTreeSet::new();
        for n in 0..500 {
            // In the middle of a connection, as after the other one has died.
            let pick = picked(&mut one, a, n, SYN);
            assert_eq!(pick, picked(&mut other, b, n, ACK));
            met.insert(pick);
        }
        assert_eq!(met.len(), 7);
    }
}

#[test]
fn backends_that_take_no_new_flow_are_passed_over_alike() {
    let (mut one, a) = balancer(Algorithm::MAGLEV, "203.0.113.10:80", 1, 1, 7);
    let (mut other, b) = balancer(Algorithm::MAGLEV, "192.0.2.77:80", 5, 300, 7);
    for n in [1, 4] {
        one.world
            .set_state(BackendId(1 + n), BackendState::DISABLED);
        other
            .world
            .set_state(BackendId(300 + n), BackendState::DRAINING);
    }
    for n in 0..500 {
        assert_eq!(picked(&mut one, a, n, SYN), picked(&mut other, b, n, SYN));
    }
}

#[test]
fn source_hash_counts_the_address_alone() {
    let (mut lb, id) = balancer(Algorithm::SOURCE_HASH, "203.0.113.10:80", 1, 1, 7);
    for n in 0..100 {
        // The same address again comes after 200 clients, from another port.
        assert_eq!(
            picked(&mut lb, id, n, SYN),
            picked(&mut lb, id, n + 200, SYN)
        );
    }
}

#[test]
fn round_robin_takes_turns_from_the_cpus_own_start() {
    for cpu in [0, 1, 5] {
        let (mut lb, id) = balancer(Algorithm::ROUND_ROBIN, "203.0.113.10:80", 1, 1, 3);
        lb.flows.cpu = cpu;
        let wheel = lb.world.tables.slots[&id].clone();
        for n in 0..9u16 {
            picked(&mut lb, id, n, SYN);
            let cell = (u32::from(n) + cpu) as usize % wheel.len();
            assert_eq!(lb.backend(id, client(n)), Some(wheel[cell]));
        }
    }
}

#[test]
fn one_word_changes_the_very_next_flow() {
    for algorithm in [
        Algorithm::MAGLEV,
        Algorithm::ROUND_ROBIN,
        Algorithm::SOURCE_HASH,
    ] {
        for state in [
            BackendState::DRAINING,
            BackendState::DISABLED,
            BackendState::ABSENT,
        ] {
            let (mut lb, id) = balancer(algorithm, "203.0.113.10:80", 1, 1, 4);
            let cells = lb.world.tables.slots.clone();
            for n in 0..200 {
                picked(&mut lb, id, n, SYN);
            }
            let gone = BackendId(2);
            assert!(lb.flows.backends[&gone].new_flows > 20);
            let before = lb.flows.backends[&gone].new_flows;
            lb.world.set_state(gone, state);
            for n in 200..1000 {
                assert!(picked(&mut lb, id, n, SYN).is_some());
            }
            assert_eq!(lb.flows.backends[&gone].new_flows, before);
            lb.world.set_state(gone, BackendState::ENABLED);
            for n in 1000..1200 {
                picked(&mut lb, id, n, SYN);
            }
            assert!(lb.flows.backends[&gone].new_flows > before);
            assert_eq!(lb.world.tables.slots, cells, "no table was rebuilt");
        }
    }
}

#[test]
fn after_eight_cells_the_fallback_serves() {
    let (mut lb, id) = balancer(Algorithm::ROUND_ROBIN, "203.0.113.10:80", 1, 1, 40);
    let wheel = lb.world.tables.slots[&id].clone();
    // The first turn sees eight cells of disabled backends; the ninth would take it.
    for &backend in &wheel[..limits::ATTEMPTS as usize] {
        lb.world.set_state(backend, BackendState::DISABLED);
    }
    let fallback = wheel[20];
    if let Some(service) = lb.world.tables.services.get_mut(&id) {
        service.fallback = fallback;
    }
    assert!(picked(&mut lb, id, 1, SYN).is_some());
    assert_eq!(lb.backend(id, client(1)), Some(fallback));
    assert!(picked(&mut lb, id, 2, SYN).is_some());
    let ninth = wheel[limits::ATTEMPTS as usize];
    assert_eq!(lb.backend(id, client(2)), Some(ninth));

    lb.world.set_state(fallback, BackendState::DRAINING);
    lb.flows.rotations.clear();
    assert_eq!(picked(&mut lb, id, 3, SYN), None);
    assert_eq!(lb.flows.packets(Reason::NoBackend), 1);
}
