//! What the agent writes, in std maps.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    abi::{
        Address, Backend, BackendId, BackendState, Endpoint, EndpointKey, Mode, Neighbour, Service,
        ServiceId, Tunnel,
    },
    datapath::{Tables, parse::Parsed},
};

/// A route and the neighbour it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// First address of the network.
    pub network: Address,
    /// Length of its prefix in bits of [`Address`]: for IPv4, 96 more than is usual.
    pub prefix: u32,
    /// Longest packet that goes through, in bytes.
    pub mtu: u16,
    /// The next hop.
    pub neighbour: Neighbour,
}

impl Route {
    /// Whether an address lies in its network.
    pub fn covers(&self, address: &Address) -> bool {
        let different = u128::from_be_bytes(self.network.0) ^ u128::from_be_bytes(address.0);
        different.leading_zeros() >= self.prefix
    }
}

/// The maps that the agent fills. The fields are the maps' entries: what is put here and into BPF
/// maps alike gives the same decisions.
#[derive(Clone, Debug, Default)]
pub struct HostTables {
    /// What an address, port and protocol mean.
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// Services by id.
    pub services: BTreeMap<ServiceId, Service>,
    /// Backends by id.
    pub backends: BTreeMap<BackendId, Backend>,
    /// Lookup tables by service.
    pub slots: BTreeMap<ServiceId, Vec<BackendId>>,
    /// The load balancer's own addresses.
    pub locals: BTreeSet<Address>,
    /// What the kernel's routing and neighbour tables say; the longest prefix counts.
    pub routes: Vec<Route>,
    /// Whether frames leave the interface they came in on by redirect: not 0.
    pub transmit_by_redirect: u32,
    /// What tunnel modes need besides a backend's record.
    pub tunnel: Tunnel,
    /// How many ICMP messages the clients of one prefix get in a second.
    pub answers_per_second: u32,
}

impl Tables for HostTables {
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        self.endpoints.get(key)
    }

    fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services
            .get(&id)
            .filter(|service| service.mode != Mode::default())
    }

    fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.backends
            .get(&id)
            .filter(|backend| backend.state != BackendState::ABSENT)
    }

    fn slot(&self, service: ServiceId, cell: u32) -> Option<BackendId> {
        self.slots.get(&service)?.get(cell as usize).copied()
    }

    fn transmits_by_redirect(&self) -> bool {
        self.transmit_by_redirect != 0
    }

    fn answers_per_second(&self) -> u32 {
        self.answers_per_second
    }

    fn tunnel(&self) -> Option<&Tunnel> {
        Some(&self.tunnel)
    }

    fn is_local(&self, address: &Address) -> bool {
        self.locals.contains(address)
    }

    fn route(
        &self,
        parsed: &Parsed,
        _source: &Address,
        destination: &Address,
    ) -> Option<Neighbour> {
        self.routes
            .iter()
            .filter(|route| route.covers(destination))
            .max_by_key(|route| route.prefix)
            .filter(|route| parsed.length <= route.mtu)
            .map(|route| route.neighbour)
    }
}
