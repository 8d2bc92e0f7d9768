//! Backends. Written by the agent, read by the program.

use crate::abi::{Address, Mac, Port, ServiceId, shared};

shared! {
    /// Index into the arrays of backends; 0 is no backend. A backend belongs to one service: the
    /// same address behind two services is two backends.
    pub struct BackendId(pub u32), 4 bytes
}

shared! {
    /// Whether a backend takes packets. The one word that a change of state writes.
    pub struct BackendState(pub u32), 4 bytes
}

impl BackendState {
    /// Removed: its flows choose anew.
    pub const ABSENT: Self = Self(0);
    /// Takes new flows.
    pub const ENABLED: Self = Self(1);
    /// Takes no new flow and keeps the ones it has.
    pub const DRAINING: Self = Self(2);
    /// Takes no new flow and keeps TCP connections only.
    pub const DISABLED: Self = Self(3);

    /// Whether a new flow may be given to it.
    #[inline(always)]
    pub fn is_eligible(self) -> bool {
        self == Self::ENABLED
    }
}

shared! {
    /// A resolved next hop. Interface 0: not resolved.
    pub struct Neighbour, 16 bytes {
        /// Interface it is reached through.
        pub ifindex: u32,
        /// Its MAC address.
        pub destination: Mac,
        /// That interface's own MAC address.
        pub source: Mac,
    }
}

impl Neighbour {
    /// Whether frames can be addressed to it.
    #[inline(always)]
    pub const fn is_resolved(&self) -> bool {
        self.ifindex != 0
    }
}

shared! {
    /// One backend of one service.
    pub struct Backend, 64 bytes {
        /// Its own address; in `nat` mode the rewritten destination.
        pub address: Address,
        /// Its port; 0 in modes that keep the service's.
        pub port: Port,
        /// Longest IP packet that the way to it carries, in bytes: the smaller of the interface's
        /// and the route's. 0: not known, and nothing is too long.
        pub mtu: u16,
        /// Whether it takes packets.
        pub state: BackendState,
        /// The service it belongs to.
        pub service: ServiceId,
        /// Counts the backends that have had this id, so that a flow of an earlier one is told
        /// apart.
        pub generation: u32,
        /// Where its packets go next.
        pub neighbour: Neighbour,
        /// Source of the outer header in tunnel modes, of the family of `address`; the bits that
        /// [`crate::abi::Tunnel`] varies are 0. All zero: no address of the load balancer leads
        /// there.
        pub source: Address,
    }
}
