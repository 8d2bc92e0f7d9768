//! Ethernet II (IEEE 802.3).

use network_types::eth::EtherType;

use super::header;

header! {
    /// An Ethernet header up to its VLAN tags, if it has any.
    pub struct EthernetHeader, 14 bytes {
        /// Destination MAC address.
        pub destination: [u8; 6],
        /// Source MAC address.
        pub source: [u8; 6],
        /// EtherType, network byte order; compare with [`IPV4`] and [`IPV6`].
        pub ether_type: [u8; 2],
    }
}

header! {
    /// A VLAN tag (IEEE 802.1Q) together with the EtherType of what follows it: what lies behind
    /// an [`EthernetHeader`] whose own EtherType says that there is a tag.
    pub struct VlanTag, 4 bytes {
        /// Priority and VLAN number.
        pub control: [u8; 2],
        /// EtherType of what follows: IP or a further tag.
        pub ether_type: [u8; 2],
    }
}

/// EtherType that announces a VLAN tag (802.1Q), as it lies on the wire.
pub const CUSTOMER_TAG: [u8; 2] = [0x81, 0x00];
/// EtherType that announces the outer of two VLAN tags (802.1ad), as it lies on the wire.
pub const SERVICE_TAG: [u8; 2] = [0x88, 0xa8];

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
