//! TCP (RFC 9293) and UDP (RFC 768) headers.

use super::header;

header! {
    /// The first four bytes of TCP and of UDP: all that is needed to know whose packet it is.
    pub struct Ports, 4 bytes {
        /// Source port.
        pub source: [u8; 2],
        /// Destination port.
        pub destination: [u8; 2],
    }
}

header! {
    /// A TCP header without options (RFC 9293 section 3.1).
    pub struct TcpHeader, 20 bytes {
        /// Source port.
        pub source: [u8; 2],
        /// Destination port.
        pub destination: [u8; 2],
        /// Sequence number.
        pub sequence: [u8; 4],
        /// Acknowledgement number; means something if [`ACK`] is set.
        pub acknowledgement: [u8; 4],
        /// Header length in 32-bit words (upper four bits) and reserved bits.
        pub data_offset: u8,
        /// [`FIN`], [`SYN`], [`RST`], [`ACK`] and others.
        pub flags: u8,
        /// Receive window.
        pub window: [u8; 2],
        /// Checksum over pseudo-header, header and payload.
        pub checksum: [u8; 2],
        /// Urgent pointer.
        pub urgent: [u8; 2],
    }
}

header! {
    /// A UDP header (RFC 768).
    pub struct UdpHeader, 8 bytes {
        /// Source port.
        pub source: [u8; 2],
        /// Destination port.
        pub destination: [u8; 2],
        /// Header and payload in bytes.
        pub length: [u8; 2],
        /// Checksum over pseudo-header, header and payload; 0 over IPv4: none was computed.
        pub checksum: [u8; 2],
    }
}

/// The sender has finished sending.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers: opens a connection.
pub const SYN: u8 = 0x02;
/// Resets the connection.
pub const RST: u8 = 0x04;
/// The acknowledgement number is valid.
pub const ACK: u8 = 0x10;

impl TcpHeader {
    /// Header length in bytes, options counted; below 20 the header lies.
    #[inline(always)]
    pub const fn header_length(&self) -> u16 {
        (self.data_offset >> 4) as u16 * 4
    }
}
