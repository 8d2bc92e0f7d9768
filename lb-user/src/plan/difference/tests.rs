use std::collections::BTreeMap;

use lb_common::abi::{
    Address, Algorithm, Backend, BackendId, BackendState, Endpoint, EndpointKey, Mode, Port, Role,
    Service, ServiceId,
};
use proptest::prelude::*;

use super::*;
use crate::plan::{HostAddress, Tables};

/// A service in short: its name, and its backends as (id, last byte of the address, state).
#[derive(Clone, Debug)]
struct Sketch {
    name: u32,
    backends: Vec<(u32, u8, u32)>,
    cells: usize,
}

const TCP: u8 = 6;

fn key(address: Address, port: u16, nth: u8) -> EndpointKey {
    EndpointKey {
        address,
        port: Port::from(port),
        protocol: TCP,
        nth,
    }
}

fn service_address(name: u32) -> Address {
    Address::v4([203, 0, 113, name as u8])
}

/// Tables as the agent makes them, from services by id.
fn tables(sketches: &BTreeMap<u32, Sketch>) -> Tables {
    let mut tables = Tables::default();
    let mut shared: BTreeMap<Address, Vec<Endpoint>> = BTreeMap::new();
    for (&id, sketch) in sketches {
        let service = ServiceId(id);
        let mut eligible = Vec::new();
        for &(backend, last, state) in &sketch.backends {
            let (backend, state) = (BackendId(backend), BackendState(state));
            let address = Address::v4([10, 0, 0, last]);
            tables.backends.insert(
                backend,
                Backend {
                    address,
                    port: Port::from(8080),
                    state,
                    service,
                    generation: u32::from(last),
                    ..Backend::default()
                },
            );
            shared.entry(address).or_default().push(Endpoint {
                service,
                backend,
                port: Port::from(80),
                role: Role::BACKEND,
                ..Endpoint::default()
            });
            if state.is_eligible() {
                eligible.push(backend);
            }
        }
        if !eligible.is_empty() {
            let slots = eligible
                .iter()
                .copied()
                .cycle()
                .take(sketch.cells)
                .collect();
            tables.slots.insert(service, slots);
        }
        tables.services.insert(
            service,
            Service {
                address: service_address(sketch.name),
                seed: sketch.name,
                slots: tables.slots.get(&service).map_or(0, |s| s.len() as u32),
                fallback: eligible.first().copied().unwrap_or_default(),
                port: Port::from(80),
                mode: Mode::NAT,
                algorithm: Algorithm::MAGLEV,
                protocol: TCP,
                ..Service::default()
            },
        );
        tables.endpoints.insert(
            key(service_address(sketch.name), 80, 0),
            Endpoint {
                service,
                port: Port::from(80),
                role: Role::SERVICE,
                ..Endpoint::default()
            },
        );
        tables.addresses.insert(HostAddress {
            interface: "eth1".into(),
            address: service_address(sketch.name),
        });
    }
    for (address, chain) in shared {
        let last = chain.len() - 1;
        for (nth, mut endpoint) in chain.into_iter().enumerate() {
            endpoint.more = u8::from(nth < last);
            tables
                .endpoints
                .insert(key(address, 8080, nth as u8), endpoint);
        }
    }
    tables
}

/// Few ids, names and addresses, so that two tables overlap in every way, reuse of ids included.
fn any_tables() -> impl Strategy<Value = Tables> {
    let sketch = (
        0u32..4,
        prop::collection::btree_map(1u8..5, 1u32..4, 0..4),
        1usize..6,
        any::<u8>(),
    );
    prop::collection::btree_map(1u32..5, sketch, 0..4).prop_map(|services| {
        let mut names = BTreeSet::new();
        let mut used = BTreeSet::new();
        let mut sketches = BTreeMap::new();
        for (id, (name, backends, extra, salt)) in services {
            if !names.insert(name) {
                continue;
            }
            let mut taken = Vec::new();
            for (last, state) in backends {
                let backend = 1 + (u32::from(last) + u32::from(salt % 3) * id) % 12;
                if used.insert(backend) {
                    taken.push((backend, last, state));
                }
            }
            let cells = taken.len() + extra;
            sketches.insert(
                id,
                Sketch {
                    name: name + 1,
                    backends: taken,
                    cells,
                },
            );
        }
        tables(&sketches)
    })
}

