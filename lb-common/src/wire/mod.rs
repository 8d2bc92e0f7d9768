//! Bytes on the wire: headers as they lie in a frame, and the checksums over them.
//!
//! Every header is made of byte arrays only, and every bit pattern is a value of it. Numbers stand in
//! network byte order; the accessors return native ones. Headers are aligned to two bytes: frames
//! begin at even addresses and all headers have even lengths, and the program reads words that way
//! instead of bytes. Nothing here knows of services, maps or the kernel.

pub mod checksum;
pub mod eth;
pub mod icmp;
pub mod ip;
pub mod l4;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A header that can be lent from any even place in a frame: aligned to two bytes, of fixed size,
/// without padding and without invalid bit patterns.
pub trait Header: FromBytes + IntoBytes + Immutable + KnownLayout {}

/// Declares a header: the derives that make it a [`Header`], and its size, asserted.
macro_rules! header {
    ($(#[$meta:meta])* pub struct $name:ident, $size:literal bytes { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C, align(2))]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
            zerocopy::KnownLayout,
        )]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }

        impl $name {
            /// Bytes on the wire.
            pub const LEN: usize = size_of::<Self>();
        }

        impl crate::wire::Header for $name {}

        const _: () = assert!(size_of::<$name>() == $size && align_of::<$name>() == 2);
    };
}
pub(crate) use header;
