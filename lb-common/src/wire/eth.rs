//! Ethernet II (IEEE 802.3).

use network_types::eth::EtherType;

use super::header;

header! {
    /// An Ethernet header without VLAN tags.
    pub struct EthernetHeader, 14 bytes {
        /// Destination MAC address.
        pub destination: [u8; 6],
        /// Source MAC address.
        pub source: [u8; 6],
        /// EtherType, network byte order; compare with [`IPV4`] and [`IPV6`].
        pub ether_type: [u8; 2],
    }
}

/// EtherType of IPv4, as it lies on the wire.
pub const IPV4: [u8; 2] = (EtherType::Ipv4 as u16).to_ne_bytes();
/// EtherType of IPv6, as it lies on the wire.
pub const IPV6: [u8; 2] = (EtherType::Ipv6 as u16).to_ne_bytes();

impl EthernetHeader {
    /// Whether the frame is for a group of stations (IEEE 802: lowest bit of the first byte).
    #[inline(always)]
    pub const fn is_group(&self) -> bool {
        self.destination[0] & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ether_types_lie_in_network_order() {
        assert_eq!(IPV4, [0x08, 0x00]);
        assert_eq!(IPV6, [0x86, 0xdd]);
    }
}
