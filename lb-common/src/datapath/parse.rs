//! Bytes to addresses, ports and flags.
//!
//! Promises that a packet which parses is as long as its headers say, so that no later step meets
//! a header beyond the packet. Lengths come from the IP header: what lies behind the packet in the
//! frame is padding.

use crate::{
    abi::{Address, Mac, Neighbour, Port, Reason, limits},
    datapath::Packet,
    wire::{
        eth::{self, EthernetHeader, VlanTag},
        ip::{self, ExtensionHeader, Ipv4Header, Ipv6Header},
        l4::{TcpHeader, UdpHeader},
    },
};

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

/// What part of its datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// All of it.
    Whole = 0,
    /// The first fragment, which has the ports.
    First = 1,
    /// A later fragment, which has none.
    Later = 2,
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
}

/// A TCP or UDP packet.
///
/// Too large for the program's stack: it lies in working memory that the caller lends, whose zeroed
/// bytes are a value of every field.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// Source port; 0 in a later fragment.
    pub source_port: Port,
    /// Destination port; 0 in a later fragment.
    pub destination_port: Port,
    /// [`ip::TCP`] or [`ip::UDP`]; in a later IPv6 fragment the header its payload begins with.
    pub protocol: u8,
    /// IP version.
    pub family: Family,
    /// What part of its datagram it is.
    pub part: Part,
    /// TCP flags; 0 for UDP.
    pub flags: u8,
    /// TCP sequence number, network order; 0 for UDP.
    pub sequence: [u8; 4],
    /// TCP acknowledgement number, network order; 0 for UDP.
    pub acknowledgement: [u8; 4],
    /// What the fragments of a datagram have in common, network order (IPv4: its last two bytes).
    /// Means something in fragments only.
    pub identification: [u8; 4],
    /// Length of the IP packet in bytes.
    pub length: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class, for routing.
    pub tos: u8,
    /// Whether routers may cut it into fragments: IPv4 without DF.
    pub may_be_cut: bool,
    /// See [`Self::l3`].
    l3: u16,
    /// See [`Self::l4`].
    l4: u16,
}

impl Parsed {
    /// Offset of the IP header: behind the Ethernet header and its VLAN tags.
    #[inline(always)]
    pub fn l3(&self) -> usize {
        // The mask changes nothing: it tells the verifier the bound.
        usize::from(self.l3) & 0x1f
    }

    /// Offset of the TCP or UDP header: behind IPv4 options and IPv6 extension headers.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4) & limits::HEADERS_MASK
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
            part: Part::Whole,
            flags: 0,
            sequence: [0; 4],
            acknowledgement: [0; 4],
            identification: [0; 4],
            length: 0,
            ttl: 0,
            tos: 0,
            may_be_cut: false,
            l3: 0,
            l4: 0,
        }
    }
}

/// What lies behind the IP header.
struct Payload {
    protocol: u8,
    /// Its offset in the frame.
    start: usize,
    /// End of the packet, as an offset in the frame.
    end: usize,
    part: Part,
}

