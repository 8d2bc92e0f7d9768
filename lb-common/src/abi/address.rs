//! Addresses, ports and MACs as the maps hold them: network byte order, checked by type.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::abi::{pod, shared};

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
///
/// Sixteen bytes in network order, aligned to four so that the program copies words.
#[repr(C, align(4))]
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct Address(pub [u8; 16]);

pod!(Address, 16);

impl Address {
    /// The address `0.0.0.0` in its mapped form; the prefix of all IPv4 addresses.
    const V4: [u8; 16] = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();

    /// An IPv4 address from the four bytes of a header.
    #[inline(always)]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        let mut mapped = Self::V4;
        mapped[12] = bytes[0];
        mapped[13] = bytes[1];
        mapped[14] = bytes[2];
        mapped[15] = bytes[3];
        Self(mapped)
    }

    /// An IPv6 address from the sixteen bytes of a header.
    #[inline(always)]
    pub fn v6(bytes: &[u8; 16]) -> Self {
        // Word by word: as one block the program's compiler would call a byte-wise copy.
        let words: &[[u8; 4]; 4] = zerocopy::transmute_ref!(bytes);
        Self(zerocopy::transmute!(words.map(u32::from_ne_bytes)))
    }

    /// The four bytes that an IPv4 header takes. Means nothing for an IPv6 address.
    #[inline(always)]
    pub fn v4_bytes(&self) -> [u8; 4] {
        // As a word: taken apart into bytes the address would be copied byte by byte.
        let words: &[u32; 4] = zerocopy::transmute_ref!(self);
        words[3].to_ne_bytes()
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        let words: &[u32; 4] = zerocopy::transmute_ref!(self);
        (words[0] | words[1]) == 0 && words[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// The address as the standard library knows it.
    pub const fn ip(&self) -> IpAddr {
        Ipv6Addr::from_octets(self.0).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.ip(), f)
    }
}

shared! {
    /// A TCP or UDP port in network byte order.
    pub struct Port(pub [u8; 2]), 2 bytes
}

impl Port {
    /// The port as a number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl From<u16> for Port {
    fn from(number: u16) -> Self {
        Self(number.to_be_bytes())
    }
}

/// An Ethernet MAC address, aligned to two so that the program copies and compares words.
#[repr(C, align(2))]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct Mac(pub [u8; 6]);

pod!(Mac, 6);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_mapped_and_comes_back() {
        let address = Address::v4([203, 0, 113, 10]);
        assert_eq!(address.ip(), IpAddr::from([203, 0, 113, 10]));
        assert_eq!(address, Address::from(address.ip()));
        assert_eq!(address.v4_bytes(), [203, 0, 113, 10]);
        assert!(address.is_v4());
        assert!(!Address::from(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])).is_v4());
        assert!(!Address::default().is_v4());
        assert_eq!(Port::from(80).0, [0, 80]);
    }
}
