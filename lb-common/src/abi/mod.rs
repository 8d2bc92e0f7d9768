//! Bytes in the BPF maps: what the agent writes for the program, and the other way round.
//!
//! Every type is `repr(C)` with explicit padding and an asserted size, and all-zero bytes mean
//! "not there". Addresses, ports and MACs are kept in network order; counts, ids and times in the
//! machine's own. A new field or meaning is a new [`ABI_VERSION`]: the agent compares it, and the
//! shape of every pinned map, before it lets a new program use old maps.

mod address;
mod backend;
pub mod decap;
mod event;
mod flow;
pub mod limits;
mod reason;
mod service;

pub use address::{Address, Mac, Port};
pub use backend::{Backend, BackendId, BackendState, Neighbour};
pub use event::{Event, EventKind};
pub use flow::{
    Answered, Conversation, Direct, Flow, FlowKey, FlowState, Fragment, FragmentKey, Ticks,
};
pub use reason::{Counter, Fate, InterfaceCounters, Reason, Traffic};
pub use service::{
    Algorithm, Endpoint, EndpointKey, Mode, Role, Service, ServiceId, Settings, Timeouts, Tunnel,
};

/// Changes whenever a map value changes its meaning or layout.
pub const ABI_VERSION: u32 = 2;

/// Declares a type that lives in a map: `repr(C)`, the byte-level derives, its size, asserted,
/// and, for the agent, `aya::Pod`.
macro_rules! shared {
    ($(#[$meta:meta])* pub struct $name:ident, $size:literal bytes { $($(#[$fmeta:meta])* $vis:vis $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name { $($(#[$fmeta])* $vis $field: $ty),* }

        crate::abi::pod!($name, $size);
    };
    ($(#[$meta:meta])* pub struct $name:ident($vis:vis $ty:ty), $size:literal bytes) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name($vis $ty);

        crate::abi::pod!($name, $size);
    };
}

/// The asserted size and `aya::Pod`, for types that cannot use [`shared!`] itself.
macro_rules! pod {
    ($name:ident, $size:literal) => {
        const _: () = assert!(size_of::<$name>() == $size);

        // SAFETY: `IntoBytes` and `FromBytes` are derived: no padding, every bit pattern valid.
        #[cfg(feature = "aya")]
        #[expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]
        unsafe impl aya::Pod for $name {}
    };
}

pub(crate) use {pod, shared};