/// Reads a frame of `length` bytes up to its ports, or says why it is not ours.
#[inline(always)]
pub fn packet<P: Packet>(packet: &P, length: u32, parsed: &mut Parsed) -> Result<(), Reason> {
    let ethernet: &EthernetHeader = packet.at(0).ok_or(Reason::Malformed)?;
    if ethernet.is_group() {
        return Err(match ethernet.ether_type {
            eth::IPV4 | eth::IPV6 | eth::CUSTOMER_TAG | eth::SERVICE_TAG => Reason::Multicast,
            _ => Reason::NotIp,
        });
    }
    parsed.family = match ethernet.ether_type {
        eth::IPV4 => {
            parsed.l3 = EthernetHeader::LEN as u16;
            Family::V4
        }
        eth::IPV6 => {
            parsed.l3 = EthernetHeader::LEN as u16;
            Family::V6
        }
        eth::CUSTOMER_TAG | eth::SERVICE_TAG => tagged(packet, parsed)?,
        _ => return Err(Reason::NotIp),
    };
    // Else the verifier would follow every number of tags through everything that comes.
    let l3 = usize::from(packet.again(&parsed.l3)) & 0x1f;
    let payload = match parsed.family {
        Family::V4 => v4(packet, l3, length, parsed)?,
        Family::V6 => v6(packet, l3, length, parsed)?,
    };
    parsed.protocol = payload.protocol;
    parsed.part = payload.part;
    parsed.l4 = payload.start as u16;
    if payload.part == Part::Later {
        parsed.source_port = Port::default();
        parsed.destination_port = Port::default();
        parsed.flags = 0;
        return Ok(());
    }
    match payload.protocol {
        ip::TCP => tcp(packet, parsed, &payload),
        ip::UDP => udp(packet, parsed, &payload),
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

/// Looks behind one or two VLAN tags, which stay on the frame.
#[inline(always)]
fn tagged<P: Packet>(packet: &P, parsed: &mut Parsed) -> Result<Family, Reason> {
    let mut l3 = EthernetHeader::LEN;
    for _ in 0..limits::VLAN_TAGS {
        let tag: &VlanTag = packet.at(l3).ok_or(Reason::Malformed)?;
        l3 += VlanTag::LEN;
        parsed.l3 = l3 as u16;
        match tag.ether_type {
            eth::IPV4 => return Ok(Family::V4),
            eth::IPV6 => return Ok(Family::V6),
            eth::CUSTOMER_TAG | eth::SERVICE_TAG => {}
            _ => return Err(Reason::NotIp),
        }
    }
    Err(Reason::NotIp)
}

#[inline(always)]
fn v4<P: Packet>(
    packet: &P,
    l3: usize,
    frame: u32,
    parsed: &mut Parsed,
) -> Result<Payload, Reason> {
    let header: &Ipv4Header = packet.at(l3).ok_or(Reason::Malformed)?;
    let header_length = header.header_length();
    let length = u16::from_be_bytes(header.total_length);
    if header.version() != 4
        || usize::from(header_length) < Ipv4Header::LEN
        || length < header_length
        || frame < l3 as u32 + u32::from(length)
    {
        return Err(Reason::Malformed);
    }
    parsed.source = Address::v4(header.source);
    parsed.destination = Address::v4(header.destination);
    parsed.length = length;
    parsed.ttl = header.ttl;
    parsed.tos = header.tos;
    parsed.may_be_cut = !header.dont_fragment();
    let part = if header.is_whole() {
        Part::Whole
    } else {
        let [high, low] = header.identification;
        parsed.identification = [0, 0, high, low];
        match header.fragment_offset() {
            0 => Part::First,
            _ => Part::Later,
        }
    };
    Ok(Payload {
        protocol: header.protocol,
        start: l3 + usize::from(header_length),
        end: l3 + usize::from(length),
        part,
    })
}

#[inline(always)]
fn v6<P: Packet>(
    packet: &P,
    l3: usize,
    frame: u32,
    parsed: &mut Parsed,
) -> Result<Payload, Reason> {
    let header: &Ipv6Header = packet.at(l3).ok_or(Reason::Malformed)?;
    let length = (Ipv6Header::LEN as u16)
        .checked_add(u16::from_be_bytes(header.payload_length))
        .ok_or(Reason::Malformed)?;
    if header.version() != 6 || frame < l3 as u32 + u32::from(length) {
        return Err(Reason::Malformed);
    }
    parsed.source = Address::v6(&header.source);
    parsed.destination = Address::v6(&header.destination);
    parsed.length = length;
    parsed.ttl = header.hop_limit;
    parsed.may_be_cut = false;
    parsed.tos = (header.version_class_flow[0] << 4) | (header.version_class_flow[1] >> 4);
    let payload = Payload {
        protocol: header.next_header,
        start: l3 + Ipv6Header::LEN,
        end: l3 + usize::from(length),
        part: Part::Whole,
    };
    match payload.protocol {
        ip::TCP | ip::UDP => Ok(payload),
        _ => extensions(packet, payload, parsed),
    }
}

/// Follows IPv6 extension headers to the ports.
#[inline(always)]
fn extensions<P: Packet>(
    packet: &P,
    mut payload: Payload,
    parsed: &mut Parsed,
) -> Result<Payload, Reason> {
    for _ in 0..limits::EXTENSION_HEADERS {
        match payload.protocol {
            ip::TCP | ip::UDP => return Ok(payload),
            ip::HOP_BY_HOP | ip::ROUTING | ip::DESTINATION_OPTIONS | ip::FRAGMENT => {}
            _ => return Err(Reason::OtherProtocol),
        }
        if payload.start + ExtensionHeader::LEN > payload.end {
            return Err(Reason::Malformed);
        }
        let start = payload.start & limits::HEADERS_MASK;
        let extension: &ExtensionHeader = packet.at(start).ok_or(Reason::Malformed)?;
        let is_fragment = payload.protocol == ip::FRAGMENT;
        payload.protocol = extension.next_header;
        if is_fragment {
            payload.start += ExtensionHeader::LEN;
            parsed.identification = extension.rest;
            if extension.fragment_offset() != 0 {
                payload.part = Part::Later;
                return Ok(payload);
            }
            // An atomic fragment (RFC 6946) is whole.
            if extension.more_fragments() {
                payload.part = Part::First;
            }
        } else {
            payload.start += usize::from(extension.header_length());
        }
    }
    match payload.protocol {
        ip::TCP | ip::UDP => Ok(payload),
        _ => Err(Reason::UnknownExtension),
    }
}

#[inline(always)]
fn tcp<P: Packet>(packet: &P, parsed: &mut Parsed, payload: &Payload) -> Result<(), Reason> {
    let start = payload.start & limits::HEADERS_MASK;
    let tcp: &TcpHeader = packet.at(start).ok_or(Reason::Malformed)?;
    let header_length = usize::from(tcp.header_length());
    if header_length < TcpHeader::LEN || start + header_length > payload.end {
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
fn udp<P: Packet>(packet: &P, parsed: &mut Parsed, payload: &Payload) -> Result<(), Reason> {
    let start = payload.start & limits::HEADERS_MASK;
    let udp: &UdpHeader = packet.at(start).ok_or(Reason::Malformed)?;
    let length = usize::from(u16::from_be_bytes(udp.length));
    // The length is the datagram's, of which a fragment is a part.
    let available = match payload.part {
        Part::Whole => length,
        Part::First | Part::Later => UdpHeader::LEN,
    };
    if length < UdpHeader::LEN || start + available > payload.end {
        return Err(Reason::Malformed);
    }
    parsed.source_port = Port(udp.source);
    parsed.destination_port = Port(udp.destination);
    parsed.flags = 0;
    parsed.sequence = [0; 4];
    parsed.acknowledgement = [0; 4];
    Ok(())
}
