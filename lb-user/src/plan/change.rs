//! One step of a plan.

use lb_common::abi::{Backend, BackendId, BackendState, Endpoint, EndpointKey, Service, ServiceId};

use super::{HostAddress, Slots};

/// One step of a plan: one write that is whole for any packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes nothing but the state word of a backend that is there.
    State {
        /// The backend.
        backend: BackendId,
        /// Its state from now on; [`BackendState::ABSENT`] when it is about to be removed.
        state: BackendState,
    },
    /// Writes a backend. Without a [`super::Way`], that of the record that is there is kept if it has
    /// the same address.
    PutBackend(BackendId, Backend),
    /// Swaps a service's lookup table as a whole.
    PutSlots(ServiceId, Slots),
    /// Writes a service.
    PutService(ServiceId, Service),
    /// Writes an endpoint.
    PutEndpoint(EndpointKey, Endpoint),
    /// Puts a service address on an interface.
    AddAddress(HostAddress),
    /// Takes a service address from an interface.
    RemoveAddress(HostAddress),
    /// Deletes an endpoint.
    RemoveEndpoint(EndpointKey),
    /// Zeroes a service's record.
    RemoveService(ServiceId),
    /// Deletes a service's lookup table.
    RemoveSlots(ServiceId),
    /// Zeroes a backend's record except its generation.
    RemoveBackend(BackendId),
}
