//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use network_types::ip::IpProto;

use super::{
    checksum::{self, Delta},
    header,
};

header! {
    /// An IPv4 header without options (RFC 791 section 3.1).
    pub struct Ipv4Header, 20 bytes {
        /// Version (4) and header length in 32-bit words.
        pub version_ihl: u8,
        /// DSCP and ECN.
        pub tos: u8,
        /// Header and payload in bytes.
        pub total_length: [u8; 2],
        /// Identification, shared by the fragments of one datagram.
        pub identification: [u8; 2],
        /// Three flag bits and the fragment offset in units of 8 bytes.
        pub fragment: [u8; 2],
        /// Time to live.
        pub ttl: u8,
        /// Protocol of the payload.
        pub protocol: u8,
        /// Checksum over the header (RFC 1071).
        pub checksum: [u8; 2],
        /// Source address.
        pub source: [u8; 4],
        /// Destination address.
        pub destination: [u8; 4],
    }
}

header! {
    /// The fixed IPv6 header (RFC 8200 section 3).
    pub struct Ipv6Header, 40 bytes {
        /// Version (6), traffic class, flow label.
        pub version_class_flow: [u8; 4],
        /// Everything behind this header, in bytes.
        pub payload_length: [u8; 2],
        /// Protocol of what follows: an extension header or the payload.
        pub next_header: u8,
        /// Hop limit.
        pub hop_limit: u8,
        /// Source address.
        pub source: [u8; 16],
        /// Destination address.
        pub destination: [u8; 16],
    }
}

header! {
    /// The part all IPv6 extension headers begin with (RFC 6564), long enough to hold the whole
    /// of a fragment header (RFC 8200 section 4.5).
    pub struct ExtensionHeader, 8 bytes {
        /// Protocol of what follows.
        pub next_header: u8,
        /// Length in units of 8 bytes, the first 8 not counted; 0 in a fragment header.
        pub length: u8,
        /// Fragment offset (13 bits), two reserved bits, more-fragments; options otherwise.
        pub fragment: [u8; 2],
        /// Identification of a fragment; options otherwise.
        pub rest: [u8; 4],
    }
}

/// Protocol number of IPv4 in IP (RFC 2003).
pub const IPV4: u8 = IpProto::Ipv4 as u8;
/// Protocol number of IPv6 in IP (RFC 2473, RFC 4213).
pub const IPV6: u8 = IpProto::Ipv6 as u8;
/// Protocol number of TCP (RFC 9293).
pub const TCP: u8 = IpProto::Tcp as u8;
/// Protocol number of UDP (RFC 768).
pub const UDP: u8 = IpProto::Udp as u8;
/// Protocol number of ICMP (RFC 792).
pub const ICMP: u8 = IpProto::Icmp as u8;
/// Protocol number of ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
/// Hop-by-hop options (RFC 8200 section 4.3).
pub const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
/// Routing header (RFC 8200 section 4.4).
pub const ROUTING: u8 = IpProto::Ipv6Route as u8;
/// Fragment header (RFC 8200 section 4.5).
pub const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
/// Destination options (RFC 8200 section 4.6).
pub const DESTINATION_OPTIONS: u8 = IpProto::Ipv6Opts as u8;

impl Ipv4Header {
    /// Header length in bytes, options counted; below 20 the header lies.
    #[inline(always)]
    pub const fn header_length(&self) -> u16 {
        (self.version_ihl & 0x0f) as u16 * 4
    }

    /// IP version; 4 in a header that tells the truth.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Whether this is a whole datagram and no fragment: offset 0 and no more fragments.
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff == 0
    }

    /// Whether the header's checksum is right (RFC 791 section 3.1). Only for a header without
    /// options.
    #[inline(always)]
    pub fn is_sound(&self) -> bool {
        let words: [[u8; 2]; 10] = zerocopy::transmute!(*self);
        checksum::is_zero(words)
    }

    /// Fragment offset in units of 8 bytes; 0 for a whole datagram and for a first fragment.
    #[inline(always)]
    pub const fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes(self.fragment) & 0x1fff
    }

    /// Whether further fragments follow.
    #[inline(always)]
    pub const fn more_fragments(&self) -> bool {
        self.fragment[0] & 0x20 != 0
    }

    /// Whether routers must not cut it into fragments.
    #[inline(always)]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment[0] & 0x40 != 0
    }

    /// The checksum that a header of these 20 bytes needs, its own field counted as 0.
    #[inline(always)]
    pub fn computed_checksum(&self) -> [u8; 2] {
        let words: &[[u8; 2]; 10] = zerocopy::transmute_ref!(self);
        let mut sum = Delta::NONE;
        let mut i = 0;
        while i < 10 {
            if i != 5 {
                sum = sum.plus(words[i]);
            }
            i += 1;
        }
        sum.checksum()
    }
}

impl Ipv6Header {
    /// IP version; 6 in a header that tells the truth.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        self.version_class_flow[0] >> 4
    }

    /// Traffic class: DSCP and ECN.
    #[inline(always)]
    pub const fn traffic_class(&self) -> u8 {
        (self.version_class_flow[0] << 4) | (self.version_class_flow[1] >> 4)
    }
}

impl ExtensionHeader {
    /// Bytes of the whole extension header.
    #[inline(always)]
    pub const fn header_length(&self) -> u16 {
        (self.length as u16 + 1) * 8
    }

    /// Fragment offset in units of 8 bytes. Only for a fragment header.
    #[inline(always)]
    pub const fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes(self.fragment) >> 3
    }

    /// Whether further fragments follow. Only for a fragment header.
    #[inline(always)]
    pub const fn more_fragments(&self) -> bool {
        self.fragment[1] & 1 != 0
    }
}