/// What a packet may meet at any time.
fn assert_whole(tables: &Tables, step: &str) {
    for (key, endpoint) in &tables.endpoints {
        let service = tables.services.get(&endpoint.service);
        assert!(service.is_some(), "{step}: {key:?} leads to no service");
        let service = service.unwrap();
        if endpoint.more != 0 {
            let next = EndpointKey {
                nth: key.nth + 1,
                ..*key
            };
            assert!(tables.endpoints.contains_key(&next), "{step}: {next:?}");
        }
        if endpoint.role == Role::BACKEND {
            assert!(tables.has_backend(endpoint.backend), "{step}: {endpoint:?}");
            continue;
        }
        let slots = tables.slots.get(&endpoint.service);
        let cells = slots.map_or(0, |s| s.len());
        assert!(cells >= service.slots as usize, "{step}: {service:?}");
        for id in slots
            .iter()
            .flat_map(|s| s.iter())
            .chain(Some(&service.fallback).filter(|&&id| id != BackendId::default()))
        {
            let owner = tables.backends.get(id).map(|b| b.service);
            assert_eq!(owner, Some(endpoint.service), "{step}: slot with {id:?}");
        }
    }
    for address in &tables.addresses {
        assert!(
            tables
                .endpoints
                .iter()
                .any(|(k, e)| e.role == Role::SERVICE && k.address == address.address),
            "{step}: {address:?} stands without its service"
        );
    }
}

/// Removed backends leave only a generation, which is not compared.
fn live(mut tables: Tables) -> Tables {
    tables.backends.retain(|_, b| is_there(b));
    tables
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn carried_out_step_by_step_it_gives_the_desired_and_is_whole_at_every_step(
        current in any_tables(),
        desired in any_tables(),
    ) {
        let mut tables = current.clone();
        assert_whole(&tables, "before");
        for change in plan(&current, &desired) {
            tables.apply(&change);
            assert_whole(&tables, &format!("{change:?}"));
        }
        prop_assert_eq!(live(tables.clone()), live(desired.clone()));
        prop_assert_eq!(plan(&tables, &desired), vec![]);
    }

    #[test]
    fn states_of_kept_backends_come_first(current in any_tables(), desired in any_tables()) {
        if without_reused(&current, &desired).is_none() {
            let changes = plan(&current, &desired);
            let words = changes.iter().filter(|c| matches!(c, Change::State { .. })).count();
            for change in &changes[..words] {
                prop_assert!(matches!(change, Change::State { .. }), "{:?}", change);
            }
        }
    }

    #[test]
    fn nothing_to_do_is_an_empty_plan(tables in any_tables()) {
        prop_assert_eq!(plan(&tables, &tables), vec![]);
    }
}

fn web(backends: &[(u32, u8, u32)], cells: usize) -> Tables {
    tables(&BTreeMap::from([(
        1,
        Sketch {
            name: 1,
            backends: backends.to_vec(),
            cells,
        },
    )]))
}

#[test]
fn a_drained_backend_costs_one_word_before_the_table() {
    let changes = plan(
        &web(&[(1, 1, 1), (2, 2, 1)], 7),
        &web(&[(1, 1, 2), (2, 2, 1)], 7),
    );
    assert_eq!(
        changes[0],
        Change::State {
            backend: BackendId(1),
            state: BackendState::DRAINING
        }
    );
    assert!(matches!(changes[1], Change::PutSlots(ServiceId(1), _)));
    assert!(matches!(changes[2], Change::PutService(ServiceId(1), _)));
    assert_eq!(changes.len(), 3);
}

#[test]
fn a_neighbour_is_no_reason_to_write() {
    let desired = web(&[(1, 1, 1)], 7);
    let mut current = desired.clone();
    current
        .backends
        .get_mut(&BackendId(1))
        .unwrap()
        .neighbour
        .ifindex = 3;
    assert_eq!(plan(&current, &desired), vec![]);
}

#[test]
fn a_service_without_backends_left_loses_its_table_last() {
    let changes = plan(&web(&[(1, 1, 1)], 7), &web(&[], 7));
    assert!(matches!(
        changes[0],
        Change::State {
            state: BackendState::ABSENT,
            ..
        }
    ));
    assert!(matches!(changes[1], Change::PutService(_, s) if s.slots == 0));
    assert_eq!(changes[2], Change::RemoveSlots(ServiceId(1)));
    assert!(matches!(changes[3], Change::RemoveEndpoint(_)));
    assert_eq!(changes[4], Change::RemoveBackend(BackendId(1)));
}
