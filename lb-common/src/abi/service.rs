//! Services, and the map that says what an address and port mean to the load balancer.
//!
//! Written by the agent, read by the program.

use crate::abi::{Address, BackendId, FlowState, Port, Ticks, shared};

shared! {
    /// Index into the arrays of services; 0 is no service.
    pub struct ServiceId(pub u32), 4 bytes
}

shared! {
    /// Key of the endpoint map.
    pub struct EndpointKey, 20 bytes {
        /// A service's address, or a `nat` backend's.
        pub address: Address,
        /// The port that goes with it.
        pub port: Port,
        /// IP protocol number.
        pub protocol: u8,
        /// 0; counts up where several services share a backend ([`Endpoint::more`]).
        pub nth: u8,
    }
}

shared! {
    /// What an address, port and protocol mean.
    pub struct Endpoint, 16 bytes {
        /// The service that is reached here, or whose backend this is.
        pub service: ServiceId,
        /// For [`Role::BACKEND`]: the backend. 0 otherwise.
        pub backend: BackendId,
        /// The service's port.
        pub port: Port,
        /// [`Role::SERVICE`] or [`Role::BACKEND`].
        pub role: Role,
        /// Not 0: a further service shares this backend, under the next
        /// [`EndpointKey::nth`].
        pub more: u8,
        /// Zero.
        pub reserved: [u8; 4],
    }
}

shared! {
    /// What an endpoint is.
    pub struct Role(pub u8), 1 bytes
}

impl Role {
    /// A service is reached here: packets *to* it go towards a backend.
    pub const SERVICE: Self = Self(1);
    /// A `nat` backend answers from here: packets *from* it go back to a client.
    pub const BACKEND: Self = Self(2);
}

shared! {
    /// How a service's packets are forwarded.
    pub struct Mode(pub u8), 1 bytes
}

impl Mode {
    /// Destination rewritten to the backend; the answer comes back through the load balancer.
    pub const NAT: Self = Self(1);
    /// MAC addresses rewritten; the backend owns the service address and answers directly.
    pub const DSR_L2: Self = Self(2);
    /// An outer IP header in front (RFC 2003, RFC 4213, RFC 2473); the backend takes it off and
    /// answers directly.
    pub const DSR_IPIP: Self = Self(3);
    /// An outer IP and UDP header in front (GUE variant 1, draft-ietf-intarea-gue); the backend takes
    /// them off and answers directly.
    pub const DSR_GUE: Self = Self(4);
}

shared! {
    /// How a backend is chosen for a new flow.
    pub struct Algorithm(pub u8), 1 bytes
}

impl Algorithm {
    /// Maglev hashing over the client's address and port.
    pub const MAGLEV: Self = Self(1);
    /// One after the other, in proportion to the weights.
    pub const ROUND_ROBIN: Self = Self(2);
    /// Maglev hashing over the client's address alone.
    pub const SOURCE_HASH: Self = Self(3);
}

shared! {
    /// Idle times after which a flow is forgotten, in the order of [`FlowState`]'s numbers modulo 4.
    pub struct Timeouts, 16 bytes {
        /// UDP.
        pub udp: Ticks,
        /// TCP, handshake not yet finished.
        pub half_open: Ticks,
        /// TCP, established.
        pub established: Ticks,
        /// TCP, after FIN from both sides (DSR: from the client) or RST.
        pub closing: Ticks,
    }
}

impl Timeouts {
    /// The idle time of a state.
    #[inline(always)]
    pub fn of(&self, state: FlowState) -> Ticks {
        // An index masked in plain sight, where a match would become a pointer that the verifier
        // cannot bound.
        let by_state: &[Ticks; 4] = zerocopy::transmute_ref!(self);
        by_state[usize::from(state.0 & 3)]
    }
}

shared! {
    /// One service. A record whose mode is 0 is not there.
    pub struct Service, 52 bytes {
        /// The service's first address: the source of answers that have no flow entry.
        pub address: Address,
        /// Derived from the service's name; makes its choices its own.
        pub seed: u32,
        /// Cells in its lookup table; 0 while it has no backend to offer.
        pub slots: u32,
        /// Takes new flows when the cells tried held no eligible backend; 0: none.
        pub fallback: BackendId,
        /// The service's port.
        pub port: Port,
        /// How packets are forwarded.
        pub mode: Mode,
        /// How backends are chosen.
        pub algorithm: Algorithm,
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub reserved: [u8; 3],
        /// When flows are forgotten.
        pub timeouts: Timeouts,
    }
}

shared! {
    /// How packets in tunnels differ by flow, and where GUE goes.
    pub struct Tunnel, 12 bytes {
        /// The bits in which an outer IPv4 source varies, network order; 0: it does not.
        pub vary4: [u8; 4],
        /// The bits in which the last four bytes of an outer IPv6 source vary.
        pub vary6: [u8; 4],
        /// UDP destination port of GUE.
        pub gue_port: Port,
        /// Zero.
        pub reserved: [u8; 2],
    }
}

shared! {
    /// What concerns all services. One record.
    pub struct Settings, 32 bytes {
        /// [`crate::abi::ABI_VERSION`] of the program that made the maps.
        pub abi_version: u32,
        /// Shortest time between two new-flow events on one CPU; `u32::MAX`: none are sent.
        pub new_flow_spacing: Ticks,
        /// Shortest time between two drop events on one CPU; `u32::MAX`: none are sent.
        pub drop_spacing: Ticks,
        /// Not 0: a frame leaves the interface it came in on by redirect and not by `XDP_TX`. veth
        /// needs that: its `XDP_TX` wakes the peer only if the peer has an XDP program too (Linux
        /// 6.18, `veth_xdp_flush`), and frames lie about until something else does.
        pub transmit_by_redirect: u32,
        /// For tunnel modes.
        pub tunnel: Tunnel,
        /// How many ICMP messages the clients of one prefix get in a second.
        pub answers_per_second: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_own_idle_time() {
        let timeouts = Timeouts {
            udp: Ticks(1),
            half_open: Ticks(2),
            established: Ticks(3),
            closing: Ticks(4),
        };
        assert_eq!(timeouts.of(FlowState::UDP), timeouts.udp);
        assert_eq!(timeouts.of(FlowState::HALF_OPEN), timeouts.half_open);
        assert_eq!(timeouts.of(FlowState::ESTABLISHED), timeouts.established);
        assert_eq!(timeouts.of(FlowState::CLOSING), timeouts.closing);
    }
}
