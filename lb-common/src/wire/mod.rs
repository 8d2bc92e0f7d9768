//! Bytes on the wire: headers as they lie in a frame, and the checksums over them.
//!
//! Every header is made of byte arrays only, so it may lie at any offset, and every bit pattern
//! is a value of it. Numbers stand in network byte order; the accessors return native ones.
//! Nothing here knows of services, maps or the kernel.

pub mod checksum;
pub mod eth;
pub mod ip;
pub mod l4;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A header that can be lent from any place in a frame: byte-aligned, of fixed size, without
/// padding and without invalid bit patterns.
pub trait Header: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned> Header for T {}

/// Declares a header: the derives that make it a [`Header`], and its size, asserted.
macro_rules! header {
    ($(#[$meta:meta])* pub struct $name:ident, $size:literal bytes { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
            zerocopy::KnownLayout, zerocopy::Unaligned,
        )]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }

        impl $name {
            /// Bytes on the wire.
            pub const LEN: usize = size_of::<Self>();
        }

        const _: () = assert!(size_of::<$name>() == $size);
    };
}
pub(crate) use header;
