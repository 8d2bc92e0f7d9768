//! The difference between two tables, in the order in which it is carried out.

use std::collections::BTreeSet;

use lb_common::abi::{Backend, BackendId, BackendState, Endpoint, EndpointKey, Role, ServiceId};

use super::{Change, Tables, Way, is_there, removed};

/// The steps that make `current` into `desired`; none if they are equal.
///
/// After every single step each endpoint leads to a service that is there, and each slot that a
/// packet can reach names a backend of that service.
pub fn plan(current: &Tables, desired: &Tables) -> Vec<Change> {
    let Some(cleared) = without_reused(current, desired) else {
        return direct(current, desired);
    };
    let mut changes = direct(current, &cleared);
    changes.extend(direct(&cleared, desired));
    changes
}

/// `current` without the services and backends whose id means another one in `desired`; nothing
/// if there are none. Ids are not reused soon, so this is for an agent that has lost its ids.
fn without_reused(current: &Tables, desired: &Tables) -> Option<Tables> {
    let services: BTreeSet<ServiceId> = current
        .services
        .iter()
        .filter(|(id, service)| {
            desired
                .services
                .get(id)
                .is_some_and(|d| d.seed != service.seed)
        })
        .map(|(&id, _)| id)
        .collect();
    let backends: BTreeSet<BackendId> = current
        .backends
        .iter()
        .filter(|(id, backend)| {
            is_there(backend)
                && (services.contains(&backend.service)
                    || desired
                        .backends
                        .get(id)
                        .is_some_and(|d| is_there(d) && !is_same(backend, d)))
        })
        .map(|(&id, _)| id)
        .collect();
    if services.is_empty() && backends.is_empty() {
        return None;
    }

    let mut cleared = current.clone();
    cleared.services.retain(|id, _| !services.contains(id));
    cleared.slots.retain(|id, _| !services.contains(id));
    for id in &backends {
        if let Some(backend) = cleared.backends.get_mut(id) {
            *backend = removed(backend.generation);
        }
    }
    for (id, service) in &mut cleared.services {
        let Some(slots) = cleared.slots.get_mut(id) else {
            continue;
        };
        if slots.iter().any(|b| backends.contains(b)) {
            *slots = slots
                .iter()
                .copied()
                .filter(|b| !backends.contains(b))
                .collect();
            service.slots = slots.len() as u32;
        }
        if backends.contains(&service.fallback) {
            service.fallback = slots.first().copied().unwrap_or_default();
        }
    }
    cleared.slots.retain(|_, slots| !slots.is_empty());
    // A chain of shared backend endpoints would need renumbering: all of it goes, and comes back
    // with the second half of the plan.
    let chains: BTreeSet<EndpointKey> = current
        .endpoints
        .iter()
        .filter(|(_, e)| services.contains(&e.service) || backends.contains(&e.backend))
        .map(|(&key, _)| EndpointKey { nth: 0, ..key })
        .collect();
    cleared
        .endpoints
        .retain(|&key, _| !chains.contains(&EndpointKey { nth: 0, ..key }));
    let reached: BTreeSet<_> = cleared
        .endpoints
        .iter()
        .filter(|(_, e)| e.role == Role::SERVICE)
        .map(|(key, _)| key.address)
        .collect();
    cleared.addresses.retain(|a| reached.contains(&a.address));
    Some(cleared)
}

/// The plan where no id changes its meaning.
fn direct(current: &Tables, desired: &Tables) -> Vec<Change> {
    let mut changes = states(current, desired);
    changes.extend(additions(current, desired));
    changes.extend(removals(current, desired));
    changes
}

/// The state words: one write each, before anything that takes longer.
fn states(current: &Tables, desired: &Tables) -> Vec<Change> {
    current
        .backends
        .iter()
        .filter(|(_, backend)| is_there(backend))
        .filter_map(|(&id, backend)| {
            let state = desired
                .backends
                .get(&id)
                .map_or(BackendState::ABSENT, |d| d.state);
            (state != backend.state).then_some(Change::State { backend: id, state })
        })
        .collect()
}

