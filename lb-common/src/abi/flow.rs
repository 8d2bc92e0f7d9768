//! Flows. Written by the program; the agent only deletes.

use crate::abi::{Address, BackendId, Neighbour, Port, ServiceId, Timeouts, shared};

shared! {
    /// A point in time or an age in units of 2^20 ns (1.05 ms) of the coarse monotonic clock.
    /// Wraps after 52 days; only differences mean something.
    pub struct Ticks(pub u32), 4 bytes
}

impl Ticks {
    /// Ticks in a second, to the nearest.
    pub const PER_SECOND: u32 = 954;

    /// From nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    #[inline(always)]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos >> 20) as u32)
    }

    /// The age of `self`, seen from `now`.
    #[inline(always)]
    pub const fn age(self, now: Self) -> Self {
        Self(now.0.wrapping_sub(self.0))
    }

    /// A duration as ticks, at most what fits.
    pub fn from_duration(duration: core::time::Duration) -> Self {
        Self(u32::try_from(duration.as_nanos() >> 20).unwrap_or(u32::MAX))
    }

    /// A duration again.
    pub const fn duration(self) -> core::time::Duration {
        core::time::Duration::from_nanos((self.0 as u64) << 20)
    }
}

shared! {
    /// Key of the flow tables: one client 5-tuple of one service. The service's protocol is the
    /// flow's.
    pub struct FlowKey, 24 bytes {
        /// The client's address.
        pub client: Address,
        /// The service.
        pub service: ServiceId,
        /// The client's port.
        pub client_port: Port,
        /// The service's port.
        pub service_port: Port,
    }
}

shared! {
    /// How far a flow has come; decides its idle time.
    pub struct FlowState(pub u8), 1 bytes
}

impl FlowState {
    /// TCP, handshake not yet seen to finish.
    pub const HALF_OPEN: Self = Self(1);
    /// TCP, both sides have spoken (DSR: the client has gone on).
    pub const ESTABLISHED: Self = Self(2);
    /// TCP, FIN from both sides (DSR: from the client) or RST.
    pub const CLOSING: Self = Self(3);
    /// UDP.
    pub const UDP: Self = Self(4);

    /// Its name, as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HALF_OPEN => "half-open",
            Self::ESTABLISHED => "established",
            Self::CLOSING => "closing",
            _ => "udp",
        }
    }
}

shared! {
    /// What is remembered of a flow.
    pub struct Flow, 60 bytes {
        /// The backend that serves it.
        pub backend: BackendId,
        /// That backend's generation when it was chosen.
        pub generation: u32,
        /// When the flow was made.
        pub made: Ticks,
        /// When a packet of either direction was last noted; at most 1/8 s behind.
        pub seen: Ticks,
        /// TCP in `nat`: the acknowledgement number (network order) that finishes the handshake.
        pub awaited: [u8; 4],
        /// The service address that the client used.
        pub address: Address,
        /// Where the client's packets come from: answers go there.
        pub neighbour: Neighbour,
        /// How far it has come.
        pub state: FlowState,
        /// Any of [`Flow::ANSWERED`], [`Flow::CLIENT_FIN`], [`Flow::BACKEND_FIN`].
        pub flags: u8,
        /// Zero.
        pub reserved: [u16; 3],
    }
}

impl Flow {
    /// The backend has answered (`nat` only: DSR answers are not seen).
    pub const ANSWERED: u8 = 1;
    /// The client has sent FIN.
    pub const CLIENT_FIN: u8 = 2;
    /// The backend has sent FIN.
    pub const BACKEND_FIN: u8 = 4;

    /// Whether it has been idle for longer than its state allows.
    #[inline(always)]
    pub fn is_expired(&self, now: Ticks, timeouts: &Timeouts) -> bool {
        self.seen.age(now) > timeouts.of(self.state)
    }
}

shared! {
    /// A conversation between a client and a backend's own address: the key of the `direct` table.
    pub struct Conversation, 40 bytes {
        /// The client.
        pub client: Address,
        /// The backend.
        pub backend: Address,
        /// The client's port.
        pub client_port: Port,
        /// The backend's port.
        pub backend_port: Port,
        /// IP protocol number.
        pub protocol: u16,
        /// Zero.
        pub reserved: u16,
    }
}

shared! {
    /// A client has opened this conversation with the backend itself: answers pass untouched.
    pub struct Direct, 4 bytes {
        /// When a packet of the client was last noted; at most 1 s behind.
        pub seen: Ticks,
    }
}

shared! {
    /// Key of the table of fragments: what the fragments of one datagram have in common
    /// (RFC 791 section 3.2, RFC 8200 section 4.5).
    pub struct FragmentKey, 40 bytes {
        /// Where they come from.
        pub source: Address,
        /// Where they go.
        pub destination: Address,
        /// Their identification, network order.
        pub identification: [u8; 4],
        /// IP protocol number over IPv4; 0 over IPv6, whose later fragments may not know it.
        pub protocol: u32,
    }
}

shared! {
    /// What was decided for a datagram's first fragment.
    pub struct Fragment, 48 bytes {
        /// The service it belongs to.
        pub service: ServiceId,
        /// The backend it goes to or comes from.
        pub backend: BackendId,
        /// That backend's generation.
        pub generation: u32,
        /// When the first fragment came.
        pub seen: Ticks,
        /// Of an answer: the service address that becomes its source. All zero: the datagram goes
        /// to the backend.
        pub address: Address,
        /// Of an answer: where it goes.
        pub neighbour: Neighbour,
    }
}

impl Fragment {
    /// How long the rest of a datagram is waited for: as long as Linux does
    /// (`net.ipv4.ipfrag_time`).
    pub const LIFETIME: Ticks = Ticks(30 * Ticks::PER_SECOND);
}

shared! {
    /// The ICMP messages that the clients of one prefix got. Keyed by the prefix's first address.
    pub struct Answered, 8 bytes {
        /// When the second began in which they are counted.
        pub since: Ticks,
        /// How many.
        pub count: u32,
    }
}
