//! Bytes to addresses, ports and flags.
//!
//! Promises that a packet which parses is as long as its headers say, so that no later step meets
//! a header beyond the packet. Lengths come from the IP header: what lies behind the packet in the
//! frame is padding.

use crate::{
    abi::{Address, Mac, Neighbour, Port, Reason, limits},
    datapath::Packet,
    wire::{
        eth::{self, EthernetHeader},
        ip::{self, ExtensionHeader, Ipv4Header, Ipv6Header},
        l4::{Ports, TcpHeader, UdpHeader},
    },
};

/// Offset of the IP header: frames with VLAN tags are not taken.
pub const L3: usize = EthernetHeader::LEN;

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

impl Family {
    /// The family of an address.
    #[inline(always)]
    pub fn of(address: &Address) -> Self {
        match address.is_v4() {
            true => Self::V4,
            false => Self::V6,
        }
    }

    /// Bytes of an IP header without options and extension headers.
    #[inline(always)]
    pub const fn header_length(self) -> usize {
        match self {
            Self::V4 => Ipv4Header::LEN,
            Self::V6 => Ipv6Header::LEN,
        }
    }

    /// Offset of the TCP or UDP header in a packet without options and extension headers.
    #[inline(always)]
    pub const fn l4(self) -> usize {
        L3 + self.header_length()
    }
}

/// A TCP or UDP packet with ports.
///
/// Too large for the program's stack: it lies in working memory that the caller lends, whose zeroed
/// bytes are a value of every field.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// [`ip::TCP`] or [`ip::UDP`].
    pub protocol: u8,
    /// IP version.
    pub family: Family,
    /// TCP flags; 0 for UDP and for irregular packets.
    pub flags: u8,
    /// TCP sequence number, network order; 0 as above.
    pub sequence: [u8; 4],
    /// TCP acknowledgement number, network order; 0 as above.
    pub acknowledgement: [u8; 4],
    /// Length of the IP packet in bytes.
    pub length: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class, for routing.
    pub tos: u8,
    /// Whether routers may cut it into fragments: IPv4 without DF.
    pub may_be_cut: bool,
    /// See [`Self::irregular`]: the reason's number, 0 for none.
    irregular: u8,
}

impl Parsed {
    /// Why it is not forwarded although it has ports: it is a first fragment, or has options or
    /// extension headers. Its ports are the only thing known of its payload.
    #[inline(always)]
    pub const fn irregular(&self) -> Option<Reason> {
        match self.irregular {
            0 => None,
            number => Reason::from_number(number),
        }
    }
}

impl Default for Parsed {
    fn default() -> Self {
        Self {
            source: Address::default(),
            destination: Address::default(),
            source_port: Port::default(),
            destination_port: Port::default(),
            protocol: 0,
            family: Family::V4,
            flags: 0,
            sequence: [0; 4],
            acknowledgement: [0; 4],
            length: 0,
            ttl: 0,
            tos: 0,
            may_be_cut: false,
            irregular: 0,
        }
    }
}

/// What a header in front of the ports said.
struct Layer3 {
    protocol: u8,
    l4: usize,
    /// End of the packet, as an offset in the frame.
    end: usize,
    irregular: Option<Reason>,
}

/// Reads a frame of `length` bytes up to its ports, or says why it is not ours.
#[inline(always)]
pub fn packet<P: Packet>(packet: &P, length: u32, parsed: &mut Parsed) -> Result<(), Reason> {
    let ethernet: &EthernetHeader = packet.at(0).ok_or(Reason::Malformed)?;
    let family = match ethernet.ether_type {
        eth::IPV4 => Family::V4,
        eth::IPV6 => Family::V6,
        _ => return Err(Reason::NotIp),
    };
    if ethernet.is_group() {
        return Err(Reason::Multicast);
    }
    parsed.family = family;
    let layer = match family {
        Family::V4 => v4(packet, length, parsed)?,
        Family::V6 => v6(packet, length, parsed)?,
    };
    parsed.protocol = layer.protocol;
    parsed.irregular = layer.irregular.map_or(0, |reason| reason as u8);
    match (layer.irregular, layer.protocol) {
        (None, ip::TCP) => tcp(packet, parsed, layer.end),
        (None, ip::UDP) => udp(packet, parsed, layer.end),
        (Some(_), ip::TCP | ip::UDP) => ports(packet, parsed, &layer),
        _ => Err(Reason::OtherProtocol),
    }
}

/// The neighbour a frame came from, so that answers can be sent there.
#[inline(always)]
pub fn neighbour<P: Packet>(packet: &P) -> Result<Neighbour, Reason> {
    let ethernet: &EthernetHeader = packet.at(0).ok_or(Reason::Malformed)?;
    Ok(Neighbour {
        ifindex: packet.ifindex(),
        destination: Mac(ethernet.source),
        source: Mac(ethernet.destination),
    })
}