fn additions(current: &Tables, desired: &Tables) -> Vec<Change> {
    let mut changes = Vec::new();
    for (&id, backend) in desired.backends.iter().filter(|(_, b)| is_there(b)) {
        let known = current.backends.get(&id);
        if known.is_none_or(|c| !is_equal_but_state(c, backend)) {
            changes.push(Change::PutBackend(id, *backend));
        }
    }

    // A new service is reached by nobody yet, so its parts may come before its way back; in one
    // that is reached, a backend's way back comes before the slots that name it.
    let (new, known): (Vec<ServiceId>, Vec<ServiceId>) = desired
        .services
        .keys()
        .partition(|id| !current.services.contains_key(id));
    for id in new {
        changes.extend(service(id, current, desired));
    }
    changes.extend(endpoints(Role::BACKEND, current, desired));
    for id in known {
        changes.extend(service(id, current, desired));
    }
    changes.extend(endpoints(Role::SERVICE, current, desired));

    let missing = desired.addresses.difference(&current.addresses);
    changes.extend(missing.cloned().map(Change::AddAddress));
    changes
}

/// A service's record and lookup table. The record never promises more cells than there are.
fn service(id: ServiceId, current: &Tables, desired: &Tables) -> Vec<Change> {
    let record = desired.services[&id];
    let put_record =
        (current.services.get(&id) != Some(&record)).then_some(Change::PutService(id, record));
    let (old, new) = (current.slots.get(&id), desired.slots.get(&id));
    let put_slots = match new {
        Some(slots) => (old != Some(slots)).then(|| Change::PutSlots(id, slots.clone())),
        None => old.map(|_| Change::RemoveSlots(id)),
    };
    let shrinks = old.map_or(0, |s| s.len()) > new.map_or(0, |s| s.len());
    let ordered = if shrinks {
        [put_record, put_slots]
    } else {
        [put_slots, put_record]
    };
    ordered.into_iter().flatten().collect()
}

/// Endpoints to write. Of those that share a backend the last comes first: an
/// [`Endpoint::more`] always has a next.
fn endpoints(role: Role, current: &Tables, desired: &Tables) -> Vec<Change> {
    desired
        .endpoints
        .iter()
        .rev()
        .filter(|(key, endpoint)| {
            endpoint.role == role && current.endpoints.get(key) != Some(endpoint)
        })
        .map(|(&key, &endpoint): (_, &Endpoint)| Change::PutEndpoint(key, endpoint))
        .collect()
}

/// What is no longer wanted, in the reverse of the order in which it came.
fn removals(current: &Tables, desired: &Tables) -> Vec<Change> {
    let endpoints = |role: Role| {
        current
            .endpoints
            .iter()
            .filter(move |(key, e)| e.role == role && !desired.endpoints.contains_key(key))
            .map(|(&key, _)| Change::RemoveEndpoint(key))
    };
    let services = || {
        current
            .services
            .keys()
            .copied()
            .filter(|id| !desired.services.contains_key(id))
    };
    let addresses = current.addresses.difference(&desired.addresses).cloned();
    let backends = current
        .backends
        .iter()
        .filter(|&(&id, backend)| is_there(backend) && !desired.has_backend(id))
        .map(|(&id, _)| id);

    let mut changes: Vec<Change> = addresses.map(Change::RemoveAddress).collect();
    changes.extend(endpoints(Role::SERVICE));
    changes.extend(endpoints(Role::BACKEND));
    changes.extend(services().map(Change::RemoveService));
    changes.extend(
        services()
            .filter(|id| current.slots.contains_key(id))
            .map(Change::RemoveSlots),
    );
    changes.extend(backends.map(Change::RemoveBackend));
    changes
}

/// Whether both are the same backend, whatever its state and way.
fn is_same(a: &Backend, b: &Backend) -> bool {
    (a.service, a.address, a.port) == (b.service, b.address, b.port)
}

/// Whether nothing but the state word and the way differ.
fn is_equal_but_state(a: &Backend, b: &Backend) -> bool {
    let bare = |backend: &Backend| Backend {
        state: BackendState::ABSENT,
        ..Way::default().on(*backend)
    };
    bare(a) == bare(b)
}

#[cfg(test)]
mod tests;
