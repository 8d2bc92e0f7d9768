//! What the maps should hold for a configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    abi::{
        self, Address, Backend, BackendId, BackendState, Endpoint, EndpointKey, Port, Role,
        ServiceId,
    },
    datapath::select::{self, Algorithm, Candidate},
};

use super::{Ids, Slots, Tables, is_there};
use crate::config::{self, Config, Mode};

/// Lookup tables that were built, with what they were built from: building one takes
/// milliseconds, and most changes leave most tables as they are.
#[derive(Clone, Debug, Default)]
pub struct Built(BTreeMap<ServiceId, (Ingredients, Slots)>);

/// All that a lookup table depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ingredients {
    algorithm: Algorithm,
    size: u32,
    candidates: Vec<Candidate>,
}

impl Built {
    fn slots(&mut self, id: ServiceId, ingredients: Ingredients) -> Slots {
        if let Some((known, slots)) = self.0.get(&id)
            && *known == ingredients
        {
            return slots.clone();
        }
        let slots: Slots = select::build(
            ingredients.algorithm,
            ingredients.size,
            &ingredients.candidates,
        )
        .into();
        self.0.insert(id, (ingredients, slots.clone()));
        slots
    }
}

/// What the maps should hold for `config`, but for the addresses on interfaces, which are not
/// known here. `ids` are assigned for it. `current` tells the generations of backend ids.
pub fn desired(config: &Config, ids: &Ids, current: &Tables, built: &mut Built) -> Tables {
    let mut tables = Tables::default();
    let mut ways_back: BTreeMap<EndpointKey, Vec<Endpoint>> = BTreeMap::new();
    for service in &config.services {
        let Some(id) = ids.service(&service.name) else {
            unreachable!("ids are assigned for this configuration");
        };
        put_service(service, id, ids, current, built, &mut tables);
        for &address in &service.addresses {
            let key = endpoint_key(address, service.port, service);
            let endpoint = endpoint(id, BackendId::default(), service, Role::SERVICE);
            tables.endpoints.insert(key, endpoint);
        }
        if service.mode != Mode::Nat {
            continue;
        }
        for backend in &service.backends {
            let Some(backend_id) = ids.backend(&service.name, backend.address) else {
                unreachable!("ids are assigned for this configuration");
            };
            let key = endpoint_key(backend.address.ip(), backend.address.port(), service);
            let endpoint = endpoint(id, backend_id, service, Role::BACKEND);
            ways_back.entry(key).or_default().push(endpoint);
        }
    }
    for (key, sharers) in ways_back {
        let last = sharers.len() - 1;
        for (nth, endpoint) in sharers.into_iter().enumerate() {
            let key = EndpointKey {
                nth: nth as u8,
                ..key
            };
            let more = u8::from(nth < last);
            tables.endpoints.insert(key, Endpoint { more, ..endpoint });
        }
    }
    built.0.retain(|id, _| tables.services.contains_key(id));
    // What is left of removed backends stays.
    for (&id, backend) in &current.backends {
        tables
            .backends
            .entry(id)
            .or_insert(super::removed(backend.generation));
    }
    tables
}

fn endpoint_key(address: IpAddr, port: u16, service: &config::Service) -> EndpointKey {
    EndpointKey {
        address: Address::from(address),
        port: Port::from(port),
        protocol: service.protocol.abi(),
        nth: 0,
    }
}

fn endpoint(id: ServiceId, backend: BackendId, service: &config::Service, role: Role) -> Endpoint {
    Endpoint {
        service: id,
        backend,
        port: Port::from(service.port),
        role,
        ..Endpoint::default()
    }
}

