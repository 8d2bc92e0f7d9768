//! What must change, and in which order: a pure difference between what the maps hold and what
//! they should hold.
//!
//! The order is such that no packet sees half of a change: a backend's state word first, a
//! backend and its way back before any slot names it, a service before any endpoint leads to it,
//! its address last; and the reverse on removal.

mod change;
mod desired;
mod difference;
mod ids;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::abi::{
    Address, Backend, BackendId, Endpoint, EndpointKey, Neighbour, Service, ServiceId,
};

pub use change::Change;
pub use desired::{Built, addresses, desired};
pub use difference::plan;
pub use ids::Ids;

/// The cells of one service's lookup table. Shared, because they are large and seldom change.
pub type Slots = Arc<[BackendId]>;

/// A service's address on an interface of this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress {
    /// Name of the interface.
    pub interface: String,
    /// The address, alone (`/32`, `/128`).
    pub address: Address,
}

/// What of a backend's record the network says, and not the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Where its packets go next.
    pub neighbour: Neighbour,
    /// Source of outer headers.
    pub source: Address,
    /// Longest packet, in bytes; 0: not known.
    pub mtu: u16,
}

impl Way {
    /// The way in a record.
    pub fn of(backend: &Backend) -> Self {
        let Backend {
            neighbour,
            source,
            mtu,
            ..
        } = *backend;
        Self {
            neighbour,
            source,
            mtu,
        }
    }

    /// A record with this way.
    #[must_use]
    pub fn on(self, backend: Backend) -> Backend {
        let Self {
            neighbour,
            source,
            mtu,
        } = self;
        Backend {
            neighbour,
            source,
            mtu,
            ..backend
        }
    }
}

/// What the maps hold, or should hold, as far as the agent writes them.
///
/// A record that is all zero in the kernel is not in here, with one exception: a removed backend
/// stays as a record with nothing but its [`Backend::generation`], for the next that gets the id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// What an address and port mean.
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// The services. [`Service::slots`] is the length of the service's entry in `slots`.
    pub services: BTreeMap<ServiceId, Service>,
    /// The backends. Their [`Way`] is not the plan's: it is ignored when tables are compared.
    pub backends: BTreeMap<BackendId, Backend>,
    /// The lookup tables; none for a service without a backend to offer.
    pub slots: BTreeMap<ServiceId, Slots>,
    /// The service addresses that the agent has put on interfaces. Not in a map: the agent
    /// remembers them.
    pub addresses: BTreeSet<HostAddress>,
}

impl Tables {
    /// Whether there is a backend with this id (and not just its generation).
    pub fn has_backend(&self, id: BackendId) -> bool {
        self.backends.get(&id).is_some_and(is_there)
    }

    /// Carries out `change` on these tables, as the kernel and the network do on theirs.
    pub fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::State { backend, state } => {
                self.backends.entry(backend).or_default().state = state;
            }
            Change::PutBackend(id, backend) => {
                self.backends.insert(id, backend);
            }
            Change::PutSlots(id, slots) => {
                self.slots.insert(id, slots);
            }
            Change::PutService(id, service) => {
                self.services.insert(id, service);
            }
            Change::PutEndpoint(key, endpoint) => {
                self.endpoints.insert(key, endpoint);
            }
            Change::AddAddress(address) => {
                self.addresses.insert(address);
            }
            Change::RemoveAddress(address) => {
                self.addresses.remove(&address);
            }
            Change::RemoveEndpoint(key) => {
                self.endpoints.remove(&key);
            }
            Change::RemoveService(id) => {
                self.services.remove(&id);
            }
            Change::RemoveSlots(id) => {
                self.slots.remove(&id);
            }
            Change::RemoveBackend(id) => {
                let generation = self.backends.get(&id).map_or(0, |b| b.generation);
                self.backends.insert(id, removed(generation));
            }
        }
    }
}

/// Whether the record is a backend, and not just what is left of one.
pub(crate) fn is_there(backend: &Backend) -> bool {
    backend.service != ServiceId::default()
}

/// What is left of a removed backend.
fn removed(generation: u32) -> Backend {
    Backend {
        generation,
        ..Backend::default()
    }
}
