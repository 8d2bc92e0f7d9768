//! What the program tells the agent through the ring buffer.

use crate::abi::{Address, BackendId, Port, Reason, ServiceId, shared};

shared! {
    /// What an event tells.
    pub struct EventKind(pub u8), 1 bytes
}

impl EventKind {
    /// A flow was made (sampled).
    pub const NEW_FLOW: Self = Self(1);
    /// A packet was dropped (sampled).
    pub const DROP: Self = Self(2);
    /// A next hop is missing: the agent should resolve `destination` now.
    pub const NEIGHBOUR: Self = Self(3);

    /// Its name, as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NEW_FLOW => "new-flow",
            Self::DROP => "drop",
            _ => "neighbour",
        }
    }
}

shared! {
    /// One event.
    pub struct Event, 64 bytes {
        /// Nanoseconds of the coarse monotonic clock.
        pub time: u64,
        /// The packet's source address; the client of a new flow.
        pub source: Address,
        /// The packet's destination address; for [`EventKind::NEIGHBOUR`] the address to resolve.
        pub destination: Address,
        /// The service, where known.
        pub service: ServiceId,
        /// The backend, where known.
        pub backend: BackendId,
        /// The interface the packet came in on.
        pub ifindex: u32,
        /// The packet's source port.
        pub source_port: Port,
        /// The packet's destination port.
        pub destination_port: Port,
        /// What is told.
        pub kind: EventKind,
        /// A [`Reason`] as its number.
        pub reason: u8,
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub reserved: [u8; 5],
    }
}

impl Event {
    /// The reason, if the number is one.
    pub fn reason(&self) -> Option<Reason> {
        Reason::from_number(self.reason)
    }
}
