//! ICMP (RFC 792) and ICMPv6 (RFC 4443) messages.

use super::header;

header! {
    /// The first eight bytes of a message, which all of them have.
    pub struct IcmpHeader, 8 bytes {
        /// What it says.
        pub kind: u8,
        /// And in what way.
        pub code: u8,
        /// Checksum over the message; in ICMPv6 over a pseudo-header, too.
        pub checksum: [u8; 2],
        /// Depends on `kind`; the second half is the next hop's MTU in "fragmentation needed" (RFC 1191
        /// section 4), the whole in "packet too big".
        pub rest: [u8; 4],
    }
}

header! {
    /// Four bytes of anything.
    pub struct Word, 4 bytes {
        /// The first two.
        pub first: [u8; 2],
        /// The last two.
        pub last: [u8; 2],
    }
}

/// ICMP: the destination cannot be reached.
pub const UNREACHABLE: u8 = 3;
/// Code of [`UNREACHABLE`]: fragmentation is needed, and DF is set.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMPv6: packet too big.
pub const PACKET_TOO_BIG: u8 = 2;