/// A service's record, its backends and its lookup table.
fn put_service(
    service: &config::Service,
    id: ServiceId,
    ids: &Ids,
    current: &Tables,
    built: &mut Built,
    tables: &mut Tables,
) {
    let mut candidates = Vec::new();
    for backend in &service.backends {
        let Some(backend_id) = ids.backend(&service.name, backend.address) else {
            unreachable!("ids are assigned for this configuration");
        };
        let record = record(backend, id, service.mode, current.backends.get(&backend_id));
        tables.backends.insert(backend_id, record);
        if record.state.is_eligible() && backend.weight > 0 {
            candidates.push(Candidate {
                id: backend_id,
                identity: identity(backend),
                weight: u32::from(backend.weight),
            });
        }
    }
    let fallback = candidates.iter().min_by_key(|c| (c.identity, c.id));
    let fallback = fallback.map_or(BackendId::default(), |c| c.id);
    let slots = built.slots(
        id,
        Ingredients {
            algorithm: service.algorithm.select(),
            size: service.slots,
            candidates,
        },
    );
    tables.services.insert(
        id,
        abi::Service {
            address: Address::from(service.addresses[0]),
            seed: select::seed(&service.name),
            slots: slots.len() as u32,
            fallback,
            port: Port::from(service.port),
            mode: service.mode.abi(),
            algorithm: service.algorithm.abi(),
            protocol: service.protocol.abi(),
            reserved: [0; 3],
            timeouts: service.timeouts.abi(),
        },
    );
    if !slots.is_empty() {
        tables.slots.insert(id, slots);
    }
}

/// What the same backend is called on every load balancer, whatever the mode.
fn identity(backend: &config::Backend) -> u64 {
    let (ip, port) = (backend.address.ip(), backend.address.port());
    select::identity(Address::from(ip), Port::from(port))
}

/// A backend's record. An id that meant another backend before gets the next generation.
fn record(
    backend: &config::Backend,
    service: ServiceId,
    mode: Mode,
    known: Option<&Backend>,
) -> Backend {
    let address = Address::from(backend.address.ip());
    let port = match mode {
        Mode::Nat => Port::from(backend.address.port()),
        Mode::DsrL2 | Mode::DsrIpip | Mode::DsrGue => Port::default(),
    };
    let generation = match known {
        None => 0,
        Some(known) => {
            let is_it = is_there(known)
                && known.state != BackendState::ABSENT
                && (known.service, known.address, known.port) == (service, address, port);
            known.generation.wrapping_add(u32::from(!is_it))
        }
    };
    Backend {
        address,
        port,
        state: backend.state.abi(),
        service,
        generation,
        ..Backend::default()
    }
}

/// Where service addresses belong: on the attached interface whose network holds the address; if
/// there is none, on all of them, so that whichever is asked for it (ARP, ND) answers. Not here if
/// `config` leaves it to others.
///
/// `networks` are the attached interfaces, each with the networks it is on.
pub fn addresses(
    config: &Config,
    networks: &BTreeMap<String, Vec<(IpAddr, u8)>>,
) -> BTreeSet<super::HostAddress> {
    let placed = config
        .services
        .iter()
        .filter(|service| service.placement == config::Placement::Agent)
        .flat_map(|service| service.addresses.iter().copied());
    let mut addresses = BTreeSet::new();
    for address in placed {
        let on_link: Vec<&String> = networks
            .iter()
            .filter(|(_, networks)| networks.iter().any(|&network| holds(network, address)))
            .map(|(name, _)| name)
            .collect();
        let interfaces = if on_link.is_empty() {
            networks.keys().collect()
        } else {
            on_link
        };
        addresses.extend(interfaces.into_iter().map(|interface| super::HostAddress {
            interface: interface.clone(),
            address: Address::from(address),
        }));
    }
    addresses
}

fn holds((network, prefix): (IpAddr, u8), address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let shift = 128 - u32::from(prefix);
    network.is_ipv4() == address.is_ipv4()
        // A host route is an address, not a network that others are on.
        && prefix < if address.is_ipv4() { 32 } else { 128 }
        && (bits(network) ^ bits(address)).checked_shr(shift).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests;