#[inline(always)]
fn v4<P: Packet>(packet: &P, frame: u32, parsed: &mut Parsed) -> Result<Layer3, Reason> {
    let header: &Ipv4Header = packet.at(L3).ok_or(Reason::Malformed)?;
    let header_length = header.header_length();
    let length = u16::from_be_bytes(header.total_length);
    if header.version() != 4
        || usize::from(header_length) < Ipv4Header::LEN
        || length < header_length
        || frame < L3 as u32 + u32::from(length)
    {
        return Err(Reason::Malformed);
    }
    if header.fragment_offset() != 0 {
        return Err(Reason::LaterFragment);
    }
    parsed.source = Address::v4(header.source);
    parsed.destination = Address::v4(header.destination);
    parsed.length = length;
    parsed.ttl = header.ttl;
    parsed.tos = header.tos;
    parsed.may_be_cut = !header.dont_fragment();
    let irregular = if header.more_fragments() {
        Some(Reason::FirstFragment)
    } else if usize::from(header_length) > Ipv4Header::LEN {
        Some(Reason::IpOptions)
    } else {
        None
    };
    Ok(Layer3 {
        protocol: header.protocol,
        l4: L3 + usize::from(header_length),
        end: L3 + usize::from(length),
        irregular,
    })
}

#[inline(always)]
fn v6<P: Packet>(packet: &P, frame: u32, parsed: &mut Parsed) -> Result<Layer3, Reason> {
    let header: &Ipv6Header = packet.at(L3).ok_or(Reason::Malformed)?;
    let length = (Ipv6Header::LEN as u16)
        .checked_add(u16::from_be_bytes(header.payload_length))
        .ok_or(Reason::Malformed)?;
    if header.version() != 6 || frame < L3 as u32 + u32::from(length) {
        return Err(Reason::Malformed);
    }
    parsed.source = Address::v6(&header.source);
    parsed.destination = Address::v6(&header.destination);
    parsed.length = length;
    parsed.ttl = header.hop_limit;
    parsed.may_be_cut = false;
    parsed.tos = (header.version_class_flow[0] << 4) | (header.version_class_flow[1] >> 4);
    let layer = Layer3 {
        protocol: header.next_header,
        l4: L3 + Ipv6Header::LEN,
        end: L3 + usize::from(length),
        irregular: None,
    };
    match layer.protocol {
        ip::TCP | ip::UDP => Ok(layer),
        _ => extensions(packet, layer),
    }
}

/// Follows IPv6 extension headers to the ports.
#[inline(always)]
fn extensions<P: Packet>(packet: &P, mut layer: Layer3) -> Result<Layer3, Reason> {
    for _ in 0..limits::EXTENSION_HEADERS {
        match layer.protocol {
            ip::TCP | ip::UDP => return Ok(layer),
            ip::HOP_BY_HOP | ip::ROUTING | ip::DESTINATION_OPTIONS | ip::FRAGMENT => {}
            _ => return Err(Reason::OtherProtocol),
        }
        if layer.l4 + ExtensionHeader::LEN > layer.end {
            return Err(Reason::Malformed);
        }
        let extension: &ExtensionHeader = packet.at(layer.l4).ok_or(Reason::Malformed)?;
        let mut why = Reason::ExtensionHeaders;
        let mut length = ExtensionHeader::LEN;
        if layer.protocol == ip::FRAGMENT {
            if extension.fragment_offset() != 0 {
                return Err(Reason::LaterFragment);
            }
            // An atomic fragment (RFC 6946) has no further ones, and still a header too many.
            if extension.more_fragments() {
                why = Reason::FirstFragment;
            }
        } else {
            length = usize::from(extension.header_length());
        }
        layer.l4 += length;
        layer.irregular = match layer.irregular {
            Some(Reason::FirstFragment) => layer.irregular,
            _ => Some(why),
        };
        layer.protocol = extension.next_header;
    }
    match layer.protocol {
        ip::TCP | ip::UDP => Ok(layer),
        _ => Err(Reason::UnknownExtension),
    }
}

/// The ports of an irregular packet; nothing else of it is looked at.
#[inline(always)]
fn ports<P: Packet>(packet: &P, parsed: &mut Parsed, layer: &Layer3) -> Result<(), Reason> {
    if layer.l4 + Ports::LEN > layer.end {
        return Err(Reason::Malformed);
    }
    let ports: &Ports = packet.at(layer.l4).ok_or(Reason::Malformed)?;
    parsed.source_port = Port(ports.source);
    parsed.destination_port = Port(ports.destination);
    parsed.flags = 0;
    parsed.sequence = [0; 4];
    parsed.acknowledgement = [0; 4];
    Ok(())
}

#[inline(always)]
fn tcp<P: Packet>(packet: &P, parsed: &mut Parsed, end: usize) -> Result<(), Reason> {
    let l4 = parsed.family.l4();
    let tcp: &TcpHeader = packet.at(l4).ok_or(Reason::Malformed)?;
    let header_length = usize::from(tcp.header_length());
    if header_length < TcpHeader::LEN || l4 + header_length > end {
        return Err(Reason::Malformed);
    }
    parsed.source_port = Port(tcp.source);
    parsed.destination_port = Port(tcp.destination);
    parsed.flags = tcp.flags;
    parsed.sequence = tcp.sequence;
    parsed.acknowledgement = tcp.acknowledgement;
    Ok(())
}

#[inline(always)]
fn udp<P: Packet>(packet: &P, parsed: &mut Parsed, end: usize) -> Result<(), Reason> {
    let l4 = parsed.family.l4();
    let udp: &UdpHeader = packet.at(l4).ok_or(Reason::Malformed)?;
    let length = usize::from(u16::from_be_bytes(udp.length));
    if length < UdpHeader::LEN || l4 + length > end {
        return Err(Reason::Malformed);
    }
    parsed.source_port = Port(udp.source);
    parsed.destination_port = Port(udp.destination);
    parsed.flags = 0;
    parsed.sequence = [0; 4];
    parsed.acknowledgement = [0; 4];
    Ok(())
}
